//! A set of places on a device, as ranges.

use std::collections::BTreeMap;

use crate::ByteRange;

/// A set of offsets, kept as sorted ranges that neither overlap nor touch.
///
/// ```
/// use blockferry_block::{ByteRange, RangeSet};
///
/// let mut set = RangeSet::new();
/// set.insert(ByteRange::between(0, 10));
/// set.insert(ByteRange::between(10, 20));
/// set.remove(ByteRange::between(5, 6));
/// let ranges: Vec<_> = set.iter().collect();
/// assert_eq!(ranges, [ByteRange::between(0, 5), ByteRange::between(6, 20)]);
/// assert_eq!(set.len(), 19);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// Ends by starts.
    ranges: BTreeMap<u64, u64>,
    /// How many offsets there are in it.
    len: u64,
}

impl RangeSet {
    /// The empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many offsets (bytes) are in it.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many ranges it takes to say what is in it.
    #[must_use]
    pub fn count(&self) -> usize {
        self.ranges.len()
    }

    /// What is in it, from the front to the back.
    pub fn iter(&self) -> impl Iterator<Item = ByteRange> + '_ {
        let ranges = self.ranges.iter();
        ranges.map(|(start, end)| ByteRange::between(*start, *end))
    }

    /// Adds all of `range`.
    pub fn insert(&mut self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start(), range.end());
        // Whatever overlaps or touches it becomes one with it: the last of those comes first.
        while let Some((&at, &until)) = self.ranges.range(..=end).next_back() {
            if until < start {
                break;
            }
            self.ranges.remove(&at);
            self.len -= until - at;
            (start, end) = (start.min(at), end.max(until));
        }
        self.ranges.insert(start, end);
        self.len += end - start;
    }

    /// Takes all of `range` out.
    pub fn remove(&mut self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        while let Some((&at, &until)) = self.ranges.range(..range.end()).next_back() {
            if until <= range.start() {
                break;
            }
            self.ranges.remove(&at);
            self.len -= until - at;
            for (start, end) in [(at, range.start()), (range.end(), until)] {
                if start < end {
                    self.ranges.insert(start, end);
                    self.len += end - start;
                }
            }
        }
    }

    /// The range of it that `offset` lies in, as far as it reaches to both sides.
    #[must_use]
    pub fn range_at(&self, offset: u64) -> Option<ByteRange> {
        let (start, end) = self.ranges.range(..=offset).next_back()?;
        (offset < *end).then(|| ByteRange::between(*start, *end))
    }

    /// The first part of `range` that is in it.
    #[must_use]
    pub fn first_in(&self, range: ByteRange) -> Option<ByteRange> {
        let found = self.range_at(range.start()).or_else(|| {
            let next = self.ranges.range(range.start()..).next()?;
            Some(ByteRange::between(*next.0, *next.1))
        });
        let part = found?.intersection(range);
        (!part.is_empty()).then_some(part)
    }

    /// The parts of `range` that are in it, from the front to the back.
    #[must_use]
    pub fn present_in(&self, range: ByteRange) -> Vec<ByteRange> {
        let before = self.ranges.range(..range.start()).next_back();
        let others = self.ranges.range(range.start()..range.end());
        let parts = before.into_iter().chain(others);
        let parts = parts.map(|(start, end)| ByteRange::between(*start, *end).intersection(range));
        parts.filter(|part| !part.is_empty()).collect()
    }

    /// The parts of `range` that are not in it, from the front to the back.
    #[must_use]
    pub fn missing_in(&self, range: ByteRange) -> Vec<ByteRange> {
        let mut missing = Vec::new();
        let before = self.ranges.range(..=range.start()).next_back();
        let mut start = before.map_or(range.start(), |(_, end)| range.start().max(*end));
        for (&at, &until) in self.ranges.range(range.start()..range.end()) {
            if start < at {
                missing.push(ByteRange::between(start, at));
            }
            start = start.max(until);
        }
        if start < range.end() {
            missing.push(ByteRange::between(start, range.end()));
        }
        missing
    }
}

impl Extend<ByteRange> for RangeSet {
    fn extend<I: IntoIterator<Item = ByteRange>>(&mut self, ranges: I) {
        for range in ranges {
            self.insert(range);
        }
    }
}

impl FromIterator<ByteRange> for RangeSet {
    fn from_iter<I: IntoIterator<Item = ByteRange>>(ranges: I) -> Self {
        let mut set = Self::new();
        set.extend(ranges);
        set
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn offsets(set: &RangeSet) -> Vec<u64> {
        set.iter()
            .flat_map(|range| range.start()..range.end())
            .collect()
    }

    proptest! {
        #[test]
        fn it_is_a_set_of_offsets(changes in prop::collection::vec((any::<bool>(), 0..60_u64, 0..20_u64), 0..40)) {
            let (mut set, mut model) = (RangeSet::new(), [false; 80]);
            for (insert, start, length) in changes {
                let range = ByteRange::between(start, start + length);
                match insert {
                    true => set.insert(range),
                    false => set.remove(range),
                }
                model[start as usize..(start + length) as usize].fill(insert);
            }
            let expected: Vec<_> = (0..80).filter(|at| model[*at as usize]).collect();
            prop_assert_eq!(offsets(&set), expected.clone());
            prop_assert_eq!(set.len(), expected.len() as u64);
            let ranges: Vec<_> = set.iter().collect();
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end() < pair[1].start()));
            for at in 0..80 {
                let here = set.iter().find(|range| range.start() <= at && at < range.end());
                prop_assert_eq!(set.range_at(at), here);
            }
            for (start, end) in [(0, 80), (10, 11), (20, 60), (79, 80), (5, 5)] {
                let missing = set.missing_in(ByteRange::between(start, end));
                let missing: Vec<_> = missing.iter().flat_map(|range| range.start()..range.end()).collect();
                let expected: Vec<_> = (start..end).filter(|at| !model[*at as usize]).collect();
                prop_assert_eq!(missing, expected);
                let present = set.present_in(ByteRange::between(start, end));
                prop_assert_eq!(set.first_in(ByteRange::between(start, end)), present.first().copied());
                let present: Vec<_> = present.iter().flat_map(|range| range.start()..range.end()).collect();
                let expected: Vec<_> = (start..end).filter(|at| model[*at as usize]).collect();
                prop_assert_eq!(present, expected);
            }
        }
    }
}
