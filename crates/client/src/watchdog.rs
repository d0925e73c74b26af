//! Notices that a server has gone silent, with one timer for the connection.
//!
//! Whoever moves bytes only notes that some moved. The watchdog looks at that note now and then: each look
//! that finds none makes the silence longer.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

use crate::ConnectOptions;

/// How many looks there are within the time that a server may be silent.
const LOOKS: u32 = 4;

/// How long silence may last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// While requests are in flight.
    request: Option<Duration>,
    /// While those are flushes only.
    flush: Option<Duration>,
}

impl Patience {
    pub(crate) fn new(options: &ConnectOptions) -> Self {
        Self {
            request: options.request_timeout,
            flush: options.flush_timeout,
        }
    }

    /// With so many requests in flight, so many of which are flushes. `None`: for ever.
    pub(crate) fn with(self, requests: usize, flushes: usize) -> Option<Duration> {
        match requests {
            0 => None,
            all if all == flushes => self.flush,
            _ => self.request,
        }
    }

    /// The time between two looks, where there is anything to look for.
    fn interval(self) -> Option<Duration> {
        let shortest = self.request.into_iter().chain(self.flush).min()?;
        Some((shortest / LOOKS).max(Duration::from_millis(1)))
    }
}

/// Watches over one asynchronous connection.
pub(crate) struct Watchdog {
    patience: Patience,
    interval: Duration,
    next_look: Pin<Box<Sleep>>,
    /// When bytes moved last, or nothing was due: at the look before that, or later.
    quiet_since: Instant,
    moved: bool,
}

impl Watchdog {
    /// `None` where silence may last for ever. Within a runtime that has time enabled.
    pub(crate) fn new(patience: Patience) -> Option<Self> {
        let interval = patience.interval()?;
        Some(Self {
            patience,
            interval,
            next_look: Box::pin(tokio::time::sleep(interval)),
            quiet_since: Instant::now(),
            moved: true,
        })
    }

    /// Takes note that bytes moved.
    pub(crate) fn note_progress(&mut self) {
        self.moved = true;
    }

    /// Ready, with the limit, when nothing has moved for longer than `requests` in flight, `flushes` among
    /// them, may wait.
    pub(crate) fn poll(
        &mut self,
        context: &mut Context<'_>,
        requests: usize,
        flushes: usize,
    ) -> Poll<Duration> {
        let Some(limit) = self.patience.with(requests, flushes) else {
            // The timer is left as it is: an idle connection is not woken for it.
            self.moved = true;
            return Poll::Pending;
        };
        loop {
            ready!(self.next_look.as_mut().poll(context));
            let now = Instant::now();
            if self.moved {
                self.moved = false;
                self.quiet_since = now;
            } else if now.duration_since(self.quiet_since) >= limit {
                return Poll::Ready(limit);
            }
            self.next_look.as_mut().reset(now + self.interval);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    fn watchdog(request: Option<u64>, flush: Option<u64>) -> Option<Watchdog> {
        Watchdog::new(Patience {
            request: request.map(Duration::from_secs),
            flush: flush.map(Duration::from_secs),
        })
    }

    /// How long it takes until the silence is noticed, in virtual seconds.
    async fn noticed(watchdog: &mut Watchdog, requests: usize, flushes: usize) -> u64 {
        let begun = Instant::now();
        poll_fn(|context| watchdog.poll(context, requests, flushes)).await;
        begun.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_noticed_after_its_time_and_not_much_later() {
        let mut watchdog = watchdog(Some(100), None).expect("a limit");
        assert!((100..=150).contains(&noticed(&mut watchdog, 3, 1).await));
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_that_move_begin_the_time_anew() {
        let mut watchdog = watchdog(Some(100), None).expect("a limit");
        for _ in 0..20 {
            let silence = poll_fn(|context| watchdog.poll(context, 1, 0));
            let look = tokio::time::timeout(Duration::from_secs(60), silence).await;
            assert!(look.is_err(), "bytes have moved");
            watchdog.note_progress();
        }
        assert!((100..=150).contains(&noticed(&mut watchdog, 1, 0).await));
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_owes_nothing() {
        let mut watchdog = watchdog(Some(100), None).expect("a limit");
        let silence = poll_fn(|context| watchdog.poll(context, 0, 0));
        let idle = tokio::time::timeout(Duration::from_secs(100_000), silence).await;
        assert!(idle.is_err(), "nothing was in flight");
        // The time before the request does not count.
        assert!((100..=150).contains(&noticed(&mut watchdog, 1, 0).await));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flush_alone_has_a_limit_of_its_own() {
        let mut watchdog = watchdog(Some(100), Some(1000)).expect("limits");
        assert!((1000..=1050).contains(&noticed(&mut watchdog, 2, 2).await));
        let mut watchdog = self::watchdog(Some(100), None).expect("a limit");
        let silence = poll_fn(|context| watchdog.poll(context, 1, 1));
        let flushing = tokio::time::timeout(Duration::from_secs(100_000), silence).await;
        assert!(flushing.is_err(), "a flush may take as long as it takes");
        assert!(self::watchdog(None, None).is_none());
    }
}
