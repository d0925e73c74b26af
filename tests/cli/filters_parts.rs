//! `offset`, `range`, `partition`, `truncate` and `tar` beside nbdkit's: the same images have the same parts.

#[path = "../../crates/filter/tests/images/mod.rs"]
mod images;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use images::disk::{Disk, Gpt};
use tempfile::{TempDir, tempdir};

use crate::support::{
    images::{random_bytes, sparse_image},
    run::{Outcome, blockferry, run, run_with_input},
};

/// All that a client sees of a disk.
const LOOK: &str = "nbdinfo --size \"$uri\" && nbdinfo --map \"$uri\" && nbdcopy \"$uri\" - | cat";

/// An image, and what is done with it.
struct Room {
    dir: TempDir,
    image: PathBuf,
}

impl Room {
    fn holding(bytes: &[u8]) -> Self {
        let dir = tempdir().expect("a directory");
        let image = dir.path().join("image");
        fs::write(&image, bytes).expect("room");
        Self { dir, image }
    }

    fn image(&self) -> &str {
        self.image.to_str().expect("UTF-8")
    }

    /// What `command` finds behind nbdkit's filters.
    fn theirs(&self, filters: &[&str], parameters: &[&str], command: &str) -> Outcome {
        let filters = filters.iter().map(|filter| format!("--filter={filter}"));
        let mut nbdkit = Command::new("nbdkit");
        nbdkit
            .args(["-U", "-"])
            .args(filters)
            .args(["file", self.image()])
            .args(parameters)
            .args(["--run", command]);
        run(&mut nbdkit)
    }

    /// What `command` finds behind ours.
    fn ours(&self, filters: &[&str], command: &str) -> Outcome {
        let mut serve = blockferry(["serve", self.image(), "--run", command]);
        for filter in filters {
            serve.args(["--filter", filter]);
        }
        run(&mut serve)
    }

    /// Fails unless a client sees the same behind both. Gives what it sees.
    #[track_caller]
    fn assert_alike(&self, (filters, parameters): (&[&str], &[&str]), ours: &[&str]) -> Vec<u8> {
        let theirs = self.theirs(filters, parameters, LOOK).success();
        let found = self.ours(ours, LOOK).success();
        assert!(
            found.stdout == theirs.stdout,
            "{ours:?} has {} bytes to look at, {parameters:?} has {}",
            found.stdout.len(),
            theirs.stdout.len()
        );
        found.stdout
    }

    /// Fails unless no client gets to see anything behind either.
    #[track_caller]
    fn assert_refused(&self, (filters, parameters): (&[&str], &[&str]), ours: &[&str]) {
        for outcome in [
            self.theirs(filters, parameters, LOOK),
            self.ours(ours, LOOK),
        ] {
            assert!(
                outcome.code != 0 && outcome.stdout.is_empty(),
                "{ours:?}: {outcome:?}"
            );
        }
    }
}

#[test]
fn offsets_and_ranges_are_nbdkits() {
    let room = Room::holding(b"");
    sparse_image(&room.image, 8 << 20);
    for (parameters, ours) in [
        (&["offset=1M"][..], "offset:1M"),
        (&["offset=4096", "range=3M"], "range:4096,length=3M"),
        (&["range=123456"], "range:length=123456"),
        (&["offset=777", "range=0"], "range:777,length=0"),
        (&["offset=8M"], "offset:8M"),
    ] {
        let shown = room.assert_alike((&["offset"], parameters), &[ours]);
        assert!(!shown.is_empty());
    }
    for (parameters, ours) in [
        (&["offset=8388609"][..], "offset:8388609"),
        (&["offset=7M", "range=1048577"], "range:7M,length=1048577"),
        (&["range=9M"], "range:length=9M"),
    ] {
        room.assert_refused((&["offset"], parameters), &[ours]);
    }
}

#[test]
fn other_sizes_are_nbdkits() {
    let room = Room::holding(&random_bytes(1_000_001, 1));
    for (parameters, ours) in [
        (&["truncate=500000"][..], "truncate:500000"),
        (&["truncate=3000000"], "truncate:3000000"),
        (&["truncate=0"], "truncate:0"),
        (&["round-up=1M"], "truncate:round-up=1M"),
        (&["round-down=512"], "truncate:round-down=512"),
        (
            &["round-up=512", "round-down=64K"],
            "truncate:round-up=512,round-down=64K",
        ),
        (
            &["truncate=70000", "round-up=128K", "round-down=4K"],
            "truncate:70000,round-up=128K,round-down=4K",
        ),
        (&[], "truncate"),
    ] {
        room.assert_alike((&["truncate"], parameters), &[ours]);
    }
    for parameter in ["round-up=3", "round-down=0", "truncate=-1"] {
        let ours = format!("truncate:{}", parameter.trim_start_matches("truncate="));
        room.assert_refused((&["truncate"], &[parameter]), &[&ours]);
    }
}

#[test]
fn only_zeroes_can_be_written_behind_an_image_as_with_nbdkit() {
    for (command, works) in [
        ("write -P 7 999936 64", true),
        ("write -P 0 999936 4096", true),
        ("write -z 999936 8192", true),
        ("write -P 0 1500032 8192", true),
        ("discard 999424 65536", true),
        ("write -P 7 1500032 512", false),
        ("write -P 7 1048064 512", false),
    ] {
        let command = format!("qemu-io -f raw \"$uri\" -c '{command}' -c flush");
        let images = [true, false].map(|is_theirs| {
            let room = Room::holding(&random_bytes(1_000_000, 2));
            let outcome = match is_theirs {
                true => room.theirs(&["truncate"], &["truncate=2M"], &command),
                false => room.ours(&["truncate:2M"], &command),
            };
            let text = String::from_utf8_lossy(&outcome.stdout);
            assert_eq!(!text.contains("failed"), works, "{command}: {outcome:?}");
            fs::read(&room.image).expect("the image")
        });
        assert!(images[0] == images[1], "{command}");
        assert_eq!(images[1].len(), 1_000_000);
    }
}

/// An MBR with two primary partitions and three logical ones.
fn mbr() -> Disk {
    let mut disk = Disk::new(4000, 512);
    disk.table(0)
        .entry(0, 0, 0x83, 10, 90)
        .entry(0, 2, 0x0c, 100, 100)
        .entry(0, 3, 0x0f, 1000, 2000)
        .table(1000)
        .entry(1000, 0, 0x83, 20, 80)
        .entry(1000, 1, 0x05, 500, 300)
        .table(1500)
        .entry(1500, 0, 0x82, 1, 100)
        .entry(1500, 1, 0x05, 700, 50)
        .table(1700)
        .entry(1700, 0, 0x83, 2, 40);
    disk
}

#[test]
fn partitions_are_nbdkits() {
    let entries: &[_] = &[(100, 199, "one"), (0, 0, ""), (2048, 3999, "three")];
    let mut gpt = Disk::new(6000, 512);
    gpt.gpt(Gpt {
        entries,
        ..Gpt::USUAL
    });
    let mut small = Disk::new(6000, 512);
    small.gpt(Gpt {
        entries,
        entry_size: 256,
        entry_count: 4,
    });
    let mut outside = mbr();
    outside.entry(0, 0, 0x83, 3990, 11);
    let mut circle = mbr();
    circle.entry(1700, 1, 0x05, 500, 50);
    let mut swallowed = mbr();
    swallowed.entry(1500, 0, 0x82, 1, 1800);
    let blank = Disk::new(100, 512);
    for (disk, there, numbers) in [
        (mbr(), &[1, 3, 5, 6, 7][..], 1..=8),
        (gpt, &[1, 3], 1..=5),
        (small, &[1, 3], 1..=5),
        (outside, &[3, 5, 6, 7], 1..=8),
        (circle, &[1, 3, 5, 6, 7], 1..=9),
        (swallowed, &[1, 3, 5], 1..=6),
        (blank, &[], 1..=5),
    ] {
        let room = Room::holding(&disk.bytes);
        for number in numbers {
            let ours = format!("partition:{number}");
            let theirs = format!("partition={number}");
            let theirs: (&[&str], &[&str]) = (&["partition"], &[&theirs]);
            match there.contains(&number) {
                true => drop(room.assert_alike(theirs, &[&ours])),
                false => room.assert_refused(theirs, &[&ours]),
            }
        }
    }
}

#[test]
fn tables_that_partitioning_tools_write_are_read() {
    let has = |tool: &str| Command::new(tool).arg("--version").output().is_ok();
    if !has("sfdisk") {
        println!("skipped: there is no sfdisk");
        return;
    }
    let room = Room::holding(b"");
    for (label, rest, there) in [
        (
            "dos",
            "size=40MiB, type=5\nsize=2MiB\nsize=3MiB\nsize=4MiB\n",
            &[1, 2, 4, 5, 6][..],
        ),
        ("gpt", "size=7MiB\nsize=9MiB\n", &[1, 2, 3, 4]),
    ] {
        fs::write(&room.image, random_bytes(64 << 20, 3)).expect("room");
        let script = format!("label: {label}\nsize=10MiB\nsize=5MiB\n{rest}");
        let mut sfdisk = Command::new("sfdisk");
        sfdisk.arg("-q").arg(&room.image);
        run_with_input(&mut sfdisk, script.as_bytes()).success();
        for number in 1..=7 {
            let (theirs, ours) = (format!("partition={number}"), format!("partition:{number}"));
            let theirs: (&[&str], &[&str]) = (&["partition"], &[&theirs]);
            match there.contains(&number) {
                true => drop(room.assert_alike(theirs, &[&ours])),
                false => room.assert_refused(theirs, &[&ours]),
            }
        }
    }
}

/// An archive by the machine's tar, and what is in its files.
fn packed(format: &str, names: &[&str]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let dir = tempdir().expect("a directory");
    let mut files = Vec::new();
    for (seed, name) in (1..).zip(names) {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).expect("a directory");
        let bytes = random_bytes(70_000 * seed as usize + 11, seed);
        fs::write(path, &bytes).expect("room");
        files.push(bytes);
    }
    let mut tar = Command::new("tar");
    tar.current_dir(dir.path())
        .args(["-cf", "-", "--format", format])
        .args(names);
    (run(&mut tar).success().stdout, files)
}

#[test]
fn members_of_archives_are_nbdkits() {
    for format in ["gnu", "posix", "ustar"] {
        let long = format!("{}/disk.img", "d".repeat(140));
        let names = ["./box.ovf", "disk-1.vmdk", "a disk, and more.img", &long];
        let (archive, files) = packed(format, &names);
        let room = Room::holding(&archive);
        for (name, bytes) in names.iter().zip(&files) {
            let theirs = format!("tar-entry={name}");
            let ours = format!("tar:{}", name.replace(',', ",,"));
            // nbdkit 1.32 serves what describes a long name, not the file.
            if name.len() < 100 {
                room.assert_alike((&["tar"], &[&theirs]), &[&ours]);
            }
            let found = room.ours(&[&ours], "nbdcopy \"$uri\" - | cat");
            assert!(found.success().stdout == *bytes, "{format}: {name}");
        }
        room.assert_refused((&["tar"], &["tar-entry=other"]), &["tar:other"]);
    }
}

#[test]
fn a_member_of_an_archive_is_written_where_it_lies() {
    let (archive, _) = packed("gnu", &["a", "b", "c"]);
    let command = "qemu-io -f raw \"$uri\" -c 'write -P 9 4096 65536' -c flush";
    let [theirs, ours] = [true, false].map(|is_theirs| {
        let room = Room::holding(&archive);
        let outcome = match is_theirs {
            true => room.theirs(&["tar"], &["tar-entry=b"], command),
            false => room.ours(&["tar:b"], command),
        };
        outcome.success();
        fs::read(&room.image).expect("the archive")
    });
    assert!(ours == theirs && ours != archive && ours.len() == archive.len());
}

#[test]
fn a_copy_takes_a_partition_of_a_disk_in_an_archive() {
    let mut archive = images::archive::Archive::default();
    let disk = mbr();
    archive
        .file("box.ovf", b"<xml/>")
        .file("disk.img", &disk.bytes)
        .end();
    let room = Room::holding(&archive.bytes);
    let copy = room.dir.path().join("copy");
    let copied = run(blockferry([
        "copy",
        "--filter",
        "partition:6",
        "--filter",
        "tar:disk.img",
    ])
    .arg(&room.image)
    .arg(&copy));
    copied.success();
    let expected = &disk.bytes[1501 * 512..1601 * 512];
    assert!(fs::read(&copy).expect("a copy") == expected);
    let refused = ["copy", "--filter", "tar:box.img", room.image(), "memory:1M"];
    run(&mut blockferry(refused)).failure(
        1,
        &["there is no 'box.img' in the archive: there are 'box.ovf', 'disk.img'"],
    );
}
