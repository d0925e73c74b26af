//! What is kept of a copy while it runs, for its page. It takes no more memory for a longer copy or a larger image.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    copy::{Event, How, Interest, Observer, Part, Progress, Side, Warning},
    filter::Counters,
};

use super::{
    super::{
        drawing::{
            cells::{Cells, Kind},
            disk::CELLS,
        },
        progress::View,
    },
    timeline::Timeline,
};

/// The cells that the image is kept in: half of what can be drawn is fine enough for a page.
const PARTS: usize = CELLS / 2;

/// The most marks that are kept. A connection can be lost over and over.
const MOST_MARKS: usize = 200;

/// Keeps what is to be told of a copy, and passes everything on to the view.
pub(crate) struct Recorder<'a> {
    view: &'a View,
    record: Mutex<Record>,
}

/// What was kept.
#[derive(Clone)]
pub(crate) struct Record {
    begun: Instant,
    pub(crate) timeline: Timeline,
    /// The parts that are done: [`Kind::Hole`] is what the source said to be zero.
    done: Cells,
    /// What the source said of itself.
    source: Cells,
    pub(crate) size: Option<u64>,
    pub(crate) progress: Progress,
    /// The bytes that were done before.
    pub(crate) before: u64,
    /// What was read back so far, in bytes.
    verified: u64,
    pub(crate) marks: Vec<Remark>,
    /// How many warnings came beyond those.
    pub(crate) more_marks: u64,
    /// When it was planned, flushed, and when reading back began, since the beginning.
    pub(crate) planned: Option<Duration>,
    pub(crate) flushing: Option<Duration>,
    pub(crate) verifying: Option<Duration>,
    pub(crate) ended: Option<Duration>,
    /// What is known of both sides, as rows of a table.
    pub(crate) sides: Vec<(String, String)>,
    pub(crate) filters: Vec<Counters>,
}

/// A warning, and when it came.
#[derive(Clone, Debug)]
pub(crate) struct Remark {
    pub(crate) at: Duration,
    pub(crate) text: String,
}

impl<'a> Recorder<'a> {
    pub(crate) fn new(view: &'a View) -> Self {
        Self {
            view,
            record: Mutex::new(Record::new(Instant::now())),
        }
    }

    /// What is known of a side, for the table of what was copied how.
    pub(crate) fn note_side(&self, name: &str, what: String) {
        self.locked().sides.push((name.to_owned(), what));
    }

    /// What a filter has counted.
    pub(crate) fn note_filter(&self, counters: Counters) {
        self.locked().filters.push(counters);
    }

    /// The copy has ended, well or not.
    pub(crate) fn note_end(&self) {
        let mut record = self.locked();
        record.ended = Some(record.begun.elapsed());
    }

    /// What was kept so far.
    pub(crate) fn into_record(self) -> Record {
        let record = self.record.into_inner();
        record.unwrap_or_else(PoisonError::into_inner)
    }

    fn locked(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Recorder<'_> {
    fn event(&self, event: Event) {
        self.locked().take_in(&event, Instant::now());
        self.view.event(event);
    }

    fn interest(&self) -> Interest {
        Interest::Requests
    }
}

impl Record {
    fn new(begun: Instant) -> Self {
        Self {
            begun,
            timeline: Timeline::new(),
            done: Cells::new(0, 1),
            source: Cells::new(0, 1),
            size: None,
            progress: Progress::default(),
            before: 0,
            verified: 0,
            marks: Vec::new(),
            more_marks: 0,
            planned: None,
            flushing: None,
            verifying: None,
            ended: None,
            sides: Vec::new(),
            filters: Vec::new(),
        }
    }

    /// How long it took.
    pub(crate) fn elapsed(&self) -> Duration {
        self.ended.unwrap_or_else(|| self.begun.elapsed())
    }

    /// The image, whose size is known now or was before; `None` where nothing was planned.
    pub(crate) fn cells(&self, size: Option<u64>) -> Option<Cells> {
        self.planned?;
        let mut cells = self.done.clone();
        cells.end_at(size.or(self.size).unwrap_or(cells.size()));
        cells.split_zeroes(&self.source);
        cells.fill_missing();
        Some(cells)
    }

    fn take_in(&mut self, event: &Event, now: Instant) {
        let time = now.saturating_duration_since(self.begun);
        match event {
            Event::Planned { size } => self.plan(*size, now),
            Event::Part(part) => self.part(*part, time),
            Event::Progress(progress) => self.progress = *progress,
            Event::Request(request) => self.timeline.at(time).add(*request),
            Event::Extents(extents) => {
                for extent in extents.iter() {
                    self.source.add_extent(*extent);
                }
            }
            Event::Handles { side, live } => {
                let handles = &mut self.timeline.at(time).handles;
                match side {
                    Side::Source => handles[0] = Some(*live),
                    Side::Destination => handles[1] = Some(*live),
                    _ => {}
                }
            }
            Event::Flushing => self.flushing = Some(time),
            Event::Verifying { done, .. } => {
                self.verifying.get_or_insert(time);
                self.timeline.at(time).verified += done.saturating_sub(self.verified);
                self.verified = *done;
            }
            Event::Warning(warning) => self.remark(warning, time),
            _ => {}
        }
    }

    /// The clock begins here: opening the sides is no part of the copy.
    fn plan(&mut self, size: Option<u64>, now: Instant) {
        self.begun = now;
        self.planned = Some(Duration::ZERO);
        self.size = size;
        let cells = || match size {
            Some(size) => Cells::new(size, PARTS),
            None => Cells::growing(PARTS),
        };
        (self.done, self.source) = (cells(), cells());
    }

    fn part(&mut self, part: Part, time: Duration) {
        let Part { range, how, .. } = part;
        let slot = self.timeline.at(time);
        match how {
            How::Moved { zero } => {
                slot.data += range.len().saturating_sub(zero);
                slot.zero += zero;
                self.done.add_mixed(range, Kind::Data, zero, Kind::Zero);
            }
            How::KnownZero => {
                slot.known += range.len();
                self.done.add(range, Kind::Hole);
            }
            How::Before => {
                self.before += range.len();
                self.done.add(range, Kind::Before);
            }
            _ => {}
        }
    }

    fn remark(&mut self, warning: &Warning, time: Duration) {
        if self.marks.len() >= MOST_MARKS {
            self.more_marks += 1;
            return;
        }
        self.marks.push(Remark {
            at: time,
            text: warning.to_string(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        block::{ByteRange, Error, ErrorKind},
        cli::options::Show,
    };

    fn lost() -> Event {
        Event::Warning(Warning::ConnectionLost {
            error: Error::new(ErrorKind::ConnectionLost),
            left: 1,
        })
    }

    #[test]
    fn a_flood_of_warnings_is_counted_and_not_kept() {
        let view = View::new(Show::Nothing, true);
        let recorder = Recorder::new(&view);
        for _ in 0..1000 {
            recorder.event(lost());
        }
        let record = recorder.into_record();
        assert_eq!(record.marks.len(), MOST_MARKS);
        assert_eq!(record.more_marks, 1000 - MOST_MARKS as u64);
    }

    #[test]
    fn what_was_not_planned_has_no_picture_and_what_was_not_done_is_missing() {
        let view = View::new(Show::Nothing, true);
        let recorder = Recorder::new(&view);
        assert!(recorder.locked().cells(None).is_none());
        let size = 1 << 44;
        recorder.event(Event::Planned { size: Some(size) });
        let record = recorder.into_record();
        let cells = record.cells(None).expect("a picture");
        assert_eq!(cells.total().of(Kind::Missing), size);
        assert!(cells.cells().len() <= CELLS);
        assert!(cells.range_of(0).contains(ByteRange::between(0, 1)));
    }
}
