//! The progress of a copy in hundredths, as nbdcopy shows it: a bar of stars, or lines `N/100` for a program.

use std::{
    fs::File,
    io::{self, Write},
    sync::Arc,
};

/// Where hundredths are shown, and how.
#[derive(Clone, Debug)]
pub(crate) enum PercentTo {
    /// A bar on standard error, drawn over itself.
    Bar,
    /// A line for each to a descriptor that the caller gave us.
    Lines(Arc<File>),
}

impl PartialEq for PercentTo {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Bar, Self::Bar) => true,
            (Self::Lines(one), Self::Lines(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

impl Eq for PercentTo {}

/// The stars of a whole bar.
const STARS: u8 = 40;

/// What turns while the bar grows, and what stands there in the end.
const SPINNER: [char; 4] = ['▖', '▘', '▝', '▗'];
const WHOLE: char = '█';

/// The hundredths of one copy. Each is shown once, in order; the last one only when the copy is whole.
#[derive(Debug)]
pub(crate) struct Percent {
    to: PercentTo,
    size: Option<u64>,
    /// The last one that was shown.
    shown: Option<u8>,
    turns: usize,
}

impl Percent {
    pub(crate) fn new(to: PercentTo) -> Self {
        Self {
            to,
            size: None,
            shown: None,
            turns: 0,
        }
    }

    /// The copy begins.
    pub(crate) fn begin(&mut self, size: Option<u64>) {
        self.size = size;
        self.show(0);
    }

    /// So many bytes are done. All of them are not the end yet: they may have to become durable.
    pub(crate) fn progressed(&mut self, done: u64) {
        if let Some(size) = self.size.filter(|size| done < *size) {
            let hundredths = u128::from(done) * 100 / u128::from(size);
            self.show(u8::try_from(hundredths).unwrap_or(99));
        }
    }

    /// The copy is whole.
    pub(crate) fn whole(&mut self) {
        self.show(100);
    }

    /// Something else is about to be said: it begins on a line of its own.
    pub(crate) fn interrupt(&mut self) {
        let drawn = self.shown.is_some_and(|shown| shown < 100);
        if matches!(self.to, PercentTo::Bar) && drawn {
            let _ = io::stderr().write_all(b"\n");
        }
    }

    fn show(&mut self, hundredths: u8) {
        if self.shown.is_some_and(|shown| shown >= hundredths) {
            return;
        }
        self.shown = Some(hundredths);
        // Whoever wanted to know and has gone does not keep the copy from its end.
        let _ = match &self.to {
            PercentTo::Bar => io::stderr().write_all(bar(hundredths, self.turns).as_bytes()),
            PercentTo::Lines(file) => file
                .as_ref()
                .write_all(format!("{hundredths}/100\n").as_bytes()),
        };
        self.turns += 1;
    }
}

fn bar(hundredths: u8, turns: usize) -> String {
    let stars = (hundredths * 2 / 5).min(STARS);
    let (spinner, end) = match hundredths {
        100 => (WHOLE, '\n'),
        _ => (SPINNER[turns % SPINNER.len()], '\r'),
    };
    let stars = "*".repeat(stars.into());
    let width = usize::from(STARS);
    format!("{spinner} {hundredths:>3}% [{stars:-<width$}]{end}")
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    #[test]
    fn each_hundredth_is_told_once_and_the_last_one_at_the_end() {
        let file = Arc::new(tempfile::tempfile().expect("a file"));
        let mut percent = Percent::new(PercentTo::Lines(Arc::clone(&file)));
        percent.begin(Some(1000));
        for done in [5, 10, 11, 200, 205, 1000] {
            percent.progressed(done);
        }
        percent.whole();
        let mut text = String::new();
        let mut file = file.as_ref();
        file.rewind().expect("a file");
        file.read_to_string(&mut text).expect("text");
        assert_eq!(text, "0/100\n1/100\n20/100\n100/100\n");
    }

    #[test]
    fn what_has_no_size_has_a_beginning_and_an_end() {
        let mut percent = Percent::new(PercentTo::Lines(Arc::new(
            File::open("/dev/null").expect("there"),
        )));
        percent.begin(None);
        percent.progressed(1 << 40);
        assert_eq!(percent.shown, Some(0));
        percent.begin(Some(0));
        percent.progressed(0);
        percent.whole();
        assert_eq!(percent.shown, Some(100));
    }

    #[test]
    fn the_bar_has_forty_stars_in_the_end() {
        assert_eq!(bar(0, 0), format!("▖   0% [{}]\r", "-".repeat(40)));
        assert_eq!(
            bar(50, 1),
            format!("▘  50% [{}{}]\r", "*".repeat(20), "-".repeat(20))
        );
        assert_eq!(bar(100, 7), format!("█ 100% [{}]\n", "*".repeat(40)));
    }
}
