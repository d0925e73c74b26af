//! Destinations in a format at other places than a new file: images that are there, overlays, servers, pipes.

use std::{fs, os::unix::fs::MetadataExt, path::PathBuf, process::Command};

use tempfile::{TempDir, tempdir};

use crate::support::{
    Peer, assert_same, blockferry,
    images::random_bytes,
    qemu::{assert_identical, check, convert, info, qemu_img, qemu_io, text},
    run, sparse_image,
};

/// A directory with a raw image that has data and holes.
fn room() -> (TempDir, PathBuf) {
    let dir = tempdir().expect("a directory");
    let raw = dir.path().join("source.raw");
    sparse_image(&raw, 8 << 20);
    (dir, raw)
}

#[test]
fn an_image_that_is_there_is_written_and_keeps_the_rest() {
    let (dir, raw) = room();
    for options in [
        "cluster_size=64k",
        "extended_l2=on",
        "compat=0.10",
        "cluster_size=4k,preallocation=metadata",
    ] {
        let image = dir.path().join("image.qcow2");
        let _ = fs::remove_file(&image);
        qemu_img(&["create", "-f", "qcow2", "-o", options, text(&image), "12M"]);
        qemu_io(&image, "qcow2", &["write -P 7 0 12M"]);
        convert(&["-n", "-O", "qcow2", text(&raw), text(&image)]).success();
        check(&image);
        let mut expected = fs::read(&raw).expect("read");
        expected.resize(12 << 20, 7);
        let whole = dir.path().join("expected.raw");
        fs::write(&whole, expected).expect("room");
        assert_identical((&whole, "raw"), (&image, "qcow2"));
    }
    let small = dir.path().join("small.qcow2");
    qemu_img(&["create", "-f", "qcow2", text(&small), "4M"]);
    let before = fs::read(&small).expect("read");
    convert(&["-n", "-O", "qcow2", text(&raw), text(&small)]).failure(1, &["too small"]);
    check(&small);
    assert_eq!(fs::read(&small).expect("read").len(), before.len());
    let none = dir.path().join("none.qcow2");
    convert(&["-n", "-O", "qcow2", text(&raw), text(&none)]).failure(1, &["none.qcow2"]);
    convert(&["-n", text(&raw), text(&none)]).failure(1, &["none.qcow2"]);
    assert!(!none.exists());
    convert(&["-n", "-O", "qcow2", text(&raw), text(&raw)]).failure(1, &["same image"]);
}

#[test]
fn a_raw_file_that_is_there_keeps_its_size_and_its_end() {
    let (dir, raw) = room();
    let image = dir.path().join("image.raw");
    fs::write(&image, vec![9; 10 << 20]).expect("room");
    convert(&["-n", text(&raw), text(&image)]).success();
    let mut expected = fs::read(&raw).expect("read");
    expected.resize(10 << 20, 9);
    assert!(fs::read(&image).expect("read") == expected);
    fs::write(&image, vec![9; 1 << 20]).expect("room");
    convert(&["-n", text(&raw), text(&image)]).failure(1, &["too small"]);
    assert!(fs::read(&image).expect("read") == vec![9; 1 << 20]);
}

#[test]
fn an_overlay_has_only_what_differs_from_its_backing_file() {
    let (dir, raw) = room();
    let place = text(dir.path()).to_owned();
    let changed = dir.path().join("changed.raw");
    fs::copy(&raw, &changed).expect("copied");
    qemu_io(&changed, "raw", &["write -P 5 1M 64k", "write -z 0 128k"]);
    let base = dir.path().join("base.qcow2");
    qemu_img(&["convert", "-O", "qcow2", text(&raw), text(&base)]);
    for (backing, told, format) in [
        ("base.qcow2", Some("qcow2"), "qcow2"),
        ("base.qcow2", None, "qcow2"),
        ("source.raw", Some("raw"), "raw"),
        ("source.raw", None, "raw"),
    ] {
        let overlay = dir.path().join("overlay.qcow2");
        let _ = fs::remove_file(&overlay);
        let mut words = vec!["-O", "qcow2", "-b", backing];
        if let Some(format) = told {
            words.extend(["-F", format]);
        }
        convert(&[&words[..], &[text(&changed), text(&overlay)]].concat()).success();
        check(&overlay);
        let facts = info(&overlay);
        assert_eq!(facts["backing-filename"], backing);
        assert_eq!(facts["backing-filename-format"], format);
        assert_identical((&changed, "raw"), (&overlay, "qcow2"));
        let size = overlay.metadata().expect("made").blocks() * 512;
        assert!(size < 1 << 20, "{size} bytes");

        // Nobody follows it who was not told to.
        let back = dir.path().join("back.raw");
        convert(&[text(&overlay), text(&back)]).failure(1, &[backing, "--allow-backing"]);
        assert!(!back.exists());
        convert(&["--allow-backing", &place, text(&overlay), text(&back)]).success();
        assert_same(&changed, &back);
        fs::remove_file(back).expect("removed");
    }
    let itself = dir.path().join("overlay.qcow2");
    let words = [
        "-O",
        "qcow2",
        "-b",
        "overlay.qcow2",
        text(&changed),
        text(&itself),
    ];
    convert(&words).failure(1, &["its own backing file"]);
    let words = [
        "-O",
        "qcow2",
        "-b",
        "none.raw",
        text(&changed),
        text(&itself),
    ];
    convert(&words).failure(1, &["none.raw"]);
    check(&itself);
    let words = [
        "-O",
        "qcow2",
        "-b",
        "nbd:host:1",
        text(&changed),
        text(&itself),
    ];
    convert(&words).failure(1, &["protocol"]);
}

#[test]
fn a_data_file_is_never_one_of_the_images() {
    let (dir, raw) = room();
    let before = fs::read(&raw).expect("read");
    let made = dir.path().join("made.qcow2");
    for name in ["source.raw", "made.qcow2", "./source.raw"] {
        let option = format!("data_file={name}");
        let words = ["-O", "qcow2", "-o", &option, text(&raw), text(&made)];
        convert(&words).failure(1, &["a file of its own"]);
    }
    assert!(!made.exists());
    assert!(fs::read(&raw).expect("read") == before);
}

#[test]
fn a_data_file_is_nothing_behind_the_image() {
    let (dir, raw) = room();
    for (from, to, format) in [
        ("source.raw", "base.raw", "raw"),
        ("base.raw", "middle.qcow2", "qcow2"),
    ] {
        let [from, to] = [from, to].map(|name| dir.path().join(name));
        match format {
            "raw" => drop(fs::copy(from, to).expect("room")),
            _ => drop(qemu_img(&[
                "create",
                "-f",
                "qcow2",
                "-F",
                "raw",
                "-b",
                text(&from),
                text(&to),
            ])),
        }
    }
    let before = fs::read(dir.path().join("base.raw")).expect("read");
    let made = dir.path().join("made.qcow2");
    for (backing, format) in [("base.raw", "raw"), ("middle.qcow2", "qcow2")] {
        let option = format!("data_file=base.raw,backing_file={backing},backing_fmt={format}");
        let words = [
            "-O",
            "qcow2",
            "-o",
            &option,
            "--allow-backing",
            text(dir.path()),
        ];
        let words = [&words[..], &[text(&raw), text(&made)]].concat();
        convert(&words).failure(1, &["a file of its own"]);
    }
    // Nor behind the source.
    let words = [
        "-O",
        "qcow2",
        "-o",
        "data_file=base.raw",
        "--allow-backing",
        text(dir.path()),
    ];
    let overlay = dir.path().join("middle.qcow2");
    let words = [&words[..], &[text(&overlay), text(&made)]].concat();
    convert(&words).failure(1, &["one of the files behind it"]);
    assert!(!made.exists());
    assert!(fs::read(dir.path().join("base.raw")).expect("read") == before);
}

#[test]
fn an_image_is_never_written_over_its_own_backing_file() {
    let (dir, raw) = room();
    let overlay = dir.path().join("overlay.qcow2");
    let words = [
        "create",
        "-f",
        "qcow2",
        "-b",
        "source.raw",
        "-F",
        "raw",
        text(&overlay),
    ];
    qemu_img(&words);
    let before = fs::read(&raw).expect("read");
    let place = text(dir.path());
    let words = ["--allow-backing", place, text(&overlay), text(&raw)];
    convert(&words).failure(1, &["source.raw", "overlay.qcow2"]);
    assert!(fs::read(&raw).expect("read") == before);
}

#[test]
fn an_export_of_a_server_becomes_an_image() {
    let (dir, raw) = room();
    let target = dir.path().join("target");
    fs::write(&target, random_bytes(20 << 20, 5)).expect("room");
    let copy = dir.path().join("copy");
    let peer = Peer::qemu_nbd(dir.path(), "raw", &target, &[]);
    for flags in [
        &["-O", "qcow2"][..],
        &["-c", "-O", "qcow2"],
        &["-n", "-O", "qcow2"],
    ] {
        convert(&[flags, &[text(&raw), &peer.uri()]].concat()).success();
        // qemu does not look at what a server has open.
        fs::copy(&target, &copy).expect("room");
        check(&copy);
        assert_identical((&raw, "raw"), (&copy, "qcow2"));
        // And is read by its format where somebody says so.
        let back = dir.path().join("back.raw");
        let _ = fs::remove_file(&back);
        convert(&["-f", "qcow2", &peer.uri(), text(&back)]).success();
        assert_same(&raw, &back);
    }
    // What a server has is raw unless somebody says something else.
    let bytes = dir.path().join("bytes.raw");
    convert(&[&peer.uri(), text(&bytes)]).success();
    assert_same(&target, &bytes);
    // An image that does not fit leaves none.
    let large = dir.path().join("large.raw");
    fs::write(&large, random_bytes(21 << 20, 6)).expect("room");
    convert(&["-O", "qcow2", text(&large), &peer.uri()]).failure(1, &[]);
    drop(peer);
    let said = run(Command::new("qemu-img")
        .args(["info", "-f", "qcow2"])
        .arg(&target));
    assert_ne!(said.code, 0, "{}", said.text());
}

#[test]
fn an_image_is_streamed_to_a_pipe() {
    let (dir, raw) = room();
    for options in [
        &["-O", "qcow2"][..],
        &["-O", "qcow2", "-o", "cluster_size=4k,compat=0.10"],
    ] {
        let made = dir.path().join("made.qcow2");
        let words = [&["convert"], options, &[text(&raw), "-"]].concat();
        let streamed = run(&mut blockferry(words)).success();
        fs::write(&made, &streamed.stdout).expect("room");
        check(&made);
        assert_identical((&raw, "raw"), (&made, "qcow2"));
    }
    for (words, part) in [
        (&["-c", "-O", "qcow2", text(&raw), "-"][..], "compressed"),
        (&["-O", "qcow2", "--checksum", text(&raw), "-"], "digest"),
        (
            &["-O", "qcow2", "-o", "data_file=/x", text(&raw), "-"],
            "data file",
        ),
    ] {
        let said = run(&mut blockferry([&["convert"], words].concat()));
        assert!(said.code == 1 || said.code == 2, "{}", said.stderr);
        assert!(said.stderr.contains(part), "{}", said.stderr);
        assert!(said.stdout.is_empty());
    }
    let script = "cat \"$1\" | \"$0\" convert -O qcow2 - - | cat; exit ${PIPESTATUS[1]}";
    run(Command::new("bash")
        .args(["-c", script, env!("CARGO_BIN_EXE_blockferry")])
        .arg(&raw))
    .failure(1, &["a stream cannot be streamed"]);
}

#[test]
fn a_stream_becomes_an_image() {
    let (dir, raw) = room();
    for flags in [&["-O", "qcow2"][..], &["-c", "-O", "qcow2"]] {
        let made = dir.path().join("made.qcow2");
        let _ = fs::remove_file(&made);
        let script = format!("cat \"$1\" | \"$0\" convert {} - \"$2\"", flags.join(" "));
        run(Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_blockferry")])
            .args([&raw, &made]))
        .success();
        check(&made);
        assert_identical((&raw, "raw"), (&made, "qcow2"));
    }
}

#[test]
fn a_file_that_is_there_becomes_an_image() {
    let (dir, raw) = room();
    let made = dir.path().join("made.qcow2");
    // One that is larger than what it becomes, and looks like an image.
    qemu_img(&[
        "create",
        "-f",
        "qcow2",
        "-o",
        "preallocation=full",
        text(&made),
        "30M",
    ]);
    convert(&["-O", "qcow2", text(&raw), text(&made)]).success();
    check(&made);
    assert_identical((&raw, "raw"), (&made, "qcow2"));
    assert!(made.metadata().expect("made").len() < 12 << 20);
}

#[test]
fn a_data_file_is_not_written_where_the_format_was_only_guessed() {
    let (dir, raw) = room();
    let place = text(dir.path());
    let image = dir.path().join("image.qcow2");
    let option = format!("data_file={place}/data");
    convert(&["-O", "qcow2", "-o", &option, text(&raw), text(&image)]).success();
    let serve = |more: &[&str], command: &str| {
        let words = [
            "serve",
            "--allow-backing",
            place,
            text(&image),
            "--run",
            command,
        ];
        run(&mut blockferry([&words[..], more].concat()))
    };
    let write = "qemu-io -f raw -c 'write -P 9 0 4k' \"$uri\"";
    serve(&[], write).failure(1, &["data", "guessed", "-f"]);
    // Another probe, for what a filter unwraps.
    serve(&["--filter", "tar:disk"], write).failure(1, &["data", "guessed", "-f"]);
    check(&image);
    serve(&["--read-only"], "true").success();
    serve(&["-f", "qcow2"], write).success();
    let written = fs::read(dir.path().join("data")).expect("read");
    assert!(written[..4096].iter().all(|byte| *byte == 9));
    check(&image);
}

#[test]
fn an_image_that_was_not_closed_is_mended_before_it_is_written() {
    let (dir, raw) = room();
    let image = dir.path().join("image.qcow2");
    convert(&[
        "-O",
        "qcow2",
        "-o",
        "lazy_refcounts=on",
        text(&raw),
        text(&image),
    ])
    .success();
    let mut bytes = fs::read(&image).expect("read");
    bytes[79] |= 1;
    fs::write(&image, &bytes).expect("written");
    convert(&["-n", "-O", "qcow2", text(&raw), text(&image)]).success();
    check(&image);
    assert_identical((&raw, "raw"), (&image, "qcow2"));
    assert_eq!(
        fs::read(&image).expect("read")[79] & 1,
        0,
        "it is not dirty any more"
    );
}
