//! How many connections a copy uses, and what goes over them.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use tempfile::{TempDir, tempdir};

use crate::support::{Outcome, Peer, assert_same, blockferry, random_image, run, sparse_image};

const SIZE: u64 = 48 << 20;

fn room() -> TempDir {
    tempdir().expect("a directory")
}

/// An image of [`SIZE`] bytes behind an nbdkit that writes down what it is asked for.
struct Logged {
    peer: Peer,
    log: PathBuf,
}

impl Logged {
    /// `plugin` behind `filters`, with the `parameters` of both.
    fn start(directory: &Path, filters: &[&str], plugin: &[&str], parameters: &[&str]) -> Self {
        let log = directory.join("nbdkit.log");
        let logfile = format!("logfile={}", log.display());
        let arguments = [
            &["--filter=log"],
            filters,
            plugin,
            parameters,
            &[logfile.as_str()],
        ]
        .concat();
        Self {
            peer: Peer::nbdkit(directory, &arguments),
            log,
        }
    }

    /// `image`, whose reads and writes take a moment, so that all connections have work.
    fn slow(directory: &Path, image: &Path, filters: &[&str], parameters: &[&str]) -> Self {
        let file = format!("file={}", image.display());
        Self::start(
            directory,
            &[filters, &["--filter=delay"]].concat(),
            &["file", &file, "delay-read=60ms", "delay-write=60ms"],
            parameters,
        )
    }

    /// The connections that made such a request.
    fn connections(&self, request: &str) -> BTreeSet<String> {
        let word = format!(" {request} id=");
        let log = fs::read_to_string(&self.log).expect("nbdkit's log");
        log.lines()
            .filter(|line| line.contains(&word))
            .filter_map(|line| line.split("connection=").nth(1)?.split(' ').next())
            .map(str::to_owned)
            .collect()
    }
}

/// An image, and where it goes.
fn image_and_copy(directory: &Path) -> (PathBuf, PathBuf) {
    let image = directory.join("image.raw");
    random_image(&image, SIZE as usize);
    (image, directory.join("copy.raw"))
}

/// A destination of the image's size that is full of something else.
fn full_disk(directory: &Path) -> PathBuf {
    let disk = directory.join("disk.raw");
    fs::write(&disk, vec![0x55; SIZE as usize]).expect("room");
    disk
}

#[track_caller]
fn copy(options: &[&str], source: impl AsRef<Path>, destination: impl AsRef<Path>) -> Outcome {
    let arguments = ["copy"].iter().chain(options);
    run(blockferry(arguments)
        .arg(source.as_ref())
        .arg(destination.as_ref()))
    .success()
}

/// What the report of a copy of the whole image must say.
#[track_caller]
fn check_report(outcome: &Outcome, size: u64) {
    let report: serde_json::Value = serde_json::from_str(outcome.text()).expect("JSON");
    let number = |key: &str| report[key].as_u64().expect("a number");
    assert_eq!(number("size"), size, "{report}");
    assert_eq!(number("data") + number("zero"), size, "{report}");
    assert_eq!(report["flushed"], true, "{report}");
    assert_eq!(outcome.stderr, "");
}

#[test]
fn four_connections_read_what_a_server_offers_to_several() {
    let dir = room();
    let (image, destination) = image_and_copy(dir.path());
    let server = Logged::slow(dir.path(), &image, &[], &[]);
    let outcome = copy(&["--json"], server.peer.uri(), &destination);
    assert_same(&image, &destination);
    assert_eq!(server.connections("Read").len(), 4);
    check_report(&outcome, SIZE);
}

#[test]
fn four_connections_write_and_each_of_them_is_flushed() {
    let dir = room();
    let (image, _) = image_and_copy(dir.path());
    let disk = full_disk(dir.path());
    let server = Logged::slow(dir.path(), &disk, &[], &[]);
    let outcome = copy(&["--json"], &image, server.peer.uri());
    assert_same(&image, &disk);
    let written = server.connections("Write");
    assert_eq!(written.len(), 4);
    assert_eq!(server.connections("Flush"), written);
    check_report(&outcome, SIZE);
}

#[test]
fn both_sides_of_a_copy_have_their_four_connections() {
    let (one, other) = (room(), room());
    let (image, _) = image_and_copy(one.path());
    let disk = full_disk(other.path());
    let source = Logged::slow(one.path(), &image, &[], &[]);
    let destination = Logged::slow(other.path(), &disk, &[], &[]);
    copy(&[], source.peer.uri(), destination.peer.uri());
    assert_same(&image, &disk);
    assert_eq!(source.connections("Read").len(), 4);
    assert_eq!(destination.connections("Write").len(), 4);
}

#[test]
fn one_connection_is_used_where_a_server_does_not_offer_several() {
    let filters = ["--filter=multi-conn"];
    let parameters = ["multi-conn-mode=disable"];
    let dir = room();
    let (image, destination) = image_and_copy(dir.path());
    let server = Logged::slow(dir.path(), &image, &filters, &parameters);
    copy(&[], server.peer.uri(), &destination);
    assert_same(&image, &destination);
    assert_eq!(server.connections("Read").len(), 1);
    drop(server);

    let dir = room();
    let disk = full_disk(dir.path());
    let server = Logged::slow(dir.path(), &disk, &filters, &parameters);
    copy(&[], &image, server.peer.uri());
    assert_same(&image, &disk);
    assert_eq!(server.connections("Write").len(), 1);
    assert_eq!(server.connections("Flush").len(), 1);
}

#[test]
fn as_many_connections_are_used_as_were_asked_for() {
    for (option, connections) in [("-C1", 1), ("--connections=2", 2), ("-C7", 7)] {
        let dir = room();
        let (image, destination) = image_and_copy(dir.path());
        let server = Logged::slow(dir.path(), &image, &[], &[]);
        copy(&[option], server.peer.uri(), &destination);
        assert_same(&image, &destination);
        assert_eq!(server.connections("Read").len(), connections, "{option}");
    }
}

#[test]
fn a_small_image_is_read_over_one_connection() {
    let dir = room();
    let (image, destination) = (dir.path().join("image.raw"), dir.path().join("copy.raw"));
    random_image(&image, 3 << 20);
    let server = Logged::slow(dir.path(), &image, &[], &[]);
    copy(&[], server.peer.uri(), &destination);
    assert_same(&image, &destination);
    let log = fs::read_to_string(&server.log).expect("nbdkit's log");
    assert_eq!(log.matches(" Connect ").count(), 1, "{log}");
}

#[test]
fn a_server_that_takes_fewer_clients_than_asked_for_gets_fewer() {
    for clients in ["1", "2", "3"] {
        let dir = room();
        let (image, destination) = image_and_copy(dir.path());
        let source = Peer::qemu_nbd(dir.path(), "raw", &image, &["-e", clients]);
        copy(&[], source.uri(), &destination);
        assert_same(&image, &destination);
        drop(source);

        let dir = room();
        let disk = full_disk(dir.path());
        let server = Peer::qemu_nbd(dir.path(), "raw", &disk, &["-e", clients]);
        copy(&[], &image, server.uri());
        drop(server);
        assert_same(&image, &disk);
    }
}

#[test]
fn how_many_requests_there_are_changes_nothing_in_the_copy() {
    let dir = room();
    let image = dir.path().join("image.raw");
    sparse_image(&image, 30_000_001);
    let sets: [&[&str]; 5] = [
        &["-C8", "-R1", "--request-size=4K"],
        &["-C3", "--queue-size=4K"],
        &["-C4", "--queue-size=1M", "--request-size=1M"],
        &["-C2", "-R1024", "--request-size=32M"],
        &["-C64", "--queue-size=4G"],
    ];
    let file = format!("file={}", image.display());
    for options in sets {
        let room = room();
        let server = Peer::nbdkit(room.path(), &["file", &file]);
        let destination = room.path().join("copy.raw");
        copy(options, server.uri(), &destination);
        assert_same(&image, &destination);
    }
}

#[test]
fn a_source_that_is_not_to_be_asked_for_extents_is_not_asked() {
    let dir = room();
    let (image, destination) = (dir.path().join("image.raw"), dir.path().join("copy.raw"));
    sparse_image(&image, SIZE);
    let file = format!("file={}", image.display());
    let server = Logged::start(dir.path(), &[], &["file", &file], &[]);
    copy(&["--no-extents"], server.peer.uri(), &destination);
    assert_same(&image, &destination);
    assert!(!server.connections("Read").is_empty());
    assert!(server.connections("Extents").is_empty());

    copy(&[], server.peer.uri(), &destination);
    assert_same(&image, &destination);
    assert!(!server.connections("Extents").is_empty());
}
