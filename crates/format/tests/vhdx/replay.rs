//! Images that were not closed: what their logs have counts.

use std::sync::Arc;

use blockferry_block::{
    ByteRange, ErrorKind, Mapping, Operation,
    testing::{Fault, FaultyDevice, Rule, check_device},
};
use blockferry_format::{Details, NoRelatives};

use crate::{
    images::{Content, Guid, ImageBuilder, LOG, LogEntry, Write, write_log},
    support::{MIB, memory, open, read, text, try_open, vhdx, whole},
};

pub(crate) const PAGE: usize = 4096;
const OLD_GUID: Guid = Guid::new(0xdead_beef_0000_0000_0000_0000_0000_0001);

/// An image whose blocks lie in the file while its table knows of none.
pub(crate) struct Unknown {
    pub(crate) builder: ImageBuilder,
    /// The file, and the first page of its table as it would be if the table knew of all blocks.
    pub(crate) bytes: Vec<u8>,
    full: Vec<u8>,
}

impl Unknown {
    pub(crate) fn new() -> Self {
        Self::with_log(1 << 20)
    }

    pub(crate) fn with_log(log_size: usize) -> Self {
        let mut builder = ImageBuilder::new(8 * MIB);
        builder.log_size = log_size;
        for block in 0..8 {
            builder = builder.with(block, Content::Data(text(block, MIB)));
        }
        let mut bytes = builder.build();
        let table = &mut bytes[builder.bat()..][..PAGE];
        let full = table.to_vec();
        table.fill(0);
        Self {
            builder,
            bytes,
            full,
        }
    }

    pub(crate) fn end(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// What makes the table know of these blocks, and of no other.
    pub(crate) fn knowing(&self, blocks: &[usize]) -> Write {
        let mut page = vec![0; PAGE];
        for block in blocks {
            let place = block * 8..block * 8 + 8;
            page[place.clone()].copy_from_slice(&self.full[place]);
        }
        Write::Page(self.builder.bat() as u64, page)
    }

    /// An entry that does so.
    pub(crate) fn entry(&self, sequence: u64, tail: usize, blocks: &[usize]) -> LogEntry {
        LogEntry::new(
            sequence,
            tail as u32,
            self.end(),
            vec![self.knowing(blocks)],
        )
    }

    /// Puts entries into the log, each two sectors long, the first one at `at`.
    pub(crate) fn log(&mut self, at: usize, entries: &[LogEntry]) -> usize {
        let log_size = self.builder.log_size;
        write_log(&mut self.bytes, log_size, at, entries)
    }

    /// Which blocks the disk has.
    async fn known(&self) -> Vec<u64> {
        let image = open(memory(self.bytes.clone())).await;
        assert!(vhdx(image.details()).is_dirty);
        let mut known = Vec::new();
        for block in 0..8 {
            let bytes = read(&*image, block * MIB, MIB).await.expect("read");
            if bytes == text(block, MIB) {
                known.push(block);
            } else {
                assert!(bytes.iter().all(|byte| *byte == 0), "block {block}");
            }
        }
        known
    }

    async fn error(&self) -> String {
        let Err(error) = try_open(memory(self.bytes.clone()), &NoRelatives).await else {
            panic!("it cannot be replayed");
        };
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        error.to_string()
    }
}

const NOTHING: &str = "open: it was not closed, and its log has nothing that could be replayed";

#[tokio::test]
async fn what_the_log_has_counts() {
    let mut image = Unknown::new();
    image.log(0, &[image.entry(1, 0, &[0, 3, 7])]);
    assert_eq!(image.known().await, [0, 3, 7]);
    let below = memory(image.bytes.clone());
    let details = Details::Vhdx(
        blockferry_format::vhdx::Details::read(&below)
            .await
            .expect("read"),
    );
    assert!(vhdx(details).is_dirty);
}

#[tokio::test]
async fn entries_count_in_their_order() {
    let mut image = Unknown::new();
    let entries = [
        image.entry(5, 0, &[1]),
        image.entry(6, 0, &[1, 2]),
        image.entry(7, 0, &[2]),
    ];
    image.log(0, &entries);
    assert_eq!(image.known().await, [2]);
    // An entry without writes moves nothing but the tail.
    let mut image = Unknown::new();
    let mut last = image.entry(7, 0, &[]);
    last.writes.clear();
    image.log(0, &[image.entry(6, 0, &[4]), last]);
    assert_eq!(image.known().await, [4]);
}

#[tokio::test]
async fn only_what_lies_behind_the_tail_is_replayed() {
    let mut image = Unknown::new();
    let mut second = image.entry(6, 2 * PAGE, &[1]);
    // Another page, so that nothing undoes what the first entry says.
    second.writes = vec![Write::Page((5 << 20) - PAGE as u64, vec![0; PAGE])];
    image.log(0, &[image.entry(5, 0, &[1]), second]);
    assert_eq!(image.known().await, [] as [u64; 0]);
}

#[tokio::test]
async fn the_newest_complete_sequence_counts() {
    let mut image = Unknown::new();
    image.log(64 << 10, &[image.entry(40, 64 << 10, &[1])]);
    image.log(8 << 10, &[image.entry(20, 8 << 10, &[2])]);
    assert_eq!(image.known().await, [1]);
    // A newer one that begins with an entry that is not there is incomplete.
    image.log(128 << 10, &[image.entry(60, 120 << 10, &[3])]);
    assert_eq!(image.known().await, [1]);
    image.log(120 << 10, &[image.entry(59, 120 << 10, &[5])]);
    assert_eq!(image.known().await, [3]);
    // Numbers that do not follow each other are two sequences.
    let mut image = Unknown::new();
    let entries = [image.entry(5, 0, &[1]), image.entry(7, 2 * PAGE, &[2])];
    image.log(0, &entries);
    assert_eq!(image.known().await, [2]);
}

#[tokio::test]
async fn entries_of_another_use_of_the_log_do_not_count() {
    let mut image = Unknown::new();
    let mut old = image.entry(100, 2 * PAGE, &[1]);
    old.guid = OLD_GUID;
    image.log(0, &[image.entry(5, 0, &[2]), old.clone()]);
    assert_eq!(image.known().await, [2]);
    let mut image = Unknown::new();
    image.log(0, &[old]);
    assert_eq!(image.error().await, NOTHING);
}

#[tokio::test]
async fn a_torn_entry_ends_the_sequence_before_it() {
    // A sector of the second entry that is what was there before: of its descriptors, or of its data.
    for (sector, old) in [(2, 0), (3, 0), (3, 0x55)] {
        let mut image = Unknown::new();
        image.log(0, &[image.entry(5, 0, &[1]), image.entry(6, 0, &[1, 2])]);
        image.bytes[LOG + sector * PAGE..][..PAGE].fill(old);
        assert_eq!(image.known().await, [1], "{sector}");
    }
    // Any byte may be another.
    let mut image = Unknown::new();
    image.log(0, &[image.entry(5, 0, &[1]), image.entry(6, 0, &[1, 2])]);
    for at in (0..2 * PAGE).step_by(1501).chain([2 * PAGE - 1]) {
        let byte = &mut image.bytes[LOG + 2 * PAGE + at];
        *byte ^= 0x10;
        assert_eq!(image.known().await, [1], "{at}");
        image.bytes[LOG + 2 * PAGE + at] ^= 0x10;
    }
    assert_eq!(image.known().await, [1, 2]);
}

#[tokio::test]
async fn a_sequence_with_a_gap_does_not_count() {
    let mut image = Unknown::new();
    let entries = [
        image.entry(5, 0, &[1]),
        image.entry(6, 0, &[2]),
        image.entry(7, 0, &[3]),
    ];
    image.log(0, &entries);
    image.bytes[LOG + 3 * PAGE + 100] ^= 1;
    assert_eq!(image.known().await, [1]);
    image.bytes[LOG + PAGE + 100] ^= 1;
    assert_eq!(image.error().await, NOTHING);
}

#[tokio::test]
async fn the_log_is_a_ring() {
    // The second entry's data are at the beginning of the log.
    for start in [3, 4, 2, 1] {
        let mut image = Unknown::new();
        let tail = LOG_SIZE - start * PAGE;
        let entries = [
            image.entry(5, tail, &[1]),
            image.entry(6, tail, &[1, 2]),
            image.entry(7, tail, &[1, 2, 3]),
        ];
        let end = image.log(tail, &entries);
        assert_eq!(end, (6 - start) * PAGE);
        assert_eq!(image.known().await, [1, 2, 3], "{start}");
    }
}

const LOG_SIZE: usize = 1 << 20;

#[tokio::test]
async fn a_log_may_be_full() {
    let mut image = Unknown::new();
    let mut entries: Vec<_> = (0..128)
        .map(|number| image.entry(9 + number, 8192, &[0]))
        .collect();
    entries[127] = image.entry(136, 8192, &[6, 7]);
    assert_eq!(image.log(8192, &entries), 8192);
    assert_eq!(image.known().await, [6, 7]);
    // Entry by entry it says so itself: it cannot be longer than the log.
    image.log(8192, &[image.entry(137, 8192, &[5])]);
    assert_eq!(image.known().await, [5]);
}

#[tokio::test]
async fn zeroes_are_written_without_data() {
    let mut image = Unknown::new();
    let table = image.builder.bat() as u64;
    let mut entry = image.entry(5, 0, &[1, 2]);
    entry.writes.push(Write::Zero(table, 4096));
    image.log(0, &[entry]);
    assert_eq!(image.known().await, [] as [u64; 0]);
    // What comes behind them counts again.
    let mut entry = image.entry(5, 0, &[]);
    entry.writes = vec![Write::Zero(table, 1 << 20), image.knowing(&[4])];
    image.log(0, &[entry]);
    assert_eq!(image.known().await, [4]);
}

#[tokio::test]
async fn many_descriptors_take_more_than_one_sector() {
    for count in [126, 127, 254, 255] {
        let mut image = Unknown::new();
        let mut entry = image.entry(5, 0, &[]);
        let elsewhere = (image.builder.bat() + 2 * PAGE) as u64;
        let write = |number: u64| match number % 3 {
            0 => Write::Zero(elsewhere + number * 4096, 4096),
            _ => Write::Page(elsewhere + number / 4 * 4096, vec![number as u8; PAGE]),
        };
        entry.writes = (0..count - 1).map(write).collect();
        entry.writes.push(image.knowing(&[3, 5]));
        image.log(0, &[entry]);
        assert_eq!(image.known().await, [3, 5], "{count}");
    }
}

#[tokio::test]
async fn regions_and_metadata_may_be_in_the_log_alone() {
    let mut image = Unknown::new();
    let metadata = (1 << 20) + image.builder.log_size;
    let mut writes = vec![image.knowing(&[6])];
    for place in (192 << 10..320 << 10)
        .step_by(PAGE)
        .chain([metadata, metadata + (64 << 10)])
    {
        let page = &mut image.bytes[place..][..PAGE];
        writes.push(Write::Page(place as u64, page.to_vec()));
        page.fill(0xee);
    }
    let mut entry = image.entry(5, 0, &[]);
    entry.writes = writes;
    image.log(0, &[entry]);
    assert_eq!(image.known().await, [6]);
}

#[tokio::test]
async fn a_file_that_was_cut_is_not_replayed() {
    let mut image = Unknown::new();
    let mut entry = image.entry(5, 0, &[1]);
    entry.flushed_end += 1 << 20;
    image.log(0, &[entry]);
    let end = image.end();
    let expected = format!(
        "open: the file has {end} bytes and had {} when it was in use",
        end + (1 << 20)
    );
    assert_eq!(image.error().await, expected);
}

#[tokio::test]
async fn a_file_that_had_still_to_grow_counts_as_larger() {
    let mut image = Unknown::new();
    let mut page = vec![0; PAGE];
    let end = image.end();
    // A block that would lie behind the end of the file.
    page[..8].copy_from_slice(&(end | 6).to_le_bytes());
    let write = Write::Page(image.builder.bat() as u64, page);
    let mut entry = LogEntry::new(5, 0, end, vec![write]);
    image.log(0, std::slice::from_ref(&entry));
    let opened = open(memory(image.bytes.clone())).await;
    let behind = read(&*opened, 0, 512).await.expect_err("nothing is there");
    assert!(
        behind.to_string().contains("past the end of the file"),
        "{behind}"
    );
    entry.last_end += 1 << 20;
    image.log(0, std::slice::from_ref(&entry));
    assert_eq!(image.known().await, [] as [u64; 0]);
    entry.last_end = 1 << 63;
    image.log(0, &[entry]);
    let expected = "open: its log wants a file of 9223372036854775808 bytes";
    assert_eq!(image.error().await, expected);
}

#[tokio::test]
async fn a_log_of_any_length_is_read_a_part_at_a_time() {
    let size = 5 << 20;
    let mut image = Unknown::with_log(size);
    let tail = size - 3 * PAGE;
    let entries = [image.entry(5, tail, &[1]), image.entry(6, tail, &[1, 7])];
    image.log(tail, &entries);
    assert_eq!(image.known().await, [1, 7]);
}

/// A number that follows from the last one.
fn next(random: &mut u64, below: u64) -> u64 {
    *random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let state = (*random ^ (*random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (state ^ (state >> 31)) % below
}

/// An image with a log of anything that may be in one, and the image as it is when that is replayed. Where there are
/// entries of other uses, they are newer.
pub(crate) fn random_log(seed: u64) -> (Unknown, Vec<u8>) {
    let mut random = seed;
    let mut image = Unknown::new();
    let mut replayed = image.bytes.clone();
    let all = image.knowing(&[0, 1, 2, 3, 4, 5, 6, 7]);
    let start = next(&mut random, 256) as usize * PAGE;
    let mut entries = Vec::new();
    let count = 1 + next(&mut random, 6);
    let blocks = (image.builder.bat() + image.builder.bat_length()) as u64;
    for number in 0..count {
        let mut entry = image.entry(1000 + number, start, &[]);
        entry.writes.clear();
        if number == 0 {
            entry.writes.push(all.clone());
        }
        for _ in 0..next(&mut random, 8) {
            let place = blocks + next(&mut random, 2048) * PAGE as u64;
            entry.writes.push(match next(&mut random, 3) {
                0 => Write::Zero(
                    place,
                    (next(&mut random, 300) * PAGE as u64).min(image.end() - place),
                ),
                _ => Write::Page(place, text(place / 7, PAGE as u64)),
            });
        }
        for write in &entry.writes {
            match write {
                Write::Zero(at, length) => replayed[*at as usize..(at + length) as usize].fill(0),
                Write::Page(at, page) => replayed[*at as usize..][..PAGE].copy_from_slice(page),
            }
        }
        entries.push(entry);
    }
    let mut old = image.entry(5000, start, &[]);
    old.guid = OLD_GUID;
    let end = image.log(start, &entries);
    image.log(end, &[old]);
    (image, replayed)
}

#[tokio::test]
async fn any_log_gives_what_writing_it_would_give() {
    for seed in 0..12 {
        let (image, replayed) = random_log(seed);
        let dirty = open(memory(image.bytes)).await;
        let clean = open(memory(replayed)).await;
        assert!(vhdx(dirty.details()).is_dirty && !vhdx(clean.details()).is_dirty);
        assert!(whole(&*dirty).await == whole(&*clean).await, "{seed}");
        check_device(&*dirty, seed, 30).await;
    }
}

#[tokio::test]
async fn files_of_any_block_size_serve() {
    for (seed, minimum, maximum) in [(1, 512, 4096), (2, 4096, 32 << 20), (3, 1, 1000)] {
        let below = FaultyDevice::new(memory(random_log(seed).0.bytes)).with_info(|info| {
            info.limits.minimum = minimum;
            info.limits.maximum = maximum;
        });
        check_device(&*open(Arc::new(below)).await, seed, 100).await;
    }
}

#[tokio::test]
async fn a_failure_below_is_no_damage() {
    let (image, _) = random_log(3);
    let below = Arc::new(FaultyDevice::new(memory(image.bytes)));
    let log = ByteRange::between(LOG as u64, (LOG + LOG_SIZE) as u64);
    let rule = Rule::on(Operation::Read).within(log);
    below.add(rule.fault(Fault::Error(ErrorKind::Io)));
    let Err(error) = try_open(Arc::clone(&below) as _, &NoRelatives).await else {
        panic!("the log cannot be read");
    };
    assert_eq!(
        (error.kind(), error.operation()),
        (ErrorKind::Io, Some(Operation::Read))
    );
    below.heal();
    let image = open(Arc::clone(&below) as _).await;
    let before = whole(&*image).await;
    below.add(Rule::on(Operation::Read).fault(Fault::Error(ErrorKind::Io)));
    let error = read(&*image, 100, 2 * MIB).await.expect_err("a fault");
    assert_eq!((error.offset(), error.length()), (Some(100), Some(2 * MIB)));
    below.heal();
    assert!(whole(&*image).await == before);
}

#[tokio::test]
async fn blocks_that_the_log_does_not_touch_are_mapped() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("disk");
    let mut image = Unknown::new();
    let block = (image.builder.bat() + image.builder.bat_length()) as u64;
    let mut entry = image.entry(5, 0, &[0, 1, 2]);
    entry
        .writes
        .push(Write::Page(block + MIB + 8192, vec![9; PAGE]));
    image.log(0, &[entry]);
    std::fs::write(&path, &image.bytes).expect("written");
    let file = blockferry_block::FileDevice::open(&path, blockferry_block::Access::ReadOnly);
    let image = open(Arc::new(file.expect("open"))).await;
    let mapping = image.mapping(ByteRange::between(10, 3 * MIB));
    let Mapping::File { offset, length, .. } = mapping else {
        panic!("it lies in the file: {mapping:?}");
    };
    assert_eq!((offset, length), (block + 10, MIB + 8192 - 10));
    let touched = image.mapping(ByteRange::between(MIB + 8192, 2 * MIB));
    assert!(matches!(touched, Mapping::Opaque));
    let found = read(&*image, MIB + 8192, 4096).await.expect("read");
    assert!(found == [9; PAGE]);
}
