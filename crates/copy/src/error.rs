//! How a copy fails.

use std::{error, fmt};

use blockferry_block::{Error, ErrorKind};

use crate::Progress;

/// A copy that failed: whose fault it was, what happened, and how far it got. The destination holds
/// an incomplete image then.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CopyError {
    /// Where it failed.
    pub side: Side,
    /// The first thing that went wrong, with the endpoint and the range.
    pub error: Error,
    /// What had been done before.
    pub progress: Progress,
}

/// Where a copy failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Side {
    /// Reading.
    Source,
    /// Writing, zeroing, resizing, flushing.
    Destination,
    /// Before a byte was moved: the two do not fit.
    Plan,
    /// The caller cancelled.
    Cancelled,
}

impl CopyError {
    /// A failure on `side` before anything was done.
    pub(crate) fn new(side: Side, error: Error) -> Self {
        Self {
            side,
            error,
            progress: Progress::default(),
        }
    }

    /// The end of a copy that was cancelled.
    pub(crate) fn cancelled() -> Self {
        Self::new(Side::Cancelled, Error::new(ErrorKind::Cancelled))
    }

    /// The same failure after `progress`.
    pub(crate) fn after(mut self, progress: Progress) -> Self {
        self.progress = progress;
        self
    }
}

impl fmt::Display for CopyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

/// The cause is the device error's cause: its own text is this error's.
impl error::Error for CopyError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        error::Error::source(&self.error)
    }
}
