//! `qemu-img check`, theirs and ours.

use std::fs::{self, File};

use crate::support::{
    dropin::BOTH,
    gallery::{Gallery, IMAGES},
    qemu::qemu_img,
    run,
};

const CLUSTER: u64 = 64 << 10;

/// Where the first block of refcounts lies.
fn first_block(bytes: &[u8]) -> usize {
    let word = |at: usize| {
        let bytes = bytes[at..at + 8].try_into().expect("8 bytes");
        u64::from_be_bytes(bytes) as usize
    };
    word(word(48))
}

/// An image with a cluster that nobody uses, and one whose refcount is too small.
fn damage(gallery: &Gallery) {
    gallery.create("leaking.qcow2", "", "16M");
    gallery.write("leaking.qcow2", &["write -P 1 0 300k"]);
    let path = gallery.path().join("leaking.qcow2");
    let bytes = fs::read(&path).expect("there");
    let block = first_block(&bytes);
    let clusters = (bytes.len() as u64).div_ceil(CLUSTER);
    let file = File::options().write(true).open(&path).expect("there");
    file.set_len((clusters + 2) * CLUSTER).expect("room");
    let count = |cluster: u64| block as u64 + 2 * cluster;
    gallery.patch("leaking.qcow2", count(clusters + 1), &[0, 1]);
    fs::copy(&path, gallery.path().join("damaged.qcow2")).expect("room");
    gallery.patch("damaged.qcow2", count(5), &[0, 0]);
}

#[test]
fn every_image_is_checked_as_qemu_img_does() {
    let gallery = Gallery::new();
    damage(&gallery);
    let damaged = ["leaking.qcow2", "damaged.qcow2"];
    for image in IMAGES.iter().chain(&damaged) {
        for arguments in [
            "check",
            "check --output=json",
            "check -q",
            "check -q --output=json",
            "check -U -T none",
        ] {
            gallery.alike(arguments, image);
        }
    }
    for (image, code) in [
        ("plain.qcow2", 0),
        ("damaged.qcow2", 2),
        ("leaking.qcow2", 3),
        ("sparse.raw", 63),
    ] {
        assert_eq!(gallery.alike("check", image).0, code, "{image}");
    }
}

#[test]
fn images_are_mended_as_qemu_img_mends_them() {
    let gallery = Gallery::new();
    damage(&gallery);
    for (image, mode) in [
        ("leaking.qcow2", "leaks"),
        ("leaking.qcow2", "all"),
        ("damaged.qcow2", "all"),
        ("plain.qcow2", "all"),
    ] {
        // Each has a copy of its own.
        let [theirs, ours] = BOTH.map(|who| {
            let copy = gallery.path().join("mended.qcow2");
            fs::copy(gallery.path().join(image), &copy).expect("room");
            let mut command = who.tool("qemu-img", ["check", "-r", mode, "mended.qcow2"]);
            let said = run(command.current_dir(gallery.path()));
            let after = qemu_img(&["check", copy.to_str().expect("UTF-8")]);
            assert!(
                after.contains("No errors were found"),
                "{who:?} {image}: {after}"
            );
            said
        });
        assert_eq!((ours.code, theirs.code), (0, 0), "{image}: {}", ours.stderr);
        if image == "leaking.qcow2" {
            // A rebuilt table lies where there is room, and that may be elsewhere.
            assert_eq!(ours.text(), theirs.text(), "{image} {mode}");
        }
    }
    gallery.alike("check -r all -U", "plain.qcow2");
    gallery.alike("check -r all", "sparse.raw");
}

#[test]
fn descriptions_are_checked() {
    let gallery = Gallery::new();
    let described = "driver=qcow2,file.filename=plain.qcow2";
    gallery.alike("check --image-opts", described);
    gallery.alike("check --output=json --image-opts", described);
}

#[test]
fn formats_without_refcounts_have_their_tables_read() {
    let gallery = Gallery::new();
    for format in ["vpc", "vdi"] {
        let [from, to] = ["sparse.raw".to_owned(), format!("disk.{format}")];
        let [from, to] = [from, to].map(|name| gallery.path().join(name));
        let (from, to) = (from.to_str().expect("UTF-8"), to.to_str().expect("UTF-8"));
        qemu_img(&["convert", "-f", "raw", "-O", format, from, to]);
        let name = format!("disk.{format}");
        let (code, _) = gallery.alike("check", &name);
        assert_eq!(code, if format == "vpc" { 63 } else { 0 });
        gallery.alike("check --output=json", &name);
    }
}

#[test]
fn what_is_wrong_is_refused_with_the_same_exit_code() {
    let gallery = Gallery::new();
    for arguments in [
        "check",
        "check nope",
        "check -r bogus plain.qcow2",
        "check -f qcow2 sparse.raw",
        "check --output=xml plain.qcow2",
        "check plain.qcow2 top.qcow2",
    ] {
        let (code, _) = gallery.alike(arguments, "");
        assert_eq!(code, 1, "{arguments}");
    }
}
