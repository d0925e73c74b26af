//! `serve` in front of another server: what it has is passed through, and it may die and come back.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use blockferry::{
    block::{Capabilities, ErrorKind, WriteFlags},
    client::blocking::Client,
};
use tempfile::{NamedTempFile, TempDir, tempdir};

use crate::support::{
    Outcome, Peer, assert_same, blockferry,
    phoenix::{Phoenix, phoenixes},
    random_image,
    run::{finish, run, signal, tool, until, wait},
};

const SIZE: usize = 24 << 20;

/// `blockferry serve UPSTREAM`; it ends with the value.
struct Front {
    child: Child,
    socket: PathBuf,
    log: NamedTempFile,
}

impl Front {
    fn start(dir: &Path, upstream: &[&str], options: &[&str]) -> Self {
        let socket = dir.join("front.sock");
        let log = NamedTempFile::new().expect("a file");
        let child = blockferry(["serve"])
            .args(options)
            .arg("--unix")
            .arg(&socket)
            .args(upstream)
            .stderr(log.reopen().expect("a file"))
            .spawn()
            .expect("the binary");
        let front = Self { child, socket, log };
        until("the proxy", || UnixStream::connect(&front.socket).is_ok());
        front
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    fn client(&self) -> Client {
        Client::connect(&self.uri()).expect("the proxy answers")
    }

    fn told(&self) -> String {
        fs::read_to_string(self.log.path()).expect("a file")
    }

    /// Asks it to stop.
    fn stop(mut self) -> (i32, String) {
        signal(&self.child, "TERM");
        (wait(&mut self.child), self.told())
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A directory with a random image in it.
fn room() -> (TempDir, PathBuf) {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    random_image(&image, SIZE);
    (dir, image)
}

fn read(client: &mut Client) -> Result<(), ErrorKind> {
    let read = client.read(4096, &mut [0; 4096]);
    read.map_err(|error| error.kind())
}

/// `qemu-img convert` at 16 MiB a second, with `server` restarted in its middle.
fn convert_during_restarts(arguments: &[&str], server: &mut Phoenix) -> Outcome {
    let child = Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "raw", "-r", "16M"])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("qemu-img");
    for _ in 0..2 {
        thread::sleep(Duration::from_millis(300));
        server.restart();
    }
    finish(child)
}

#[test]
fn readers_get_every_byte_through_a_proxy_whose_server_restarts() {
    let (dir, image) = room();
    for (name, mut server) in phoenixes(dir.path(), &image) {
        let front = Front::start(dir.path(), &[&server.uri()], &[]);
        let copy = dir.path().join(format!("{name}.raw"));
        convert_during_restarts(&[&front.uri(), text(&copy)], &mut server).success();
        assert_same(&image, &copy);
        let (code, told) = front.stop();
        assert_eq!(code, 0, "{told}");
        assert!(told.contains("connected again"), "{name}: {told}");
    }
}

#[test]
fn writers_lose_nothing_of_a_file_behind_a_proxy_whose_server_restarts() {
    let (dir, image) = room();
    let disk = dir.path().join("disk.raw");
    fs::write(&disk, vec![0x55; SIZE]).expect("room");
    for (name, mut server) in phoenixes(dir.path(), &disk) {
        let front = Front::start(dir.path(), &[&server.uri()], &[]);
        let uri = front.uri();
        convert_during_restarts(&["-n", text(&image), &uri], &mut server).success();
        assert_same(&image, &disk);
        let told = front.told();
        assert!(
            told.contains("writes that were not flushed"),
            "{name}: {told}"
        );
        fs::write(&disk, vec![0x55; SIZE]).expect("room");
    }
}

/// `nbdcopy` with `arguments` through a proxy in front of a file that is served at 16 MiB a second by a
/// server that restarts twice meanwhile.
fn nbdcopy_during_restarts(disk: &Path, arguments: impl Fn(&str) -> Vec<String>) -> Outcome {
    let dir = tempdir().expect("a directory");
    let (place, file) = (dir.path().to_owned(), format!("file={}", disk.display()));
    let mut server = Phoenix::new(move || {
        Peer::nbdkit(
            &place,
            &[
                "--filter=rate",
                "file",
                &file,
                "rate=128M",
                "burstiness=0.05",
            ],
        )
    });
    let front = Front::start(dir.path(), &[&server.uri()], &[]);
    let child = Command::new("nbdcopy")
        .args(arguments(&front.uri()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("nbdcopy");
    for _ in 0..2 {
        thread::sleep(Duration::from_millis(300));
        server.restart();
    }
    let outcome = finish(child);
    assert!(front.told().contains("connected again"));
    outcome
}

#[test]
fn nbdcopy_reads_and_writes_through_a_proxy_whose_server_restarts() {
    let (dir, image) = room();
    let (disk, copy) = (dir.path().join("disk.raw"), dir.path().join("copy.raw"));
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    nbdcopy_during_restarts(&image, |uri| words(&[uri, text(&copy)])).success();
    assert_same(&image, &copy);
    let blank = || fs::write(&disk, vec![0x55; SIZE]).expect("room");
    blank();
    nbdcopy_during_restarts(&disk, |uri| words(&[text(&image), uri])).success();
    assert_same(&image, &disk);
    // A client that wants to be sure is told that it cannot be.
    blank();
    let careful = nbdcopy_during_restarts(&disk, |uri| words(&["--flush", text(&image), uri]));
    assert_ne!(careful.code, 0);
    assert!(careful.stderr.contains("flush"), "{}", careful.stderr);
    assert_same(&image, &disk);
}

#[test]
fn each_client_is_told_once_of_writes_that_its_server_was_lost_with() {
    let (dir, disk) = room();
    for (name, mut server) in phoenixes(dir.path(), &disk) {
        let front = Front::start(dir.path(), &[&server.uri()], &[]);
        let (mut writer, mut other) = (front.client(), front.client());
        let none = WriteFlags::empty();
        writer.write(0, &[0xab; 4096], none).expect("a write");
        writer.flush().expect("a flush");
        server.restart();
        writer.flush().expect("nothing was lost");

        writer
            .write(0, &[0xab; 4096], WriteFlags::FUA)
            .expect("a write");
        server.restart();
        writer.flush().expect("it was durable");

        writer.write(0, &[0xab; 4096], none).expect("a write");
        server.restart();
        read(&mut writer).expect("reading goes on");
        for client in [&mut writer, &mut other] {
            let error = client.flush().expect_err("something may be lost");
            assert_eq!(error.kind(), ErrorKind::Io, "{name}");
            assert!(error.to_string().contains("not flushed"), "{name}: {error}");
            client.flush().expect("it was told");
        }
        front
            .client()
            .flush()
            .expect("a new client has lost nothing");
        let (code, told) = front.stop();
        assert_eq!(code, 0, "{told}");
    }
}

#[test]
fn writes_of_a_client_that_left_are_flushed_or_their_loss_is_told_at_the_end() {
    let (dir, disk) = room();
    let place = dir.path().to_owned();
    let mut server = Phoenix::new(move || Peer::qemu_nbd(&place, "raw", &disk, &[]));
    let front = Front::start(dir.path(), &[&server.uri()], &[]);
    let mut writer = front.client();
    let none = WriteFlags::empty();
    writer.write(0, &[0xab; 4096], none).expect("a write");
    server.restart();
    read(&mut writer).expect("reading goes on");
    drop(writer);
    until("the flush for the client that is gone", || {
        front.told().contains("flush: ")
    });
    let (code, told) = front.stop();
    assert_eq!(code, 1, "{told}");
    assert!(told.contains("may not be durable"), "{told}");
}

#[test]
fn a_server_that_is_not_there_at_the_start_is_named() {
    let dir = tempdir().expect("a directory");
    let uri = format!(
        "nbd+unix:///?socket={}",
        dir.path().join("nobody").display()
    );
    let front = dir.path().join("front.sock");
    let mut command = blockferry(["serve", &uri, "--unix"]);
    run(command.arg(&front)).failure(1, &["nobody", "is the server running?"]);
    assert!(!front.exists());
}

#[test]
fn a_server_that_is_gone_fails_requests_and_not_the_proxy() {
    let (dir, disk) = room();
    for (name, mut server) in phoenixes(dir.path(), &disk) {
        let front = Front::start(dir.path(), &[&server.uri()], &["--retries=2"]);
        let mut client = front.client();
        read(&mut client).expect("it is there");
        server.stop();
        for _ in 0..2 {
            assert_eq!(read(&mut client), Err(ErrorKind::Io), "{name}");
        }
        // Who comes now finds the export as it was, and nothing in it.
        let mut late = front.client();
        assert_eq!(late.size(), SIZE as u64);
        assert_eq!(read(&mut late), Err(ErrorKind::Io), "{name}");
        let told = front.told();
        assert!(
            told.contains("could not be opened again in 2 attempts"),
            "{told}"
        );
        server.start();
        for client in [&mut client, &mut late] {
            read(client).expect("it is back");
        }
        assert!(front.told().contains("connected again"), "{name}");
    }
}

#[test]
fn a_proxy_that_is_to_stop_waits_for_no_server() {
    let (dir, disk) = room();
    let place = dir.path().to_owned();
    let mut server = Phoenix::new(move || Peer::qemu_nbd(&place, "raw", &disk, &[]));
    // A quarter of an hour, to whom it does not matter.
    let front = Front::start(dir.path(), &[&server.uri()], &["--retries=100"]);
    let mut client = front.client();
    server.stop();
    let waiting = thread::spawn(move || read(&mut client));
    // Closed, or reset where the server had not read everything.
    until("the loss", || front.told().contains("the connection"));
    let (code, told) = front.stop();
    assert_eq!(code, 0, "{told}");
    assert!(waiting.join().expect("no panic").is_err());
}

#[test]
fn a_server_that_comes_back_with_another_size_is_refused() {
    let (dir, disk) = room();
    let (place, image) = (dir.path().to_owned(), disk.clone());
    let mut server = Phoenix::new(move || Peer::qemu_nbd(&place, "raw", &image, &[]));
    let front = Front::start(dir.path(), &[&server.uri()], &[]);
    let mut client = front.client();
    server.stop();
    let cut = fs::OpenOptions::new().write(true).open(&disk);
    cut.expect("a file")
        .set_len(1 << 20)
        .expect("a smaller file");
    server.start();
    assert_eq!(read(&mut client), Err(ErrorKind::Io));
    let told = front.told();
    assert!(told.contains("its size was 25165824 bytes"), "{told}");
}

#[test]
fn a_server_that_hangs_fails_requests_after_the_timeout_and_is_used_again_when_it_wakes() {
    let (dir, disk) = room();
    let file = format!("file={}", disk.display());
    let server = Peer::nbdkit(dir.path(), &["file", &file]);
    let options = ["--timeout=1", "--retries=1"];
    let front = Front::start(dir.path(), &[&server.uri()], &options);
    let mut client = front.client();
    read(&mut client).expect("it is awake");
    server.signal("STOP");
    assert_eq!(read(&mut client), Err(ErrorKind::Io));
    server.signal("CONT");
    read(&mut client).expect("it is awake again");
    let (code, told) = front.stop();
    assert_eq!(code, 0, "{told}");
}

#[test]
fn a_server_that_was_started_for_the_proxy_is_not_waited_for_when_it_has_ended() {
    let (dir, image) = room();
    let pid = dir.path().join("pid");
    let file = format!("file={}", image.display());
    let upstream = ["[", "nbdkit", "-P", text(&pid), "file", &file, "]"];
    let front = Front::start(dir.path(), &upstream, &[]);
    let mut client = front.client();
    read(&mut client).expect("it is there");
    let number = fs::read_to_string(&pid).expect("a number");
    let kill = Command::new("kill").args(["-9", number.trim()]).status();
    assert!(kill.expect("kill runs").success());
    assert_eq!(read(&mut client), Err(ErrorKind::Io));
    assert_eq!(front.client().size(), SIZE as u64);
}

/// What `nbdinfo` says of an export, without its address and what is the proxy's own.
fn described(uri: &str) -> Vec<String> {
    let described = tool("nbdinfo", &["--no-content", uri]);
    let own = [
        "uri:",
        "block_size_maximum:",
        "can_df:",
        "protocol:",
        "can_multi_conn:",
    ];
    let lines = described.lines().map(|line| line.trim().to_owned());
    lines
        .filter(|line| !own.iter().any(|own| line.starts_with(own)))
        .collect()
}

#[test]
fn what_an_export_is_and_can_passes_through() {
    let (dir, image) = room();
    let file = format!("file={}", image.display());
    let script = [
        "eval",
        "get_size=echo 1M",
        "pread=dd if=/dev/zero count=$3 iflag=count_bytes",
        "is_rotational=exit 0",
        "can_write=exit 3",
    ];
    let sizes = [
        "--filter=blocksize-policy",
        "file",
        &file,
        "blocksize-minimum=512",
        "blocksize-preferred=64K",
        "blocksize-maximum=1M",
        "blocksize-error-policy=error",
    ];
    for arguments in [&script[..], &sizes, &["file", &file]] {
        let dir = tempdir().expect("a directory");
        let server = Peer::nbdkit(dir.path(), arguments);
        let front = Front::start(dir.path(), &[&server.uri()], &[]);
        let (mut through, direct) = (described(&front.uri()), described(&server.uri()));
        if !direct.iter().any(|line| line.starts_with("block_size")) {
            // Where nothing is said the usual is meant, and that is said.
            through.retain(|line| !line.starts_with("block_size"));
        }
        assert_eq!(through, direct);
    }
    let server = Peer::qemu_nbd(dir.path(), "raw", &image, &["-D", "a disk", "-r"]);
    let front = Front::start(dir.path(), &[&server.uri()], &[]);
    let info = tool("nbdinfo", &["--no-content", &front.uri()]);
    for line in ["description: a disk", "is_read_only: true"] {
        assert!(info.contains(line), "{info}");
    }
    drop(front);
    // Requests are cut to what the server takes.
    let server = Peer::nbdkit(dir.path(), &sizes);
    let front = Front::start(dir.path(), &[&server.uri()], &[]);
    let copy = dir.path().join("copy.raw");
    tool(
        "nbdcopy",
        &["--request-size=4194304", &front.uri(), text(&copy)],
    );
    assert_same(&image, &copy);
}

#[test]
fn several_clients_may_share_one_connection() {
    let (dir, image) = room();
    let file = format!("file={}", image.display());
    let single = [
        "--filter=multi-conn",
        "file",
        &file,
        "multi-conn-mode=disable",
    ];
    let server = Peer::nbdkit(dir.path(), &single);
    let direct = Client::connect(&server.uri()).expect("nbdkit answers");
    assert!(!direct.info().can(Capabilities::MULTI_CONN));
    drop(direct);
    let front = Front::start(dir.path(), &[&server.uri()], &[]);
    let (mut one, mut other) = (front.client(), front.client());
    assert!(one.info().can(Capabilities::MULTI_CONN));
    one.write(0, &[7; 512], WriteFlags::empty())
        .expect("a write");
    let mut seen = [0; 512];
    other.read(0, &mut seen).expect("a read");
    assert_eq!(seen, [7; 512]);
    other.flush().expect("a flush of both");
}

#[test]
fn all_that_is_known_of_an_image_passes_through() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.qcow2");
    let image = text(&image);
    tool("qemu-img", &["create", "-q", "-f", "qcow2", image, "64M"]);
    for bitmap in ["first", "second"] {
        tool("qemu-img", &["bitmap", "--add", image, bitmap]);
        let (a, b) = match bitmap {
            "first" => ("write 1M 2M", "write -z 30M 64k"),
            _ => ("write 5M 3M", "discard 1M 1M"),
        };
        tool("qemu-io", &["-f", "qcow2", "-c", a, "-c", b, image]);
    }
    let extra = ["-B", "first", "-B", "second", "-A"];
    let server = Peer::qemu_nbd(dir.path(), "qcow2", Path::new(image), &extra);
    let front = Front::start(dir.path(), &[&server.uri()], &[]);
    for context in [
        "base:allocation",
        "qemu:allocation-depth",
        "qemu:dirty-bitmap:first",
        "qemu:dirty-bitmap:second",
    ] {
        let map = format!("--map={context}");
        let [through, direct] =
            [front.uri(), server.uri()].map(|uri| tool("nbdinfo", &[&map, &uri]));
        assert_eq!(through, direct, "{context}");
        assert!(through.lines().count() > 2, "{context}: {through}");
        let mut command = blockferry(["map", "--context", context, &front.uri()]);
        run(&mut command).success();
    }
    assert_eq!(described(&front.uri()), described(&server.uri()));
}

#[test]
fn who_asks_for_one_extent_is_not_answered_by_thousands_upstream() {
    let room = tempfile::tempdir().expect("a directory");
    let log = room.path().join("log");
    let logfile = format!("logfile={}", log.display());
    let data = "data=( @0 0x1 @131072 )*16";
    let server = Peer::nbdkit(room.path(), &["--filter=log", "data", data, &logfile]);
    let map = "qemu-img map --output=json -f raw \"$uri\"";
    let shown = run(&mut blockferry(["serve", &server.uri(), "--run", map])).success();
    let theirs = tool(
        "qemu-img",
        &["map", "--output=json", "-f", "raw", &server.uri()],
    );
    assert_eq!(shown.text(), theirs);
    let log = std::fs::read_to_string(&log).expect("a log");
    let asked: Vec<_> = log
        .lines()
        .filter(|line| line.contains(" Extents id="))
        .collect();
    let ours = asked
        .iter()
        .filter(|line| line.contains("connection=1 "))
        .count();
    assert!(ours > 4, "{log}");
    assert!(asked.iter().all(|line| line.contains("req_one=1")), "{log}");
}
