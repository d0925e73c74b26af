//! Under the name qemu-img: overlays that are committed, beside the real tool.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::Path,
    process::{Command, Stdio},
};

use tempfile::tempdir;

use crate::{
    dropin_qemu_img::Twins,
    dropin_qemu_img_rebase::{both, in_place},
    support::{
        SmallDisk, allocated,
        dropin::{BOTH, Who, words},
        images::random_bytes,
        qemu::{assert_identical, check, info, qemu_img, qemu_io, text},
        run,
        run::{finish, signal, until},
    },
};

/// A base `base` in `format` with something in it.
fn base(dir: &Path, format: &str, options: &str, size: &str) {
    let path = dir.join("base");
    let _ = fs::remove_file(&path);
    let create = ["create", "-q", "-f", format];
    let options: &[&str] = if options.is_empty() {
        &[]
    } else {
        &["-o", options]
    };
    qemu_img(&[&create[..], options, &[text(&path), size]].concat());
    qemu_io(
        &path,
        format,
        &["write -P 1 0 300k", "write -P 2 500k 100k"],
    );
}

/// An overlay `name` of `behind` with something in it.
fn overlay(dir: &Path, name: &str, options: &str, (behind, format): (&str, &str), size: &str) {
    let path = dir.join(name);
    let create = [
        "create", "-q", "-u", "-f", "qcow2", "-b", behind, "-F", format,
    ];
    qemu_img(&[&create[..], &["-o", options, text(&path), size]].concat());
}

fn flattened(image: &Path, flat: &Path) {
    qemu_img(&[
        "convert",
        "-f",
        "qcow2",
        "-O",
        "raw",
        text(image),
        text(flat),
    ]);
}

#[test]
fn what_an_overlay_has_goes_into_its_backing_file() {
    let twins = Twins::new(|_| ());
    let bases = [
        ("raw", "", "1000k"),
        ("raw", "", "3M"),
        ("qcow2", "cluster_size=65536", "1000k"),
        ("qcow2", "cluster_size=512", "2M"),
        ("qcow2", "compat=0.10", "700k"),
        ("qcow2", "extended_l2=on", "2M"),
    ];
    let overlays = [
        "cluster_size=65536",
        "extended_l2=on,cluster_size=16384",
        "compat=0.10,cluster_size=4096",
        "cluster_size=512",
    ];
    for (number, (format, base_options, size)) in bases.into_iter().enumerate() {
        // Some of each, for time's sake.
        for options in overlays.into_iter().skip(number % 4).step_by(4) {
            let what = format!("{format}, {base_options}, {size}, {options}");
            let flat = twins.path(Who::Ours, "flat");
            for who in BOTH {
                let dir = twins.path(who, "");
                base(&dir, format, base_options, size);
                overlay(&dir, "top", options, ("base", format), "2M");
                let top = dir.join("top");
                let mut commands = vec![
                    "write -P 5 64k 128k",
                    "write -c -P 6 576k 64k",
                    "write -P 7 1900k 100500",
                    "write -P 8 290k 512",
                ];
                if !options.contains("0.10") {
                    commands.push("write -z 192k 70k");
                }
                qemu_io(&top, "qcow2", &commands);
                if who == Who::Ours {
                    flattened(&top, &flat);
                }
            }
            let [theirs, ours] = both(&twins, &["commit", "-f", "qcow2", "top"]);
            assert_eq!(ours.code, 0, "{what}: {}", ours.stderr);
            assert_eq!(ours.stdout, theirs.stdout, "{what}");
            assert_eq!(ours.stderr, "", "{what}");
            let [their_base, base] = BOTH.map(|who| twins.path(who, "base"));
            let top = twins.path(Who::Ours, "top");
            assert_identical((&top, "qcow2"), (&flat, "raw"));
            assert_identical((&base, format), (&their_base, format));
            check(&top);
            if format == "qcow2" {
                check(&base);
            }
            // It has nothing any more.
            let map = qemu_img(&["map", "--output=json", "-f", "qcow2", text(&top)]);
            assert!(!map.contains("\"depth\": 0"), "{what}: {map}");
            assert!(allocated(&top) < 300 << 10, "{what}");
        }
    }
}

#[test]
fn the_overlay_keeps_what_it_has_where_that_is_wanted() {
    let twins = Twins::new(|dir| {
        base(dir, "qcow2", "cluster_size=65536", "2M");
        overlay(dir, "top", "cluster_size=65536", ("base", "qcow2"), "2M");
        qemu_io(&dir.join("top"), "qcow2", &["write -P 5 64k 128k"]);
    });
    let top = twins.path(Who::Ours, "top");
    let before = fs::read(&top).expect("there");
    let [theirs, ours] = both(&twins, &["commit", "-d", "-r", "100M", "-t", "none", "top"]);
    assert_eq!(ours.stdout, theirs.stdout);
    assert!(fs::read(&top).expect("there") == before);
    assert_identical((&top, "qcow2"), (&twins.path(Who::Ours, "base"), "qcow2"));
    let [theirs, ours] = both(&twins, &["commit", "-q", "top"]);
    assert_eq!((theirs.text(), ours.text()), ("", ""));
    let [theirs, ours] = both(&twins, &["commit", "-p", "top"]);
    for outcome in [theirs, ours] {
        let text = outcome.text();
        assert!(text.starts_with("    (0.00/100%)\r"), "{text:?}");
        assert!(
            text.ends_with("    (100.00/100%)\r\nImage committed.\n"),
            "{text:?}"
        );
    }
}

/// A chain `base` <- `low` <- `mid` <- `top`, some of whose images end before others.
fn chain(dir: &Path) {
    base(dir, "raw", "", "2M");
    overlay(dir, "low", "cluster_size=4096", ("base", "raw"), "2M");
    overlay(dir, "mid", "cluster_size=65536", ("low", "qcow2"), "400k");
    overlay(dir, "top", "cluster_size=16384", ("mid", "qcow2"), "2500k");
    qemu_io(
        &dir.join("low"),
        "qcow2",
        &["write -P 3 200k 50k", "write -P 3 510k 20k"],
    );
    qemu_io(
        &dir.join("mid"),
        "qcow2",
        &["write -P 4 220k 10k", "write -z 64k 64k"],
    );
    qemu_io(
        &dir.join("top"),
        "qcow2",
        &["write -P 5 100k 20k", "write -P 5 2400k 50k"],
    );
}

#[test]
fn a_base_further_down_gets_what_all_above_it_have() {
    for (name, stays, format) in [
        ("base", &["low", "mid", "top"][..], "raw"),
        ("low", &["mid", "top", "base"], "qcow2"),
        ("mid", &["top", "low", "base"], "qcow2"),
    ] {
        let twins = Twins::new(chain);
        let flat = twins.path(Who::Ours, "flat");
        let dir = twins.path(Who::Ours, "");
        flattened(&dir.join("top"), &flat);
        let before = stays
            .iter()
            .map(|name| fs::read(dir.join(name)).expect("there"));
        let before: Vec<_> = before.collect();
        let [theirs, ours] = both(&twins, &["commit", "-b", name, "top"]);
        assert_eq!(ours.stdout, theirs.stdout);
        assert_eq!(ours.code, 0, "{name}: {}", ours.stderr);
        for (name, before) in stays.iter().zip(before) {
            assert!(fs::read(dir.join(name)).expect("there") == before, "{name}");
        }
        let [their_base, base] = BOTH.map(|who| twins.path(who, name));
        assert_identical((&base, format), (&flat, "raw"));
        assert_identical((&base, format), (&their_base, format));
        if format == "qcow2" {
            check(&base);
        }
    }
    // By its path, too.
    let twins = Twins::new(chain);
    let path = twins.path(Who::Ours, "low");
    let dir = twins.path(Who::Ours, "");
    let commit = ["commit", "-q", "-b", text(&path), "top"];
    run(&mut in_place(Who::Ours, &dir, &commit)).success();
}

#[test]
fn the_next_one_of_a_chain_is_what_gets_it() {
    let twins = Twins::new(chain);
    let dir = twins.path(Who::Ours, "");
    let flat = dir.join("flat");
    for name in ["top", "mid", "low"] {
        flattened(&dir.join(name), &flat);
        let [_, ours] = both(&twins, &["commit", name]);
        assert_eq!(ours.code, 0, "{name}: {}", ours.stderr);
        assert_identical((&dir.join(name), "qcow2"), (&flat, "raw"));
        check(&dir.join(name));
    }
    let [theirs, ours] = BOTH.map(|who| twins.path(who, "base"));
    assert_identical((&ours, "raw"), (&theirs, "raw"));
}

#[test]
fn snapshots_of_the_overlay_stay() {
    let dir = tempdir().expect("a directory");
    base(dir.path(), "raw", "", "2M");
    overlay(
        dir.path(),
        "top",
        "cluster_size=4096",
        ("base", "raw"),
        "2M",
    );
    let top = dir.path().join("top");
    qemu_io(&top, "qcow2", &["write -P 5 64k 128k"]);
    qemu_img(&["snapshot", "-c", "one", text(&top)]);
    qemu_io(&top, "qcow2", &["write -P 6 100k 128k"]);
    run(&mut in_place(Who::Ours, dir.path(), &["commit", "top"])).success();
    check(&top);
    qemu_img(&["snapshot", "-a", "one", text(&top)]);
    check(&top);
    let read = ["-r", "-c", "read -P 5 64k 128k", "-f", "qcow2", text(&top)];
    let read = run(Command::new("qemu-io").args(read));
    assert!(!read.text().contains("failed"), "{}", read.text());
}

#[test]
fn refusals_are_alike_and_change_nothing() {
    let twins = Twins::new(|dir| {
        chain(dir);
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            text(&dir.join("alone")),
            "1M",
        ]);
    });
    let dir = twins.path(Who::Ours, "");
    let read =
        || ["base", "low", "mid", "top"].map(|name| fs::read(dir.join(name)).expect("there"));
    let before = read();
    for (arguments, why) in [
        ("", "Expecting one image file name"),
        ("a b", "Expecting one image file name"),
        ("nofile", "Could not open 'nofile'"),
        ("alone", "Image does not have a backing file"),
        ("-f raw top", "Image does not have a backing file"),
        ("-t bogus top", "Invalid cache option: bogus"),
        ("-r bogus top", "Invalid rate limit specified: 'bogus'."),
        (
            "-b nofile top",
            "Did not find 'nofile' in the backing chain of 'top'",
        ),
        (
            "-b top top",
            "Did not find 'top' in the backing chain of 'top'",
        ),
        (
            "-b alone top",
            "Did not find 'alone' in the backing chain of 'top'",
        ),
    ] {
        let [_, ours] = both(&twins, &[&["commit"], &words(arguments)[..]].concat());
        ours.failure(1, &["qemu-img: ", why]);
    }
    let mut command = Who::Ours.tool("qemu-img", ["commit", "top"]);
    let command = command
        .current_dir(&dir)
        .env_remove("BLOCKFERRY_ALLOW_BACKING");
    run(command).failure(1, &["mid", "BLOCKFERRY_ALLOW_BACKING"]);
    assert!(read() == before);
    for who in BOTH {
        fs::remove_file(twins.path(who, "base")).expect("there");
    }
    let [_, ours] = both(&twins, &["commit", "low"]);
    ours.failure(1, &["Could not open 'low'", "No such file"]);
}

#[test]
fn a_full_disk_leaves_the_overlay_as_it_was() {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    for format in ["raw", "qcow2"] {
        let dir = tempdir().expect("a directory");
        let base = disk.path().join(format);
        qemu_img(&["create", "-q", "-f", format, text(&base), "16M"]);
        overlay(
            dir.path(),
            "top",
            "cluster_size=65536",
            (text(&base), format),
            "16M",
        );
        let top = dir.path().join("top");
        qemu_io(&top, "qcow2", &["write -P 5 1M 8M"]);
        let flat = dir.path().join("flat");
        flattened(&top, &flat);
        let before = fs::read(&top).expect("there");
        let mut command = in_place(Who::Ours, dir.path(), &["commit", "top"]);
        let command = command.env("BLOCKFERRY_ALLOW_BACKING", disk.path());
        run(command).failure(1, &["No space left on device"]);
        assert!(fs::read(&top).expect("there") == before);
        assert_identical((&top, "qcow2"), (&flat, "raw"));
        fs::remove_file(&base).expect("there");
    }
}

#[test]
fn who_interrupts_it_finds_the_overlay_as_it_was() {
    let dir = tempdir().expect("a directory");
    let source = dir.path().join("source");
    let file = fs::File::create(&source).expect("room");
    for part in 0..24 {
        let bytes = random_bytes(1 << 20, part + 1);
        file.write_all_at(&bytes, part << 20).expect("room");
    }
    base(dir.path(), "raw", "", "24M");
    let (base, top) = (dir.path().join("base"), dir.path().join("top"));
    let convert = ["convert", "-O", "qcow2", text(&source), text(&top)];
    qemu_img(&convert);
    qemu_img(&["rebase", "-u", "-b", "base", "-F", "raw", text(&top)]);
    let before = fs::read(&top).expect("there");
    let commit = ["commit", "-p", "-r", "4M", "top"];
    let mut command = in_place(Who::Ours, dir.path(), &commit);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = child.spawn().expect("it runs");
    until("something to be written", || allocated(&base) > 1 << 20);
    signal(&child, "INT");
    finish(child).failure(130, &["interrupted", "is what it was"]);
    assert!(fs::read(&top).expect("there") == before);
    assert_eq!(info(&top)["backing-filename"], "base");
    assert_identical((&top, "qcow2"), (&source, "raw"));
    run(&mut in_place(
        Who::Ours,
        dir.path(),
        &["commit", "-q", "top"],
    ))
    .success();
    assert_identical((&base, "raw"), (&source, "raw"));
}
