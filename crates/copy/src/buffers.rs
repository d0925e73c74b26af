//! Buffers of several sizes, so that a short run does not hold a long buffer.

use blockferry_block::{Buffer, BufferPool};

/// The smallest buffers, in bytes.
const SMALLEST: usize = 4096;

/// How many unused buffers are kept of a size that is not the usual one.
const FEW: usize = 4;

/// Pools of buffers whose capacities double from [`SMALLEST`] up to the request size. A buffer has at
/// most twice the capacity that was asked for.
#[derive(Debug)]
pub(crate) struct Buffers(Vec<BufferPool>);

impl Buffers {
    /// Pools for buffers of up to `longest` bytes.
    pub(crate) fn new(longest: usize) -> Self {
        let capacities = std::iter::successors(Some(SMALLEST), |size| size.checked_mul(2))
            .take_while(|size| *size < longest);
        let pools = capacities.chain([longest]);
        Self(pools.map(|size| BufferPool::new(size, FEW)).collect())
    }

    /// From now on most buffers are `length` bytes long, and as many as `window` bytes are in use at a
    /// time: those are kept for use again, and few of all others.
    pub(crate) fn expect(&self, length: usize, window: u64) {
        let many = self.0.partition_point(|pool| pool.capacity() < length);
        for (index, pool) in self.0.iter().enumerate() {
            let in_window = usize::try_from(window / pool.capacity() as u64).unwrap_or(usize::MAX);
            pool.set_keep(match index == many {
                true => in_window.max(1),
                false => in_window.min(FEW),
            });
        }
    }

    /// A buffer of `length` bytes with old contents.
    pub(crate) fn take(&self, length: usize) -> Buffer {
        let fits = self.0.partition_point(|pool| pool.capacity() < length);
        match self.0.get(fits) {
            Some(pool) => pool.take(length),
            None => Buffer::zeroed(length),
        }
    }

    /// A buffer with a copy of `bytes`.
    pub(crate) fn copy_of(&self, bytes: &[u8]) -> Buffer {
        let mut buffer = self.take(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }

    /// A buffer of `length` zero bytes.
    pub(crate) fn zeroes(&self, length: usize) -> Buffer {
        let mut buffer = self.take(length);
        buffer.fill(0);
        buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_at_most_twice_as_large_as_asked_for() {
        let buffers = Buffers::new(300_000);
        for length in [4096, 4097, 8192, 100_000, 262_144, 299_999, 300_000] {
            let buffer = buffers.take(length);
            assert_eq!(buffer.len(), length);
            assert!(buffer.capacity() <= 2 * length, "{length}: {buffer:?}");
        }
        assert_eq!(buffers.take(1).capacity(), SMALLEST);
        assert_eq!(buffers.take(300_001).len(), 300_001);
    }

    #[test]
    fn zeroes_are_zero_in_a_used_buffer() {
        let buffers = Buffers::new(4096);
        drop(buffers.copy_of(&[7; 4096]));
        assert!(buffers.zeroes(4096).iter().all(|byte| *byte == 0));
    }
}
