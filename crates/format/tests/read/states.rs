//! Images in the states that they can be left in: with snapshots, with bitmaps, not closed, damaged.

use std::{
    fs::OpenOptions as File,
    io::{Seek, SeekFrom, Write},
    path::Path,
};

use blockferry_block::{ByteRange, Context, Extent, Status, push_merged};
use blockferry_format::OpenOptions;
use tempfile::tempdir;

use crate::{
    qemu::{is_installed, qemu_img, qemu_io},
    support::{contents, contents_for_qemu, details, open, open_with, status},
};

#[tokio::test]
async fn a_snapshot_has_its_own_contents_and_size() {
    if !is_installed() {
        return;
    }
    let directory = tempdir().expect("a directory");
    let directory = directory.path();
    for options in [
        "cluster_size=64k",
        "cluster_size=4k,compat=0.10",
        "extended_l2=on",
    ] {
        let name = "image.qcow2";
        qemu_img(
            directory,
            &format!("create -q -f qcow2 -o {options} {name} 2M"),
        );
        qemu_io(
            directory,
            name,
            &["write -P 1 0 300k", "write -P 2 1M 5000"],
        );
        qemu_img(directory, &format!("snapshot -c early {name}"));
        qemu_io(directory, name, &["write -P 3 100k 70k", "discard 1M 128k"]);
        qemu_img(directory, &format!("snapshot -c late {name}"));
        qemu_io(directory, name, &["write -P 4 0 1M"]);
        if !options.contains("0.10") {
            qemu_img(directory, &format!("resize -q {name} 3M"));
        }
        for (snapshot, id) in [("early", "1"), ("late", "2")] {
            // qemu-img gives it the image's present size, with zeroes where there was nothing.
            let mut expected = contents_for_qemu(directory, name, &format!("-l {snapshot} "));
            assert!(expected.split_off(2 << 20).iter().all(|byte| *byte == 0));
            for wanted in [snapshot, id] {
                let mut chosen = OpenOptions::default();
                chosen.snapshot = Some(wanted.to_owned());
                let image = open_with(directory, name, &chosen).await;
                assert_eq!(image.info().size, 2 << 20, "{options} {wanted}");
                assert!(contents(&*image).await == expected, "{options} {wanted}");
            }
        }
        let now = open(directory, name).await;
        assert!(
            contents(&*now).await == contents_for_qemu(directory, name, ""),
            "{options}"
        );
        assert_eq!(details(&*now).snapshots.len(), 2);
    }
}

#[tokio::test]
async fn bitmaps_say_what_was_written() {
    if !is_installed() {
        return;
    }
    let directory = tempdir().expect("a directory");
    let directory = directory.path();
    let name = "image.qcow2";
    qemu_img(directory, &format!("create -q -f qcow2 {name} 40M"));
    qemu_img(directory, &format!("bitmap --add -g 4k {name} fine"));
    qemu_img(directory, &format!("bitmap --add -g 1M {name} coarse"));
    qemu_io(
        directory,
        name,
        &["write 1M 1", "write -P 5 10M 3M", "write -z 39M 512"],
    );
    let image = open(directory, name).await;
    for (bitmap, granularity) in [("fine", 4096), ("coarse", 1 << 20)] {
        let mut expected = Vec::new();
        for piece in ByteRange::between(0, 40 << 20).pieces(granularity) {
            let written = [(1 << 20, 1), (10 << 20, 3 << 20), (39 << 20, 512)];
            let written = written.map(|(start, length)| ByteRange::between(start, start + length));
            let is_dirty = written.iter().any(|it| !it.intersection(piece).is_empty());
            let status = Status(is_dirty.into());
            push_merged(
                &mut expected,
                Extent {
                    range: piece,
                    status,
                },
            );
        }
        let context = Context::DirtyBitmap(bitmap.to_owned());
        assert!(image.info().contexts.contains(&context));
        for step in [u64::MAX, 3_000_000] {
            assert_eq!(status(&*image, &context, step).await, expected, "{bitmap}");
        }
        let first = image.first_extent(expected[1].range, &context).await;
        assert_eq!(first.expect("an answer"), expected[1..2]);
    }
    let none = Context::DirtyBitmap("none".to_owned());
    let whole = ByteRange::between(0, 40 << 20);
    assert!(image.extents(whole, &none).await.is_err());
}

/// Sets bits among the incompatible features.
fn mark(image: &Path, bits: u8) {
    let mut file = File::new().write(true).open(image).expect("there");
    file.seek(SeekFrom::Start(79)).expect("long enough");
    file.write_all(&[bits]).expect("written");
}

#[tokio::test]
async fn images_that_were_not_closed_or_are_damaged_are_read_all_the_same() {
    if !is_installed() {
        return;
    }
    let directory = tempdir().expect("a directory");
    let directory = directory.path();
    let name = "image.qcow2";
    qemu_img(
        directory,
        &format!("create -q -f qcow2 -o lazy_refcounts=on {name} 2M"),
    );
    qemu_io(
        directory,
        name,
        &["write -P 1 0 300k", "write -P 2 1M 5000"],
    );
    let expected = contents_for_qemu(directory, name, "");
    for (bits, is_dirty, is_corrupt) in [(1, true, false), (2, false, true), (3, true, true)] {
        mark(&directory.join(name), bits);
        let image = open(directory, name).await;
        let details = details(&*image);
        assert_eq!(
            (details.is_dirty, details.is_corrupt),
            (is_dirty, is_corrupt)
        );
        assert!(contents(&*image).await == expected);
        let unchanged = std::fs::read(directory.join(name)).expect("there");
        assert_eq!(unchanged[79], bits, "reading changes nothing");
    }
}
