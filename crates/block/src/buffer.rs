//! Buffers for payload: aligned, always initialised, used again and again.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use blockferry_sys::AlignedBytes;

/// An owned run of bytes, aligned to [`ALIGNMENT`](Self::ALIGNMENT), always initialised. Dropping it hands the
/// memory back to the pool that it came from. A buffer from a pool holds whatever its last user left.
pub struct Buffer {
    bytes: AlignedBytes,
    length: usize,
    pool: Weak<Shelf>,
}

impl Buffer {
    /// The alignment of every buffer in bytes: enough for direct I/O on any disk.
    pub const ALIGNMENT: usize = blockferry_sys::PAGE_ALIGNMENT;

    /// A buffer of `length` zero bytes that belongs to no pool.
    #[must_use]
    pub fn zeroed(length: usize) -> Self {
        Self {
            bytes: AlignedBytes::zeroed(length),
            length,
            pool: Weak::new(),
        }
    }

    /// How many bytes the memory has room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// Makes the buffer `length` bytes long, within its capacity. Bytes that appear are old contents.
    ///
    /// # Panics
    /// When `length` exceeds the capacity.
    pub fn set_len(&mut self, length: usize) {
        assert!(
            length <= self.capacity(),
            "{length} bytes do not fit in {}",
            self.capacity()
        );
        self.length = length;
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.length]
    }
}

impl From<&[u8]> for Buffer {
    fn from(bytes: &[u8]) -> Self {
        let mut buffer = Self::zeroed(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} of {} bytes)", self.length, self.capacity())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(shelf) = self.pool.upgrade() {
            shelf.put(std::mem::take(&mut self.bytes));
        }
    }
}

/// A shelf of buffers of one capacity. Cloning shares the shelf.
///
/// Taking from an empty shelf allocates; the bound on memory is the bound on requests in flight, which
/// is the engine's. What comes back beyond `keep` buffers is freed.
#[derive(Clone)]
pub struct BufferPool(Arc<Shelf>);

struct Shelf {
    capacity: usize,
    free: Mutex<Free>,
}

struct Free {
    buffers: Vec<AlignedBytes>,
    keep: usize,
}

impl BufferPool {
    /// A pool of buffers of `capacity` bytes each that keeps at most `keep` unused ones.
    #[must_use]
    pub fn new(capacity: usize, keep: usize) -> Self {
        Self(Arc::new(Shelf {
            capacity,
            free: Mutex::new(Free {
                buffers: Vec::new(),
                keep,
            }),
        }))
    }

    /// Keeps at most `keep` unused buffers from now on; what is beyond that is freed.
    pub fn set_keep(&self, keep: usize) {
        let mut free = self.0.lock();
        free.keep = keep;
        free.buffers.truncate(keep);
    }

    /// The capacity of the pool's buffers in bytes.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.0.capacity
    }

    /// A buffer of `length` bytes with old contents. A longer one than the pool's capacity is
    /// allocated for itself and freed after use.
    #[must_use]
    pub fn take(&self, length: usize) -> Buffer {
        if length > self.0.capacity {
            return Buffer::zeroed(length);
        }
        let bytes = self
            .0
            .take()
            .unwrap_or_else(|| AlignedBytes::zeroed(self.0.capacity));
        Buffer {
            bytes,
            length,
            pool: Arc::downgrade(&self.0),
        }
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufferPool({} bytes each)", self.0.capacity)
    }
}

impl Shelf {
    fn lock(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<AlignedBytes> {
        self.lock().buffers.pop()
    }

    fn put(&self, bytes: AlignedBytes) {
        let mut free = self.lock();
        if free.buffers.len() < free.keep {
            free.buffers.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_used_again() {
        let pool = BufferPool::new(8192, 4);
        let mut first = pool.take(100);
        first[0] = 7;
        let address = first.as_ptr();
        drop(first);
        let second = pool.take(8192);
        assert_eq!(
            (second.as_ptr(), second[0], second.len()),
            (address, 7, 8192)
        );
    }

    #[test]
    fn the_shelf_keeps_no_more_than_it_was_told() {
        let pool = BufferPool::new(4096, 1);
        drop((pool.take(1), pool.take(1)));
        assert_eq!(pool.0.lock().buffers.len(), 1);
    }

    #[test]
    fn a_shelf_that_is_to_keep_less_frees_what_is_too_much() {
        let pool = BufferPool::new(4096, 3);
        drop((pool.take(1), pool.take(1), pool.take(1)));
        pool.set_keep(1);
        assert_eq!(pool.0.lock().buffers.len(), 1);
        drop((pool.take(1), pool.take(1)));
        assert_eq!(pool.0.lock().buffers.len(), 1);
    }

    #[test]
    fn buffers_are_aligned_for_direct_io() {
        for length in [0, 1, 4095, 4097] {
            assert_eq!(
                Buffer::zeroed(length).as_ptr().addr() % Buffer::ALIGNMENT,
                0
            );
        }
    }

    #[test]
    fn a_buffer_outlives_its_pool() {
        let pool = BufferPool::new(16, 1);
        let buffer = pool.take(16);
        drop(pool);
        assert_eq!(buffer.len(), 16);
    }
}
