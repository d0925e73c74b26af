//! Images that two programs want at once: ours and ours, ours and qemu's.

use std::{fs, process::Command};

use tempfile::tempdir;

use crate::support::{
    Peer, assert_same, blockferry,
    qemu::{assert_identical, check, convert, qemu_img, qemu_io, text},
    run, sparse_image,
};

#[test]
fn an_image_that_is_served_is_written_by_nobody_else() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.qcow2");
    let raw = dir.path().join("source.raw");
    sparse_image(&raw, 4 << 20);
    qemu_img(&["create", "-f", "qcow2", text(&image), "4M"]);
    let server = Peer::blockferry(dir.path(), &image);
    for words in [
        &["serve", "--unix", "-", text(&image)][..],
        &["serve", "--run", "true", text(&image)],
        &["convert", "-n", "-O", "qcow2", text(&raw), text(&image)],
        &["convert", "-O", "qcow2", text(&raw), text(&image)],
        &["convert", "-O", "raw", text(&raw), text(&image)],
        &["convert", "-n", "-O", "raw", text(&raw), text(&image)],
    ] {
        run(&mut blockferry(words)).failure(1, &["image.qcow2", "another program uses it"]);
    }
    let words = ["-f", "qcow2", "-c", "write 0 64k", text(&image)];
    assert_ne!(run(Command::new("qemu-io").args(words)).code, 0);
    // Who reads is told, unless they know.
    let copy = dir.path().join("copy.raw");
    let said = convert(&[text(&image), text(&copy)]).success();
    assert!(said.stderr.contains("may write it"), "{}", said.stderr);
    let said = convert(&["-U", text(&image), text(&copy)]).success();
    assert!(!said.stderr.contains("warning"), "{}", said.stderr);
    // It is free whatever the server's end was.
    drop(server);
    convert(&["-n", "-O", "qcow2", text(&raw), text(&image)]).success();
    check(&image);
    assert_identical((&raw, "raw"), (&image, "qcow2"));
}

#[test]
fn an_image_that_qemu_writes_is_left_to_it() {
    let dir = tempdir().expect("a directory");
    let (image, raw) = (dir.path().join("image"), dir.path().join("source.raw"));
    sparse_image(&raw, 4 << 20);
    for format in ["qcow2", "raw"] {
        qemu_img(&["create", "-f", format, text(&image), "8M"]);
        qemu_io(&image, format, &["write -P 7 1M 1M"]);
        let before = fs::read(&image).expect("read");
        let peer = Peer::qemu_nbd(dir.path(), format, &image, &[]);
        // It listens before it opens the image.
        run(&mut blockferry(["info", &peer.uri()])).success();
        for words in [&["-n", "-O", format][..], &["-O", format], &["-n"], &[]] {
            convert(&[words, &[text(&raw), text(&image)]].concat())
                .failure(1, &["image", "another program uses it"]);
        }
        drop(peer);
        assert!(fs::read(&image).expect("read") == before);
        convert(&["-O", format, text(&raw), text(&image)]).success();
        assert_identical((&raw, "raw"), (&image, format));
    }
}

#[test]
fn options_of_qemu_img_that_change_nothing_are_taken() {
    let dir = tempdir().expect("a directory");
    let (raw, made) = (dir.path().join("source.raw"), dir.path().join("made"));
    sparse_image(&raw, 4 << 20);
    for mode in ["none", "writeback", "writethrough", "directsync", "unsafe"] {
        let words = ["-p", "-t", mode, "-T", mode, "-U", "-W", "-O", "raw"];
        convert(&[&words[..], &[text(&raw), text(&made)]].concat()).success();
        assert_same(&raw, &made);
    }
    for (preallocation, allocated) in [("off", false), ("falloc", true), ("full", true)] {
        use std::os::unix::fs::MetadataExt;
        fs::remove_file(&made).expect("removed");
        let option = format!("preallocation={preallocation}");
        convert(&["-O", "raw", "-o", &option, text(&raw), text(&made)]).success();
        assert_same(&raw, &made);
        let bytes = made.metadata().expect("made").blocks() * 512;
        assert_eq!(bytes >= 4 << 20, allocated, "{preallocation}: {bytes}");
    }
}
