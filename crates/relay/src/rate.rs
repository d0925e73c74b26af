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
///
/// ```
/// use blockferry_relay::Rate;
///
/// // All connections together, and each of them.
/// let all = Rate::new(100_000_000);
/// let one = Rate::new(10_000_000).and(&all);
/// assert_eq!(one.bytes_per_second(), 10_000_000);
/// ```
#[derive(Clone, Debug)]
pub struct Rate {
    /// One at least, none of them twice.
    limits: Vec<Arc<Limit>>,
}

#[derive(Debug)]
struct Limit {
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
            limits: vec![Arc::new(Limit {
                per_second,
                burst,
                least: (burst / 4).clamp(1, 64 << 10),
                state: Mutex::new(State {
                    available: i128::from(burst),
                    paid: Instant::now(),
                }),
            })],
        }
    }

    /// Both limits: who keeps to it takes of either.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let mut limits = self.limits.clone();
        for limit in &other.limits {
            if !limits.iter().any(|known| Arc::ptr_eq(known, limit)) {
                limits.push(Arc::clone(limit));
            }
        }
        Self { limits }
    }

    /// Bytes a second: the fewest, where there are several limits.
    #[must_use]
    pub fn bytes_per_second(&self) -> u64 {
        let all = self.limits.iter().map(|limit| limit.per_second);
        all.min().unwrap_or(u64::MAX)
    }
}

impl Limit {
    /// Takes up to `wanted` bytes.
    fn take(&self, wanted: u64) -> Grant {
        let mut state = self.state();
        self.pay(&mut state);
        let least = wanted.min(self.least);
        if let Ok(available) = u64::try_from(state.available)
            && available >= least
        {
            let taken = wanted.min(available);
            state.available -= i128::from(taken);
            return Grant::Now(taken);
        }
        state.available -= i128::from(least);
        let nanos = (state.available.unsigned_abs() * NANOS).div_ceil(u128::from(self.per_second));
        Grant::Later(least, state.paid + duration(nanos))
    }

    /// Gives back `bytes` that were taken and not moved.
    fn give_back(&self, bytes: u64) {
        let mut state = self.state();
        let burst = i128::from(self.burst);
        state.available = (state.available + i128::from(bytes)).min(burst);
    }

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
    /// How many of its limits have granted something, and what.
    granting: usize,
    granted: u64,
    /// What the next one has promised, and when it is due.
    waiting: Option<(u64, Pin<Box<Sleep>>)>,
}

impl Throttle {
    pub(crate) fn new(rate: Rate) -> Self {
        Self {
            rate,
            granting: 0,
            granted: 0,
            waiting: None,
        }
    }

    /// Whether bytes are waited for.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Takes between 1 and `wanted` bytes, when they are due.
    pub(crate) fn poll_take(&mut self, context: &mut Context<'_>, wanted: u64) -> Poll<u64> {
        while let Some(limit) = self.rate.limits.get(self.granting) {
            let limit = Arc::clone(limit);
            // Each grants what those before it have, or less.
            let most = match self.granting {
                0 => wanted,
                _ => self.granted,
            };
            let bytes = match &mut self.waiting {
                Some((bytes, sleep)) => {
                    ready!(sleep.as_mut().poll(context));
                    *bytes
                }
                None => match limit.take(most) {
                    Grant::Now(bytes) => bytes,
                    Grant::Later(bytes, when) => {
                        self.waiting = Some((bytes, Box::pin(sleep_until(when))));
                        continue;
                    }
                },
            };
            self.waiting = None;
            if self.granting > 0 {
                self.return_grant(self.granted - bytes);
            }
            self.granted = bytes;
            self.granting += 1;
        }
        // Fewer may be wanted by now.
        let taken = self.granted.min(wanted);
        self.return_grant(self.granted - taken);
        (self.granting, self.granted) = (0, 0);
        Poll::Ready(taken)
    }

    /// Gives back what was taken and not moved.
    pub(crate) fn give_back(&self, bytes: u64) {
        give_back(&self.rate.limits, bytes);
    }

    /// Gives back `bytes` of what was granted.
    fn return_grant(&self, bytes: u64) {
        give_back(&self.rate.limits[..self.granting], bytes);
    }
}

fn give_back(limits: &[Arc<Limit>], bytes: u64) {
    if bytes > 0 {
        limits.iter().for_each(|limit| limit.give_back(bytes));
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.return_grant(self.granted);
        if let Some((bytes, _)) = self.waiting.take() {
            give_back(&self.rate.limits[self.granting..=self.granting], bytes);
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
    async fn each_keeps_to_its_own_limit_and_all_to_theirs() {
        let all = Rate::new(100_000);
        let own = || Throttle::new(Rate::new(60_000).and(&all));
        // Alone it has its own rate, and two of them share what there is.
        for (others, expected) in [(0, 60_000.0), (1, 50_000.0), (3, 25_000.0)] {
            let start = Instant::now();
            let mut throttles: Vec<_> = (0..=others).map(|_| own()).collect();
            let moved = throttles.iter_mut().map(|it| move_bytes(it, 500_000, 4096));
            let all: Vec<_> = moved.map(Box::pin).collect();
            join(all).await;
            let rate = 500_000.0 / start.elapsed().as_secs_f64();
            assert!(
                (0.95..=1.1).contains(&(rate / expected)),
                "{others}: {rate}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_while_one_limit_makes_it_wait_gives_back_to_the_other() {
        let (one, other) = (Rate::new(1000), Rate::new(1000));
        // Nothing is left of the second.
        assert_eq!(other.limits[0].take(100), Grant::Now(100));
        let mut throttle = Throttle::new(one.and(&other).and(&one));
        assert_eq!(throttle.rate.limits.len(), 2);
        let taken = std::pin::pin!(poll_fn(|context| throttle.poll_take(context, 25)));
        assert!(futures_poll(taken).is_pending());
        assert_eq!(one.limits[0].take(100), Grant::Now(75));
        drop(throttle);
        assert_eq!(one.limits[0].take(25), Grant::Now(25));
        let soon = Instant::now() + Duration::from_millis(25);
        assert_eq!(other.limits[0].take(25), Grant::Later(25, soon));
    }

    async fn join(mut all: Vec<Pin<Box<impl Future<Output = ()>>>>) {
        poll_fn(|context| {
            all.retain_mut(|it| it.as_mut().poll(context).is_pending());
            match all.is_empty() {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_promised_to_somebody_who_left_is_there_for_the_others() {
        let rate = Rate::new(1000);
        assert_eq!(rate.limits[0].take(100), Grant::Now(100));
        let mut throttle = Throttle::new(rate.clone());
        let taken = std::pin::pin!(poll_fn(|context| throttle.poll_take(context, 25)));
        assert!(futures_poll(taken).is_pending());
        drop(throttle);
        let soon = Instant::now() + Duration::from_millis(25);
        assert_eq!(rate.limits[0].take(25), Grant::Later(25, soon));
    }

    fn futures_poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(std::task::Waker::noop()))
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_used_is_not_saved_for_long_and_what_is_given_back_can_be_taken() {
        let rate = Rate::new(1000);
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!(rate.limits[0].take(5000), Grant::Now(100));
        rate.limits[0].give_back(60);
        assert_eq!(rate.limits[0].take(5000), Grant::Now(60));
        let soon = Instant::now() + Duration::from_millis(25);
        assert_eq!(rate.limits[0].take(5000), Grant::Later(25, soon));
    }
}
