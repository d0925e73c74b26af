//! What a copy did.

use crate::{Digest, Progress};

/// A copy that succeeded. `data + zero == size`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The size of the image in bytes.
    pub size: u64,
    /// How many bytes were moved as data.
    pub data: u64,
    /// How many bytes were zeroes, known by extents or found: made holes, written, or left alone
    /// where the destination was zero already.
    pub zero: u64,
    /// How many bytes of that were done before, as a checkpoint said.
    pub resumed: u64,
    /// How many connections that were lost were opened again.
    pub reconnections: u64,
    /// Whether the destination was flushed: asked for, and the destination can.
    pub flushed: bool,
    /// The digest of the image, where one was wanted.
    pub digest: Option<Digest>,
    /// Whether the destination was read back, and held what was written.
    pub verified: bool,
    /// How many questions for extents the source was asked.
    pub extent_requests: u64,
    /// How many handles (NBD connections) the source was read through.
    pub source_connections: usize,
    /// How many handles (NBD connections) the destination was written through.
    pub destination_connections: usize,
    /// The request size in bytes that the copy ended with, adapted or pinned.
    pub request_size: u32,
    /// The bytes that could be in flight in the end, adapted or pinned.
    pub queue_size: u64,
}

impl Report {
    /// The progress of a copy that has moved everything.
    pub(crate) fn progress(&self) -> Progress {
        Progress {
            done: self.data + self.zero,
            data: self.data,
            zero: self.zero,
        }
    }
}
