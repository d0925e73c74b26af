//! Where in the file clusters go: each one behind the last, without a lock.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use blockferry_block::{ByteRange, Error, ErrorKind, RangeSet, Result};

use crate::qcow2::{entry::OFFSET, geometry::Geometry, header::LARGEST_REFCOUNT_TABLE};

/// Gives out the clusters of the file. What was given back is not given out again, for a write to it may still be
/// under way: it is free in the refcounts. What was [taken back](Self::take_back) is.
pub(super) struct Places {
    cluster_bits: u32,
    /// The first cluster that nobody has.
    next: AtomicU64,
    /// How many clusters there can be.
    most: u64,
    /// What was given back, in bytes.
    given_back: Mutex<RangeSet>,
}

impl Places {
    /// All of the file but the first cluster, which is the header's.
    pub(super) fn new(geometry: Geometry) -> Self {
        let table = LARGEST_REFCOUNT_TABLE.max(geometry.cluster_size());
        let counted = (table / 8).saturating_mul(geometry.refcounts_per_block());
        Self {
            cluster_bits: geometry.cluster_bits,
            next: AtomicU64::new(1),
            most: counted.min(OFFSET >> geometry.cluster_bits),
            given_back: Mutex::default(),
        }
    }

    /// The offset of `count` clusters that lie side by side.
    ///
    /// # Errors
    /// `NoSpace` where an image can be no longer.
    pub(super) fn take(&self, count: u64) -> Result<u64> {
        let taken = self
            .next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
                next.checked_add(count).filter(|next| *next <= self.most)
            });
        taken
            .map(|first| first << self.cluster_bits)
            .map_err(|_| self.exhausted())
    }

    /// As [`take`](Self::take), if they begin at `offset`, where the last ones ended.
    pub(super) fn take_at(&self, offset: u64, count: u64) -> bool {
        let first = offset >> self.cluster_bits;
        let next = first.saturating_add(count);
        let (success, failure) = (Ordering::Relaxed, Ordering::Relaxed);
        let take = || self.next.compare_exchange(first, next, success, failure);
        next <= self.most && take().is_ok()
    }

    /// Nobody refers to `range`, whole clusters, any more.
    pub(super) fn give_back(&self, range: ByteRange) {
        self.given_back_mut().insert(range);
    }

    /// What was taken from `start` to `end` and given back is given out again: nothing is on its way there. Nothing
    /// happens where others have taken more since.
    pub(super) fn take_back(&self, start: u64, end: u64) {
        let mut given_back = self.given_back_mut();
        let (first, next) = (start >> self.cluster_bits, end >> self.cluster_bits);
        let (success, failure) = (Ordering::Relaxed, Ordering::Relaxed);
        let taken = self.next.compare_exchange(next, first, success, failure);
        if taken.is_ok() {
            given_back.remove(ByteRange::between(start, end));
        }
    }

    /// What was taken from `start` to `end` was not used. Nothing happens where others have taken more since.
    pub(super) fn give_back_last(&self, start: u64, end: u64) {
        let (first, next) = (start >> self.cluster_bits, end >> self.cluster_bits);
        let (success, failure) = (Ordering::Relaxed, Ordering::Relaxed);
        let _ = self.next.compare_exchange(next, first, success, failure);
    }

    /// The length of the file, as far as places were given out.
    pub(super) fn end(&self) -> u64 {
        self.next.load(Ordering::Relaxed) << self.cluster_bits
    }

    /// What was given back of `range`.
    pub(super) fn given_back_in(&self, range: ByteRange) -> Vec<ByteRange> {
        self.given_back_mut().present_in(range)
    }

    fn given_back_mut(&self) -> MutexGuard<'_, RangeSet> {
        self.given_back
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn exhausted(&self) -> Error {
        let most = u128::from(self.most) << self.cluster_bits;
        let message =
            format!("an image with these clusters and refcounts is {most} bytes long at most");
        Error::with_message(ErrorKind::NoSpace, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_back_is_told_apart() {
        let options = crate::qcow2::CreateOptions::default();
        let places = Places::new(options.geometry(0));
        assert_eq!(places.take(3).expect("room"), 1 << 16);
        assert_eq!(places.take(2).expect("room"), 4 << 16);
        assert!(places.take_at(6 << 16, 2) && !places.take_at(6 << 16, 1));
        assert_eq!(places.end(), 8 << 16);
        places.give_back(ByteRange::between(2 << 16, 3 << 16));
        places.give_back(ByteRange::between(5 << 16, 6 << 16));
        let all = ByteRange::between(0, 8 << 16);
        assert_eq!(
            places.given_back_in(all),
            [
                ByteRange::between(2 << 16, 3 << 16),
                ByteRange::between(5 << 16, 6 << 16)
            ]
        );
        assert_eq!(places.given_back_in(ByteRange::between(0, 2 << 16)), []);
    }

    #[test]
    fn only_the_last_places_are_given_out_again() {
        let options = crate::qcow2::CreateOptions::default();
        let places = Places::new(options.geometry(0));
        let start = places.take(2).expect("room");
        let end = start + (2 << 16);
        places.give_back(ByteRange::between(start, end));
        let others = places.take(1).expect("room");
        places.take_back(start, end);
        assert_eq!(places.end(), others + (1 << 16));
        assert_eq!(places.given_back_in(ByteRange::between(0, end)).len(), 1);
        let start = places.take(3).expect("room");
        let end = start + (3 << 16);
        places.give_back(ByteRange::between(start, end));
        places.take_back(start, end);
        assert_eq!(places.take(3).expect("room"), start);
        assert_eq!(places.given_back_in(ByteRange::between(start, end)), []);
    }

    #[test]
    fn an_image_ends_where_refcounts_end() {
        let options = crate::qcow2::CreateOptions {
            cluster_size: 512,
            refcount_bits: 64,
            ..Default::default()
        };
        let places = Places::new(options.geometry(0));
        assert_eq!(places.most << 9, 32 << 30);
        assert!(places.take(places.most).is_err());
        assert!(places.take(places.most - 1).is_ok() && places.take(1).is_err());
    }
}
