//! Images in formats as sources and destinations of copies, each option of qemu-img's once, with qemu-img as judge.

use std::{fs, path::PathBuf};

use tempfile::{TempDir, tempdir};

use crate::support::{
    assert_same, blockferry,
    images::random_bytes,
    qemu::{assert_identical, check, convert, info, qemu_img, qemu_io, text},
    run, sparse_image,
};

/// A directory with a raw image of odd size that has data, holes, and zeroes that are written.
fn room() -> (TempDir, PathBuf) {
    let dir = tempdir().expect("a directory");
    let raw = dir.path().join("source.raw");
    sparse_image(&raw, (9 << 20) + 512);
    (dir, raw)
}

#[test]
fn every_option_of_the_format_makes_a_sound_image_of_the_same_contents() {
    let (dir, raw) = room();
    let made = dir.path().join("made.qcow2");
    let back = dir.path().join("back.raw");
    for options in [
        "",
        "cluster_size=512",
        "cluster_size=2M",
        "compat=0.10",
        "compat=v2,cluster_size=4k",
        "compat=v3",
        "extended_l2=on",
        "extended_l2=on,cluster_size=16k",
        "lazy_refcounts=on",
        "preallocation=metadata",
        "preallocation=falloc",
        "preallocation=full",
        "preallocation=metadata,extended_l2=on,cluster_size=128k",
        "refcount_bits=1",
        "refcount_bits=64,cluster_size=512",
        "data_file=@/data.raw",
        "data_file=@/data.raw,data_file_raw=on",
    ] {
        let options = &options.replace('@', text(dir.path()));
        let _ = fs::remove_file(&made);
        let _ = fs::remove_file(dir.path().join("data.raw"));
        let mut words = vec!["-O", "qcow2"];
        if !options.is_empty() {
            words.extend(["-o", options]);
        }
        words.extend([text(&raw), text(&made)]);
        convert(&words).success();
        check(&made);
        assert_identical((&raw, "raw"), (&made, "qcow2"));
        let _ = fs::remove_file(&back);
        let place = text(dir.path());
        convert(&["--allow-backing", place, text(&made), text(&back)]).success();
        assert_same(&raw, &back);
    }
}

#[test]
fn what_the_options_say_stands_in_the_header() {
    let (dir, raw) = room();
    let made = dir.path().join("made.qcow2");
    let facts = |options: &str| {
        let _ = fs::remove_file(&made);
        let words = ["-O", "qcow2", "-o", options, text(&raw), text(&made)];
        convert(&words).success();
        info(&made)
    };
    let specific =
        |facts: &serde_json::Value, key: &str| facts["format-specific"]["data"][key].clone();
    let old = facts("compat=0.10,cluster_size=128k");
    assert_eq!(specific(&old, "compat"), "0.10");
    assert_eq!(old["cluster-size"], 128 << 10);
    let new = facts("extended_l2=on,lazy_refcounts=on,refcount_bits=8");
    assert_eq!(specific(&new, "compat"), "1.1");
    assert_eq!(specific(&new, "extended-l2"), true);
    assert_eq!(specific(&new, "lazy-refcounts"), true);
    assert_eq!(specific(&new, "refcount-bits"), 8);
    let outside = facts("data_file=d.raw,data_file_raw=on");
    assert_eq!(specific(&outside, "data-file"), "d.raw");
    assert_eq!(specific(&outside, "data-file-raw"), true);
    // It can be read as the raw image that it is.
    assert_same(&raw, &dir.path().join("d.raw"));
    assert_eq!(new["virtual-size"], (9 << 20) + 512);
}

#[test]
fn compressed_images_are_read_by_qemu_and_are_the_same_each_time() {
    let (dir, raw) = room();
    let (one, other) = (dir.path().join("one.qcow2"), dir.path().join("other.qcow2"));
    for options in [
        "compression_type=zlib",
        "compression_level=9,compression_window=32k",
        "compression_type=zstd",
        "compression_type=zstd,compression_level=1,cluster_size=2M",
        "cluster_size=512",
        "compat=0.10,cluster_size=16k",
    ] {
        for (image, threads) in [(&one, "1"), (&other, "7")] {
            let _ = fs::remove_file(image);
            let words = ["-c", "-m", threads, "-O", "qcow2", "-o", options];
            convert(&[&words[..], &[text(&raw), text(image)]].concat()).success();
        }
        check(&one);
        assert_identical((&raw, "raw"), (&one, "qcow2"));
        assert_same(&one, &other);
    }
    let _ = fs::remove_file(&one);
    let words = ["-c", "-W", "-m", "5", "-O", "qcow2", text(&raw), text(&one)];
    convert(&words).success();
    check(&one);
    assert_identical((&raw, "raw"), (&one, "qcow2"));
}

#[test]
fn compression_takes_less_space() {
    let dir = tempdir().expect("a directory");
    let raw = dir.path().join("words.raw");
    let words = "it was the best of times, it was the worst of times; ".repeat(100_000);
    fs::write(&raw, &words.as_bytes()[..5 << 20]).expect("room");
    let size = |options: &[&str]| {
        let made = dir.path().join("made.qcow2");
        let _ = fs::remove_file(&made);
        convert(&[options, &["-O", "qcow2", text(&raw), text(&made)]].concat()).success();
        check(&made);
        assert_identical((&raw, "raw"), (&made, "qcow2"));
        made.metadata().expect("made").len()
    };
    assert!(size(&["-c"]) * 4 < size(&[]));
}

#[test]
fn formats_are_told_and_found_out() {
    let (dir, raw) = room();
    let image = dir.path().join("image");
    qemu_img(&["convert", "-O", "qcow2", text(&raw), text(&image)]);
    let out = |name: &str| dir.path().join(name);
    // Found out, told, and told otherwise.
    convert(&[text(&image), text(&out("a"))]).success();
    assert_same(&raw, &out("a"));
    convert(&["-f", "qcow2", text(&image), text(&out("b"))]).success();
    assert_same(&raw, &out("b"));
    convert(&["-f", "raw", text(&image), text(&out("c"))]).success();
    assert_same(&image, &out("c"));
    let refused = convert(&["-f", "qcow2", text(&raw), text(&out("d"))]);
    refused.failure(1, &["source.raw", "not a qcow2 image"]);
    assert!(!out("d").exists());

    let sum = |words: &[&str]| {
        let words = [&["checksum"], words, &[text(&image)]].concat();
        let said = run(&mut blockferry(words)).success();
        said.text().split(' ').next().map(str::to_owned)
    };
    let expected = run(&mut blockferry(["checksum", text(&raw)])).success();
    assert_eq!(sum(&[]).as_deref(), expected.text().split(' ').next());
    assert_ne!(sum(&[]), sum(&["-f", "raw"]));
    run(&mut blockferry(["compare", text(&image), text(&raw)])).success();
    let told = [
        "compare",
        "-f",
        "qcow2",
        "-F",
        "raw",
        text(&image),
        text(&raw),
    ];
    run(&mut blockferry(told)).success();
    run(&mut blockferry([
        "compare",
        "-f",
        "raw",
        text(&image),
        text(&raw),
    ]))
    .failure(1, &[]);
    let large = ["checksum", "--max-size", "1M", text(&image)];
    run(&mut blockferry(large)).failure(1, &["image"]);
}

#[test]
fn a_name_that_promises_a_format_is_warned_of() {
    let (dir, raw) = room();
    let made = dir.path().join("disk.qcow2");
    let said = convert(&[text(&raw), text(&made)]).success();
    assert!(
        said.stderr.contains("warning") && said.stderr.contains("-O qcow2"),
        "{}",
        said.stderr
    );
    assert_same(&raw, &made);
    let said = convert(&["-O", "raw", text(&raw), text(&made)]).success();
    assert!(!said.stderr.contains("warning"), "{}", said.stderr);
}

#[test]
fn the_options_are_listed_without_a_source() {
    let listed = convert(&["-O", "qcow2", "-o", "help"]).success();
    assert!(listed.text().starts_with("Options of qcow2"));
    for option in [
        "cluster_size",
        "compression_window",
        "data_file_raw",
        "refcount_bits",
    ] {
        assert!(listed.text().contains(option), "{option}");
    }
}

#[test]
fn a_snapshot_is_read_by_its_name_and_its_number() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.qcow2");
    qemu_img(&["create", "-f", "qcow2", text(&image), "4M"]);
    qemu_io(&image, "qcow2", &["write -P 1 0 1M"]);
    qemu_img(&["snapshot", "-c", "before", text(&image)]);
    qemu_io(&image, "qcow2", &["write -P 2 512k 3M"]);
    let theirs = dir.path().join("theirs.raw");
    qemu_img(&[
        "convert",
        "-l",
        "before",
        "-O",
        "raw",
        text(&image),
        text(&theirs),
    ]);
    for name in ["before", "1", "snapshot.name=before", "snapshot.id=1"] {
        let ours = dir.path().join("ours.raw");
        let _ = fs::remove_file(&ours);
        convert(&["-l", name, text(&image), text(&ours)]).success();
        assert_same(&theirs, &ours);
    }
    let none = dir.path().join("none.raw");
    for name in ["after", "snapshot.name=1", "snapshot.id=before"] {
        convert(&["-l", name, text(&image), text(&none)]).failure(1, &["image.qcow2", "snapshot"]);
    }
    convert(&["-l", "before", text(&theirs), text(&none)]).failure(1, &["theirs.raw", "snapshots"]);
    assert!(!none.exists());
}

#[test]
fn several_sources_become_one_disk() {
    let dir = tempdir().expect("a directory");
    let path = |name: &str| text(&dir.path().join(name)).to_owned();
    let (one, two, image) = (path("one.raw"), path("two.raw"), path("two.qcow2"));
    fs::write(&one, random_bytes(1 << 20, 3)).expect("room");
    sparse_image(two.as_ref(), 5 << 20);
    qemu_img(&["convert", "-O", "qcow2", &two, &image]);
    let made = path("made.qcow2");
    convert(&["-O", "qcow2", &one, &image, &one, &made]).success();
    check(made.as_ref());
    let whole = [&one, &two, &one].map(|part| fs::read(part).expect("read"));
    let joined = path("joined.raw");
    fs::write(&joined, whole.concat()).expect("room");
    assert_identical((joined.as_ref(), "raw"), (made.as_ref(), "qcow2"));
    // The format holds for all of them.
    let twice = path("twice.raw");
    convert(&["-f", "raw", &image, &image, &twice]).success();
    let length = |path: &str| fs::metadata(path).expect("a file").len();
    assert_eq!(length(&twice), 2 * length(&image));
    convert(&["-f", "raw", &one, &two, &two]).failure(1, &["same image"]);
    convert(&[&one, "-", &twice]).failure(2, &["a stream"]);
}

#[test]
fn short_options_do_what_they_do_in_qemu_img() {
    let (dir, raw) = room();
    let made = dir.path().join("made.raw");
    let words = [
        "-p",
        "-q",
        "-W",
        "-m",
        "3",
        "-r",
        "1G",
        "-S",
        "1536",
        text(&raw),
        text(&made),
    ];
    let refused = convert(&words);
    // -q silences progress but that for programs.
    refused.failure(2, &["--quiet"]);
    let words = [
        "-p",
        "-W",
        "-m",
        "3",
        "-r",
        "1G",
        "-S",
        "1536",
        text(&raw),
        text(&made),
    ];
    convert(&words).success();
    assert_same(&raw, &made);
    let whole = dir.path().join("whole.raw");
    convert(&["-S", "0", "--no-extents", text(&raw), text(&whole)]).success();
    assert_same(&raw, &whole);
}

#[test]
fn what_was_written_is_verified_and_its_digest_is_that_of_the_image() {
    let (dir, raw) = room();
    let expected = run(&mut blockferry(["checksum", text(&raw)])).success();
    let expected = expected
        .text()
        .split(' ')
        .next()
        .expect("a digest")
        .to_owned();
    for (index, options) in [
        &["-O", "qcow2"][..],
        &["-O", "qcow2", "-c"],
        &["-O", "qcow2", "-c", "-W"],
    ]
    .into_iter()
    .enumerate()
    {
        let made = dir.path().join(format!("made{index}.qcow2"));
        let words = [options, &["--verify", "--checksum", "--expect", &expected]].concat();
        let said = convert(&[&words[..], &[text(&raw), text(&made)]].concat()).success();
        assert!(said.text().contains(&expected), "{}", said.text());
        check(&made);
        assert_identical((&raw, "raw"), (&made, "qcow2"));
    }
    let wrong = dir.path().join("wrong.qcow2");
    let none = "0".repeat(64);
    let words = ["-O", "qcow2", "--expect", &none, text(&raw), text(&wrong)];
    convert(&words).failure(1, &["digest"]);
    assert!(!wrong.exists());
}
