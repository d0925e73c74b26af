//! So many bytes a second.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

const NANOS: u128 = 1_000_000_000;

/// A limit on bytes a second. Clones share it: what one takes, the others do not get.
///
/// What was not used is saved for at most a tenth of a second.
#[derive(Clone, Debug)]
pub struct Rate {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    per_second: u64,
    /// The most bytes that are saved.
    burst: u64,
    /// Fewer bytes than that are not handed out to those who want more: moving them costs more than waiting.
    least: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Negative while some were promised to those who wait.
    available: i128,
    /// The moment up to which bytes were made available.
    paid: Instant,
}

/// What somebody gets who asks for bytes.
#[derive(Debug, PartialEq)]
enum Grant {
    Now(u64),
    /// So many, at that time. They are taken already: who waits first is served first.
    Later(u64, Instant),
}

impl Rate {
    /// At most so many bytes a second, on average. 0 is taken as 1.
    #[must_use]
    pub fn new(bytes_per_second: u64) -> Self {
        let per_second = bytes_per_second.max(1);
        let burst = (per_second / 10).max(1);
        Self {
            inner: Arc::new(Inner {
                per_second,
                burst,
                least: (burst / 4).clamp(1, 64 << 10),
                state: Mutex::new(State {
                    available: i128::from(burst),
                    paid: Instant::now(),
                }),
            }),
        }
    }

    /// Bytes a second.
    #[must_use]
    pub fn bytes_per_second(&self) -> u64 {
        self.inner.per_second
    }

    /// Takes up to `wanted` bytes.
    fn take(&self, wanted: u64) -> Grant {
        let inner = &self.inner;
        let mut state = inner.state();
        inner.pay(&mut state);
        let least = wanted.min(inner.least);
        if let Ok(available) = u64::try_from(state.available)
            && available >= least
        {
            let taken = wanted.min(available);
            state.available -= i128::from(taken);
            return Grant::Now(taken);
        }
        state.available -= i128::from(least);
        let nanos = (state.available.unsigned_abs() * NANOS).div_ceil(u128::from(inner.per_second));
        Grant::Later(least, state.paid + duration(nanos))
    }

    /// Gives back `bytes` that were taken and not moved.
    fn give_back(&self, bytes: u64) {
        let mut state = self.inner.state();
        let burst = i128::from(self.inner.burst);
        state.available = (state.available + i128::from(bytes)).min(burst);
    }
}

impl Inner {
    /// Makes available what has become due.
    fn pay(&self, state: &mut State) {
        let rate = u128::from(self.per_second);
        let now = Instant::now();
        let elapsed = now.saturating_duration_since(state.paid);
        let due = elapsed.as_nanos() * rate / NANOS;
        let room = i128::from(self.burst).abs_diff(state.available);
        if due >= room {
            (state.available, state.paid) = (i128::from(self.burst), now);
        } else {
            // Parts of bytes are kept as time.
            state.paid += duration((due * NANOS).div_ceil(rate));
            state.available = state.available.saturating_add_unsigned(due);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One direction that keeps to a rate.
#[derive(Debug)]
pub(crate) struct Throttle {
    rate: Rate,
    /// What was promised, and when it is due.
    waiting: Option<(u64, Pin<Box<Sleep>>)>,
}

impl Throttle {
    pub(crate) fn new(rate: Rate) -> Self {
        Self {
            rate,
            waiting: None,
        }
    }

    /// Whether bytes are waited for.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Takes between 1 and `wanted` bytes, when they are due.
    pub(crate) fn poll_take(&mut self, context: &mut Context<'_>, wanted: u64) -> Poll<u64> {
        if self.waiting.is_none() {
            match self.rate.take(wanted) {
                Grant::Now(taken) => return Poll::Ready(taken),
                Grant::Later(bytes, when) => {
                    self.waiting = Some((bytes, Box::pin(sleep_until(when))));
                }
            }
        }
        if let Some((_, sleep)) = &mut self.waiting {
            ready!(sleep.as_mut().poll(context));
        }
        let promised = self.waiting.take().map_or(0, |(bytes, _)| bytes);
        // Fewer may be wanted by now.
        let taken = promised.min(wanted);
        self.give_back(promised - taken);
        Poll::Ready(taken)
    }

    pub(crate) fn give_back(&self, bytes: u64) {
        if bytes > 0 {
            self.rate.give_back(bytes);
        }
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        if let Some((bytes, _)) = self.waiting.take() {
            self.give_back(bytes);
        }
    }
}

fn duration(nanos: u128) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    async fn move_bytes(throttle: &mut Throttle, mut left: u64, piece: u64) {
        while left > 0 {
            left -= poll_fn(|context| throttle.poll_take(context, left.min(piece))).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_come_at_the_rate_whatever_the_pieces() {
        for (rate, piece) in [(1000, 1), (1000, 7), (1_000_000, 65536), (3, 100)] {
            let start = Instant::now();
            let mut throttle = Throttle::new(Rate::new(rate));
            let bytes = rate * 10;
            move_bytes(&mut throttle, bytes, piece).await;
            let seconds = start.elapsed().as_secs_f64();
            assert!((9.5..=10.6).contains(&seconds), "{rate} {piece}: {seconds}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_share_a_rate_share_its_bytes() {
        let rate = Rate::new(100_000);
        let start = Instant::now();
        let mut both = [Throttle::new(rate.clone()), Throttle::new(rate)];
        let [one, two] = &mut both;
        tokio::join!(
            move_bytes(one, 500_000, 4096),
            move_bytes(two, 500_000, 512)
        );
        let seconds = start.elapsed().as_secs_f64();
        assert!((9.5..=10.6).contains(&seconds), "{seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_served_in_turn_however_much_the_others_want() {
        let rate = Rate::new(100_000);
        let mut all: Vec<_> = (0..4).map(|_| Throttle::new(rate.clone())).collect();
        let mut moved = [0; 4];
        let start = Instant::now();
        let [one, two, three, four] = &mut all[..] else {
            unreachable!()
        };
        let take = async |throttle: &mut Throttle, moved: &mut u64, piece: u64| {
            while start.elapsed() < Duration::from_secs(10) {
                *moved += poll_fn(|context| throttle.poll_take(context, piece)).await;
            }
        };
        let [a, b, c, d] = &mut moved;
        tokio::join!(
            take(one, a, 1 << 20),
            take(two, b, 1 << 20),
            take(three, c, 4096),
            take(four, d, 4096),
        );
        let total: u64 = moved.iter().sum();
        assert!((950_000..=1_060_000).contains(&total), "{moved:?}");
        assert!(moved.iter().all(|it| *it > total / 8), "{moved:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_promised_to_somebody_who_left_is_there_for_the_others() {
        let rate = Rate::new(1000);
        assert_eq!(rate.take(100), Grant::Now(100));
        let mut throttle = Throttle::new(rate.clone());
        let taken = std::pin::pin!(poll_fn(|context| throttle.poll_take(context, 25)));
        assert!(futures_poll(taken).is_pending());
        drop(throttle);
        let soon = Instant::now() + Duration::from_millis(25);
        assert_eq!(rate.take(25), Grant::Later(25, soon));
    }

    fn futures_poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(std::task::Waker::noop()))
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_used_is_not_saved_for_long_and_what_is_given_back_can_be_taken() {
        let rate = Rate::new(1000);
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!(rate.take(5000), Grant::Now(100));
        rate.give_back(60);
        assert_eq!(rate.take(5000), Grant::Now(60));
        let soon = Instant::now() + Duration::from_millis(25);
        assert_eq!(rate.take(5000), Grant::Later(25, soon));
    }
}
