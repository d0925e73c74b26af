//! Payload that rests in a kernel pipe: it goes from a socket to another, to a pipe or to nowhere without
//! ever being copied, for as long as nobody wants to look at it.
//!
//! Data is stored and then forwarded. All of a read is in the pipe before any of it goes on, so a source
//! that dies in the middle of a payload does no harm to the destination: the pipe is closed with what is in it.
//!
//! What is in a pipe may be the very pages of a file that a server on this machine sends from its page cache: a
//! change of the file shows in them until they are copied somewhere.

use std::{
    fmt,
    fs::File,
    io,
    os::fd::AsFd,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
};

use blockferry_sys::{FillStop, Pipe};

use crate::{Buffer, BufferPool, Result};

/// Bytes in a kernel pipe. Dropping it when it is empty hands the pipe back to its pool; a pipe with
/// something left in it is closed and never used again.
pub struct PipeBuffer {
    /// There until it is dropped.
    pipe: Option<Pipe>,
    pool: Weak<Rack>,
}

impl PipeBuffer {
    /// How many bytes fit, if they come in whole pages. A pipe takes a slot of 4 KiB for each piece of a page,
    /// so it may be full much earlier; payloads of a quarter of the capacity find room nearly always.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.pipe.as_ref().map_or(0, Pipe::capacity)
    }

    /// How many bytes are in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pipe.as_ref().map_or(0, Pipe::len)
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Moves up to `length` bytes that have arrived at `socket`, a non-blocking one, into the pipe, and says
    /// how many and why not more.
    ///
    /// # Errors
    /// As `splice(2)`; `InvalidInput` where the socket cannot be spliced. Nothing was moved then.
    pub fn fill_from(&mut self, socket: impl AsFd, length: usize) -> io::Result<(usize, FillStop)> {
        self.pipe().fill_from(socket, length)
    }

    /// Puts up to `length` zero bytes in, as many as there is room for, and says how many.
    ///
    /// # Errors
    /// As `write(2)`.
    pub fn fill_with_zeroes(&mut self, length: usize) -> Result<usize> {
        Ok(self.pipe().fill_with_zeroes(length)?)
    }

    /// Copies as many of `bytes` into the pipe as there is room for, and says how many.
    ///
    /// # Errors
    /// As `write(2)`.
    pub fn put(&mut self, bytes: &[u8]) -> Result<usize> {
        Ok(self.pipe().put(bytes)?)
    }

    /// Moves as many bytes to `target` as it takes without waiting, and says how many.
    ///
    /// # Errors
    /// As `splice(2)`; `WouldBlock` when there is no room.
    pub fn drain_to(&mut self, target: impl AsFd) -> io::Result<usize> {
        self.pipe().drain_to(target)
    }

    /// Moves everything to `target` and waits for room there as long as it takes.
    ///
    /// # Errors
    /// As `splice(2)`; a part may have been moved.
    pub fn drain_all_to(&mut self, target: impl AsFd) -> Result<()> {
        Ok(self.pipe().drain_all_to(target)?)
    }

    /// Takes the first bytes out into `bytes`, until it is full or the pipe is empty, and says how many.
    ///
    /// # Errors
    /// As `read(2)`.
    pub fn take(&mut self, bytes: &mut [u8]) -> Result<usize> {
        Ok(self.pipe().take(bytes)?)
    }

    /// Everything that is in it, in memory of its own.
    ///
    /// # Errors
    /// As `read(2)`.
    pub fn into_memory(mut self) -> Result<Buffer> {
        let mut buffer = Buffer::zeroed(self.len());
        self.take(&mut buffer)?;
        Ok(buffer)
    }

    /// Forgets everything that is in it, without looking at it.
    pub fn discard(mut self) {
        static NOWHERE: OnceLock<Option<File>> = OnceLock::new();
        let nowhere = NOWHERE.get_or_init(|| File::options().write(true).open("/dev/null").ok());
        if let Some(nowhere) = nowhere {
            // What stays in it is closed with the pipe.
            let _ = self.pipe().drain_to(nowhere);
        }
    }

    fn pipe(&mut self) -> &mut Pipe {
        self.pipe.as_mut().expect("a buffer has its pipe")
    }
}

impl fmt::Debug for PipeBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PipeBuffer({} of {} bytes)", self.len(), self.capacity())
    }
}

impl Drop for PipeBuffer {
    fn drop(&mut self) {
        if let (Some(pipe), Some(rack)) = (self.pipe.take(), self.pool.upgrade()) {
            rack.put(pipe);
        }
    }
}

/// What a read brought, wherever it is.
#[derive(Debug)]
pub enum Payload {
    /// It is in memory.
    Memory(Buffer),
    /// It is in a pipe.
    Piped(PipeBuffer),
}

impl Payload {
    /// How many bytes it has.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Memory(buffer) => buffer.len(),
            Self::Piped(pipe) => pipe.len(),
        }
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The payload in memory: where it is already, or copied to a buffer of `pool`.
    ///
    /// # Errors
    /// As `read(2)` of a pipe.
    pub fn into_memory(self, pool: &BufferPool) -> Result<Buffer> {
        match self {
            Self::Memory(buffer) => Ok(buffer),
            Self::Piped(mut pipe) => {
                let mut buffer = pool.take(pipe.len());
                pipe.take(&mut buffer)?;
                Ok(buffer)
            }
        }
    }
}

/// A rack of pipes of one capacity. Cloning shares the rack.
///
/// It bounds how many pipes there are, with two descriptors each. Where the system grants no more pipes of
/// that capacity (an unprivileged user gets 64 of 1 MiB), it makes do with those it has from then on.
#[derive(Clone)]
pub struct PipePool(Arc<Rack>);

struct Rack {
    capacity: usize,
    state: Mutex<RackState>,
}

struct RackState {
    free: Vec<Pipe>,
    /// How many there are, those in use included.
    made: usize,
    /// How many there may be.
    limit: usize,
}

impl PipePool {
    /// The most bytes that an unprivileged user's pipe holds by default.
    pub const LARGEST: usize = 1 << 20;

    /// A pool of at most `limit` pipes with room for at least `capacity` bytes each. None is made yet.
    #[must_use]
    pub fn new(capacity: usize, limit: usize) -> Self {
        let state = RackState {
            free: Vec::new(),
            made: 0,
            limit,
        };
        Self(Arc::new(Rack {
            capacity,
            state: Mutex::new(state),
        }))
    }

    /// The capacity of its pipes in bytes.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.0.capacity
    }

    /// An empty pipe, or `None` when all that there may be are in use: memory is the other way.
    #[must_use]
    pub fn take(&self) -> Option<PipeBuffer> {
        let mut state = self.0.state();
        let pipe = match state.free.pop() {
            Some(pipe) => pipe,
            None if state.made >= state.limit => return None,
            None => {
                let pipe = Pipe::new(self.0.capacity).ok();
                let Some(pipe) = pipe.filter(|pipe| pipe.capacity() >= self.0.capacity) else {
                    state.limit = state.made;
                    return None;
                };
                state.made += 1;
                pipe
            }
        };
        Some(PipeBuffer {
            pipe: Some(pipe),
            pool: Arc::downgrade(&self.0),
        })
    }
}

impl fmt::Debug for PipePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PipePool({} bytes each)", self.0.capacity)
    }
}

impl Rack {
    fn state(&self) -> MutexGuard<'_, RackState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, pipe: Pipe) {
        let mut state = self.state();
        if pipe.is_empty() {
            state.free.push(pipe);
        } else {
            state.made -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_pipe_is_used_again_and_one_with_leftovers_never() {
        let pool = PipePool::new(1 << 16, 1);
        let mut pipe = pool.take().expect("the first");
        assert!(pool.take().is_none(), "the only one is in use");
        assert_eq!(pipe.put(&[7; 1000]).expect("room"), 1000);
        assert_eq!(pipe.take(&mut [0; 1000]).expect("taken"), 1000);
        drop(pipe);
        assert_eq!(pool.0.state().free.len(), 1);
        let mut pipe = pool.take().expect("the same");
        assert_eq!(pipe.put(&[7; 1000]).expect("room"), 1000);
        assert_eq!(pipe.take(&mut [0; 999]).expect("taken"), 999);
        drop(pipe);
        assert_eq!(pool.0.state().free.len(), 0);
        let pipe = pool.take().expect("another in its place");
        assert!(pipe.is_empty());
    }

    #[test]
    fn a_pool_that_is_refused_a_pipe_makes_do_with_what_it_has() {
        // No pipe is that large.
        let pool = PipePool::new(1 << 40, 8);
        assert!(pool.take().is_none());
        assert_eq!(pool.0.state().limit, 0);
    }

    #[test]
    fn a_payload_is_the_same_wherever_it_is() {
        let bytes: Vec<u8> = (0..50_000_u32).map(|it| (it % 251) as u8).collect();
        let (pipes, buffers) = (PipePool::new(1 << 16, 4), BufferPool::new(1 << 16, 4));
        let mut pipe = pipes.take().expect("a pipe");
        assert_eq!(pipe.put(&bytes).expect("room"), bytes.len());
        let piped = Payload::Piped(pipe);
        let memory = Payload::Memory(Buffer::from(&bytes[..]));
        assert_eq!((piped.len(), memory.len()), (bytes.len(), bytes.len()));
        let buffer = piped.into_memory(&buffers).expect("copied");
        assert!(*buffer == bytes[..]);
        let buffer = memory.into_memory(&buffers).expect("there already");
        assert!(*buffer == bytes[..]);
        assert_eq!(pipes.0.state().free.len(), 1, "the pipe is back");
    }

    #[test]
    fn what_is_discarded_leaves_an_empty_pipe() {
        let pool = PipePool::new(1 << 18, 1);
        let mut pipe = pool.take().expect("a pipe");
        pipe.fill_with_zeroes(200_000).expect("room");
        pipe.discard();
        assert!(pool.take().expect("it is back").is_empty());
    }

    #[test]
    fn a_pipe_outlives_its_pool() {
        let pool = PipePool::new(1 << 16, 1);
        let mut pipe = pool.take().expect("a pipe");
        drop(pool);
        assert_eq!(pipe.put(b"abc").expect("room"), 3);
        assert_eq!(*pipe.into_memory().expect("taken"), *b"abc");
    }
}
