//! Pipes that are lent while bytes are in them.
//!
//! A pipe of 1 MiB costs the kernel 256 page slots and this process two descriptors, and an unprivileged user
//! gets no more than 64 of them. So a connection has one only as long as bytes flow through it: it is lent when
//! something is about to go in, and comes back as soon as it is empty and nothing follows.

use std::{
    cell::OnceCell,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use blockferry_sys::{Pipe, user_pipe_limit};

/// The size of a pipe in bytes, where nobody says another.
const PIPE_SIZE: usize = 1 << 20;

/// How many pipes a pool has at most, where nobody says another number.
const LIMIT: usize = 64;

/// Empty pipes that are kept for the next one. More are seldom in use at the same moment of one thread, and each one
/// counts against those of the others.
const SPARE: usize = 2;

/// A pipe of fewer bytes moves them more slowly than memory does.
const USEFUL: usize = 32 << 10;

/// How long no pipe is asked for after the system refused one.
const STARVATION: Duration = Duration::from_secs(1);

/// Bytes of pipes of all pools of this process.
static IN_USE: AtomicU64 = AtomicU64::new(0);

/// Kernel pipes for the connections of one worker. Clones share it.
///
/// All pools of a process together keep below three quarters of what the system grants its user, so that
/// others get some, too. Connections that find no pipe move their bytes through memory.
#[derive(Clone, Debug)]
pub struct PipePool {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    limit: usize,
    pipe_size: usize,
    lent: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    spare: Vec<Pipe>,
    /// Lent ones and spare ones.
    pipes: usize,
    starved: Option<Instant>,
}

impl PipePool {
    /// A pool that has at most `limit` pipes, lent and spare together, of 1 MiB each.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self::with_pipe_size(limit, PIPE_SIZE)
    }

    /// The same with pipes of `bytes` each, which the system rounds up to a power of two of at least a page.
    #[must_use]
    pub fn with_pipe_size(limit: usize, bytes: usize) -> Self {
        Self {
            inner: Arc::new(Inner {
                limit,
                pipe_size: bytes.clamp(1, 1 << 30),
                lent: AtomicUsize::new(0),
                state: Mutex::default(),
            }),
        }
    }

    /// How many pipes connections hold at the moment.
    #[must_use]
    pub fn lent(&self) -> usize {
        self.inner.lent.load(Ordering::Relaxed)
    }

    /// How many pipes there are, with those that wait to be lent.
    #[must_use]
    pub fn pipes(&self) -> usize {
        self.inner.state().pipes
    }

    /// The pool of this thread.
    pub(crate) fn of_thread() -> Self {
        thread_local! {
            static POOL: OnceCell<PipePool> = const { OnceCell::new() };
        }
        POOL.with(|pool| pool.get_or_init(Self::default).clone())
    }

    /// An empty pipe, unless there are too many already.
    pub(crate) fn lend(&self) -> Option<Lent> {
        let inner = &self.inner;
        let mut state = inner.state();
        let pipe = match state.spare.pop() {
            Some(pipe) => pipe,
            None => inner.make(&mut state)?,
        };
        drop(state);
        inner.lent.fetch_add(1, Ordering::Relaxed);
        Some(Lent {
            pipe: Some(pipe),
            pool: self.clone(),
        })
    }
}

impl Default for PipePool {
    /// Of 64 pipes.
    fn default() -> Self {
        Self::new(LIMIT)
    }
}

impl Inner {
    fn make(&self, state: &mut State) -> Option<Pipe> {
        if state.pipes >= self.limit {
            return None;
        }
        if state
            .starved
            .is_some_and(|since| since.elapsed() < STARVATION)
        {
            return None;
        }
        let size = self.pipe_size as u64;
        if IN_USE.fetch_add(size, Ordering::Relaxed) + size > budget() {
            IN_USE.fetch_sub(size, Ordering::Relaxed);
            return None;
        }
        // Without descriptors, or more of its user's pages than that user may have.
        let pipe = Pipe::new(self.pipe_size)
            .ok()
            .filter(|pipe| pipe.capacity() >= USEFUL.min(self.pipe_size));
        match pipe {
            Some(_) => {
                state.pipes += 1;
                state.starved = None;
            }
            None => {
                IN_USE.fetch_sub(size, Ordering::Relaxed);
                state.starved = Some(Instant::now());
            }
        }
        pipe
    }

    fn take_back(&self, pipe: Pipe) {
        let mut state = self.state();
        // Bytes in it belong to nobody any more, and must not reach another connection.
        if pipe.is_empty() && state.spare.len() < SPARE {
            state.spare.push(pipe);
        } else {
            state.pipes = state.pipes.saturating_sub(1);
            drop(state);
            IN_USE.fetch_sub(self.pipe_size as u64, Ordering::Relaxed);
        }
        self.lent.fetch_sub(1, Ordering::Relaxed);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let spare = self.state().spare.len() as u64;
        IN_USE.fetch_sub(spare * self.pipe_size as u64, Ordering::Relaxed);
    }
}

/// The most bytes of pipes that this process makes.
fn budget() -> u64 {
    static BUDGET: OnceLock<u64> = OnceLock::new();
    /// For those who have no limit: a kernel's memory is worth something, too.
    const PRIVILEGED: u64 = 1 << 30;
    *BUDGET.get_or_init(|| user_pipe_limit().map_or(PRIVILEGED, |limit| limit / 4 * 3))
}

/// A pipe that returns to its pool when it is dropped; with bytes in it, it is closed instead.
#[derive(Debug)]
pub(crate) struct Lent {
    /// Always there, until it is dropped.
    pipe: Option<Pipe>,
    pool: PipePool,
}

impl Lent {
    /// The pipe. `None` never happens, but no panic proves it.
    pub(crate) fn pipe(&mut self) -> Option<&mut Pipe> {
        self.pipe.as_mut()
    }

    /// How many bytes are in it.
    pub(crate) fn len(&self) -> u64 {
        self.pipe.as_ref().map_or(0, |pipe| pipe.len() as u64)
    }

    /// How many bytes fit when each slot holds a whole page.
    pub(crate) fn capacity(&self) -> u64 {
        self.pipe.as_ref().map_or(0, |pipe| pipe.capacity() as u64)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(pipe) = self.pipe.take() {
            self.pool.inner.take_back(pipe);
        }
    }
}
