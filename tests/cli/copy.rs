//! Copies between NBD servers and files: right to the byte, and sparse.

use std::{fs, net::TcpListener, path::Path, process::Command};

use tempfile::tempdir;

use crate::support::{
    Peer, allocated, assert_same, blockferry, random_image, run, run::tool, sparse_image,
};

fn text(path: &Path) -> &str {
    path.to_str().expect("a name in UTF-8")
}

#[test]
fn the_readme_command_copies_a_sample_through_nbd_into_a_sparse_file() {
    let dir = tempdir().expect("a directory");
    let (disk, reference) = (
        dir.path().join("disk.raw"),
        dir.path().join("reference.raw"),
    );
    let bracketed = [
        "copy",
        "--progress",
        "[",
        "serve",
        "sample:256M",
        "]",
        text(&disk),
    ];
    let outcome = run(&mut blockferry(bracketed)).success();
    for word in ["copied", "256", "data", "zero", "/s"] {
        assert!(
            outcome.stderr.contains(word),
            "{word:?} is not in: {}",
            outcome.stderr
        );
    }
    run(&mut blockferry(["copy", "sample:256M", text(&reference)])).success();
    assert_same(&disk, &reference);
    assert!(
        allocated(&disk) < 128 << 20,
        "{} bytes on disk",
        allocated(&disk)
    );
}

#[test]
fn a_qcow2_of_a_file_system_behind_qemu_nbd_becomes_what_qemu_img_makes_of_it() {
    let dir = tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    let (raw, qcow2) = (path("fs.raw"), path("fs.qcow2"));
    let (ours, theirs) = (path("ours.raw"), path("theirs.raw"));
    let files = path("files");
    fs::create_dir(&files).expect("a directory");
    for index in 0..40 {
        random_image(&files.join(index.to_string()), 1000 + index * 40_000);
    }
    tool(
        "mkfs.ext4",
        &["-q", "-F", "-d", text(&files), text(&raw), "128M"],
    );
    tool(
        "qemu-img",
        &["convert", "-O", "qcow2", text(&raw), text(&qcow2)],
    );
    tool(
        "qemu-img",
        &["convert", "-O", "raw", text(&qcow2), text(&theirs)],
    );

    let peer = Peer::qemu_nbd(dir.path(), "qcow2", &qcow2, &["-r"]);
    run(&mut blockferry(["copy", &peer.uri(), text(&ours)])).success();
    assert_same(&ours, &theirs);
    assert!(
        allocated(&ours) <= allocated(&theirs),
        "{} bytes on disk, qemu-img's {}",
        allocated(&ours),
        allocated(&theirs)
    );
}

#[test]
fn a_file_goes_to_nbdkit_over_tcp_and_comes_back() {
    let dir = tempdir().expect("a directory");
    let (image, back) = (dir.path().join("image.raw"), dir.path().join("back.raw"));
    sparse_image(&image, 40 << 20);
    let port = TcpListener::bind("127.0.0.1:0")
        .expect("a port")
        .local_addr()
        .expect("ours")
        .port();
    let mut nbdkit = Command::new("nbdkit")
        .args([
            "-f",
            "-i",
            "127.0.0.1",
            "-p",
            &port.to_string(),
            "memory",
            "40M",
        ])
        .spawn()
        .expect("nbdkit (run `cargo xtask test`)");
    crate::support::run::until("nbdkit", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    let uri = format!("nbd://127.0.0.1:{port}/");
    let there = run(&mut blockferry(["copy", text(&image), &uri]));
    let again = run(&mut blockferry(["copy", &uri, text(&back)]));
    nbdkit
        .kill()
        .and_then(|()| nbdkit.wait())
        .expect("a child of ours");
    there.success();
    again.success();
    assert_same(&image, &back);
    assert!(allocated(&back) < 20 << 20);
}

#[test]
fn a_file_goes_into_a_qcow2_behind_qemu_nbd() {
    let dir = tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    let (image, qcow2, back) = (path("image.raw"), path("disk.qcow2"), path("back.raw"));
    sparse_image(&image, 64 << 20);
    tool(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", text(&qcow2), "64M"],
    );
    let peer = Peer::qemu_nbd(dir.path(), "qcow2", &qcow2, &[]);
    run(&mut blockferry(["copy", text(&image), &peer.uri()])).success();
    drop(peer);
    tool(
        "qemu-img",
        &["convert", "-O", "raw", text(&qcow2), text(&back)],
    );
    assert_same(&image, &back);
    assert!(
        allocated(&qcow2) < 16 << 20,
        "{} bytes on disk",
        allocated(&qcow2)
    );
}

#[test]
fn every_dialect_of_a_server_is_understood() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    random_image(&image, 5_000_003);
    let file = format!("file={}", text(&image));
    let dialects: [&[&str]; 5] = [
        &["file", &file],
        &["--no-sr", "file", &file],
        &["--mask-handshake=0", "file", &file],
        &["--filter=noextents", "file", &file],
        &[
            "--filter=blocksize-policy",
            "file",
            &file,
            "blocksize-maximum=64K",
            "blocksize-minimum=1",
        ],
    ];
    for (index, dialect) in dialects.iter().enumerate() {
        let room = dir.path().join(index.to_string());
        fs::create_dir(&room).expect("a directory");
        let peer = Peer::nbdkit(&room, dialect);
        let copy = room.join("copy.raw");
        let outcome = run(&mut blockferry(["copy", &peer.uri(), text(&copy)]));
        assert_eq!(outcome.code, 0, "{dialect:?}: {}", outcome.stderr);
        assert_same(&image, &copy);
    }
}

#[test]
fn the_options_of_a_copy_change_how_not_what() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    sparse_image(&image, 20 << 20);
    let sets: [&[&str]; 7] = [
        &["--no-extents"],
        &["--sparse=0"],
        &["-S", "65536"],
        &["--requests=1", "--request-size=4096"],
        &["-R", "64", "--request-size=1M", "--queue-size=4M"],
        &["--no-flush"],
        &["--allocated"],
    ];
    for (index, options) in sets.iter().enumerate() {
        let room = dir.path().join(index.to_string());
        fs::create_dir(&room).expect("a directory");
        let copy = room.join("copy.raw");
        let peer = Peer::nbdkit(&room, &["file", &format!("file={}", text(&image))]);
        let arguments = ["copy"].into_iter().chain(options.iter().copied());
        let outcome = run(blockferry(arguments).arg(peer.uri()).arg(&copy));
        assert_eq!(outcome.code, 0, "{options:?}: {}", outcome.stderr);
        assert_same(&image, &copy);
        let full = options.contains(&"--allocated");
        assert_eq!(
            allocated(&copy) >= 20 << 20,
            full,
            "{options:?}: {}",
            allocated(&copy)
        );
    }
}

#[test]
fn holes_that_nobody_announced_are_found() {
    let dir = tempdir().expect("a directory");
    let (image, copy) = (dir.path().join("image.raw"), dir.path().join("copy.raw"));
    sparse_image(&image, 30 << 20);
    let peer = Peer::nbdkit(
        dir.path(),
        &[
            "--filter=noextents",
            "file",
            &format!("file={}", text(&image)),
        ],
    );
    run(&mut blockferry(["copy", &peer.uri(), text(&copy)])).success();
    assert_same(&image, &copy);
    assert!(
        allocated(&copy) < 10 << 20,
        "{} bytes on disk",
        allocated(&copy)
    );
}

#[test]
fn old_data_in_the_destination_does_not_shine_through_the_holes() {
    let dir = tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    let (image, disk, back) = (path("image.raw"), path("disk.raw"), path("back.raw"));
    sparse_image(&image, 10 << 20);
    random_image(&disk, 10 << 20);
    for filter in [&[][..], &["--filter=nozero"]] {
        let file = format!("file={}", text(&disk));
        let room = tempdir().expect("a directory");
        let peer = Peer::nbdkit(room.path(), &[filter, &["file", &file]].concat());
        run(&mut blockferry(["copy", text(&image), &peer.uri()])).success();
        run(&mut blockferry(["copy", &peer.uri(), text(&back)])).success();
        assert_same(&image, &back);
        random_image(&disk, 10 << 20);
    }
}

#[test]
fn an_existing_file_is_replaced_whole() {
    let dir = tempdir().expect("a directory");
    let (image, copy) = (dir.path().join("image.raw"), dir.path().join("copy.raw"));
    sparse_image(&image, 5 << 20);
    random_image(&copy, 9 << 20);
    run(&mut blockferry(["copy", text(&image), text(&copy)])).success();
    assert_same(&image, &copy);
}

#[test]
fn null_takes_anything_and_an_empty_image_is_an_image() {
    let dir = tempdir().expect("a directory");
    let (image, copy) = (dir.path().join("image.raw"), dir.path().join("copy.raw"));
    run(&mut blockferry(["copy", "sample:32M", "null:"])).success();
    fs::write(&image, []).expect("a writable directory");
    run(&mut blockferry(["copy", text(&image), text(&copy)])).success();
    assert_same(&image, &copy);
}

#[test]
fn the_report_is_json_where_a_machine_may_read_it() {
    let outcome = run(&mut blockferry([
        "copy",
        "--json",
        "sample:16M,data=50",
        "null:",
    ]))
    .success();
    let report: serde_json::Value = serde_json::from_str(outcome.text()).expect("JSON");
    let number = |key: &str| {
        report[key]
            .as_u64()
            .unwrap_or_else(|| panic!("{key} in {report}"))
    };
    assert_eq!(number("size"), 16 << 20);
    assert_eq!(number("data") + number("zero"), 16 << 20);
    assert!(number("data") > 0 && number("zero") > 0, "{report}");
}
