//! What a caller can choose.

use crate::{Checkpoint, DigestOptions};

/// How an image is copied. Every combination is valid: what does not fit the two endpoints is
/// adapted to them.
///
/// Left alone, `requests`, `request_size` and `queue_size` adapt to the endpoints: a copy begins with
/// 2 MiB in flight, which stay in the processor's cache, and takes more and larger requests where each
/// of them takes long.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CopyOptions {
    /// How many handles (NBD connections) a side that can have several gets; 0 counts as 1. Fewer where
    /// the image is small or the server refuses. Default 4.
    pub connections: usize,
    /// How many requests are in flight on each connection; 0 counts as 1. `None`, the default: as
    /// many as are worth it.
    pub requests: Option<usize>,
    /// The longest read and write in bytes. It is lowered to what both sides and `queue_size` allow,
    /// and raised to their block size. `None`, the default: 256 KiB, and up to 4 MiB where requests take
    /// long, unless `requests` is given.
    pub request_size: Option<u32>,
    /// How many bytes may be in memory at a time, on their way from source to destination; one
    /// request is always allowed. `None`, the default: 2 MiB, and up to 64 MiB where requests take long.
    pub queue_size: Option<u64>,
    /// In which order the destination is written. A stream is always written in order.
    pub order: Order,
    /// Runs of at least this many zero bytes in what was read become holes; `None` looks for none.
    /// It is raised to the block size and lowered to the request size. Default 4096.
    pub sparse: Option<u32>,
    /// Leave no holes: zeroes are allocated, and nothing is looked for in what was read. Default false.
    pub allocated: bool,
    /// The caller knows that the destination reads as zeroes: zeroes are not written. If it was not
    /// so, the copy is wrong. Default false.
    pub destination_is_zero: bool,
    /// Flush the destination before the copy counts as done. Default true.
    pub flush: bool,
    /// Ask the source for its extents, so that holes need not be read. Default true.
    pub extents: bool,
    /// How many attempts in a row to open a lost connection again may fail before the copy does; 0: it is
    /// not tried. Pauses between them grow from 0.1 to 10 seconds. What was in flight is done again then,
    /// and so is what a destination acknowledged but did not flush. Default 8.
    pub retries: u32,
    /// Compute this digest of the image while it is copied. Every byte passes through this process then, and
    /// none is taken over by the kernel; what a checkpoint says is done is read again. Default `None`.
    pub digest: Option<DigestOptions>,
    /// Read the destination back in the end, and fail with
    /// [`ErrorKind::Mismatch`](blockferry_block::ErrorKind::Mismatch) where it does not hold what was
    /// written. A stream cannot be read back and is refused. Default false.
    pub verify: bool,
    /// What was done of this copy before, and where to note what is done now. Default `None`.
    pub checkpoint: Option<Checkpoint>,
}

/// In which order a destination that can seek is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// As requests are answered, several segments of the image side by side.
    #[default]
    Any,
    /// From front to back, one request at a time; reads run ahead. For disks and formats that like
    /// it better.
    Ascending,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self {
            connections: 4,
            requests: None,
            request_size: None,
            queue_size: None,
            order: Order::Any,
            sparse: Some(4096),
            allocated: false,
            destination_is_zero: false,
            flush: true,
            extents: true,
            retries: 8,
            digest: None,
            verify: false,
            checkpoint: None,
        }
    }
}
