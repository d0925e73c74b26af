//! Disks that are compressed as a stream: read and written in one pass, beside the programs that make them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use tempfile::{TempDir, tempdir};

use crate::support::{
    Peer, SmallDisk, allocated, assert_same, blockferry,
    images::random_bytes,
    qemu::{qemu_img, text},
    random_image, run,
    run::{finish, run_with_input, signal, tool, until_it_writes},
    sparse_image,
};

/// What is made, and how.
const PACKERS: &[(&str, &str, &str)] = &[
    ("gzip", "gz", "gzip -1"),
    ("xz", "xz", "xz -0 -T2 --block-size=3MiB"),
    ("zstd", "zst", "zstd -q -1"),
    ("bzip2", "bz2", "bzip2 -1"),
];

/// A disk of 16 MiB with holes and noise, and a directory for it.
fn disk() -> (TempDir, PathBuf) {
    let room = tempdir().expect("a directory");
    let disk = room.path().join("disk.raw");
    sparse_image(&disk, 16 << 20);
    let mut bytes = fs::read(&disk).expect("the disk");
    bytes[5_000_000..6_000_000].copy_from_slice(&random_bytes(1_000_000, 1));
    fs::write(&disk, bytes).expect("written");
    sparse(&disk);
    (room, disk)
}

/// Gives `disk` its holes back.
fn sparse(disk: &Path) {
    let path = text(disk);
    let words = format!("cp --sparse=always '{path}' '{path}.x' && mv '{path}.x' '{path}'");
    tool("sh", &["-c", &words]);
}

fn pack(command: &str, from: &Path, to: &Path) {
    let words = format!("{command} <'{}' >'{}'", text(from), text(to));
    tool("sh", &["-c", &words]);
}

#[test]
fn a_compressed_disk_is_unpacked_in_one_pass_and_stays_sparse() {
    let (room, disk) = disk();
    let digest = run(&mut blockferry(["checksum", text(&disk)])).success();
    let digest = digest
        .text()
        .split(' ')
        .next()
        .expect("a digest")
        .to_owned();
    // Nothing can be written where a scratch file would be.
    let nowhere = room.path().join("missing");
    for (name, suffix, command) in PACKERS {
        let packed = disk.with_extension(format!("raw.{suffix}"));
        let copy = room.path().join(format!("copy.{suffix}.raw"));
        pack(command, &disk, &packed);
        let mut copying = blockferry(["copy", "--checksum", text(&packed), text(&copy)]);
        let done = run(copying.env("TMPDIR", &nowhere)).success();
        assert!(done.text().starts_with(&digest), "{name}: {}", done.text());
        assert_same(&disk, &copy);
        assert!(allocated(&copy) <= allocated(&disk) + (1 << 20), "{name}");

        let mut checksum = blockferry(["checksum", text(&packed)]);
        let done = run(checksum.env("TMPDIR", &nowhere)).success();
        assert!(done.text().starts_with(&digest), "{name}: {}", done.text());

        let bytes = fs::read(&packed).expect("the file");
        let again = room.path().join(format!("again.{suffix}.raw"));
        let words = ["copy", "-f", name, "--verify", "-", text(&again)];
        run_with_input(&mut blockferry(words), &bytes).success();
        assert_same(&disk, &again);
        // Without a word it is what it is.
        let raw = run_with_input(&mut blockferry(["copy", "-", "-"]), &bytes).success();
        assert!(raw.stdout == bytes, "{name}");
        let raw = run(&mut blockferry(["copy", "-f", "raw", text(&packed), "-"])).success();
        assert!(raw.stdout == bytes, "{name}");
    }
}

#[test]
fn a_compressed_disk_goes_from_a_server_into_a_qcow2_image_and_to_a_server() {
    let (room, disk) = disk();
    let packed = room.path().join("disk.raw.xz");
    pack("xz -0", &disk, &packed);
    let peer = Peer::nbdkit(room.path(), &["file", text(&packed)]);
    let image = room.path().join("disk.qcow2");
    let words = ["copy", "-f", "xz", "-O", "qcow2", &peer.uri(), text(&image)];
    run(&mut blockferry(words)).success();
    qemu_img(&[
        "compare",
        "-f",
        "raw",
        "-F",
        "qcow2",
        text(&disk),
        text(&image),
    ]);
    let own = tempfile::tempdir_in(room.path()).expect("a directory");
    let memory = Peer::nbdkit(own.path(), &["memory", "16M"]);
    run(&mut blockferry(["copy", text(&packed), &memory.uri()])).success();
    let said = run(&mut blockferry(["compare", text(&disk), &memory.uri()])).success();
    assert_eq!(said.text(), "Images are identical.\n");
}

#[test]
fn a_compressed_disk_is_looked_at_as_any_other() {
    let (room, disk) = disk();
    for (name, suffix, command) in PACKERS {
        let packed = disk.with_extension(format!("raw.{suffix}"));
        pack(command, &disk, &packed);
        let compared = run(&mut blockferry(["compare", text(&disk), text(&packed)])).success();
        assert_eq!(compared.text(), "Images are identical.\n", "{name}");
        // What zstd reads from a pipe does not say how much it holds.
        let is_whole = *name != "xz";
        let told = "it is unpacked into a temporary file first: ";
        assert_eq!(
            compared.stderr.contains(told),
            is_whole,
            "{}",
            compared.stderr
        );
        let map = run(&mut blockferry(["map", "--totals", text(&packed)])).success();
        assert!(map.text().contains("data"), "{}", map.text());
        assert_eq!(map.text().contains("hole"), is_whole, "{}", map.text());
        let info = run(&mut blockferry(["info", text(&packed)])).success();
        assert!(info.text().contains("16777216"), "{}", info.text());
        let shown = room.path().join(format!("shown.{suffix}"));
        let nbdcopy = format!("nbdcopy \"$uri\" '{}'", text(&shown));
        let words = ["serve", "--read-only", text(&packed), "--run", &nbdcopy];
        run(&mut blockferry(words)).success();
        assert_same(&disk, &shown);
        run(&mut blockferry(["map", "--max-size", "1M", text(&packed)]))
            .failure(1, &["it holds more than the 1.0 MiB that max-size allows"]);
    }
}

#[test]
fn what_is_damaged_leaves_nothing_and_says_where() {
    let (room, disk) = disk();
    let copy = room.path().join("copy.raw");
    for (name, suffix, command) in PACKERS {
        let packed = disk.with_extension(format!("raw.{suffix}"));
        pack(command, &disk, &packed);
        let whole = fs::read(&packed).expect("the file");
        let mut flipped = whole.clone();
        let middle = flipped.len() / 2;
        flipped[middle..middle + 100].fill(0x55);
        let behind = [&whole, &b"and something else"[..]].concat();
        for (bytes, words) in [
            (
                &whole[..whole.len() - 5],
                "it ends too early, at or before offset",
            ),
            (&flipped, "the file is damaged"),
            (
                &behind,
                "there is something after its end, at or before offset",
            ),
        ] {
            fs::write(&packed, bytes).expect("written");
            run(&mut blockferry(["copy", text(&packed), text(&copy)])).failure(1, &[name, words]);
            assert!(!copy.exists(), "{name}: {words}");
        }
    }
    let small = disk.with_extension("raw.gz");
    pack("gzip -1", &disk, &small);
    let words = ["copy", "--max-size", "10M", text(&small), text(&copy)];
    run(&mut blockferry(words))
        .failure(1, &["it holds more than the 10.0 MiB that max-size allows"]);
    run(&mut blockferry([
        "copy",
        "-f",
        "xz",
        text(&small),
        text(&copy),
    ]))
    .failure(1, &["it is not in the format xz"]);
    assert!(!copy.exists());
}

#[test]
fn an_image_in_a_format_that_is_compressed_is_taken_for_bytes_with_a_warning() {
    let (room, disk) = disk();
    let (image, copy) = (room.path().join("disk.qcow2"), room.path().join("copy"));
    run(&mut blockferry([
        "copy",
        "-O",
        "qcow2",
        text(&disk),
        text(&image),
    ]))
    .success();
    let packed = room.path().join("disk.qcow2.zst");
    pack("zstd -q -1", &image, &packed);
    let done = run(&mut blockferry(["copy", text(&packed), text(&copy)])).success();
    let words = "warning: ";
    assert!(done.stderr.contains(words), "{}", done.stderr);
    let words = "what it holds looks like an image in the format qcow2";
    assert!(done.stderr.contains(words), "{}", done.stderr);
    assert_same(&image, &copy);
}

#[test]
fn a_disk_is_compressed_so_that_everybody_reads_it() {
    let (room, disk) = disk();
    let whole = fs::read(&disk).expect("the disk");
    for (name, suffix, command) in [("gzip", "gz", "gzip -dc"), ("zstd", "zst", "zstd -qdc")] {
        let packed = room.path().join(format!("disk.{suffix}"));
        let digest = ["copy", "--checksum", "-O", name, text(&disk), text(&packed)];
        let done = run(&mut blockferry(digest)).success();
        let digest = run(&mut blockferry(["checksum", text(&disk)])).success();
        assert_eq!(done.text()[..64], digest.text()[..64], "{name}");
        let back = room.path().join(format!("{name}.raw"));
        pack(command, &packed, &back);
        assert_same(&disk, &back);
        // Anywhere in it, without a temporary file.
        let part = ["map", "--filter", name, "-f", "raw", text(&packed)];
        run(&mut blockferry(part)).success();
        let filter = ["compare", text(&disk), text(&packed)];
        let compared = run(&mut blockferry(filter)).success();
        assert!(
            !compared.stderr.contains("temporary"),
            "{}",
            compared.stderr
        );

        let words = [
            "copy",
            "-O",
            name,
            "-m",
            "3",
            "-o",
            "compression_level=9",
            "-",
            "-",
        ];
        let streamed = run_with_input(&mut blockferry(words), &whole).success();
        fs::write(&packed, &streamed.stdout).expect("written");
        pack(command, &packed, &back);
        assert_same(&disk, &back);
        let copied = run(&mut blockferry(["copy", text(&packed), text(&back)])).success();
        assert!(copied.stderr.starts_with("copied"), "{}", copied.stderr);
        assert_same(&disk, &back);
    }
}

#[test]
fn a_compressed_destination_that_is_not_whole_is_none() {
    let (room, disk) = disk();
    let packed = room.path().join("disk.zst");
    if let Some(full) = SmallDisk::mount() {
        let noise = room.path().join("noise");
        random_image(&noise, 8 << 20);
        for name in ["gzip", "zstd"] {
            let there = full.path().join("disk.packed");
            run(&mut blockferry([
                "copy",
                "-O",
                name,
                text(&noise),
                text(&there),
            ]))
            .failure(1, &["disk.packed", "space"]);
            assert!(!there.exists());
        }
    }
    let mut reader = blockferry(["copy", "-O", "gzip", text(&disk), "-"]);
    let mut child = reader
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary");
    drop(child.stdout.take());
    finish(child).failure(1, &["standard output"]);

    let slow = blockferry([
        "copy",
        "-O",
        "zstd",
        "--rate",
        "4M",
        text(&disk),
        text(&packed),
    ])
    .stderr(Stdio::piped())
    .spawn()
    .expect("the binary");
    until_it_writes(&slow, room.path());
    signal(&slow, "INT");
    finish(slow).failure(130, &["not kept"]);
    assert!(!packed.exists());
}

#[test]
fn what_does_not_go_with_compression_is_refused_by_name() {
    let (room, disk) = disk();
    let packed = room.path().join("disk.gz");
    let (disk, packed) = (text(&disk), text(&packed));
    for (words, code, part) in [
        (
            &["-O", "gzip", "--verify", disk, packed][..],
            2,
            "blockferry compare",
        ),
        (&["-O", "xz", disk, packed], 2, "are not made"),
        (
            &["-O", "gzip", "-o", "compression_level=10", disk, packed],
            2,
            "1 to 9",
        ),
        (&["-O", "gzip", disk, "memory:16M"], 1, "fixed size"),
        (
            &["-O", "zstd", "--checkpoint", "x", disk, packed],
            2,
            "--checkpoint",
        ),
    ] {
        run(&mut blockferry([&["copy"], words].concat())).failure(code, &[part]);
        assert!(!Path::new(packed).exists(), "{words:?}");
    }
    let done = run(&mut blockferry(["copy", disk, packed])).success();
    assert!(
        done.stderr.contains("-O gzip compresses it"),
        "{}",
        done.stderr
    );
    assert!(fs::read(packed).expect("there") == fs::read(disk).expect("there"));
}

#[test]
fn a_raw_disk_that_begins_as_something_compressed_is_unpacked_by_nobody_who_was_not_told_to() {
    let (room, disk) = disk();
    // Nothing can be written where a scratch file would be.
    let nowhere = room.path().join("missing");
    let quietly = |words: &[&str]| run(blockferry(words).env("TMPDIR", &nowhere)).success();
    for (name, suffix, command) in PACKERS {
        let guest = room.path().join("guest.raw");
        pack(command, &disk, &guest);
        let size = fs::metadata(&guest).expect("there").len();
        let copy = room.path().join("copy.raw");
        let info = quietly(&["info", "--json", text(&guest)]);
        assert!(info.text().contains(&size.to_string()), "{}", info.text());
        let hint = format!("-f {name} reads what is in it");
        assert_eq!(info.stderr.matches(&hint).count(), 1, "{}", info.stderr);
        quietly(&["map", text(&guest)]);
        let guessed = quietly(&["checksum", text(&guest)]);
        let said = quietly(&["checksum", "-f", "raw", text(&guest)]);
        assert_eq!(guessed.text()[..64], said.text()[..64]);
        let nbdcopy = format!("nbdcopy \"$uri\" '{}'", text(&copy));
        let served = ["serve", "--read-only", text(&guest), "--run", &nbdcopy];
        run(&mut blockferry(served)).success();
        assert_same(&guest, &copy);
        let compared = quietly(&["compare", text(&guest), text(&copy)]);
        assert_eq!(compared.text(), "Images are identical.\n");
        quietly(&["copy", text(&guest), text(&copy)]);
        assert_same(&guest, &copy);
        // Nor by its name alone.
        let named = room.path().join(format!("named.{suffix}"));
        fs::copy(&disk, &named).expect("copied");
        quietly(&["copy", text(&named), text(&copy)]);
        assert_same(&disk, &copy);
        // Whoever says so gets the disk.
        run(&mut blockferry([
            "copy",
            "-f",
            name,
            text(&guest),
            text(&copy),
        ]))
        .success();
        assert_same(&disk, &copy);
    }
}
