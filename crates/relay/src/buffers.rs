//! Memory that is lent while bytes are in it.
//!
//! As with pipes: who waits for its peer has no buffer, so that ten thousand idle connections have none. Each
//! thread keeps a few of each size.

use std::{
    cell::RefCell,
    sync::atomic::{AtomicUsize, Ordering},
};

/// What a connection begins with: enough for what people and protocols say to each other.
pub(crate) const SMALL: usize = 16 << 10;

/// Where much moves. More does not fit into a core's own cache beside the sockets' work.
pub(crate) const MEDIUM: usize = 64 << 10;

/// Where the system calls cost more than that.
pub(crate) const LARGE: usize = 256 << 10;

/// Above so many bytes in all buffers of this process, further ones are small: who has ten thousand slow peers
/// has no memory for fast ones.
const MOST_LENT: usize = 32 << 20;

/// The bytes of all buffers that are lent.
static LENT: AtomicUsize = AtomicUsize::new(0);

/// How many of each size wait to be lent again.
const SPARE: usize = 2;

/// Bytes on their way through memory: `start..end` of the buffer.
#[derive(Debug)]
pub(crate) struct Loaded {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

thread_local! {
    static SPARES: RefCell<[Vec<Box<[u8]>>; 3]> = const { RefCell::new([const { Vec::new() }; 3]) };
}

impl Loaded {
    /// An empty one, of one of the sizes, or a small one where many peers of this process are slow already.
    pub(crate) fn lend(size: usize) -> Self {
        let size = match size > SMALL && LENT.load(Ordering::Relaxed) > MOST_LENT {
            true => SMALL,
            false => size,
        };
        LENT.fetch_add(size, Ordering::Relaxed);
        let spare = class(size).and_then(|class| {
            // A thread that ends has none any more.
            SPARES
                .try_with(|spares| spares.borrow_mut()[class].pop())
                .ok()
                .flatten()
        });
        Self {
            bytes: spare.unwrap_or_else(|| vec![0; size].into_boxed_slice()),
            start: 0,
            end: 0,
        }
    }

    /// An empty one with room for so many bytes and no more.
    pub(crate) fn of(size: usize) -> Self {
        LENT.fetch_add(size, Ordering::Relaxed);
        Self {
            bytes: vec![0; size].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    /// How many bytes it has room for.
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// How many bytes are in it.
    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    /// Those bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// `count` of them were delivered.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start = self.end.min(self.start + count);
    }

    /// All of its room, when it is empty.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// The first `count` bytes of its room were filled.
    pub(crate) fn filled(&mut self, count: usize) {
        (self.start, self.end) = (0, count.min(self.bytes.len()));
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        LENT.fetch_sub(self.bytes.len(), Ordering::Relaxed);
        if let Some(class) = class(self.bytes.len()) {
            let bytes = std::mem::take(&mut self.bytes);
            let _ = SPARES.try_with(|spares| {
                let spares = &mut spares.borrow_mut()[class];
                if spares.len() < SPARE {
                    spares.push(bytes);
                }
            });
        }
    }
}

fn class(size: usize) -> Option<usize> {
    [SMALL, MEDIUM, LARGE].iter().position(|it| *it == size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_delivered_is_not_there_any_more() {
        let mut loaded = Loaded::lend(SMALL);
        loaded.room()[..4].copy_from_slice(b"abcd");
        loaded.filled(4);
        loaded.consume(1);
        assert_eq!((loaded.bytes(), loaded.len()), (&b"bcd"[..], 3));
        loaded.consume(100);
        assert_eq!(loaded.len(), 0);
    }

    /// One test, for what is lent is counted for the whole process.
    #[test]
    fn a_buffer_is_lent_again_empty_and_small_when_many_are_out() {
        let place = {
            let mut first = Loaded::lend(MEDIUM);
            first.filled(10);
            first.bytes().as_ptr()
        };
        let second = Loaded::lend(MEDIUM);
        assert_eq!((second.len(), second.bytes.as_ptr()), (0, place));
        let many: Vec<_> = (0..200).map(|_| Loaded::lend(LARGE)).collect();
        let bytes: usize = many.iter().map(Loaded::capacity).sum();
        assert!(bytes < MOST_LENT + LARGE + 200 * SMALL, "{bytes}");
        drop(many);
        assert_eq!(Loaded::lend(LARGE).capacity(), LARGE);
    }
}
