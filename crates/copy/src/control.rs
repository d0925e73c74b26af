//! The handle with which a copy is stopped from elsewhere.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::Notify;

/// Stops copies. Clones are the same handle; it stays cancelled for good.
#[derive(Clone, Debug, Default)]
pub struct Control(Arc<State>);

#[derive(Debug, Default)]
struct State {
    cancelled: AtomicBool,
    changed: Notify,
}

impl Control {
    /// A handle that has not been cancelled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends every copy that has this handle: nothing new is begun, writes that were begun finish, and
    /// the copy fails with [`Side::Cancelled`](crate::Side::Cancelled). From any thread, at any time.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }

    /// Whether it was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::SeqCst)
    }

    /// Ready once it was cancelled, even if that was before.
    pub(crate) fn cancelled(&self) -> impl Future<Output = ()> + Send + '_ {
        let notified = self.0.changed.notified();
        async move {
            if !self.is_cancelled() {
                notified.await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn cancelling_wakes_whoever_waits_and_whoever_comes_later() {
        let control = Control::new();
        let other = control.clone();
        let waiter = tokio::spawn(async move { other.cancelled().await });
        tokio::task::yield_now().await;
        assert!(!control.is_cancelled());
        control.cancel();
        waiter.await.expect("the waiter ends");
        control.cancelled().await;
    }
}
