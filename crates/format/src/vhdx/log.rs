//! The log: a ring of entries, each of which says what has to be written over the file before it is read
//! (specification, section 2.3).
//!
//! An entry is made of sectors of 4 KiB: first those with its header and its descriptors, then one for each descriptor
//! of data. An entry that was not written as a whole tells so itself. All entries from the oldest one whose updates may
//! be missing in the file (the tail) to the newest one (the head) are the active sequence.
//!
//! Sources are only read, so nothing is replayed in the file: the sequence becomes a [`Replay`], which says what lies
//! over the file. It keeps no data, only where in the log they are.

use std::collections::HashMap;

use blockferry_block::{Buffer, ByteRange, Error, Result};

use super::{
    checksum::Checksum,
    guid::Guid,
    header::{LogPlace, MIB, bytes_at},
    replay::{PAGE, Page, Replay},
};
use crate::{
    corrupt::corrupt,
    host::HostFile,
    le::{le32, le64},
};

const ENTRY_SIGNATURE: &[u8] = b"loge";
const ZERO_SIGNATURE: &[u8] = b"zero";
const DATA_SIGNATURE: &[u8] = b"desc";
const SECTOR_SIGNATURE: &[u8] = b"data";

/// How long an entry's header and a descriptor are.
const HEADER: u64 = 64;
const DESCRIPTOR: u64 = 32;

/// Entries of a sound log do not overlap. Where they do, bytes are looked at so often at most, on average.
const MOST_LOOKS: u64 = 4;

/// What is wanted of an entry's header.
#[derive(Clone, Copy, Debug)]
struct Entry {
    checksum: u32,
    /// Whole sectors, within the log.
    length: u64,
    /// Where the sequence begins that ends with this entry.
    tail: u64,
    sequence: u64,
    descriptors: u64,
    /// How long the file was at least.
    flushed_end: u64,
    /// How long it has to be afterwards.
    last_end: u64,
}

/// What is to be written.
enum Descriptor {
    Zero(ByteRange),
    Data { offset: u64, page: Page },
}

/// Finds what the log of `file` has to be replayed for.
///
/// # Errors
/// `Corrupt` where there is no sequence that could be replayed, or the file is shorter than it was; what reading failed
/// with.
pub(crate) async fn replay(file: &HostFile, log: LogPlace) -> Result<Replay> {
    let mut reader = LogReader::new(file, log);
    let entries = reader.entries().await?;
    let (tail, head) = active(&entries, reader.length()).ok_or_else(|| {
        corrupt("it was not closed, and its log has nothing that could be replayed")
    })?;
    let last = entries[&head];
    if file.end() < last.flushed_end {
        return Err(corrupt(format!(
            "the file has {} bytes and had {} when it was in use",
            file.end(),
            last.flushed_end
        )));
    }
    let mut replay = Replay::new(file.end());
    let mut at = tail;
    loop {
        let entry = entries[&at];
        let data = at + entry.descriptor_sectors() * PAGE;
        let mut sectors = 0;
        for index in 0..entry.descriptors {
            let descriptor = reader.descriptor(at, entry, index, data + sectors * PAGE);
            match descriptor.await?.ok_or_else(changed)? {
                Descriptor::Zero(range) => replay.zero(range)?,
                Descriptor::Data { offset, page } => {
                    sectors += 1;
                    replay.write(offset, page);
                }
            }
        }
        if at == head {
            break;
        }
        at = (at + entry.length) % reader.length();
    }
    replay.grow(last.last_end)?;
    Ok(replay)
}

/// Where the tail and the head of the newest complete sequence are.
///
/// The specification tries all places where a sequence may begin. All that end with the same head are alike, and
/// the head says where it begins: only heads are looked at.
fn active(entries: &HashMap<u64, Entry>, length: u64) -> Option<(u64, u64)> {
    let heads = heads(entries, length);
    let complete = heads.iter().filter(|(at, head)| {
        let tail = entries[at].tail;
        at == head && heads.get(&tail) == Some(head)
    });
    let complete = complete.filter(|(at, _)| {
        // Entries that go around the log more than once overwrite each other.
        let (tail, head) = (entries[at].tail, **at);
        let mut at = tail;
        let mut total = entries[&at].length;
        while at != head {
            at = (at + entries[&at].length) % length;
            total += entries[&at].length;
        }
        total <= length
    });
    let newest = complete.max_by_key(|(at, _)| entries[at].sequence)?;
    Some((entries[newest.0].tail, *newest.0))
}

/// For every entry the last one of the row that it is in: one comes after another if its sequence number does.
fn heads(entries: &HashMap<u64, Entry>, length: u64) -> HashMap<u64, u64> {
    let next = |at: u64| {
        let entry = entries[&at];
        let next = (at + entry.length) % length;
        let follows = entries.get(&next)?.sequence.checked_sub(1) == Some(entry.sequence);
        follows.then_some(next)
    };
    let mut heads = HashMap::with_capacity(entries.len());
    let mut row = Vec::new();
    for &start in entries.keys() {
        let mut at = start;
        let head = loop {
            if let Some(head) = heads.get(&at) {
                break *head;
            }
            row.push(at);
            match next(at) {
                Some(next) => at = next,
                None => break at,
            }
        };
        heads.extend(row.drain(..).map(|at| (at, head)));
    }
    heads
}

fn changed() -> Error {
    corrupt("its log changes while it is read")
}

impl Entry {
    /// The entry that a sector may begin, as far as that is told by its header.
    fn parse(sector: &[u8], guid: Guid, log_length: u64) -> Option<Self> {
        if !sector.starts_with(ENTRY_SIGNATURE) || Guid::at(sector, 32) != guid {
            return None;
        }
        let entry = Self {
            checksum: le32(sector, 4),
            length: le32(sector, 8).into(),
            tail: le32(sector, 12).into(),
            sequence: le64(sector, 16),
            descriptors: le32(sector, 24).into(),
            flushed_end: le64(sector, 48),
            last_end: le64(sector, 56),
        };
        let is_sound = entry.length > 0
            && entry.length.is_multiple_of(PAGE)
            && entry.length <= log_length
            && entry.tail.is_multiple_of(PAGE)
            && entry.tail < log_length
            && entry.sequence > 0
            && entry.descriptor_sectors() * PAGE <= entry.length;
        is_sound.then_some(entry)
    }

    fn descriptor_sectors(&self) -> u64 {
        (HEADER + self.descriptors * DESCRIPTOR).div_ceil(PAGE)
    }
}

/// Reads the log, a MiB at a time.
struct LogReader<'a> {
    file: &'a HostFile,
    log: LogPlace,
    /// The MiB that was read last, by its number.
    part: Option<(u64, Buffer)>,
}

impl<'a> LogReader<'a> {
    fn new(file: &'a HostFile, log: LogPlace) -> Self {
        let part = None;
        Self { file, log, part }
    }

    fn length(&self) -> u64 {
        self.log.place.len()
    }

    /// The sector at `at` of the log, which is a ring.
    async fn sector(&mut self, at: u64) -> Result<&[u8]> {
        let at = at % self.length();
        let number = at / MIB;
        let part = match self.part.take() {
            Some(part) if part.0 == number => part,
            _ => {
                let start = self.log.place.start() + number * MIB;
                (number, bytes_at(self.file, start, MIB).await?)
            }
        };
        let (_, bytes) = self.part.insert(part);
        Ok(&bytes[(at % MIB) as usize..][..PAGE as usize])
    }

    /// All entries that are whole, by where they begin.
    async fn entries(&mut self) -> Result<HashMap<u64, Entry>> {
        let (guid, length) = (self.log.guid, self.length());
        let mut claimed = Vec::new();
        for at in (0..length).step_by(PAGE as usize) {
            let entry = Entry::parse(self.sector(at).await?, guid, length);
            claimed.extend(entry.map(|entry| (at, entry)));
        }
        let lengths = claimed.iter().map(|(_, entry)| entry.length);
        if lengths.sum::<u64>() > MOST_LOOKS * length {
            return Err(corrupt("the entries of its log overlap"));
        }
        let mut entries = HashMap::new();
        for (at, entry) in claimed {
            if self.is_whole(at, entry).await? {
                entries.insert(at, entry);
            }
        }
        Ok(entries)
    }

    /// Whether all of `entry`, which begins at `at`, was written.
    async fn is_whole(&mut self, at: u64, entry: Entry) -> Result<bool> {
        let mut checksum = Checksum::new();
        let mut data = 0;
        let first_data = entry.descriptor_sectors();
        for number in 0..entry.length / PAGE {
            let sector = self.sector(at + number * PAGE).await?;
            match number {
                0 => checksum.add_first(sector),
                _ => checksum.add(sector),
            }
            if number >= first_data && !is_data_of(sector, entry.sequence) {
                return Ok(false);
            }
        }
        if checksum.finish() != entry.checksum {
            return Ok(false);
        }
        for index in 0..entry.descriptors {
            match self.descriptor(at, entry, index, 0).await? {
                Some(Descriptor::Data { .. }) => data += 1,
                Some(Descriptor::Zero(_)) => {}
                None => return Ok(false),
            }
        }
        Ok(first_data + data == entry.length / PAGE)
    }

    /// Descriptor `index` of `entry`, which begins at `at`; `sector` is where its data are in the log, if it has any.
    /// `None` for one that breaks the rules.
    async fn descriptor(
        &mut self,
        at: u64,
        entry: Entry,
        index: u64,
        sector: u64,
    ) -> Result<Option<Descriptor>> {
        let data = self.log.place.start() + sector % self.length();
        let place = HEADER + index * DESCRIPTOR;
        let bytes = self.sector(at + place / PAGE * PAGE).await?;
        let bytes = &bytes[(place % PAGE) as usize..][..DESCRIPTOR as usize];
        let offset = le64(bytes, 16);
        let is_data = bytes.starts_with(DATA_SIGNATURE);
        let length = match is_data {
            true => PAGE,
            false => le64(bytes, 8),
        };
        let Ok(range) = ByteRange::new(offset, length) else {
            return Ok(None);
        };
        let is_sound = (is_data || bytes.starts_with(ZERO_SIGNATURE))
            && le64(bytes, 24) == entry.sequence
            && offset.is_multiple_of(PAGE)
            && length.is_multiple_of(PAGE);
        Ok(match (is_sound, is_data) {
            (false, _) => None,
            (true, false) => Some(Descriptor::Zero(range)),
            (true, true) => {
                let page = Page {
                    data,
                    leading: le64(bytes, 8).to_le_bytes(),
                    trailing: le32(bytes, 4).to_le_bytes(),
                };
                Some(Descriptor::Data { offset, page })
            }
        })
    }
}

/// Whether a sector of data belongs to the entry with this sequence number.
fn is_data_of(sector: &[u8], sequence: u64) -> bool {
    let high = u64::from(le32(sector, 4));
    let low = u64::from(le32(sector, PAGE as usize - 4));
    sector.starts_with(SECTOR_SIGNATURE) && high << 32 | low == sequence
}
