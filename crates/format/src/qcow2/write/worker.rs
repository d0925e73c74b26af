//! The thread that writes an image's tables: what it has begun goes to its end, whoever asked for it has gone
//! meanwhile, and one after the other.

use std::thread;

use blockferry_block::{BoxFuture, Error, ErrorKind, Result};
use tokio::{
    runtime::Builder,
    sync::{mpsc, oneshot},
};

type Job = BoxFuture<'static, ()>;

/// Runs jobs in the order in which they come. The thread ends with the value, behind the last job.
pub(super) struct Worker {
    jobs: mpsc::UnboundedSender<Job>,
}

impl Worker {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there can be no thread.
    pub(super) fn start() -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_time().build()?;
        let (jobs, mut queue) = mpsc::unbounded_channel::<Job>();
        let thread = thread::Builder::new().name("tables".to_owned());
        thread.spawn(move || {
            runtime.block_on(async {
                while let Some(job) = queue.recv().await {
                    job.await;
                }
            });
        })?;
        Ok(Self { jobs })
    }

    /// Leaves a job to the thread.
    pub(super) fn leave(&self, job: impl Future<Output = ()> + Send + 'static) {
        // It takes jobs as long as this is there.
        let _ = self.jobs.send(Box::pin(job));
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
        });
        answered.await.unwrap_or_else(|_| Err(gone()))
    }
}

pub(super) fn gone() -> Error {
    Error::with_message(
        ErrorKind::Cancelled,
        "the thread that writes the image's tables has ended",
    )
}
