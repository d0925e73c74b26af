//! Images of one version that become images of the other: as qemu has them, and cut anywhere.

use std::fs;

use blockferry_block::{
    MemoryDevice,
    testing::{ForgetfulDevice, Survival},
};

use super::*;
use crate::qcow2::{
    BitmapChange, Snapshot, SnapshotOptions, change_bitmap, check, create_snapshot,
    header::be32,
    qemu::{is_installed, number, qemu_check, qemu_img, qemu_io},
    testing::{Content, ImageBuilder},
    write::tests::{Relatives, backed, contents, copy, memory, open_with, text},
};

fn version(version: u32) -> AmendOptions {
    AmendOptions {
        version: Some(version),
        ..Default::default()
    }
}

fn with_data(cluster_bits: u32, version: u32) -> ImageBuilder {
    let size = 1 << cluster_bits;
    let mut image = ImageBuilder::new(cluster_bits, 40 * size)
        .with(1, Content::Data(text(1, size)))
        .with(5, Content::Compressed(text(2, size)));
    image.geometry.version = version;
    image
}

#[tokio::test]
async fn versions_come_and_go_and_a_cut_leaves_one_of_them() {
    let long = |mut image: ImageBuilder, length: usize| {
        image.backing = Some((vec![b'n'; length], "raw".to_owned()));
        image
    };
    for bits in [9, 12, 16] {
        for (what, first) in [
            ("plain", with_data(bits, 2)),
            ("backed", backed(with_data(bits, 2))),
        ]
        .into_iter()
        .chain((bits > 9).then(|| ("a long name", long(with_data(bits, 2), 900))))
        {
            let mut image = memory(&first);
            let old_contents = match what {
                "plain" => {
                    Some(contents(&open_with(copy(&image), &Relatives::default()).await).await)
                }
                _ => None,
            };
            let lazy = AmendOptions {
                version: Some(3),
                lazy_refcounts: Some(true),
                ..Default::default()
            };
            for (options, expected) in [
                (version(3), (3, false)),
                (lazy, (3, true)),
                (version(2), (2, false)),
                (lazy, (3, true)),
                (
                    AmendOptions {
                        lazy_refcounts: Some(false),
                        ..Default::default()
                    },
                    (3, false),
                ),
                (version(2), (2, false)),
                (version(2), (2, false)),
            ] {
                let what = format!("{what}, 2^{bits}, {options:?}");
                let old = Header::read(&*image).await.expect("sound");
                let below = Arc::new(ForgetfulDevice::new(image.contents()));
                amend(below.clone(), &options)
                    .await
                    .unwrap_or_else(|error| panic!("{what}: {error}"));
                let whole = below.cut(usize::MAX, Survival::Nothing);
                image = Arc::new(MemoryDevice::from_bytes(whole).growable());
                let new = Header::read(&*image).await.expect("sound");
                let is_lazy = new.compatible.contains(Compatible::LAZY_REFCOUNTS);
                assert_eq!((new.geometry.version, is_lazy), expected, "{what}");
                assert_eq!(
                    (&new.backing, &new.backing_format),
                    (&old.backing, &old.backing_format)
                );
                assert!(check(&*image).await.expect("checked").is_clean(), "{what}");
                for events in 0..=below.events() {
                    for seed in 0..8 {
                        let survival = Survival::Sectors(seed + 10 * events as u64);
                        let left = MemoryDevice::from_bytes(below.cut(events, survival));
                        let found = Header::read(&left).await.expect("sound");
                        assert!(found == old || found == new, "{what}: {found:?}");
                        assert!(check(&left).await.expect("checked").is_clean(), "{what}");
                    }
                }
            }
            if let Some(expected) = old_contents {
                let now = contents(&open_with(image, &Relatives::default()).await).await;
                assert!(now == expected);
            }
        }
    }
}

#[tokio::test]
async fn what_only_version_3_knows_keeps_it() {
    let bitmap = memory(&with_data(16, 3));
    let change = BitmapChange::Add { granularity: None };
    change_bitmap(bitmap.clone(), "b", &change)
        .await
        .expect("added");
    let mut wide = with_data(16, 3);
    wide.geometry.refcount_order = 6;
    let mut extended = with_data(16, 3);
    extended.geometry.extended = true;
    let mut zstd = with_data(16, 3);
    zstd.compression = Compression::Zstd;
    for (image, part) in [
        (copy(&bitmap), "bitmaps"),
        (memory(&wide), "16 bits"),
        (memory(&extended), "subclusters"),
        (memory(&zstd), "zlib"),
        (memory(&with_data(16, 3).with(7, Content::Zero)), "zeroes"),
        (
            memory(&with_data(16, 3).with(7, Content::ZeroKept)),
            "zeroes",
        ),
    ] {
        let before = image.contents();
        let error = amend(image.clone(), &version(2)).await.expect_err(part);
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(part), "{error}");
        assert!(image.contents() == before, "{part}");
    }
    let contradiction = AmendOptions {
        version: Some(2),
        lazy_refcounts: Some(true),
        ..Default::default()
    };
    let image = memory(&with_data(16, 2));
    let error = amend(image.clone(), &contradiction).await;
    assert_eq!(
        error.expect_err("contradiction").kind(),
        ErrorKind::InvalidInput
    );
    let error = amend(image, &version(4)).await;
    assert_eq!(error.expect_err("4").kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn qemu_reads_and_writes_either_version() {
    if !is_installed() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    qemu_img(directory, "create -q -f qcow2 base 10M");
    qemu_io(directory, "base", &["write -P 9 0 3M"]);
    for (turn, made) in [
        "-o compat=0.10",
        "-o compat=1.1",
        "-o compat=0.10 -F qcow2 -b base",
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("image{turn}");
        qemu_img(directory, &format!("create -q -f qcow2 {made} {name} 10M"));
        qemu_io(directory, &name, &["write -P 1 1M 300k"]);
        qemu_img(directory, &format!("snapshot -c one {name}"));
        fs::copy(directory.join(&name), directory.join("before")).expect("copied");
        for wanted in [3, 2, 3] {
            let mut bytes = fs::read(directory.join(&name)).expect("there");
            let below = Arc::new(MemoryDevice::from_bytes(&bytes).growable());
            amend(below.clone(), &version(wanted))
                .await
                .expect("amended");
            bytes = below.contents();
            fs::write(directory.join(&name), bytes).expect("written");
            let report = qemu_check(directory, &name);
            for wrong in ["corruptions", "leaks", "check-errors"] {
                assert_eq!(number(&report, wrong), 0, "{made}: {report}");
            }
            let compared = qemu_img(
                directory,
                &format!("compare -f qcow2 -F qcow2 before {name}"),
            );
            assert!(compared.contains("identical"), "{compared}");
            for image in [&name[..], "before"] {
                qemu_io(directory, image, &[&format!("write -P {wanted} 2M 100k")]);
            }
        }
    }
}

#[tokio::test]
async fn a_data_file_is_no_raw_image_any_more_and_unknown_autoclear_features_go() {
    const AUTOCLEAR: u64 = 88;
    let not_raw = AmendOptions {
        data_file_not_raw: true,
        ..Default::default()
    };
    let lazy = AmendOptions {
        lazy_refcounts: Some(true),
        ..Default::default()
    };
    let unknown = 1 << 62;
    for (options, before, after) in [
        (not_raw, Autoclear::RAW_DATA_FILE.bits() | unknown, 0),
        (not_raw, 0, 0),
        (not_raw, unknown, unknown),
        (
            lazy,
            Autoclear::RAW_DATA_FILE.bits() | unknown,
            Autoclear::RAW_DATA_FILE.bits(),
        ),
    ] {
        let image = memory(&with_data(16, 3));
        let name = || "the header".to_owned();
        let file = HostFile::new(image.clone());
        let bits = u64::to_be_bytes(before);
        file.patch(AUTOCLEAR, &bits).await.expect("written");
        let all_before = image.contents();
        amend(image.clone(), &options).await.expect("amended");
        let word = file.read_padded(AUTOCLEAR, Buffer::zeroed(8), name).await;
        assert_eq!(be64(&word.expect("read"), 0), after, "{options:?}");
        if before == after {
            assert!(image.contents() == all_before, "nothing was to change");
        }
    }
}

/// An image of version 2 with two snapshots, of which neither says how large the disk was.
async fn with_old_entries() -> Vec<u8> {
    const TABLE: usize = 64;
    let mut below = memory(&with_data(12, 2));
    for name in ["one", "two"] {
        let made = create_snapshot(below.clone(), name, &SnapshotOptions::default()).await;
        made.expect("made");
        below = copy(&below);
    }
    let mut bytes = below.contents();
    let table = be64(&bytes, TABLE) as usize;
    let long = bytes[table..table + 2 * 72].to_vec();
    bytes[table..table + 2 * 72].fill(0);
    for (at, entry) in long.chunks(72).enumerate() {
        assert_eq!(be32(entry, 36), 24, "the length of the extra data");
        let mut short = entry[..36].to_vec();
        short.extend([0; 4]);
        short.extend(&entry[64..68]);
        short.resize(48, 0);
        bytes[table + at * 48..table + (at + 1) * 48].copy_from_slice(&short);
    }
    bytes
}

async fn snapshots_of(below: &dyn BlockDevice) -> (Header, Vec<Snapshot>) {
    let header = Header::read(below).await.expect("sound");
    let table = SnapshotTable::read(below, &header).await.expect("sound");
    (header, table.snapshots)
}

#[tokio::test]
async fn snapshots_say_the_size_of_their_disk_before_version_3_has_them() {
    let first = with_old_entries().await;
    let (_, old) = snapshots_of(&MemoryDevice::from_bytes(&first)).await;
    assert!(old.len() == 2 && old.iter().all(|it| !it.says_size));
    let expected: Vec<_> = old
        .iter()
        .map(|snapshot| Snapshot {
            says_size: true,
            ..snapshot.clone()
        })
        .collect();
    let below = Arc::new(ForgetfulDevice::new(&first));
    amend(below.clone(), &version(3)).await.expect("amended");
    let whole = MemoryDevice::from_bytes(below.cut(usize::MAX, Survival::Nothing));
    let (header, new) = snapshots_of(&whole).await;
    assert_eq!((header.geometry.version, &new), (3, &expected));
    for events in 0..=below.events() {
        for seed in 0..4 {
            let survival = Survival::Sectors(seed + 10 * events as u64);
            let left = MemoryDevice::from_bytes(below.cut(events, survival));
            let (header, found) = snapshots_of(&left).await;
            let is_new = found == expected;
            assert!(is_new || found == old, "{found:?}");
            assert!(is_new || header.geometry.version == 2, "{events}, {seed}");
            assert!(check(&left).await.expect("checked").is_clean());
        }
    }
    if is_installed() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("image"), whole.contents()).expect("written");
        let report = qemu_check(directory.path(), "image");
        for wrong in ["corruptions", "leaks", "check-errors"] {
            assert_eq!(number(&report, wrong), 0, "{report}");
        }
    }
}
