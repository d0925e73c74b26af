//! Images of qemu's, good and damaged, against `qemu-img check`.

use std::{fs, os::unix::fs::FileExt, path::Path, sync::Arc};

use blockferry_block::{
    Access, BlockDevice, ErrorKind, FileDevice, MemoryDevice, Operation,
    testing::{FaultyDevice, ForgetfulDevice, Survival},
};

use super::*;
use crate::{
    NoRelatives,
    qcow2::{
        Image, OpenOptions,
        entry::OFFSET,
        geometry::Geometry,
        header::be64,
        qemu::{is_installed, number, qemu_check, qemu_img, qemu_io},
        testing::{Content, ImageBuilder},
        write::tests::contents,
    },
};

async fn checked(directory: &Path, image: &str) -> CheckReport {
    let below = FileDevice::open(&directory.join(image), Access::ReadOnly).expect("opened");
    check(&below).await.expect("checked")
}

/// All of `qemu-img check`'s numbers are ours.
async fn check_equal(directory: &Path, image: &str, what: &str) -> CheckReport {
    let (ours, theirs) = (
        checked(directory, image).await,
        qemu_check(directory, image),
    );
    let numbers = [
        ("check-errors", ours.check_errors),
        ("corruptions", ours.corruptions),
        ("leaks", ours.leaks),
        ("total-clusters", ours.total_clusters),
        ("allocated-clusters", ours.allocated_clusters),
        ("fragmented-clusters", ours.fragmented_clusters),
        ("compressed-clusters", ours.compressed_clusters),
        ("image-end-offset", ours.image_end),
    ];
    for (name, own) in numbers {
        assert_eq!(
            own,
            number(&theirs, name),
            "{name} of {what}: {ours:?} {theirs}"
        );
    }
    ours
}

const OPTIONS: [&str; 9] = [
    "cluster_size=512",
    "cluster_size=4k,refcount_bits=1",
    "cluster_size=64k,compat=0.10",
    "cluster_size=64k,refcount_bits=8",
    "cluster_size=1k,refcount_bits=64",
    "cluster_size=16k,extended_l2=on",
    "cluster_size=2M,refcount_bits=32",
    "cluster_size=4k,compression_type=zstd",
    "cluster_size=8k,data_file=disk.data",
];

#[tokio::test]
async fn sound_images_of_every_kind_are_counted_as_qemu_counts_them() {
    if !is_installed() {
        return;
    }
    for options in OPTIONS {
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path();
        qemu_img(
            directory,
            &format!("create -q -f qcow2 -o {options} disk.qcow2 20M"),
        );
        check_equal(directory, "disk.qcow2", options).await;
        let writes = [
            "write -P 1 0 300k",
            "write -P 2 9M 1M",
            "write -z 5M 64k",
            "write -P 3 2M 7k",
        ];
        qemu_io(directory, "disk.qcow2", &writes);
        let is_narrow = options.contains("refcount_bits=1") || options.contains("bits=8");
        if !options.contains("data_file") && !is_narrow {
            qemu_io(directory, "disk.qcow2", &["write -c -P 4 12M 2M"]);
        }
        if !options.contains("data_file") && !options.contains("refcount_bits=1") {
            qemu_img(directory, "snapshot -c one disk.qcow2");
            qemu_io(directory, "disk.qcow2", &["write -P 5 1M 9M"]);
        }
        if !options.contains("0.10") {
            qemu_img(directory, "bitmap --add -g 64k disk.qcow2 b0");
            qemu_io(directory, "disk.qcow2", &["write -P 5 1M 3M"]);
        }
        let report = check_equal(directory, "disk.qcow2", options).await;
        assert!(report.is_clean(), "{options}: {report:?}");
        assert!(report.allocated_clusters > 0);
    }
}

/// The image's file, and where things are in it.
struct Damaged {
    file: fs::File,
    geometry: Geometry,
    l1: u64,
    refcount_table: u64,
}

impl Damaged {
    fn new(path: &Path) -> Self {
        let bytes = fs::read(path).expect("an image");
        Self {
            file: fs::File::options()
                .read(true)
                .write(true)
                .open(path)
                .expect("opened"),
            geometry: Header::parse(&bytes).expect("a header").geometry,
            l1: be64(&bytes, 40),
            refcount_table: be64(&bytes, 48),
        }
    }

    fn get(&self, at: u64) -> u64 {
        let mut word = [0; 8];
        self.file.read_exact_at(&mut word, at).expect("read");
        u64::from_be_bytes(word)
    }

    fn set(&self, at: u64, word: u64) {
        self.file
            .write_all_at(&word.to_be_bytes(), at)
            .expect("written");
    }

    fn l2(&self) -> u64 {
        self.get(self.l1) & OFFSET
    }

    fn place(&self, index: u64) -> u64 {
        self.get(self.l2() + index * 8) & OFFSET
    }

    fn refcount_at(&self, host: u64) -> u64 {
        self.get(self.refcount_table) + (host >> self.geometry.cluster_bits) * 2
    }

    fn set_refcount(&self, host: u64, refcount: u16) {
        let place = self.refcount_at(host);
        self.file
            .write_all_at(&refcount.to_be_bytes(), place)
            .expect("written");
    }
}

type Damage = fn(&Damaged);

#[tokio::test]
async fn damage_is_found_as_qemu_finds_it() {
    if !is_installed() {
        return;
    }
    let damages: [(&str, Damage); 10] = [
        ("a refcount too high", |it| {
            it.set_refcount(it.place(1), 7);
        }),
        ("a refcount of zero", |it| {
            it.set_refcount(it.place(0), 0);
        }),
        ("a cluster used twice", |it| {
            it.set(it.l2() + 8, it.get(it.l2()));
        }),
        ("an entry lost", |it| {
            it.set(it.l2() + 16, 0);
        }),
        ("a mark that lies", |it| {
            it.set(it.l2(), it.place(0));
        }),
        ("a mark of a table that lies", |it| {
            it.set(it.l1, it.l2());
        }),
        ("an L1 entry lost", |it| {
            it.set(it.l1, 0);
        }),
        ("data over the refcount table", |it| {
            it.set(it.l2(), it.refcount_table | 1 << 63);
        }),
        ("reserved bits", |it| {
            it.set(it.l2(), it.get(it.l2()) | 0x80);
        }),
        ("a leak at the end", |it| {
            it.set(it.l2() + 3 * 8, 0);
        }),
    ];
    for (what, damage) in damages {
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path();
        qemu_img(directory, "create -q -f qcow2 disk.qcow2 20M");
        qemu_io(directory, "disk.qcow2", &["write -P 1 0 256k"]);
        damage(&Damaged::new(&directory.join("disk.qcow2")));
        let report = check_equal(directory, "disk.qcow2", what).await;
        assert!(!report.is_clean(), "{what}");
        assert!(!report.findings.is_empty(), "{what}");
    }
}

#[tokio::test]
async fn places_that_cannot_be_are_corruptions() {
    if !is_installed() {
        return;
    }
    let damages: [(&str, Damage); 4] = [
        ("behind the end", |it| {
            it.set(it.l2(), 1 << 40 | 1 << 63);
        }),
        ("no cluster's boundary", |it| {
            it.set(it.l2(), 0x5_0200 | 1 << 63);
        }),
        ("a table behind the end", |it| {
            it.set(it.l1, 1 << 50 | 1 << 63);
        }),
        ("refcounts behind the end", |it| {
            it.set(it.refcount_table + 8, 1 << 50);
        }),
    ];
    for (what, damage) in damages {
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path();
        qemu_img(directory, "create -q -f qcow2 disk.qcow2 20M");
        qemu_io(directory, "disk.qcow2", &["write -P 1 0 256k"]);
        damage(&Damaged::new(&directory.join("disk.qcow2")));
        let (ours, theirs) = (
            checked(directory, "disk.qcow2").await,
            qemu_check(directory, "disk.qcow2"),
        );
        assert!(!ours.is_consistent(), "{what}: {ours:?}");
        assert!(number(&theirs, "corruptions") > 0, "{what}");
    }
}

fn writable(directory: &Path, image: &str) -> Arc<dyn BlockDevice> {
    let file = FileDevice::open(&directory.join(image), Access::ReadWrite).expect("opened");
    Arc::new(file.growable())
}

/// What can be mended.
const MENDABLE: [(&str, Damage); 10] = [
    ("a refcount too high", |it| {
        it.set_refcount(it.place(1), 7);
    }),
    ("a refcount of zero", |it| {
        it.set_refcount(it.place(0), 0);
    }),
    ("a cluster used twice", |it| {
        it.set(it.l2() + 8, it.get(it.l2()));
    }),
    ("an entry lost", |it| {
        it.set(it.l2() + 16, 0);
    }),
    ("a mark that lies", |it| {
        it.set(it.l2(), it.place(0));
    }),
    ("a mark of a table that lies", |it| {
        it.set(it.l1, it.l2());
    }),
    ("an L1 entry lost", |it| {
        it.set(it.l1, 0);
    }),
    ("no refcounts at all", |it| {
        it.set(it.refcount_table, 0);
    }),
    ("refcounts behind the end", |it| {
        it.set(it.refcount_table + 8, 1 << 50);
    }),
    ("refcounts where data lies", |it| {
        it.set(it.refcount_table + 8, it.place(0));
    }),
];

/// Damages an image of qemu's with some of everything in it.
fn damaged(directory: &Path, options: &str, damage: Damage) {
    qemu_img(
        directory,
        &format!("create -q -f qcow2 -o {options} disk.qcow2 20M"),
    );
    qemu_io(directory, "disk.qcow2", &["write -P 1 0 256k"]);
    qemu_img(directory, "snapshot -c one disk.qcow2");
    let writes = [
        "write -P 2 0 192k",
        "write -c -P 3 9M 64k",
        "write -z 10M 1M",
    ];
    qemu_io(directory, "disk.qcow2", &writes);
    damage(&Damaged::new(&directory.join("disk.qcow2")));
}

#[tokio::test]
async fn what_is_mended_is_sound_and_reads_as_it_did() {
    if !is_installed() {
        return;
    }
    for options in ["cluster_size=64k", "cluster_size=64k,compat=0.10"] {
        for (what, damage) in MENDABLE {
            let directory = tempfile::tempdir().expect("a directory");
            let directory = directory.path();
            damaged(directory, options, damage);
            fs::copy(directory.join("disk.qcow2"), directory.join("before")).expect("copied");
            let before = checked(directory, "disk.qcow2").await;
            let report = repair(writable(directory, "disk.qcow2"), RepairMode::All).await;
            let report = report.expect("repaired");
            assert!(report.is_clean(), "{what}: {report:?}");
            assert!(!before.is_clean() && report.repaired == before.findings);
            assert_eq!(report.leaks_fixed, before.leaks, "{what}: {report:?}");
            // A mark that contradicts a refcount that is too high becomes right with it.
            let has_corruption = before.corruptions > 0 && what != "a refcount too high";
            assert_eq!(
                report.corruptions_fixed > 0,
                has_corruption,
                "{what}: {report:?}"
            );
            let after = check_equal(directory, "disk.qcow2", what).await;
            assert!(after.is_clean(), "{what}: {after:?}");
            let compared = qemu_img(directory, "compare -U -f qcow2 -F qcow2 before disk.qcow2");
            assert!(compared.contains("identical"), "{what}: {compared}");
            // It can be written as before.
            qemu_io(directory, "disk.qcow2", &["write -P 9 3M 9M"]);
            let after = check_equal(directory, "disk.qcow2", what).await;
            assert!(after.is_clean(), "{what}, written: {after:?}");
        }
    }
}

#[tokio::test]
async fn refcounts_are_made_anew_in_a_device_that_cannot_grow() {
    if !is_installed() {
        return;
    }
    let lost: Damage = |it| it.set(it.refcount_table, 0);
    let directory = tempfile::tempdir().expect("a directory");
    damaged(directory.path(), "cluster_size=64k", lost);
    let mut image = fs::read(directory.path().join("disk.qcow2")).expect("read");
    let reads = read(Arc::new(MemoryDevice::from_bytes(&image))).await;
    let full = Arc::new(MemoryDevice::from_bytes(&image));
    let error = repair(full, RepairMode::All).await.expect_err("no room");
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    image.resize(image.len() + (1 << 20), 0x55);
    let below = Arc::new(MemoryDevice::from_bytes(&image));
    let report = repair(below.clone(), RepairMode::All).await;
    let report = report.expect("repaired");
    assert!(report.is_clean(), "{report:?}");
    assert!(read(below).await == reads);
}

#[tokio::test]
async fn an_l2_table_that_is_named_very_often_is_mended_once() {
    let entries: u64 = 64 << 10;
    let mut image = ImageBuilder::new(9, entries * 64 * 512);
    image.geometry.refcount_order = 6;
    let image = image.with(0, Content::Data(vec![7; 512]));
    let mut bytes = image.build();
    let l1 = be64(&bytes, 40) as usize;
    let word: [u8; 8] = bytes[l1..l1 + 8].try_into().expect("eight bytes");
    for entry in bytes[l1..l1 + 8 * entries as usize].chunks_exact_mut(8) {
        entry.copy_from_slice(&word);
    }
    let below = FaultyDevice::new(Arc::new(MemoryDevice::from_bytes(&bytes).growable()));
    let below = Arc::new(below);
    let report = repair(below.clone(), RepairMode::All).await;
    assert!(report.expect("repaired").is_clean());
    assert!(below.calls(Operation::Read) < entries / 8);
}

#[tokio::test]
async fn leaks_alone_are_mended_where_nothing_else_was_asked_for() {
    if !is_installed() {
        return;
    }
    for (what, damage) in MENDABLE {
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path();
        damaged(directory, "cluster_size=64k", damage);
        fs::copy(directory.join("disk.qcow2"), directory.join("theirs")).expect("copied");
        let report = repair(writable(directory, "disk.qcow2"), RepairMode::Leaks).await;
        let report = report.expect("repaired");
        // Its exit code tells of what it leaves.
        let mut command = std::process::Command::new("qemu-img");
        let command = command.args(["check", "-q", "-f", "qcow2", "-r", "leaks", "theirs"]);
        let output = command.current_dir(directory).output().expect("it runs");
        let theirs = qemu_check(directory, "theirs");
        let corruptions = number(&theirs, "corruptions");
        assert_eq!(
            report.corruptions > 0,
            corruptions > 0,
            "{what}: {report:?} {output:?}"
        );
        if report.corruptions == 0 {
            assert_eq!(report.leaks, number(&theirs, "leaks"), "{what}: {report:?}");
        }
    }
}

#[tokio::test]
async fn an_image_whose_tables_are_damaged_is_left_alone() {
    if !is_installed() {
        return;
    }
    let damages: [(&str, Damage); 5] = [
        ("behind the end", |it| it.set(it.l2(), 1 << 40 | 1 << 63)),
        ("no cluster's boundary", |it| {
            it.set(it.l2(), 0x5_0200 | 1 << 63);
        }),
        ("a table behind the end", |it| {
            it.set(it.l1, 1 << 50 | 1 << 63);
        }),
        ("data over the L1 table", |it| {
            it.set(it.l2(), it.l1 | 1 << 63);
        }),
        ("a table that is data", |it| {
            it.set(it.l1, it.place(0) | 1 << 63);
        }),
    ];
    for (what, damage) in damages {
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path();
        damaged(directory, "cluster_size=64k", damage);
        let before = fs::read(directory.join("disk.qcow2")).expect("read");
        for mode in [RepairMode::Leaks, RepairMode::All] {
            let report = repair(writable(directory, "disk.qcow2"), mode).await;
            let report = report.expect("looked at");
            assert!(!report.is_consistent(), "{what}: {report:?}");
            assert!(!report.findings.is_empty() && report.repaired.is_empty());
            assert_eq!((report.leaks_fixed, report.corruptions_fixed), (0, 0));
        }
        let after = fs::read(directory.join("disk.qcow2")).expect("read");
        assert!(before == after, "{what}: nothing has changed");
    }
}

/// The disk in an image.
async fn read(below: Arc<dyn BlockDevice>) -> Vec<u8> {
    let image = Image::open(below, &NoRelatives, &OpenOptions::default()).await;
    contents(&image.expect("it opens")).await
}

#[tokio::test]
async fn a_cut_while_an_image_is_mended_makes_nothing_worse() {
    if !is_installed() {
        return;
    }
    for (what, damage) in MENDABLE {
        for mode in [RepairMode::Leaks, RepairMode::All] {
            let directory = tempfile::tempdir().expect("a directory");
            let directory = directory.path();
            damaged(directory, "cluster_size=64k", damage);
            let image = fs::read(directory.join("disk.qcow2")).expect("read");
            let reads = read(Arc::new(MemoryDevice::from_bytes(&image))).await;
            let below = Arc::new(ForgetfulDevice::new(&image));
            repair(below.clone(), mode).await.expect("repaired");
            for events in 0..=below.events() {
                let number = events as u64;
                for survival in [
                    Survival::Nothing,
                    Survival::Everything,
                    Survival::Events(number),
                    Survival::Sectors(number),
                ] {
                    let left = MemoryDevice::from_bytes(below.cut(events, survival));
                    let left = Arc::new(left.growable());
                    let what = format!("{what}, {mode:?}, cut after {events}, {survival:?}");
                    assert!(read(left.clone()).await == reads, "{what}");
                    let again = repair(left, RepairMode::All);
                    let again = again.await.expect("repaired");
                    assert!(again.is_clean(), "{what}: {again:?}");
                }
            }
        }
    }
}
