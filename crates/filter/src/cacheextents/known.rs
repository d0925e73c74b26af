//! What is known of a device in one context: an ordered map of disjoint ranges.

use std::{collections::BTreeMap, mem};

use blockferry_block::{ByteRange, Extent, RangeSet, Status};

/// The most extents of one answer. A client that wants one extent gets as many as any other and drops them; one
/// that wants more asks again, which costs next to nothing.
const MOST_ANSWERED: usize = 256;

/// Extents that neither overlap nor, where they touch, are equal.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// By their starts.
    extents: BTreeMap<u64, Piece>,
    /// Where they are, whatever they say.
    covered: RangeSet,
}

/// An extent without its start.
#[derive(Clone, Copy, Debug)]
struct Piece {
    end: u64,
    status: Status,
}

impl Known {
    /// How many extents there are.
    pub(super) fn len(&self) -> usize {
        self.extents.len()
    }

    /// All that is known without a gap around `offset`.
    pub(super) fn range_at(&self, offset: u64) -> Option<ByteRange> {
        self.covered.range_at(offset)
    }

    /// What is known from the start of `range` on, up to the first gap or to a bounded number of extents.
    pub(super) fn answer(&self, range: ByteRange) -> Vec<Extent> {
        let first = self.extents.range(..=range.start()).next_back();
        let behind = self.extents.range(range.start().saturating_add(1)..);
        let mut next = range.start();
        let mut list = Vec::new();
        for (start, piece) in first.into_iter().chain(behind) {
            if *start > next || next >= range.end() || list.len() == MOST_ANSWERED {
                break;
            }
            let part = ByteRange::between(next, piece.end.min(range.end()));
            if part.is_empty() {
                break;
            }
            let status = piece.status;
            list.push(Extent {
                range: part,
                status,
            });
            next = part.end();
        }
        list
    }

    /// Takes in `extents`, each of which begins where the one before it ends, in the place of what was known.
    pub(super) fn insert(&mut self, extents: &[Extent]) {
        let (Some(first), Some(last)) = (extents.first(), extents.last()) else {
            return;
        };
        let whole = ByteRange::between(first.range.start(), last.range.end());
        self.remove(whole);
        self.covered.insert(whole);
        for extent in extents {
            self.push(extent.range, extent.status);
        }
        if let Some(behind) = self.extents.remove(&whole.end()) {
            let range = ByteRange::between(whole.end(), behind.end);
            self.push(range, behind.status);
        }
    }

    /// Adds an extent where nothing is known, to the one that ends there where that says the same.
    fn push(&mut self, range: ByteRange, status: Status) {
        if range.is_empty() {
            return;
        }
        let end = range.end();
        if let Some((_, before)) = self.extents.range_mut(..range.start()).next_back()
            && before.end == range.start()
            && before.status == status
        {
            before.end = end;
            return;
        }
        self.extents.insert(range.start(), Piece { end, status });
    }

    /// Forgets `range`.
    pub(super) fn remove(&mut self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        self.covered.remove(range);
        if self.covered.is_empty() {
            // Not one by one.
            drop(mem::take(&mut self.extents));
            return;
        }
        while let Some((&start, &piece)) = self.extents.range(..range.end()).next_back() {
            if piece.end <= range.start() {
                return;
            }
            self.extents.remove(&start);
            let Piece { end, status } = piece;
            if start < range.start() {
                let end = range.start();
                self.extents.insert(start, Piece { end, status });
            }
            if range.end() < end {
                self.extents.insert(range.end(), Piece { end, status });
            }
        }
    }

    /// How far the farthest extent lies from `offset`, in bytes.
    pub(super) fn farthest(&self, offset: u64) -> Option<u64> {
        let (first, last) = self.ends(offset)?;
        Some(first.max(last))
    }

    /// Forgets the farthest extent from `offset`.
    pub(super) fn evict(&mut self, offset: u64) {
        let Some((first, last)) = self.ends(offset) else {
            return;
        };
        let evicted = if first > last {
            self.extents.pop_first()
        } else {
            self.extents.pop_last()
        };
        if let Some((start, piece)) = evicted {
            self.covered.remove(ByteRange::between(start, piece.end));
        }
    }

    /// How far the first and the last extent lie from `offset`.
    fn ends(&self, offset: u64) -> Option<(u64, u64)> {
        let (_, first) = self.extents.first_key_value()?;
        let (last, _) = self.extents.last_key_value()?;
        Some((
            offset.saturating_sub(first.end),
            last.saturating_sub(offset),
        ))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 100;

    /// All that `known` says, in answers of its own length.
    fn told(known: &Known) -> Vec<Option<Status>> {
        let mut told = Vec::new();
        while (told.len() as u64) < SIZE {
            let at = told.len() as u64;
            let list = known.answer(ByteRange::between(at, SIZE));
            let mut next = at;
            for extent in &list {
                assert_eq!(extent.range.start(), next);
                assert!(!extent.range.is_empty());
                told.extend(extent.range.pieces(1).map(|_| Some(extent.status)));
                next = extent.range.end();
            }
            if list.is_empty() {
                told.push(None);
            }
        }
        told
    }

    proptest! {
        #[test]
        fn it_is_a_map_from_offsets_to_statuses(
            changes in prop::collection::vec((0..4_u64, 0..90_u64, prop::collection::vec((1..5_u64, 0..3_u64), 0..4)), 0..40),
        ) {
            let (mut known, mut model) = (Known::default(), vec![None; SIZE as usize]);
            for (kind, start, pieces) in changes {
                let mut list = Vec::new();
                let mut at = start;
                for (length, status) in pieces {
                    let end = (at + length).min(SIZE);
                    let (range, status) = (ByteRange::between(at, end), Status(status));
                    if !range.is_empty() {
                        list.push(Extent { range, status });
                    }
                    at = end;
                }
                if kind == 0 {
                    let range = ByteRange::between(start, at);
                    known.remove(range);
                    model[start as usize..at as usize].fill(None);
                } else {
                    known.insert(&list);
                    for extent in list {
                        let range = extent.range.start() as usize..extent.range.end() as usize;
                        model[range].fill(Some(extent.status));
                    }
                }
                prop_assert_eq!(&told(&known), &model);
                // As few as possible: neighbours differ.
                let runs = (0..model.len()).filter(|at| model[*at].is_some() && (*at == 0 || model[at - 1] != model[*at]));
                prop_assert_eq!(known.len(), runs.count());
                for at in 0..SIZE {
                    prop_assert_eq!(known.range_at(at).is_some(), model[at as usize].is_some());
                }
            }
        }
    }

    fn extent(start: u64, end: u64, status: u64) -> Extent {
        let range = ByteRange::between(start, end);
        Extent {
            range,
            status: Status(status),
        }
    }

    #[test]
    fn the_farthest_is_forgotten_first() {
        let mut known = Known::default();
        for start in [0, 20, 40, 60, 80] {
            known.insert(&[extent(start, start + 10, start / 20 % 2)]);
        }
        let left = |known: &Known| -> Vec<u64> { known.extents.keys().copied().collect() };
        known.evict(55);
        assert_eq!(left(&known), [20, 40, 60, 80]);
        known.evict(45);
        assert_eq!(left(&known), [20, 40, 60]);
        known.evict(60);
        assert_eq!(left(&known), [40, 60]);
        assert_eq!(known.range_at(25), None);
        assert_eq!(known.farthest(60), Some(10));
    }

    #[test]
    fn an_answer_is_bounded() {
        let mut known = Known::default();
        let list: Vec<_> = (0..2000).map(|at| extent(at, at + 1, at % 2)).collect();
        known.insert(&list);
        let answer = known.answer(ByteRange::between(100, 2000));
        assert_eq!(answer, list[100..100 + MOST_ANSWERED]);
    }
}
