//! The threads that hash, beside the one that moves the data.

use std::{
    collections::VecDeque,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use blockferry_block::{Buffer, Error, ErrorKind, Result};
use tokio::sync::oneshot;

use super::{BlockDigests, Work};

/// More threads than these are not worth it: two keep up with most disks and links.
const MOST_THREADS: usize = 4;

/// A few threads that compute what is to be known of pieces. They begin when there is something to do and
/// end with this value. Where none can be had the work is done by the caller.
pub(crate) struct HashThreads {
    shared: Arc<Shared>,
    most: usize,
}

struct Shared {
    work: Work,
    state: Mutex<State>,
    /// There is a job, or it is over.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: Vec<JoinHandle<()>>,
    idle: usize,
    over: bool,
}

struct Job {
    offset: u64,
    buffer: Buffer,
    answer: oneshot::Sender<(Buffer, BlockDigests)>,
}

impl HashThreads {
    /// Threads for `work`, none of which has begun.
    pub(crate) fn new(work: Work) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self {
            shared: Arc::new(Shared {
                work,
                state: Mutex::default(),
                changed: Condvar::new(),
            }),
            most: cores.min(MOST_THREADS),
        }
    }

    /// Computes what is wanted of the bytes in `buffer`, which lie at `offset` in the image, and gives the
    /// buffer back. The work begins now, polled or not.
    pub(crate) fn hash(
        &self,
        offset: u64,
        buffer: Buffer,
    ) -> impl Future<Output = Result<(Buffer, BlockDigests)>> + Send + 'static {
        let (answer, answered) = oneshot::channel();
        self.begin(Job {
            offset,
            buffer,
            answer,
        });
        async move {
            // Without an answer the work has panicked.
            answered.await.map_err(|_| {
                Error::with_message(ErrorKind::Io, "the computation of a digest failed")
            })
        }
    }

    fn begin(&self, job: Job) {
        let mut state = self.shared.lock();
        if state.jobs.len() >= state.idle && state.threads.len() < self.most {
            let shared = Arc::clone(&self.shared);
            let name = "digest".to_owned();
            let spawned = thread::Builder::new()
                .name(name)
                .spawn(move || shared.run());
            state.threads.extend(spawned);
        }
        if state.threads.is_empty() {
            drop(state);
            self.shared.compute(job);
        } else {
            state.jobs.push_back(job);
            drop(state);
            self.shared.changed.notify_one();
        }
    }
}

impl Drop for HashThreads {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.over = true;
        // Nobody waits for these any more.
        state.jobs.clear();
        let threads = std::mem::take(&mut state.threads);
        drop(state);
        self.shared.changed.notify_all();
        for thread in threads {
            // What it has in hand is done in a moment.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread's life.
    fn run(&self) {
        let mut state = self.lock();
        while !state.over {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                self.compute(job);
                state = self.lock();
            } else {
                state.idle += 1;
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }

    fn compute(&self, job: Job) {
        let Job {
            offset,
            buffer,
            answer,
        } = job;
        if answer.is_closed() {
            return;
        }
        // A panic must neither end the thread, for others wait for it, nor leave anyone without an answer.
        let computed = catch_unwind(AssertUnwindSafe(|| self.work.compute(offset, &buffer)));
        if let Ok(digests) = computed {
            // Whoever asked may have gone.
            let _ = answer.send((buffer, digests));
        }
    }
}
