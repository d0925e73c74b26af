//! Images that qemu's tools made: the bytes, what is known of them, and what they say of themselves.

use std::fs;

use blockferry_block::Buffer;
use tempfile::tempdir;

use crate::{
    qemu::{is_installed, qemu_img},
    support::{compare, compare_map, details, open, qemu_io, varied},
};

const SUBFORMATS: [&str; 5] = [
    "monolithicSparse",
    "streamOptimized",
    "monolithicFlat",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_subformat_is_read_as_qemu_reads_it() {
    if !is_installed() {
        return;
    }
    let directory = tempdir().expect("a directory");
    let directory = directory.path();
    // Whole grains, a part of one, and less than a sector.
    for (size, seed) in [(2 << 20, 1), ((33 << 20) + 70_000, 2), (1000, 3)] {
        fs::write(directory.join("disk"), varied(size, seed)).expect("written");
        for subformat in SUBFORMATS {
            let name = format!("{subformat}-{size}.vmdk");
            let options = format!("convert -f raw -O vmdk -o subformat={subformat} disk {name}");
            qemu_img(directory, &options);
            let image = open(directory, &name).await;
            compare(directory, &name, &*image).await;
        }
    }
}

#[tokio::test]
async fn a_disk_of_several_extents_is_one_disk() {
    if !is_installed() {
        return;
    }
    let directory = tempdir().expect("a directory");
    let directory = directory.path();
    for subformat in ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        let name = format!("{subformat}.vmdk");
        qemu_img(
            directory,
            &format!("create -f vmdk -o subformat={subformat} {name} 5G"),
        );
        let patterns = [
            "write -P 1 0 64k",
            "write -P 2 2146435072 2M",
            "write -P 3 4290772992 200k",
            "write -P 4 5368705024 4k",
        ];
        qemu_io(directory, &name, &patterns);
        let image = open(directory, &name).await;
        assert!(details(&*image).extents.len() >= 3);
        compare_map(directory, &name, &*image).await;
        for (at, length, byte) in [
            (0, 65536, 1),
            (2_146_435_072, 2 << 20, 2),
            (4_290_772_992, 200 << 10, 3),
            (5_368_705_024, 4096, 4),
        ] {
            let read = image.read(
                at - at.min(512),
                Buffer::zeroed(length + at.min(512) as usize),
            );
            let read = read.await.expect("read");
            let (before, own) = read.split_at(at.min(512) as usize);
            assert!(before.iter().all(|byte| *byte == 0), "{name} before {at}");
            assert!(own.iter().all(|own| *own == byte), "{name} at {at}");
        }
    }
}

#[tokio::test]
async fn a_chain_is_read_as_one_disk() {
    if !is_installed() {
        return;
    }
    let directory = tempdir().expect("a directory");
    let directory = directory.path();
    fs::write(directory.join("disk"), varied(6 << 20, 9)).expect("written");
    qemu_img(directory, "convert -f raw -O vmdk disk base.vmdk");
    qemu_img(directory, "create -f vmdk -F vmdk -b base.vmdk middle.vmdk");
    let commands = ["write -P 5 1M 192k", "write -P 6 5M 1k"];
    qemu_io(directory, "middle.vmdk", &commands);
    qemu_img(
        directory,
        "create -f vmdk -o zeroed_grain=on -F vmdk -b middle.vmdk top.vmdk",
    );
    let commands = ["write -P 7 2M 64k", "write -z 1M 128k", "write -z 3M 256k"];
    qemu_io(directory, "top.vmdk", &commands);
    for name in ["middle.vmdk", "top.vmdk"] {
        let image = open(directory, name).await;
        assert!(details(&*image).parent.is_some());
        compare(directory, name, &*image).await;
    }
}

#[tokio::test]
async fn a_parent_that_was_changed_is_not_taken() {
    if !is_installed() {
        return;
    }
    let directory = tempdir().expect("a directory");
    let directory = directory.path();
    qemu_img(directory, "create -f vmdk base.vmdk 1M");
    qemu_img(directory, "create -f vmdk -F vmdk -b base.vmdk top.vmdk");
    let before = details(&*open(directory, "base.vmdk").await).cid;
    qemu_io(directory, "base.vmdk", &["write -P 5 0 64k"]);
    let after = details(&*open(directory, "base.vmdk").await).cid;
    let refused = crate::support::try_open(directory, "top.vmdk").await;
    let error = refused.expect_err("another parent").to_string();
    let expected = format!(
        "open: the backing file \"base.vmdk\" was changed since: its CID is {after:08x}, and {before:08x} is expected"
    );
    assert_eq!(error, expected);
}

#[tokio::test]
async fn what_an_image_says_of_itself_is_what_qemu_shows() {
    if !is_installed() {
        return;
    }
    let directory = tempdir().expect("a directory");
    let directory = directory.path();
    for subformat in SUBFORMATS {
        let name = format!("{subformat}.vmdk");
        qemu_img(
            directory,
            &format!("create -f vmdk -o subformat={subformat} {name} 10M"),
        );
        let shown = qemu_img(directory, &format!("info --output=json {name}"));
        let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
        let data = &shown["format-specific"]["data"];
        let details = details(&*open(directory, &name).await);
        assert_eq!(data["cid"], details.cid);
        assert_eq!(data["parent-cid"], details.parent_cid);
        assert_eq!(data["create-type"], details.create_type);
        assert_eq!(shown["virtual-size"], details.virtual_size);
        assert_eq!(shown["cluster-size"].as_u64(), details.cluster_size);
        let extents = data["extents"].as_array().expect("a list");
        assert_eq!(extents.len(), details.extents.len());
        for (its, own) in extents.iter().zip(&details.extents) {
            assert_eq!(its["virtual-size"], own.virtual_size);
            assert_eq!(its["cluster-size"].as_u64(), own.cluster_size);
            assert_eq!(
                its["compressed"].as_bool().unwrap_or(false),
                own.is_compressed
            );
            let file = own.file.as_ref().map_or(name.as_bytes(), |file| &file.name);
            assert_eq!(its["filename"].as_str().map(str::as_bytes), Some(file));
            // It has no word for what is in the image itself.
            let format = own.file.as_ref().map_or("", |_| &own.kind);
            assert_eq!(its["format"], format);
        }
    }
}

/// An ESX sparse extent of `grains` grains of 512 bytes, of which those of `allocated` have these bytes.
fn esx_extent(grains: u32, allocated: &[(u32, u8)]) -> Vec<u8> {
    let mut bytes = vec![0; 2048];
    let mut put = |at: usize, number: u32| bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
    put(0, u32::from_le_bytes(*b"COWD"));
    put(4, 1);
    put(8, 3);
    put(12, grains);
    put(16, 1);
    // The directory, with an entry for each 4096 grains, and how many of them there are.
    put(20, 4);
    put(24, grains.div_ceil(4096));
    bytes.resize(5 * 512, 0);
    for table in 0..grains.div_ceil(4096) {
        if !allocated.iter().any(|(grain, _)| grain / 4096 == table) {
            continue;
        }
        let place = bytes.len();
        bytes.resize(place + 4 * 4096, 0);
        let entry = 2048 + 4 * table as usize;
        bytes[entry..entry + 4].copy_from_slice(&(place as u32 / 512).to_le_bytes());
        for (grain, byte) in allocated.iter().filter(|(grain, _)| grain / 4096 == table) {
            let entry = place + 4 * (grain % 4096) as usize;
            let sector = bytes.len() as u32 / 512;
            bytes[entry..entry + 4].copy_from_slice(&sector.to_le_bytes());
            bytes.extend([*byte; 512]);
        }
    }
    bytes
}

#[tokio::test]
async fn an_esx_sparse_extent_is_read_as_qemu_reads_it() {
    let directory = tempdir().expect("a directory");
    let directory = directory.path();
    let allocated = [(0, 1), (1, 2), (5, 3), (4095, 4), (9000, 5), (20_000, 6)];
    let extent = esx_extent(20_001, &allocated);
    fs::write(directory.join("disk-delta.vmdk"), extent).expect("written");
    let text = "# Disk DescriptorFile\nversion=1\nCID=123a\nparentCID=ffffffff\ncreateType=\"vmfsSparse\"\n\
                RW 20001 VMFSSPARSE \"disk-delta.vmdk\"\n";
    fs::write(directory.join("disk.vmdk"), text).expect("written");
    let image = open(directory, "disk.vmdk").await;
    for (grain, byte) in allocated {
        let read = image
            .read(u64::from(grain) * 512, Buffer::zeroed(512))
            .await;
        assert_eq!(read.expect("read")[..], [byte; 512]);
    }
    if is_installed() {
        compare(directory, "disk.vmdk", &*image).await;
    }
}

#[tokio::test]
async fn an_extent_of_zeroes_keeps_its_place() {
    let directory = tempdir().expect("a directory");
    let directory = directory.path();
    fs::write(directory.join("a"), [7; 2048]).expect("written");
    let text = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"custom\"\n\
                RW 2 FLAT \"a\" 1\nRDONLY 3 ZERO\nRW 1 VMFS \"a\"\n";
    fs::write(directory.join("disk.vmdk"), text).expect("written");
    let image = open(directory, "disk.vmdk").await;
    let read = image.read(0, Buffer::zeroed(6 * 512)).await.expect("read");
    let expected = [vec![7; 1024], vec![0; 1536], vec![7; 512]].concat();
    assert_eq!(read[..], expected);
}
