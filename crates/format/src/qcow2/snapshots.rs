//! Internal snapshots (specification, "Snapshots"): the table of them, and which one is meant.
//!
//! ```text
//!  change   snapshots made, gone back to and deleted
//!  states   what a state of the disk uses, and what may be written in place
//!  recount  refcounts as they are and as they will be
//!  table    the table as it is written
//! ```

mod change;
mod recount;
mod states;
mod table;

use std::{ffi::OsStr, time::Duration};

use blockferry_block::{BlockDevice, ByteRange, Error, ErrorKind, Operation, Result, printable};

use super::{
    entries::{EntryReader, padding, text},
    geometry::{Geometry, corrupt, table_range},
    header::{Header, LARGEST_L1, be16, be32, be64},
};
pub(crate) use change::complete_table;
pub use change::{SnapshotOptions, apply_snapshot, create_snapshot, delete_snapshot};

/// How long the snapshot table can be: 256 bytes for each of as many snapshots as there can be.
const LONGEST_TABLE: u64 = 16 << 20;
/// How long the extra data of an entry can be (qemu's bound).
const LONGEST_EXTRA: usize = 1024;
/// The length of what every entry begins with.
const FIXED: usize = 40;

/// A snapshot inside an image, as its table says it. The texts are the image's: escape them before printing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// Its ID, which no other has in a sound image.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The virtual size that the disk had, in bytes.
    pub size: u64,
    /// When it was taken, since 1970.
    pub date: Duration,
    /// How long the guest had been running.
    pub guest_clock: Duration,
    /// How many bytes of the guest's memory and state lie behind the disk; 0 without any.
    pub state_size: u64,
    /// How many instructions the guest had run, where that was recorded.
    pub instructions: Option<u64>,
    /// The table says its size; otherwise that is the disk's.
    pub(crate) says_size: bool,
    /// Its L1 table.
    pub(crate) l1: ByteRange,
}

/// The snapshots of an image.
#[derive(Clone, Debug, Default)]
pub(crate) struct SnapshotTable {
    pub(crate) snapshots: Vec<Snapshot>,
    /// Where the table lies; empty without one.
    pub(crate) range: ByteRange,
    /// Where each of their entries does, without its padding.
    entries: Vec<ByteRange>,
}

impl SnapshotTable {
    /// Reads the table of the image in `below`.
    ///
    /// # Errors
    /// `Corrupt` for what breaks the rules or is larger than any snapshot table; what reading failed with.
    pub(crate) async fn read(below: &dyn BlockDevice, header: &Header) -> Result<Self> {
        let read = Self::read_entries(below, header).await;
        read.map_err(|error| error.during(Operation::Open))
    }

    async fn read_entries(below: &dyn BlockDevice, header: &Header) -> Result<Self> {
        if header.snapshots == 0 {
            return Ok(Self::default());
        }
        let start = header.snapshots_offset;
        let fixed = u64::from(header.snapshots) * FIXED as u64;
        let least = table_range("the snapshot table", start, fixed)?;
        if least.end() > below.info().size {
            return Err(corrupt("the snapshot table lies past the end of the file"));
        }
        let longest = ByteRange::between(start, start.saturating_add(LONGEST_TABLE));
        let mut reader = EntryReader::new(below, "the snapshot table", longest);
        let mut snapshots = Vec::new();
        let mut entries = Vec::new();
        let mut length = 0;
        for _ in 0..header.snapshots {
            // The last entry may end without its padding.
            reader.take(padding(length)).await?;
            length = length.next_multiple_of(8);
            let (snapshot, entry) = Snapshot::read(&mut reader, header.geometry).await?;
            snapshots.push(snapshot);
            let place = start + length as u64;
            entries.push(ByteRange::between(place, place + entry as u64));
            length += entry;
        }
        let range = ByteRange::between(start, start + length as u64);
        Ok(Self {
            snapshots,
            range,
            entries,
        })
    }

    /// The snapshot of that ID, or else of that name. As qemu-img has it, `snapshot.id=` or `snapshot.name=` in front
    /// says which of the two is meant.
    ///
    /// # Errors
    /// `NotFound`.
    pub(crate) fn find(&self, wanted: &str) -> Result<&Snapshot> {
        let found = self.named(wanted);
        found.ok_or_else(|| missing(wanted).during(Operation::Open))
    }

    fn named(&self, wanted: &str) -> Option<&Snapshot> {
        let of_id = |id: &str| self.snapshots.iter().find(|it| it.id == id);
        let of_name = |name: &str| self.snapshots.iter().find(|it| it.name == name);
        let id = wanted.strip_prefix("snapshot.id=");
        let name = wanted.strip_prefix("snapshot.name=");
        match (id, name) {
            (Some(id), _) => of_id(id),
            (_, Some(name)) => of_name(name),
            (None, None) => of_id(wanted).or_else(|| of_name(wanted)),
        }
    }
}

fn missing(wanted: &str) -> Error {
    let wanted = printable(OsStr::new(wanted));
    let message = format!("there is no snapshot of the ID or name \"{wanted}\"");
    Error::with_message(ErrorKind::NotFound, message)
}

impl Snapshot {
    /// The next entry, and its length.
    async fn read(reader: &mut EntryReader<'_>, geometry: Geometry) -> Result<(Self, usize)> {
        let fixed: [u8; FIXED] = reader.take(FIXED).await?.try_into().expect("as many");
        let l1_entries = u64::from(be32(&fixed, 8));
        let (id, name) = (be16(&fixed, 12).into(), be16(&fixed, 14).into());
        let extra = be32(&fixed, 36) as usize;
        if extra > LONGEST_EXTRA {
            return Err(corrupt(format!(
                "a snapshot has {extra} bytes of extra data, which is too much"
            )));
        }
        let more = reader.take(extra).await?;
        let number = |at: usize| more.get(at..at + 8).map(|bytes| be64(bytes, 0));
        let state_size = number(0).unwrap_or_else(|| be32(&fixed, 32).into());
        let own_size = number(8);
        let size = own_size.unwrap_or(geometry.size);
        let instructions = number(16).filter(|count| *count != u64::MAX);
        let id_text = text(reader.take(id).await?);
        let name_text = text(reader.take(name).await?);
        let shown = printable(OsStr::new(&id_text));
        if i64::try_from(size).is_err() {
            return Err(corrupt(format!(
                "the snapshot \"{shown}\" has a virtual size of {size} bytes, more than an image can have"
            )));
        }
        if l1_entries * 8 > LARGEST_L1 {
            return Err(corrupt(format!(
                "the L1 table of the snapshot \"{shown}\" has {l1_entries} entries, which is too much"
            )));
        }
        if !geometry.is_aligned(be64(&fixed, 0)) {
            return Err(corrupt(format!(
                "the L1 table of the snapshot \"{shown}\" is not on a cluster's boundary"
            )));
        }
        let snapshot = Self {
            l1: table_range("a snapshot's L1 table", be64(&fixed, 0), l1_entries * 8)?,
            size,
            says_size: own_size.is_some(),
            date: Duration::from_secs(be32(&fixed, 16).into())
                + Duration::from_nanos(be32(&fixed, 20).into()),
            guest_clock: Duration::from_nanos(be64(&fixed, 24)),
            state_size,
            instructions,
            id: id_text,
            name: name_text,
        };
        Ok((snapshot, FIXED + extra + id + name))
    }

    /// What the disk of the snapshot is computed with, in an image of `geometry`.
    ///
    /// # Errors
    /// `Corrupt` where its L1 table is too short for its size.
    pub(crate) fn geometry(&self, geometry: Geometry) -> Result<Geometry> {
        let size = self.size;
        let (needed, entries) = (geometry.l1_entries_for(size), self.l1.len() / 8);
        if entries < needed {
            return Err(corrupt(format!(
                "the L1 table of the snapshot \"{}\" has {entries} entries and its size needs {needed}",
                printable(OsStr::new(&self.id))
            )));
        }
        Ok(Geometry { size, ..geometry })
    }
}

#[cfg(test)]
mod tests;
