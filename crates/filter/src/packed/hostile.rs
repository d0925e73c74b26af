//! Tests with files that lie about themselves.

use std::sync::Arc;

use blockferry_block::{BlockDevice, Buffer, ByteRange, ErrorKind, MemoryDevice};
use liblzma::stream::Check;

use super::{
    blocks::{Blocks, Tally},
    index::{Builder, Packed, Unfit},
    samples,
};
use crate::testing::{refusal, through};

fn memory(bytes: &[u8]) -> Arc<dyn BlockDevice> {
    Arc::new(MemoryDevice::from_bytes(bytes))
}

/// Why the first byte cannot be read.
async fn failure(filter: &str, packed: &[u8]) -> String {
    let device = through(&[filter], memory(packed)).await;
    let read = device.read(0, Buffer::zeroed(1)).await;
    read.expect_err("a lie").to_string()
}

fn number(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// An xz file of one stream, whose index says of its `blocks` whatever `records` are: unpadded and unpacked sizes.
fn xz_saying(blocks: &[u8], records: &[(u64, u64)]) -> Vec<u8> {
    let mut packed = vec![0xfd, b'7', b'z', b'X', b'Z', 0, 0, 4];
    packed.extend_from_slice(&crc32fast::hash(&[0, 4]).to_le_bytes());
    packed.extend_from_slice(blocks);
    let mut index = vec![0];
    index.extend(number(records.len() as u64));
    for (unpadded, unpacked) in records {
        index.extend(number(*unpadded));
        index.extend(number(*unpacked));
    }
    index.resize(index.len().next_multiple_of(4), 0);
    let crc = crc32fast::hash(&index);
    index.extend_from_slice(&crc.to_le_bytes());
    let mut footer = (index.len() as u32 / 4 - 1).to_le_bytes().to_vec();
    footer.extend_from_slice(&[0, 4]);
    packed.extend_from_slice(&index);
    packed.extend_from_slice(&crc32fast::hash(&footer).to_le_bytes());
    packed.extend_from_slice(&footer);
    packed.extend_from_slice(b"YZ");
    packed
}

#[tokio::test]
async fn an_xz_index_that_lies_is_found_out() {
    let image = samples::image(50_000);
    let whole = samples::xz(&image, image.len(), Check::Crc64);
    // Its footer, and an index of 1 + 1 + 3 + 3 bytes and a checksum.
    let blocks = &whole[12..whole.len() - 12 - 12];
    let unpadded = blocks.len() as u64;
    let honest = xz_saying(blocks, &[(unpadded, 50_000)]);
    let device = through(&["xz"], memory(&honest)).await;
    let read = device
        .read(0, Buffer::zeroed(50_000))
        .await
        .expect("honest");
    assert!(read[..] == image);

    let block = "read of 1 bytes at offset 0: xz: block 0 at offset 12: ";
    let damaged = ": the file is damaged";
    for (records, message) in [
        (vec![(unpadded, 49_999)], "it holds more than 49999 bytes"),
        (vec![(unpadded, 50_001)], "it holds 50000 bytes, not 50001"),
        // Memory for that is never touched.
        (
            vec![(unpadded, 500 << 20)],
            "it holds 50000 bytes, not 524288000",
        ),
        (vec![(unpadded - 400, 50_000), (400, 1)], "it holds "),
    ] {
        let text = failure("xz", &xz_saying(blocks, &records)).await;
        assert!(text.starts_with(&format!("{block}{message}")), "{text}");
        assert!(text.ends_with(damaged), "{text}");
    }
    let most = (1 << 63) - 1;
    for (records, message) in [
        (vec![(most, 1)], "blocks that have no room before the index"),
        (
            vec![(most, 1), (most, 1), (most, 1)],
            "blocks that have no room before the index",
        ),
        (vec![(unpadded - 4, 50_000)], "a wrong header"),
        (vec![(4, 50_000)], "a wrong index"),
        (
            vec![(unpadded, most - 4), (unpadded, most)],
            "blocks that have no room",
        ),
    ] {
        let error = refusal(&["xz"], memory(&xz_saying(blocks, &records))).await;
        let text = error.to_string();
        assert!(
            text.starts_with("xz: open: ") && text.contains(message),
            "{text}"
        );
    }
    let twice = [blocks, blocks].concat();
    let sum = [(unpadded, 1 << 40), (unpadded, most)];
    let error = refusal(&["xz"], memory(&xz_saying(&twice, &sum))).await;
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    let sum = [(unpadded, 1 << 20), (unpadded, most)];
    let error = refusal(&["xz"], memory(&xz_saying(&twice, &sum))).await;
    let text = error.to_string();
    assert!(
        text.ends_with("its blocks are said to hold more than 8 EiB: the file is damaged"),
        "{text}"
    );
}

#[tokio::test]
async fn a_gzip_block_that_holds_more_than_it_says_is_stopped() {
    let mut bomb = samples::bgzf(&vec![0; 10 << 20], 10 << 20);
    let size = bomb.len() - 28 - 4;
    bomb[size..size + 4].copy_from_slice(&10_u32.to_le_bytes());
    let text = failure("gzip", &bomb).await;
    assert!(text.contains("it holds more than 10 bytes"), "{text}");
    bomb[size..size + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = refusal(&["gzip"], memory(&bomb)).await;
    assert!(
        error.to_string().contains("its block 0 is 4.0 GiB long"),
        "{error}"
    );
}

#[tokio::test]
async fn a_zstd_file_that_lies_is_found_out() {
    let image = samples::image(50_000);
    let seekable = samples::seekable(&image, 25_000, true);
    let frames = seekable.len() - 9;
    let said = |count: u32| {
        let mut packed = seekable.clone();
        packed[frames..frames + 4].copy_from_slice(&count.to_le_bytes());
        packed
    };
    for (packed, message) in [
        (said(u32::MAX), "it has more than 4194304 blocks"),
        (said(1 << 20), "its seek table is longer than the file"),
        (said(1), "its seek table has no frame around it"),
    ] {
        let error = refusal(&["zstd"], memory(&packed)).await;
        assert!(error.to_string().contains(message), "{error}");
    }
    // Of entries that say packed and unpacked size and checksum, the first one's unpacked size.
    let first = seekable.len() - 9 - 24 + 4;
    for (size, message) in [
        (24_999_u32, ": Destination buffer is too small"),
        (25_001, ": it holds 25000 bytes, not 25001"),
    ] {
        let mut packed = seekable.clone();
        packed[first..first + 4].copy_from_slice(&size.to_le_bytes());
        let text = failure("zstd", &packed).await;
        assert!(text.contains(message), "{text}");
    }
    // A frame that says it holds nearly 2^64 bytes, and one that wants a window of 3.75 TiB.
    let large = [
        0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0,
    ];
    let error = refusal(&["zstd"], memory(&large)).await;
    assert!(
        error
            .to_string()
            .contains("one frame of 16.0 EiB, which is more than max-block"),
        "{error}"
    );
    let window = [
        0x28, 0xb5, 0x2f, 0xfd, 0, 0xff, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let error = refusal(&["zstd:unpack=on"], memory(&window)).await;
    assert!(
        error.to_string().contains("it needs a window of 3.8 TiB"),
        "{error}"
    );
}

#[test]
fn an_index_takes_no_block_that_makes_no_sense() {
    let range = |start, length| ByteRange::between(start, start + length);
    let mut builder = Builder::new("test", |_| Ok(Vec::new()), 1000);
    assert!(builder.push(range(0, 100), 1000, 0).is_ok());
    assert!(builder.push(range(100, 10), 0, 0).is_ok());
    assert!(matches!(
        builder.push(range(110, 10), 1001, 0),
        Err(Unfit::TooLarge(1001))
    ));
    assert!(matches!(
        builder.push(range(110, 10), u64::MAX, 0),
        Err(Unfit::Damaged(_))
    ));
    assert!(matches!(
        builder.push(range(110, 1 << 20), 10, 0),
        Err(Unfit::Damaged(_))
    ));
    assert!(builder.push(range(110, 10), 500, 0).is_ok());
    let index = builder.finish();
    assert_eq!((index.len(), index.size()), (2, 1500));
    assert_eq!(index.touched(range(999, 1)), 0..1);
    assert_eq!(index.touched(range(999, 2)), 0..2);
    assert_eq!(index.touched(range(1000, 500)), 1..2);
    assert_eq!(index.touched(range(1500, 0)), 0..0);
    assert_eq!(index.unpacked(1), range(1000, 500));
    assert_eq!(index.packed(1), range(110, 10));
}

/// The byte of a block is its number.
fn unpack(packed: &Packed<'_>) -> Result<Vec<u8>, String> {
    Ok(vec![packed.tag as u8; packed.unpacked])
}

#[tokio::test]
async fn what_is_kept_never_exceeds_its_bound_while_many_read() {
    const BLOCK: u64 = 10_000;
    const BOUND: u64 = 45_000;
    let mut builder = Builder::new("test", unpack, 1 << 20);
    for number in 0..40_u64 {
        let packed = ByteRange::between(number * 100, number * 100 + 100);
        assert!(builder.push(packed, BLOCK, number as u32).is_ok());
    }
    let blocks = Blocks::new(builder.finish(), BOUND, None, Arc::new(Tally::default()));
    let device = memory(&[0; 4000]);
    let mut readers = tokio::task::JoinSet::new();
    for reader in 0..30_u64 {
        let (blocks, device) = (Arc::clone(&blocks), Arc::clone(&device));
        readers.spawn(async move {
            for step in 0..20 {
                let number = ((reader * 7 + step * 13) % 40) as usize;
                let block = blocks.unpacked(&device, number).await.expect("a block");
                assert!(blocks.weight() <= BOUND);
                tokio::task::yield_now().await;
                let mut bytes = [0; 10];
                let start = number as u64 * BLOCK;
                block.copy_to(ByteRange::between(start + 5, start + 15), &mut bytes);
                assert_eq!(bytes, [number as u8; 10]);
            }
        });
    }
    while let Some(done) = readers.join_next().await {
        done.expect("a reader");
    }
    assert!(blocks.weight() > 0, "something is kept");
}
