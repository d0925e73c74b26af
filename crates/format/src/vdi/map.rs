//! Which block of the file each block of the disk is.

use blockferry_block::{BlockDevice, ByteRange, Error, ErrorKind, Result, read_exact_at};

use super::header::{Header, LENGTH};
use crate::{
    blocks::{Block, LARGEST_TABLE, Row, Shape, Table, overlapping},
    corrupt::corrupt,
    le::le32,
};

/// The entry of a block that was never written: VirtualBox leaves it to chance what is read there, qemu reads zeroes.
pub(super) const FREE: u32 = 0xffff_ffff;
/// The entry of a block that was discarded, or written with zeroes.
pub(super) const ZERO: u32 = 0xffff_fffe;

/// The block map, in memory.
pub(super) struct Map {
    entries: Vec<u32>,
    header: Header,
    shape: Shape,
    /// The end of the file.
    end: u64,
    /// Blocks of the disk that are no block of the file alone.
    shared: Vec<u64>,
}

impl Map {
    /// Reads the map of the image in `below`.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported` for a map that is too large to be kept, what reading failed with.
    pub(super) async fn read(
        below: &dyn BlockDevice,
        header: Header,
        shape: Shape,
    ) -> Result<Self> {
        let length = shape.count().saturating_mul(4);
        if length > LARGEST_TABLE {
            let message = format!("a block map of {length} bytes is too large");
            return Err(Error::with_message(ErrorKind::Unsupported, message));
        }
        let end = below.info().size;
        let place = ByteRange::between(header.map, header.map + length);
        if place.end() > end {
            return Err(corrupt("the file ends before the end of its block map"));
        }
        let bytes = read_exact_at(below, place).await?;
        let entries: Vec<u32> = bytes.chunks_exact(4).map(|entry| le32(entry, 0)).collect();
        let used = entries
            .iter()
            .zip(0_u64..)
            .filter(|(entry, _)| **entry < ZERO);
        let places = used.map(|(entry, index)| (index, u64::from(*entry)));
        let shared = overlapping(places.collect(), 1);
        Ok(Self {
            entries,
            header,
            shape,
            end,
            shared,
        })
    }
}

impl Table for Map {
    fn row(&self, index: u64) -> Result<Option<Row>> {
        self.block(index).map(|block| Some(block.into()))
    }
}

impl Map {
    /// Where block `index` is.
    fn block(&self, index: u64) -> Result<Block> {
        let header = &self.header;
        let entry = match self.entries.get(index as usize) {
            None | Some(&FREE) => return Ok(Block::Behind),
            Some(&ZERO) => return Ok(Block::Zero),
            Some(&entry) => u64::from(entry),
        };
        if self.shared.binary_search(&index).is_ok() {
            return Err(corrupt(format!(
                "block {entry} of the file is several blocks of the disk, {index} among them"
            )));
        }
        // Fewer than 2^32 blocks of 2^30 + 2^32 bytes.
        let host = header.data + entry * (header.block + header.extra) + header.extra;
        let needed = ByteRange::between(host, host.saturating_add(self.shape.range(index).len()));
        let map = ByteRange::between(header.map, header.map + self.entries.len() as u64 * 4);
        let head = ByteRange::between(0, LENGTH.min(header.map));
        if host + needed.len() != needed.end() || needed.end() > self.end {
            return Err(corrupt(format!(
                "block {index} lies at {host:#x}, past the end of the file"
            )));
        }
        if [map, head]
            .iter()
            .any(|own| !own.intersection(needed).is_empty())
        {
            return Err(corrupt(format!(
                "block {index} lies at {host:#x}, in the header or the block map"
            )));
        }
        Ok(Block::Host(host))
    }
}
