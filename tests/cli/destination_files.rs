//! Destination files: a new one appears when it is whole, and one that is there is kept as long as it can be.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::{Child, Stdio},
};

use tempfile::tempdir;

use crate::support::{
    Peer, assert_same, blockferry, random_image, run,
    run::{finish, until_it_writes, wait},
    sparse_image,
};

/// A server of 64 MiB of data that takes 20 ms for each request: a copy from it lasts seconds.
fn slow(dir: &Path) -> Peer {
    let image = dir.join("image.raw");
    random_image(&image, 64 << 20);
    let file = format!("file={}", image.display());
    Peer::nbdkit(dir, &["--filter=delay", "file", &file, "rdelay=20ms"])
}

fn begin(peer: &Peer, copy: &Path, flags: &[&str]) -> Child {
    let mut command = blockferry(["copy", "--requests=1", &peer.uri()]);
    command.arg(copy).args(flags);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the binary")
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a directory").flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_killed_copy_leaves_no_file_of_its_name() {
    let dir = tempdir().expect("a directory");
    let peer = slow(dir.path());
    let place = tempdir().expect("a directory");
    let copy = place.path().join("copy.raw");
    let mut child = begin(&peer, &copy, &[]);
    until_it_writes(&child, place.path());
    assert!(!copy.exists(), "it is there before it is whole");
    child.kill().expect("killed");
    assert_eq!(wait(&mut child), 137);
    let left = names(place.path());
    // Where the file system cannot have files without a name, one is left that says what it is.
    assert!(
        left.iter().all(|name| name.ends_with(".partial")),
        "{left:?}"
    );
}

#[test]
fn a_file_that_appears_meanwhile_is_not_replaced() {
    let dir = tempdir().expect("a directory");
    let peer = slow(dir.path());
    let place = tempdir().expect("a directory");
    let copy = place.path().join("copy.raw");
    let child = begin(&peer, &copy, &["--connections=16"]);
    until_it_writes(&child, place.path());
    fs::write(&copy, "someone else's").expect("a writable directory");
    let outcome = finish(child).failure(1, &["copy.raw", "appeared", ".partial"]);
    assert_eq!(fs::read(&copy).expect("there"), b"someone else's");
    let kept = names(place.path());
    let kept = kept.iter().find(|name| name.ends_with(".partial"));
    let kept = kept.expect("the copy is kept");
    assert!(outcome.stderr.contains(kept), "{}", outcome.stderr);
    assert_same(&place.path().join(kept), &dir.path().join("image.raw"));
}

#[test]
fn a_new_file_has_the_mode_that_the_umask_leaves() {
    let dir = tempdir().expect("a directory");
    for (umask, mode) in [("022", 0o644), ("077", 0o600), ("002", 0o664)] {
        let copy = dir.path().join(umask);
        let script = format!("umask {umask}; exec \"$0\" copy -q sample:1M \"$1\"");
        run(std::process::Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_blockferry")])
            .arg(&copy))
        .success();
        let found = copy.metadata().expect("there").permissions().mode();
        assert_eq!(found & 0o777, mode);
    }
}

#[test]
fn an_existing_file_is_replaced_in_place_whatever_its_size_was() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    sparse_image(&image, 8 << 20);
    for size in [0, 1 << 20, 20 << 20] {
        let existing = dir.path().join("existing.raw");
        random_image(&existing, size);
        run(blockferry(["copy"]).arg(&image).arg(&existing)).success();
        assert_same(&image, &existing);
        // A stream does not say its size before its end.
        random_image(&existing, size);
        run(blockferry(["copy", "-"])
            .arg(&existing)
            .stdin(fs::File::open(&image).expect("readable")))
        .success();
        assert_same(&image, &existing);
    }
}

#[test]
fn an_existing_file_is_untouched_when_nothing_comes_of_the_copy() {
    let dir = tempdir().expect("a directory");
    let existing = dir.path().join("existing.raw");
    fs::write(&existing, "precious").expect("a writable directory");
    run(blockferry(["copy", "nbd+unix:///no-such?socket=/nowhere"]).arg(&existing))
        .failure(1, &["/nowhere"]);
    assert_eq!(fs::read(&existing).expect("there"), b"precious");
}

#[test]
fn a_link_to_nothing_is_filled_where_it_points() {
    let dir = tempdir().expect("a directory");
    let link = dir.path().join("link");
    symlink("target.raw", &link).expect("linked");
    run(blockferry(["copy", "sample:1M"]).arg(&link)).success();
    let target = dir.path().join("target.raw");
    assert_eq!(target.metadata().expect("there").len(), 1 << 20);
    assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
}
