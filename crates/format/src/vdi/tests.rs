use std::sync::Arc;

use blockferry_block::{BlockDevice, Buffer, MemoryDevice, testing::check_device};

use super::header::Header;
use crate::{Image, OpenOptions};

const BLOCK: u64 = 4096;

/// A header of four blocks and a half whose blocks have something before them.
fn header() -> Header {
    Header {
        is_static: false,
        map: 0x200,
        data: 0x400,
        size: 4 * BLOCK + 2000,
        block: BLOCK,
        extra: 24,
        blocks: 6,
        allocated: 3,
        uuid: [1; 16],
        modified: [2; 16],
    }
}

/// An image with this map and five blocks in its file, of bytes that tell where they lie.
fn image(header: &Header, map: [u32; 6]) -> Vec<u8> {
    let length = header.data + 5 * (header.block + header.extra);
    let mut bytes: Vec<u8> = (0..length).map(|at| (at / 16 % 255) as u8 + 1).collect();
    bytes[..512].copy_from_slice(&header.encode());
    for (entry, bytes) in map.iter().zip(bytes[header.map as usize..].chunks_mut(4)) {
        bytes.copy_from_slice(&entry.to_le_bytes());
    }
    bytes
}

async fn open(bytes: Vec<u8>) -> blockferry_block::Result<Arc<dyn Image>> {
    let below: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_bytes(bytes));
    super::open(below, &OpenOptions::default()).await
}

const MAP: [u32; 6] = [2, 0xffff_ffff, 0, 0xffff_fffe, 4, 77];

#[test]
fn a_header_that_was_written_is_read_again() {
    for is_static in [false, true] {
        let header = Header {
            is_static,
            ..header()
        };
        assert_eq!(Header::parse(&header.encode()).expect("sound"), header);
    }
}

#[tokio::test]
async fn blocks_are_found_behind_what_lies_before_them() {
    let bytes = image(&header(), MAP);
    let disk = open(bytes.clone()).await.expect("sound");
    let size = 4 * BLOCK as usize + 2000;
    let read = disk.read(0, Buffer::zeroed(size)).await.expect("read");
    let block = |number: usize| &bytes[0x400 + number * 4120 + 24..][..4096];
    assert!(read[..4096] == *block(2));
    assert!(read[4096..8192].iter().all(|byte| *byte == 0));
    assert!(read[8192..12288] == *block(0));
    assert!(read[12288..16384].iter().all(|byte| *byte == 0));
    assert!(read[16384..] == block(4)[..2000]);
    for seed in 0..8 {
        check_device(&*disk, seed, 200).await;
    }
    let crate::Details::Vdi(details) = disk.details() else {
        panic!("it is VDI");
    };
    assert_eq!(
        (details.virtual_size, details.block_size),
        (size as u64, BLOCK)
    );
    assert_eq!((details.is_static, details.uuid), (false, [1; 16]));
    assert_eq!(disk.info().size, size as u64);
}

#[tokio::test]
async fn an_image_is_not_written_and_not_too_large() {
    let bytes = image(&header(), MAP);
    let below: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_bytes(bytes));
    for (writable, max_size) in [(true, None), (false, Some(4 * BLOCK))] {
        let options = OpenOptions {
            writable,
            max_size,
            ..OpenOptions::default()
        };
        assert!(super::open(Arc::clone(&below), &options).await.is_err());
    }
}
