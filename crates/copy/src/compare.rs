//! Whether two images are the same, and where they begin to differ.
//!
//! Both are walked side by side, in order. Where both are known to be zero nothing is read; where one is,
//! the other is read and looked through; else both are read. Several requests are in flight and may end in
//! any order, but they begin in the image's order: so when one finds a difference, only those that began
//! before it can find an earlier one.

use std::{
    collections::BTreeSet,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use blockferry_block::{
    BlockDevice, BlockLimits, BoxFuture, Buffer, BufferPool, ByteRange, Error, ErrorKind,
    NullDevice, is_zero,
};
use futures_util::{StreamExt, future::join, stream::FuturesUnordered};
use tokio::time::Instant;

use crate::{
    Control, CopyError, CopyOptions, Destination, Event, Observer, Progress, Side, Source, Warning,
    extents::{ExtentWalker, Stretch},
    lanes::{LaneId, Lanes},
    plan::Plan,
    transfer::read,
};

/// The longest read in bytes: short enough for what was read of both images to be in the cache still when
/// it is compared.
const REQUEST: u32 = 256 << 10;

/// How many bytes of both images may be in flight.
const WINDOW: u64 = 8 << 20;

/// How a comparison is done.
#[derive(Clone, Debug)]
pub struct CompareOptions {
    /// Images of different sizes differ. Otherwise the longer one may go on with zeroes. Default false.
    pub strict: bool,
    /// How many handles (NBD connections) a side that can have several gets; 0 counts as 1. Default 4.
    pub connections: usize,
    /// Ask both sides for their extents, so that holes need not be read. Default true.
    pub extents: bool,
}

impl Default for CompareOptions {
    fn default() -> Self {
        Self {
            strict: false,
            connections: 4,
            extents: true,
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
            Reader::new(a, &cut, options)?,
            Reader::new(b, &cut, options)?,
        ],
        pool: BufferPool::new(cut.request as usize, (WINDOW / cut.request) as usize),
        cut,
        end,
        position: 0,
        reading: FuturesUnordered::new(),
        begun: BTreeSet::new(),
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

/// One of the images.
struct Reader {
    size: u64,
    /// Its block size in bytes.
    block: u64,
    lanes: Lanes,
    walker: ExtentWalker,
    /// What is known of the image from the present position on.
    stretch: Option<Stretch>,
}

/// A comparison that is running.
struct Running<'a> {
    observer: &'a dyn Observer,
    sides: [Reader; 2],
    pool: BufferPool,
    cut: Cut,
    /// The end of the longer image.
    end: u64,
    /// What lies before this was begun.
    position: u64,
    reading: FuturesUnordered<BoxFuture<'static, Checked>>,
    /// The starts of all that is being read.
    begun: BTreeSet<u64>,
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
    Extents(Option<Warning>),
    Joined,
    Hurry,
    Cancelled,
    Done,
}

impl Reader {
    fn new(
        device: Arc<dyn BlockDevice>,
        cut: &Cut,
        options: &CompareOptions,
    ) -> Result<Self, CopyError> {
        // It is walked over as by a copy of it to nowhere.
        let nowhere: Arc<dyn BlockDevice> = Arc::new(NullDevice::new(0));
        let (source, nowhere) = (
            Source::Device(Arc::clone(&device)),
            Destination::Device(nowhere),
        );
        let options = CopyOptions {
            connections: options.connections,
            extents: options.extents,
            ..CopyOptions::default()
        };
        let mut plan = Plan::new(&source, &nowhere, &options)?;
        plan.alignment = cut.alignment;
        // Short holes cost less to read than to go around, and a zero is the same either way.
        plan.granularity = Some(cut.alignment);
        let info = device.info();
        Ok(Self {
            size: info.size,
            block: u64::from(info.limits.minimum),
            walker: ExtentWalker::new(Arc::clone(&device), info.size, &plan),
            lanes: Lanes::new(Arc::clone(&device), plan.connections),
            stretch: None,
        })
    }

    /// What is known from `position` on, which moves forwards only: the image's end is followed by zeroes.
    fn known_from(&mut self, position: u64, end: u64) -> Option<Stretch> {
        while let Some(stretch) = self.stretch.or_else(|| self.walker.next_stretch()) {
            let left = ByteRange::between(position, stretch.range.end());
            if !left.is_empty() {
                self.stretch = Some(Stretch {
                    range: left,
                    zero: stretch.zero,
                });
                return self.stretch;
            }
            self.stretch = None;
        }
        (position >= self.size).then(|| Stretch {
            range: ByteRange::between(position, end),
            zero: true,
        })
    }

    /// What must be read to have `range`, which begins at a block or behind the other image's end.
    fn blocks_of(&self, range: ByteRange) -> ByteRange {
        let start = range.start() - range.start() % self.block;
        let end = range.end().next_multiple_of(self.block);
        ByteRange::between(start, end.min(self.size))
    }
}

impl Running<'_> {
    async fn run(&mut self, control: &Control) -> Option<Found> {
        let mut cancelled = pin!(control.cancelled());
        loop {
            self.begin_parts();
            match poll_fn(|cx| self.poll_step(cancelled.as_mut(), cx)).await {
                Step::Checked(checked) => self.checked(checked),
                Step::Extents(Some(warning)) => self.observer.event(Event::Warning(warning)),
                Step::Extents(None) | Step::Joined | Step::Hurry => {}
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
        for side in &mut self.sides {
            if let Poll::Ready(warning) = side.walker.poll_answer(cx) {
                return Poll::Ready(Step::Extents(warning));
            }
            if side.lanes.poll_join(cx).is_ready() {
                return Poll::Ready(Step::Joined);
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
        while self.found.is_none() && self.in_flight + 2 * self.cut.request <= self.window() {
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
                    let rest = self.cut.request - known.start() % self.cut.request;
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

    /// One part is always allowed.
    fn window(&self) -> u64 {
        WINDOW.max(2 * self.cut.request)
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
        let [a, b] = [0, 1].map(|side| {
            let lane = part.lanes[side]?;
            let reader = &self.sides[side];
            let device = Arc::clone(reader.lanes.device(lane));
            Some(Reading {
                device,
                blocks: reader.blocks_of(range),
                range,
                pool: self.pool.clone(),
            })
        });
        self.begun.insert(range.start());
        self.in_flight += held(part);
        self.reading.push(Box::pin(async move {
            let outcome = match (a, b) {
                (Some(a), Some(b)) => both(a, b).await,
                (Some(one), None) => one.first_not_zero().await.map_err(|error| (0, error)),
                (None, Some(one)) => one.first_not_zero().await.map_err(|error| (1, error)),
                (None, None) => Ok(None),
            };
            Checked { part, outcome }
        }));
    }

    fn checked(&mut self, checked: Checked) {
        let Checked { part, outcome } = checked;
        let range = part.range;
        self.begun.remove(&range.start());
        self.in_flight -= held(part);
        for (side, lane) in part.lanes.iter().enumerate() {
            if let Some(lane) = lane {
                self.sides[side].lanes.end(*lane);
            }
        }
        match outcome {
            Ok(None) => self.count(range.len(), 0),
            Ok(Some(offset)) => self.find(offset, Found::Difference(offset)),
            Err((side, error)) => self.failed(part, side, error),
        }
    }

    /// A part could not be read. Where another connection is left it is read again.
    fn failed(&mut self, part: Part, side: usize, error: Error) {
        let lanes = &mut self.sides[side].lanes;
        let lane = part.lanes[side].unwrap_or(0);
        let known_lost = lanes.is_lost(lane);
        if error.is_transient() && (known_lost || lanes.retire(lane)) {
            if !known_lost {
                let left = lanes.live();
                let lost = Arc::clone(lanes.device(lane));
                let other = Arc::clone(lanes.device(lanes.of_owner(0)));
                self.sides[side].walker.ask_instead(&lost, &other);
                let warning = Warning::ConnectionLost { error, left };
                self.observer.event(Event::Warning(warning));
            }
            self.begin(part.range, part.lanes.map(|lane| lane.is_some()));
            return;
        }
        let which = [Side::Source, Side::Destination][side];
        let start = part.range.start();
        self.find(start, Found::Failure(start, CopyError::new(which, error)));
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

/// A part of one image that is to be read.
struct Reading {
    device: Arc<dyn BlockDevice>,
    /// What is read.
    blocks: ByteRange,
    /// What is wanted of it.
    range: ByteRange,
    pool: BufferPool,
}

/// A part of one image.
struct Bytes {
    buffer: Buffer,
    /// How many bytes of the buffer lie before it.
    skip: usize,
    length: usize,
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        &self.buffer[self.skip..self.skip + self.length]
    }
}

impl Reading {
    async fn read(&self) -> Result<Bytes, Error> {
        // All of these are no longer than a request.
        let buffer = self.pool.take(self.blocks.len() as usize);
        let buffer = read(&self.device, self.blocks, buffer).await?;
        Ok(Bytes {
            buffer,
            skip: (self.range.start() - self.blocks.start()) as usize,
            length: self.range.len() as usize,
        })
    }

    /// The offset of the first byte that is not zero.
    async fn first_not_zero(self) -> Result<Option<u64>, Error> {
        let bytes = self.read().await?;
        let bytes = bytes.as_slice();
        if is_zero(bytes) {
            return Ok(None);
        }
        let first = bytes.iter().position(|byte| *byte != 0);
        Ok(first.map(|first| self.range.start() + first as u64))
    }
}

/// Reads both sides and looks for the first difference.
async fn both(a: Reading, b: Reading) -> Result<Option<u64>, (usize, Error)> {
    let (one, other) = join(a.read(), b.read()).await;
    let one = one.map_err(|error| (0, error))?;
    let other = other.map_err(|error| (1, error))?;
    let first = first_difference(one.as_slice(), other.as_slice());
    Ok(first.map(|first| a.range.start() + first as u64))
}

/// Where two runs of bytes of the same length begin to differ.
fn first_difference(one: &[u8], other: &[u8]) -> Option<usize> {
    const STRIDE: usize = 4096;
    let mut strides = one.chunks(STRIDE).zip(other.chunks(STRIDE));
    let stride = strides.position(|(one, other)| one != other)?;
    let start = stride * STRIDE;
    let mut pairs = one[start..].iter().zip(&other[start..]);
    pairs
        .position(|(one, other)| one != other)
        .map(|at| start + at)
}
