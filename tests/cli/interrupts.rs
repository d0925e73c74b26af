//! Ctrl-C and SIGTERM in the middle of a copy.

use std::{fs, path::Path};

use tempfile::tempdir;

use crate::{
    children::{is_running, runs},
    support::{
        Peer, blockferry, random_image,
        run::{finish, run, signal, until, until_it_writes, wait},
    },
};

/// A server of 64 MiB of data that takes 20 ms for each request: a copy from it lasts seconds.
fn slow(dir: &Path) -> Peer {
    let image = dir.join("image.raw");
    random_image(&image, 64 << 20);
    let file = format!("file={}", image.display());
    Peer::nbdkit(dir, &["--filter=delay", "file", &file, "rdelay=20ms"])
}

#[test]
fn an_interrupted_copy_removes_what_it_began_and_says_so() {
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let dir = tempdir().expect("a directory");
        let copy = dir.path().join("copy.raw");
        let peer = slow(dir.path());
        let child = blockferry(["copy", "--requests=1", &peer.uri()])
            .arg(&copy)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("the binary");
        until_it_writes(&child, dir.path());
        signal(&child, name);
        finish(child).failure(code, &["copy.raw"]);
        assert!(!copy.exists(), "an unfinished file is left behind");
    }
}

#[test]
fn an_interrupt_ends_the_children_too() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    random_image(&image, 16 << 20);
    let file = format!("file={}", image.display());
    let mut child = blockferry(["copy", "--requests=1", "["])
        .args([
            "nbdkit",
            "--filter=delay",
            "file",
            &file,
            "rdelay=100ms",
            "]",
            "null:",
        ])
        .env("TMPDIR", dir.path())
        .spawn()
        .expect("the binary");
    until("nbdkit to run", || runs("nbdkit", &file));
    std::thread::sleep(std::time::Duration::from_millis(300));
    signal(&child, "INT");
    assert_eq!(wait(&mut child), 130);
    until("nbdkit to be gone", || !is_running(&file));
    let left: Vec<_> = fs::read_dir(dir.path())
        .expect("a directory")
        .flatten()
        .collect();
    assert_eq!(left.len(), 1, "left behind: {left:?}");
}

#[test]
fn a_copy_that_waits_for_its_input_can_be_interrupted() {
    let dir = tempdir().expect("a directory");
    let copy = dir.path().join("copy.raw");
    let mut child = blockferry(["copy", "-"])
        .arg(&copy)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the binary");
    let input = child.stdin.take();
    std::thread::sleep(std::time::Duration::from_millis(300));
    signal(&child, "INT");
    finish(child).failure(130, &["interrupted"]);
    drop(input);
    assert!(!copy.exists(), "an unfinished file is left behind");
}

#[test]
fn a_server_of_ours_ends_cleanly_on_a_signal() {
    for name in ["INT", "TERM"] {
        let dir = tempdir().expect("a directory");
        let socket = dir.path().join("serve.sock");
        let mut child = blockferry(["serve", "sample:1M", "--unix"])
            .arg(&socket)
            .spawn()
            .expect("the binary");
        until("the server", || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        run(&mut blockferry(["copy", &uri, "null:"])).success();
        signal(&child, name);
        assert_eq!(wait(&mut child), 0);
        assert!(!socket.exists(), "the socket is left behind");
    }
}
