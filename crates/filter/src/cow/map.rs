//! What is known of each block: whether it is the source's, stored in the overlay, or zero.
//!
//! ```text
//!   disk    |  region 0 (64 MiB)  |  region 1  |  region 2  |  ...
//!                  no leaf             leaf         leaf          a leaf has 2 bits for each of its blocks,
//!                                       │            │            and the place of its region in the store
//!   store   |  region 1  |  region 2  |
//! ```
//!
//! A region without a leaf is the source's, or wholly zero. So a disk of any size costs nothing before it is
//! written to, and 2 bits for each block of what was written to then. Regions keep their places in the store as
//! long as it lives, and bytes their places in a region: what was told of where bytes are never becomes the place
//! of others.

use std::{
    collections::BTreeMap,
    sync::{
        PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use blockferry_block::{ByteRange, Error, ErrorKind, RangeSet, Result};

/// The bytes of a disk whose states are kept together.
pub(super) const REGION: u64 = 64 << 20;

/// Blocks in a word of states.
const IN_WORD: u64 = 32;

/// The most leaves that are looked at for one answer: 64 GiB of a disk that was written to everywhere.
const MOST_LEAVES: usize = 1024;

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    /// In the source: it was never changed.
    Below = 0,
    /// In the store.
    Stored = 1,
    /// Nowhere: it is zero.
    Zero = 2,
}

/// Bytes side by side that are in the same state and, where they are stored, side by side in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) range: ByteRange,
    pub(super) state: State,
    /// Where it begins in the store, if it is there.
    pub(super) place: u64,
}

/// The states of all blocks of a disk.
pub(super) struct Map {
    /// The length of a block in bytes, a power of two and a part of a region.
    block: u64,
    /// Whether any block is not the source's: what is false for a disk that nobody wrote to spares the lock.
    is_touched: AtomicBool,
    regions: RwLock<Regions>,
    stored: AtomicU64,
}

#[derive(Default)]
struct Regions {
    leaves: BTreeMap<u64, Leaf>,
    /// Bytes of whole regions that are zero, as far as they have no leaves.
    zeroed: RangeSet,
    /// Where the next region is placed in the store.
    next_place: u64,
}

struct Leaf {
    place: u64,
    states: Box<[u64]>,
}

impl Map {
    pub(super) fn new(block: u64) -> Self {
        Self {
            block,
            is_touched: AtomicBool::new(false),
            regions: RwLock::default(),
            stored: AtomicU64::new(0),
        }
    }

    /// Whether any block was ever changed.
    pub(super) fn is_touched(&self) -> bool {
        self.is_touched.load(Ordering::Acquire)
    }

    /// How many bytes of blocks are stored.
    pub(super) fn stored_bytes(&self) -> u64 {
        self.stored.load(Ordering::Relaxed) * self.block
    }

    /// Whether all of `range` is the source's.
    pub(super) fn is_below(&self, range: ByteRange) -> bool {
        if !self.is_touched() {
            return true;
        }
        let first = self.first(range);
        first.state == State::Below && first.range == range
    }

    /// The run that `range` begins with, or a part of it.
    pub(super) fn first(&self, range: ByteRange) -> Run {
        let (mut last, mut first) = (None, None);
        if self.is_touched() {
            self.walk(range, |run| {
                first = join(&mut last, run);
                first.is_none()
            });
        }
        first.or(last).unwrap_or(Run {
            range,
            state: State::Below,
            place: 0,
        })
    }

    /// The runs of `range` from its start on: all of them, or `most`.
    pub(super) fn runs(&self, range: ByteRange, most: usize) -> Vec<Run> {
        let (mut runs, mut last) = (Vec::new(), None);
        self.walk(range, |run| {
            runs.extend(join(&mut last, run));
            runs.len() < most
        });
        if runs.len() < most {
            runs.extend(last);
        }
        runs
    }

    /// Shows the runs of `range`, neighbours not joined, until there are enough.
    fn walk(&self, range: ByteRange, mut goes_on: impl FnMut(Run) -> bool) {
        let regions = self.regions();
        let (mut rest, mut leaves) = (range, 0);
        while !rest.is_empty() && leaves < MOST_LEAVES {
            let index = rest.start() / REGION;
            let Some(leaf) = regions.leaves.get(&index) else {
                let next = regions.leaves.range(index..).next();
                let end = next.map_or(u64::MAX, |(next, _)| next.saturating_mul(REGION));
                let gap = rest.intersection(ByteRange::between(0, end));
                if !regions.walk_gap(gap, &mut goes_on) {
                    return;
                }
                (_, rest) = rest.split_at(gap.len());
                continue;
            };
            leaves += 1;
            let start = index * REGION;
            let end = rest.end().min(start.saturating_add(REGION));
            while rest.start() < end {
                let at = rest.start();
                let (state, until) = leaf.run((at - start) / self.block, REGION / self.block);
                let until = start.saturating_add(until * self.block).min(end);
                let run = Run {
                    range: ByteRange::between(at, until),
                    state,
                    place: leaf.place + (at - start),
                };
                if !goes_on(run) {
                    return;
                }
                (_, rest) = rest.split_at(until - at);
            }
        }
    }

    /// Where `piece`, which lies in one region, is or will be in the store.
    ///
    /// # Errors
    /// `NoSpace` when no store can have room for it.
    pub(super) fn place(&self, piece: ByteRange) -> Result<u64> {
        let index = piece.start() / REGION;
        if let Some(leaf) = self.regions().leaves.get(&index) {
            return Ok(leaf.place + piece.start() % REGION);
        }
        let mut regions = self.regions_mut();
        let leaf = regions.leaf(index, self.block)?;
        let place = leaf.place + piece.start() % REGION;
        self.is_touched.store(true, Ordering::Release);
        Ok(place)
    }

    /// Says that the blocks of `range` are in `state`; it begins and ends with blocks of the disk.
    ///
    /// # Errors
    /// As [`place`](Self::place). Nothing has changed then but for whole regions in the middle.
    pub(super) fn set(&self, range: ByteRange, state: State) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let mut regions = self.regions_mut();
        self.is_touched.store(true, Ordering::Release);
        let mut edges = [Some(range), None];
        if state == State::Zero && range.len() > REGION {
            let whole = range.aligned_within(REGION);
            regions.zeroed.insert(whole);
            let indices = whole.start() / REGION..whole.end() / REGION;
            let count = REGION / self.block;
            for (_, leaf) in regions.leaves.range_mut(indices) {
                self.note(leaf.fill(0, count, state), state, 0);
            }
            edges = [
                Some(ByteRange::between(range.start(), whole.start())),
                Some(ByteRange::between(whole.end(), range.end())),
            ];
        }
        let edges = edges.into_iter().flatten();
        for piece in edges.flat_map(|edge| edge.pieces(REGION)) {
            let leaf = regions.leaf(piece.start() / REGION, self.block)?;
            let first = piece.start() % REGION / self.block;
            let count = piece.len().div_ceil(self.block);
            self.note(leaf.fill(first, count, state), state, count);
        }
        Ok(())
    }

    /// Counts that blocks, of which so many were stored, are in `state` now.
    fn note(&self, were_stored: u64, state: State, count: u64) {
        let are_stored = if state == State::Stored { count } else { 0 };
        // Under the lock on the regions, so that the sum never is below zero.
        self.stored.fetch_add(are_stored, Ordering::Relaxed);
        self.stored.fetch_sub(were_stored, Ordering::Relaxed);
    }

    fn regions(&self) -> RwLockReadGuard<'_, Regions> {
        self.regions.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn regions_mut(&self) -> std::sync::RwLockWriteGuard<'_, Regions> {
        self.regions.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Regions {
    /// Shows the runs of `gap`, where no region has a leaf.
    fn walk_gap(&self, gap: ByteRange, goes_on: &mut impl FnMut(Run) -> bool) -> bool {
        let mut at = gap.start();
        let mut show = |start, end, state| {
            let range = ByteRange::between(start, end);
            range.is_empty() || {
                let place = 0;
                goes_on(Run {
                    range,
                    state,
                    place,
                })
            }
        };
        for below in self.zeroed.missing_in(gap) {
            if !show(at, below.start(), State::Zero)
                || !show(below.start(), below.end(), State::Below)
            {
                return false;
            }
            at = below.end();
        }
        show(at, gap.end(), State::Zero)
    }

    fn leaf(&mut self, index: u64, block: u64) -> Result<&mut Leaf> {
        use std::collections::btree_map::Entry;
        match self.leaves.entry(index) {
            Entry::Occupied(leaf) => Ok(leaf.into_mut()),
            Entry::Vacant(vacant) => {
                let place = self.next_place;
                let next = place.checked_add(REGION);
                let Some(next) = next.filter(|next| i64::try_from(*next).is_ok()) else {
                    let message = "the overlay has no room for another region";
                    return Err(Error::with_message(ErrorKind::NoSpace, message));
                };
                self.next_place = next;
                let start = index * REGION;
                let first = ByteRange::between(start, start.saturating_add(1));
                let is_zero = self.zeroed.missing_in(first).is_empty();
                let state = if is_zero { State::Zero } else { State::Below };
                let words = (REGION / block).div_ceil(IN_WORD);
                let states = vec![word_of(state); words as usize].into_boxed_slice();
                Ok(vacant.insert(Leaf { place, states }))
            }
        }
    }
}

impl Leaf {
    /// The state of block `first`, and the first block behind it, up to `count`, that is in another one.
    fn run(&self, first: u64, count: u64) -> (State, u64) {
        let state = self.state(first);
        let mut at = first + 1;
        while at < count {
            if at.is_multiple_of(IN_WORD)
                && self.states[(at / IN_WORD) as usize] == word_of(state)
                && at + IN_WORD <= count
            {
                at += IN_WORD;
            } else if self.state(at) == state {
                at += 1;
            } else {
                break;
            }
        }
        (state, at)
    }

    fn state(&self, block: u64) -> State {
        let word = self.states[(block / IN_WORD) as usize];
        match word >> (2 * (block % IN_WORD)) & 3 {
            0 => State::Below,
            1 => State::Stored,
            _ => State::Zero,
        }
    }

    /// Puts `count` blocks from `first` on into `state`, and says how many of them were stored before.
    fn fill(&mut self, first: u64, count: u64, state: State) -> u64 {
        let (mut at, end, mut were_stored) = (first, first + count, 0);
        while at < end {
            let next = (at - at % IN_WORD + IN_WORD).min(end);
            let mask = (u64::MAX >> (64 - 2 * (next - at))) << (2 * (at % IN_WORD));
            let word = &mut self.states[(at / IN_WORD) as usize];
            let stored = word_of(State::Stored);
            were_stored += u64::from((*word & mask & stored).count_ones());
            *word = *word & !mask | word_of(state) & mask;
            at = next;
        }
        were_stored
    }
}

/// A word whose blocks are all in `state`.
fn word_of(state: State) -> u64 {
    0x5555_5555_5555_5555 * state as u64
}

/// Makes `last` longer by `run` if that continues it; otherwise `run` takes its place, and it is given back.
fn join(last: &mut Option<Run>, run: Run) -> Option<Run> {
    if let Some(known) = last
        && known.state == run.state
        && (run.state != State::Stored || known.place + known.range.len() == run.place)
    {
        known.range = ByteRange::between(known.range.start(), run.range.end());
        return None;
    }
    last.replace(run)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCK: u64 = 4096;

    fn set(map: &Map, start: u64, end: u64, state: State) {
        map.set(ByteRange::between(start, end), state)
            .expect("room");
    }

    #[test]
    fn the_largest_disk_costs_nothing_until_it_is_written_to() {
        let map = Map::new(BLOCK);
        let whole = ByteRange::between(0, u64::MAX);
        assert!(map.is_below(whole));
        set(&map, 0, whole.end(), State::Zero);
        let runs = map.runs(whole, 10);
        assert_eq!(runs.len(), 1);
        assert_eq!((runs[0].range, runs[0].state), (whole, State::Zero));
        let far = whole.end() / BLOCK * BLOCK - BLOCK;
        set(&map, far, far + BLOCK, State::Stored);
        let states: Vec<_> = map.runs(whole, 10).iter().map(|run| run.state).collect();
        assert_eq!(states, [State::Zero, State::Stored, State::Zero]);
        assert_eq!(map.regions().leaves.len(), 1);
        assert_eq!(map.stored_bytes(), BLOCK);
    }

    proptest! {
        #[test]
        fn states_are_those_that_were_set(
            changes in prop::collection::vec((0..200_u64, 1..120_u64, 0..3_u8), 1..30),
            log in 20..=24_u32,
        ) {
            // Blocks of 1 to 16 MiB, so that a few of them fill several regions.
            let block = 1 << log;
            let map = Map::new(block);
            let mut model = [State::Below; 320];
            for (start, count, state) in changes {
                let state = [State::Below, State::Stored, State::Zero][usize::from(state)];
                set(&map, start * block, (start + count) * block, state);
                model[start as usize..(start + count) as usize].fill(state);
            }
            let stored = model.iter().filter(|state| **state == State::Stored).count() as u64;
            prop_assert_eq!(map.stored_bytes(), stored * block);
            let all = ByteRange::between(0, 320 * block);
            let mut at = 0;
            for run in map.runs(all, usize::MAX) {
                prop_assert_eq!(run.range.start(), at);
                at = run.range.end();
                for index in run.range.start() / block..at / block {
                    prop_assert_eq!(model[index as usize], run.state);
                }
                if run.state == State::Stored {
                    for piece in run.range.pieces(REGION) {
                        let place = run.place + piece.start() - run.range.start();
                        prop_assert_eq!(map.place(piece).expect("room"), place);
                    }
                }
            }
            prop_assert_eq!(at, all.end());
            for (start, end) in [(0, 1), (1, 2), (100, 300)] {
                let range = ByteRange::between(start * block + 1, end * block - 1);
                let model = &model[start as usize..end as usize];
                let is_below = model.iter().all(|state| *state == State::Below);
                prop_assert_eq!(map.is_below(range), is_below);
                prop_assert_eq!(map.first(range).state, model[0]);
            }
        }
    }
}
