use std::{fs, path::Path, sync::Arc};

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, ErrorKind, FileDevice, MemoryDevice, WriteFlags, ZeroFlags,
    testing::{self, check_device},
};

use super::{CreateOptions, header::Header};
use crate::{
    Image, OpenOptions,
    qemu::{is_installed, qemu_img},
    testing::pattern,
};

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

/// An image made here of `bytes` in pieces, and its file.
async fn made(path: &Path, bytes: &[u8], is_static: bool) {
    let below = FileDevice::create(path).expect("a file").growable();
    let options = CreateOptions {
        size: Some(bytes.len() as u64),
        is_static,
    };
    let new = super::create(Arc::new(below), options)
        .await
        .expect("begun");
    write_all(&*new, bytes).await;
    new.finish().await.expect("finished");
}

/// Writes what is no zeroes.
async fn write_all(new: &dyn crate::NewImage, bytes: &[u8]) {
    for piece in ByteRange::between(0, bytes.len() as u64).pieces(256 << 10) {
        let part = &bytes[piece.start() as usize..piece.end() as usize];
        if blockferry_block::is_zero(part) {
            new.zero(piece, ZeroFlags::empty()).await.expect("zeroed");
            continue;
        }
        let written = new.write(piece.start(), Buffer::from(part), WriteFlags::empty());
        written.await.expect("written");
    }
}

async fn read_file(path: &Path) -> Vec<u8> {
    let below = FileDevice::open(path, blockferry_block::Access::ReadOnly).expect("there");
    let disk = super::open(Arc::new(below), &OpenOptions::default()).await;
    let contents = testing::contents(&*disk.expect("sound"), 3_000_000).await;
    contents.expect("readable")
}

#[tokio::test]
async fn images_go_both_ways_between_here_and_qemu() {
    if !is_installed() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    for size in [0, 512, 70_000, 5 << 20, (9 << 20) + 1536] {
        let mut bytes = pattern(size);
        fs::write(path.join("raw"), &bytes).expect("written");
        bytes.resize(size.next_multiple_of(512), 0);
        for is_static in [false, true] {
            let option = if is_static { "on" } else { "off" };
            qemu_img(
                path,
                &format!("convert -f raw -O vdi -o static={option} raw theirs"),
            );
            assert!(read_file(&path.join("theirs")).await == bytes, "{size}");
            made(&path.join("ours"), &bytes[..size], is_static).await;
            assert!(read_file(&path.join("ours")).await == bytes, "{size}");
            qemu_img(path, "compare -f vdi -F raw ours raw");
            qemu_img(path, "check -f vdi ours");
            let info = qemu_img(path, "info -f vdi --output=json ours");
            let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
            assert_eq!(info["virtual-size"], bytes.len());
            let length = fs::metadata(path.join("ours")).expect("there").len();
            if is_static {
                assert_eq!(length, (1 << 20) + (size as u64).next_multiple_of(1 << 20));
            }
        }
    }
}

#[tokio::test]
async fn an_image_of_a_stream_has_room_for_its_map() {
    let below = Arc::new(MemoryDevice::new(0).growable());
    let new = super::create(below.clone(), CreateOptions::default()).await;
    let new = new.expect("begun");
    let bytes = pattern(3 << 20);
    write_all(&*new, &bytes).await;
    new.resize(4 << 20).await.expect("grown");
    let beyond = new.resize((1 << 40) + 1).await;
    let error = beyond.expect_err("no room").to_string();
    assert!(error.contains("whose size is known"), "{error}");
    new.finish().await.expect("finished");
    let disk = open(below.contents()).await.expect("sound");
    assert_eq!(disk.info().size, 4 << 20);
    let read = disk.read(0, Buffer::zeroed(3 << 20)).await.expect("read");
    assert!(read[..] == bytes);
}

#[tokio::test]
async fn what_no_image_can_have_is_refused() {
    let below: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(0).growable());
    let options = CreateOptions {
        size: Some(1 << 50),
        ..CreateOptions::default()
    };
    let refused = super::create(below, options).await;
    let error = refused.expect_err("too large").to_string();
    assert!(error.contains("bytes at most"), "{error}");
}

#[tokio::test]
async fn a_file_cut_short_anywhere_is_an_error_or_what_is_left() {
    let whole = image(&header(), MAP);
    for length in (0..whole.len()).step_by(61) {
        match open(whole[..length].to_vec()).await {
            Ok(disk) => {
                if let Err(error) = disk.read(0, Buffer::zeroed(4 * 4096 + 2000)).await {
                    assert_eq!(error.kind(), ErrorKind::Corrupt);
                }
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt),
        }
    }
}

/// What is wrong with the beginning of an image.
async fn look(bytes: Vec<u8>) -> blockferry_block::Result<()> {
    crate::testing::look(&*open(bytes).await?).await
}

#[tokio::test]
async fn every_lie_ends_in_one_line() {
    for (place, value, message) in [
        (
            0x40,
            1,
            "it is not a VDI image: it begins with something else",
        ),
        (0x46, 2, "VDI version 2.1 is not supported: only 1.1 is"),
        (0x49, 0, "a header of 144 bytes is too short"),
        (
            0x4c,
            3,
            "it is an undo image, whose parent VirtualBox alone knows: that is not supported",
        ),
        (
            0x4c,
            4,
            "it is a differencing image, whose parent VirtualBox alone knows: that is not supported",
        ),
        (0x4c, 9, "image type 9 is not known"),
        (
            0x1a8,
            1,
            "it is an image with a parent, whose parent VirtualBox alone knows: that is not supported",
        ),
        (0x178, 1, "there are no blocks of 4097 bytes"),
        (0x17b, 0x80, "there are no blocks of 2147487744 bytes"),
        (
            0x177,
            0x7f,
            "the disk has 9151314442816866256 bytes, and its 6 blocks of 4096 bytes have fewer",
        ),
        (
            0x180,
            4,
            "the disk has 18384 bytes, and its 4 blocks of 4096 bytes have fewer",
        ),
        (0x155, 0, "the block map lies at 0x0, in the header"),
        (0x157, 0x80, "the file ends before the end of its block map"),
        (0x200, 9, "block 0 lies at 0x94f0, past the end of the file"),
        (0x203, 0x80, "block 0 lies at 0x80c0000"),
        (
            0x200,
            0,
            "block 0 of the file is several blocks of the disk, 0 among them",
        ),
        (
            0x159,
            0,
            "block 2 lies at 0x18, in the header or the block map",
        ),
    ] {
        let mut bytes = image(&header(), MAP);
        bytes[place] = value;
        let error = look(bytes).await.expect_err(message).to_string();
        assert!(error.contains(message), "{place:#x}: {error}");
        assert!(!error.contains(char::is_control), "{error}");
    }
    look(image(&header(), MAP)).await.expect("the truth");
}

#[tokio::test]
async fn every_byte_of_the_header_and_the_map_may_be_anything() {
    let whole = image(&header(), MAP);
    for place in 0..0x218 {
        for value in [0, 1, 0x7f, 0x81, 0xff] {
            let mut bytes = whole.clone();
            bytes[place] = value;
            if let Err(error) = look(bytes).await {
                assert!(!error.to_string().contains(char::is_control), "{error}");
            }
        }
    }
}
