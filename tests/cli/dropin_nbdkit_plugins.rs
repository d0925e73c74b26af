//! Under the name nbdkit, each plugin beside the real one: the same parameters, the same disk.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::{TempDir, tempdir};

use crate::support::{
    Peer,
    dropin::{BOTH, FACTS, MAP, READ, Who, assert_alike, captive},
    images::random_bytes,
    run,
    run::run_with_input,
    sparse_image,
};

struct Room {
    dir: TempDir,
}

impl Room {
    fn new() -> Self {
        let dir = tempdir().expect("a directory");
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        text(&self.path(name)).to_owned()
    }

    /// A file of so many bytes that look random.
    fn file(&self, name: &str, length: usize) -> String {
        let bytes = random_bytes(length, length as u64);
        fs::write(self.path(name), bytes).expect("room");
        self.text(name)
    }

    /// A script that can be run.
    fn script(&self, text: &str) -> String {
        let path = self.path("script");
        fs::write(&path, text).expect("room");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("ours");
        self.text("script")
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn plain_disks_are_the_same() {
    for arguments in [
        &["memory", "1M"][..],
        &["memory", "size=65537"],
        &["memory", "1M", "size=2M"],
        &["null", "1M"],
        &["zero"],
    ] {
        assert_alike(arguments, READ);
        assert_alike(arguments, MAP);
        assert_alike(arguments, FACTS);
    }
    for arguments in [&["pattern", "size=100003"][..], &["pattern", "1M"]] {
        let bytes = assert_alike(arguments, READ);
        assert_eq!(bytes[8..16], [0, 0, 0, 0, 0, 0, 0, 8]);
        assert_alike(arguments, FACTS);
    }
}

#[test]
fn memory_keeps_what_is_written_from_client_to_client() {
    let room = Room::new();
    let image = room.file("image", 70_000);
    let command = format!("nbdcopy {image} \"$uri\" && {READ}");
    let bytes = assert_alike(&["memory", "128k"], &command);
    assert_eq!(bytes[..70_000], fs::read(image).expect("a file"));
    assert!(bytes[70_000..].iter().all(|byte| *byte == 0));
}

#[test]
fn data_is_described_in_the_same_language() {
    let room = Room::new();
    let file = room.file("file", 1000);
    let from_file = format!("0x55 <{file} @^512 <{file}[2:100]");
    for arguments in [
        &["data", "0 1 2 3 @0x1fe 0x55 0xaa"][..],
        &["data", " ( 0x55 0xAA )*2048 "],
        &["data", " ( \"Hello\" )*2000 ", "size=8192"],
        &[
            "data",
            "@0x1be 0 0 2 0 0x83 le32:1 be64:0x7ff @^0x200 @-2 le16:0xaa55",
            "size=1M",
        ],
        &[
            "data",
            "( 0x55 0xAA ) -> \\sig ( @0x1fe \\sig ) -> \\sector \\sector \\sector",
        ],
        &["data", "$a*16 # and so on", "a=0x55 \"x\\n\""],
        &[
            "data",
            "<(i=0; while :; do printf %04d $i; i=$((i+1)); done)[:32768]",
        ],
        &["data", &from_file],
        &["data", "1 @1T 2"],
        &["data", "raw=Hello, world!"],
        &["data", "base64=MTIz", "size=1M"],
        &["data", "base64=aGVsbG8gbmJka2l0IHVzZXI="],
    ] {
        if arguments[1].contains("@1T") {
            assert_alike(&["data", "1 @0x10000000000 2"], FACTS);
            continue;
        }
        assert_alike(arguments, READ);
        assert_alike(arguments, FACTS);
    }
}

#[test]
fn data_lies_in_pages_of_the_same_size() {
    for data in [
        "1",
        "1 @0x100000 1",
        "@32768 1 @131072 1 @294912 1",
        "1 @1073741823 1 @4294967295 1 @4294967296 1",
    ] {
        assert_alike(&["data", data], MAP);
    }
}

#[test]
fn a_file_is_served_read_and_written() {
    let room = Room::new();
    let image = room.path("image");
    sparse_image(&image, 8 << 20);
    let image = text(&image);
    for arguments in [
        &["file", image][..],
        &["file", "fadvise=sequential", "cache=none", image],
        &["-r", "file", image],
    ] {
        assert_alike(arguments, READ);
        assert_alike(arguments, MAP);
        assert_alike(arguments, FACTS);
    }
    let new = room.file("new", 100_000);
    for who in BOTH {
        let target = room.file("target", 200_000);
        let write = format!("nbdcopy --flush {new} \"$uri\"");
        captive(who, &["file", &target], &write).success();
        let bytes = fs::read(&target).expect("a file");
        assert_eq!(bytes[..100_000], fs::read(&new).expect("a file"), "{who:?}");
        assert_eq!(bytes.len(), 200_000);
        let refused = captive(who, &["-r", "file", &target], &write);
        assert_eq!(refused.code, 1, "{who:?}");
    }
}

#[test]
fn a_file_by_its_descriptor() {
    let room = Room::new();
    let image = room.file("image", 10_000);
    let program = Who::Ours.path("nbdkit", room.dir.path());
    let script = "exec 5<>\"$1\"; exec \"$0\" -U - file fd=5 --run 'nbdinfo --size \"$uri\"'";
    let words = ["-c", script, text(&program), &image];
    let outcome = run(Command::new("sh").args(words)).success();
    assert_eq!(outcome.text(), "10000\n");
}

#[test]
fn a_directory_has_its_files_as_exports() {
    let room = Room::new();
    room.file("b.img", 5000);
    room.file("a.img", 3000);
    fs::create_dir(room.path("subdirectory")).expect("room");
    let directory = format!("dir={}", text(room.dir.path()));
    let list = "nbdinfo --list --json \"$uri\" | grep -e export-name -e export-size\\\" | sort";
    assert_alike(&["file", &directory], list);
    let one = "nbdinfo --size \"nbd+unix:///b.img?socket=$unixsocket\"";
    assert_eq!(assert_alike(&["file", &directory], one), b"5000\n");
    for name in ["", "missing", "../x", "subdirectory", "/etc/passwd"] {
        let none = format!(
            "nbdinfo --size \"nbd+unix:///{name}?socket=$unixsocket\" 2>/dev/null; echo $?"
        );
        assert_eq!(assert_alike(&["file", &directory], &none), b"1\n", "{name}");
    }
}

#[test]
fn files_are_joined() {
    let room = Room::new();
    let files = [
        room.file("a", 1000),
        room.file("b", 4097),
        room.file("c", 1),
    ];
    let arguments = ["split", &files[0], &format!("file={}", files[1]), &files[2]];
    let bytes = assert_alike(&arguments, READ);
    assert_eq!(bytes.len(), 1000 + 4097 + 1);
}

#[test]
fn another_server_is_passed_on() {
    let room = Room::new();
    let image = room.path("image");
    sparse_image(&image, 8 << 20);
    let peer = Peer::nbdkit(room.dir.path(), &["file", text(&image)]);
    let socket = format!("socket={}", text(peer.socket()));
    let program = Who::Theirs.path("nbdkit", room.dir.path());
    let command = format!("command={}", text(&program));
    let file = format!("arg={}", text(&image));
    for arguments in [
        &["nbd", &*socket][..],
        &["nbd", &peer.uri()],
        &["nbd", &socket, "shared=true", "export=any", "retry=2"],
        &["-r", "nbd", &socket],
        &["nbd", &command, "arg=file", &file],
    ] {
        assert_alike(arguments, READ);
        assert_alike(arguments, MAP);
        assert_alike(arguments, FACTS);
    }
}

#[test]
fn another_server_need_not_be_there_before_the_first_client() {
    for who in BOTH {
        let room = Room::new();
        let later = room.text("later");
        let socket = format!("socket={later}");
        let command = format!(
            "nbdinfo --size \"$uri\" 2>/dev/null; nbdkit -f -U {later} memory 1M & \
             while ! test -S {later}; do sleep 0.01; done; nbdinfo --size \"$uri\"; kill $!"
        );
        let outcome = captive(who, &["nbd", &socket], &command).success();
        assert_eq!(outcome.text(), "1048576\n", "{who:?}");
    }
}

const SCRIPT: &str = "#!/bin/sh
case \"$1\" in
  config) test \"$2\" = file && ln -sf \"$3\" $tmpdir/file ;;
  thread_model) echo parallel ;;
  get_size) stat -L -c %s $tmpdir/file ;;
  pread) dd if=$tmpdir/file skip=$4 count=$3 iflag=count_bytes,skip_bytes 2>/dev/null ;;
  can_write) exit 0 ;;
  pwrite) dd of=$tmpdir/file seek=$4 conv=notrunc oflag=seek_bytes 2>/dev/null ;;
  *) exit 2 ;;
esac
";

#[test]
fn scripts_answer() {
    let room = Room::new();
    let image = room.file("image", 100_000);
    let file = format!("file={image}");
    let script = room.script(SCRIPT);
    let new = room.file("new", 50_000);
    let write = format!("nbdcopy {new} \"$uri\"");
    let inline = format!("script={SCRIPT}");
    for arguments in [
        &["sh", &*script, &*file][..],
        &[
            "eval",
            "config=ln -sf \"$3\" $tmpdir/file",
            "get_size=stat -Lc %s $tmpdir/file",
            "pread=dd if=$tmpdir/file skip=$4 count=$3 iflag=count_bytes,skip_bytes 2>/dev/null",
            "pwrite=dd of=$tmpdir/file seek=$4 conv=notrunc oflag=seek_bytes 2>/dev/null",
            &file,
        ],
    ] {
        assert_alike(arguments, READ);
        assert_alike(arguments, FACTS);
        for who in BOTH {
            room.file("image", 100_000);
            captive(who, arguments, &write).success();
            let bytes = fs::read(&image).expect("a file");
            assert_eq!(bytes[..50_000], fs::read(&new).expect("a file"), "{who:?}");
        }
    }
    let outcome = captive(Who::Ours, &["sh", &inline, &file], READ).success();
    assert_eq!(outcome.stdout, fs::read(&image).expect("a file"));
    for who in BOTH {
        let words = ["-U", "-", "sh", "-", &file, "--run", READ];
        let outcome = run_with_input(&mut who.tool("nbdkit", words), SCRIPT.as_bytes()).success();
        assert_eq!(outcome.stdout, fs::read(&image).expect("a file"), "{who:?}");
    }
}

#[test]
fn a_script_has_its_say_in_what_is_dumped() {
    let room = Room::new();
    let script = room.script(
        "#!/bin/sh\ncase $1 in dump_plugin) echo own=words ;; thread_model) echo parallel ;; *) exit 2 ;; esac\n",
    );
    for arguments in [
        &["sh", &*script][..],
        &["eval", "get_size=echo 1", "dump_plugin=echo own=words"],
    ] {
        let [theirs, ours] = BOTH.map(|who| {
            let mut words = arguments.to_vec();
            words.push("--dump-plugin");
            let outcome = run(&mut who.tool("nbdkit", words)).success();
            let lines = outcome.text().lines();
            let lines =
                lines.filter(|line| line.starts_with("own") || line.starts_with("thread_model"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        });
        assert_eq!(ours, theirs);
        assert_eq!(ours.len(), 2);
    }
}

#[test]
fn a_sparse_random_disk_is_the_same_for_the_same_seed() {
    let checksum = |arguments: &[&str]| {
        let arguments = [&["sparse-random", "size=64M"], arguments].concat();
        let outcome = captive(Who::Ours, &arguments, "nbdcopy \"$uri\" - | md5sum").success();
        outcome.text().to_owned()
    };
    let one = checksum(&["seed=1"]);
    assert_eq!(one, checksum(&["seed=1", "percent=10", "runlength=16M"]));
    assert_ne!(one, checksum(&["seed=2"]));
    assert_ne!(one, checksum(&["seed=1", "percent=50"]));
    assert_ne!(checksum(&[]), checksum(&[]));
    for who in BOTH {
        let words = ["sparse-random", "1M", "percent=0"];
        let zeroes = captive(who, &words, READ).success();
        assert!(zeroes.stdout.len() == 1 << 20 && zeroes.stdout.iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a_sparse_random_disk_is_copied_onto_itself_and_takes_nothing_else() {
    for who in BOTH {
        let copy = "nbdcopy \"$uri\" \"$uri\"";
        captive(who, &["sparse-random", "64M", "percent=50"], copy).success();
        let other = "qemu-io -f raw -c 'write -P 0x55 0 64k' \"$uri\" 2>&1";
        let outcome = captive(who, &["sparse-random", "1M"], other);
        assert_eq!(outcome.code, 1, "{who:?}");
        assert!(outcome.text().contains("Input/output error"), "{who:?}");
    }
}

#[test]
fn qemu_reads_and_compares_what_is_served() {
    let room = Room::new();
    let image = room.path("image");
    sparse_image(&image, 8 << 20);
    let image = text(&image);
    let compare = format!("qemu-img compare -f raw -F raw {image} \"$uri\"");
    let outcome = captive(Who::Ours, &["file", image], &compare).success();
    assert_eq!(outcome.text(), "Images are identical.\n");
    let info = "qemu-img info --output=json \"$uri\" | grep virtual-size";
    let outcome = captive(Who::Ours, &["file", image], info).success();
    assert!(outcome.text().contains("8388608"), "{}", outcome.text());
}
