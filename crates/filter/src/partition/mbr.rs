//! The table in a disk's first sector (MBR), and the chain of sectors that describe logical partitions (EBR).

use std::collections::HashSet;

use blockferry_block::{ByteRange, Result};

use super::TableEntry;
use crate::window::{Window, u32_at};

/// The bytes of a sector that matter, whatever the size of sectors is.
pub(super) const SECTOR: usize = 512;

/// The sectors of a chain that are looked at: as many partitions as Linux has for a disk.
const MOST_LINKS: usize = 256;

/// An entry: all there is to a primary partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MbrEntry {
    pub(super) kind: u8,
    /// In sectors, relative to something that depends on where the entry lies.
    start: u32,
    /// In sectors.
    length: u32,
}

impl MbrEntry {
    /// Whether the whole disk is described elsewhere, in a GPT.
    pub(super) fn is_protective(self) -> bool {
        self.kind == 0xee
    }

    pub(super) fn is_used(self) -> bool {
        self.kind != 0 && self.length != 0
    }

    fn is_extended(self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85) && self.length != 0
    }
}

/// The four entries of a sector, unless it has none: it is not signed, or is the boot sector of something else.
pub(super) fn entries(sector: &[u8]) -> Option<[MbrEntry; 4]> {
    let table = sector.get(446..SECTOR)?;
    let (table, signature) = table.split_at(64);
    let is_flag = |entry: usize| table[16 * entry] & 0x7f == 0;
    if signature != [0x55, 0xaa] || !(0..4).all(is_flag) {
        return None;
    }
    Some([0, 16, 32, 48].map(|at| MbrEntry {
        kind: table[at + 4],
        start: u32_at(table, at + 8),
        length: u32_at(table, at + 12),
    }))
}

/// All partitions of a disk whose first sector has these entries, and what is wrong with a chain where it ends
/// too early.
pub(super) async fn partitions(
    window: &mut Window<'_>,
    first: [MbrEntry; 4],
    sector_size: u64,
) -> Result<(Vec<TableEntry>, Option<&'static str>)> {
    let mut found = Vec::new();
    for (number, entry) in (1..).zip(first) {
        if entry.is_used() {
            found.push(TableEntry {
                number,
                range: sectors(entry.start.into(), entry.length, sector_size),
                name: String::new(),
                is_extended: entry.is_extended(),
                container: None,
            });
        }
    }
    let mut chain = Chain {
        sector_size,
        number: 5,
        seen: HashSet::new(),
    };
    let mut flaw = None;
    for entry in first.into_iter().filter(|entry| entry.is_extended()) {
        flaw = flaw.or(chain.follow(window, entry, &mut found).await?);
    }
    Ok((found, flaw))
}

/// What is known on the way through the chains of logical partitions.
struct Chain {
    sector_size: u64,
    /// Of the next partition.
    number: u32,
    /// The sectors that were read.
    seen: HashSet<u64>,
}

impl Chain {
    /// Adds the logical partitions of an extended one, numbered as Linux does, until the chain ends. Says what
    /// is wrong where that is not its proper end.
    async fn follow(
        &mut self,
        window: &mut Window<'_>,
        extended: MbrEntry,
        found: &mut Vec<TableEntry>,
    ) -> Result<Option<&'static str>> {
        let base = u64::from(extended.start);
        let container = sectors(base, extended.length, self.sector_size);
        let (mut at, mut length) = (base, extended.length);
        loop {
            if self.seen.len() == MOST_LINKS {
                return Ok(Some("the chain of logical partitions is too long"));
            }
            if !self.seen.insert(at) {
                return Ok(Some("the chain of logical partitions runs in a circle"));
            }
            let place = ByteRange::new(at * self.sector_size, SECTOR as u64);
            let place = place.ok().filter(|place| place.end() <= window.size());
            let Some(place) = place else {
                return Ok(Some("the chain of logical partitions leaves the disk"));
            };
            let Some(entries) = entries(window.bytes(place).await?) else {
                return Ok(Some("the chain of logical partitions is broken"));
            };
            for (index, entry) in entries.into_iter().enumerate() {
                let start = at + u64::from(entry.start);
                let range = sectors(start, entry.length, self.sector_size);
                // The last two are not used by anyone who keeps to the rules, and may be anything.
                let inside = sectors(at, length, self.sector_size)
                    .zip(container)
                    .zip(range)
                    .is_some_and(|((own, all), range)| own.contains(range) && all.contains(range));
                if entry.length == 0 || entry.is_extended() || index >= 2 && !inside {
                    continue;
                }
                found.push(TableEntry {
                    number: self.number,
                    range,
                    name: String::new(),
                    is_extended: false,
                    container,
                });
                self.number += 1;
            }
            let Some(next) = entries.into_iter().find(|entry| entry.is_extended()) else {
                return Ok(None);
            };
            (at, length) = (base + u64::from(next.start), next.length);
        }
    }
}

/// Sectors as bytes. None of 4 KiB that a 32-bit number counts, and twice that, is beyond what a range can be.
fn sectors(start: u64, length: u32, sector_size: u64) -> Option<ByteRange> {
    ByteRange::new(start * sector_size, u64::from(length) * sector_size).ok()
}
