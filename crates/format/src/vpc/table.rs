//! The table of blocks (specification, "Block Allocation Table and Data Blocks"): where each begins, in sectors. A
//! block is its bitmap, in whole sectors, and its data.

use blockferry_block::{BlockDevice, ByteRange, Error, ErrorKind, Result, read_exact_at};

use super::{
    Kind,
    footer::{Found, LENGTH as FOOTER, SECTOR},
    header::Header,
};
use crate::{
    be::be32,
    blocks::{Block, LARGEST_TABLE, Row, Shape, Table, overlapping},
    corrupt::corrupt,
};

/// The entry of a block that is not there.
pub(super) const UNUSED: u32 = 0xffff_ffff;

/// The table, in memory.
pub(super) struct BlockTable {
    entries: Vec<u32>,
    shape: Shape,
    /// Whether bitmaps say what comes from the parent. In a dynamic image they say what was never written, which is
    /// zero anyway; like qemu, nobody looks.
    is_differencing: bool,
    /// The end of what can be data.
    end: u64,
    /// What has its place in the file: the copy of the footer, the header, the table.
    taken: [ByteRange; 3],
    /// Blocks that share bytes with others.
    shared: Vec<u64>,
}

/// How many bytes the bitmap of a block of `block` bytes takes in the file.
pub(super) fn bitmap_length(block: u64) -> u64 {
    (block / SECTOR).div_ceil(8).next_multiple_of(SECTOR)
}

impl BlockTable {
    /// Reads the table of the image in `below`.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported` for a table that is too large to be kept, what reading failed with.
    pub(super) async fn read(
        below: &dyn BlockDevice,
        found: &Found,
        header: &Header,
        shape: Shape,
    ) -> Result<Self> {
        let length = shape.count().saturating_mul(4);
        if length > LARGEST_TABLE {
            let message = format!("a table of {length} bytes is too large");
            return Err(Error::with_message(ErrorKind::Unsupported, message));
        }
        let place = ByteRange::new(header.table, length).ok();
        let Some(place) = place.filter(|place| place.end() <= below.info().size) else {
            return Err(corrupt(
                "the file ends before the end of its table of blocks",
            ));
        };
        let bytes = read_exact_at(below, place).await?;
        let entries: Vec<u32> = bytes.chunks_exact(4).map(|entry| be32(entry, 0)).collect();
        let used = entries
            .iter()
            .zip(0_u64..)
            .filter(|(entry, _)| **entry != UNUSED);
        let places = used.map(|(entry, index)| (index, u64::from(*entry) * SECTOR));
        let stride = bitmap_length(shape.block) + shape.block;
        let shared = overlapping(places.collect(), stride);
        Ok(Self {
            entries,
            shape,
            is_differencing: found.footer.kind == Kind::Differencing,
            end: found.end,
            taken: [ByteRange::between(0, FOOTER), header.place, place],
            shared,
        })
    }
}

impl Table for BlockTable {
    fn row(&self, index: u64) -> Result<Option<Row>> {
        self.block(index).map(|block| Some(block.into()))
    }
}

impl BlockTable {
    /// Where block `index` is.
    fn block(&self, index: u64) -> Result<Block> {
        let bitmap = match self.entries.get(index as usize) {
            None | Some(&UNUSED) => return Ok(Block::Behind),
            Some(&entry) => u64::from(entry) * SECTOR,
        };
        // 2 TiB, and a block of 2 GiB.
        let host = bitmap + bitmap_length(self.shape.block);
        let whole = ByteRange::between(bitmap, host + self.shape.range(index).len());
        let lies = |what: &str| corrupt(format!("block {index} lies at {bitmap:#x}, {what}"));
        if whole.end() > self.end {
            return Err(lies("past the end of the file"));
        }
        if self
            .taken
            .iter()
            .any(|own| !own.intersection(whole).is_empty())
        {
            return Err(lies("in the header or the table of blocks"));
        }
        if self.shared.binary_search(&index).is_ok() {
            return Err(lies("where there is another one, too"));
        }
        Ok(match self.is_differencing {
            true => Block::Mixed { host, bitmap },
            false => Block::Host(host),
        })
    }
}
