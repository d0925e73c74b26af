//! The thread that writes an image's tables: what it has begun goes to its end, whoever asked for it has gone
//! meanwhile, and one after the other.

use std::{panic::AssertUnwindSafe, sync::Mutex, thread};

use blockferry_block::{BoxFuture, Error, ErrorKind, Result};
use futures_util::FutureExt;
use tokio::{
    runtime::Builder,
    sync::{mpsc, oneshot},
};

use super::lock;

type Job = BoxFuture<'static, ()>;

/// Runs jobs in the order in which they come. The thread begins with the first job, so that an image that is only
/// opened can still go to the background with its process; it ends with the value, behind the last job.
#[derive(Default)]
pub(super) struct Worker {
    jobs: Mutex<Option<mpsc::UnboundedSender<Job>>>,
}

impl Worker {
    /// Leaves a job to the thread.
    ///
    /// # Errors
    /// When there can be no thread.
    pub(super) fn leave(&self, job: impl Future<Output = ()> + Send + 'static) -> Result<()> {
        let mut jobs = lock(&self.jobs);
        let jobs = match &*jobs {
            Some(jobs) => jobs,
            None => jobs.insert(start()?),
        };
        jobs.send(Box::pin(job)).map_err(|_| gone())
    }

    /// Lets the thread run a job, and waits for what it gives.
    ///
    /// # Errors
    /// Those of the job; `Cancelled` where it panicked.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        job: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        self.leave(async move {
            let _ = answer.send(job.await);
        })?;
        answered.await.unwrap_or_else(|_| Err(gone()))
    }
}

fn start() -> Result<mpsc::UnboundedSender<Job>> {
    let runtime = Builder::new_current_thread().enable_time().build()?;
    let (jobs, mut queue) = mpsc::unbounded_channel::<Job>();
    let thread = thread::Builder::new().name("tables".to_owned());
    thread.spawn(move || {
        runtime.block_on(async {
            while let Some(job) = queue.recv().await {
                // Who waits for it sees that it has not ended; the others go on.
                let _ = AssertUnwindSafe(job).catch_unwind().await;
            }
        });
    })?;
    Ok(jobs)
}

pub(super) fn gone() -> Error {
    Error::with_message(
        ErrorKind::Cancelled,
        "the thread that writes the image's tables has ended",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn jobs_run_one_after_the_other_and_one_that_panics_stops_no_other() {
        let worker = Worker::default();
        let failing = worker.run(async { std::panic::resume_unwind(Box::new("no")) });
        let failed: Result<()> = failing.await;
        assert_eq!(
            failed.expect_err("it panicked").kind(),
            ErrorKind::Cancelled
        );
        let (done, order) = std::sync::mpsc::channel();
        for number in 0..10 {
            let done = done.clone();
            let job = async move {
                tokio::task::yield_now().await;
                done.send(number).expect("someone listens");
            };
            worker.leave(job).expect("a thread");
        }
        drop(done);
        assert_eq!(worker.run(async { Ok(7) }).await.expect("done"), 7);
        assert_eq!(
            order.iter().collect::<Vec<_>>(),
            (0..10).collect::<Vec<_>>()
        );
    }
}
