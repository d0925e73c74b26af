//! The GUID partition table (UEFI specification, section "GUID Partition Table Disk Layout").

use blockferry_block::{ByteRange, Result};

use super::TableEntry;
use crate::window::{Window, u32_at, u64_at};

/// The bytes of a header that are used.
const HEADER: u32 = 92;

/// The smallest entry, and the size of those that everybody writes.
const ENTRY: u32 = 128;

/// The largest array of entries that is taken into memory, in bytes: 64 times the usual one.
const MOST_ENTRIES: u64 = 1 << 20;

/// What is wrong with a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum GptFlaw {
    #[error("it is not there")]
    Missing,
    #[error("it has a header of {0} bytes")]
    HeaderSize(u32),
    #[error("the checksum of its header is wrong")]
    Checksum,
    #[error("it is that of block {0}")]
    Place(u64),
    #[error("it has entries of {0} bytes")]
    EntrySize(u32),
    #[error("it has {0} entries of {1} bytes, which is too much")]
    EntryCount(u32, u32),
    #[error("its entries lie outside of the disk")]
    EntriesOutside,
    #[error("the checksum of its entries is wrong")]
    EntriesChecksum,
}

/// A header whose checksum is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GptHeader {
    /// Where the other header lies, in blocks.
    alternate: u64,
    /// Where the entries lie, in bytes.
    entries: ByteRange,
    entry_size: u32,
    entries_checksum: u32,
}

impl GptHeader {
    /// Reads the header in `block`, which is block `lba` of a disk.
    pub(super) fn parse(block: &[u8], lba: u64) -> Result<Self, GptFlaw> {
        if !block.starts_with(b"EFI PART") {
            return Err(GptFlaw::Missing);
        }
        let size = u32_at(block, 12);
        let header = (size >= HEADER).then(|| block.get(..size as usize));
        let header = header.flatten().ok_or(GptFlaw::HeaderSize(size))?;
        let mut checksum = crc32fast::Hasher::new();
        checksum.update(&header[..16]);
        checksum.update(&[0; 4]);
        checksum.update(&header[20..]);
        if checksum.finalize() != u32_at(block, 16) {
            return Err(GptFlaw::Checksum);
        }
        let own = u64_at(block, 24);
        if own != lba {
            return Err(GptFlaw::Place(own));
        }
        let (count, entry_size) = (u32_at(block, 80), u32_at(block, 84));
        if entry_size < ENTRY || !entry_size.is_power_of_two() {
            return Err(GptFlaw::EntrySize(entry_size));
        }
        let length = u64::from(count) * u64::from(entry_size);
        if length > MOST_ENTRIES {
            return Err(GptFlaw::EntryCount(count, entry_size));
        }
        let start = u64_at(block, 72).checked_mul(block.len() as u64);
        let entries = start.and_then(|start| ByteRange::new(start, length).ok());
        Ok(Self {
            alternate: u64_at(block, 32),
            entries: entries.ok_or(GptFlaw::EntriesOutside)?,
            entry_size,
            entries_checksum: u32_at(block, 88),
        })
    }

    /// Reads the entries; those that are not used are left out.
    pub(super) fn parse_entries(
        &self,
        bytes: &[u8],
        block_size: u64,
    ) -> Result<Vec<TableEntry>, GptFlaw> {
        if crc32fast::hash(bytes) != self.entries_checksum {
            return Err(GptFlaw::EntriesChecksum);
        }
        let entries = (1..).zip(bytes.chunks_exact(self.entry_size as usize));
        let used = entries.filter(|(_, entry)| entry[..16] != [0; 16]);
        let used = used.map(|(number, entry)| TableEntry {
            number,
            range: blocks(u64_at(entry, 32), u64_at(entry, 40), block_size),
            name: name(&entry[56..128]),
            is_extended: false,
            container: None,
        });
        Ok(used.collect())
    }
}

/// The partitions of the table at the start of the disk, or of its copy at the end where that one is broken.
/// Gives what is wrong with the first and with the copy where both are.
pub(super) async fn partitions(
    window: &mut Window<'_>,
    block_size: u64,
) -> Result<Result<Vec<TableEntry>, (GptFlaw, GptFlaw)>> {
    let last = (window.size() / block_size).saturating_sub(1);
    let (primary, alternate) = match table(window, block_size, 1).await? {
        (_, Ok(entries)) => return Ok(Ok(entries)),
        (header, Err(flaw)) => (flaw, header.map(|header| header.alternate)),
    };
    // A disk that has grown has its copy where the end was, if the header is to be believed.
    let mut flaw = GptFlaw::Missing;
    for lba in [Some(last), alternate.filter(|lba| *lba != last)] {
        let Some(lba) = lba.filter(|lba| *lba > 1) else {
            continue;
        };
        match table(window, block_size, lba).await? {
            (_, Ok(entries)) => return Ok(Ok(entries)),
            (_, Err(GptFlaw::Missing)) => {}
            (_, Err(other)) => flaw = other,
        }
    }
    Ok(Err((primary, flaw)))
}

/// The header and the entries of the table whose header is block `lba`.
async fn table(
    window: &mut Window<'_>,
    block_size: u64,
    lba: u64,
) -> Result<(Option<GptHeader>, Result<Vec<TableEntry>, GptFlaw>)> {
    let place = lba
        .checked_mul(block_size)
        .and_then(|start| ByteRange::new(start, block_size).ok())
        .filter(|place| place.end() <= window.size());
    let Some(place) = place else {
        return Ok((None, Err(GptFlaw::Missing)));
    };
    let header = match GptHeader::parse(window.bytes(place).await?, lba) {
        Ok(header) => header,
        Err(flaw) => return Ok((None, Err(flaw))),
    };
    if header.entries.end() > window.size() {
        return Ok((Some(header), Err(GptFlaw::EntriesOutside)));
    }
    let bytes = window.bytes(header.entries).await?;
    let entries = header.parse_entries(bytes, block_size);
    Ok((Some(header), entries))
}

/// From the first block to the last one, in bytes; `None` where that is nothing.
fn blocks(first: u64, last: u64, block_size: u64) -> Option<ByteRange> {
    let start = first.checked_mul(block_size)?;
    let end = last.checked_add(1)?.checked_mul(block_size)?;
    ByteRange::new(start, end.checked_sub(start)?)
        .ok()
        .filter(|range| !range.is_empty())
}

/// The name of a partition, in UTF-16, as it can be shown.
fn name(bytes: &[u8]) -> String {
    let units = bytes.chunks_exact(2);
    let units = units.map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    let units: Vec<_> = units.take_while(|unit| *unit != 0).collect();
    blockferry_block::printable(String::from_utf16_lossy(&units).as_ref())
}
