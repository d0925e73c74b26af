//! Threads that unpack: one for each processor at most, for all images and all runtimes together.

use std::{
    any::Any,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::Duration,
};

use blockferry_block::{Error, ErrorKind, Result};
use tokio::sync::oneshot;

use crate::qcow2::codec::Decompressor;

/// A thread that has had nothing to do for so long ends.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce(&mut Decompressor) + Send>;

/// Runs `work` on one of the threads, with what that thread keeps for unpacking. Work is done in the order in which
/// it was asked for; when nobody waits for it any more it is left undone.
///
/// # Panics
/// When `work` does.
pub(crate) async fn unpack<T, F>(work: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce(&mut Decompressor) -> T + Send + 'static,
{
    type Outcome<T> = Result<T, Box<dyn Any + Send>>;
    let (answer, answered) = oneshot::channel::<Outcome<T>>();
    Pool::shared().add(Box::new(move |decompressor| {
        if !answer.is_closed() {
            let outcome = catch_unwind(AssertUnwindSafe(|| work(decompressor)));
            let _ = answer.send(outcome);
        }
    }));
    match answered.await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(panic)) => resume_unwind(panic),
        Err(_) => Err(Error::new(ErrorKind::Cancelled)),
    }
}

struct Pool {
    queue: Mutex<Queue>,
    work: Condvar,
    most_threads: usize,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

impl Pool {
    fn shared() -> &'static Self {
        static POOL: OnceLock<Pool> = OnceLock::new();
        POOL.get_or_init(|| Self {
            queue: Mutex::default(),
            work: Condvar::new(),
            most_threads: thread::available_parallelism().map_or(1, usize::from),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&'static self, job: Job) {
        let mut queue = self.lock();
        queue.jobs.push_back(job);
        if queue.idle >= queue.jobs.len() || queue.threads == self.most_threads {
            drop(queue);
            self.work.notify_one();
            return;
        }
        queue.threads += 1;
        drop(queue);
        let thread = thread::Builder::new().name("unpack".to_owned());
        if thread.spawn(|| self.run()).is_ok() {
            return;
        }
        // No more threads can be had: the others do it, or this one where there are no others.
        let mut queue = self.lock();
        queue.threads -= 1;
        let jobs = match queue.threads {
            0 => std::mem::take(&mut queue.jobs),
            _ => VecDeque::new(),
        };
        drop(queue);
        let mut decompressor = Decompressor::new();
        jobs.into_iter().for_each(|job| job(&mut decompressor));
    }

    fn run(&self) {
        let mut decompressor = Decompressor::new();
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                job(&mut decompressor);
                queue = self.lock();
                continue;
            }
            queue.idle += 1;
            let waited = self.work.wait_timeout(queue, IDLE);
            let (again, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            queue = again;
            queue.idle -= 1;
            if timeout.timed_out() && queue.jobs.is_empty() {
                queue.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    #[tokio::test]
    async fn all_that_is_asked_for_is_done() {
        let done = Arc::new(AtomicUsize::new(0));
        let jobs = (0..200).map(|number| {
            let done = Arc::clone(&done);
            unpack(move |_| {
                done.fetch_add(1, Ordering::Relaxed);
                number
            })
        });
        let results = futures_util::future::join_all(jobs).await;
        for (number, result) in results.into_iter().enumerate() {
            assert_eq!(result.expect("done"), number);
        }
        assert_eq!(done.load(Ordering::Relaxed), 200);
    }

    #[tokio::test]
    async fn a_panic_is_its_own_callers() {
        let failing = tokio::spawn(unpack(|_| -> () {
            std::panic::resume_unwind(Box::new("no"))
        }));
        assert!(failing.await.expect_err("a panic").is_panic());
        assert_eq!(unpack(|_| 1).await.expect("done"), 1);
    }
}
