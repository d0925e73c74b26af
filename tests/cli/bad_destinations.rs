//! Destinations that are missing, full, too small or read-only, and sources that shrink.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Command, Stdio},
};

use tempfile::tempdir;

use crate::support::{
    Peer, SmallDisk, blockferry,
    images::random_bytes,
    random_image, run,
    run::{finish, run_with_input},
    sparse_image,
};

#[test]
fn a_missing_directory_is_named_before_anything_moves() {
    run(&mut blockferry([
        "copy",
        "sample:1M",
        "/nonexistent/directory/disk.raw",
    ]))
    .failure(1, &["/nonexistent/directory/disk.raw"]);
}

#[test]
fn a_missing_source_leaves_the_destination_alone() {
    let dir = tempdir().expect("a directory");
    let existing = dir.path().join("existing.raw");
    fs::write(&existing, b"precious").expect("a writable directory");
    run(blockferry(["copy", "/nonexistent.raw"]).arg(&existing)).failure(1, &["/nonexistent.raw"]);
    assert_eq!(fs::read(&existing).expect("still there"), b"precious");
}

#[test]
fn a_directory_is_no_image() {
    let dir = tempdir().expect("a directory");
    run(blockferry(["copy", "sample:1M"]).arg(dir.path())).failure(1, &["directory"]);
    run(blockferry(["copy"]).arg(dir.path()).arg("null:")).failure(1, &["directory"]);
}

#[test]
fn a_file_is_not_copied_onto_itself() {
    let dir = tempdir().expect("a directory");
    let (image, link) = (dir.path().join("image.raw"), dir.path().join("link.raw"));
    random_image(&image, 100_000);
    let before = fs::read(&image).expect("readable");
    fs::hard_link(&image, &link).expect("a link");
    run(blockferry(["copy"]).arg(&image).arg(&link)).failure(1, &["same image"]);
    assert!(fs::read(&image).expect("still there") == before);
}

#[test]
fn a_destination_that_is_too_small_is_told_so_with_both_sizes() {
    let dir = tempdir().expect("a directory");
    let peer = Peer::nbdkit(dir.path(), &["memory", "1M"]);
    run(&mut blockferry(["copy", "sample:2M", &peer.uri()]))
        .failure(1, &["too small", "1048576", "2097152"]);
}

#[test]
fn a_device_that_is_too_small_is_untouched_and_not_called_incomplete() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    random_image(&image, 1 << 20);
    let Some(device) = LoopDevice::attach(&image) else {
        return;
    };
    let before = fs::read(&image).expect("readable");
    let outcome = run(blockferry(["copy", "sample:2M"]).arg(&device.0))
        .failure(1, &["too small", "1048576", "2097152"]);
    assert!(!outcome.stderr.contains("incomplete"), "{}", outcome.stderr);
    assert!(fs::read(&image).expect("readable") == before);

    // A smaller image fits, and what is behind it stays.
    run(blockferry(["copy", "sample:512K,data=100"]).arg(&device.0)).success();
    drop(device);
    assert!(fs::read(&image).expect("readable")[512 << 10..] == before[512 << 10..]);
    assert!(fs::read(&image).expect("readable") != before);
}

/// A block device whose data is in a file; needs root and is skipped without.
struct LoopDevice(String);

impl LoopDevice {
    fn attach(image: &Path) -> Option<Self> {
        let attached = Command::new("losetup")
            .args(["-f", "--show"])
            .arg(image)
            .output();
        let Some(output) = attached.ok().filter(|output| output.status.success()) else {
            println!("skipped: no permission to attach a loop device");
            return None;
        };
        Some(Self(
            String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        ))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

#[test]
fn a_read_only_destination_is_told_so() {
    let dir = tempdir().expect("a directory");
    let peer = Peer::nbdkit(dir.path(), &["-r", "memory", "1M"]);
    run(&mut blockferry(["copy", "sample:1M", &peer.uri()])).failure(1, &["read-only"]);
}

#[test]
fn a_full_disk_leaves_no_file_and_no_success() {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    let copy = disk.path().join("copy.raw");
    run(blockferry(["copy", "sample:64M,data=100"]).arg(&copy))
        .failure(1, &[copy.to_str().expect("UTF-8"), "space"]);
    assert!(!copy.exists(), "an unfinished file is left behind");

    // How long a stream is shows only when it does not fit.
    let stream = random_bytes(8 << 20, 3);
    run_with_input(blockferry(["copy", "-"]).arg(&copy), &stream)
        .failure(1, &[copy.to_str().expect("UTF-8"), "space", "full"]);
    let left = fs::read_dir(disk.path()).expect("a directory").count();
    assert_eq!(left, 0, "an unfinished file is left behind");

    // A sparse image fits where its data fits.
    run(blockferry(["copy", "sample:64M,data=1"]).arg(&copy)).success();
}

#[test]
fn a_full_disk_behind_a_server_is_no_success_either() {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    let image = disk.path().join("image.raw");
    File::create(&image)
        .and_then(|file| file.set_len(64 << 20))
        .expect("room for holes");
    let dir = tempdir().expect("a directory");
    let peer = Peer::nbdkit(dir.path(), &["file", &format!("file={}", image.display())]);
    run(&mut blockferry([
        "copy",
        "sample:64M,data=100",
        &peer.uri(),
    ]))
    .failure(1, &[&peer.uri(), "ENOSPC"]);
}

#[test]
fn a_source_that_shrinks_is_noticed() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    random_image(&image, 32 << 20);
    // Its reader waits in a full pipe, so the source is open and not yet read to its end.
    let mut child = blockferry(["copy", image.to_str().expect("UTF-8"), "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary");
    let mut first = [0; 4096];
    child
        .stdout
        .as_mut()
        .expect("a pipe")
        .read_exact(&mut first)
        .expect("the first bytes");
    File::options()
        .write(true)
        .open(&image)
        .and_then(|file| file.set_len(1 << 20))
        .expect("ours");
    finish(child).failure(1, &[image.to_str().expect("UTF-8"), "offset"]);
}

#[test]
fn an_interrupted_copy_onto_an_existing_file_keeps_the_file() {
    let dir = tempdir().expect("a directory");
    let existing = dir.path().join("existing.raw");
    random_image(&existing, 1 << 20);
    let inode = existing.metadata().expect("a file").ino();
    let image = dir.path().join("image.raw");
    sparse_image(&image, 8 << 20);
    let peer = Peer::nbdkit(
        dir.path(),
        &[
            "--filter=error",
            "file",
            &format!("file={}", image.display()),
            "error-pread=EIO",
            "error-pread-rate=100%",
        ],
    );
    run(blockferry(["copy", &peer.uri()]).arg(&existing)).failure(1, &["EIO", "incomplete"]);
    assert_eq!(existing.metadata().expect("still there").ino(), inode);
}
