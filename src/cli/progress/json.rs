//! The progress of a copy for programs: a JSON object a line, one a second, one for each change of phase,
//! and one that says how it ended.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::{
    cli::{
        failure::{Details, Failure},
        report::rate,
    },
    copy::Progress,
};

use super::End;

/// The pause between two lines.
const PAUSE: Duration = Duration::from_secs(1);

/// How many of the last lines the rate is taken over.
const WINDOW: usize = 10;

/// What a copy is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Phase {
    /// Opening both sides, and looking whether they fit.
    Preparing,
    Copying,
    /// What was written is made durable.
    Flushing,
    /// It is read back: `bytes` are those that were.
    Verifying,
    Done,
    Failed,
    /// It was asked to end, and has.
    Interrupted,
}

/// One line. Sizes are bytes, times are seconds.
#[derive(Debug, Serialize)]
struct Line<'a> {
    phase: Phase,
    bytes: u64,
    /// `null` for a stream.
    total: Option<u64>,
    data: u64,
    zero: u64,
    /// Of the last seconds; in the last line, of the whole copy.
    rate: u64,
    /// `null` where nobody can tell.
    eta: Option<u64>,
    elapsed: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Details<'a>>,
}

/// Says when a line is due, and what is in it.
#[derive(Debug)]
pub(super) struct Json {
    phase: Phase,
    total: Option<u64>,
    progress: Progress,
    /// The bytes that were done before.
    resumed: u64,
    begun: Instant,
    last: Instant,
    /// When lines were written, and how many bytes were done: the latest at the back.
    past: VecDeque<(Instant, u64)>,
}

impl Json {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            phase: Phase::Preparing,
            total: None,
            progress: Progress::default(),
            resumed: 0,
            begun: now,
            last: now,
            past: VecDeque::from([(now, 0)]),
        }
    }

    /// The copy begins.
    pub(super) fn planned(&mut self, total: Option<u64>, now: Instant) -> String {
        self.total = total;
        self.enter(Phase::Copying, now)
    }

    /// So much of the copy was done before: it is no part of the rate.
    pub(super) fn resumed(&mut self, bytes: u64) {
        self.resumed = bytes;
        self.past = VecDeque::from([(self.begun, bytes)]);
    }

    /// Bytes are done. There is a line when one is due.
    pub(super) fn progressed(&mut self, progress: Progress, now: Instant) -> Option<String> {
        self.progress = progress;
        self.tick(now)
    }

    /// Time goes by. There is a line when one is due.
    pub(super) fn tick(&mut self, now: Instant) -> Option<String> {
        let is_due = now.duration_since(self.last) >= PAUSE;
        is_due.then(|| self.line(None, now))
    }

    /// All is written.
    pub(super) fn flushing(&mut self, now: Instant) -> String {
        self.enter(Phase::Flushing, now)
    }

    /// So many bytes were read back, from the beginning. There is a line when one is due.
    pub(super) fn verifying(&mut self, done: u64, now: Instant) -> Option<String> {
        self.progress.done = done;
        if done == 0 {
            self.past = VecDeque::from([(now, 0)]);
            return Some(self.enter(Phase::Verifying, now));
        }
        self.tick(now)
    }

    /// The copy has ended.
    pub(super) fn ended(&mut self, end: End, failure: Option<&Failure>, now: Instant) -> String {
        self.phase = match end {
            End::Whole => Phase::Done,
            End::Failed if failure.is_some_and(Failure::is_interrupt) => Phase::Interrupted,
            End::Failed => Phase::Failed,
        };
        self.past = VecDeque::from([(self.begun, self.resumed)]);
        self.line(failure.map(Failure::details), now)
    }

    fn enter(&mut self, phase: Phase, now: Instant) -> String {
        self.phase = phase;
        self.line(None, now)
    }

    fn line(&mut self, error: Option<Details<'_>>, now: Instant) -> String {
        let bytes = self.progress.done;
        // A line at the very beginning says nothing of the rate.
        let (then, before) = self.past.front().copied().unwrap_or((now, bytes));
        let rate = match now.duration_since(then) {
            Duration::ZERO => 0,
            elapsed => rate(bytes.saturating_sub(before), elapsed),
        };
        self.last = now;
        self.past.push_back((now, bytes.max(self.resumed)));
        if self.past.len() > WINDOW {
            self.past.pop_front();
        }
        let left = self.total.map(|total| total.saturating_sub(bytes));
        let eta = match (self.phase, left) {
            (Phase::Copying | Phase::Verifying, Some(0)) => Some(0),
            (Phase::Copying | Phase::Verifying, Some(left)) if rate > 0 => {
                Some(left.div_ceil(rate))
            }
            _ => None,
        };
        let elapsed = now.duration_since(self.begun);
        let line = Line {
            phase: self.phase,
            bytes,
            total: self.total,
            data: self.progress.data,
            zero: self.progress.zero,
            rate,
            eta,
            elapsed: elapsed.as_millis() as f64 / 1000.0,
            error,
        };
        serde_json::to_string(&line).expect("numbers and text only")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::block::{Error, ErrorKind, Operation};

    const MIB: u64 = 1 << 20;

    fn at(begun: Instant, milliseconds: u64) -> Instant {
        begun + Duration::from_millis(milliseconds)
    }

    fn progress(data: u64, zero: u64) -> Progress {
        let mut progress = Progress::default();
        (progress.data, progress.zero, progress.done) = (data, zero, data + zero);
        progress
    }

    fn value(line: &str) -> Value {
        assert!(!line.contains('\n'));
        serde_json::from_str(line).expect("JSON")
    }

    #[test]
    fn each_line_has_every_number() {
        let begun = Instant::now();
        let mut json = Json::new(begun);
        let line = json.planned(Some(40 * MIB), at(begun, 10));
        let expected = json!({
            "phase": "copying", "bytes": 0, "total": 40 * MIB, "data": 0, "zero": 0,
            "rate": 0, "eta": null, "elapsed": 0.01,
        });
        assert_eq!(value(&line), expected);
        assert_eq!(json.progressed(progress(MIB, 0), at(begun, 900)), None);
        let line = json.progressed(progress(8 * MIB, 2 * MIB), at(begun, 2000));
        let expected = json!({
            "phase": "copying", "bytes": 10 * MIB, "total": 40 * MIB, "data": 8 * MIB,
            "zero": 2 * MIB, "rate": 5 * MIB, "eta": 6, "elapsed": 2.0,
        });
        assert_eq!(value(&line.expect("a second has passed")), expected);
        let line = json.ended(End::Whole, None, at(begun, 4000));
        assert_eq!(value(&line)["phase"], "done");
        assert_eq!(value(&line)["rate"], 10 * MIB / 4);
    }

    #[test]
    fn a_copy_that_stands_still_goes_on_talking_and_has_no_end() {
        let begun = Instant::now();
        let mut json = Json::new(begun);
        json.planned(Some(MIB), begun);
        let mut line = None;
        for second in 1..30 {
            line = json.tick(at(begun, second * 1000));
            assert!(line.is_some());
            assert_eq!(json.tick(at(begun, second * 1000 + 999)), None);
        }
        let value = value(&line.expect("a line"));
        assert_eq!((&value["rate"], &value["eta"]), (&json!(0), &Value::Null));
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let begun = Instant::now();
        let mut json = Json::new(begun);
        json.planned(None, begun);
        let mut done = 0;
        let mut last = None;
        for second in 1..100 {
            // It gets ten times as fast in the middle.
            done += if second < 50 { MIB } else { 10 * MIB };
            last = json.progressed(progress(done, 0), at(begun, second * 1000));
        }
        let value = value(&last.expect("a line"));
        assert_eq!(value["rate"], 10 * MIB);
        assert_eq!(value["total"], Value::Null);
    }

    #[test]
    fn what_was_done_before_is_no_part_of_the_rate() {
        let begun = Instant::now();
        let mut json = Json::new(begun);
        json.resumed(100 * MIB);
        json.planned(Some(110 * MIB), begun);
        assert_eq!(json.progressed(progress(100 * MIB, 0), begun), None);
        let line = json.progressed(progress(102 * MIB, 0), at(begun, 2000));
        let line = value(&line.expect("a line"));
        assert_eq!((&line["rate"], &line["eta"]), (&json!(MIB), &json!(8)));
        json.progressed(progress(110 * MIB, 0), at(begun, 4000));
        let line = value(&json.ended(End::Whole, None, at(begun, 5000)));
        assert_eq!(
            (&line["bytes"], &line["rate"]),
            (&json!(110 * MIB), &json!(2 * MIB))
        );
    }

    #[test]
    fn the_last_line_says_what_went_wrong() {
        let begun = Instant::now();
        let mut json = Json::new(begun);
        let error = Error::new(ErrorKind::NoSpace).during(Operation::Write);
        let failure = Failure::from(&error.at(4096, 512));
        let line = value(&json.ended(End::Failed, Some(&failure), begun));
        assert_eq!(line["phase"], "failed");
        assert_eq!(line["error"]["kind"], "no-space");
        assert_eq!(line["error"]["offset"], 4096);
        let failure = Failure::interrupted(crate::cli::signals::Interrupt::Int);
        let line = value(&json.ended(End::Failed, Some(&failure), begun));
        assert_eq!(line["phase"], "interrupted");
    }
}
