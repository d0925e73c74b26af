//! VDI images as sources and destinations, with qemu-img as judge.

use std::fs;

use tempfile::tempdir;

use crate::support::{
    Outcome, Served, assert_same, blockferry,
    qemu::{assert_identical, qemu_img, text},
    run, sparse_image,
};

const SIZE: u64 = (9 << 20) + 512;

fn copy(arguments: &[&str]) -> Outcome {
    run(&mut blockferry([&["copy", "--quiet"], arguments].concat()))
}

#[test]
fn images_of_both_kinds_go_there_and_back() {
    let room = tempdir().expect("a directory");
    let path = |name: &str| room.path().join(name);
    let (raw, made, back) = (path("raw"), path("made.vdi"), path("back"));
    sparse_image(&raw, SIZE);
    for options in ["static=off", "static=on"] {
        copy(&["-O", "vdi", "-o", options, text(&raw), text(&made)]).success();
        assert_identical((&raw, "raw"), (&made, "vdi"));
        qemu_img(&["check", "-q", "-f", "vdi", text(&made)]);
        copy(&[text(&made), text(&back)]).success();
        assert_same(&raw, &back);
        qemu_img(&[
            "convert",
            "-O",
            "vdi",
            "-o",
            options,
            text(&raw),
            text(&made),
        ]);
        copy(&["-f", "vdi", text(&made), text(&back)]).success();
        assert_same(&raw, &back);
    }
}

#[test]
fn mistakes_are_told() {
    let room = tempdir().expect("a directory");
    let (raw, made, diff) = (
        room.path().join("raw"),
        room.path().join("made.vdi"),
        room.path().join("diff.vdi"),
    );
    sparse_image(&raw, SIZE);
    qemu_img(&["create", "-q", "-f", "vdi", text(&diff), "1M"]);
    let mut bytes = fs::read(&diff).expect("there");
    bytes[0x4c] = 4;
    fs::write(&diff, bytes).expect("written");
    for (arguments, source, code, message) in [
        (
            &["-O", "vdi", "-o", "static=maybe"][..],
            &raw,
            2,
            "neither on nor off",
        ),
        (
            &["-O", "vdi", "-o", "subformat=fixed"],
            &raw,
            2,
            "subformat",
        ),
        (
            &["-f", "vdi"],
            &raw,
            1,
            "it is not a VDI image: it begins with something else",
        ),
        (&[], &diff, 1, "a differencing image"),
    ] {
        let failed = copy(&[arguments, &[text(source), text(&made)]].concat());
        failed.failure(code, &[message]);
        assert!(!made.exists());
    }
}

#[test]
fn an_image_is_served_mapped_and_compared() {
    let room = tempdir().expect("a directory");
    let path = |name: &str| room.path().join(name);
    let (raw, image, socket) = (path("raw"), path("image.vdi"), path("socket"));
    sparse_image(&raw, SIZE);
    copy(&["-O", "vdi", text(&raw), text(&image)]).success();
    let server = Served::at(&socket, &["--read-only", text(&image)]);
    let uri = server.uri();
    qemu_img(&["compare", "-f", "raw", "-F", "raw", text(&raw), &uri]);
    server.terminate().success();
    run(&mut blockferry(["compare", text(&raw), text(&image)])).success();
    let ours = run(&mut blockferry(["map", "--json", text(&image)]))
        .success()
        .text()
        .to_owned();
    assert!(ours.contains("\"offset\": 0,"), "{ours}");
}
