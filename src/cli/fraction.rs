//! The progress of a copy as qemu-img shows it: `(12.34/100%)`, on standard output or for who sends SIGUSR1.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::output::{print, tell};

/// To whom it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FractionTo {
    /// To everybody, on standard output, drawn over itself.
    All,
    /// To who asks for it with SIGUSR1, on standard error.
    WhoAsks,
}

/// Hundredths of a percent.
const WHOLE: u32 = 10_000;

/// How much more has to be done before it is shown again.
const STEP: u32 = 100;

/// The progress of one copy.
#[derive(Debug)]
pub(crate) struct Fraction {
    to: FractionTo,
    size: Option<u64>,
    done: u32,
    shown: Option<u32>,
}

impl Fraction {
    pub(crate) fn new(to: FractionTo) -> Self {
        Self {
            to,
            size: None,
            done: 0,
            shown: None,
        }
    }

    /// The copy begins.
    pub(crate) fn begin(&mut self, size: Option<u64>) {
        self.size = size;
        self.reach(0);
    }

    /// So many bytes are done. All of them are not the end yet: they may have to become durable.
    pub(crate) fn progressed(&mut self, done: u64) {
        if let Some(size) = self.size.filter(|size| done < *size) {
            let share = u128::from(done) * u128::from(WHOLE) / u128::from(size);
            self.reach(u32::try_from(share).unwrap_or(WHOLE - 1));
        }
    }

    /// The copy has ended; the next message stands on a line of its own.
    pub(crate) fn end(&mut self, is_whole: bool) {
        if is_whole {
            self.reach(WHOLE);
        }
        if self.to == FractionTo::All && self.shown.is_some() {
            let _ = print("\n");
        }
    }

    /// Tells how far it is to somebody who has asked.
    pub(crate) fn answer(&self) {
        tell(&text(self.done));
    }

    fn reach(&mut self, share: u32) {
        self.done = self.done.max(share);
        let due = match self.shown {
            None => true,
            Some(shown) => self.done >= shown + STEP || self.done == WHOLE,
        };
        if self.to == FractionTo::All && due && self.shown != Some(WHOLE) {
            self.shown = Some(self.done);
            // Whoever wanted to know and has gone does not keep the copy from its end.
            let _ = print(&format!("{}\r", text(self.done)));
        }
    }
}

/// The requests to tell how far it is.
pub(crate) fn questions() -> io::Result<Signal> {
    signal(SignalKind::user_defined1())
}

fn text(share: u32) -> String {
    format!("    ({}.{:02}/100%)", share / 100, share % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_shown_with_two_digits() {
        assert_eq!(text(0), "    (0.00/100%)");
        assert_eq!(text(1234), "    (12.34/100%)");
        assert_eq!(text(WHOLE), "    (100.00/100%)");
    }

    #[test]
    fn all_bytes_are_not_the_end_yet() {
        let mut fraction = Fraction::new(FractionTo::WhoAsks);
        fraction.begin(Some(1000));
        fraction.progressed(5);
        assert_eq!(fraction.done, 50);
        fraction.progressed(999);
        fraction.progressed(1000);
        assert_eq!(fraction.done, 9990);
        fraction.end(true);
        assert_eq!(fraction.done, WHOLE);
        let mut unknown = Fraction::new(FractionTo::WhoAsks);
        unknown.begin(None);
        unknown.progressed(1 << 40);
        assert_eq!(unknown.done, 0);
    }
}
