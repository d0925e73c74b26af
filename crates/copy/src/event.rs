//! What a copy tells while it runs.

use std::{fmt, sync::Arc, time::Duration};

use blockferry_block::{ByteRange, Error, Extent};

use crate::Side;

/// Whoever wants to know how a copy gets on. Called from within the copy: it must not block.
pub trait Observer: Send + Sync {
    /// Something happened.
    fn event(&self, event: Event);

    /// How much it wants to hear; asked once, when the copy begins. The default is [`Interest::Outline`].
    fn interest(&self) -> Interest {
        Interest::Outline
    }
}

/// How much an observer wants to hear. What nobody wants to hear is not measured: no clock is read for it, and
/// nothing is put together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Interest {
    /// How far the copy is, and what is not as it should be.
    #[default]
    Outline,
    /// Each request, each part of the image that is done, and what the source says of itself, too:
    /// [`Event::Request`], [`Event::Part`] and [`Event::Extents`].
    Requests,
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
    /// A side has so many handles (NBD connections) in use now.
    Handles {
        /// Which side: [`Side::Source`] or [`Side::Destination`].
        side: Side,
        /// How many of them can be used; 0 while all are lost.
        live: usize,
    },
    /// A request has ended well. For [`Interest::Requests`].
    Request(Request),
    /// A part of the image is done for the first time; parts do not overlap. For [`Interest::Requests`].
    Part(Part),
    /// What the source says of a part of itself, in order, in [`Context::Allocation`]. For
    /// [`Interest::Requests`].
    ///
    /// [`Context::Allocation`]: blockferry_block::Context::Allocation
    Extents(Arc<[Extent]>),
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

/// A request that has ended well, and how much was in flight then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Request {
    /// What it did.
    pub kind: RequestKind,
    /// How many bytes it was about.
    pub bytes: u64,
    /// How long it took, from when it was begun to when its answer was taken in. Of a piece of data that is zero
    /// in places, and stored in several requests, the time of all of them.
    pub latency: Duration,
    /// The bytes that were in memory on their way, those of this request among them.
    pub in_flight: u64,
    /// The bytes that might have been.
    pub window: u64,
    /// The longest request at that time, in bytes.
    pub request_size: u32,
}

/// What a request did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RequestKind {
    /// The source was read. While a copy is verified: the destination.
    Read,
    /// Data was written to the destination.
    Write,
    /// A part of the destination was made zero.
    Zero,
    /// The destination took bytes over from the source's file: shared blocks, or a copy inside of the kernel.
    TakeOver,
}

/// A part of the image that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Part {
    /// Where.
    pub range: ByteRange,
    /// How it came to be.
    pub how: How,
}

/// How a part of the image came to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum How {
    /// It was moved, and so many of its bytes turned out to be zero on the way.
    Moved {
        /// In bytes.
        zero: u64,
    },
    /// The source said that it is zero: it was not read.
    KnownZero,
    /// It was done before this copy began, as a checkpoint says.
    Before,
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
