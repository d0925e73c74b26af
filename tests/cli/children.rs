//! `[ CMD ARGS ]`: servers that a copy starts for itself, and that are gone when it ends.

use std::{fs, path::Path, process::Command};

use tempfile::{TempDir, tempdir};

use crate::support::{assert_same, blockferry, random_image, run, run::until, sparse_image};

/// A private place for sockets, and a name in the children's arguments to find them by.
struct Nursery {
    dir: TempDir,
    mark: String,
}

impl Nursery {
    fn new() -> Self {
        let dir = tempdir().expect("a directory");
        fs::create_dir(dir.path().join("tmp")).expect("a directory");
        let mark = dir.path().to_str().expect("UTF-8").to_owned();
        Self { dir, mark }
    }

    fn path(&self, name: &str) -> String {
        self.dir
            .path()
            .join(name)
            .to_str()
            .expect("UTF-8")
            .to_owned()
    }

    /// The binary, with its sockets in this nursery.
    fn blockferry(&self, arguments: &[&str]) -> Command {
        let mut command = blockferry(arguments);
        command.env("TMPDIR", self.path("tmp"));
        command
    }

    /// Fails unless no child is left, nor its socket.
    #[track_caller]
    fn assert_empty(&self) {
        until("the children to be gone", || !is_running(&self.mark));
        let left: Vec<_> = fs::read_dir(self.path("tmp"))
            .expect("a directory")
            .collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

/// Whether `program` runs with `mark` in its arguments.
pub(crate) fn runs(program: &str, mark: &str) -> bool {
    command_lines().any(|line| {
        let name = line.split('\0').next().unwrap_or_default();
        name.ends_with(program) && line.contains(mark)
    })
}

/// Whether any process has `mark` in its command line.
pub(crate) fn is_running(mark: &str) -> bool {
    command_lines().any(|line| line.contains(mark))
}

/// The arguments of every process, each ended by a NUL.
fn command_lines() -> impl Iterator<Item = String> {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    processes
        .filter_map(|process| fs::read(process.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).into_owned())
}

#[test]
fn nbdkit_and_qemu_nbd_are_started_and_stopped() {
    let nursery = Nursery::new();
    let (image, copy) = (nursery.path("image.raw"), nursery.path("copy.raw"));
    sparse_image(Path::new(&image), 10 << 20);
    let commands: [&[&str]; 3] = [
        &["nbdkit", "-r", "file", &image],
        &["qemu-nbd", "-r", "-f", "raw", &image],
        &["serve", "--read-only", &image],
    ];
    for command in commands {
        let arguments = [&["copy", "--", "["], command, &["]", &copy]].concat();
        run(&mut nursery.blockferry(&arguments)).success();
        assert_same(Path::new(&image), Path::new(&copy));
        nursery.assert_empty();
    }
}

#[test]
fn both_sides_may_be_children() {
    let nursery = Nursery::new();
    let (image, target, back) = (
        nursery.path("image.raw"),
        nursery.path("target.raw"),
        nursery.path("back.raw"),
    );
    random_image(Path::new(&image), 3_000_000);
    random_image(Path::new(&target), 4_000_000);
    let arguments = [
        "copy", "[", "nbdkit", "file", &image, "]", "[", "serve", &target, "]",
    ];
    run(&mut nursery.blockferry(&arguments)).success();
    nursery.assert_empty();
    fs::write(&back, &fs::read(&target).expect("readable")[..3_000_000]).expect("writable");
    assert_same(Path::new(&image), Path::new(&back));
}

#[test]
fn a_child_that_fails_to_start_is_named_with_its_status() {
    let nursery = Nursery::new();
    let missing = nursery.path("missing.raw");
    let copy = nursery.path("copy.raw");
    run(&mut nursery.blockferry(&["copy", "[", "nbdkit", "file", &missing, "]", &copy]))
        .failure(1, &["nbdkit", "missing.raw", "status 1"]);
    nursery.assert_empty();
    run(&mut nursery.blockferry(&["copy", "[", "/no/such/program", "]", &copy]))
        .failure(1, &["/no/such/program"]);
    nursery.assert_empty();
    assert!(!Path::new(&copy).exists());
}

#[test]
fn a_child_is_gone_when_the_copy_fails() {
    let nursery = Nursery::new();
    let arguments = [
        "copy",
        "[",
        "serve",
        "sample:16M",
        "]",
        &nursery.path("no/such/directory.raw"),
    ];
    run(&mut nursery.blockferry(&arguments)).failure(1, &["directory.raw"]);
    nursery.assert_empty();
}

#[test]
fn a_child_is_gone_when_the_copy_is_killed() {
    let nursery = Nursery::new();
    let image = nursery.path("image.raw");
    random_image(Path::new(&image), 1 << 20);
    let delay = ["nbdkit", "--filter=delay", "file", &image, "rdelay=3600"];
    let arguments = [&["copy", "["], &delay[..], &["]", "null:"]].concat();
    let mut child = nursery.blockferry(&arguments).spawn().expect("the binary");
    until("nbdkit to run", || is_running("rdelay=3600"));
    child
        .kill()
        .and_then(|()| child.wait())
        .expect("a child of ours");
    nursery.assert_empty();
}

#[test]
fn a_bracket_without_its_end_is_wrong_usage() {
    run(&mut blockferry([
        "copy",
        "[",
        "serve",
        "sample:1M",
        "null:",
    ]))
    .failure(2, &["]"]);
    run(&mut blockferry(["copy", "[", "]", "null:"])).failure(2, &["command"]);
}
