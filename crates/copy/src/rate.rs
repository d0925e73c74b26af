//! The limit on bytes a second.

use std::time::Duration;

use tokio::time::Instant;

/// How much may be moved at once after a pause, in seconds' worth.
const BURST: f64 = 0.1;

/// Keeps the rate of a copy within its limit.
#[derive(Debug)]
pub(crate) struct Rate {
    /// How many bytes more were moved than the limit allowed until `since`; less than nothing after a pause.
    debt: f64,
    since: Instant,
}

impl Rate {
    /// Nothing was moved yet.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            debt: 0.0,
            since: now,
        }
    }

    /// When the next bytes may be moved under `limit`, if not now.
    pub(crate) fn next(&mut self, limit: u64, now: Instant) -> Option<Instant> {
        let limit = limit as f64;
        let allowed = limit * (now - self.since).as_secs_f64();
        self.debt = (self.debt - allowed).max(-limit * BURST);
        self.since = now;
        if self.debt < 1.0 {
            return None;
        }
        // Timers are no finer than the least of these, and a limit of a byte a second still ends some day.
        let wait = (self.debt / limit).clamp(1e-3, 1e9);
        Some(now + Duration::from_secs_f64(wait))
    }

    /// So many bytes are being moved.
    pub(crate) fn moved(&mut self, bytes: u64) {
        self.debt += bytes as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_much_time_passes_as_the_bytes_take() {
        let begin = Instant::now();
        let mut rate = Rate::new(begin);
        let mut now = begin;
        for _ in 0..100 {
            while let Some(next) = rate.next(1000, now) {
                assert!(next > now);
                now = next;
            }
            rate.moved(500);
        }
        let seconds = (now - begin).as_secs_f64();
        assert!((49.0..50.0).contains(&seconds), "{seconds}");
    }

    #[test]
    fn a_pause_does_not_save_up_more_than_a_moment() {
        let begin = Instant::now();
        let mut rate = Rate::new(begin);
        let later = begin + Duration::from_secs(3600);
        assert_eq!(rate.next(1000, later), None);
        rate.moved(1100);
        let next = rate.next(1000, later).expect("too much");
        assert!((next - later).as_secs_f64() > 0.9);
    }

    #[test]
    fn another_limit_holds_for_what_is_still_owed() {
        let begin = Instant::now();
        let mut rate = Rate::new(begin);
        rate.moved(1 << 30);
        let slow = rate.next(1, begin).expect("too much") - begin;
        let fast = rate.next(1 << 30, begin).expect("too much") - begin;
        assert!(slow > Duration::from_secs(1 << 29) && fast <= Duration::from_secs(1));
    }
}
