//! The handle with which a copy is stopped, or slowed down, from elsewhere.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;

/// Stops copies and limits their rate. Clones are the same handle; it stays cancelled for good.
#[derive(Clone, Debug, Default)]
pub struct Control(Arc<State>);

#[derive(Debug, Default)]
struct State {
    cancelled: AtomicBool,
    changed: Notify,
    /// Bytes a second; 0 for no limit.
    rate: AtomicU64,
    rate_changed: Notify,
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

    /// Limits every copy that has this handle to so many bytes of data a second each, from now on; `None` or 0
    /// lifts the limit. Zeroes that need not be read do not count. From any thread, at any time.
    pub fn set_rate(&self, rate: Option<u64>) {
        self.0.rate.store(rate.unwrap_or(0), Ordering::SeqCst);
        self.0.rate_changed.notify_waiters();
    }

    /// The limit in bytes of data a second.
    #[must_use]
    pub fn rate(&self) -> Option<u64> {
        Some(self.0.rate.load(Ordering::SeqCst)).filter(|rate| *rate > 0)
    }

    /// Ready once the limit is another than `known`.
    pub(crate) fn rate_other_than(
        &self,
        known: Option<u64>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let control = self.clone();
        async move {
            loop {
                let mut changed = pin!(control.0.rate_changed.notified());
                changed.as_mut().enable();
                if control.rate() != known {
                    return;
                }
                changed.await;
            }
        }
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
    async fn a_change_of_the_rate_wakes_whoever_knows_another_one() {
        let control = Control::new();
        assert_eq!(control.rate(), None);
        control.set_rate(Some(5));
        control.rate_other_than(None).await;
        let waiter = tokio::spawn(control.rate_other_than(Some(5)));
        tokio::task::yield_now().await;
        control.set_rate(None);
        waiter.await.expect("the waiter ends");
        assert_eq!(control.rate(), None);
    }

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
