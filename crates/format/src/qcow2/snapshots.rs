//! Internal snapshots (specification, "Snapshots"): the table of them, and which one is meant.

use std::{ffi::OsStr, time::Duration};

use blockferry_block::{BlockDevice, ByteRange, Error, ErrorKind, Operation, Result, printable};

use super::{
    entries::{EntryReader, padding, text},
    geometry::{Geometry, corrupt, table_range},
    header::{Header, LARGEST_L1, be16, be32, be64},
};

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
        let mut length = 0;
        for _ in 0..header.snapshots {
            // The last entry may end without its padding.
            reader.take(padding(length)).await?;
            length = length.next_multiple_of(8);
            let (snapshot, entry) = Snapshot::read(&mut reader, header.geometry).await?;
            snapshots.push(snapshot);
            length += entry;
        }
        let range = ByteRange::between(start, start + length as u64);
        Ok(Self { snapshots, range })
    }

    /// The snapshot of that ID, or else of that name. As qemu-img has it, `snapshot.id=` or `snapshot.name=` in front
    /// says which of the two is meant.
    ///
    /// # Errors
    /// `NotFound`.
    pub(crate) fn find(&self, wanted: &str) -> Result<&Snapshot> {
        let of_id = |id: &str| self.snapshots.iter().find(|it| it.id == id);
        let of_name = |name: &str| self.snapshots.iter().find(|it| it.name == name);
        let id = wanted.strip_prefix("snapshot.id=");
        let name = wanted.strip_prefix("snapshot.name=");
        let found = match (id, name) {
            (Some(id), _) => of_id(id),
            (_, Some(name)) => of_name(name),
            (None, None) => of_id(wanted).or_else(|| of_name(wanted)),
        };
        found.ok_or_else(|| {
            let wanted = printable(OsStr::new(wanted));
            let message = format!("there is no snapshot of the ID or name \"{wanted}\"");
            Error::with_message(ErrorKind::NotFound, message).during(Operation::Open)
        })
    }
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
mod tests {
    use blockferry_block::MemoryDevice;

    use super::*;
    use crate::qcow2::header::tests::header;

    const START: usize = 5 << 16;

    /// An entry with extra data as long as `extra`: the state's size, the disk's, the instructions.
    fn entry(id: &str, name: &str, extra: &[u64]) -> Vec<u8> {
        let mut bytes = (9_u64 << 16).to_be_bytes().to_vec();
        bytes.extend(40_u32.to_be_bytes());
        bytes.extend((id.len() as u16).to_be_bytes());
        bytes.extend((name.len() as u16).to_be_bytes());
        bytes.extend(1_700_000_000_u32.to_be_bytes());
        bytes.extend(5_u32.to_be_bytes());
        bytes.extend(7_000_000_000_u64.to_be_bytes());
        bytes.extend(77_u32.to_be_bytes());
        bytes.extend((extra.len() as u32 * 8).to_be_bytes());
        bytes.extend(extra.iter().flat_map(|word| word.to_be_bytes()));
        bytes.extend(id.as_bytes());
        bytes.extend(name.as_bytes());
        bytes
    }

    async fn table(entries: Vec<Vec<u8>>) -> Result<SnapshotTable> {
        let mut bytes = vec![0; START];
        for entry in &entries {
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            bytes.extend(entry);
        }
        let mut header = header(3);
        header.snapshots = entries.len() as u32;
        header.snapshots_offset = START as u64;
        SnapshotTable::read(&MemoryDevice::from_bytes(bytes), &header).await
    }

    #[tokio::test]
    async fn entries_are_read_with_all_that_they_say() {
        let first = entry("1", "before the update", &[99, 3 << 30, 1234]);
        let second = entry("2", "", &[]);
        let third = entry("3", "1", &[0, 1 << 20, u64::MAX]);
        let table = table(vec![first.clone(), second.clone(), third.clone()]);
        let table = table.await.expect("valid");
        let [one, two, three] = &table.snapshots[..] else {
            panic!("three");
        };
        assert_eq!((&*one.id, &*one.name), ("1", "before the update"));
        assert_eq!((one.size, one.state_size), (3 << 30, 99));
        assert_eq!(one.instructions, Some(1234));
        assert_eq!(one.date, Duration::new(1_700_000_000, 5));
        assert_eq!(one.guest_clock, Duration::from_secs(7));
        assert_eq!(one.l1, ByteRange::between(9 << 16, (9 << 16) + 320));
        assert_eq!((two.size, two.state_size), (5 << 30, 77));
        assert_eq!((three.size, three.instructions), (1 << 20, None));
        let length = first.len().next_multiple_of(8) + second.len().next_multiple_of(8);
        assert_eq!(table.range.len() as usize, length + third.len());
    }

    #[tokio::test]
    async fn the_id_is_looked_for_before_the_name() {
        let table = table(vec![
            entry("2", "1", &[0, 0]),
            entry("1", "x", &[0, 0]),
            entry("3", "x", &[0, 0]),
        ]);
        let table = table.await.expect("valid");
        assert_eq!(table.find("1").expect("found").name, "x");
        assert_eq!(table.find("x").expect("found").id, "1");
        assert_eq!(table.find("snapshot.name=1").expect("found").id, "2");
        assert_eq!(table.find("snapshot.id=1").expect("found").name, "x");
        assert!(table.find("snapshot.id=x").is_err());
        let error = table.find("\u{1b}y").expect_err("none").to_string();
        assert!(error.contains("\"\\u{1b}y\""), "{error}");
    }

    #[tokio::test]
    async fn absurd_entries_are_corrupt() {
        let sound = entry("1", "x", &[0, 0]);
        let changed = |at: usize, bytes: &[u8]| {
            let mut entry = sound.clone();
            entry[at..at + bytes.len()].copy_from_slice(bytes);
            vec![entry]
        };
        for (entries, part) in [
            (changed(36, &1025_u32.to_be_bytes()), "1025 bytes of extra"),
            (changed(8, &u32::MAX.to_be_bytes()), "4294967295 entries"),
            (changed(0, &513_u64.to_be_bytes()), "boundary"),
            (
                changed(0, &(u64::MAX << 16).to_be_bytes()),
                "outside of any file",
            ),
            (changed(48, &u64::MAX.to_be_bytes()), "virtual size"),
            (changed(12, &u16::MAX.to_be_bytes()), "ends within"),
        ] {
            let error = table(entries).await.expect_err("absurd");
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(error.to_string().contains(part), "{error}");
        }
        let short = table(changed(8, &1_u32.to_be_bytes())).await.expect("read");
        let mut short = short.snapshots[0].clone();
        short.size = 1 << 40;
        let error = short.geometry(header(3).geometry).expect_err("too short");
        assert!(error.to_string().contains("needs 2048"), "{error}");
    }

    #[tokio::test]
    async fn many_snapshots_of_a_small_file_cost_nothing() {
        let mut header = header(3);
        header.snapshots = 65536;
        header.snapshots_offset = 0;
        let below = MemoryDevice::new(1 << 16);
        let error = SnapshotTable::read(&below, &header)
            .await
            .expect_err("none");
        assert!(
            error.to_string().contains("past the end of the file"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn names_are_bounded_by_the_table() {
        let name = "n".repeat(65535);
        let entries: Vec<_> = (0..300).map(|_| entry("1", &name, &[])).collect();
        let error = table(entries).await.expect_err("too long");
        assert!(error.to_string().contains("ends within"), "{error}");
    }
}
