//! `hint:` lines: what is said to those who make a common mistake. Each is made here, by the real binary.

use std::{
    fs::{self, File},
    net::TcpListener,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::Path,
    process::{Command, Stdio},
};

use tempfile::{TempDir, tempdir};

use crate::support::{
    Outcome, Peer, SmallDisk, blockferry,
    certificates::Flaw,
    qemu::{qemu_img, text},
    random_image,
    realm::Realm,
    run, sparse_image,
};

/// A directory with a disk of 1 MiB, in which commands run.
struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        let desk = Self(tempdir().expect("a directory"));
        random_image(&desk.path("disk.raw"), 1 << 20);
        desk
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, words: &[&str]) -> Outcome {
        run(blockferry(words).current_dir(self.0.path()))
    }

    /// Runs a command that fails with this code and this advice.
    #[track_caller]
    fn advised(&self, words: &[&str], code: i32, hint: &str) -> Outcome {
        let outcome = self.run(words).failure(code, &[]);
        assert_hint(&outcome, hint);
        outcome
    }
}

#[track_caller]
fn assert_hint(outcome: &Outcome, hint: &str) {
    let mut lines = outcome.stderr.lines();
    let first = lines.next().unwrap_or_default();
    assert!(first.starts_with("blockferry: "), "{}", outcome.stderr);
    let hints: Vec<_> = lines
        .filter_map(|line| line.strip_prefix("hint: "))
        .collect();
    assert_eq!(hints.len(), 1, "{}", outcome.stderr);
    assert!(
        hints[0].contains(hint),
        "{hint:?} is not in {}",
        outcome.stderr
    );
}

#[test]
fn a_uri_that_the_shell_took_apart() {
    let desk = Desk::new();
    let quotes = "put the URI in quotes";
    desk.advised(&["info", "nbd+unix:///"], 2, quotes);
    desk.advised(&["copy", "nbd+unix:///disk", "x.raw"], 2, quotes);
    desk.advised(
        &["copy", "nbds+unix:///?socket=/s"],
        2,
        "put URIs in quotes",
    );
    desk.advised(&["info", "nbd+unix:///?sokcet=/s"], 2, "called 'socket'");
    // As a shell does it: what follows the '&' is another command.
    let script =
        "\"$0\" copy nbds+unix:///?socket=/none&tls-certificates=. x.raw 2>/dev/null; wait";
    let program = env!("CARGO_BIN_EXE_blockferry");
    let outcome = run(Command::new("sh")
        .args(["-c", script, program])
        .stdin(Stdio::null()));
    assert_hint(&outcome, "put URIs in quotes");
}

#[test]
fn a_uri_in_another_dialect() {
    let desk = Desk::new();
    desk.advised(
        &["info", "nbd:localhost:10809"],
        2,
        "write nbd://HOST:PORT/EXPORT",
    );
    desk.advised(
        &["info", "nbd:unix:/run/s"],
        2,
        "nbd+unix:///EXPORT?socket=PATH",
    );
    desk.advised(&["info", "nbd:///?socket=/s"], 2, "write nbd+unix:///");
    desk.advised(
        &["copy", "https://host/a.raw", "x"],
        2,
        "[ nbdkit curl https://host/a.raw ]",
    );
    desk.advised(&["copy", "ssh://host/a.raw", "x"], 2, "nbdkit ssh");
    desk.advised(&["copy", "ndbs://host/a", "x"], 2, "did you mean nbds://?");
    desk.advised(
        &["copy", "gopher://host/a", "x"],
        2,
        "write ./gopher://host/a",
    );
    desk.advised(&["copy", "file:///no%20file", "x"], 1, "file:/PATH");
}

#[test]
fn a_socket_without_a_server() {
    let desk = Desk::new();
    let left = desk.path("left.sock");
    drop(UnixListener::bind(&left).expect("bound"));
    let uri = format!("nbd+unix:///?socket={}", text(&left));
    desk.advised(&["info", &uri], 1, "its server is gone");
    desk.advised(
        &["info", "nbd+unix:///?socket=none.sock"],
        1,
        "no such socket",
    );
    let long = "x".repeat(120);
    desk.advised(
        &["info", &format!("nbd+unix:///?socket={long}")],
        1,
        "107 bytes",
    );
    desk.advised(&["serve", "disk.raw", "--unix", &long], 1, "107 bytes");
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let port = free.expect("a free port").port();
    desk.advised(
        &["info", &format!("nbd://127.0.0.1:{port}")],
        1,
        "on this host and port",
    );
}

#[test]
fn a_place_that_is_taken() {
    let desk = Desk::new();
    let busy = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = busy.local_addr().expect("an address").to_string();
    let who = "'ss -ltnp' shows who it is";
    let busy_port = |words: &[&str]| {
        let outcome = desk.advised(words, 1, who);
        assert!(
            outcome.stderr.contains("another server listens there"),
            "{}",
            outcome.stderr
        );
        assert!(outcome.stderr.contains(&address), "{}", outcome.stderr);
    };
    busy_port(&["serve", "disk.raw", "--listen", &address]);
    busy_port(&["serve", "disk.raw", "--unix", "s", "--metrics", &address]);
    busy_port(&["relay", &format!("tcp:{address}"), "tcp:localhost:1"]);
    let socket = desk.path("taken.sock");
    let _listener = UnixListener::bind(&socket).expect("bound");
    desk.advised(
        &["serve", "disk.raw", "--unix", "taken.sock"],
        1,
        "another path",
    );
    desk.advised(
        &["serve", "disk.raw", "--unix", "disk.raw"],
        1,
        "take another path",
    );
    desk.advised(
        &["serve", "disk.raw", "--listen", "192.0.2.1:0"],
        1,
        "no such address",
    );
}

#[test]
fn what_this_user_may_not_do() {
    let desk = Desk::new();
    let closed = desk.path("closed.raw");
    File::create(&closed).expect("made");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).expect("set");
    fs::set_permissions(desk.0.path(), fs::Permissions::from_mode(0o755)).expect("set");
    let device = fs::read_dir("/sys/class/block").ok().and_then(|mut all| {
        let name = all.next()?.ok()?.file_name();
        Some(Path::new("/dev").join(name)).filter(|path| path.exists())
    });
    let program = env!("CARGO_BIN_EXE_blockferry");
    let as_nobody = |words: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", program]);
        run(command
            .args(words)
            .current_dir(desk.0.path())
            .stdin(Stdio::null()))
    };
    let outcome = as_nobody(&["info", "closed.raw"]);
    if !outcome.stderr.starts_with("blockferry: ") {
        println!(
            "skipped: the program cannot run as another user: {}",
            outcome.stderr
        );
        return;
    }
    assert_hint(
        &outcome.failure(1, &["closed.raw"]),
        "check the owner and the mode",
    );
    // What may be read can be served, though not as it was asked for.
    let readable = fs::Permissions::from_mode(0o644);
    fs::set_permissions(desk.path("disk.raw"), readable).expect("set");
    let outcome = as_nobody(&["serve", "disk.raw", "--run", "true"]);
    assert_hint(
        &outcome.failure(1, &["disk.raw: open: Permission denied"]),
        "--read-only serves",
    );
    as_nobody(&["serve", "--read-only", "disk.raw", "--run", "true"]).success();
    let outcome = as_nobody(&["serve", "closed.raw", "--run", "true"]);
    assert_hint(
        &outcome.failure(1, &["closed.raw"]),
        "check the owner and the mode",
    );
    let outcome = as_nobody(&["copy", "sample:1M", "new.raw"]);
    assert_hint(
        &outcome.failure(1, &["new.raw"]),
        "a new file needs a directory",
    );
    let outcome = as_nobody(&["serve", "null:1M", "--unix", "new.sock"]);
    assert_hint(
        &outcome.failure(1, &["new.sock"]),
        "a socket needs a directory",
    );
    if let Some(device) = device {
        let outcome = as_nobody(&["info", text(&device)]);
        assert_hint(&outcome.failure(1, &[text(&device)]), "often 'disk'");
    }
    let outcome = as_nobody(&["serve", "null:1M", "--listen", "127.0.0.1:809"]);
    // A container may let everybody have such a port: then the server runs, and is ended here.
    if outcome.code != 0 {
        assert_hint(&outcome.failure(1, &["127.0.0.1:809"]), "ports below 1024");
    }
}

#[test]
fn an_image_that_is_not_what_it_should_be() {
    let desk = Desk::new();
    let other = "'blockferry info FILE' tells what it begins as";
    for format in [
        "qcow2", "vmdk", "vpc", "vhdx", "vdi", "gzip", "xz", "zstd", "bzip2", "ova",
    ] {
        desk.advised(&["copy", "-f", format, "disk.raw", "x.raw"], 1, other);
    }
    for format in ["qcow2", "vmdk", "vpc", "vdi", "gzip", "zstd"] {
        let whole = format!("whole.{format}");
        desk.run(&["copy", "-O", format, "disk.raw", &whole])
            .success();
        let bytes = fs::read(desk.path(&whole)).expect("an image");
        let cut = format!("cut.{format}");
        for length in [100, 70_000] {
            fs::write(desk.path(&cut), &bytes[..length]).expect("written");
            let outcome = desk.run(&["copy", "-f", format, &cut, "x.raw"]);
            // The footer of a VHD is a copy of what it begins with, and other blocks may be missing.
            assert_hint(&outcome.failure(1, &[&cut]), "it is shorter than it says");
        }
    }
}

#[test]
fn what_is_not_in_an_image() {
    let desk = Desk::new();
    desk.run(&["copy", "-O", "qcow2", "disk.raw", "disk.qcow2"])
        .success();
    desk.advised(
        &["copy", "-l", "monday", "disk.qcow2", "x.raw"],
        1,
        "'blockferry snapshot IMAGE' lists",
    );
    desk.advised(
        &["map", "--context", "qemu:dirty-bitmap:monday", "disk.qcow2"],
        1,
        "'blockferry info' shows the contexts",
    );
    desk.advised(&["resize", "disk.qcow2", "64K"], 1, "--shrink allows");
    desk.advised(&["resize", "disk.raw", "64K"], 1, "--shrink allows");
    desk.advised(
        &["create", "-f", "qcow2", "new.qcow2"],
        1,
        "it follows the name",
    );
    desk.run(&["copy", "-O", "vdi", "disk.raw", "disk.vdi"])
        .success();
    desk.advised(&["resize", "disk.vdi", "2M"], 1, "copy -O qcow2");
}

#[test]
fn a_host_that_is_not_there() {
    let desk = Desk::new();
    let outcome = desk.advised(
        &["info", "nbd://nowhere.invalid/"],
        1,
        "is the host's name right?",
    );
    let told = outcome.stderr;
    assert!(told.contains("the host name has no address"), "{told}");
    assert!(!told.contains("lookup"), "{told}");
}

#[test]
fn a_destination_that_cannot_take_the_image() {
    let desk = Desk::new();
    sparse_image(&desk.path("small.raw"), 64 << 10);
    desk.advised(
        &["copy", "-n", "disk.raw", "small.raw"],
        1,
        "blockferry resize",
    );
    desk.advised(&["copy", "disk.raw", "."], 1, "name a file in it");
    desk.advised(&["copy", ".", "copy.raw"], 1, "serve dir:PATH");
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    let place = disk.path().join("new.raw");
    desk.advised(
        &["copy", "sample:64M,data=100", text(&place)],
        1,
        "make room",
    );
    let remounted = Command::new("mount")
        .args(["-o", "remount,ro"])
        .arg(disk.path())
        .status();
    assert!(remounted.expect("mount runs").success());
    desk.advised(&["copy", "disk.raw", text(&place)], 1, "mounted read-only");
}

#[test]
fn tls_on_one_side_only() {
    let realm = Realm::new();
    let desk = Desk::new();
    let image = desk.path("disk.raw");
    let plain = Peer::nbdkit(desk.0.path(), &["file", text(&image)]);
    let uri = plain.uri().replace("nbd+unix", "nbds+unix");
    desk.advised(&["copy", &uri, "x.raw"], 1, "this server has no TLS");
    let certificates = realm.server(Flaw::None);
    let directory = tempdir().expect("a directory");
    let option = format!("--tls-certificates={}", text(&certificates));
    let only = Peer::nbdkit(
        directory.path(),
        &["--tls=require", &option, "file", text(&image)],
    );
    desk.advised(
        &["copy", &only.uri(), "x.raw"],
        1,
        "write nbds:// or nbds+unix://",
    );
}

#[test]
fn an_export_that_the_server_does_not_have() {
    let desk = Desk::new();
    let image = desk.path("disk.raw");
    let peer = Peer::qemu_nbd(desk.0.path(), "raw", &image, &["-x", "the\u{7}right one"]);
    let uri = peer.uri().replace("///", "///wrong");
    let outcome = desk.advised(&["copy", &uri, "x.raw"], 1, "info --list");
    let note = "blockferry: the server has these exports: 'the\\u{7}right one'";
    assert!(
        outcome.stderr.lines().any(|line| line == note),
        "{}",
        outcome.stderr
    );
}

#[test]
fn an_image_behind_a_server_that_is_copied_as_it_is() {
    let desk = Desk::new();
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        text(&desk.path("a.qcow2")),
        "1M",
    ]);
    let seen = "it begins as an image in the format qcow2";
    let group = ["[", "nbdkit", "file", "a.qcow2", "]"];
    let said = |flags: &[&str], source: &[&str]| {
        let words = [&["copy"], flags, source, &["x.raw"]].concat();
        let said = desk.run(&words).success().stderr;
        let told = said.lines().any(|line| {
            line.starts_with("blockferry: warning: ")
                && line.contains(seen)
                && line.contains("-f qcow2")
        });
        (told, fs::metadata(desk.path("x.raw")).expect("made").len())
    };
    let size = fs::metadata(desk.path("a.qcow2")).expect("there").len();
    assert_eq!(said(&[], &group), (true, size));
    assert_eq!(said(&["-f", "raw"], &group), (false, size));
    assert_eq!(said(&["-f", "qcow2"], &group), (false, 1 << 20));
    // A file is looked into, and nothing has to be said.
    assert_eq!(said(&[], &["a.qcow2"]), (false, 1 << 20));
    assert_eq!(said(&[], &["disk.raw"]), (false, 1 << 20));
}

#[test]
fn words_that_are_misspelt() {
    let desk = Desk::new();
    desk.advised(&["cpoy", "a", "b"], 2, "did you mean 'copy'?");
    desk.advised(
        &["copy", "--chekcsum", "a", "b"],
        2,
        "did you mean '--checksum'?",
    );
    desk.advised(
        &["copy", "-O", "qcwo2", "a", "b"],
        2,
        "did you mean 'qcow2'?",
    );
    desk.advised(
        &["copy", "--filter=readhaead", "disk.raw", "b"],
        2,
        "did you mean 'readahead'?",
    );
    desk.advised(
        &["copy", "--filter=xyzzy", "disk.raw", "b"],
        2,
        "'blockferry filters' lists them",
    );
    desk.advised(&["copy", "smaple:1M", "b"], 1, "did you mean 'sample:'?");
    desk.advised(&["copy", "ndb://host/x", "b"], 2, "did you mean nbd://?");
}

#[test]
fn sides_that_are_swapped_or_missing() {
    let desk = Desk::new();
    let outcome = desk.advised(&["copy", "new.raw", "disk.raw"], 1, "the other way round?");
    assert!(
        outcome.stderr.contains("new.raw: open: No such file"),
        "{}",
        outcome.stderr
    );
    desk.advised(&["copy", "disk.raw"], 2, "<SOURCE>... <DESTINATION>");
    desk.advised(&["create", "1G", "new.raw"], 2, "the file comes first");
    desk.advised(&["disk.raw", "new.raw"], 2, "a command comes first");
}

#[test]
fn habits_of_other_tools() {
    let desk = Desk::new();
    desk.advised(
        &["copy", "if=disk.raw", "of=x.raw"],
        1,
        "blockferry dd if=SOURCE",
    );
    desk.advised(&["dd", "disk.raw", "x.raw"], 2, "if=SOURCE of=DESTINATION");
    desk.advised(
        &["serve", "file", "disk.raw"],
        2,
        "blockferry serve disk.img",
    );
    desk.advised(
        &["serve", "memory", "1G"],
        2,
        "blockferry serve memory:SIZE",
    );
    desk.advised(
        &["convert", "--image-opts", "driver=raw", "b"],
        2,
        "the name qemu-img",
    );
    desk.advised(
        &["copy", "json:{\"driver\":\"raw\"}", "b"],
        1,
        "the names qemu-img",
    );
    desk.advised(
        &["qemu-img", "info", "disk.raw"],
        2,
        "a link called qemu-img",
    );
    desk.advised(
        &["copy", "[nbdkit", "memory", "1M", "]", "x.raw"],
        1,
        "spaces around the brackets",
    );
    desk.advised(
        &["copy", "[nbdkit memory 1M]", "x.raw"],
        1,
        "spaces around the brackets",
    );
    desk.advised(
        &["copy", "[", "nbdkit", "memory", "1M]", "x.raw"],
        2,
        "spaces around the brackets",
    );
}

#[test]
fn an_image_that_somebody_has_open() {
    let desk = Desk::new();
    let image = desk.path("disk.raw");
    let _peer = Peer::qemu_nbd(desk.0.path(), "raw", &image, &[]);
    // It listens before it opens the image.
    desk.run(&[
        "info",
        &format!("nbd+unix:///?socket={}", text(&desk.path("qemu-nbd.sock"))),
    ])
    .success();
    desk.advised(
        &["copy", "-n", "sample:64K", "disk.raw"],
        1,
        "end the other one first",
    );
}

#[test]
fn an_image_whose_name_says_another_format() {
    let desk = Desk::new();
    let said = desk.run(&["copy", "disk.raw", "x.qcow2"]).success().stderr;
    assert!(
        said.contains("warning: x.qcow2 becomes a raw image") && said.contains("-O qcow2"),
        "{said}"
    );
    let packed = run(Command::new("gzip").arg("-k").arg(desk.path("disk.raw")));
    packed.success();
    fs::rename(desk.path("disk.raw.gz"), desk.path("disk.img")).expect("renamed");
    let said = desk.run(&["copy", "disk.img", "y.raw"]).success().stderr;
    assert!(
        said.contains("gzip compressed") && said.contains("-f gzip"),
        "{said}"
    );
}

#[test]
fn other_names_give_no_advice_about_our_commands() {
    let desk = Desk::new();
    let link = desk.path("nbdcopy");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_blockferry"), &link).expect("linked");
    let outcome = run(Command::new(&link)
        .args(["smaple:1M", "x"])
        .current_dir(desk.0.path()));
    assert!(
        outcome.code != 0 && !outcome.stderr.contains("hint:"),
        "{}",
        outcome.stderr
    );
}
