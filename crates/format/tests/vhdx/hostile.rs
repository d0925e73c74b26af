//! Images from strangers: whatever is in them, there is an answer or an error in one line, after few reads.

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, ByteRange, Context, Error, ErrorKind, MemoryDevice, Operation, Result,
    testing::FaultyDevice,
};
use blockferry_format::{Format, Image, NoRelatives, OpenOptions, vhdx};

use crate::{
    images::{Content, DATA_WRITE, ImageBuilder, LogEntry, MIB, Write, seal, write_log},
    lies::{Found, lies, sound},
    support::{Files, build, memory, open, read, text, try_open},
};

/// How often a file may be read from, for all that is done with it.
const MOST_READS: u64 = 2000;

async fn walk(image: &dyn Image, context: &Context) -> Result<()> {
    let size = image.info().size;
    let mut at = 0;
    for _ in 0..1000 {
        let range = ByteRange::between(at, size);
        for extent in image.extents(range, context).await? {
            assert_eq!(extent.range.start(), at);
            assert!(!extent.range.is_empty() && extent.range.end() <= size);
            at = extent.range.end();
        }
    }
    Ok(())
}

/// Does everything with an image, and says where that ended and how.
async fn look(below: &Arc<dyn BlockDevice>) -> (Found, Result<()>) {
    let image = match try_open(Arc::clone(below), &NoRelatives).await {
        Ok(image) => image,
        Err(error) => return (Found::Open, Err(error)),
    };
    let size = image.info().size;
    let found = read(&*image, 0, size.min(8 << 20)).await;
    let end = ByteRange::between(size.saturating_sub(1 << 20), size);
    let last = read(&*image, end.start(), end.len()).await;
    for context in [Context::Allocation, Context::AllocationDepth] {
        let walked = walk(&*image, &context).await;
        assert!(
            walked.is_ok() || found.is_err() || last.is_err(),
            "{walked:?}"
        );
    }
    let _ = image.mapping(ByteRange::between(0, size));
    match found.and(last) {
        Ok(_) => (Found::Nowhere, Ok(())),
        Err(error) => (Found::Read, Err(error)),
    }
}

fn is_one_line(error: &Error) -> bool {
    !error.to_string().chars().any(char::is_control)
}

fn counted(bytes: Vec<u8>) -> (Arc<FaultyDevice>, Arc<dyn BlockDevice>) {
    let device = Arc::new(FaultyDevice::new(Arc::new(MemoryDevice::from_bytes(bytes))));
    (Arc::clone(&device), device)
}

#[tokio::test]
async fn every_lie_ends_in_one_line() {
    let mut wrong = Vec::new();
    for lie in lies() {
        let (counted, below) = counted(lie.image);
        let (found, result) = look(&below).await;
        let said = match &result {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        };
        if (found, &*said) != (lie.found, lie.error) {
            wrong.push(format!("{}: {found:?} {said:?}", lie.name));
        }
        let details = vhdx::Details::read(&below).await;
        assert!(details.is_ok() || lie.found == Found::Open, "{}", lie.name);
        let reads = counted.calls(Operation::Read);
        assert!(reads < MOST_READS, "{}: {reads} reads", lie.name);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_file_cut_short_anywhere_is_an_error_or_what_is_left() {
    let mut whole = sound().build();
    let end = whole.len() as u64;
    let write = Write::Page(end - 4096, vec![1; 4096]);
    write_log(&mut whole, MIB, 0, &[LogEntry::new(1, 0, 0, vec![write])]);
    for dirty in [false, true] {
        if !dirty {
            crate::images::Header::sound(MIB).write(&mut whole, 0, 9);
        }
        for length in (0..whole.len()).step_by(130_001) {
            let below = memory(whole[..length].to_vec());
            if let (_, Err(error)) = look(&below).await {
                assert!(is_one_line(&error), "{length}: {error}");
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{length}: {error:?}");
            } else {
                panic!("{length}: the last block is cut");
            }
        }
    }
}

#[tokio::test]
async fn bytes_of_the_tables_may_be_anything() {
    let mut whole = sound().with(2, Content::Data(text(2, 1 << 20))).build();
    let end = whole.len() as u64;
    let writes = vec![
        Write::Page(end - 4096, vec![1; 4096]),
        Write::Zero(end - 8192, 4096),
    ];
    let entries = [
        LogEntry::new(1, 0, end, writes.clone()),
        LogEntry::new(2, 0, end, writes),
    ];
    write_log(&mut whole, MIB, 0, &entries);
    // Headers, region tables, the metadata's table and its items, the table, entries of the log.
    let sealed = [(64 << 10, 4096), (192 << 10, 64 << 10), (MIB, 12288)];
    let places = [(64 << 10, 80), (192 << 10, 80), (MIB, 160)];
    let plain = [(2 * MIB, 224), (2 * MIB + (64 << 10), 56), (3 * MIB, 40)];
    for (start, length) in places.into_iter().chain(plain) {
        for at in (start..start + length).step_by(5) {
            let mut bytes = whole.clone();
            bytes[at] = if at.is_multiple_of(2) { 0xff } else { 0x81 };
            if let Some((_, length)) = sealed.iter().find(|(place, _)| *place == start) {
                seal(&mut bytes[start..start + length]);
            }
            let (counted, below) = counted(bytes);
            if let (_, Err(error)) = look(&below).await {
                assert!(is_one_line(&error), "{at}: {error}");
            }
            let reads = counted.calls(Operation::Read);
            assert!(reads < MOST_READS, "{at}: {reads} reads");
        }
    }
}

#[tokio::test]
async fn bitmaps_that_are_nowhere_are_corrupt() {
    let image = || ImageBuilder::new(4 << 20).child_of(DATA_WRITE, "base");
    let files = Files::default().with("base", build(&ImageBuilder::new(4 << 20)).await);
    let partly = image().with(1, Content::Partly(text(1, 1 << 20), |sector| sector < 5));
    let end = partly.build().len() as u64;
    for (entry, said) in [
        (0, "needs a bitmap, and there is none"),
        (2 << 20 | 2, "needs a bitmap, and there is none"),
        (
            end | 6,
            "has a bitmap that lies at 0x600000, past the end of the file",
        ),
        (
            2 << 20 | 6,
            "has a bitmap that lies at 0x200000, where something else is",
        ),
        (
            4 << 20 | 14,
            "has a bitmap that has the entry 0x40000e, which breaks the rules",
        ),
    ] {
        let mut bytes = partly.build();
        let place = partly.bitmap_entry(1);
        bytes[place..place + 8].copy_from_slice(&u64::to_le_bytes(entry));
        let opened = try_open(memory(bytes), &files).await.expect("sound");
        let error = read(&*opened, 0, 4 << 20).await.expect_err("damage");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        let expected = format!(
            "read of 4194304 bytes at offset 0: the block for guest offset 0x100000 {said}"
        );
        assert_eq!(error.to_string(), expected);
        assert!(
            read(&*opened, 0, 1 << 20).await.is_ok(),
            "the others are sound"
        );
    }
}

#[tokio::test]
async fn a_small_file_with_a_large_disk_is_refused_where_that_is_wished() {
    let below = memory(sound().build());
    let mut options = OpenOptions::default();
    options.max_size = Some((4 << 20) - 1);
    let opened = Format::Vhdx
        .open(Arc::clone(&below), &NoRelatives, &options)
        .await;
    let Err(error) = opened else {
        panic!("it is too large");
    };
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    options.max_size = Some(4 << 20);
    let opened = Format::Vhdx
        .open(Arc::clone(&below), &NoRelatives, &options)
        .await;
    assert!(opened.is_ok());
    options.writable = true;
    let opened = Format::Vhdx.open(below, &NoRelatives, &options).await;
    let Err(error) = opened else {
        panic!("it is not written");
    };
    assert_eq!(error.kind(), ErrorKind::ReadOnly);
    assert_eq!(open(memory(sound().build())).await.info().size, 4 << 20);
}
