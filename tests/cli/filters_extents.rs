//! The extents cache and the list of extents, with other people's clients and servers.

use std::{
    fs::{self, File},
    os::unix::{
        fs::{FileExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    process::Child,
};

use blockferry::{
    block::{ByteRange, Context, Extent, WriteFlags, ZeroFlags},
    client::blocking::Client,
};
use tempfile::{TempDir, tempdir};

use crate::support::{
    images::{assert_same, sparse_image},
    peers::Peer,
    run::{blockferry, run, tool, until},
};

const MIB: u64 = 1 << 20;

/// Four extents of 1 MiB, one of each type. Questions about them are written down.
const SCRIPT: &str = r#"#!/bin/sh
case "$1" in
thread_model) echo parallel ;;
get_size) echo 4M ;;
can_write|can_trim|can_zero|can_extents) exit 0 ;;
pread) head -c "$3" /dev/zero ;;
pwrite) cat > /dev/null ;;
trim|zero) ;;
extents)
    echo "$3 $4" >> "$LOG"
    echo "0M 1M 0"; echo "1M 1M 1"; echo "2M 1M 2"; echo "3M 1M 3" ;;
*) exit 2 ;;
esac
"#;

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// How often the script is asked for extents while `client` runs, a shell command that finds the server's URI in
/// `$uri`.
fn questions(filters: &[&str], client: &str) -> usize {
    let dir = tempdir().expect("a directory");
    let (script, log) = (dir.path().join("script"), dir.path().join("log"));
    fs::write(&script, SCRIPT).expect("written");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("executable");
    let filters = filters.iter().flat_map(|filter| ["--filter", filter]);
    let mut command = blockferry(["serve", "--quiet"]);
    command
        .args(filters)
        .arg(format!("sh:{}", script.display()))
        .args(["--run", client])
        .env("LOG", &log);
    run(&mut command).success();
    let asked = fs::read_to_string(&log).unwrap_or_default();
    asked.lines().count()
}

#[test]
fn a_source_is_asked_as_often_as_it_was_by_the_filter_that_nbdkit_had() {
    let with = |client: &str| questions(&["cacheextents"], client);
    let io = |commands: &[&str]| {
        let commands = commands.iter().map(|command| format!(" -c '{command}'"));
        format!("qemu-io -f raw{} \"$uri\"", commands.collect::<String>())
    };
    let map = "qemu-img map -f raw \"$uri\"";
    let three = format!("{map} && {map} && {map}");
    assert_eq!(with(&three), 1, "once for all connections");
    assert!(questions(&[], &three) > 4);
    assert_eq!(with(&io(&["map", "discard 1M 64k", "map"])), 2);
    assert_eq!(with(&io(&["map", "write 2M 64k", "map"])), 2);
    assert_eq!(with(&io(&["map", "read 0 4M", "map"])), 1);
    assert_eq!(with(&io(&["map", "alloc 0", "alloc 1M", "alloc 3M"])), 1);
    let others = format!("{map} && nbdinfo --map \"$uri\" && {}", io(&["map"]));
    assert_eq!(with(&others), 1, "what is known outlives its connection");
}

#[test]
fn what_is_told_is_what_the_source_tells() {
    let client = "nbdinfo --map \"$uri\" > \"$MAP\"";
    let maps = [&["cacheextents"][..], &[]].map(|filters| {
        let file = tempfile::NamedTempFile::new().expect("a file");
        questions(filters, &client.replace("$MAP", text(file.path())));
        fs::read_to_string(file.path()).expect("a map")
    });
    assert_eq!(maps[0], maps[1]);
    assert_eq!(maps[0].lines().count(), 4);
}

/// `nbdkit` in front of a file of 1 GiB in 4,096 extents, where each question takes a while and is written down.
struct Slow {
    dir: TempDir,
    server: Peer,
}

impl Slow {
    fn new(delay: &str) -> Self {
        let dir = tempdir().expect("a directory");
        let image = dir.path().join("image.raw");
        let file = File::create(&image).expect("a file");
        file.set_len(1 << 30).expect("room for holes");
        for index in 0..2048 {
            let data = [index as u8 | 1; 4096];
            file.write_all_at(&data, index << 19).expect("room");
        }
        let log = format!("logfile={}", dir.path().join("log").display());
        let filters = ["--filter=log", "--filter=delay", "file"];
        let words = [&filters[..], &[text(&image), delay, &log]].concat();
        let server = Peer::nbdkit(dir.path(), &words);
        Self { dir, server }
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image.raw")
    }

    /// How many questions there were in all.
    fn questions(&self) -> usize {
        let log = fs::read(self.dir.path().join("log")).expect("a log");
        let log = String::from_utf8_lossy(&log);
        log.lines()
            .filter(|line| line.contains(" Extents id"))
            .count()
    }

    /// Runs `client` against a proxy with the filter, and gives how many questions came of it.
    fn behind_a_proxy(&self, client: &str) -> usize {
        let before = self.questions();
        let uri = self.server.uri();
        let words = [
            "serve",
            "--quiet",
            "--filter",
            "cacheextents",
            &uri,
            "--run",
            client,
        ];
        run(&mut blockferry(words)).success();
        self.questions() - before
    }
}

#[test]
fn a_few_questions_are_enough_for_thousands_of_extents() {
    let slow = Slow::new("delay-extents=10ms");
    let copy = slow.dir.path().join("copy.raw");
    let direct = tool(
        "qemu-img",
        &["map", "-f", "raw", "--output=json", text(&slow.image())],
    );
    let map = slow.dir.path().join("map");
    let client = format!(
        "qemu-img map -f raw --output=json \"$uri\" > {}",
        map.display()
    );
    assert!(slow.behind_a_proxy(&client) <= 3);
    let map = fs::read_to_string(map).expect("a map");
    let extents = |json: &str| {
        let json: serde_json::Value = serde_json::from_str(json).expect("JSON");
        let extents = json.as_array().expect("extents").clone();
        let facts = |it: &serde_json::Value| {
            (
                it["start"].clone(),
                it["length"].clone(),
                it["zero"].clone(),
            )
        };
        extents.iter().map(facts).collect::<Vec<_>>()
    };
    assert_eq!(extents(&map), extents(&direct));
    assert_eq!(extents(&map).len(), 4096);

    let client = format!("qemu-img convert -f raw -O raw \"$uri\" {}", copy.display());
    assert!(slow.behind_a_proxy(&client) <= 3);
    assert_same(&slow.image(), &copy);
    fs::remove_file(&copy).expect("removed");

    let before = slow.questions();
    let words = [
        "copy",
        "--filter",
        "cacheextents",
        &slow.server.uri(),
        text(&copy),
    ];
    run(&mut blockferry(words)).success();
    assert!(slow.questions() - before <= 3);
    assert_same(&slow.image(), &copy);
}

/// `blockferry serve` with the filter, until it is dropped.
struct Front {
    child: Child,
    socket: PathBuf,
}

impl Front {
    fn start(dir: &Path, filter: &str, sources: &[&str]) -> Self {
        let socket = dir.join("front.sock");
        let mut command = blockferry(["serve", "--quiet", "--filter", filter, "--unix"]);
        let child = command.arg(&socket).args(sources).spawn();
        let child = child.expect("the binary");
        let front = Self { child, socket };
        until("the proxy", || UnixStream::connect(&front.socket).is_ok());
        front
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    fn client(&self, export: &str) -> Client {
        Client::connect(&self.uri(export)).expect("the proxy answers")
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `client` is told of the first 4 MiB: ends in KiB, and whether they are data.
fn told(client: &mut Client) -> Vec<(u64, bool)> {
    let mut list: Vec<Extent> = Vec::new();
    let mut rest = ByteRange::between(0, 4 * MIB);
    while !rest.is_empty() {
        let extents = client.extents(rest, &Context::Allocation);
        for extent in extents.expect("an answer") {
            (_, rest) = rest.split_at(extent.range.len());
            blockferry::block::push_merged(&mut list, extent);
        }
    }
    let facts = list.iter();
    facts
        .map(|extent| (extent.range.end() >> 10, !extent.status.is_zero()))
        .collect()
}

#[test]
fn what_one_client_writes_the_others_see_and_no_other_export() {
    let dirs = [tempdir(), tempdir(), tempdir()].map(|dir| dir.expect("a directory"));
    let a = Peer::nbdkit(dirs[0].path(), &["memory", "4M"]);
    let b = Peer::nbdkit(dirs[1].path(), &["memory", "4M"]);
    let exports = [format!("a={}", a.uri()), format!("b={}", b.uri())];
    let exports = ["-e", &exports[0], "-e", &exports[1]];
    let front = Front::start(dirs[2].path(), "cacheextents", &exports);
    let mut writer = front.client("a");
    let mut readers = [front.client("a"), front.client("a"), front.client("b")];
    let empty = [(4096, false)];
    for client in &mut readers {
        assert_eq!(told(client), empty);
    }
    writer
        .write(MIB, &[1; 1 << 20], WriteFlags::empty())
        .expect("written");
    let data = [(1024, false), (2048, true), (4096, false)];
    assert_eq!(told(&mut readers[0]), data);
    assert_eq!(told(&mut readers[1]), data);
    assert_eq!(told(&mut writer), data);
    assert_eq!(told(&mut readers[2]), empty);
    let half = ByteRange::between(MIB, MIB + MIB / 2);
    readers[0].zero(half, ZeroFlags::empty()).expect("zeroed");
    let less = [(1536, false), (2048, true), (4096, false)];
    assert_eq!(told(&mut readers[1]), less);
    readers[1]
        .trim(ByteRange::between(0, 4 * MIB), WriteFlags::empty())
        .expect("trimmed");
    assert_eq!(told(&mut writer), empty);
    let map = tool("nbdinfo", &["--map", "--totals", &front.uri("a")]);
    assert!(map.contains("4194304 100.0%"), "{map}");
}

#[test]
fn a_list_of_extents_reads_as_nbdkit_reads_it() {
    let dir = tempdir().expect("a directory");
    let (image, list) = (dir.path().join("image.raw"), dir.path().join("list"));
    sparse_image(&image, 4 * MIB);
    let lists = [
        "",
        "0 64K\n1M 1M hole\n",
        "3M 1M zero\n64K 64K 0\n0 64K 2\n128K 64K hole,zero\n",
        "0 1M 7\n1M 1M 0x2\n2M 64K hole zero\n2112K 1M data\n",
    ];
    for text_of_list in lists {
        fs::write(&list, text_of_list).expect("written");
        let map = "nbdinfo --map \"$uri\"";
        let theirs = format!("extentlist={}", list.display());
        let theirs = [
            "-U",
            "-",
            "--filter=extentlist",
            "file",
            text(&image),
            &theirs,
            "--run",
            map,
        ];
        let ours = format!("extentlist:{}", list.display());
        let ours = [
            "serve",
            "--quiet",
            "--filter",
            &ours,
            text(&image),
            "--run",
            map,
        ];
        let ours = run(&mut blockferry(ours)).success();
        assert_eq!(ours.text(), tool("nbdkit", &theirs), "{text_of_list}");
    }
    fs::write(&list, "0 1M\n512K 1M\n").expect("written");
    let filter = format!("extentlist:{}", list.display());
    let copy = dir.path().join("copy.raw");
    let words = ["copy", "--filter", &filter, text(&image), text(&copy)];
    run(&mut blockferry(words)).failure(1, &["line 2 overlaps line 1"]);
    assert!(!copy.exists());
}
