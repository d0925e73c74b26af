//! Reads tables whose entries are of any length, a piece at a time: the snapshot table, the directory of bitmaps.

use blockferry_block::{BlockDevice, ByteRange, Result, read_exact_at};

use super::geometry::corrupt;

/// How much is read at a time, in bytes.
const PIECE: u64 = 64 << 10;

/// The bytes of a table, in order. No more is held in memory than [`PIECE`] and the longest entry.
pub(crate) struct EntryReader<'a> {
    below: &'a dyn BlockDevice,
    /// What it is, for messages: `"the snapshot table"`.
    what: &'static str,
    /// What has not been read.
    rest: ByteRange,
    bytes: Vec<u8>,
    /// How much of `bytes` was taken.
    taken: usize,
}

impl<'a> EntryReader<'a> {
    /// Begins with the table in `range` of `below`, as far as `below` goes.
    pub(crate) fn new(below: &'a dyn BlockDevice, what: &'static str, range: ByteRange) -> Self {
        Self {
            below,
            what,
            rest: range.intersection(ByteRange::between(0, below.info().size)),
            bytes: Vec::new(),
            taken: 0,
        }
    }

    /// The next `length` bytes.
    ///
    /// # Errors
    /// `Corrupt` where the table or the file ends before; what reading failed with.
    pub(crate) async fn take(&mut self, length: usize) -> Result<&[u8]> {
        if self.bytes.len() - self.taken < length {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        while self.bytes.len() < self.taken + length {
            if self.rest.is_empty() {
                return Err(corrupt(format!(
                    "{} ends within one of its entries",
                    self.what
                )));
            }
            let (piece, rest) = self.rest.split_at(PIECE);
            self.bytes
                .extend_from_slice(&read_exact_at(self.below, piece).await?);
            self.rest = rest;
        }
        let bytes = &self.bytes[self.taken..][..length];
        self.taken += length;
        Ok(bytes)
    }

    /// Whether nothing is left of it.
    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty() && self.taken == self.bytes.len()
    }
}

/// How many bytes fill an entry of `length` bytes up to the next multiple of 8.
pub(crate) fn padding(length: usize) -> usize {
    length.next_multiple_of(8) - length
}

/// The text of a name in an image, which can be any bytes.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
