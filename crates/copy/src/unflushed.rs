//! What was written through a connection and may be lost with it.

use blockferry_block::{ByteRange, RangeSet};

/// How many ranges are kept apart at most; beyond that, zeroes are remembered as data.
const MOST_RANGES: usize = 1 << 16;

/// Parts of the image that a destination acknowledged and has not flushed since.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unflushed {
    data: RangeSet,
    /// What was known to be zero without being read.
    zero: RangeSet,
    /// How many of these bytes were moved as data.
    moved: u64,
    /// How many of these bytes were zeroes, known or found.
    zeroed: u64,
}

/// A part of the image that has to be written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Again {
    pub(crate) range: ByteRange,
    pub(crate) zero: bool,
}

impl Unflushed {
    /// Adds a range that was written: so many bytes of data, so many of zeroes.
    pub(crate) fn add(&mut self, range: ByteRange, known_zero: bool, moved: u64, zeroed: u64) {
        match known_zero {
            true => self.zero.insert(range),
            false => self.data.insert(range),
        }
        self.moved += moved;
        self.zeroed += zeroed;
        self.bound();
    }

    /// Takes over all that is in `other`.
    pub(crate) fn absorb(&mut self, other: Self) {
        if self.is_empty() {
            *self = other;
            return;
        }
        self.data.extend(other.data.iter());
        self.zero.extend(other.zero.iter());
        self.moved += other.moved;
        self.zeroed += other.zeroed;
        self.bound();
    }

    /// Whether nothing is in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.data.is_empty() && self.zero.is_empty()
    }

    /// How many bytes are in it.
    pub(crate) fn len(&self) -> u64 {
        self.data.len() + self.zero.len()
    }

    /// How many bytes of data and of zeroes it had when they were written.
    pub(crate) fn moved(&self) -> (u64, u64) {
        (self.moved, self.zeroed)
    }

    /// All of it, from the back to the front.
    pub(crate) fn into_parts(self) -> Vec<Again> {
        let part = |zero| move |range| Again { range, zero };
        let data = self.data.iter().map(part(false));
        let mut parts: Vec<_> = data.chain(self.zero.iter().map(part(true))).collect();
        parts.sort_by_key(|part| std::cmp::Reverse(part.range.start()));
        parts
    }

    /// Its ranges, whatever is in them.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = ByteRange> + '_ {
        self.data.iter().chain(self.zero.iter())
    }

    fn bound(&mut self) {
        if self.zero.count() > MOST_RANGES {
            let zero = std::mem::take(&mut self.zero);
            self.data.extend(zero.iter());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_comes_back_in_as_few_parts_as_it_takes() {
        let mut unflushed = Unflushed::default();
        for start in [0, 20, 10] {
            let range = ByteRange::between(start, start + 10);
            unflushed.add(range, start == 20, 10, 0);
        }
        assert_eq!((unflushed.len(), unflushed.moved()), (30, (30, 0)));
        let parts: Vec<_> = unflushed
            .into_parts()
            .iter()
            .map(|part| (part.range.start(), part.range.end(), part.zero))
            .collect();
        assert_eq!(parts, [(20, 30, true), (0, 20, false)]);
    }

    #[test]
    fn many_zeroes_between_data_take_no_more_memory_than_is_allowed() {
        let mut unflushed = Unflushed::default();
        for block in 0..3 * MOST_RANGES as u64 {
            let range = ByteRange::between(block * 8, block * 8 + 8);
            unflushed.add(range, block % 2 == 0, 4, 4);
        }
        assert!(unflushed.zero.count() <= MOST_RANGES);
        assert_eq!(unflushed.len(), 24 * MOST_RANGES as u64);
    }
}
