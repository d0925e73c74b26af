//! Conversions that fail: wrong words, sources that cannot be read, disks that are full, people who lose patience.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use tempfile::tempdir;

use crate::support::{
    Peer, SmallDisk, blockferry,
    images::random_bytes,
    qemu::{assert_identical, check, convert, qemu_img, text},
    random_image, run,
    run::{finish, signal, until_it_writes},
};

/// What is in a directory, by name.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<_> = names
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Whether qemu takes a file for an image.
fn is_image(path: &Path) -> bool {
    let words = ["info", "-f", "qcow2", text(path)];
    run(Command::new("qemu-img").args(words)).code == 0
}

#[test]
fn wrong_words_are_refused_before_anything_is_touched() {
    let dir = tempdir().expect("a directory");
    let made = dir.path().join("made");
    let made = text(&made);
    for (words, part) in [
        (&["-O", "qed"][..], "raw, qcow2"),
        (&["-f", "luks"], "raw, qcow2"),
        (&["-c"], "-O qcow2"),
        (&["-o", "cluster_size=4k"], "-O qcow2"),
        (&["-O", "qcow2", "-o", "clustersize=4k"], "cluster_size"),
        (&["-O", "qcow2", "-o", "size=1G"], "the size of the source"),
        (&["-O", "qcow2", "-o", "cluster_size=3k"], "power of two"),
        (&["-O", "qcow2", "-n", "-c"], "--no-create"),
        (&["-O", "qcow2", "-n", "-b", "x"], "--no-create"),
        (&["-O", "qcow2", "--checkpoint", "x"], "--checkpoint"),
        (
            &["-O", "qcow2", "--bitmaps", "-f", "raw"],
            "qcow2 on both sides",
        ),
        (&["-S", "100"], "multiple of 512"),
        (&["-m", "0"], "from 1 to 1024"),
        (&["-F", "raw"], "--backing"),
        (&["--skip-broken-bitmaps"], "--bitmaps"),
        (&["-l", "x", "-f", "raw"], "raw"),
    ] {
        let said = convert(&[words, &["memory:1M", made]].concat());
        said.failure(2, &[part]);
    }
    assert!(names(dir.path()).is_empty());
}

#[test]
fn salvage_keeps_what_can_be_read_and_names_what_cannot() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    fs::write(&image, vec![1; 1 << 20]).expect("room");
    // Reads that touch two places fail: a sector, and some behind it.
    let script = format!(
        "case $1 in get_size) echo 1M;; pread) s=$4; e=$(($4+$3)); \
         for bad in 131072:131584 655360:657408; do b=${{bad%:*}}; f=${{bad#*:}}; \
         if [ $s -lt $f ] && [ $e -gt $b ]; then echo EIO bad sector >&2; exit 1; fi; done; \
         dd if={} bs=512 skip=$(($4/512)) count=$(($3/512)) 2>/dev/null;; \
         can_extents) exit 3;; *) exit 2;; esac",
        image.display()
    );
    let plugin = dir.path().join("plugin.sh");
    fs::write(&plugin, format!("#!/bin/sh\n{script}\n")).expect("room");
    Command::new("chmod")
        .arg("+x")
        .arg(&plugin)
        .status()
        .expect("chmod");
    let peer = Peer::nbdkit(dir.path(), &["sh", text(&plugin)]);

    let made = dir.path().join("made.raw");
    convert(&[&peer.uri(), text(&made)]).failure(1, &["the server says EIO"]);
    assert!(!made.exists());

    let mut expected = vec![1; 1 << 20];
    expected[131_072..131_584].fill(0);
    expected[655_360..657_408].fill(0);
    let whole = dir.path().join("expected.raw");
    fs::write(&whole, &expected).expect("room");
    for flags in [
        &["--salvage"][..],
        &["--filter", "salvage"],
        &["--salvage", "-O", "qcow2"],
    ] {
        let _ = fs::remove_file(&made);
        let said = convert(&[flags, &[&peer.uri(), text(&made)]].concat()).success();
        for part in [
            "512 bytes at offset 131072",
            "2048 bytes at offset 655360",
            "lost places 2, lost bytes 2560",
        ] {
            assert!(said.stderr.contains(part), "{part}: {}", said.stderr);
        }
        let format = if flags.contains(&"qcow2") {
            "qcow2"
        } else {
            "raw"
        };
        assert_identical((&whole, "raw"), (&made, format));
    }
}

#[test]
fn what_is_lost_of_a_connection_is_not_salvaged_away() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    random_image(&image, 8 << 20);
    let file = format!("file={}", image.display());
    let mut peer = Peer::nbdkit(
        dir.path(),
        &["--filter=delay", "file", &file, "rdelay=50ms"],
    );
    let made = dir.path().join("made.raw");
    let uri = peer.uri();
    let child = blockferry([
        "convert",
        "--salvage",
        "--retries=0",
        "-R",
        "1",
        "-C",
        "1",
        &uri,
    ])
    .arg(&made)
    .stderr(Stdio::piped())
    .stdout(Stdio::piped())
    .spawn()
    .expect("the binary");
    until_it_writes(&child, dir.path());
    peer.kill();
    // It was closed, or reset where the server had not read everything, or had nobody to write to.
    finish(child).failure(75, &["nbdkit.sock", "this may pass"]);
    assert!(!made.exists());
}

#[test]
fn an_interrupted_conversion_leaves_nothing() {
    for flags in [
        &["-O", "qcow2"][..],
        &["-c", "-O", "qcow2"],
        &["-O", "qcow2", "-o", "data_file=data.raw"],
    ] {
        let dir = tempdir().expect("a directory");
        let image = dir.path().join("image.raw");
        random_image(&image, 64 << 20);
        let file = format!("file={}", image.display());
        let peer = Peer::nbdkit(
            dir.path(),
            &["--filter=delay", "file", &file, "rdelay=20ms"],
        );
        let room = dir.path().join("room");
        fs::create_dir(&room).expect("a directory");
        let child = blockferry(["convert", "-R", "1"])
            .args(flags)
            .arg(peer.uri())
            .arg(room.join("made.qcow2"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary");
        until_it_writes(&child, &room);
        signal(&child, "INT");
        finish(child).failure(130, &["made.qcow2"]);
        assert!(names(&room).is_empty(), "{:?}", names(&room));
    }
}

#[test]
fn an_interrupted_conversion_onto_a_file_leaves_no_image() {
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    random_image(&image, 64 << 20);
    let file = format!("file={}", image.display());
    let peer = Peer::nbdkit(
        dir.path(),
        &["--filter=delay", "file", &file, "rdelay=20ms"],
    );
    let room = dir.path().join("room");
    fs::create_dir(&room).expect("a directory");
    let made = room.join("made.qcow2");
    qemu_img(&["create", "-f", "qcow2", text(&made), "1G"]);
    let before = fs::read(&made).expect("read");
    let child = blockferry(["convert", "-R", "1", "-O", "qcow2", &peer.uri()])
        .arg(&made)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary");
    crate::support::run::until("the copy to begin", || {
        fs::read(&made).is_ok_and(|now| now != before && now.len() > 1 << 20)
    });
    signal(&child, "INT");
    finish(child).failure(130, &["incomplete"]);
    assert!(!is_image(&made));
}

#[test]
fn a_full_disk_leaves_no_image_and_nothing_behind() {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    let dir = tempdir().expect("a directory");
    let image = dir.path().join("image.raw");
    fs::write(&image, random_bytes(8 << 20, 1)).expect("room");
    let made = disk.path().join("made.qcow2");
    for flags in [
        &["-O", "qcow2"][..],
        &["-c", "-O", "qcow2"],
        &["-c", "-W", "-O", "qcow2"],
    ] {
        convert(&[flags, &[text(&image), text(&made)]].concat())
            .failure(1, &["made.qcow2", "free"]);
        assert!(names(disk.path()).is_empty());
        // From a pipe nobody knows before.
        let script = format!("cat \"$1\" | \"$0\" convert {} - \"$2\"", flags.join(" "));
        run(Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_blockferry")])
            .args([&image, &made]))
        .failure(1, &["made.qcow2"]);
        assert!(names(disk.path()).is_empty(), "{:?}", names(disk.path()));
    }
    // A thin image of a disk that is larger has room.
    convert(&["-O", "qcow2", "sample:1G,data=0", text(&made)]).success();
    check(&made);
}

#[test]
fn the_limit_of_the_process_is_about_what_is_written() {
    let dir = tempdir().expect("a directory");
    let made = dir.path().join("made.qcow2");
    let limited = |source: &str| {
        let script =
            "ulimit -f $((4 * 1024 * 1024 / 512)); exec \"$0\" convert -O qcow2 \"$1\" \"$2\"";
        run(Command::new("sh")
            .args(["-c", script, env!("CARGO_BIN_EXE_blockferry"), source])
            .arg(&made))
    };
    limited("sample:64M,data=100").failure(1, &["made.qcow2", "ulimit"]);
    assert!(names(dir.path()).is_empty());
    limited("sample:64M,data=0").success();
    check(&made);
}
