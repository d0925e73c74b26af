//! Persistent bitmaps that go along with a conversion.

use std::{fs, os::unix::fs::FileExt, path::Path};

use tempfile::tempdir;

use crate::support::{
    Peer, blockferry,
    qemu::{assert_identical, check, convert, info, qemu_img, qemu_io, text},
    run,
    run::tool,
};

/// An image with bitmaps of several granularities, of which some say more than others.
fn with_bitmaps(image: &Path, options: &str) {
    qemu_img(&["create", "-f", "qcow2", "-o", options, text(image), "40M"]);
    qemu_img(&["bitmap", "--add", "-g", "512", text(image), "fine"]);
    qemu_io(
        image,
        "qcow2",
        &["write -P 1 1M 64k", "write -P 2 3000k 512"],
    );
    qemu_img(&["bitmap", "--add", text(image), "usual"]);
    qemu_img(&["bitmap", "--add", "-g", "1M", text(image), "coarse"]);
    qemu_img(&["bitmap", "--add", text(image), "empty"]);
    qemu_img(&["bitmap", "--disable", text(image), "empty"]);
    qemu_io(
        image,
        "qcow2",
        &["write -P 3 20M 5M", "write -P 4 40959k 1k"],
    );
    qemu_img(&["bitmap", "--disable", text(image), "coarse"]);
}

/// What qemu says of the bitmaps of an image.
fn bitmaps(image: &Path) -> serde_json::Value {
    info(image)["format-specific"]["data"]["bitmaps"].clone()
}

/// What qemu says is dirty.
fn dirty(image: &Path, name: &str) -> String {
    let room = tempdir().expect("a directory");
    let peer = Peer::qemu_nbd(room.path(), "qcow2", image, &["-r", "-B", name]);
    let map = format!("--map=qemu:dirty-bitmap:{name}");
    tool("nbdinfo", &[&map, &peer.uri()])
}

#[test]
fn bitmaps_say_the_same_in_the_new_image() {
    let dir = tempdir().expect("a directory");
    let source = dir.path().join("source.qcow2");
    with_bitmaps(&source, "cluster_size=64k");
    for options in [
        &[][..],
        &["-o", "cluster_size=512"],
        &["-o", "preallocation=metadata"],
        &["-c"],
        &["-o", "extended_l2=on,cluster_size=2M"],
    ] {
        let made = dir.path().join("made.qcow2");
        let _ = fs::remove_file(&made);
        let words = [
            &["--bitmaps", "-O", "qcow2"],
            options,
            &[text(&source), text(&made)],
        ];
        convert(&words.concat()).success();
        check(&made);
        assert_identical((&source, "qcow2"), (&made, "qcow2"));
        assert_eq!(bitmaps(&made), bitmaps(&source), "{options:?}");
        for name in ["fine", "usual", "coarse", "empty"] {
            assert_eq!(
                dirty(&made, name),
                dirty(&source, name),
                "{name} {options:?}"
            );
            let context = format!("--context=qemu:dirty-bitmap:{name}");
            let map = |image: &Path| {
                run(&mut blockferry(["map", &context, text(image)]))
                    .success()
                    .stdout
            };
            assert!(map(&made) == map(&source), "{name} {options:?}");
        }
    }
    // Without being asked for they stay behind.
    let bare = dir.path().join("bare.qcow2");
    convert(&["-O", "qcow2", text(&source), text(&bare)]).success();
    assert!(bitmaps(&bare).is_null());
    // qemu goes on with them.
    let made = dir.path().join("made.qcow2");
    qemu_io(&made, "qcow2", &["write -P 9 30M 64k"]);
    check(&made);
    assert_ne!(dirty(&made, "usual"), dirty(&source, "usual"));
    assert_eq!(dirty(&made, "coarse"), dirty(&source, "coarse"));
}

#[test]
fn broken_bitmaps_are_not_copied() {
    let dir = tempdir().expect("a directory");
    let source = dir.path().join("source.qcow2");
    with_bitmaps(&source, "cluster_size=64k");
    // As if its user had died: the flag "in use" of the first entry of the directory.
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(&source)
        .expect("opened");
    let bytes = fs::read(&source).expect("read");
    let magic = 0x2385_2875_u32.to_be_bytes();
    let extension = bytes
        .windows(4)
        .position(|window| window == magic)
        .expect("bitmaps");
    let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let directory = number(extension + 8 + 16);
    file.write_all_at(&[0, 0, 0, 3], directory + 12)
        .expect("written");

    let made = dir.path().join("made.qcow2");
    let words = ["--bitmaps", "-O", "qcow2", text(&source), text(&made)];
    convert(&words).failure(1, &["broken", "--skip-broken-bitmaps"]);
    assert!(!made.exists());
    let words = [
        "--bitmaps",
        "--skip-broken-bitmaps",
        "-O",
        "qcow2",
        text(&source),
        text(&made),
    ];
    let said = convert(&words).success();
    assert!(
        said.stderr.contains("is broken and left out"),
        "{}",
        said.stderr
    );
    check(&made);
    assert_eq!(bitmaps(&made).as_array().map(Vec::len), Some(3));
}

#[test]
fn bitmaps_need_images_that_can_have_them() {
    let dir = tempdir().expect("a directory");
    let source = dir.path().join("source.qcow2");
    with_bitmaps(&source, "cluster_size=64k");
    let raw = dir.path().join("source.raw");
    fs::write(&raw, "no image").expect("room");
    let made = dir.path().join("made.qcow2");
    let words = ["--bitmaps", "-O", "qcow2", text(&raw), text(&made)];
    convert(&words).failure(1, &["source.raw", "not a qcow2 image"]);
    let words = [
        "--bitmaps",
        "-O",
        "qcow2",
        "-o",
        "compat=0.10",
        text(&source),
        text(&made),
    ];
    convert(&words).failure(1, &["version 2"]);
    let words = ["--bitmaps", "-O", "qcow2", text(&source), "-"];
    run(&mut blockferry([&["convert"], &words[..]].concat())).failure(2, &["bitmaps"]);
    assert!(!made.exists());
}
