//! How a relay ends early, with the counts that are never lost.

use std::{io, time::Duration};

use crate::{Moved, Totals};

/// Why bytes do not move any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// The reader failed.
    #[error("reading failed: {0}")]
    Read(#[source] io::Error),
    /// The writer failed.
    #[error("writing failed: {0}")]
    Write(#[source] io::Error),
    /// The peer that had ended its own direction is gone, and cannot be answered any more.
    #[error("the peer that is to be answered is gone")]
    Gone,
    /// Nothing moved in either direction for [`Options::idle_timeout`](crate::Options::idle_timeout).
    #[error("nothing moved for {} s", .0.as_secs_f64())]
    Idle(Duration),
    /// One direction had ended, and nothing moved in the other one for
    /// [`Options::half_close_timeout`](crate::Options::half_close_timeout).
    #[error("one side had ended, and nothing came from the other for {} s", .0.as_secs_f64())]
    HalfClosed(Duration),
}

impl Cause {
    /// Whether a peer broke its connection off, instead of ending it.
    #[must_use]
    pub fn is_reset(&self) -> bool {
        match self {
            Self::Read(error) | Self::Write(error) => matches!(
                error.kind(),
                io::ErrorKind::ConnectionReset
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::BrokenPipe
            ),
            Self::Gone | Self::Idle(_) | Self::HalfClosed(_) => false,
        }
    }
}

/// A one-way copy that ended before its reader did.
#[derive(Debug, thiserror::Error)]
#[error("{cause}, after {} bytes", moved.total())]
pub struct CopyError {
    /// What the writer has got.
    pub moved: Moved,
    /// How many bytes were taken from the reader and never reached the writer.
    pub unwritten: u64,
    /// Why it ended.
    #[source]
    pub cause: Cause,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the first stream to the second.
    Forward,
    /// From the second stream to the first.
    Backward,
}

/// A connection that did not end with the end of both streams.
#[derive(Debug, thiserror::Error)]
#[error("{cause}, after {} bytes one way and {} bytes the other", totals.forward.total(), totals.backward.total())]
pub struct RelayError {
    /// What was delivered, either way.
    pub totals: Totals,
    /// The direction that met with it; the first one where both did.
    pub direction: Direction,
    /// Why it ended.
    #[source]
    pub cause: Cause,
}
