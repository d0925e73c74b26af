//! A limit to how many warnings are told: a server that comes and goes for hours makes thousands.

use std::time::{Duration, Instant};

/// How many are told at once.
const BURST: u32 = 40;

/// How much time earns one more.
const PAUSE: Duration = Duration::from_secs(5);

/// Decides which warnings are told, and counts the others.
pub(super) struct Restraint {
    left: u32,
    earned: Instant,
    held_back: u64,
}

impl Restraint {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            earned: now,
            held_back: 0,
        }
    }

    /// Whether one more may be told now, and then how many were held back before it.
    pub(super) fn admit(&mut self, now: Instant) -> Option<u64> {
        while self.left < BURST && now.duration_since(self.earned) >= PAUSE {
            self.left += 1;
            self.earned += PAUSE;
        }
        if self.left == 0 {
            self.held_back += 1;
            return None;
        }
        if self.left == BURST {
            self.earned = now;
        }
        self.left -= 1;
        Some(self.take_held_back())
    }

    /// How many were held back since this was last told.
    pub(super) fn take_held_back(&mut self) -> u64 {
        std::mem::take(&mut self.held_back)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_at_once_are_held_back_and_counted() {
        let begun = Instant::now();
        let mut restraint = Restraint::new(begun);
        for _ in 0..BURST {
            assert_eq!(restraint.admit(begun), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(restraint.admit(begun + PAUSE / 2), None);
        }
        assert_eq!(restraint.admit(begun + PAUSE), Some(7));
        assert_eq!(restraint.admit(begun + PAUSE), None);
        assert_eq!(restraint.take_held_back(), 1);
        assert_eq!(restraint.take_held_back(), 0);
    }

    #[test]
    fn a_few_now_and_then_are_all_told() {
        let mut now = Instant::now();
        let mut restraint = Restraint::new(now);
        for _ in 0..1000 {
            now += PAUSE;
            assert_eq!(restraint.admit(now), Some(0));
        }
        now += PAUSE;
        for _ in 0..BURST {
            assert_eq!(restraint.admit(now), Some(0), "nothing was used up");
        }
        assert_eq!(restraint.admit(now), None);
        now += PAUSE * 10_000;
        for number in 0..u64::from(BURST) {
            assert_eq!(restraint.admit(now), Some(u64::from(number == 0)));
        }
        assert_eq!(restraint.admit(now), None);
    }
}
