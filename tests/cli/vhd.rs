//! VHD images as sources and destinations, with qemu-img as judge.

use std::{fs, path::Path};

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

/// What `qemu-img info` says of the size of the disk.
fn size_for_qemu(image: &Path) -> u64 {
    let said = qemu_img(&["info", "--output=json", "-f", "vpc", text(image)]);
    let info: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    info["virtual-size"].as_u64().expect("a number")
}

#[test]
fn images_of_both_kinds_go_there_and_back() {
    let room = tempdir().expect("a directory");
    let path = |name: &str| room.path().join(name);
    let (raw, made, back) = (path("raw"), path("made.vhd"), path("back"));
    sparse_image(&raw, SIZE);
    for (options, is_exact) in [
        ("subformat=dynamic", false),
        ("subformat=fixed", false),
        ("subformat=dynamic,force_size=on", true),
        ("subformat=fixed,force_size=on", true),
    ] {
        copy(&["-O", "vpc", "-o", options, text(&raw), text(&made)]).success();
        assert_eq!(size_for_qemu(&made) == SIZE, is_exact, "{options}");
        qemu_img(&["compare", "-f", "raw", "-F", "vpc", text(&raw), text(&made)]);
        copy(&["-f", "vpc", text(&made), text(&back)]).success();
        let length = fs::metadata(&back).expect("there").len();
        assert_eq!(length, size_for_qemu(&made), "{options}");
        assert_identical((&made, "vpc"), (&back, "raw"));
        qemu_img(&[
            "convert",
            "-O",
            "vpc",
            "-o",
            options,
            text(&raw),
            text(&made),
        ]);
        copy(&["-f", "vpc", text(&made), text(&back)]).success();
        assert_identical((&made, "vpc"), (&back, "raw"));
    }
}

#[test]
fn azure_gets_an_image_of_whole_mebibytes() {
    let room = tempdir().expect("a directory");
    let (raw, made) = (room.path().join("raw"), room.path().join("made.vhd"));
    sparse_image(&raw, SIZE);
    copy(&["-O", "vpc", "-o", "azure=on", text(&raw), text(&made)]).success();
    let length = fs::metadata(&made).expect("there").len();
    assert_eq!((length, size_for_qemu(&made)), ((10 << 20) + 512, 10 << 20));
    qemu_img(&["compare", "-f", "raw", "-F", "vpc", text(&raw), text(&made)]);
    fs::File::options()
        .write(true)
        .open(&made)
        .and_then(|file| file.set_len(SIZE))
        .expect("cut");
    assert_same(&raw, &made);
}

#[test]
fn mistakes_are_told() {
    let room = tempdir().expect("a directory");
    let (raw, made) = (room.path().join("raw"), room.path().join("made.vhd"));
    sparse_image(&raw, SIZE);
    for (arguments, code, message) in [
        (
            &["-O", "vpc", "-o", "subformat=sparse"][..],
            2,
            "dynamic, fixed",
        ),
        (&["-O", "vpc", "-o", "azure=maybe"], 2, "neither on nor off"),
        (&["-O", "vpc", "-o", "static=on"], 2, "static"),
        (
            &["-f", "vpc"],
            1,
            "it is not a VHD image: it ends with something else",
        ),
    ] {
        let failed = copy(&[arguments, &[text(&raw), text(&made)]].concat());
        failed.failure(code, &[message]);
        assert!(!made.exists());
    }
}

#[test]
fn an_image_is_served_mapped_and_compared() {
    let room = tempdir().expect("a directory");
    let path = |name: &str| room.path().join(name);
    let (raw, image, socket) = (path("raw"), path("image.vhd"), path("socket"));
    sparse_image(&raw, SIZE);
    copy(&["-O", "vpc", "-o", "force_size=on", text(&raw), text(&image)]).success();
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

/// Puts the sum of a footer or a header where it belongs.
fn sum(bytes: &mut [u8], at: usize) {
    bytes[at..at + 4].fill(0);
    let sum = bytes.iter().fold(0_u32, |sum, byte| sum + u32::from(*byte));
    bytes[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
}

/// Makes the empty image in `child` one on top of `parent`, by this name.
fn put_on_top(child: &Path, parent: &Path, name: &str) {
    let uuid = fs::read(parent).expect("there")[68..84].to_vec();
    let mut bytes = fs::read(child).expect("there");
    let end = bytes.len() - 512;
    for start in [0, end] {
        bytes[start + 63] = 4;
        sum(&mut bytes[start..start + 512], 64);
    }
    bytes[512 + 40..512 + 56].copy_from_slice(&uuid);
    let units = name.encode_utf16().flat_map(u16::to_be_bytes);
    for (byte, unit) in bytes[512 + 64..512 + 576].iter_mut().zip(units) {
        *byte = unit;
    }
    sum(&mut bytes[512..1536], 36);
    fs::write(child, bytes).expect("written");
}

#[test]
fn a_parent_shows_through_where_that_is_allowed() {
    let room = tempdir().expect("a directory");
    let path = |name: &str| room.path().join(name);
    let (raw, base, child, back) = (
        path("raw"),
        path("base.vhd"),
        path("child.vhd"),
        path("back"),
    );
    sparse_image(&raw, SIZE);
    copy(&["-O", "vpc", "-o", "force_size=on", text(&raw), text(&base)]).success();
    let size = SIZE.to_string();
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "vpc",
        "-o",
        "force_size=on",
        text(&child),
        &size,
    ]);
    put_on_top(&child, &base, r"C:\Disks\base.vhd");
    copy(&[text(&child), text(&back)]).failure(1, &["--allow-backing DIR"]);
    let place = text(room.path());
    copy(&["--allow-backing", place, text(&child), text(&back)]).success();
    assert_same(&raw, &back);
    copy(&["-O", "vpc", "-o", "force_size=on", text(&raw), text(&base)]).success();
    let refused = copy(&["--allow-backing", place, text(&child), text(&back)]);
    refused.failure(1, &["it was replaced"]);
}
