//! Which sectors of blocks are there: bitmaps, as many of them as there is room for.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use blockferry_block::{Buffer, Result};

use crate::host::HostFile;

/// Which bit of a byte stands for the first of its eight sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BitOrder {
    /// The most significant one, as in VHD.
    HighFirst,
    /// The least significant one, as in VHDX.
    LowFirst,
}

/// The bits of one block's sectors.
pub(super) struct Bitmap {
    bytes: Buffer,
    order: BitOrder,
}

impl Bitmap {
    /// Whether the sector is there.
    fn has(&self, sector: u64) -> bool {
        let byte = self.bytes.get((sector / 8) as usize).copied().unwrap_or(0);
        let bit = match self.order {
            BitOrder::HighFirst => 7 - sector % 8,
            BitOrder::LowFirst => sector % 8,
        };
        byte >> bit & 1 != 0
    }

    /// Whether `first` is there, and the first sector behind it, up to `end`, of which that is not so.
    pub(super) fn run(&self, first: u64, end: u64) -> (bool, u64) {
        let is_there = self.has(first);
        let same = if is_there { 0xff } else { 0 };
        let mut at = first + 1;
        while at < end {
            let byte = self.bytes.get((at / 8) as usize).copied().unwrap_or(0);
            match at.is_multiple_of(8) && byte == same {
                true => at += 8,
                false if self.has(at) == is_there => at += 1,
                false => break,
            }
        }
        (is_there, at.min(end))
    }
}

/// Bitmaps that were read, by their places in the file: the latest ones.
pub(super) struct Bitmaps {
    /// The length of each in bytes.
    length: usize,
    order: BitOrder,
    /// How many are kept.
    most: usize,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    bitmaps: HashMap<u64, Arc<Bitmap>>,
    /// Those that came first are in front.
    in_order: VecDeque<u64>,
}

impl Bitmaps {
    /// Keeps about `memory` bytes of bitmaps of `length` bytes each.
    pub(super) fn new(length: u64, order: BitOrder, memory: usize) -> Self {
        // A buffer takes a page at least.
        let each = length.max(4096) as usize;
        Self {
            length: length as usize,
            order,
            most: (memory / each).max(16),
            kept: Mutex::default(),
        }
    }

    /// The one at `offset`, if it is in memory.
    pub(super) fn peek(&self, offset: u64) -> Option<Arc<Bitmap>> {
        self.kept().bitmaps.get(&offset).cloned()
    }

    /// The one at `offset` of `file`.
    ///
    /// # Errors
    /// What reading it failed with.
    pub(super) async fn get(&self, file: &HostFile, offset: u64) -> Result<Arc<Bitmap>> {
        if let Some(known) = self.peek(offset) {
            return Ok(known);
        }
        let bytes = file.read(offset, Buffer::zeroed(self.length)).await?;
        let bitmap = Arc::new(Bitmap {
            bytes,
            order: self.order,
        });
        let mut kept = self.kept();
        if kept.bitmaps.insert(offset, Arc::clone(&bitmap)).is_none() {
            kept.in_order.push_back(offset);
        }
        while kept.in_order.len() > self.most {
            if let Some(oldest) = kept.in_order.pop_front() {
                kept.bitmaps.remove(&oldest);
            }
        }
        Ok(bitmap)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_sectors_are_found_in_either_order() {
        for order in [BitOrder::HighFirst, BitOrder::LowFirst] {
            for seed in 0..64_u64 {
                let word = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let word = if seed % 3 == 0 {
                    word & 0xff00_ffff_0000
                } else {
                    word
                };
                let bitmap = Bitmap {
                    bytes: Buffer::from(&word.to_be_bytes()[..]),
                    order,
                };
                let is = |sector: u64| {
                    let bit = match order {
                        BitOrder::HighFirst => 63 - sector,
                        BitOrder::LowFirst => 56 - sector / 8 * 8 + sector % 8,
                    };
                    word >> bit & 1 != 0
                };
                let mut at = 0;
                while at < 64 {
                    let (is_there, end) = bitmap.run(at, 64);
                    assert!((at..end).all(|sector| is(sector) == is_there), "{word:x}");
                    assert!(end == 64 || is(end) != is_there, "{word:x}");
                    at = end;
                }
                assert_eq!(bitmap.run(3, 5).1.clamp(4, 5), bitmap.run(3, 5).1);
            }
        }
    }
}
