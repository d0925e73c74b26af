//! What is done of a copy, so that another one can go on from there.

use std::{fmt, sync::Arc};

use blockferry_block::{BoxFuture, RangeSet, Result};

/// The parts of an image that are durable in the destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Where they are.
    pub ranges: RangeSet,
    /// How many bytes of them were moved as data. `data + zero == ranges.len()`.
    pub data: u64,
    /// How many bytes of them were zeroes.
    pub zero: u64,
}

/// Where it is noted how far a copy is.
pub trait SaveDone: Send + Sync {
    /// Keeps `done` in the place of what was kept before; whichever of the two is found after a crash is
    /// whole. The next call comes after this one has ended.
    fn save(&self, done: &Done) -> BoxFuture<'static, Result<()>>;
}

/// What was done of a copy before, and where to note what is done now. Whoever hands it over has made sure that
/// it is the same source, unchanged, and the same destination.
#[derive(Clone)]
pub struct Checkpoint {
    /// What was done before: it is neither read nor written again.
    pub done: Done,
    /// Where to note the rest, every second or so, after a flush.
    pub save: Arc<dyn SaveDone>,
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checkpoint({} bytes done)", self.done.ranges.len())
    }
}
