//! The request to end a job.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Asks a job to end, from any thread. Clones are the same handle.
#[derive(Clone, Debug)]
pub struct Stop(Arc<Semaphore>);

impl Stop {
    /// A handle with which nothing was asked yet.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    /// Asks. The first request lets the job finish what is in flight, for some seconds; the second one ends it at
    /// once. No request is lost, also not one that comes before the job begins.
    pub fn stop(&self) {
        self.0.add_permits(1);
    }

    /// Waits for the next request. Nothing is lost when the future is dropped.
    pub(crate) async fn asked(&self) {
        match self.0.acquire().await {
            Ok(request) => request.forget(),
            // It is never closed.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Default for Stop {
    fn default() -> Self {
        Self::new()
    }
}
