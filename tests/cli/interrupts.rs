//! Ctrl-C and SIGTERM in the middle of a copy.

use std::{fs, os::unix::fs::MetadataExt, path::Path, process::Stdio};

use tempfile::tempdir;

use crate::{
    children::{is_running, runs},
    support::{
        Peer, blockferry,
        qemu::{check, qemu_img, qemu_io, text},
        random_image,
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
fn a_second_interrupt_ends_a_copy_whose_requests_are_not_answered() {
    let dir = tempdir().expect("a directory");
    // Each write takes longer than anybody waits.
    let peer = Peer::nbdkit(
        dir.path(),
        &["--filter=delay", "memory", "64M", "wdelay=600"],
    );
    let child = blockferry(["copy", "--progress=json", "sample:64M,data=100"])
        .arg(peer.uri())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the binary");
    std::thread::sleep(std::time::Duration::from_millis(500));
    let begun = std::time::Instant::now();
    signal(&child, "INT");
    std::thread::sleep(std::time::Duration::from_millis(200));
    signal(&child, "INT");
    finish(child).failure(130, &["interrupted"]);
    // Not a matter of speed: without the second one it would be given its whole time.
    assert!(begun.elapsed() < std::time::Duration::from_secs(5));
}

/// A server whose flushes take longer than anybody waits, and which notes what it was asked in `log`.
fn slow_flush(dir: &Path, log: &Path, delay: &str) -> Peer {
    let script = format!(
        "case \"$1\" in
           get_size) echo 1M ;;
           can_write|can_flush) exit 0 ;;
           pread) exec dd if=/dev/zero bs=$3 count=1 status=none ;;
           pwrite) echo write >> {log}; cat > /dev/null ;;
           flush) echo flush >> {log}; sleep {delay} ;;
           *) exit 2 ;;
         esac",
        log = log.display(),
    );
    let file = dir.join("script.sh");
    fs::write(&file, format!("#!/bin/sh\n{script}\n")).expect("written");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&file, mode).expect("ours");
    Peer::nbdkit(dir, &["sh", file.to_str().expect("UTF-8")])
}

fn has(log: &Path, word: &str) -> bool {
    fs::read_to_string(log).is_ok_and(|text| text.lines().any(|line| line == word))
}

#[test]
fn a_copy_that_is_asked_to_end_while_it_flushes_is_done_when_the_flush_is() {
    let dir = tempdir().expect("a directory");
    let log = dir.path().join("log");
    let peer = slow_flush(dir.path(), &log, "1");
    let child = blockferry(["copy", "sample:1M,data=100", &peer.uri()])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the binary");
    until("the flush", || has(&log, "flush"));
    signal(&child, "TERM");
    finish(child).success();
}

#[test]
fn a_copy_that_is_asked_to_end_does_not_wait_for_a_flush_without_end() {
    let dir = tempdir().expect("a directory");
    let log = dir.path().join("log");
    let peer = slow_flush(dir.path(), &log, "60");
    let child = blockferry(["copy", "sample:1M,data=100", &peer.uri()])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the binary");
    until("the flush", || has(&log, "flush"));
    signal(&child, "TERM");
    finish(child).failure(143, &["asked to end"]);
}

#[test]
fn what_was_written_before_an_interrupt_is_flushed() {
    let dir = tempdir().expect("a directory");
    let log = dir.path().join("log");
    let peer = slow_flush(dir.path(), &log, "0");
    let child = blockferry(["copy", "--rate=64K", "--request-size=64K"])
        .args(["sample:1M,data=100", &peer.uri()])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the binary");
    until("a write", || has(&log, "write"));
    assert!(!has(&log, "flush"));
    signal(&child, "INT");
    finish(child).failure(130, &["interrupted"]);
    assert!(has(&log, "flush"), "what was written may be lost");
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

#[test]
fn an_image_whose_resizing_is_interrupted_has_the_size_that_it_had() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image");
    run(&mut blockferry([
        "create",
        "-f",
        "qcow2",
        text(&image),
        "64M",
    ]))
    .success();
    let facts = || fs::metadata(&image).expect("there");
    let before = facts().len();
    // More than it writes in the time that a signal takes.
    let words = ["resize", "--preallocation=full", text(&image), "+8G"];
    let child = blockferry(words)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary");
    until("something to be written", || {
        facts().blocks() * 512 > 2 << 20
    });
    signal(&child, "INT");
    finish(child).failure(130, &["has the size that it had"]);
    let info = qemu_img(&["info", "-f", "qcow2", text(&image)]);
    assert!(info.contains("64 MiB (67108864 bytes)"), "{info}");
    assert!(facts().len() <= before + (1 << 20), "{}", facts().len());
    check(&image);
}

#[test]
fn a_repair_that_is_interrupted_leaves_an_image_that_can_be_repaired() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image");
    qemu_img(&["create", "-q", "-f", "qcow2", text(&image), "64M"]);
    qemu_io(&image, "qcow2", &["write 0 32M"]);
    // No block of refcounts: all clusters are used without being counted.
    let mut bytes = fs::read(&image).expect("there");
    let table = u64::from_be_bytes(bytes[48..56].try_into().expect("eight")) as usize;
    bytes[table..table + 8].fill(0);
    fs::write(&image, bytes).expect("written");
    let child = blockferry(["check", "--repair", "all", text(&image)])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary");
    signal(&child, "INT");
    // It may have been done already.
    let done = finish(child);
    assert!([0, 130].contains(&done.code), "{}", done.stderr);
    run(&mut blockferry(["check", "--repair", "all", text(&image)])).success();
    check(&image);
}
