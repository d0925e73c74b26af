//! Images built by hand, and images of qemu's.

mod builder;
mod chains;
mod damage;
mod qemu;

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, ByteRange, FileDevice, MemoryDevice, Result,
    testing::{self, check_device},
};

use self::builder::Builder;
use super::{Details, Kind, footer::Footer};
use crate::{Image, NoRelatives, OpenOptions};

pub(super) fn memory(bytes: Vec<u8>) -> Arc<dyn BlockDevice> {
    Arc::new(MemoryDevice::from_bytes(bytes))
}

async fn open(bytes: Vec<u8>) -> Result<Arc<dyn Image>> {
    super::open(memory(bytes), &NoRelatives, &OpenOptions::default()).await
}

fn details(image: &dyn Image) -> Details {
    match image.details() {
        crate::Details::Vpc(details) => details,
        other => panic!("{other:?} is not a VHD image"),
    }
}

/// All that `device` holds.
async fn contents(device: &dyn BlockDevice) -> Vec<u8> {
    let contents = testing::contents(device, 3_000_000).await;
    contents.expect("readable")
}

#[tokio::test]
async fn a_dynamic_image_is_read_in_blocks_of_any_size() {
    for block in [512, 4096, 64 << 10, 2 << 20] {
        let built = Builder::dynamic(5 * block + 1536, block)
            .with(0, 7)
            .with(2, 9)
            .with(5, 11);
        let disk = open(built.build()).await.expect("sound");
        assert_eq!(contents(&*disk).await, built.disk());
        let told = details(&*disk);
        assert_eq!(told.virtual_size, 5 * block + 1536);
        assert_eq!((told.block_size, told.kind), (Some(block), Kind::Dynamic));
        assert!(!told.is_footer_damaged && told.parent.is_none());
        for seed in 0..3 {
            check_device(&*disk, seed, 100).await;
        }
    }
}

#[tokio::test]
async fn a_fixed_image_ends_before_its_footer_of_either_length() {
    for length in [512, 511] {
        let mut bytes: Vec<u8> = (0..68 * 512).map(|at| (at / 100) as u8).collect();
        let disk = bytes.clone();
        let footer = Builder::fixed(68 * 512).footer();
        bytes.extend(&footer[..length]);
        let image = open(bytes.clone()).await.expect("sound");
        assert_eq!(contents(&*image).await, disk);
        assert_eq!(details(&*image).block_size, None);
        for seed in 0..4 {
            check_device(&*image, seed, 100).await;
        }
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), &bytes).expect("written");
        let below = FileDevice::open(file.path(), blockferry_block::Access::ReadOnly);
        let below = Arc::new(below.expect("opened"));
        let image = super::open(below, &NoRelatives, &OpenOptions::default()).await;
        let image = image.expect("sound");
        let all = ByteRange::between(5, image.info().size);
        let mapping = image.mapping(all);
        let blockferry_block::Mapping::File { offset, length, .. } = mapping else {
            panic!("all of it lies in the file");
        };
        assert_eq!((offset, length), (5, all.len()));
    }
}

#[tokio::test]
async fn a_fixed_image_is_read_through_a_device_of_large_blocks() {
    let mut bytes: Vec<u8> = (0..69 * 512).map(|at| (at / 77) as u8).collect();
    let disk = bytes.clone();
    bytes.extend(Builder::fixed(69 * 512).footer());
    bytes.resize(bytes.len().next_multiple_of(4096), 0);
    let end = bytes.len() - 512;
    let footer = Builder::fixed(69 * 512).footer();
    bytes[end..].copy_from_slice(&footer);
    let coarse = blockferry_block::testing::FaultyDevice::new(memory(bytes)).with_info(|info| {
        info.limits.minimum = 4096;
    });
    let image = super::open(Arc::new(coarse), &NoRelatives, &OpenOptions::default()).await;
    let image = image.expect("sound");
    assert_eq!(contents(&*image).await, disk);
    check_device(&*image, 1, 100).await;
}

#[tokio::test]
async fn the_size_is_that_of_the_geometry_where_the_maker_means_it() {
    let size = 69 * 512;
    for (creator, expected) in [
        (b"vpc ", 68 * 512),
        (b"qemu", 68 * 512),
        (b"win ", size),
        (b"qem2", size),
        (b"d2v ", size),
        (b"tap\0", size),
        (b"CTXS", size),
        (b"wa\0\0", size),
        (b"vbox", size),
        (b"vs  ", size),
    ] {
        let built = Builder::dynamic(size, 4096).with(0, 3).creator(*creator);
        let image = open(built.build()).await.expect("sound");
        assert_eq!(image.info().size, expected, "{creator:?}");
        assert_eq!(details(&*image).creator.as_bytes(), creator);
    }
    let built = Builder::dynamic(size, 4096)
        .creator(*b"vpc ")
        .largest_geometry();
    let image = open(built.build()).await.expect("sound");
    assert_eq!(image.info().size, size);
}

#[tokio::test]
async fn a_saved_state_is_told() {
    let built = Builder::dynamic(68 * 512, 4096).saved_state();
    let image = open(built.build()).await.expect("sound");
    assert!(details(&*image).has_saved_state);
    let told = Details::read(&memory(built.build())).await.expect("sound");
    assert_eq!(told, details(&*image));
}

#[tokio::test]
async fn what_a_guest_wrote_at_the_beginning_of_a_fixed_disk_is_data() {
    let mut bytes = Builder::dynamic(68 * 512, 4096).with(0, 3).build();
    bytes.resize(68 * 512, 0);
    let disk = bytes.clone();
    bytes.extend(Builder::fixed(68 * 512).footer());
    let image = open(bytes).await.expect("sound");
    assert_eq!(details(&*image).kind, Kind::Fixed);
    assert_eq!(contents(&*image).await, disk);
}

#[test]
fn a_footer_that_was_written_is_read_again() {
    let bytes = Builder::dynamic(68 * 512, 4096).saved_state().footer();
    let footer = Footer::parse(&bytes).expect("sound");
    assert_eq!(footer.encode()[..], bytes[..]);
}

#[tokio::test]
async fn an_image_is_not_written_and_not_too_large() {
    let below = memory(Builder::dynamic(68 * 512, 4096).build());
    for (writable, max_size) in [(true, None), (false, Some(4096))] {
        let options = OpenOptions {
            writable,
            max_size,
            ..OpenOptions::default()
        };
        let opened = super::open(Arc::clone(&below), &NoRelatives, &options).await;
        assert!(opened.is_err());
    }
}
