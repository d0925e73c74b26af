//! Under the name qemu-img: other backing files for images, beside the real tool.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::tempdir;

use crate::{
    dropin_qemu_img::Twins,
    support::{
        Outcome, SmallDisk, allocated,
        dropin::{BOTH, Who, words},
        images::random_bytes,
        qemu::{assert_identical, check, info, qemu_img, qemu_io, text},
        run,
        run::{finish, signal, until},
    },
};

/// A command of `qemu-img` in `directory`, where backing files may be opened.
pub(crate) fn in_place(who: Who, directory: &Path, arguments: &[&str]) -> Command {
    let mut command = who.tool("qemu-img", arguments);
    command.current_dir(directory);
    command.env("BLOCKFERRY_ALLOW_BACKING", directory);
    command
}

/// What both do, who must end alike.
pub(crate) fn both(twins: &Twins, arguments: &[&str]) -> [Outcome; 2] {
    let outcomes = BOTH.map(|who| run(&mut in_place(who, &twins.path(who, ""), arguments)));
    let [theirs, ours] = &outcomes;
    let shown = format!("{arguments:?}: theirs {theirs:?}, ours {ours:?}");
    assert_eq!(ours.code, theirs.code, "{shown}");
    outcomes
}

/// A raw file of `length` bytes, a part of which is what all of them have.
fn raw(path: &Path, length: usize, seed: u64) {
    let mut bytes = random_bytes(length, 1);
    for (number, piece) in bytes.chunks_mut(50_000).enumerate() {
        match (number as u64 + seed) % 5 {
            0 => piece.fill(0),
            1 => piece.reverse(),
            _ => {}
        }
    }
    fs::write(path, bytes).expect("room");
}

/// Backing files of all kinds: raw ones of several lengths, and a chain `old.raw` <- `mid.qcow2` <- `old.qcow2`.
fn backing_files(dir: &Path) {
    raw(&dir.join("old.raw"), 1_500_000, 0);
    raw(&dir.join("same.raw"), 1_500_000, 0);
    raw(&dir.join("other.raw"), 1_500_001, 2);
    raw(&dir.join("short.raw"), 300_300, 3);
    raw(&dir.join("long.raw"), 2_600_000, 3);
    let overlay = |name: &str, behind: &str, format: &str, size: &str| {
        let path = dir.join(name);
        let create = ["create", "-q", "-f", "qcow2", "-b", behind, "-F", format];
        qemu_img(&[&create[..], &["-u", text(&path), size]].concat());
        path
    };
    // Shorter than what is behind it.
    let mid = overlay("mid.qcow2", "old.raw", "raw", "1200k");
    qemu_io(&mid, "qcow2", &["write -P 3 300k 200k"]);
    let old = overlay("old.qcow2", "mid.qcow2", "qcow2", "1700k");
    qemu_io(&old, "qcow2", &["write -P 4 450k 100k", "write -z 64k 64k"]);
    let other = overlay("other.qcow2", "other.raw", "raw", "1M");
    qemu_io(&other, "qcow2", &["write -P 5 100k 100k"]);
}

/// An overlay `overlay.qcow2` with something in it.
fn overlay(dir: &Path, options: &str, behind: &str, format: &str) -> PathBuf {
    let path = dir.join("overlay.qcow2");
    let create = [
        "create", "-q", "-f", "qcow2", "-b", behind, "-F", format, "-u",
    ];
    qemu_img(&[&create[..], &["-o", options, text(&path), "2000k"]].concat());
    let mut commands = vec!["write -P 6 200k 70k", "write -P 7 1400k 200k"];
    if !options.contains("compat=0.10") {
        commands.push("write -z 600k 130k");
    }
    qemu_io(&path, "qcow2", &commands);
    path
}

#[test]
fn the_disk_stays_what_it_is_whatever_comes_behind_it() {
    let twins = Twins::new(backing_files);
    let news = [
        ("same.raw", "raw"),
        ("other.raw", "raw"),
        ("short.raw", "raw"),
        ("long.raw", "raw"),
        ("other.qcow2", "qcow2"),
        ("", ""),
    ];
    let images = [
        ("cluster_size=65536", "old.raw", "raw"),
        ("cluster_size=512", "old.qcow2", "qcow2"),
        ("extended_l2=on", "old.qcow2", "qcow2"),
        ("compat=0.10,cluster_size=4096", "old.raw", "raw"),
    ];
    for (number, (options, behind, format)) in images.into_iter().enumerate() {
        // Some of each, for time's sake: others try all with all.
        for (new, kind) in news.into_iter().skip(number).step_by(3) {
            let what = format!("{options}, {behind} to {new:?}");
            let flat = twins.path(Who::Ours, "flat");
            for who in BOTH {
                let image = overlay(&twins.path(who, ""), options, behind, format);
                if who == Who::Ours {
                    qemu_img(&["convert", "-O", "raw", text(&image), text(&flat)]);
                }
            }
            let mut arguments = vec!["rebase", "-f", "qcow2", "-b", new];
            if !new.is_empty() {
                arguments.extend(["-F", kind]);
            }
            arguments.push("overlay.qcow2");
            let [_, ours] = both(&twins, &arguments);
            assert_eq!(ours.code, 0, "{what}: {}", ours.stderr);
            assert_eq!((ours.text(), &*ours.stderr), ("", ""), "{what}");
            let [theirs, ours] = BOTH.map(|who| twins.path(who, "overlay.qcow2"));
            assert_identical((&ours, "qcow2"), (&flat, "raw"));
            check(&ours);
            let said = |path: &Path, key: &str| info(path)[key].clone();
            for key in [
                "backing-filename",
                "backing-filename-format",
                "virtual-size",
            ] {
                assert_eq!(said(&ours, key), said(&theirs, key), "{what}: {key}");
            }
            // And ours reads what theirs has made.
            let compare = ["compare", "-q", "-F", "raw", text(&theirs), text(&flat)];
            let theirs_dir = twins.path(Who::Theirs, "");
            let compared = run(&mut in_place(Who::Ours, &theirs_dir, &compare));
            assert_eq!(compared.code, 0, "{what}: {}", compared.stderr);
        }
    }
}

#[test]
fn in_one_chain_only_what_lies_between_is_written() {
    let twins = Twins::new(backing_files);
    for (new, kind, most) in [
        ("old.qcow2", "qcow2", 0),
        ("mid.qcow2", "qcow2", 900 << 10),
        ("old.raw", "raw", 1100 << 10),
    ] {
        let dir = twins.path(Who::Ours, "");
        let flat = dir.join("flat");
        let [_, image] = BOTH.map(|who| {
            let dir = twins.path(who, "");
            overlay(&dir, "cluster_size=65536", "old.qcow2", "qcow2")
        });
        let before = allocated(&image);
        qemu_img(&["convert", "-O", "raw", text(&image), text(&flat)]);
        both(&twins, &["rebase", "-b", new, "-F", kind, "overlay.qcow2"]);
        assert_identical((&image, "qcow2"), (&flat, "raw"));
        check(&image);
        let written = allocated(&image).saturating_sub(before);
        assert!(written <= most, "{new}: {written}");
    }
}

#[test]
fn names_alone_change_in_unsafe_mode() {
    let twins = Twins::new(backing_files);
    for options in ["cluster_size=512", "cluster_size=65536", "compat=0.10"] {
        let images = BOTH.map(|who| overlay(&twins.path(who, ""), options, "old.raw", "raw"));
        let before = images.clone().map(|image| allocated(&image));
        let long = "l".repeat(300);
        for arguments in [
            &["-b", "not there.qcow2", "-F", "qcow2"][..],
            &["-b", &long, "-F", "raw"],
            &["-b", "nbd://host/export", "-F", "raw"],
            &["-b", "other.raw", "-F", "vmdk", "-c"],
            &["-b", "other.raw", "-F", "luks"],
            &["-b", "", "-F", "raw"],
            &[
                "-b", "x", "-F", "raw", "-U", "-p", "-t", "none", "-T", "none",
            ],
            &["-q"],
            &["-b", "old.raw", "-F", "raw"],
        ] {
            let words = [&["rebase", "-u"], arguments, &["overlay.qcow2"]].concat();
            let [theirs, ours] = both(&twins, &words);
            assert_eq!(ours.code, 0, "{words:?}: {}", ours.stderr);
            assert_eq!(ours.stdout, theirs.stdout, "{words:?}");
            let said = BOTH.map(|who| {
                let words = [
                    "info",
                    "-U",
                    "--output=json",
                    "-f",
                    "qcow2",
                    "overlay.qcow2",
                ];
                let said = run(&mut in_place(Who::Theirs, &twins.path(who, ""), &words));
                let said: serde_json::Value = serde_json::from_slice(&said.stdout).expect("JSON");
                (
                    said["backing-filename"].clone(),
                    said["backing-filename-format"].clone(),
                )
            });
            assert_eq!(said[0], said[1], "{words:?}");
        }
        assert_eq!(images.each_ref().map(|image| allocated(image)), before);
        assert_identical((&images[1], "qcow2"), (&images[0], "qcow2"));
        check(&images[1]);
    }
}

#[test]
fn refusals_are_alike_and_change_nothing() {
    let twins = Twins::new(|dir| {
        backing_files(dir);
        overlay(dir, "cluster_size=512", "old.raw", "raw");
        let raw = dir.join("raw.qcow2");
        let file = format!("data_file={},data_file_raw=on", text(&dir.join("data")));
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", &file, text(&raw), "1M"]);
    });
    let before = fs::read(twins.path(Who::Ours, "overlay.qcow2")).expect("there");
    let (longer, longest) = ("l".repeat(500), "l".repeat(1024));
    for (arguments, why) in [
        (&["overlay.qcow2"][..], "Must specify backing file (-b)"),
        (&["-b", "x"], "Expecting one image file name"),
        (&["-b", "x", "a", "b"], "Expecting one image file name"),
        (
            &["-b", "other.raw", "overlay.qcow2"],
            "backing format must be specified",
        ),
        (
            &["-u", "-b", "other.raw", "overlay.qcow2"],
            "backing format must be specified",
        ),
        (
            &["-b", "x", "-F", "bogus", "overlay.qcow2"],
            "Invalid format name: 'bogus'",
        ),
        (
            &["-b", "x", "-F", "raw", "overlay.qcow2"],
            "Could not open new backing file 'x'",
        ),
        (
            &["-b", "other.raw", "-F", "qcow2", "overlay.qcow2"],
            "Could not open new backing file",
        ),
        (
            &["-b", "x", "-t", "bogus", "overlay.qcow2"],
            "Invalid cache option: bogus",
        ),
        (
            &["-b", "x", "-T", "bogus", "overlay.qcow2"],
            "Invalid source cache option: bogus",
        ),
        (
            &["-b", "x", "-F", "raw", "nofile"],
            "Could not open 'nofile'",
        ),
        (
            &["-u", "-b", "x", "-F", "raw", "-f", "raw", "overlay.qcow2"],
            "Could not change the backing file to 'x'",
        ),
        (
            &["-b", "old.raw", "-F", "raw", "-f", "raw", "overlay.qcow2"],
            "Could not change the backing file to 'old.raw'",
        ),
        (
            &["-u", "-b", "x", "-F", "raw", "raw.qcow2"],
            "Could not change the backing file to 'x'",
        ),
        (
            &["-u", "-b", &longer, "-F", "raw", "overlay.qcow2"],
            "too long",
        ),
        (
            &["-u", "-b", &longest, "-F", "raw", "overlay.qcow2"],
            "too long",
        ),
        (
            &["-b", "overlay.qcow2", "-F", "qcow2", "overlay.qcow2"],
            "its own backing file",
        ),
    ] {
        let [_, ours] = both(&twins, &[&["rebase"], arguments].concat());
        ours.failure(1, &["qemu-img: ", why]);
    }
    let dir = twins.path(Who::Ours, "");
    let ours = |arguments: &str| {
        let mut command = Who::Ours.tool("qemu-img", words(arguments));
        run(command
            .current_dir(&dir)
            .env_remove("BLOCKFERRY_ALLOW_BACKING"))
    };
    // Nobody has allowed the old one, and it is not needed where it is not looked at.
    ours("rebase -b other.raw -F raw overlay.qcow2").failure(1, &["BLOCKFERRY_ALLOW_BACKING"]);
    assert!(fs::read(dir.join("overlay.qcow2")).expect("there") == before);
    ours("rebase -u -b gone -F raw overlay.qcow2").success();
    let [_, missing] = both(&twins, &["rebase", "-b", "", "raw.qcow2"]);
    assert_eq!(missing.code, 0, "{}", missing.stderr);
    let mut command = in_place(Who::Ours, &dir, &["rebase", "-b", "", "overlay.qcow2"]);
    run(&mut command).failure(
        1,
        &["Could not open 'overlay.qcow2'", "No such file", "gone"],
    );
}

#[test]
fn progress_is_shown_as_theirs() {
    let twins = Twins::new(|dir| {
        backing_files(dir);
        overlay(dir, "cluster_size=65536", "old.raw", "raw");
    });
    let rebase = [
        "rebase",
        "-p",
        "-b",
        "other.raw",
        "-F",
        "raw",
        "overlay.qcow2",
    ];
    let [theirs, ours] = both(&twins, &rebase);
    for outcome in [theirs, ours] {
        let text = outcome.text();
        assert!(text.starts_with("    (0.00/100%)\r"), "{text:?}");
        assert!(text.ends_with("    (100.00/100%)\r\n"), "{text:?}");
    }
    let rebase = [
        "rebase",
        "-q",
        "-p",
        "-b",
        "old.raw",
        "-F",
        "raw",
        "overlay.qcow2",
    ];
    let [theirs, ours] = both(&twins, &rebase);
    assert_eq!((theirs.text(), ours.text()), ("", ""));
}

#[test]
fn snapshots_and_compressed_clusters_stay() {
    let dir = tempdir().expect("a directory");
    backing_files(dir.path());
    let image = overlay(dir.path(), "cluster_size=4096", "old.raw", "raw");
    qemu_io(&image, "qcow2", &["write -c -P 9 1000k 64k"]);
    qemu_img(&["snapshot", "-c", "one", text(&image)]);
    qemu_io(&image, "qcow2", &["write -P 8 1010k 30k"]);
    let flat = dir.path().join("flat");
    qemu_img(&["convert", "-O", "raw", text(&image), text(&flat)]);
    let rebase = ["rebase", "-b", "other.raw", "-F", "raw", "overlay.qcow2"];
    run(&mut in_place(Who::Ours, dir.path(), &rebase)).success();
    assert_identical((&image, "qcow2"), (&flat, "raw"));
    check(&image);
    qemu_img(&["snapshot", "-a", "one", text(&image)]);
    check(&image);
    let read = [
        "-r",
        "-c",
        "read -P 9 1000k 64k",
        "-f",
        "qcow2",
        text(&image),
    ];
    let read = run(Command::new("qemu-io").args(read));
    assert!(!read.text().contains("failed"), "{}", read.text());
}

#[test]
fn what_is_written_is_compressed_where_that_is_wanted() {
    let dir = tempdir().expect("a directory");
    let words = "what compresses well. ".repeat(60_000);
    fs::write(dir.path().join("old.raw"), &words[..1_300_000]).expect("room");
    raw(&dir.path().join("other.raw"), 1_500_001, 2);
    let flat = dir.path().join("flat");
    for options in [
        "cluster_size=65536",
        "cluster_size=512",
        "compression_type=zstd",
        "extended_l2=on",
        "compat=0.10",
        "refcount_bits=1",
    ] {
        let image = overlay(dir.path(), options, "old.raw", "raw");
        qemu_img(&["convert", "-O", "raw", text(&image), text(&flat)]);
        let before = allocated(&image);
        let rebase = ["rebase", "-c", "-b", "other.raw", "-F", "raw"];
        let rebase = [&rebase[..], &["overlay.qcow2"]].concat();
        // Theirs fails an assertion where a cluster is there in part.
        run(&mut in_place(Who::Ours, dir.path(), &rebase)).success();
        assert_identical((&image, "qcow2"), (&flat, "raw"));
        check(&image);
        if !options.contains("=512") && !options.contains("bits") {
            let written = allocated(&image).saturating_sub(before);
            assert!(written < 400 << 10, "{options}: {written}");
        }
        // It can be written afterwards.
        qemu_io(&image, "qcow2", &["write -P 9 0 1900k"]);
        check(&image);
    }
}

#[test]
fn a_full_disk_leaves_the_old_backing_file() {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    let dir = tempdir().expect("a directory");
    raw(&dir.path().join("old.raw"), 8 << 20, 0);
    let image = disk.path().join("image.qcow2");
    let old = dir.path().join("old.raw");
    let create = ["create", "-q", "-f", "qcow2", "-b", text(&old), "-F", "raw"];
    qemu_img(&[&create[..], &[text(&image)]].concat());
    let rebase = ["rebase", "-b", "", text(&image)];
    run(&mut in_place(Who::Ours, dir.path(), &rebase)).failure(1, &["No space left on device"]);
    assert_identical((&image, "qcow2"), (&old, "raw"));
    assert_eq!(info(&image)["backing-filename"], text(&old));
    check(&image);
    assert!(allocated(&image) < 1 << 20, "the space came back");
}

#[test]
fn who_interrupts_it_finds_the_old_backing_file() {
    let dir = tempdir().expect("a directory");
    let old = dir.path().join("old.raw");
    let file = fs::File::create(&old).expect("room");
    file.set_len(4 << 30).expect("room for holes");
    for part in 0..64 {
        let bytes = random_bytes(1 << 20, part + 1);
        file.write_all_at(&bytes, part * (64 << 20)).expect("room");
    }
    let image = dir.path().join("image.qcow2");
    let create = ["create", "-q", "-f", "qcow2", "-b", "old.raw", "-F", "raw"];
    qemu_img(&[&create[..], &["-u", text(&image), "4G"]].concat());
    let rebase = ["rebase", "-p", "-b", "", "image.qcow2"];
    let mut command = in_place(Who::Ours, dir.path(), &rebase);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = child.spawn().expect("it runs");
    until("something to be written", || allocated(&image) > 2 << 20);
    signal(&child, "INT");
    finish(child).failure(130, &["interrupted", "the backing file that it had"]);
    assert_eq!(info(&image)["backing-filename"], "old.raw");
    check(&image);
    let compare = ["compare", "-F", "raw", "image.qcow2", "old.raw"];
    run(&mut in_place(Who::Ours, dir.path(), &compare)).success();
}
