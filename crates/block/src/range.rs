//! Byte ranges of an image: an offset and a length whose sum cannot overflow.

use std::fmt;

/// The largest offset that an image can have: NBD and Linux both keep offsets in an `i64`.
const MAX_END: u64 = i64::MAX as u64;

/// A range of bytes `[start, end)` of an image. Its end never exceeds `i64::MAX`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteRange {
    start: u64,
    length: u64,
}

impl ByteRange {
    /// The range of `length` bytes from `start`.
    ///
    /// # Errors
    /// When the end would lie beyond `i64::MAX`.
    pub const fn new(start: u64, length: u64) -> Result<Self, RangeError> {
        match start.checked_add(length) {
            Some(end) if end <= MAX_END => Ok(Self { start, length }),
            _ => Err(RangeError { start, length }),
        }
    }

    /// The range `[start, end)`; empty when `end` is not above `start`, clamped to `i64::MAX`.
    #[must_use]
    pub const fn between(start: u64, end: u64) -> Self {
        let end = if end > MAX_END { MAX_END } else { end };
        if start >= end {
            return Self {
                start: if start > MAX_END { MAX_END } else { start },
                length: 0,
            };
        }
        Self {
            start,
            length: end - start,
        }
    }

    /// The first byte's offset.
    #[must_use]
    pub const fn start(self) -> u64 {
        self.start
    }

    /// The offset after the last byte.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.start + self.length
    }

    /// The number of bytes.
    #[must_use]
    pub const fn len(self) -> u64 {
        self.length
    }

    /// Whether the range has no bytes.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.length == 0
    }

    /// What both ranges have; empty (at the later start) where they are disjoint.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        let start = if self.start > other.start {
            self.start
        } else {
            other.start
        };
        let end = if self.end() < other.end() {
            self.end()
        } else {
            other.end()
        };
        Self::between(start, end)
    }

    /// Whether all of `other` lies inside this range.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }

    /// The first `length` bytes (or all, when there are fewer) and the rest.
    #[must_use]
    pub const fn split_at(self, length: u64) -> (Self, Self) {
        let length = if length > self.length {
            self.length
        } else {
            length
        };
        (
            Self {
                start: self.start,
                length,
            },
            Self {
                start: self.start + length,
                length: self.length - length,
            },
        )
    }

    /// The range cut at every multiple of `size` bytes (counted from offset 0, not from its start),
    /// in order. A `size` of 0 counts as 1.
    pub fn pieces(self, size: u64) -> impl Iterator<Item = ByteRange> {
        let size = size.max(1);
        let mut rest = self;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let (piece, tail) = rest.split_at(size - rest.start % size);
            rest = tail;
            Some(piece)
        })
    }

    /// The largest part of the range whose start and end are multiples of `alignment` (not 0).
    #[must_use]
    pub const fn aligned_within(self, alignment: u64) -> Self {
        let Some(start) = self.start.checked_next_multiple_of(alignment) else {
            return Self::between(self.end(), self.end());
        };
        Self::between(start, self.end() - self.end() % alignment)
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.start, self.length)
    }
}

/// A range whose end would lie beyond the largest offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{length} bytes from offset {start} end beyond the largest offset, 2^63 - 1")]
pub struct RangeError {
    start: u64,
    length: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, length: u64) -> ByteRange {
        ByteRange::new(start, length).expect("a valid range")
    }

    #[test]
    fn a_range_ends_at_i64_max_at_most() {
        assert!(ByteRange::new(MAX_END, 0).is_ok());
        assert!(ByteRange::new(MAX_END, 1).is_err());
        assert!(ByteRange::new(u64::MAX, u64::MAX).is_err());
        assert_eq!(ByteRange::between(5, u64::MAX).end(), MAX_END);
        assert_eq!(ByteRange::between(u64::MAX, u64::MAX).len(), 0);
    }

    #[test]
    fn pieces_are_cut_at_multiples_of_the_size() {
        let pieces: Vec<_> = range(3, 10).pieces(4).collect();
        assert_eq!(
            pieces,
            [range(3, 1), range(4, 4), range(8, 4), range(12, 1)]
        );
        assert_eq!(range(7, 0).pieces(4).count(), 0);
    }

    #[test]
    fn intersection_of_disjoint_ranges_is_empty() {
        assert!(range(0, 4).intersection(range(4, 4)).is_empty());
        assert_eq!(range(0, 6).intersection(range(4, 4)), range(4, 2));
    }

    #[test]
    fn the_aligned_part_never_leaves_the_range() {
        assert_eq!(range(1, 20).aligned_within(8), range(8, 8));
        assert!(range(1, 6).aligned_within(8).is_empty());
        assert!(range(MAX_END - 1, 1).aligned_within(1 << 62).is_empty());
    }
}
