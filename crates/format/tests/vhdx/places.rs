//! Where the bytes of a disk lie, and what is known of that.

use std::{os::unix::fs::FileExt, sync::Arc, time::Duration};

use blockferry_block::{
    Access, ByteRange, Capabilities, Context, ErrorKind, FileDevice, Mapping, Operation,
    testing::{Fault, FaultyDevice, Rule, check_device},
};
use blockferry_format::{Format, NoRelatives, OpenOptions};
use futures_util::future::join_all;

use crate::{
    images::{Content, ImageBuilder},
    support::{MIB, build, extents, memory, open, read, text, vhdx, whole},
};

/// An image with a block in every state, blocks in a row and out of order, and a part of a block at the end.
fn everything(block_size: u32, sector_size: u32) -> ImageBuilder {
    let block = u64::from(block_size);
    let mut image = ImageBuilder::new(9 * block + 3 * 4096);
    (image.block_size, image.sector_size) = (block_size, sector_size);
    let mut out_of_order = image
        .with(1, Content::Data(text(1, block)))
        .with(2, Content::Data(text(2, block)))
        .with(3, Content::State(1))
        .with(4, Content::State(2))
        .with(5, Content::State(3))
        // The place of what is not there says nothing.
        .with(6, Content::State(3 | 7 << 20))
        .with(9, Content::Data(text(9, 3 * 4096)));
    out_of_order.blocks.insert(8, Content::Data(text(8, block)));
    out_of_order
}

/// What is on its disk.
fn disk(block_size: u32) -> Vec<u8> {
    let block = u64::from(block_size);
    let mut bytes = Vec::new();
    for number in 0..9 {
        bytes.extend(match number {
            1 | 2 | 8 => text(number, block),
            _ => vec![0; block as usize],
        });
    }
    bytes.extend(text(9, 3 * 4096));
    bytes
}

#[tokio::test]
async fn each_state_of_a_block_reads_as_it_should() {
    for (block_size, sector_size) in [(1 << 20, 512), (2 << 20, 4096), (4 << 20, 512)] {
        let image = build(&everything(block_size, sector_size)).await;
        assert!(whole(&*image).await == disk(block_size), "{block_size}");
        let details = vhdx(image.details());
        assert_eq!(details.block_size, u64::from(block_size));
        assert_eq!(details.logical_sector_size, sector_size);
        assert_eq!(details.physical_sector_size, sector_size);
        assert_eq!((details.is_dirty, details.is_fixed), (false, false));
        assert_eq!(details.virtual_size, disk(block_size).len() as u64);
        assert_eq!((details.disk_uuid, &details.parent), ([0xd1; 16], &None));
    }
}

#[tokio::test]
async fn any_request_is_answered_as_a_row_of_bytes_would() {
    for (seed, (minimum, maximum)) in
        (0..).zip([(1, 32 << 20), (1, 1000), (512, 4096), (4096, 32 << 20)])
    {
        let below = FaultyDevice::new(memory(everything(1 << 20, 512).build())).with_info(|info| {
            info.limits.minimum = minimum;
            info.limits.maximum = maximum;
        });
        check_device(&*open(Arc::new(below)).await, seed, 150).await;
    }
}

#[tokio::test]
async fn extents_tell_blocks_from_what_is_not_there() {
    let image = build(&everything(1 << 20, 512)).await;
    let found = extents(&*image, &Context::Allocation).await;
    let end = 9 * MIB + 3 * 4096;
    let expected = [
        (0, MIB, 3),
        (MIB, 3 * MIB, 0),
        (3 * MIB, 8 * MIB, 3),
        (8 * MIB, end, 0),
    ];
    assert_eq!(found, expected);
    // What is zero is in the image, what is not present is in none.
    let found = extents(&*image, &Context::AllocationDepth).await;
    let expected = [
        (0, MIB, 0),
        (MIB, 6 * MIB, 1),
        (6 * MIB, 7 * MIB, 1),
        (7 * MIB, 8 * MIB, 0),
        (8 * MIB, end, 1),
    ];
    let joined = [expected[0], (MIB, 7 * MIB, 1), expected[3], expected[4]];
    assert_eq!(found, joined);
    let other = Context::Other("x:y".to_owned());
    let refused = image.extents(ByteRange::between(0, 1), &other).await;
    assert_eq!(refused.expect_err("unknown").kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn blocks_are_mapped_to_their_places_in_the_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("disk");
    std::fs::write(&path, everything(1 << 20, 512).build()).expect("written");
    let file = FileDevice::open(&path, Access::ReadOnly).expect("open");
    let image = open(Arc::new(file)).await;
    assert!(!image.info().can(Capabilities::WRITE));
    let range = ByteRange::between(MIB + 5, 9 * MIB);
    let Mapping::File { fd, offset, length } = image.mapping(range) else {
        panic!("it lies in the file");
    };
    // Blocks 1 and 2 lie in a row.
    assert_eq!(length, 2 * MIB - 5);
    let file = std::fs::File::from(fd.try_clone_to_owned().expect("a descriptor"));
    let mut bytes = vec![0; 1000];
    file.read_exact_at(&mut bytes, offset).expect("read");
    assert!(bytes == text(1, MIB)[5..1005]);
    let zero = image.mapping(ByteRange::between(3 * MIB, 9 * MIB));
    assert!(matches!(zero, Mapping::Zero { length } if (MIB..=5 * MIB).contains(&length)));
}

#[tokio::test]
async fn blocks_that_were_allocated_in_advance_are_holes_of_the_file() {
    let mut image = ImageBuilder::new(8 * MIB);
    image.is_fixed = true;
    for block in 0..8 {
        image = image.with(block, Content::Data(Vec::new()));
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("disk");
    let bytes = image.build();
    let file = std::fs::File::create(&path).expect("created");
    file.set_len(bytes.len() as u64).expect("sparse");
    file.write_all_at(&bytes[..4 << 20], 0).expect("written");
    file.write_all_at(&text(1, 8192), 6 << 20).expect("written");
    let below = FileDevice::open(&path, Access::ReadOnly).expect("open");
    let image = open(Arc::new(below)).await;
    assert!(vhdx(image.details()).is_fixed);
    let found = extents(&*image, &Context::Allocation).await;
    let expected = [
        (0, 2 * MIB, 2),
        (2 * MIB, 2 * MIB + 8192, 0),
        (2 * MIB + 8192, 8 * MIB, 2),
    ];
    assert_eq!(found, expected);
    let depth = extents(&*image, &Context::AllocationDepth).await;
    assert_eq!(depth, [(0, 8 * MIB, 1)]);
}

#[tokio::test]
async fn a_failure_below_is_told_at_the_range_that_was_asked_for() {
    let below = Arc::new(FaultyDevice::new(memory(everything(1 << 20, 512).build())));
    let image = open(Arc::clone(&below) as _).await;
    below.add(Rule::on(Operation::Read).fault(Fault::Error(ErrorKind::Io)));
    for (start, length) in [(MIB + 5, 1000), (MIB / 2, 4 * MIB), (8 * MIB, MIB)] {
        let error = read(&*image, start, length).await.expect_err("a fault");
        assert_eq!(error.kind(), ErrorKind::Io);
        let place = (error.operation(), error.offset(), error.length());
        assert_eq!(place, (Some(Operation::Read), Some(start), Some(length)));
    }
    below.heal();
    assert!(whole(&*image).await == disk(1 << 20));
}

#[tokio::test]
async fn a_table_that_cannot_be_read_is_read_again() {
    let below = Arc::new(FaultyDevice::new(memory(everything(1 << 20, 512).build())));
    let table = everything(1 << 20, 512).bat() as u64;
    let rule = Rule::on(Operation::Read).within(ByteRange::between(table, table + MIB));
    below.add(rule.clone().fault(Fault::Error(ErrorKind::TimedOut)));
    // The table that is looked at while opening is no reason to fail.
    let image = open(Arc::clone(&below) as _).await;
    let range = ByteRange::between(5, 9 * MIB);
    assert!(matches!(image.mapping(range), Mapping::Opaque));
    let error = image.extents(range, &Context::Allocation).await;
    let error = error.expect_err("a fault");
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert_eq!(
        (error.offset(), error.length()),
        (Some(5), Some(range.len()))
    );
    below.heal();
    below.add(rule.times(1).fault(Fault::Hang));
    let hanging = read(&*image, 5 * MIB, 10);
    let timeout = tokio::time::timeout(Duration::from_millis(5), hanging).await;
    assert!(timeout.is_err());
    assert!(whole(&*image).await == disk(1 << 20));
}

#[test]
fn many_readers_on_several_runtimes_see_the_same() {
    let runtime = || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().expect("a runtime")
    };
    let mut options = OpenOptions::default();
    options.table_memory = 1;
    let opened = Format::Vhdx.open(
        memory(everything(1 << 20, 512).build()),
        &NoRelatives,
        &options,
    );
    let image = runtime().block_on(opened.into_future()).expect("sound");
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let image = Arc::clone(&image);
            scope.spawn(move || {
                runtime().block_on(async {
                    join_all((0..3).map(|turn| check_device(&*image, seed * 3 + turn, 40))).await
                })
            });
        }
    });
}

#[tokio::test]
async fn a_large_table_is_read_in_pieces() {
    const SIZE: u64 = 8 << 40;
    let mut builder = ImageBuilder::new(SIZE);
    let block = (5 << 40) / MIB + 77;
    let (bat, entry, length) = (builder.bat(), builder.entry(block), builder.bat_length());
    assert_eq!(length, 65 << 20, "64 MiB, and entries of bitmaps");
    // Only what lies before the table is made here; the table is a hole, but for one entry.
    builder.size = MIB;
    let mut head = builder.build();
    builder.size = SIZE;
    head.truncate(bat);
    crate::images::write_regions(
        &mut head,
        &[
            (crate::images::BAT, bat, length, 1),
            (crate::images::METADATA, 2 << 20, 1 << 20, 1),
        ],
    );
    let size = (2 << 20) + (64 << 10) + 8;
    head[size..size + 8].copy_from_slice(&u64::to_le_bytes(SIZE));
    let end = bat + length;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("disk");
    let file = std::fs::File::create(&path).expect("created");
    file.write_all_at(&head, 0).expect("written");
    file.set_len((end + (1 << 20)) as u64).expect("sparse");
    file.write_all_at(&(end as u64 | 6).to_le_bytes(), entry as u64)
        .expect("written");
    file.write_all_at(&text(3, 4096), end as u64)
        .expect("written");
    let below = FileDevice::open(&path, Access::ReadOnly).expect("open");
    let below = Arc::new(FaultyDevice::new(Arc::new(below)));
    let image = open(Arc::clone(&below) as _).await;
    assert!(below.calls(Operation::Read) < 20);
    let found = read(&*image, block * MIB, 4096).await.expect("read");
    assert!(found == text(3, 4096));
    let found = extents(&*image, &Context::AllocationDepth).await;
    let place = (block * MIB, (block + 1) * MIB, 1);
    let expected = [(0, place.0, 0), place, (place.1, SIZE, 0)];
    assert_eq!(found, expected);
}
