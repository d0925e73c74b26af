//! How long nothing may move.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

use crate::{Cause, Options};

/// The timeouts of one connection. The timer is not set anew with each byte: when it ends, it looks how long ago
/// the last one was.
#[derive(Debug)]
pub(crate) struct Clock {
    idle: Option<Duration>,
    half_closed: Option<Duration>,
    /// When something moved for the last time, as far as is known.
    since: Instant,
    seen: (u64, bool),
    sleep: Pin<Box<Sleep>>,
}

impl Clock {
    /// `None` when there is nothing to wait for.
    pub(crate) fn new(options: &Options) -> Option<Box<Self>> {
        let half_closed = options.half_close_timeout.or(options.idle_timeout);
        half_closed.map(|first| {
            let since = Instant::now();
            Box::new(Self {
                idle: options.idle_timeout,
                half_closed,
                since,
                seen: (0, false),
                sleep: Box::pin(sleep_until(after(since, first))),
            })
        })
    }

    /// Waits until nothing has moved for too long. `progress` is any number that changes when something moves.
    pub(crate) fn poll(
        &mut self,
        context: &mut Context<'_>,
        progress: u64,
        is_half_closed: bool,
    ) -> Poll<Cause> {
        let now = (progress, is_half_closed);
        if self.seen != now {
            (self.seen, self.since) = (now, Instant::now());
        }
        let limit = match is_half_closed {
            true => self.half_closed,
            false => self.idle,
        };
        let Some(limit) = limit else {
            return Poll::Pending;
        };
        let end = after(self.since, limit);
        loop {
            if self.sleep.deadline() > end {
                self.sleep.as_mut().reset(end);
            }
            ready!(self.sleep.as_mut().poll(context));
            if Instant::now() >= end {
                return Poll::Ready(match is_half_closed {
                    true => Cause::HalfClosed(limit),
                    false => Cause::Idle(limit),
                });
            }
            self.sleep.as_mut().reset(end);
        }
    }
}

/// A time that is too long to be told is a century, too.
fn after(start: Instant, duration: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(3_000_000_000);
    start
        .checked_add(duration.min(CENTURY))
        .unwrap_or(start + Duration::from_secs(1 << 30))
}
