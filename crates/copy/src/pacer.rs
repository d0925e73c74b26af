//! How much is in flight, and in how large requests: little while that is enough, more where each
//! request takes long.
//!
//! A copy begins with [`FIRST_WINDOW`] bytes in flight, which stay in the processor's cache and keep a local
//! server busy. Each *turn*, the time in which twice the window was moved, says how fast that was and how
//! long a request took. Requests that take hardly longer than the quickest one did wait for the link
//! and not for each other: the window grows. When the larger window is no faster it shrinks again and
//! stays. From [`MANY_REQUESTS`] bytes on it grows by larger requests instead of by more: a server that
//! answers so many at a time, or that pays for each, gains as well.

use std::time::Duration;

use tokio::time::Instant;

use crate::plan::Plan;

/// The bytes in flight in the beginning.
pub(crate) const FIRST_WINDOW: u64 = 2 << 20;
/// The request size in the beginning, in bytes.
pub(crate) const FIRST_REQUEST: u32 = 256 << 10;
/// The bytes in flight at most, unless the caller says otherwise.
pub(crate) const MOST_IN_FLIGHT: u64 = 64 << 20;
/// The largest request that the window grows to, in bytes.
pub(crate) const LARGEST_REQUEST: u32 = 4 << 20;
/// Up to this window requests get more; beyond it there are 16 of them, and they get larger.
const MANY_REQUESTS: u64 = 4 << 20;
/// Requests in flight on one connection at most: for pieces that are shorter than they could be.
const MOST_REQUESTS: usize = 64;
/// The rate that is taken for possible before it is known, in bytes a second.
const PLAUSIBLE_RATE: f64 = 1e9;
/// A window that would take longer than a request's time at this rate, in bytes a second, is ample. The
/// first step leads to such a window at once, for turns are long where requests are.
const HIGHEST_RATE: f64 = 2.5e9;
/// The largest window that the first step leads to.
const LONGEST_STEP: u64 = 32 << 20;
/// By what a larger window must be faster to be kept.
const WORTH_IT: f64 = 1.2;
/// Requests that take so many times as long as the quickest one queue up somewhere.
const QUEUED: f64 = 3.0;
/// After so many turns without a change a larger window is tried again.
const PATIENCE: u32 = 16;

/// Decides on the window and the request size of one copy.
#[derive(Debug)]
pub(crate) struct Pacer {
    window: u64,
    request_size: u32,
    limits: Limits,
    /// The time of the quickest request so far.
    quickest: Duration,
    turn: Turn,
    trial: Option<Trial>,
    /// Turns since the window was settled on; `None` while it still grows.
    settled: Option<u32>,
    /// The rate of the last whole turn, in bytes a second.
    rate: f64,
}

/// What stays as it is.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// The largest window.
    window: u64,
    fixed_window: bool,
    alignment: u32,
    request_size: u32,
    fixed_request_size: bool,
    /// Requests on one connection.
    requests: usize,
}

/// A window that must show that it is worth it.
#[derive(Debug)]
struct Trial {
    /// The smaller window before, and its rate in bytes a second.
    before: u64,
    rate: f64,
    is_new: bool,
}

/// What is measured between two decisions.
#[derive(Debug)]
struct Turn {
    since: Instant,
    bytes: u64,
    requests: u32,
    latency: Duration,
}

impl Pacer {
    /// The beginning of a copy by `plan`.
    pub(crate) fn new(plan: &Plan, now: Instant) -> Self {
        let limits = Limits {
            window: plan.queue_size.unwrap_or(MOST_IN_FLIGHT),
            // Who says how many requests there are says how much is in flight.
            fixed_window: plan.queue_size.is_some() || plan.requests.is_some(),
            alignment: plan.alignment,
            request_size: plan.longest_request,
            fixed_request_size: plan.fixed_request_size,
            requests: plan.requests.unwrap_or(MOST_REQUESTS),
        };
        Self::with_limits(limits, now)
    }

    fn with_limits(limits: Limits, now: Instant) -> Self {
        let mut pacer = Self {
            window: 0,
            request_size: 0,
            limits,
            quickest: Duration::MAX,
            turn: Turn::begin(now),
            trial: None,
            settled: None,
            rate: 0.0,
        };
        pacer.set_window(match limits.fixed_window {
            true => limits.window,
            false => FIRST_WINDOW,
        });
        pacer
    }

    /// The bytes that may be in flight now.
    pub(crate) fn window(&self) -> u64 {
        self.window
    }

    /// The longest request now, in bytes.
    pub(crate) fn request_size(&self) -> u32 {
        self.request_size
    }

    /// Requests that may be in flight on one connection.
    pub(crate) fn requests(&self) -> usize {
        self.limits.requests
    }

    /// How fast data moves when enough is in flight, in bytes a second; 0 before anything is known.
    pub(crate) fn attainable_rate(&self) -> f64 {
        if self.quickest == Duration::MAX {
            return 0.0;
        }
        let filled = self.window as f64 / self.quickest.as_secs_f64().max(1e-6);
        self.rate.max(filled.min(PLAUSIBLE_RATE))
    }

    /// A request of `bytes` that was begun then has ended now. True when the window has changed.
    pub(crate) fn finished(&mut self, bytes: u64, begun: Instant, now: Instant) -> bool {
        let latency = now.saturating_duration_since(begun);
        self.quickest = self.quickest.min(latency);
        if begun < self.turn.since {
            return false;
        }
        self.turn.bytes += bytes;
        self.turn.requests += 1;
        self.turn.latency += latency;
        let first = self.rate == 0.0 && self.turn.bytes >= self.window;
        if !first && self.turn.bytes < 2 * self.window {
            return false;
        }
        let turn = std::mem::replace(&mut self.turn, Turn::begin(now));
        let seconds = now.saturating_duration_since(turn.since).as_secs_f64();
        let before = self.window;
        self.rate = turn.bytes as f64 / seconds.max(1e-6);
        self.decide(turn.latency / turn.requests.max(1), first);
        self.window != before
    }

    fn decide(&mut self, latency: Duration, first: bool) {
        if self.limits.fixed_window {
            return;
        }
        if let Some(trial) = &mut self.trial {
            // In the first turn both sides still take memory for what is new in flight.
            if std::mem::take(&mut trial.is_new) {
                return;
            }
            let (before, worth_it) = (trial.before, self.rate >= trial.rate * WORTH_IT);
            self.trial = None;
            if !worth_it {
                self.set_window(before);
                self.settled = Some(0);
                return;
            }
        }
        let queued = latency.as_secs_f64() > self.quickest.as_secs_f64() * QUEUED;
        if let Some(turns) = &mut self.settled {
            *turns += 1;
            if queued || *turns < PATIENCE {
                return;
            }
        }
        let ample = (self.quickest.as_secs_f64() * HIGHEST_RATE) as u64;
        if queued || self.window >= ample.min(self.limits.window) {
            self.settled = Some(0);
            return;
        }
        self.settled = None;
        self.trial = Some(Trial {
            before: self.window,
            rate: self.rate,
            is_new: true,
        });
        let doubled = 2 * self.window;
        self.set_window(match first {
            true => ample.next_power_of_two().min(LONGEST_STEP).max(doubled),
            false => doubled,
        });
    }

    fn set_window(&mut self, window: u64) {
        let window = window.min(self.limits.window);
        self.request_size = u32::try_from(self.limits.request_size_for(window)).unwrap_or(u32::MAX);
        self.window = window.max(u64::from(self.request_size));
    }
}

impl Limits {
    /// The request size that goes with a window: a multiple of the alignment.
    fn request_size_for(&self, window: u64) -> u64 {
        let longest = u64::from(self.request_size);
        if self.fixed_request_size {
            return longest;
        }
        let wanted = if window <= MANY_REQUESTS {
            u64::from(FIRST_REQUEST)
        } else {
            (window / 16).min(LARGEST_REQUEST.into())
        };
        let alignment = u64::from(self.alignment);
        let size = wanted.min(longest).min(window);
        (size - size % alignment).max(alignment)
    }
}

impl Turn {
    fn begin(now: Instant) -> Self {
        Self {
            since: now,
            bytes: 0,
            requests: 0,
            latency: Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cmp::Reverse, collections::BinaryHeap};

    use super::*;

    const MIB: u64 = 1 << 20;

    fn pacer(start: Instant) -> Pacer {
        let limits = Limits {
            window: MOST_IN_FLIGHT,
            fixed_window: false,
            alignment: 1,
            request_size: LARGEST_REQUEST,
            fixed_request_size: false,
            requests: MOST_REQUESTS,
        };
        Pacer::with_limits(limits, start)
    }

    /// Moves `total` bytes over a link of that latency and rate (bytes a second), and returns the largest
    /// window and the seconds that it took.
    fn simulate(latency: Duration, rate: f64, total: u64) -> (u64, f64) {
        let start = Instant::now();
        let mut pacer = pacer(start);
        let (mut now, mut free) = (start, start);
        let (mut begun, mut done, mut in_flight, mut largest) = (0, 0, 0, 0);
        let mut answers = BinaryHeap::new();
        while done < total {
            while begun < total && in_flight + u64::from(pacer.request_size()) <= pacer.window() {
                let bytes = u64::from(pacer.request_size());
                free = free.max(now + latency) + Duration::from_secs_f64(bytes as f64 / rate);
                answers.push(Reverse((free, now, bytes)));
                begun += bytes;
                in_flight += bytes;
            }
            let Some(Reverse((answered, since, bytes))) = answers.pop() else {
                break;
            };
            now = answered;
            in_flight -= bytes;
            done += bytes;
            pacer.finished(bytes, since, now);
            largest = largest.max(pacer.window());
        }
        (largest, now.duration_since(start).as_secs_f64())
    }

    #[test]
    fn what_fits_the_cache_is_enough_for_a_link_that_answers_at_once() {
        for (latency, rate) in [(100, 3e9), (20, 8e9), (300, 1.5e9), (1000, 1e8)] {
            let (window, _) = simulate(Duration::from_micros(latency), rate, 8 << 30);
            assert!(window <= 4 * MIB, "{latency} us: {window} bytes in flight");
        }
    }

    #[test]
    fn a_long_link_is_filled() {
        for (latency, rate) in [(10, 1e9), (10, 3e9), (50, 1e8), (2, 1e9), (20, 5e8)] {
            let (window, seconds) = simulate(Duration::from_millis(latency), rate, 4 << 30);
            let best = (4_u64 << 30) as f64 / rate;
            assert!(
                seconds < 1.15 * best,
                "{latency} ms: {seconds} s, {best} at best"
            );
            assert!(window <= MOST_IN_FLIGHT);
        }
    }

    #[test]
    fn requests_grow_with_the_window() {
        let mut pacer = pacer(Instant::now());
        for (window, request) in [(2, 256), (4, 256), (8, 512), (16, 1024), (64, 4096)] {
            pacer.set_window(window * MIB);
            assert_eq!(pacer.request_size(), request << 10);
        }
    }
}
