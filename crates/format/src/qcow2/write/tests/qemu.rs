//! Images of qemu's, written here, and then read, checked and written by qemu.

use std::{fs, path::Path};

use blockferry_block::{Access, FileDevice};

use super::*;
use crate::qcow2::qemu::{is_installed, number, qemu_check, qemu_img, qemu_io};

fn file(path: &Path) -> Arc<dyn BlockDevice> {
    let file = FileDevice::open(path, Access::ReadWrite).expect("opened");
    Arc::new(file.growable())
}

fn check_with_qemu(directory: &Path, what: &str) {
    let report = qemu_check(directory, "disk.qcow2");
    for name in ["check-errors", "corruptions", "leaks"] {
        assert_eq!(number(&report, name), 0, "{what}: {report}");
    }
}

/// What qemu reads.
fn raw(directory: &Path) -> Vec<u8> {
    qemu_img(directory, "convert -f qcow2 -O raw disk.qcow2 disk.raw");
    fs::read(directory.join("disk.raw")).expect("converted")
}

const OPTIONS: [&str; 19] = [
    "cluster_size=512",
    "cluster_size=1k",
    "cluster_size=2k",
    "cluster_size=4k",
    "cluster_size=64k",
    "cluster_size=256k",
    "cluster_size=2M",
    "cluster_size=512,refcount_bits=1",
    "cluster_size=1k,refcount_bits=2",
    "cluster_size=4k,refcount_bits=4",
    "cluster_size=512,refcount_bits=8",
    "cluster_size=512,refcount_bits=32",
    "cluster_size=512,refcount_bits=64",
    "cluster_size=16k,extended_l2=on",
    "cluster_size=64k,extended_l2=on",
    "cluster_size=4k,compat=0.10",
    "cluster_size=4k,compression_type=zstd,lazy_refcounts=on",
    "cluster_size=4k,data_file=disk.data",
    "cluster_size=4k,data_file=disk.data,data_file_raw=on",
];

#[tokio::test]
async fn images_of_qemu_are_written_and_read_by_qemu() {
    if !is_installed() {
        return;
    }
    for (turn, options) in OPTIONS.into_iter().enumerate() {
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path();
        let path = directory.join("disk.qcow2");
        qemu_img(
            directory,
            &format!("create -q -f qcow2 -o {options} disk.qcow2 3M"),
        );
        let writes = ["write -P 1 0 300k", "write -P 2 2M 500k", "write -z 1M 64k"];
        qemu_io(directory, "disk.qcow2", &writes);
        let has_data_file = options.contains("data_file");
        if !has_data_file && !options.ends_with("bits=1") {
            if !options.contains("refcount_bits") && !options.contains("2M") {
                qemu_io(directory, "disk.qcow2", &["write -c -P 4 1536k 512k"]);
            }
            qemu_img(directory, "snapshot -c one disk.qcow2");
            qemu_io(directory, "disk.qcow2", &["write -P 5 200k 512k"]);
        }
        let relatives = || Relatives {
            backing: None,
            data: has_data_file.then(|| file(&directory.join("disk.data"))),
        };
        for round in 0..2 {
            let image = open_with(file(&path), &relatives()).await;
            check_device(&image, (turn * 2 + round) as u64, 60).await;
            image.close().await.expect("closed");
            let expected = contents(&image).await;
            drop(image);
            check_with_qemu(directory, options);
            assert!(raw(directory) == expected, "{options}: qemu reads the same");
            if options.contains("data_file_raw") {
                let data = fs::read(directory.join("disk.data")).expect("raw");
                assert!(
                    data == expected,
                    "{options}: so does who reads the data file"
                );
            }
            let writes = [
                "write -P 6 100k 70k",
                "write -P 7 2500k 200k",
                "discard 1M 300k",
            ];
            qemu_io(directory, "disk.qcow2", &writes);
            check_with_qemu(directory, options);
            let image = open_with(file(&path), &relatives()).await;
            assert!(
                contents(&image).await == raw(directory),
                "{options}: we read what qemu wrote"
            );
        }
    }
}

#[tokio::test]
async fn overlays_of_qemu_are_written_and_read_by_qemu() {
    if !is_installed() {
        return;
    }
    for (turn, options) in [
        "cluster_size=4k",
        "cluster_size=16k,extended_l2=on",
        "compat=0.10",
    ]
    .into_iter()
    .enumerate()
    {
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path();
        fs::write(directory.join("base.raw"), text(3, 2_500_000)).expect("written");
        let create = "create -q -f qcow2 -F raw -b base.raw -o";
        qemu_img(directory, &format!("{create} {options} disk.qcow2 3M"));
        let relatives = Relatives {
            backing: Some(file(&directory.join("base.raw"))),
            data: None,
        };
        let image = open_with(file(&directory.join("disk.qcow2")), &relatives).await;
        check_device(&image, turn as u64, 120).await;
        image.close().await.expect("closed");
        let expected = contents(&image).await;
        check_with_qemu(directory, options);
        assert!(raw(directory) == expected, "{options}");
        let base = fs::read(directory.join("base.raw")).expect("the base");
        assert!(base == text(3, 2_500_000), "the backing file is as it was");
    }
}

#[tokio::test]
async fn bitmaps_that_are_disabled_stay_as_they_are() {
    if !is_installed() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    qemu_img(
        directory,
        "create -q -f qcow2 -o cluster_size=4k disk.qcow2 3M",
    );
    qemu_img(directory, "bitmap --add -g 4k disk.qcow2 b0");
    qemu_io(directory, "disk.qcow2", &["write -P 1 1M 64k"]);
    let path = directory.join("disk.qcow2");
    qemu_img(directory, "bitmap --disable disk.qcow2 b0");
    let image = open(file(&path)).await;
    let context = blockferry_block::Context::DirtyBitmap("b0".to_owned());
    let whole = ByteRange::between(0, 3 << 20);
    let before = image.extents(whole, &context).await.expect("known");
    check_device(&image, 5, 100).await;
    image.close().await.expect("closed");
    drop(image);
    check_with_qemu(directory, "bitmaps");
    let image = open(file(&path)).await;
    assert_eq!(image.extents(whole, &context).await.expect("known"), before);
    let info = qemu_img(directory, "info --output=json disk.qcow2");
    assert!(info.contains("\"b0\""), "{info}");
}

#[tokio::test]
async fn bitmaps_that_are_to_have_what_is_written_say_that_they_do_not() {
    if !is_installed() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    qemu_img(directory, "create -q -f qcow2 disk.qcow2 3M");
    for (name, option) in [("enabled", "--enable"), ("disabled", "--disable")] {
        qemu_img(directory, &format!("bitmap --add disk.qcow2 {name}"));
        qemu_img(directory, &format!("bitmap {option} disk.qcow2 {name}"));
    }
    let path = directory.join("disk.qcow2");
    let before = fs::read(&path).expect("read");
    let image = open(file(&path)).await;
    image.close().await.expect("closed");
    assert!(
        fs::read(&path).expect("read") == before,
        "nothing was written"
    );
    let data = Buffer::from(&[7; 512][..]);
    image
        .write(0, data, WriteFlags::empty())
        .await
        .expect("written");
    let names = image.info().contexts.iter().map(ToString::to_string);
    let names: Vec<_> = names.filter(|name| name.contains("bitmap")).collect();
    assert_eq!(names, ["qemu:dirty-bitmap:disabled"]);
    image.close().await.expect("closed");
    drop(image);
    check_with_qemu(directory, "bitmaps");
    let details = crate::qcow2::Details::read(&file(&path)).await;
    let bitmaps = details.expect("read").bitmaps;
    let in_use = bitmaps.iter().map(|it| (it.name.as_str(), it.in_use));
    let in_use: Vec<_> = in_use.collect();
    assert_eq!(in_use, [("enabled", true), ("disabled", false)]);
    qemu_img(directory, "bitmap --remove disk.qcow2 enabled");
    check_with_qemu(directory, "removed");
}
