//! Which bytes of a read have come. A reply may bring them in any order, but each exactly once:
//! a byte that no chunk covered must never be shown to the reader of the buffer, and finding that
//! out is cheaper than clearing the buffer first.

use crate::limits;

/// The covered part of a read, in bytes from the start of its buffer.
///
/// Chunks that come in order only move `prefix`; only what comes ahead of a gap is listed.
#[derive(Debug, Default)]
pub(crate) struct Coverage {
    /// Everything below this is covered.
    prefix: u64,
    /// Covered pieces beyond `prefix`: `(start, end)`, sorted, neither empty nor touching.
    ahead: Vec<(u64, u64)>,
}

/// Why a piece was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CoverError {
    /// Some of it was covered before.
    Overlap,
    /// Too many separate pieces.
    TooManyFragments,
}

impl Coverage {
    /// Forgets everything and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.prefix = 0;
        self.ahead.clear();
    }

    /// Covers `[start, start + length)`; the caller has checked that it lies in the request.
    #[inline]
    pub(crate) fn add(&mut self, start: u64, length: u64) -> Result<(), CoverError> {
        let end = start.saturating_add(length);
        if start == self.prefix && self.ahead.is_empty() {
            self.prefix = end;
            return Ok(());
        }
        self.add_out_of_order(start, end)
    }

    #[cold]
    fn add_out_of_order(&mut self, start: u64, end: u64) -> Result<(), CoverError> {
        if start < self.prefix {
            return Err(CoverError::Overlap);
        }
        let index = self.ahead.partition_point(|piece| piece.1 <= start);
        // `index` is the first piece that ends behind `start`.
        let next = self.ahead.get(index).copied();
        if next.is_some_and(|piece| piece.0 < end) {
            return Err(CoverError::Overlap);
        }
        let touches_next = next.is_some_and(|piece| piece.0 == end);
        let touches_previous = index > 0 && self.ahead[index - 1].1 == start;
        match (touches_previous, touches_next) {
            (true, true) => {
                self.ahead[index - 1].1 = self.ahead[index].1;
                self.ahead.remove(index);
            }
            (true, false) => self.ahead[index - 1].1 = end,
            (false, true) => self.ahead[index].0 = start,
            (false, false) => {
                if self.ahead.len() >= limits::FRAGMENTS {
                    return Err(CoverError::TooManyFragments);
                }
                self.ahead.insert(index, (start, end));
            }
        }
        if let Some(&(first, last)) = self.ahead.first()
            && first == self.prefix
        {
            self.prefix = last;
            self.ahead.remove(0);
        }
        Ok(())
    }

    /// Whether all of a read of `length` bytes has come.
    #[inline]
    pub(crate) fn is_complete(&self, length: u64) -> bool {
        self.prefix == length
    }

    /// Bytes that have come.
    pub(crate) fn covered(&self) -> u64 {
        let ahead: u64 = self.ahead.iter().map(|(start, end)| end - start).sum();
        self.prefix + ahead
    }

    /// The first bytes of a read of `length` bytes that are missing: start and length.
    #[inline]
    pub(crate) fn first_gap(&self, length: u64) -> Option<(u64, u64)> {
        let end = self.ahead.first().map_or(length, |piece| piece.0);
        (self.prefix < end).then(|| (self.prefix, end - self.prefix))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pieces_in_order_need_no_list() {
        let mut coverage = Coverage::default();
        for start in (0..100).step_by(10) {
            coverage.add(start, 10).unwrap();
            assert_eq!(coverage.ahead.capacity(), 0);
        }
        assert!(coverage.is_complete(100));
        assert_eq!(coverage.first_gap(100), None);
    }

    #[test]
    fn overlaps_are_found_on_every_side() {
        let mut coverage = Coverage::default();
        coverage.add(0, 10).unwrap();
        coverage.add(20, 10).unwrap();
        for (start, length) in [(9, 1), (0, 10), (15, 6), (29, 5), (15, 30), (22, 2)] {
            assert_eq!(coverage.add(start, length), Err(CoverError::Overlap));
        }
        assert_eq!(coverage.first_gap(40), Some((10, 10)));
        coverage.add(10, 10).unwrap();
        assert_eq!(coverage.first_gap(40), Some((30, 10)));
    }

    #[test]
    fn fragments_are_bounded() {
        let mut coverage = Coverage::default();
        let mut start = 1;
        for _ in 0..limits::FRAGMENTS {
            coverage.add(start, 1).unwrap();
            start += 2;
        }
        assert_eq!(coverage.add(start, 1), Err(CoverError::TooManyFragments));
    }

    proptest! {
        #[test]
        fn agrees_with_a_bitmap(pieces in prop::collection::vec((0u64..60, 1u64..12), 0..40)) {
            let mut coverage = Coverage::default();
            let mut bitmap = [false; 80];
            for (start, length) in pieces {
                let range = start as usize..(start + length) as usize;
                let overlap = bitmap[range.clone()].iter().any(|&bit| bit);
                prop_assert_eq!(coverage.add(start, length).is_err(), overlap);
                if !overlap {
                    bitmap[range].fill(true);
                }
                prop_assert_eq!(coverage.covered(), bitmap.iter().filter(|&&bit| bit).count() as u64);
                let gap = bitmap.iter().position(|&bit| !bit).map(|at| {
                    let end = bitmap[at..].iter().position(|&bit| bit).map_or(80, |n| at + n);
                    (at as u64, (end - at) as u64)
                });
                prop_assert_eq!(coverage.first_gap(80), gap);
            }
        }
    }
}
