//! Whether two images are the same, and where they begin to differ.
//!
//! Both are walked side by side, in order. Where both are known to be zero nothing is read; where one is,
//! the other is read and looked through; else both are read. Several requests are in flight and may end in
//! any order, but they begin in the image's order: so when one finds a difference, only those that began
//! before it can find an earlier one.

mod image;
mod reading;

use std::{
    collections::BTreeSet,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use blockferry_block::{
    BlockDevice, BlockLimits, BoxFuture, BufferPool, ByteRange, Error, ErrorKind,
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::Instant;

use crate::{
    Control, CopyError, CopyOptions, Event, Observer, Progress, Side, Warning,
    extents::{Stretch, Told},
    lanes::{Joining, LaneId},
    transfer::{are_several_processors, is_local},
};

use image::Image;
use reading::{Parts, Reading};

/// The longest read in bytes: short enough for what was read of both images to be in the cache still when
/// it is compared.
const REQUEST: u32 = 256 << 10;

/// How many requests a part has that is compared on a thread of its own.
const REQUESTS_BESIDE: u64 = 4;

/// How many bytes of both images may be in flight.
const WINDOW: u64 = 8 << 20;

/// How a comparison is done.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CompareOptions {
    /// Images of different sizes differ. Otherwise the longer one may go on with zeroes. Default false.
    pub strict: bool,
    /// How many handles (NBD connections) a side that can have several gets; 0 counts as 1. Default 4.
    pub connections: usize,
    /// Ask both sides for their extents, so that holes need not be read. Default true.
    pub extents: bool,
    /// How many attempts in a row to open a lost connection again may fail before the comparison does; see
    /// [`CopyOptions::retries`]. Default 8.
    pub retries: u32,
}

impl Default for CompareOptions {
    fn default() -> Self {
        Self {
            strict: false,
            connections: 4,
            extents: true,
            retries: CopyOptions::default().retries,
        }
    }
}

/// What a comparison found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Comparison {
    /// The images are the same; where one is longer, it has only zeroes behind the other's end.
    Identical,
    /// The first byte that differs, or the first behind the shorter image's end that is not zero, is at
    /// this offset.
    Differs {
        /// The offset in bytes.
        offset: u64,
    },
    /// The sizes differ, in a strict comparison: nothing was read.
    SizesDiffer,
}

/// Compares two images.
///
/// Progress is told as a copy's: `data` are the bytes of the image for which something was read.
///
/// # Errors
/// The first failure to read, with [`Side::Source`] for `a` and [`Side::Destination`] for `b`, unless a
/// difference was found before it in the image; [`Side::Plan`] where no request suits both;
/// [`Side::Cancelled`] after [`Control::cancel`].
pub async fn compare(
    a: Arc<dyn BlockDevice>,
    b: Arc<dyn BlockDevice>,
    options: &CompareOptions,
    control: &Control,
    observer: &dyn Observer,
) -> Result<Comparison, CopyError> {
    let sizes = [a.info().size, b.info().size];
    if options.strict && sizes[0] != sizes[1] {
        return Ok(Comparison::SizesDiffer);
    }
    let end = sizes[0].max(sizes[1]);
    let limits = [a.info().limits, b.info().limits];
    let cut = Cut::new(limits).map_err(|error| CopyError::new(Side::Plan, error))?;
    observer.event(Event::Planned { size: Some(end) });
    let mut running = Running {
        observer,
        sides: [
            Image::new(&a, cut.alignment, options)?,
            Image::new(&b, cut.alignment, options)?,
        ],
        pool: BufferPool::new(cut.request as usize, (WINDOW / cut.request) as usize),
        several: are_several_processors(),
        cut,
        end,
        position: 0,
        reading: FuturesUnordered::new(),
        begun: BTreeSet::new(),
        again: Vec::new(),
        in_flight: 0,
        found: None,
        progress: Progress::default(),
        since: Instant::now(),
    };
    let found = running.run(control).await;
    let progress = running.progress;
    match found {
        None => Ok(Comparison::Identical),
        Some(Found::Difference(offset)) => Ok(Comparison::Differs { offset }),
        Some(Found::Failure(_, failure)) => Err(failure.after(progress)),
        Some(Found::Cancelled) => Err(CopyError::cancelled().after(progress)),
    }
}

/// How the images are cut into requests. Sizes are in bytes.
struct Cut {
    /// Requests begin at multiples of this power of two.
    alignment: u32,
    /// They end at multiples of this at the latest: a multiple of the alignment.
    request: u64,
}

impl Cut {
    fn new(limits: [BlockLimits; 2]) -> Result<Self, Error> {
        let alignment = limits[0].minimum.max(limits[1].minimum);
        let most = limits[0].maximum.min(limits[1].maximum);
        if !alignment.is_power_of_two() || most < alignment {
            let message = format!(
                "no request suits both images: the one takes {} to {} bytes, the other {} to {}",
                limits[0].minimum, limits[0].maximum, limits[1].minimum, limits[1].maximum
            );
            return Err(Error::with_message(ErrorKind::Incompatible, message));
        }
        let longest = REQUEST.max(alignment).min(most);
        Ok(Self {
            alignment,
            request: u64::from(longest - longest % alignment),
        })
    }
}

/// A comparison that is running.
struct Running<'a> {
    observer: &'a dyn Observer,
    sides: [Image; 2],
    pool: BufferPool,
    /// Whether there are processors for several parts at a time.
    several: bool,
    cut: Cut,
    /// The end of the longer image.
    end: u64,
    /// What lies before this was begun.
    position: u64,
    reading: FuturesUnordered<BoxFuture<'static, Checked>>,
    /// The starts of all that was begun and is not compared yet.
    begun: BTreeSet<u64>,
    /// What is to be read again, on which sides.
    again: Vec<(ByteRange, [bool; 2])>,
    /// How many bytes of memory that takes.
    in_flight: u64,
    found: Option<Found>,
    progress: Progress,
    since: Instant,
}

/// What ends a comparison.
enum Found {
    /// The images differ at this offset.
    Difference(u64),
    /// What begins at this offset could not be read.
    Failure(u64, CopyError),
    Cancelled,
}

/// A part of the image, and through which handle each side of it is read, if it is.
#[derive(Clone, Copy)]
struct Part {
    range: ByteRange,
    lanes: [Option<LaneId>; 2],
}

/// A part that was compared, or could not be read.
struct Checked {
    part: Part,
    /// The first difference; or which side failed.
    outcome: Result<Option<u64>, (usize, Error)>,
}

enum Step {
    Checked(Checked),
    /// What came of a question for extents, on which side.
    Extents(usize, Told),
    /// News of the connections of a side.
    Joining(usize, Joining),
    Hurry,
    Cancelled,
    Done,
}

impl Running<'_> {
    async fn run(&mut self, control: &Control) -> Option<Found> {
        let mut cancelled = pin!(control.cancelled());
        loop {
            self.begin_parts();
            match poll_fn(|cx| self.poll_step(cancelled.as_mut(), cx)).await {
                Step::Checked(checked) => self.checked(checked),
                Step::Extents(side, told) => {
                    let warning = self.sides[side].told(told);
                    self.warn(warning);
                }
                Step::Joining(side, news) => match self.sides[side].joining(news) {
                    Ok(warning) => self.warn(warning),
                    Err(error) => self.fail(side, self.next_start(), error),
                },
                Step::Hurry => {}
                Step::Cancelled => return Some(Found::Cancelled),
                Step::Done => return self.found.take(),
            }
            tokio::task::coop::consume_budget().await;
        }
    }

    fn poll_step(
        &mut self,
        cancelled: Pin<&mut impl Future<Output = ()>>,
        cx: &mut Context<'_>,
    ) -> Poll<Step> {
        if cancelled.poll(cx).is_ready() {
            return Poll::Ready(Step::Cancelled);
        }
        if let Poll::Ready(Some(checked)) = self.reading.poll_next_unpin(cx) {
            return Poll::Ready(Step::Checked(checked));
        }
        if self.is_done() {
            return Poll::Ready(Step::Done);
        }
        for (index, side) in self.sides.iter_mut().enumerate() {
            if let Poll::Ready(told) = side.walker.poll_answer(cx) {
                return Poll::Ready(Step::Extents(index, told));
            }
            if let Poll::Ready(news) = side.lanes.poll_join(cx) {
                return Poll::Ready(Step::Joining(index, news));
            }
        }
        if self.found.is_none() && self.in_flight <= WINDOW / 2 && self.hurry() {
            return Poll::Ready(Step::Hurry);
        }
        Poll::Pending
    }

    /// Whether nothing that is still to come can change the result.
    fn is_done(&self) -> bool {
        match self.limit() {
            Some(limit) => self.begun.range(..limit).next().is_none(),
            None => self.position >= self.end && self.begun.is_empty(),
        }
    }

    /// Only what lies before this matters any more.
    fn limit(&self) -> Option<u64> {
        match &self.found {
            Some(Found::Difference(offset) | Found::Failure(offset, _)) => Some(*offset),
            Some(Found::Cancelled) => Some(0),
            None => None,
        }
    }

    /// Reads instead of waiting for extents that come more slowly than data does.
    fn hurry(&mut self) -> bool {
        let seconds = self.since.elapsed().as_secs_f64();
        let rate = self.progress.data as f64 / seconds.max(1e-3);
        let position = self.position;
        let mut waiting = self
            .sides
            .iter_mut()
            .filter(|side| side.stretch.is_none() && side.size > position);
        waiting.any(|side| side.walker.hurry(rate))
    }

    fn begin_parts(&mut self) {
        if self.sides.iter().any(|side| side.lanes.is_down()) {
            return;
        }
        while let Some((range, sides)) = self.again.pop() {
            self.begin(range, sides);
        }
        let longest = match self.several {
            true => REQUESTS_BESIDE * self.cut.request,
            false => self.cut.request,
        };
        while self.found.is_none() && self.in_flight + 2 * longest <= WINDOW.max(2 * longest) {
            let [Some(a), Some(b)] = self.known() else {
                return;
            };
            let end = a.range.end().min(b.range.end());
            let known = ByteRange::between(self.position, end);
            if known.is_empty() {
                return;
            }
            let range = match a.zero && b.zero {
                true => known,
                false => {
                    let longest = match self.is_beside(known.start(), [!a.zero, !b.zero]) {
                        true => longest,
                        false => self.cut.request,
                    };
                    let rest = longest - known.start() % longest;
                    known.split_at(rest).0
                }
            };
            self.position = range.end();
            if a.zero && b.zero {
                self.count(0, range.len());
            } else {
                self.begin(range, [!a.zero, !b.zero]);
            }
        }
    }

    /// Whether what begins at `offset` is compared on a thread of its own: files of this machine, which there is no
    /// waiting for.
    fn is_beside(&self, offset: u64, sides: [bool; 2]) -> bool {
        let mut read = self.sides.iter().zip(sides).filter(|(_, read)| *read);
        self.several
            && read.all(|(side, _)| {
                let device = side.lanes.device(side.lanes.least_busy().place);
                is_local(&**device, offset)
            })
    }

    /// What is known of both sides at the present position.
    fn known(&mut self) -> [Option<Stretch>; 2] {
        let (position, end) = (self.position, self.end);
        let [a, b] = &mut self.sides;
        [a.known_from(position, end), b.known_from(position, end)]
    }

    /// Begins to read a part of the image on the sides that are to be read.
    fn begin(&mut self, range: ByteRange, sides: [bool; 2]) {
        let mut part = Part {
            range,
            lanes: [None, None],
        };
        for (side, _) in sides.iter().enumerate().filter(|(_, read)| **read) {
            let lanes = &mut self.sides[side].lanes;
            let lane = lanes.least_busy();
            lanes.begin(lane);
            part.lanes[side] = Some(lane);
        }
        let sides = [0, 1].map(|side| {
            let lane = part.lanes[side]?;
            let image = &self.sides[side];
            Some(Reading {
                device: Arc::clone(image.lanes.device(lane.place)),
                blocks: image.blocks,
                pool: self.pool.clone(),
            })
        });
        let is_beside = self.is_beside(range.start(), part.lanes.map(|lane| lane.is_some()));
        let parts = Parts {
            range,
            sides,
            request: self.cut.request,
        };
        self.begun.insert(range.start());
        self.in_flight += held(part);
        self.reading.push(Box::pin(async move {
            let outcome = match is_beside {
                true => parts.first_difference_beside().await,
                false => parts.first_difference().await,
            };
            Checked { part, outcome }
        }));
    }

    fn checked(&mut self, checked: Checked) {
        let Checked { part, outcome } = checked;
        let range = part.range;
        self.in_flight -= held(part);
        let failed = match &outcome {
            Err((side, _)) => Some(*side),
            Ok(_) => None,
        };
        for (side, lane) in part.lanes.iter().enumerate() {
            if let Some(lane) = lane {
                self.sides[side].lanes.end(*lane);
                if failed.is_none() {
                    self.sides[side].lanes.achieved(*lane);
                }
            }
        }
        match outcome {
            Ok(found) => {
                self.begun.remove(&range.start());
                match found {
                    None => self.count(range.len(), 0),
                    Some(offset) => self.find(offset, Found::Difference(offset)),
                }
            }
            Err((side, error)) => self.failed(part, side, error),
        }
    }

    /// A part could not be read. Where another connection is left, or will be, it is read again.
    fn failed(&mut self, part: Part, side: usize, error: Error) {
        let start = part.range.start();
        let lost = match part.lanes[side] {
            Some(lane) if error.is_transient() => self.sides[side].lose(lane, error),
            _ => Err(error),
        };
        match lost {
            Ok(warning) => {
                self.warn(warning);
                let sides = part.lanes.map(|lane| lane.is_some());
                self.again.push((part.range, sides));
            }
            Err(error) => {
                self.begun.remove(&start);
                self.fail(side, start, error);
            }
        }
    }

    /// The first part of the image that is not compared yet begins here.
    fn next_start(&self) -> u64 {
        self.begun.first().copied().unwrap_or(self.position)
    }

    fn fail(&mut self, side: usize, start: u64, error: Error) {
        let side = [Side::Source, Side::Destination][side];
        self.find(start, Found::Failure(start, CopyError::new(side, error)));
    }

    fn warn(&self, warning: Option<Warning>) {
        if let Some(warning) = warning {
            self.observer.event(Event::Warning(warning));
        }
    }

    /// Keeps what lies first in the image.
    fn find(&mut self, offset: u64, found: Found) {
        if self.limit().is_none_or(|limit| offset < limit) {
            self.found = Some(found);
        }
    }

    fn count(&mut self, data: u64, zero: u64) {
        self.progress.add(data, zero);
        self.observer.event(Event::Progress(self.progress));
    }
}

/// How many bytes of memory a part takes while it is read.
fn held(part: Part) -> u64 {
    let sides = part.lanes.iter().flatten().count() as u64;
    sides * part.range.len()
}
