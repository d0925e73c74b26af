use std::sync::Arc;

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, Capabilities, Context, ErrorKind, Extent, Mapping,
    MemoryDevice, Operation, Result, Status,
    testing::{Fault, FaultyDevice, Rule, check_device},
};

use super::{BitOrder, Block, BlocksDisk, Parts, Row, Shape, Table, overlapping};
use crate::{Details, corrupt::corrupt, vdi};

const BLOCK: u64 = 64 << 10;

/// Blocks as they are said to be; those that are not said are damaged.
struct Said(Vec<Block>);

impl Table for Said {
    fn row(&self, index: u64) -> Result<Option<Row>> {
        let block = self.0.get(index as usize).copied();
        let block = block.ok_or_else(|| corrupt(format!("block {index} is damaged")))?;
        Ok(Some(block.into()))
    }
}

fn pattern(length: usize, factor: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at / 512 * factor + at % 7) as u8 | 1)
        .collect()
}

fn shape(size: u64) -> Shape {
    Shape {
        size,
        block: BLOCK,
        sector: 512,
        order: BitOrder::HighFirst,
    }
}

/// A disk of six blocks and a bit, in front of a parent that ends in its fifth.
fn parts(file: Arc<dyn BlockDevice>, parent: Option<Arc<dyn BlockDevice>>) -> Parts {
    Parts {
        shape: shape(6 * BLOCK + 700),
        table: Arc::new(Said(vec![
            Block::Host(5 * BLOCK + 512),
            Block::Host(6 * BLOCK + 512),
            Block::Behind,
            Block::Mixed {
                host: BLOCK,
                bitmap: 512,
            },
            Block::Behind,
            Block::Zero,
            Block::Host(3 * BLOCK + 1024),
        ])),
        file,
        parent,
        bitmap_memory: 0,
        is_sparse: false,
        details: details(),
    }
}

fn details() -> Details {
    let (virtual_size, block_size) = (6 * BLOCK + 700, BLOCK);
    Details::Vdi(vdi::Details {
        virtual_size,
        block_size,
        is_static: false,
        uuid: [0; 16],
    })
}

fn file() -> Vec<u8> {
    let mut bytes = pattern(8 * BLOCK as usize, 3);
    // Of the mixed block: sectors 0 to 11, 13, and the last.
    bytes[512..528].fill(0);
    (bytes[512], bytes[513], bytes[527]) = (0xff, 0xf4, 1);
    bytes
}

/// What is on that disk.
fn expected(file: &[u8], parent: &[u8]) -> Vec<u8> {
    let block = BLOCK as usize;
    let mut disk = vec![0; 6 * block + 700];
    disk[..parent.len()].copy_from_slice(parent);
    disk[..2 * block].copy_from_slice(&file[5 * block + 512..][..2 * block]);
    for sector in (0..12).chain([13, 127]) {
        let at = sector * 512;
        disk[3 * block + at..][..512].copy_from_slice(&file[block + at..][..512]);
    }
    disk[5 * block..6 * block].fill(0);
    disk[6 * block..].copy_from_slice(&file[3 * block + 1024..][..700]);
    disk
}

fn memory(bytes: Vec<u8>) -> Arc<dyn BlockDevice> {
    Arc::new(MemoryDevice::from_bytes(bytes))
}

#[tokio::test]
async fn every_kind_of_block_is_read_with_and_without_a_parent() {
    let file = file();
    for length in [0, 4 * BLOCK as usize + 1234] {
        let behind = pattern(length, 5);
        let parent = (length > 0).then(|| memory(behind.clone()));
        let disk = BlocksDisk::of(parts(memory(file.clone()), parent));
        let expected = expected(&file, &behind);
        let read = disk.read(0, Buffer::zeroed(expected.len())).await;
        assert!(read.expect("read")[..] == expected);
        for seed in 0..8 {
            check_device(&disk, seed, 200).await;
        }
    }
}

#[tokio::test]
async fn files_with_blocks_of_their_own_are_read_all_the_same() {
    let file = file();
    let coarse = FaultyDevice::new(memory(file.clone())).with_info(|info| {
        (info.limits.minimum, info.limits.maximum) = (4096, 8192);
    });
    let disk = BlocksDisk::of(parts(Arc::new(coarse), None));
    let read = disk.read(0, Buffer::zeroed(6 * BLOCK as usize + 700)).await;
    assert!(read.expect("read")[..] == expected(&file, &[]));
    check_device(&disk, 9, 200).await;
}

#[tokio::test]
async fn extents_tell_what_is_where() {
    let behind = pattern(4 * BLOCK as usize + 1000, 5);
    let disk = BlocksDisk::of(parts(memory(file()), Some(memory(behind))));
    let all = ByteRange::between(0, disk.info().size);
    let depths = disk.extents(all, &Context::AllocationDepth).await;
    let depths: Vec<_> = depths.expect("an answer");
    let depth = |at: u64| {
        let holds = |extent: &&Extent| extent.range.start() <= at && at < extent.range.end();
        depths.iter().find(holds).expect("all of it").status.0
    };
    let third = 3 * BLOCK;
    let known = [
        (0, 1),
        (2 * BLOCK, 2),
        (third, 1),
        (third + 12 * 512, 2),
        (third + 13 * 512, 1),
        (third + 14 * 512, 2),
        (third + 127 * 512, 1),
        (4 * BLOCK, 2),
        (5 * BLOCK, 1),
        (6 * BLOCK, 1),
    ];
    for (at, expected) in known {
        assert_eq!(depth(at), expected, "at {at}");
    }
    let allocation = disk
        .extents(all, &Context::Allocation)
        .await
        .expect("an answer");
    let zero = Extent {
        // The parent ends before.
        range: ByteRange::between(4 * BLOCK + 1000, 6 * BLOCK),
        status: Status::HOLE_ZERO,
    };
    assert!(allocation.contains(&zero), "{allocation:?}");
    for at in [0, third + 100, 5 * BLOCK + 1] {
        let rest = ByteRange::between(at, all.end());
        let first = disk.first_extent(rest, &Context::AllocationDepth).await;
        let first = first.expect("an answer");
        assert_eq!((first.len(), first[0].status.0), (1, depth(at)));
    }
    let other = disk
        .extents(all, &Context::DirtyBitmap("b".to_owned()))
        .await;
    assert_eq!(other.expect_err("none").kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn what_lies_in_a_row_is_mapped_in_one_piece() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), self::file()).expect("written");
    let device =
        blockferry_block::FileDevice::open(file.path(), blockferry_block::Access::ReadOnly);
    let disk = BlocksDisk::of(parts(Arc::new(device.expect("open")), None));
    let all = ByteRange::between(100, disk.info().size);
    let Mapping::File { offset, length, .. } = disk.mapping(all) else {
        panic!("it lies in a file");
    };
    assert_eq!((offset, length), (5 * BLOCK + 612, 2 * BLOCK - 100));
    let unknown = ByteRange::between(3 * BLOCK, all.end());
    assert!(matches!(disk.mapping(unknown), Mapping::Opaque));
    disk.read(3 * BLOCK, Buffer::zeroed(1)).await.expect("read");
    let Mapping::File { offset, length, .. } = disk.mapping(unknown) else {
        panic!("its bitmap is in memory");
    };
    assert_eq!((offset, length), (BLOCK, 12 * 512));
    let zero = ByteRange::between(5 * BLOCK + 5, all.end());
    let Mapping::Zero { length } = disk.mapping(zero) else {
        panic!("zeroes lie nowhere");
    };
    assert_eq!(length, BLOCK - 5);
}

#[tokio::test]
async fn failures_are_told_at_the_place_of_the_request() {
    let faulty = Arc::new(FaultyDevice::new(memory(file())));
    let disk = BlocksDisk::of(parts(Arc::clone(&faulty) as _, None));
    let bitmap = ByteRange::between(512, 513);
    let fault = Fault::Error(ErrorKind::Io);
    faulty.add(
        Rule::on(Operation::Read)
            .within(bitmap)
            .times(1)
            .fault(fault),
    );
    let failed = disk.read(3 * BLOCK + 1, Buffer::zeroed(70)).await;
    let error = failed.expect_err("a fault");
    assert_eq!(
        (error.offset(), error.length()),
        (Some(3 * BLOCK + 1), Some(70))
    );
    assert_eq!(error.kind(), ErrorKind::Io);
    let all = ByteRange::between(3 * BLOCK, disk.info().size);
    faulty.add(
        Rule::on(Operation::Read)
            .within(bitmap)
            .times(1)
            .fault(fault),
    );
    let failed = disk.extents(all, &Context::Allocation).await;
    assert_eq!(failed.expect_err("a fault").offset(), Some(3 * BLOCK));
    let whole = disk.read(0, Buffer::zeroed(6 * BLOCK as usize + 700)).await;
    assert!(whole.expect("healed")[..] == expected(&file(), &[]));
}

#[tokio::test]
async fn a_damaged_block_hurts_nobody_else() {
    let mut parts = parts(memory(file()), None);
    parts.table = Arc::new(Said(vec![Block::Zero; 3]));
    let disk = BlocksDisk::of(parts);
    let read = disk.read(3 * BLOCK - 10, Buffer::zeroed(10)).await;
    read.expect("before the damage");
    let read = disk.read(3 * BLOCK - 10, Buffer::zeroed(11)).await;
    let error = read.expect_err("damage");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let all = ByteRange::between(0, disk.info().size);
    let before = disk.extents(all, &Context::Allocation).await;
    assert_eq!(before.expect("before")[0].range.end(), 3 * BLOCK);
    let rest = ByteRange::between(3 * BLOCK, all.end());
    let error = disk.extents(rest, &Context::Allocation).await;
    assert_eq!(error.expect_err("damage").kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn a_request_of_very_many_pieces_is_read() {
    let mut bytes = vec![0x33; 2 * BLOCK as usize + 512];
    bytes[..16].fill(0x55);
    let mut parts = parts(memory(bytes), Some(memory(vec![7; BLOCK as usize])));
    parts.shape = shape(BLOCK);
    parts.table = Arc::new(Said(vec![Block::Mixed {
        host: BLOCK,
        bitmap: 0,
    }]));
    let disk = BlocksDisk::of(parts);
    let read = disk.read(0, Buffer::zeroed(BLOCK as usize)).await;
    let read = read.expect("read");
    for (sector, bytes) in read.chunks(512).enumerate() {
        let expected = if sector % 2 == 1 { 0x33 } else { 7 };
        assert!(bytes.iter().all(|byte| *byte == expected), "{sector}");
    }
}

#[tokio::test]
async fn another_handle_reads_the_same() {
    let connected = FaultyDevice::new(memory(file())).with_info(|info| {
        info.capabilities |= Capabilities::REOPEN;
    });
    let disk = BlocksDisk::of(parts(Arc::new(connected), None));
    assert!(
        disk.info()
            .can(Capabilities::REOPEN | Capabilities::MULTI_CONN)
    );
    let alone = BlocksDisk::of(parts(memory(file()), None));
    assert!(!alone.info().can(Capabilities::REOPEN));
    assert!(alone.reopen().await.is_err());
}

#[test]
fn blocks_that_share_bytes_are_found() {
    let places = vec![(0, 1000), (1, 5000), (2, 1512), (3, 3000), (9, 5000)];
    assert_eq!(overlapping(places.clone(), 512), [1, 9]);
    assert_eq!(overlapping(places, 513), [0, 1, 2, 9]);
    assert_eq!(overlapping(Vec::new(), 1), [0; 0]);
}
