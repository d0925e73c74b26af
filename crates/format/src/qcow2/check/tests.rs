//! Images of qemu's, good and damaged, against `qemu-img check`.

use std::{fs, os::unix::fs::FileExt, path::Path};

use blockferry_block::{Access, FileDevice};

use super::*;
use crate::qcow2::{
    entry::OFFSET,
    geometry::Geometry,
    header::be64,
    qemu::{is_installed, number, qemu_check, qemu_img, qemu_io},
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
