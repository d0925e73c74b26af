//! Packed disks, copied and served through the filters that unpack them, beside nbdkit's.

use std::path::Path;

use crate::support::{
    images::{assert_same, random_bytes, sparse_image},
    peers::Peer,
    run::{blockferry, run, tool},
};

/// A disk of 24 MiB in `room`, with holes and noise.
fn disk(room: &Path) -> String {
    let disk = room.join("disk");
    sparse_image(&disk, 24 << 20);
    let mut bytes = std::fs::read(&disk).expect("the disk");
    bytes[5_000_000..8_000_000].copy_from_slice(&random_bytes(3_000_000, 1));
    std::fs::write(&disk, bytes).expect("written");
    disk.to_str().expect("text").to_owned()
}

fn pack(command: &str, disk: &str, packed: &str) {
    tool("sh", &["-c", &format!("{command} <'{disk}' >'{packed}'")]);
}

#[test]
fn a_packed_disk_is_copied_and_served_as_by_nbdkit() {
    let room = tempfile::tempdir().expect("a directory");
    let disk = disk(room.path());
    let path = |name: &str| room.path().join(name).to_str().expect("text").to_owned();
    for (name, command, filter, theirs) in [
        ("xz", "xz --block-size=1MiB -1", "xz", Some("--filter=xz")),
        ("gz", "gzip -1", "gzip:unpack=on", Some("--filter=gzip")),
        ("zst", "zstd -q --stream-size=25165824", "zstd", None),
    ] {
        let (packed, copy, served) = (path(name), path("copy"), path("served"));
        pack(command, &disk, &packed);
        run(&mut blockferry([
            "copy", "--filter", filter, &packed, &copy,
        ]))
        .success();
        assert_same(Path::new(&disk), Path::new(&copy));
        let nbdcopy = format!("nbdcopy \"$uri\" '{served}' && nbdinfo --size \"$uri\"");
        let serve = ["serve", "--filter", filter, &packed, "--run", &nbdcopy];
        let size = run(&mut blockferry(serve)).success();
        assert_eq!(size.text().trim(), "25165824");
        assert_same(Path::new(&disk), Path::new(&served));
        if let Some(theirs) = theirs {
            let own = tempfile::tempdir_in(room.path()).expect("a directory");
            let peer = Peer::nbdkit(own.path(), &[theirs, "file", &packed]);
            let shown = path("theirs");
            run(&mut blockferry(["copy", &peer.uri(), &shown])).success();
            assert_same(Path::new(&shown), Path::new(&copy));
        }
    }
}

#[test]
fn a_packed_disk_behind_another_server_is_read_through_several_connections() {
    let room = tempfile::tempdir().expect("a directory");
    let disk = disk(room.path());
    let packed = format!("{disk}.xz");
    pack("xz --block-size=1MiB -1", &disk, &packed);
    let copy = format!("{disk}.copy");
    let peer = Peer::nbdkit(room.path(), &["file", &packed]);
    let words = [
        "copy",
        "--connections=4",
        "--filter",
        "xz",
        &peer.uri(),
        &copy,
    ];
    run(&mut blockferry(words)).success();
    assert_same(Path::new(&disk), Path::new(&copy));
}

#[test]
fn a_disk_that_cannot_be_read_anywhere_is_refused_with_a_way_out() {
    let room = tempfile::tempdir().expect("a directory");
    let disk = disk(room.path());
    let (packed, copy) = (format!("{disk}.gz"), format!("{disk}.copy"));
    pack("gzip -1", &disk, &packed);
    let words = ["copy", "--filter", "gzip", &packed, &copy];
    run(&mut blockferry(words)).failure(1, &["gzip", "bgzip makes one", "unpack=on"]);
    assert!(!Path::new(&copy).exists());
}
