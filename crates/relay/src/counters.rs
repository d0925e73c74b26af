//! What was moved, and by which way.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::Direction;

/// How many bytes one direction has delivered to its writer, by which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Those that never left the kernel.
    pub spliced: u64,
    /// Those that went through memory of this process.
    pub copied: u64,
}

impl Moved {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.spliced.saturating_add(self.copied)
    }
}

/// What was moved in both directions of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// From the first stream to the second.
    pub forward: Moved,
    /// From the second stream to the first.
    pub backward: Moved,
}

/// Counts that anybody may look at while bytes move: share them by an `Arc` in
/// [`Options::counters`](crate::Options::counters). They are still there when a copy was given up by
/// dropping its future. Several connections may count on the same ones.
#[derive(Debug, Default)]
pub struct Counters {
    forward: Flow,
    backward: Flow,
}

impl Counters {
    /// The counts of now. A one-way copy counts as forward.
    #[must_use]
    pub fn totals(&self) -> Totals {
        Totals {
            forward: self.forward.moved(),
            backward: self.backward.moved(),
        }
    }
}

/// The counts of one direction.
#[derive(Debug, Default)]
struct Flow {
    spliced: AtomicU64,
    copied: AtomicU64,
}

impl Flow {
    fn moved(&self) -> Moved {
        Moved {
            spliced: self.spliced.load(Ordering::Relaxed),
            copied: self.copied.load(Ordering::Relaxed),
        }
    }
}

/// Where one direction counts what it delivers: for its own result, and for those who look on.
#[derive(Debug)]
pub(crate) struct Tally {
    moved: Moved,
    shared: Option<Arc<Counters>>,
    direction: Direction,
}

impl Tally {
    pub(crate) fn new(shared: Option<Arc<Counters>>, direction: Direction) -> Self {
        Self {
            moved: Moved::default(),
            shared,
            direction,
        }
    }

    pub(crate) fn moved(&self) -> Moved {
        self.moved
    }

    pub(crate) fn spliced(&mut self, bytes: u64) {
        self.moved.spliced += bytes;
        if let Some(flow) = self.flow() {
            flow.spliced.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    pub(crate) fn copied(&mut self, bytes: u64) {
        self.moved.copied += bytes;
        if let Some(flow) = self.flow() {
            flow.copied.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn flow(&self) -> Option<&Flow> {
        self.shared.as_ref().map(|counters| match self.direction {
            Direction::Forward => &counters.forward,
            Direction::Backward => &counters.backward,
        })
    }
}
