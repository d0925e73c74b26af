//! Images that are one table of blocks: VHD, VDI and VHDX have this shape in common, and are read alike.
//!
//! A disk is cut into blocks of one size. A table says of each where in the file it lies, or that the image has
//! nothing of it; a block of a differencing image may also have a bitmap that says this of each of its sectors. What
//! the entries of a table look like is the format's own: it implements [`Table`], and gets a device.
//!
//! ```text
//!   runs     a range of the disk as a row of places where its bytes come from
//!   bitmaps  which sectors of a block are there
//!   read     a request from its runs
//!   status   holes, zeroes, and which image of a chain has them; where blocks lie
//!   disk     all of that, open
//!   making   an image that is made
//! ```

mod bitmaps;
mod disk;
pub(crate) mod making;
mod read;
mod runs;
mod status;
#[cfg(test)]
mod tests;

use blockferry_block::{BoxFuture, ByteRange, Result};

pub(crate) use self::{
    bitmaps::BitOrder,
    disk::{BlocksDisk, Parts},
};
use crate::host::HostFile;

/// The largest table that is read into memory, in bytes: that of 16 TiB in blocks of 1 MiB, or of the largest VHD in
/// blocks of 128 KiB.
pub(crate) const LARGEST_TABLE: u64 = 64 << 20;

/// Where the bytes of a block are. Offsets are in bytes of the image's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// The image has nothing of it: the parent shows, or zeroes do.
    Behind,
    /// It is zero, whatever the parent has.
    Zero,
    /// All of it lies in a row from there on.
    Host(u64),
    /// The sectors whose bits are set lie at their places in a row that begins at `host`; the others are
    /// [behind](Self::Behind). The bits lie at `bitmap`, as [`Shape::bitmap_length`] has it.
    Mixed {
        /// Where the block lies.
        host: u64,
        /// Where its bits lie.
        bitmap: u64,
    },
}

/// Blocks that are alike: [`Behind`](Block::Behind) or [`Zero`](Block::Zero) all of them, or each behind the one before
/// it in the file. There may be more of them than are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// The first one.
    pub(crate) block: Block,
    /// How many there are, at least 1; just 1 of those that are [`Mixed`](Block::Mixed).
    pub(crate) count: u64,
}

/// One block by itself.
impl From<Block> for Row {
    fn from(block: Block) -> Self {
        let count = 1;
        Self { block, count }
    }
}

/// Says of each block where it is.
pub(crate) trait Table: Send + Sync {
    /// Where block number `index` is, one that the disk has a part of, and those behind it that are alike; `None` where
    /// that has to be [read](Self::read) first. It is asked very often: it waits for nothing.
    ///
    /// # Errors
    /// `Corrupt` for an entry that breaks the rules: one that leads where the file has not that many bytes, say. Only
    /// those who want that block meet it.
    fn row(&self, index: u64) -> Result<Option<Row>>;

    /// As [`row`](Self::row), for a table that is not in memory as a whole, read from the image's `file`. Whoever has
    /// all of it is never asked.
    ///
    /// # Errors
    /// As those of [`row`](Self::row), and what reading failed with.
    fn read<'a>(&'a self, file: &'a HostFile, index: u64) -> BoxFuture<'a, Result<Row>> {
        let _ = file;
        Box::pin(async move { Ok(self.row(index)?.unwrap_or(Row::from(Block::Behind))) })
    }
}

/// The measures of a disk in blocks, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// The size of the disk: `i64::MAX` at most.
    pub(crate) size: u64,
    /// The size of a block: a power of two, at least one sector.
    pub(crate) block: u64,
    /// What one bit of a bitmap stands for: a power of two.
    pub(crate) sector: u64,
    /// Which bit of a byte stands for the first of its sectors.
    pub(crate) order: BitOrder,
}

impl Shape {
    /// How many blocks there are; of the last one there may be only a part.
    pub(crate) fn count(&self) -> u64 {
        self.size.div_ceil(self.block)
    }

    /// The part of the disk that block `index` is.
    pub(crate) fn range(&self, index: u64) -> ByteRange {
        let start = index.saturating_mul(self.block);
        ByteRange::between(start, start.saturating_add(self.block).min(self.size))
    }

    /// How many bytes the bits of one block take.
    pub(crate) fn bitmap_length(&self) -> u64 {
        (self.block / self.sector).div_ceil(8)
    }
}

/// The numbers of blocks, of `length` bytes in the file each, that share bytes with another one, in order. `places` has
/// the number and the offset of each block that is there.
pub(crate) fn overlapping(mut places: Vec<(u64, u64)>, length: u64) -> Vec<u64> {
    places.sort_unstable_by_key(|(_, host)| *host);
    let mut found = Vec::new();
    for pair in places.windows(2) {
        let [(one, first), (other, second)] = pair else {
            continue;
        };
        if second - first < length {
            found.extend([*one, *other]);
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}
