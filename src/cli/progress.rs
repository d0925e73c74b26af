//! What a copy shows while it runs: a bar on a terminal, a line a second in a log, JSON for programs.

mod json;
mod restraint;

use std::{
    convert::Infallible,
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::signal::unix::Signal;

use crate::{
    block::HumanSize,
    copy::{Event, Observer, Progress},
};

use super::{
    failure::Failure,
    fraction::{Fraction, questions},
    options::Show,
    output::{program, tell},
    percent::Percent,
    report::{HumanTime, rate},
};

use json::Json;
use restraint::Restraint;

/// How often the bar is drawn at most, per second.
const DRAWS: u8 = 10;

/// The pause between two lines.
const LINE_PAUSE: Duration = Duration::from_secs(1);

const BAR: &str = "{percent:>3}% [{wide_bar}] {binary_bytes} of {binary_total_bytes}, \
                   {binary_bytes_per_sec}, {eta} left";
const COUNTER: &str = "{binary_bytes}, {binary_bytes_per_sec}";
const VERIFYING: &str = "{percent:>3}% [{wide_bar}] {binary_bytes} of {binary_total_bytes} verified, \
                         {binary_bytes_per_sec}, {eta} left";
const FLUSHING: &str = "{binary_bytes} written, waiting until it is durable";

/// Draws the events of one copy on standard error.
pub(crate) struct View {
    shape: Shape,
    quiet: bool,
    /// What was not as it should be, for the report.
    warnings: Mutex<Vec<String>>,
    restraint: Mutex<Restraint>,
}

/// The most warnings that are kept. A connection can be lost over and over.
const MOST_WARNINGS: usize = 100;

/// Whoever does a copy through the library, and wants to know how it gets on.
#[derive(Clone)]
pub(crate) struct Listener(Arc<dyn Fn(Event) + Send + Sync>);

impl Listener {
    pub(crate) fn new(tell: Arc<dyn Fn(Event) + Send + Sync>) -> Self {
        Self(tell)
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

impl PartialEq for Listener {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Listener {}

/// How a copy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Whole,
    Failed,
}

enum Shape {
    Nothing,
    Bar(ProgressBar),
    Lines(Mutex<Lines>),
    Json(Mutex<Json>),
    Percent(Mutex<Percent>),
    Fraction(Mutex<Fraction>),
    To(Listener),
}

impl View {
    pub(crate) fn new(show: Show, quiet: bool) -> Self {
        let shape = match show {
            Show::Nothing => Shape::Nothing,
            Show::Bar => Shape::Bar(ProgressBar::hidden()),
            Show::Lines => Shape::Lines(Mutex::new(Lines::new(Instant::now()))),
            Show::Json => Shape::Json(Mutex::new(Json::new(Instant::now()))),
            Show::Percent(to) => Shape::Percent(Mutex::new(Percent::new(to))),
            Show::Fraction(to) => Shape::Fraction(Mutex::new(Fraction::new(to))),
            Show::To(listener) => Shape::To(listener),
        };
        Self {
            shape,
            quiet,
            warnings: Mutex::default(),
            restraint: Mutex::new(Restraint::new(Instant::now())),
        }
    }

    /// The copy has ended; the next message stands where the bar was, or below it.
    pub(crate) fn finish(&self, end: End) {
        self.end(end, None);
    }

    /// The same with what is known of a failure.
    pub(crate) fn finish_with<T>(&self, result: &Result<T, Failure>) {
        match result {
            Ok(_) => self.finish(End::Whole),
            Err(failure) => self.end(End::Failed, Some(failure)),
        }
    }

    fn end(&self, end: End, failure: Option<&Failure>) {
        let held_back = locked(&self.restraint).take_held_back();
        self.say_held_back(held_back);
        match (&self.shape, end) {
            (Shape::Json(json), end) => tell(&locked(json).ended(end, failure, Instant::now())),
            (Shape::Bar(bar), _) => bar.finish_and_clear(),
            (Shape::Percent(percent), End::Whole) => locked(percent).whole(),
            (Shape::Percent(percent), End::Failed) => locked(percent).interrupt(),
            (Shape::Fraction(fraction), end) => locked(fraction).end(end == End::Whole),
            _ => {}
        }
    }

    /// Takes over the signal that asks how far it is, where it is answered. Needs a runtime with I/O.
    pub(crate) fn listen(&self) -> io::Result<Option<Signal>> {
        match &self.shape {
            Shape::Fraction(_) => questions().map(Some),
            _ => Ok(None),
        }
    }

    /// Shows that time goes by where nothing else happens, and answers `questions`, for as long as it is polled.
    pub(crate) async fn keep_telling(&self, questions: Option<Signal>) -> Infallible {
        if let (Shape::Fraction(fraction), Some(mut questions)) = (&self.shape, questions) {
            while questions.recv().await.is_some() {
                locked(fraction).answer();
            }
        }
        let mut ticks = tokio::time::interval(LINE_PAUSE);
        loop {
            ticks.tick().await;
            if let Shape::Json(json) = &self.shape
                && let Some(line) = locked(json).tick(Instant::now())
            {
                tell(&line);
            }
        }
    }

    /// What was not as it should be so far.
    pub(crate) fn warnings(&self) -> Vec<String> {
        locked(&self.warnings).clone()
    }

    /// Tells what may go wrong, unless nobody wants to hear it.
    pub(crate) fn warn(&self, warning: &str) {
        let mut warnings = locked(&self.warnings);
        if warnings.len() < MOST_WARNINGS {
            warnings.push(warning.to_owned());
        }
        drop(warnings);
        if self.quiet {
            return;
        }
        let admitted = locked(&self.restraint).admit(Instant::now());
        if let Some(held_back) = admitted {
            self.say_held_back(held_back);
            self.say(&format!("{}: warning: {warning}", program()));
        }
    }

    /// Tells how many warnings were not told.
    fn say_held_back(&self, count: u64) {
        let warnings = match count {
            0 => return,
            1 => "warning was",
            _ => "warnings were",
        };
        self.say(&format!(
            "{}: warning: {count} more {warnings} left out",
            program()
        ));
    }

    /// So many bytes were done by an earlier copy, which this one goes on with.
    pub(crate) fn resumed(&self, bytes: u64) {
        match &self.shape {
            Shape::Lines(lines) => locked(lines).resumed = bytes,
            Shape::Json(json) => locked(json).resumed(bytes),
            _ => {}
        }
    }

    fn planned(&self, size: Option<u64>) {
        match &self.shape {
            Shape::Nothing | Shape::To(_) => {}
            Shape::Bar(bar) => {
                bar.set_style(style(size.map_or(COUNTER, |_| BAR)));
                if let Some(size) = size {
                    bar.set_length(size);
                }
                bar.reset();
                bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(DRAWS));
            }
            Shape::Lines(lines) => locked(lines).size = size,
            Shape::Json(json) => tell(&locked(json).planned(size, Instant::now())),
            Shape::Percent(percent) => locked(percent).begin(size),
            Shape::Fraction(fraction) => locked(fraction).begin(size),
        }
    }

    fn progressed(&self, progress: Progress) {
        match &self.shape {
            Shape::Nothing | Shape::To(_) => {}
            Shape::Bar(bar) => bar.set_position(progress.done),
            Shape::Lines(lines) => {
                if let Some(line) = locked(lines).next(progress.done, Instant::now()) {
                    tell(&line);
                }
            }
            Shape::Json(json) => {
                if let Some(line) = locked(json).progressed(progress, Instant::now()) {
                    tell(&line);
                }
            }
            Shape::Percent(percent) => locked(percent).progressed(progress.done),
            Shape::Fraction(fraction) => locked(fraction).progressed(progress.done),
        }
    }

    /// A flush can take long, and its end cannot be foreseen.
    fn flushing(&self) {
        match &self.shape {
            Shape::Bar(bar) => {
                bar.set_style(style(FLUSHING));
                bar.force_draw();
            }
            Shape::Json(json) => tell(&locked(json).flushing(Instant::now())),
            _ => {}
        }
    }

    /// It is read back, from the beginning.
    fn verifying(&self, done: u64, size: u64) {
        match &self.shape {
            Shape::Bar(bar) if done == 0 => {
                bar.set_style(style(VERIFYING));
                bar.set_length(size);
                bar.reset();
            }
            Shape::Bar(bar) => bar.set_position(done),
            Shape::Lines(lines) => {
                let now = Instant::now();
                let mut lines = locked(lines);
                if done == 0 {
                    *lines = Lines::new(now);
                    lines.size = Some(size);
                }
                if let Some(line) = lines.next(done, now) {
                    tell(&format!("verifying: {line}"));
                }
            }
            Shape::Json(json) => {
                if let Some(line) = locked(json).verifying(done, Instant::now()) {
                    tell(&line);
                }
            }
            Shape::Nothing | Shape::Percent(_) | Shape::Fraction(_) | Shape::To(_) => {}
        }
    }

    /// Tells something without tearing the bar.
    fn say(&self, line: &str) {
        match &self.shape {
            Shape::Bar(bar) => bar.suspend(|| tell(line)),
            Shape::Percent(percent) => {
                locked(percent).interrupt();
                tell(line);
            }
            _ => tell(line),
        }
    }
}

impl Observer for View {
    fn event(&self, event: Event) {
        if let Shape::To(Listener(tell)) = &self.shape {
            tell(event.clone());
        }
        match event {
            Event::Planned { size } => self.planned(size),
            Event::Progress(progress) => self.progressed(progress),
            Event::Flushing => self.flushing(),
            Event::Verifying { done, size } => self.verifying(done, size),
            Event::Warning(warning) => self.warn(&warning.to_string()),
            _ => {}
        }
    }
}

fn locked<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

/// Decides when a line is due and what it says.
struct Lines {
    size: Option<u64>,
    /// The bytes that were done before: no part of the rate.
    resumed: u64,
    begun: Instant,
    last: Instant,
    whole: bool,
}

impl Lines {
    fn new(now: Instant) -> Self {
        Self {
            size: None,
            resumed: 0,
            begun: now,
            last: now,
            whole: false,
        }
    }

    /// The line to print now that `done` bytes are done, if one is due: one a second, and one for the end.
    fn next(&mut self, done: u64, now: Instant) -> Option<String> {
        let is_whole = self.size == Some(done) && !self.whole;
        if now.duration_since(self.last) < LINE_PAUSE && !is_whole {
            return None;
        }
        self.last = now;
        self.whole |= is_whole;
        let elapsed = now.duration_since(self.begun);
        let rate = rate(done.saturating_sub(self.resumed), elapsed);
        let speed = HumanSize(rate);
        let Some(size) = self.size else {
            return Some(format!("{}, {speed}/s", HumanSize(done)));
        };
        let percent = u128::from(done) * 100 / u128::from(size.max(1));
        let left = size.saturating_sub(done) / rate.max(1);
        Some(format!(
            "{percent:>3}% {} of {}, {speed}/s, {} left",
            HumanSize(done),
            HumanSize(size),
            time_left(left),
        ))
    }
}

fn time_left(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        _ => HumanTime(Duration::from_secs(seconds)).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_each_second_and_at_the_end() {
        let begun = Instant::now();
        let mut lines = Lines::new(begun);
        lines.size = Some(4 << 30);
        let mut at =
            |milliseconds, done| lines.next(done, begun + Duration::from_millis(milliseconds));
        assert_eq!(at(500, 1 << 20), None);
        assert_eq!(
            at(1000, 1 << 30).as_deref(),
            Some(" 25% 1.0 GiB of 4.0 GiB, 1.0 GiB/s, 3 s left")
        );
        assert_eq!(at(1500, 2 << 30), None);
        assert_eq!(
            at(1600, 4 << 30).as_deref(),
            Some("100% 4.0 GiB of 4.0 GiB, 2.5 GiB/s, 0 s left")
        );
        assert_eq!(at(1700, 4 << 30), None);
    }

    #[test]
    fn what_has_no_end_has_no_percent() {
        let begun = Instant::now();
        let mut lines = Lines::new(begun);
        assert_eq!(
            lines
                .next(1 << 20, begun + Duration::from_secs(2))
                .as_deref(),
            Some("1.0 MiB, 512.0 KiB/s")
        );
    }

    #[test]
    fn the_templates_are_understood() {
        for template in [BAR, COUNTER, VERIFYING, FLUSHING] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
    }

    #[test]
    fn a_hidden_view_takes_every_event() {
        let view = View::new(Show::Nothing, true);
        view.event(Event::Planned { size: Some(1) });
        view.event(Event::Progress(Progress::default()));
        view.event(Event::Flushing);
        view.event(Event::Verifying { done: 0, size: 1 });
        view.finish(End::Whole);
    }
}
