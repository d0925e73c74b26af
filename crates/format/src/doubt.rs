//! What was begun and did not end well: nobody knows what is there.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use blockferry_block::{ByteRange, Error, ErrorKind, Operation, RangeSet, Result};

/// The ranges of the virtual disk whose last write failed, or was given up.
#[derive(Default)]
pub(crate) struct Doubt {
    ranges: Mutex<RangeSet>,
    is_any: AtomicBool,
}

/// A change that is under way. Dropped before it is [`done`](Self::done), it leaves its range in doubt.
pub(crate) struct Change<'a> {
    doubt: &'a Doubt,
    range: ByteRange,
    is_done: bool,
}

impl Doubt {
    /// Begins a change of `range`.
    pub(crate) fn begin(&self, range: ByteRange) -> Change<'_> {
        Change {
            doubt: self,
            range,
            is_done: false,
        }
    }

    /// Fails where anything is in doubt of a disk of `size` bytes.
    pub(crate) fn check(&self, size: u64) -> Result<()> {
        let ranges = self.ranges();
        let disk = ByteRange::between(0, size);
        let first = ranges.iter().map(|range| range.intersection(disk));
        let Some(first) = first.into_iter().find(|range| !range.is_empty()) else {
            return Ok(());
        };
        let message = "a write failed or was given up and was not made again";
        let error = Error::with_message(ErrorKind::Io, message).during(Operation::Write);
        Err(error.at(first.start(), first.len()))
    }

    fn ranges(&self) -> MutexGuard<'_, RangeSet> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Change<'_> {
    /// It succeeded: what is there is known again.
    pub(crate) fn done(mut self) {
        self.is_done = true;
        if self.doubt.is_any.load(Ordering::Acquire) {
            self.doubt.ranges().remove(self.range);
        }
    }

    /// It failed, and nothing has changed.
    pub(crate) fn nothing(mut self) {
        self.is_done = true;
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.doubt.ranges().insert(self.range);
            self.doubt.is_any.store(true, Ordering::Release);
        }
    }
}
