//! The buffers that all connections of a server share.

use blockferry_block::{Buffer, BufferPool};

/// Sizes in bytes and how many unused buffers of each are kept: 13 MiB at most.
const CLASSES: [(usize, usize); 3] = [(16 << 10, 64), (256 << 10, 32), (2 << 20, 2)];

/// Pools of a few sizes, so that small requests don't hold large buffers. An idle connection holds none.
#[derive(Clone, Debug)]
pub(crate) struct Buffers([BufferPool; CLASSES.len()]);

impl Buffers {
    pub(crate) fn new() -> Self {
        Self(CLASSES.map(|(size, keep)| BufferPool::new(size, keep)))
    }

    /// A buffer of `length` bytes with old contents, which must never leave the server.
    pub(crate) fn take(&self, length: usize) -> Buffer {
        self.0
            .iter()
            .find(|pool| length <= pool.capacity())
            .map_or_else(|| Buffer::zeroed(length), |pool| pool.take(length))
    }
}
