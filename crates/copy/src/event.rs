//! What a copy tells while it runs.

use std::{fmt, sync::Arc, time::Duration};

use blockferry_block::Error;

/// Whoever wants to know how a copy gets on. Called from within the copy: it must not block.
pub trait Observer: Send + Sync {
    /// Something happened.
    fn event(&self, event: Event);
}

/// Nobody.
impl Observer for () {
    fn event(&self, _: Event) {}
}

impl<F: Fn(Event) + Send + Sync> Observer for F {
    fn event(&self, event: Event) {
        self(event);
    }
}

/// What happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The copy was found possible and begins.
    Planned {
        /// The image's size in bytes; `None` when a stream's end will tell.
        size: Option<u64>,
    },
    /// A piece is done. The numbers never fall, and `done` is the image's size in the end.
    Progress(Progress),
    /// Something is not as it should be, and the copy goes on.
    Warning(Warning),
    /// All is written; the destination makes it durable now.
    Flushing,
    /// The destination is read back and compared with what was written to it. `done` never falls and is
    /// `size` in the end.
    Verifying {
        /// How many bytes of the image were read back.
        done: u64,
        /// The image's size in bytes.
        size: u64,
    },
}

/// How far a copy is, in bytes. `data + zero == done`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The bytes that have their final contents in the destination.
    pub done: u64,
    /// Those of them that were moved as data.
    pub data: u64,
    /// Those of them that were zeroes.
    pub zero: u64,
}

impl Progress {
    /// Adds bytes that are done.
    pub(crate) fn add(&mut self, data: u64, zero: u64) {
        self.data += data;
        self.zero += zero;
        self.done += data + zero;
    }
}

/// What is not as it should be.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Warning {
    /// The source's extents could not be had for some of the image, or made no sense: that part was
    /// read as data. Told once in a copy.
    Extents {
        /// The source.
        endpoint: Arc<str>,
        /// What went wrong.
        error: Error,
    },
    /// One of several connections was lost. What it had in flight is done again by the others.
    ConnectionLost {
        /// How it was lost, with the endpoint.
        error: Error,
        /// How many connections to the endpoint are left.
        left: usize,
    },
    /// No connection to an endpoint is left; it is tried to open one.
    Reconnecting {
        /// How the last one was lost, or why it could not be opened again, with the endpoint.
        error: Error,
        /// When it is tried next.
        pause: Duration,
        /// Which attempt that will be, from 1 on.
        attempt: u32,
        /// How many attempts there are at most.
        retries: u32,
    },
    /// There is a connection again after all were lost.
    Reconnected {
        /// Whose.
        endpoint: Arc<str>,
        /// How many bytes the destination acknowledged and may have lost: they are written again.
        again: u64,
    },
    /// What is done could not be noted: after a failure the copy cannot go on from here. Told once in a
    /// copy.
    Checkpoint {
        /// Why.
        error: Error,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Extents { error, .. } => {
                write!(f, "{error}; reading as data what may be holes")
            }
            Self::ConnectionLost { error, left } => {
                let connections = if *left == 1 {
                    "connection"
                } else {
                    "connections"
                };
                write!(f, "{error}; going on with {left} {connections}")
            }
            Self::Reconnecting {
                error,
                pause,
                attempt,
                retries,
            } => {
                let seconds = pause.as_secs_f64();
                write!(
                    f,
                    "{error}; connecting again in {seconds:.1} s (attempt {attempt} of {retries})"
                )
            }
            Self::Reconnected { endpoint, again: 0 } => write!(f, "{endpoint}: connected again"),
            Self::Reconnected { endpoint, again } => write!(
                f,
                "{endpoint}: connected again; writing {again} bytes again that were not flushed"
            ),
            Self::Checkpoint { error } => {
                write!(f, "{error}; the copy goes on without a new checkpoint")
            }
        }
    }
}
