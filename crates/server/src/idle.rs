//! Clients that keep silent for too long.

use std::{pin::Pin, task::Context, time::Duration};

use tokio::time::{Instant, Sleep, sleep};

/// How often in a limit it is looked whether something moved: no clock is read for a request.
const LOOKS: u32 = 2;

/// Tells when nothing has moved for a limit at least, and half as long again at most.
pub(crate) struct Idle {
    watch: Option<Watch>,
    moved: bool,
}

struct Watch {
    pause: Duration,
    timer: Pin<Box<Sleep>>,
    /// Looks in a row that found nothing.
    silent: u32,
}

impl Idle {
    /// To be made inside of the connection's runtime.
    pub(crate) fn new(limit: Option<Duration>) -> Self {
        let watch = limit.map(|limit| {
            let pause = limit / LOOKS;
            Watch {
                pause,
                timer: Box::pin(sleep(pause)),
                silent: 0,
            }
        });
        Self {
            watch,
            moved: false,
        }
    }

    /// Takes note that bytes or a request moved.
    pub(crate) fn moved(&mut self) {
        self.moved = true;
    }

    /// Whether the limit is over; otherwise the task is woken when it may be. While the server itself is
    /// `busy` no time counts.
    pub(crate) fn poll_is_over(&mut self, cx: &mut Context<'_>, busy: bool) -> bool {
        let Some(watch) = &mut self.watch else {
            return false;
        };
        while watch.timer.as_mut().poll(cx).is_ready() {
            if self.moved || busy {
                watch.silent = 0;
                self.moved = false;
            } else {
                watch.silent += 1;
                if watch.silent >= LOOKS {
                    return true;
                }
            }
            let next = Instant::now() + watch.pause.max(Duration::from_millis(1));
            watch.timer.as_mut().reset(next);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    /// Waits until it is over.
    async fn over(idle: &mut Idle, busy: bool) {
        poll_fn(|cx| match idle.poll_is_over(cx, busy) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_noticed_after_the_limit_and_before_half_as_much_again() {
        let limit = Duration::from_secs(10);
        let mut idle = Idle::new(Some(limit));
        let start = Instant::now();
        // Moves a moment after the first look.
        let first = tokio::time::timeout(Duration::from_millis(5001), over(&mut idle, false));
        assert!(first.await.is_err());
        idle.moved();
        let moved = Instant::now();
        over(&mut idle, false).await;
        assert!(moved.elapsed() >= limit, "{:?}", moved.elapsed());
        assert!(moved.elapsed() <= limit * 3 / 2, "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_server_and_no_limit_know_no_silence() {
        let hour = Duration::from_secs(3600);
        let mut busy = Idle::new(Some(Duration::from_secs(1)));
        assert!(
            tokio::time::timeout(hour, over(&mut busy, true))
                .await
                .is_err()
        );
        let mut none = Idle::new(None);
        assert!(
            tokio::time::timeout(hour, over(&mut none, false))
                .await
                .is_err()
        );
    }
}
