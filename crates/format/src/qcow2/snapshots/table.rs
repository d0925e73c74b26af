//! The snapshot table as it is written (specification, "Snapshots").

use blockferry_block::{BlockDevice, Error, ErrorKind, Result, read_exact_at};

use super::{FIXED, LONGEST_TABLE, Snapshot, SnapshotTable};
use crate::qcow2::{
    entries::padding,
    header::{MOST_SNAPSHOTS, be32, put32, put64},
};

/// The length of the extra data that is written: the size of the guest's state, that of the disk, the instructions.
const EXTRA: u32 = 24;

impl Snapshot {
    /// Its entry.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        put64(&mut bytes, self.l1.start());
        put32(&mut bytes, (self.l1.len() / 8) as u32);
        bytes.extend((self.id.len() as u16).to_be_bytes());
        bytes.extend((self.name.len() as u16).to_be_bytes());
        // It counts on past 2106 as it does in the format.
        put32(&mut bytes, self.date.as_secs() as u32);
        put32(&mut bytes, self.date.subsec_nanos());
        put64(&mut bytes, self.guest_clock.as_nanos() as u64);
        put32(&mut bytes, self.state_size.try_into().unwrap_or(0));
        put32(&mut bytes, EXTRA);
        put64(&mut bytes, self.state_size);
        put64(&mut bytes, self.size);
        put64(&mut bytes, self.instructions.unwrap_or(u64::MAX));
        bytes.extend(self.id.as_bytes());
        bytes.extend(self.name.as_bytes());
        bytes
    }

    /// Its entry, which does not say how large the disk was, with all that is said of it elsewhere.
    fn completed(&self, short: &[u8]) -> Vec<u8> {
        let at = FIXED - 4;
        let rest = FIXED.saturating_add(be32(short, at) as usize);
        let mut bytes = short[..at].to_vec();
        put32(&mut bytes, EXTRA);
        put64(&mut bytes, self.state_size);
        put64(&mut bytes, self.size);
        put64(&mut bytes, u64::MAX);
        bytes.extend(short.get(rest..).unwrap_or_default());
        bytes
    }
}

/// The entries that the table in `below` has, as they stand there, with what is not understood of them. Those without the
/// size of the disk get it, as version 3 wants it.
///
/// # Errors
/// What reading failed with.
pub(super) async fn own_entries(
    below: &dyn BlockDevice,
    table: &SnapshotTable,
) -> Result<Vec<Vec<u8>>> {
    let mut entries = Vec::with_capacity(table.entries.len());
    for (range, snapshot) in table.entries.iter().zip(&table.snapshots) {
        let entry = read_exact_at(below, *range).await?.to_vec();
        entries.push(match snapshot.says_size {
            true => entry,
            false => snapshot.completed(&entry),
        });
    }
    Ok(entries)
}

/// The table of these entries.
///
/// # Errors
/// `Unsupported` where it is longer than one can be.
pub(super) fn encode(entries: &[Vec<u8>]) -> Result<Vec<u8>> {
    let mut bytes: Vec<u8> = Vec::new();
    for entry in entries {
        bytes.resize(bytes.len() + padding(bytes.len()), 0);
        bytes.extend(entry);
    }
    // Who reads it takes the last one with its padding, too.
    bytes.resize(bytes.len() + padding(bytes.len()), 0);
    if entries.len() > MOST_SNAPSHOTS as usize || bytes.len() as u64 > LONGEST_TABLE {
        let message = "the image has as many snapshots as it can have";
        return Err(Error::with_message(ErrorKind::Unsupported, message));
    }
    Ok(bytes)
}

/// The ID of a new snapshot: the number behind the largest one.
pub(super) fn unused_id(snapshots: &[Snapshot]) -> String {
    let numbers = snapshots.iter().filter_map(|it| it.id.parse::<u64>().ok());
    let next = match numbers.max() {
        None => Some(1),
        Some(largest) => largest.checked_add(1),
    };
    let is_unused = |id: &String| snapshots.iter().all(|it| it.id != *id);
    let next = next.map(|number| number.to_string()).filter(is_unused);
    next.unwrap_or_else(|| {
        let mut ids = (1..=u64::MAX).map(|number| number.to_string());
        ids.find(is_unused).unwrap_or_default()
    })
}
