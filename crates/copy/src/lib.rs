//! The copy engine: one image from one place to another, sparse, durable, many requests at a time.
//!
//! A source and a destination are each a [`BlockDevice`] or a byte stream; [`copy`] moves what is in
//! the one to the other. The engine prints nothing, and knows nothing of NBD or of
//! files: progress and warnings are [`Event`]s for an [`Observer`], the end is a [`Report`] or a
//! [`CopyError`].
//!
//! ```text
//!  plan      sizes, block limits, abilities  ->  request size, alignment, how zeroes are made
//!  extents   what the source knows of itself, asked ahead of the data
//!  pieces    the image in order, cut into requests: data or zeroes
//!  engine    the one loop: so many pieces and bytes in flight, loads, then stores
//!  transfer  one piece: read, look for zeroes, write or zero
//!  recovery  a connection that was lost is opened again; what may be lost with it is written again
//!  digest    what is known of the image in the end, computed on threads beside the loop
//!  verify    the destination is read back: a copy of it to nowhere, which must have the same sums
//! ```
//!
//! An observer may ask for more than that: of each request how long it took and what was in flight, of each part of
//! the image how it came to be done ([`Interest::Requests`]). Nothing of it is measured unless it is asked for.
//!
//! [`compare()`] reads two images side by side instead, and [`copy`] to a
//! [`NullDevice`](blockferry_block::NullDevice) with [`CopyOptions::digest`] computes the digest of one.
//!
//! Where the destination is a stream the loads run ahead and the stores happen in order; everywhere
//! else pieces finish as they come. Both are the same loop.
//!
//! ```
//! # use std::sync::Arc;
//! # use blockferry_block::BlockDevice;
//! use blockferry_copy::{Control, CopyError, CopyOptions, Destination, Event, Report, Source, copy};
//!
//! async fn clone_image(
//!     from: Arc<dyn BlockDevice>,
//!     to: Arc<dyn BlockDevice>,
//! ) -> Result<Report, CopyError> {
//!     let observer = |event: Event| {
//!         if let Event::Warning(warning) = event {
//!             // Tell someone.
//!             let _ = warning.to_string();
//!         }
//!     };
//!     let mut options = CopyOptions::default();
//!     options.connections = 8;
//!     options.verify = true;
//!     let (from, to) = (Source::Device(from), Destination::Device(to));
//!     copy(from, to, &options, &Control::new(), &observer).await
//! }
//! # use blockferry_block::MemoryDevice;
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
//! # let (a, b) = (Arc::new(MemoryDevice::new(1 << 20)), Arc::new(MemoryDevice::new(1 << 20)));
//! # let report = clone_image(a, b).await.expect("copied");
//! # assert!(report.verified && report.data + report.zero == 1 << 20);
//! # });
//! ```
//!
//! A [`Control`], cloned, stops a copy or slows it down from elsewhere. A [`Checkpoint`] lets another one go on where it
//! ended. Sizes, offsets and counts are bytes.

#![forbid(unsafe_code)]
#![warn(missing_debug_implementations)]

mod buffers;
mod checkpoint;
mod compare;
mod control;
mod copy;
mod digest;
mod engine;
mod error;
mod event;
mod extents;
mod input;
mod lanes;
mod options;
mod output;
mod pacer;
mod pieces;
mod plan;
mod report;
mod transfer;
mod unflushed;
mod verify;
mod zeroes;

use std::{fmt, sync::Arc};

use blockferry_block::{BlockDevice, ByteSink, ByteSource};

pub use checkpoint::{Checkpoint, Done, SaveDone};
pub use compare::{CompareOptions, Comparison, compare};
pub use control::Control;
pub use copy::copy;
pub use digest::{Algorithm, Digest, DigestError, DigestOptions, ExpectedDigest, OptionsError};
pub use error::{CopyError, Side};
pub use event::{Event, How, Interest, Observer, Part, Progress, Request, RequestKind, Warning};
pub use options::{CopyOptions, Order};
pub use report::Report;

/// Where an image is read from.
pub enum Source {
    /// A device: read in any order, asked for its extents.
    Device(Arc<dyn BlockDevice>),
    /// A stream: read from front to back until it ends.
    Stream(Box<dyn ByteSource>),
}

/// Where an image is written to.
pub enum Destination {
    /// A device: written in any order, zeroed where it can be. It must have
    /// [`Capabilities::WRITE`](blockferry_block::Capabilities::WRITE). One with `RESIZE` is given the
    /// source's size; one without may be larger than the source, and the rest of it is left alone.
    Device(Arc<dyn BlockDevice>),
    /// A stream: written from front to back, zeroes included.
    Stream(Box<dyn ByteSink>),
}

impl Source {
    /// The endpoint as the user wrote it.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        match self {
            Self::Device(device) => &device.info().name,
            Self::Stream(stream) => stream.name(),
        }
    }
}

impl Destination {
    /// The endpoint as the user wrote it.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        match self {
            Self::Device(device) => &device.info().name,
            Self::Stream(stream) => stream.name(),
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({})", self.name())
    }
}

impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Destination({})", self.name())
    }
}
