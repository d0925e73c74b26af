use std::sync::Arc;

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, Capabilities, ErrorKind, MemoryDevice, Operation, Result,
    WriteFlags, ZeroFlags,
    testing::{Fault, FaultyDevice, Rule, check_device},
};

use super::{Complete, Ending, Layout, Making};
use crate::{NewImage, making::NewDisk};

const BLOCK: u64 = 64 << 10;
const FIRST: u64 = 1024;
const BITMAP: u64 = 512;
const SIZE: u64 = 5 * BLOCK + 1536;

/// An image that is told by a word at its beginning, and whose second sector has the places of blocks.
struct Simple;

impl Ending for Simple {
    fn check(&self, size: u64) -> Result<()> {
        match size <= 100 * BLOCK {
            true => Ok(()),
            false => Err(blockferry_block::Error::new(ErrorKind::InvalidInput)),
        }
    }

    fn complete(&self, size: u64, places: &[Option<u32>]) -> Result<Complete> {
        let table = places
            .iter()
            .map(|place| place.map_or(0xff, |place| place as u8));
        let used = places.iter().flatten().count() as u64;
        let end = match places.is_empty() {
            true => FIRST + size.next_multiple_of(512),
            false => FIRST + used * (BLOCK + BITMAP),
        };
        Ok(Complete {
            tables: vec![(512, table.collect())],
            header: (0, b"image".to_vec()),
            disk: size.next_multiple_of(512),
            end,
        })
    }
}

fn layout(block: Option<u64>) -> Layout {
    Layout {
        first: FIRST,
        block,
        bitmap: if block.is_some() { BITMAP } else { 0 },
        has_footer: false,
    }
}

async fn begin(
    below: &Arc<dyn BlockDevice>,
    size: Option<u64>,
    block: Option<u64>,
) -> NewDisk<Making> {
    let making = Making::begin(Arc::clone(below), size, layout(block), Box::new(Simple)).await;
    making.expect("begun")
}

async fn contents(device: &dyn BlockDevice, range: ByteRange) -> Buffer {
    let buffer = Buffer::zeroed(range.len() as usize);
    device.read(range.start(), buffer).await.expect("a read")
}

/// The disk as the finished image of these bytes has it.
fn disk(bytes: &[u8], size: u64, block: Option<u64>) -> Vec<u8> {
    assert_eq!(&bytes[..5], b"image");
    if block.is_none() {
        return bytes[FIRST as usize..][..size as usize].to_vec();
    }
    let mut disk = vec![0; size.next_multiple_of(BLOCK) as usize];
    for (index, place) in bytes[512..][..size.div_ceil(BLOCK) as usize]
        .iter()
        .enumerate()
    {
        if *place == 0xff {
            continue;
        }
        let start = (FIRST + u64::from(*place) * (BLOCK + BITMAP)) as usize;
        assert!(bytes[start..start + 512].iter().all(|byte| *byte == 0xff));
        let to = &mut disk[index * BLOCK as usize..][..BLOCK as usize];
        let data = &bytes[start + 512..];
        let length = data.len().min(to.len());
        to[..length].copy_from_slice(&data[..length]);
    }
    assert!(disk[size as usize..].iter().all(|byte| *byte == 0));
    disk.truncate(size as usize);
    disk
}

/// Files of all kinds: one that was empty, one that had something else, and a device full of something.
fn kinds() -> Vec<(Arc<dyn BlockDevice>, Arc<MemoryDevice>)> {
    let full = || MemoryDevice::from_bytes(vec![0xaa; 7 * BLOCK as usize]);
    let sectors = Arc::new(full());
    let coarse = FaultyDevice::new(Arc::clone(&sectors) as _).with_info(|info| {
        (info.limits.minimum, info.limits.maximum) = (512, 8192);
        info.capabilities -= Capabilities::ZERO;
    });
    let mut list: Vec<(Arc<dyn BlockDevice>, _)> = vec![(Arc::new(coarse), sectors)];
    for memory in [MemoryDevice::new(0).growable(), full().growable(), full()] {
        let memory = Arc::new(memory);
        list.push((Arc::clone(&memory) as _, memory));
    }
    list
}

#[tokio::test]
async fn what_was_written_in_any_order_is_in_the_image() {
    for block in [None, Some(BLOCK)] {
        for seed in 0..3 {
            for (number, (below, memory)) in kinds().into_iter().enumerate() {
                let making = begin(&below, Some(SIZE), block).await;
                check_device(&making, seed, 60).await;
                let all = ByteRange::between(0, SIZE);
                let mut expected = Vec::new();
                for piece in all.pieces(BLOCK) {
                    expected.extend_from_slice(&contents(&making, piece).await);
                }
                making.finish().await.expect("finished");
                making.finish().await.expect("the same again");
                let late = making
                    .write(0, Buffer::zeroed(512), WriteFlags::empty())
                    .await;
                assert_eq!(late.expect_err("too late").kind(), ErrorKind::InvalidInput);
                let found = disk(&memory.contents(), SIZE, block);
                assert!(found == expected, "{number}, seed {seed}, {block:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_disk_that_ends_within_a_sector_is_written_to_its_end() {
    for block in [None, Some(BLOCK)] {
        for (below, memory) in kinds() {
            let size = BLOCK + 700;
            let making = begin(&below, Some(size), block).await;
            let data = Buffer::from(&[7; 700][..]);
            making
                .write(BLOCK, data, WriteFlags::empty())
                .await
                .expect("written");
            making.finish().await.expect("finished");
            let found = disk(&memory.contents(), size.next_multiple_of(512), block);
            assert!(found[..BLOCK as usize].iter().all(|byte| *byte == 0));
            assert!(found[BLOCK as usize..][..700].iter().all(|byte| *byte == 7));
            assert!(found[BLOCK as usize + 700..].iter().all(|byte| *byte == 0));
        }
    }
}

#[tokio::test]
async fn an_image_of_unknown_size_grows_with_what_is_written() {
    for block in [None, Some(BLOCK)] {
        let below: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(0).growable());
        let making = begin(&below, None, block).await;
        let data = Buffer::from(&[9; 3000][..]);
        making
            .write(BLOCK - 1000, data, WriteFlags::empty())
            .await
            .expect("written");
        making.resize(BLOCK + 10).await.expect("cut");
        making.resize(3 * BLOCK).await.expect("grown");
        let read = contents(&making, ByteRange::between(0, 3 * BLOCK)).await;
        assert!(
            read[BLOCK as usize - 1000..][..1010]
                .iter()
                .all(|byte| *byte == 9)
        );
        assert!(read[BLOCK as usize + 10..].iter().all(|byte| *byte == 0));
        let beyond = making.resize(101 * BLOCK).await;
        assert_eq!(
            beyond.expect_err("too large").kind(),
            ErrorKind::InvalidInput
        );
        let beyond = making
            .write(101 * BLOCK, Buffer::zeroed(1), WriteFlags::empty())
            .await;
        assert_eq!(
            beyond.expect_err("too large").kind(),
            ErrorKind::InvalidInput
        );
        making.finish().await.expect("finished");
    }
}

#[tokio::test]
async fn blocks_that_many_write_at_once_have_one_place() {
    let memory = Arc::new(MemoryDevice::new(0).growable());
    let below: Arc<dyn BlockDevice> = Arc::clone(&memory) as _;
    let making = Arc::new(begin(&below, Some(SIZE), Some(BLOCK)).await);
    let threads: Vec<_> = (0..4_u64)
        .map(|thread| {
            let making = Arc::clone(&making);
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build();
                runtime.expect("a runtime").block_on(async {
                    for at in (0..5 * BLOCK)
                        .step_by(4096)
                        .skip(thread as usize)
                        .step_by(4)
                    {
                        let data = Buffer::from(&[(at / 4096) as u8 + 1; 4096][..]);
                        making
                            .write(at, data, WriteFlags::empty())
                            .await
                            .expect("written");
                    }
                });
            })
        })
        .collect();
    threads
        .into_iter()
        .for_each(|thread| thread.join().expect("no panic"));
    making.finish().await.expect("finished");
    assert_eq!(memory.contents().len() as u64, FIRST + 5 * (BLOCK + BITMAP));
    let disk = disk(&memory.contents(), SIZE, Some(BLOCK));
    for (number, bytes) in disk[..5 * BLOCK as usize].chunks(4096).enumerate() {
        assert!(
            bytes.iter().all(|byte| *byte == number as u8 + 1),
            "{number}"
        );
    }
}

#[tokio::test]
async fn zeroes_take_no_place_unless_that_is_wished() {
    let below: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(0).growable());
    let making = begin(&below, Some(SIZE), Some(BLOCK)).await;
    let zero = making.zero(ByteRange::between(0, SIZE), ZeroFlags::empty());
    zero.await.expect("zeroed");
    assert_eq!(making.0.with_places(|places| places.to_list(6)), [None; 6]);
    let kept = ByteRange::between(BLOCK + 5, BLOCK + 6);
    making.zero(kept, ZeroFlags::NO_HOLE).await.expect("zeroed");
    assert_eq!(making.0.with_places(|places| places.find(1)), Some(0));
}

#[tokio::test]
async fn what_failed_and_was_not_written_again_is_not_finished() {
    for block in [None, Some(BLOCK)] {
        let faulty = FaultyDevice::new(Arc::new(MemoryDevice::new(0).growable()));
        let faulty = Arc::new(faulty);
        let below: Arc<dyn BlockDevice> = Arc::clone(&faulty) as _;
        let making = begin(&below, Some(SIZE), block).await;
        let fault = Fault::Error(ErrorKind::NoSpace);
        faulty.add(Rule::on(Operation::Write).times(1).fault(fault));
        let data = || Buffer::from(&[5; 4096][..]);
        let failed = making.write(8192, data(), WriteFlags::empty()).await;
        let error = failed.expect_err("a fault");
        assert_eq!((error.offset(), error.length()), (Some(8192), Some(4096)));
        let refused = making.finish().await.expect_err("in doubt");
        assert_eq!(refused.offset(), Some(8192));
        assert!(making.finish().await.is_err(), "for good");

        let making = begin(&below, Some(SIZE), block).await;
        faulty.add(Rule::on(Operation::Write).times(1).fault(fault));
        let failed = making.write(8192, data(), WriteFlags::empty()).await;
        assert!(failed.is_err());
        making
            .write(8192, data(), WriteFlags::empty())
            .await
            .expect("healed");
        making.finish().await.expect("all of it is there");
    }
}

#[tokio::test]
async fn a_file_that_was_not_finished_is_no_image() {
    for fault in [Operation::Write, Operation::Flush] {
        let faulty = FaultyDevice::new(Arc::new(MemoryDevice::new(0).growable()));
        let faulty = Arc::new(faulty);
        let below: Arc<dyn BlockDevice> = Arc::clone(&faulty) as _;
        let making = begin(&below, Some(SIZE), Some(BLOCK)).await;
        let data = Buffer::from(&[5; 4096][..]);
        making
            .write(0, data, WriteFlags::empty())
            .await
            .expect("written");
        let rule = Rule::on(fault).fault(Fault::Error(ErrorKind::Io));
        faulty.add(rule);
        making.finish().await.expect_err("a fault");
        faulty.heal();
        let start = contents(&*below, ByteRange::between(0, 5)).await;
        assert_ne!(&start[..], b"image", "{fault:?}");
    }
}

#[tokio::test]
async fn a_device_that_is_too_small_is_refused() {
    let below: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(BLOCK));
    let begun = Making::begin(
        Arc::clone(&below),
        Some(SIZE),
        layout(None),
        Box::new(Simple),
    )
    .await;
    assert_eq!(begun.expect_err("no room").kind(), ErrorKind::NoSpace);
    let making = begin(&below, Some(SIZE), Some(BLOCK)).await;
    let written = making
        .write(0, Buffer::zeroed(BLOCK as usize), WriteFlags::empty())
        .await;
    assert!(written.is_err(), "no room");
}
