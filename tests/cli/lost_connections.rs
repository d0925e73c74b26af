//! Connections that are lost in the middle of a copy. The server is ours: nbdkit 1.32 may fail an assertion, and
//! end all connections, when one ends that still has requests in flight.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use tempfile::{TempDir, tempdir};

use crate::support::{
    Outcome, Peer, Proxy, allocated, assert_same, blockferry, images::random_bytes, random_image,
    run, run::tool,
};

const SIZE: u64 = 48 << 20;

/// How much a connection carries before it is cut: some whole requests and a part of one.
const LIMIT: u64 = 1_000_003;

fn room() -> TempDir {
    tempdir().expect("a directory")
}

fn image_and_copy(directory: &Path) -> (PathBuf, PathBuf) {
    let image = directory.join("image.raw");
    random_image(&image, SIZE as usize);
    (image, directory.join("copy.raw"))
}

/// Four connections to `server`, of which those in `lost` are cut.
fn cutting(directory: &Path, server: &Peer, lost: &'static [usize]) -> Proxy {
    Proxy::cutting(directory, server.socket(), 4, |number| {
        lost.contains(&number).then_some(LIMIT)
    })
}

fn copy(options: &[&str], source: impl AsRef<Path>, destination: impl AsRef<Path>) -> Outcome {
    let arguments = ["copy"].iter().chain(options);
    run(blockferry(arguments)
        .arg(source.as_ref())
        .arg(destination.as_ref()))
}

/// A success that tells of the loss of a connection to `uri`, once. The others may not have been there yet.
#[track_caller]
fn check_one_loss(outcome: Outcome, uri: &str) {
    let outcome = outcome.success();
    let is_loss = |line: &&str| line.contains("going on with") || line.contains("(attempt 1 of");
    let losses: Vec<_> = outcome.stderr.lines().filter(is_loss).collect();
    assert_eq!(losses.len(), 1, "{}", outcome.stderr);
    assert!(losses[0].contains(uri), "{}", outcome.stderr);
}

#[test]
fn a_source_that_loses_one_of_four_connections_is_copied_whole() {
    for lost in [&[0][..], &[1], &[2], &[3]] {
        let dir = room();
        let (image, destination) = image_and_copy(dir.path());
        let server = Peer::blockferry(dir.path(), &image);
        let proxy = cutting(dir.path(), &server, lost);
        let outcome = copy(&[], proxy.uri(), &destination);
        check_one_loss(outcome, &proxy.uri());
        assert_same(&image, &destination);
        assert_eq!(proxy.cut(), 1);
        // Another takes its place, if there is still something to do for it.
        assert!((4..=5).contains(&proxy.accepted()), "{}", proxy.accepted());
    }
}

#[test]
fn a_destination_that_loses_one_of_four_connections_gets_everything() {
    for lost in [&[0][..], &[1], &[2], &[3]] {
        let dir = room();
        let (image, disk) = image_and_copy(dir.path());
        fs::write(&disk, vec![0x55; SIZE as usize]).expect("room");
        let server = Peer::blockferry(dir.path(), &disk);
        let proxy = cutting(dir.path(), &server, lost);
        let outcome = copy(&[], &image, proxy.uri());
        check_one_loss(outcome, &proxy.uri());
        assert_same(&image, &disk);
        assert_eq!(proxy.cut(), 1);
        // Another takes its place, if there is still something to do for it.
        assert!((4..=5).contains(&proxy.accepted()), "{}", proxy.accepted());
    }
}

#[test]
fn an_image_that_is_moved_through_pipes_survives_the_loss_of_a_connection() {
    let (one, other) = (room(), room());
    let (image, disk) = image_and_copy(one.path());
    fs::write(&disk, vec![0x55; SIZE as usize]).expect("room");
    let from = Peer::blockferry(one.path(), &image);
    let to = Peer::blockferry(other.path(), &disk);
    for lossy_source in [true, false] {
        let dir = room();
        let proxy = cutting(dir.path(), if lossy_source { &from } else { &to }, &[1]);
        let outcome = match lossy_source {
            true => copy(&["-S0"], proxy.uri(), to.uri()),
            false => copy(&["-S0"], from.uri(), proxy.uri()),
        };
        check_one_loss(outcome, &proxy.uri());
        assert_same(&image, &disk);
        fs::write(&disk, vec![0x55; SIZE as usize]).expect("room");
    }
}

#[test]
fn an_image_that_is_read_in_order_survives_the_loss_of_a_connection() {
    let dir = room();
    let (image, destination) = image_and_copy(dir.path());
    let server = Peer::blockferry(dir.path(), &image);
    let proxy = cutting(dir.path(), &server, &[2]);
    let outcome = copy(&["--in-order"], proxy.uri(), &destination);
    check_one_loss(outcome, &proxy.uri());
    assert_same(&image, &destination);
    drop(proxy);

    let proxy = cutting(dir.path(), &server, &[0]);
    let outcome = run(&mut blockferry(["copy", "--quiet", &proxy.uri(), "-"])).success();
    assert_eq!(outcome.stderr, "");
    assert!(
        outcome.stdout == random_bytes(SIZE as usize, 1),
        "the bytes differ"
    );
    assert_eq!(proxy.cut(), 1);
}

#[test]
fn holes_are_asked_for_through_any_connection_that_is_left() {
    // The image is longer than what one question for extents covers.
    let dir = room();
    let (image, destination) = image_and_copy(dir.path());
    let file = fs::File::options().write(true).open(&image);
    file.and_then(|file| {
        file.set_len(2 << 30)?;
        file.write_all_at(&random_bytes(4 << 20, 2), (2 << 30) - 777)
    })
    .expect("room for holes");
    let server = Peer::blockferry(dir.path(), &image);
    let proxy = cutting(dir.path(), &server, &[0]);
    check_one_loss(copy(&[], proxy.uri(), &destination), &proxy.uri());
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    tool("cmp", &[&text(&image), &text(&destination)]);
    assert!(allocated(&destination) < 64 << 20);
}

#[test]
fn a_copy_that_loses_every_connection_fails_and_leaves_nothing() {
    let dir = room();
    let (image, destination) = image_and_copy(dir.path());
    let server = Peer::blockferry(dir.path(), &image);
    let proxy = cutting(dir.path(), &server, &[0, 1, 2, 3]);
    let once = &["--retries=0"];
    copy(once, proxy.uri(), &destination).failure(75, &[&proxy.uri(), "read of", "offset"]);
    assert!(!destination.exists(), "an unfinished file is left behind");
    drop(proxy);

    let to = room();
    let disk = to.path().join("disk.raw");
    fs::write(&disk, vec![0x55; SIZE as usize]).expect("room");
    let server = Peer::blockferry(to.path(), &disk);
    let proxy = cutting(to.path(), &server, &[0, 1, 2, 3]);
    copy(once, &image, proxy.uri()).failure(75, &[&proxy.uri(), "offset"]);
}

#[test]
fn a_copy_that_loses_every_connection_opens_them_again() {
    let dir = room();
    let (image, destination) = image_and_copy(dir.path());
    let server = Peer::blockferry(dir.path(), &image);
    let proxy = cutting(dir.path(), &server, &[0, 1, 2, 3]);
    let outcome = copy(&[], proxy.uri(), &destination).success();
    assert_same(&image, &destination);
    for words in [
        "connecting again in 0.1 s (attempt 1 of 8)",
        "connected again",
    ] {
        assert!(outcome.stderr.contains(words), "{}", outcome.stderr);
    }
    drop(proxy);

    let to = room();
    let disk = to.path().join("disk.raw");
    fs::write(&disk, vec![0x55; SIZE as usize]).expect("room");
    let server = Peer::blockferry(to.path(), &disk);
    let proxy = cutting(to.path(), &server, &[0, 1, 2, 3]);
    let outcome = copy(&[], &image, proxy.uri()).success();
    assert_same(&image, &disk);
    let words = "that were not flushed";
    assert!(outcome.stderr.contains(words), "{}", outcome.stderr);
}
