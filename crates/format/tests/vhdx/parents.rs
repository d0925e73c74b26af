//! Differencing images, and what is behind them.

use std::sync::Arc;

use blockferry_block::{
    ByteRange, Context, ErrorKind, Mapping, Operation,
    testing::{Fault, FaultyDevice, Rule, check_device},
};
use blockferry_format::{Image, NoRelatives};

use crate::{
    images::{Content, DATA_WRITE, Guid, ImageBuilder},
    support::{Files, MIB, build, extents, memory, read, text, try_open, vhdx, whole},
};

const OTHER: Guid = Guid::new(0x1234_5678_9abc_def0_1234_5678_9abc_def0);

fn every_third(sector: u64) -> bool {
    sector.is_multiple_of(3) || (100..200).contains(&sector)
}

fn none(_: u64) -> bool {
    false
}

fn all(_: u64) -> bool {
    true
}

fn parent() -> ImageBuilder {
    let image = ImageBuilder::new(6 * MIB);
    let image = image.with(0, Content::Data(text(10, MIB)));
    let image = image.with(1, Content::Data(text(11, MIB)));
    let image = image.with(2, Content::Data(text(12, MIB)));
    let image = image.with(3, Content::State(2));
    image.with(4, Content::Data(text(14, MIB)))
}

/// A child that is larger than its parent.
fn child(sector_size: u32) -> ImageBuilder {
    let mut image = ImageBuilder::new(8 * MIB).child_of(DATA_WRITE, "../base.vhdx");
    image.sector_size = sector_size;
    image
        .with(0, Content::Partly(text(0, MIB), every_third))
        .with(1, Content::Data(text(1, MIB)))
        .with(3, Content::Partly(text(3, MIB), none))
        .with(4, Content::State(2))
        .with(5, Content::Partly(text(5, MIB), all))
        .with(6, Content::Partly(text(6, MIB), every_third))
}

/// What is on its disk, with sectors of `sector` bytes.
fn disk(sector: u64) -> Vec<u8> {
    let block = |number: u64| match number {
        1 => text(1, MIB),
        2 => text(12, MIB),
        5 => text(5, MIB),
        _ => vec![0; MIB as usize],
    };
    let mut bytes: Vec<u8> = (0..8).flat_map(block).collect();
    bytes[..MIB as usize].copy_from_slice(&text(10, MIB));
    for (number, own) in [(0, text(0, MIB)), (6, text(6, MIB))] {
        for index in (0..MIB / sector).filter(|index| every_third(*index)) {
            let at = (index * sector) as usize;
            let place = (number * MIB) as usize + at;
            let length = sector as usize;
            bytes[place..place + length].copy_from_slice(&own[at..at + length]);
        }
    }
    bytes
}

async fn files(sector_size: u32) -> Files {
    let mut parent = parent();
    parent.sector_size = sector_size;
    Files::default().with("../base.vhdx", build(&parent).await)
}

async fn open_child(sector_size: u32) -> Arc<dyn Image> {
    let below = memory(child(sector_size).build());
    let opened = try_open(below, &files(sector_size).await).await;
    opened.expect("sound")
}

#[tokio::test]
async fn sectors_come_from_the_image_that_has_them() {
    for (seed, sector) in [(1, 512), (2, 4096)] {
        let image = open_child(sector).await;
        assert!(whole(&*image).await == disk(sector.into()), "{sector}");
        check_device(&*image, seed, 120).await;
        let parent = vhdx(image.details()).parent.expect("it has one");
        assert_eq!(parent.name, b"../base.vhdx");
    }
}

#[tokio::test]
async fn depths_tell_which_image_of_the_chain_has_it() {
    let image = open_child(4096).await;
    let found = extents(&*image, &Context::AllocationDepth).await;
    let depth = |at: u64| {
        let part = found
            .iter()
            .find(|(start, end, _)| (*start..*end).contains(&at));
        part.expect("all of it is told").2
    };
    for sector in 0..MIB / 4096 {
        let own = every_third(sector);
        assert_eq!(depth(sector * 4096), if own { 1 } else { 2 }, "{sector}");
    }
    // Block 5 of the parent is in no image; what lies behind the end of the parent counts as the parent's.
    let starts = [(1, 1), (2, 2), (3, 2), (4, 1), (5, 1), (7, 2)];
    for (block, expected) in starts {
        assert_eq!(depth(block * MIB), expected, "block {block}");
    }
    let found = extents(&*image, &Context::Allocation).await;
    let last = *found.last().expect("some");
    assert_eq!((last.1, last.2), (8 * MIB, 3));
}

#[tokio::test]
async fn bitmaps_of_later_chunks_are_found() {
    // Blocks of 32 MiB: 128 of them share a bitmap, of which each has 8 KiB.
    let mut image = ImageBuilder::new(130 << 25).child_of(DATA_WRITE, "base");
    image.block_size = 32 << 20;
    let image = image.with(129, Content::Partly(text(1, MIB), every_third));
    let mut base = ImageBuilder::new(130 << 25);
    base.block_size = 256 << 20;
    let files = Files::default().with("base", build(&base).await);
    let opened = try_open(memory(image.build()), &files)
        .await
        .expect("sound");
    let found = read(&*opened, 129 << 25, 2048).await.expect("read");
    let own = text(1, MIB);
    assert!(found[..512] == own[..512] && found[1536..] == own[1536..2048]);
    assert!(found[512..1536].iter().all(|byte| *byte == 0));
    let mapping = opened.mapping(ByteRange::between((129 << 25) + 512, 130 << 25));
    assert!(
        matches!(mapping, Mapping::Zero { length: 1024 }),
        "{mapping:?}"
    );
}

#[tokio::test]
async fn a_parent_is_asked_for_by_each_of_its_names_until_there_is_one() {
    let mut image = child(512);
    let mut pairs = image.parent.take().expect("it has one");
    for (key, value) in [
        (
            "volume_path",
            r"\\?\Volume{26A21BDA-A627-11D7-9931-806E6F6E6963}\a\base.vhdx",
        ),
        ("absolute_win32_path", r"\\?\d:\b\base.vhdx"),
        ("parent_linkage2", "{00000000-0000-0000-0000-000000000001}"),
    ] {
        pairs.push((key.to_owned(), value.to_owned()));
    }
    image.parent = Some(pairs);
    let files = Files::default().with("base.vhdx", build(&parent()).await);
    let opened = try_open(memory(image.build()), &files)
        .await
        .expect("sound");
    assert!(whole(&*opened).await == disk(512));
    let asked = files.asked.lock().expect("no panic").clone();
    assert_eq!(asked, ["../base.vhdx", "base.vhdx"]);
    let nowhere = try_open(memory(image.build()), &Files::default()).await;
    let Err(error) = nowhere else {
        panic!("there is none");
    };
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let Err(error) = try_open(memory(image.build()), &NoRelatives).await else {
        panic!("nobody allowed it");
    };
    assert_eq!(error.kind(), ErrorKind::NotPermitted);
    assert!(error.to_string().contains("\"../base.vhdx\""), "{error}");
}

#[tokio::test]
async fn a_parent_that_was_changed_is_refused_by_name() {
    let image = ImageBuilder::new(MIB).child_of(OTHER, "base");
    let files = Files::default().with("base", build(&parent()).await);
    let Err(error) = try_open(memory(image.build()), &files).await else {
        panic!("it is another one");
    };
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(
        error.to_string(),
        "open: the backing file \"base\" was changed since, or is another one: its contents are \
         0a0b0c0d-0102-0304-0506-0708090a0b0c, not 12345678-9abc-def0-1234-56789abcdef0"
    );
    // The second key may name it as well.
    let mut image = image;
    let pairs = image.parent.as_mut().expect("it has one");
    pairs.push(("parent_linkage2".to_owned(), format!("{{{DATA_WRITE}}}")));
    assert!(try_open(memory(image.build()), &files).await.is_ok());
}

#[tokio::test]
async fn a_parent_with_other_sectors_is_refused() {
    let mut image = child(512);
    image.sector_size = 4096;
    let refused = try_open(memory(image.build()), &files(512).await).await;
    let Err(error) = refused else {
        panic!("the sectors differ");
    };
    assert_eq!(
        error.to_string(),
        "open: the backing file \"../base.vhdx\" has sectors of 512 bytes, and those here have 4096"
    );
}

#[tokio::test]
async fn a_failure_of_the_parent_is_told_at_the_range_that_was_asked_for() {
    let below = Arc::new(FaultyDevice::new(memory(parent().build())));
    let base = crate::support::open(Arc::clone(&below) as _).await;
    let files = Files::default().with("../base.vhdx", base);
    let image = try_open(memory(child(512).build()), &files).await;
    let image = image.expect("sound");
    below.add(Rule::on(Operation::Read).fault(Fault::Error(ErrorKind::Io)));
    let (start, length) = (MIB / 2 + 7, 2 * MIB);
    let error = read(&*image, start, length).await.expect_err("a fault");
    let place = (error.offset(), error.length());
    assert_eq!(
        (error.kind(), place),
        (ErrorKind::Io, (Some(start), Some(length)))
    );
    below.heal();
    let found = read(&*image, start, length).await.expect("healed");
    assert!(found == disk(512)[start as usize..][..length as usize]);
}
