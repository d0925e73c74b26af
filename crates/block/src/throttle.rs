//! A limit on bytes a second.

use std::{fs::File, io::Read as _, path::Path, time::Duration};

use tokio::time::Instant;

use crate::parse_size;

/// How much may be moved at once after a pause, in seconds' worth, unless something else is said.
const BURST: f64 = 0.1;

/// The most that is read of a file that holds a rate, in bytes: a size is short.
const LONGEST: u64 = 100;

/// Keeps what is moved within a limit of bytes a second. The clock is tokio's, and the limit may be another one
/// each time it is asked.
///
/// It lets bytes go before they are paid for: what is longer than a second's worth goes at once, and what
/// comes next waits until the time has passed that it takes.
#[derive(Debug)]
pub struct Throttle {
    /// How many bytes more were moved than the limit allowed until `since`; less than nothing after a pause.
    debt: f64,
    since: Instant,
    /// In seconds.
    burst: f64,
}

impl Throttle {
    /// Nothing was moved yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            debt: 0.0,
            since: now,
            burst: BURST,
        }
    }

    /// The same, which lets as much go at once after a pause as the limit allows in `burst`. Default: 0.1 seconds.
    #[must_use]
    pub fn with_burst(mut self, burst: Duration) -> Self {
        self.burst = burst.as_secs_f64();
        self
    }

    /// When the next bytes may be moved under `limit`, in bytes a second, if not now.
    pub fn next(&mut self, limit: u64, now: Instant) -> Option<Instant> {
        let limit = limit.max(1) as f64;
        let allowed = limit * (now - self.since).as_secs_f64();
        self.debt = (self.debt - allowed).max(-limit * self.burst);
        self.since = now;
        if self.debt < 1.0 {
            return None;
        }
        // Timers are no finer than the least of these, and a limit of a byte a second still ends some day.
        let wait = (self.debt / limit).clamp(1e-3, 1e9);
        Some(now + Duration::from_secs_f64(wait))
    }

    /// So many bytes are being moved.
    pub fn moved(&mut self, bytes: u64) {
        self.debt += bytes as f64;
    }
}

/// The rate that a file holds as the text of a size, as [`parse_size`] reads it.
///
/// # Errors
/// Why it holds none, for people.
pub fn read_rate(path: &Path) -> Result<u64, String> {
    let failed = |error: std::io::Error| error.to_string();
    // Anything else could be waited for without end.
    if !path.metadata().map_err(failed)?.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(LONGEST).read_to_string(&mut text))
        .map_err(failed)?;
    parse_size(text.trim()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_much_time_passes_as_the_bytes_take() {
        let begin = Instant::now();
        let mut rate = Throttle::new(begin);
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
        let mut rate = Throttle::new(begin);
        let later = begin + Duration::from_secs(3600);
        assert_eq!(rate.next(1000, later), None);
        rate.moved(1100);
        let next = rate.next(1000, later).expect("too much");
        assert!((next - later).as_secs_f64() > 0.9);
    }

    #[test]
    fn another_limit_holds_for_what_is_still_owed() {
        let begin = Instant::now();
        let mut rate = Throttle::new(begin);
        rate.moved(1 << 30);
        let slow = rate.next(1, begin).expect("too much") - begin;
        let fast = rate.next(1 << 30, begin).expect("too much") - begin;
        assert!(slow > Duration::from_secs(1 << 29) && fast <= Duration::from_secs(1));
    }
}
