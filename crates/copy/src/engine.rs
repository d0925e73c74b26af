//! The one loop: begins pieces as long as there is room, and takes in whatever finishes first.
//!
//! A piece is loaded, then stored. Loads can be dropped at any time, for nothing has changed yet;
//! stores are let finish. So a copy that fails or is cancelled drops its loads (a pipe may never
//! deliver more) and waits for its stores. A piece counts as in flight from the beginning of its load
//! to the end of its store, whichever way it goes and however long it waits for its turn.
//!
//! Where both sides can be used in any order there is a worker for each connection: it takes a
//! segment of the image and moves it through its own connections. All of them run in this loop.
//!
//! What becomes of a lost connection is in `recovery`; when the destination is flushed, and what is
//! noted as done, in `durable`.

mod durable;
mod recovery;

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use blockferry_block::{
    BoxFuture, Buffer, ByteRange, CopyFlags, Error, ErrorKind, Operation, Payload, Throttle,
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, Sleep};

use crate::{
    Control, CopyError, Event, How, Interest, Observer, Part, Progress, Request, RequestKind, Side,
    buffers::Buffers,
    digest::{BlockDigests, Collector},
    extents::Told,
    input::{Arrival, Input, Loaded},
    lanes::Joining,
    output::{Content, Flight, Output, Ready, Stored},
    pacer::Pacer,
    pieces::{Cut, Piece, Task},
    plan::Plan,
    transfer::Outcome,
    zeroes::ZeroPolicy,
};

pub(crate) use self::durable::Durable;
use self::durable::News;

/// How much of a file is taken over in one request, in bytes, and in how many at a time: enough to keep
/// the threads busy that do it, and not so much that a copy could not be cancelled soon.
const TAKEN_AT_ONCE: u32 = 8 << 20;
const TAKEN_IN_PARALLEL: usize = 4;

/// How much of a stream goes to one worker before it is the next one's turn, in bytes.
const PART_OF_STREAM: u64 = 4 << 20;

/// A copy that is running.
pub(crate) struct Engine<'a> {
    plan: &'a Plan,
    observer: &'a dyn Observer,
    interest: Interest,
    control: &'a Control,
    buffers: Arc<Buffers>,
    pub(crate) input: Input,
    pub(crate) output: Output,
    loading: FuturesUnordered<BoxFuture<'static, Loaded>>,
    hashing: FuturesUnordered<BoxFuture<'static, Hashed>>,
    storing: FuturesUnordered<BoxFuture<'static, Stored>>,
    /// What is to be known of the image, if anything is.
    pub(crate) collector: Option<Collector>,
    pub(crate) pacer: Pacer,
    rate: Throttle,
    /// Whether there was room for more, and the limit on the rate did not allow it.
    slowed: bool,
    /// Ready when the limit on the rate is another.
    rate_changed: Option<BoxFuture<'static, ()>>,
    durable: Durable,
    /// What wakes the loop when it is time for something.
    alarm: Option<Pin<Box<Sleep>>>,
    /// How the destination takes bytes over from the source's file, for as long as it can.
    take_over: Option<CopyFlags>,
    /// How many pieces each worker has in flight.
    workers: Vec<usize>,
    /// How many bytes of memory all pieces in flight hold.
    bytes: u64,
    pub(crate) progress: Progress,
    /// The end of a stream that does not fill a block, kept until all else is stored.
    held: Option<(ByteRange, Buffer)>,
    failure: Option<CopyError>,
}

/// What the loop has to deal with next.
enum Step {
    Loaded(Loaded),
    Hashed(Hashed),
    Stored(Stored),
    Extents(Told),
    /// There is news of a side's handles.
    Joining(Side, Joining),
    Durable(News),
    /// It is time for something.
    Time,
    /// Waiting for extents would take longer than reading.
    Hurry,
    Cancelled,
    Done,
}

/// A piece of which was computed what is to be known, or could not be.
type Hashed = Result<Ready, Error>;

impl<'a> Engine<'a> {
    /// A copy that has not begun.
    pub(crate) fn new(
        plan: &'a Plan,
        observer: &'a dyn Observer,
        control: &'a Control,
        buffers: Arc<Buffers>,
        mut input: Input,
        mut output: Output,
        durable: Durable,
    ) -> Self {
        let now = Instant::now();
        let interest = observer.interest();
        if interest == Interest::Requests {
            input.note_extents();
            output.note_time();
        }
        let pacer = Pacer::new(plan, now);
        buffers.expect(pacer.request_size() as usize, pacer.window());
        Self {
            plan,
            observer,
            interest,
            control,
            buffers,
            input,
            output,
            loading: FuturesUnordered::new(),
            hashing: FuturesUnordered::new(),
            storing: FuturesUnordered::new(),
            collector: Collector::new(plan.digest, plan.sum_block),
            pacer,
            rate: Throttle::new(now),
            slowed: false,
            rate_changed: None,
            durable,
            alarm: None,
            take_over: plan.take_over,
            workers: Vec::new(),
            bytes: 0,
            progress: Progress::default(),
            held: None,
            failure: None,
        }
    }

    /// Moves everything. What is left is the stream's incomplete last block, if it has one. It may be
    /// called again when more is to be done.
    pub(crate) async fn run(&mut self) -> Result<Option<(ByteRange, Buffer)>, CopyError> {
        let mut cancelled = pin!(self.control.cancelled());
        loop {
            self.begin_pieces();
            match poll_fn(|cx| self.poll_step(cancelled.as_mut(), cx)).await {
                Step::Loaded(loaded) => self.loaded(loaded),
                Step::Hashed(Ok(ready)) => self.arrived(ready),
                Step::Hashed(Err(error)) => self.fail(CopyError::new(Side::Source, error)),
                Step::Stored(stored) => self.stored(stored),
                Step::Extents(told) => self.told(told),
                Step::Joining(side, news) => self.joining(side, news),
                Step::Durable(news) => self.durable(news),
                Step::Time | Step::Hurry => {}
                Step::Cancelled => self.fail(CopyError::cancelled()),
                Step::Done => break,
            }
            // Where nothing ever has to be waited for, others still get their turn.
            tokio::task::coop::consume_budget().await;
        }
        match self.failure.take() {
            Some(failure) => Err(failure.after(self.progress)),
            None => Ok(self.held.take()),
        }
    }

    /// The buffers that pieces are read into.
    pub(crate) fn buffers(&self) -> &Arc<Buffers> {
        &self.buffers
    }

    /// How many connections that were lost were opened again.
    pub(crate) fn reconnections(&mut self) -> u64 {
        let sides = [Side::Source, Side::Destination];
        let reconnections = sides.map(|side| self.lanes(side).map_or(0, |it| it.reconnections()));
        reconnections.iter().sum()
    }

    /// Counts bytes as done and tells of it.
    pub(crate) fn count(&mut self, data: u64, zero: u64) {
        self.progress.add(data, zero);
        self.observer.event(Event::Progress(self.progress));
    }

    /// The same of one part of the image.
    pub(crate) fn count_part(&mut self, range: ByteRange, how: How) {
        if self.interest == Interest::Requests {
            self.observer.event(Event::Part(Part { range, how }));
        }
        let zero = match how {
            How::Moved { zero } => zero,
            How::KnownZero => range.len(),
            How::Before => return,
        };
        self.count(range.len().saturating_sub(zero), zero);
    }

    /// Tells of a request that has ended well, where somebody wants to hear of it.
    fn tell_request(&self, kind: RequestKind, bytes: u64, begun: Instant) {
        if self.interest == Interest::Requests {
            self.observer.event(Event::Request(Request {
                kind,
                bytes,
                latency: begun.elapsed(),
                in_flight: self.bytes,
                window: self.pacer.window(),
                request_size: self.pacer.request_size(),
            }));
        }
    }

    fn poll_step(
        &mut self,
        cancelled: Pin<&mut impl Future<Output = ()>>,
        cx: &mut Context<'_>,
    ) -> Poll<Step> {
        let running = self.failure.is_none();
        if running && cancelled.poll(cx).is_ready() {
            return Poll::Ready(Step::Cancelled);
        }
        if let Poll::Ready(Some(stored)) = self.storing.poll_next_unpin(cx) {
            return Poll::Ready(Step::Stored(stored));
        }
        if let Poll::Ready(Some(hashed)) = self.hashing.poll_next_unpin(cx) {
            return Poll::Ready(Step::Hashed(hashed));
        }
        if let Poll::Ready(Some(loaded)) = self.loading.poll_next_unpin(cx) {
            return Poll::Ready(Step::Loaded(loaded));
        }
        if running && let Poll::Ready(told) = self.input.poll_more(cx) {
            return Poll::Ready(Step::Extents(told));
        }
        if let Poll::Ready(news) = self.durable.poll(cx) {
            return Poll::Ready(Step::Durable(news));
        }
        let idle = self.storing.is_empty() && self.hashing.is_empty() && self.loading.is_empty();
        if idle && (!running || self.input.is_done() && self.durable.is_idle()) {
            return Poll::Ready(Step::Done);
        }
        if running && let Poll::Ready((side, news)) = self.poll_joining(cx) {
            return Poll::Ready(Step::Joining(side, news));
        }
        if running && self.is_starved() && self.hurry() {
            return Poll::Ready(Step::Hurry);
        }
        if running && self.poll_time(cx).is_ready() {
            return Poll::Ready(Step::Time);
        }
        Poll::Pending
    }

    /// Ready when it is time for something, or when the limit on the rate has changed.
    fn poll_time(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let limit = self.control.rate();
        let now = Instant::now();
        let by_rate = match (limit, self.slowed) {
            (Some(limit), true) => self.rate.next(limit, now),
            _ => None,
        };
        if self.slowed && by_rate.is_none() {
            return Poll::Ready(());
        }
        if by_rate.is_some() {
            let changed = self.rate_changed.get_or_insert_with(|| {
                let changed = self.control.rate_other_than(limit);
                Box::pin(changed)
            });
            if changed.as_mut().poll(cx).is_ready() {
                self.rate_changed = None;
                return Poll::Ready(());
            }
        }
        let Some(time) = by_rate.into_iter().chain(self.flush_due()).min() else {
            return Poll::Pending;
        };
        let alarm = self
            .alarm
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(time)));
        if alarm.deadline() != time {
            alarm.as_mut().reset(time);
        }
        std::task::ready!(alarm.as_mut().poll(cx));
        self.alarm = None;
        Poll::Ready(())
    }

    fn begin_pieces(&mut self) {
        self.slowed = false;
        self.begin_flushes();
        if self.input.is_down() || self.output.is_down() {
            return;
        }
        let connections = self.input.connections().max(self.output.connections());
        let workers = if self.plan.in_order { 1 } else { connections };
        self.workers.resize(workers.max(self.workers.len()), 0);
        // What waits for its turn behind these may hold all the room that there is.
        while self.failure.is_none()
            && let Some(piece) = self.input.device().and_then(|it| it.pieces.next_failed())
        {
            self.begin(piece, self.output.zero_policy());
        }
        while self.failure.is_none()
            && self.has_room()
            && self.is_within_rate()
            && self.begin_piece()
        {}
        if self.failure.is_none()
            && let Some(store) = self.output.begin()
        {
            self.storing.push(store);
        }
    }

    fn is_within_rate(&mut self) -> bool {
        let limit = self.control.rate();
        let next = limit.and_then(|limit| self.rate.next(limit, Instant::now()));
        self.slowed = next.is_some();
        !self.slowed
    }

    fn has_room(&self) -> bool {
        let next = u64::from(self.pacer.request_size());
        self.bytes == 0 || self.bytes.saturating_add(next) <= self.pacer.window()
    }

    /// Whether half of what could be in flight is not.
    fn is_starved(&self) -> bool {
        self.bytes <= self.pacer.window() / 2
    }

    fn hurry(&mut self) -> bool {
        let rate = self.pacer.attainable_rate();
        self.input
            .device()
            .is_some_and(|input| input.pieces.hurry(rate))
    }

    /// Begins a piece of the least busy worker that has one. False when there is none.
    fn begin_piece(&mut self) -> bool {
        let policy = self.output.zero_policy();
        let (request_size, requests) = match self.take_over {
            Some(_) => (TAKEN_AT_ONCE.max(self.plan.alignment), TAKEN_IN_PARALLEL),
            None => (self.pacer.request_size(), self.pacer.requests()),
        };
        let cut = Cut {
            request_size,
            zeroes_written: policy == ZeroPolicy::Write,
        };
        let handles = if self.plan.in_order {
            self.input.live()
        } else {
            1
        };
        let most = requests * handles;
        let mut asked = 0_u64;
        loop {
            let workers = self.workers.iter().enumerate();
            let askable =
                workers.filter(|(worker, pieces)| asked >> worker & 1 == 0 && **pieces < most);
            let Some((worker, _)) = askable.min_by_key(|(_, pieces)| **pieces) else {
                return false;
            };
            if let Some(mut piece) = self.input.next_piece(worker, cut) {
                if self.input.stream_length().is_some() {
                    // A stream comes in order: parts of it go round among the workers.
                    let part = piece.range.start() / PART_OF_STREAM;
                    piece.worker = (part % self.workers.len() as u64) as usize;
                }
                self.begin(piece, policy);
                return true;
            }
            asked |= 1 << worker;
        }
    }

    fn begin(&mut self, piece: Piece, policy: ZeroPolicy) {
        if piece.task == Task::LookAt {
            return self.look_at_done(piece);
        }
        if piece.zero && policy == ZeroPolicy::Skip {
            self.output.pass(piece);
            if piece.task == Task::Copy {
                self.collect(piece, None);
                self.count_part(piece.range, How::KnownZero);
            }
            return;
        }
        let no_bytes = match piece.zero {
            true => policy != ZeroPolicy::Write,
            false => self.take_over.is_some(),
        };
        let reserved = if no_bytes { 0 } else { piece.range.len() };
        let content = match self.take_over {
            _ if piece.zero => Some(Content::Zeroes),
            Some(flags) => {
                let file = self.input.device().and_then(|input| input.in_file(piece));
                let Some(file) = file else {
                    return self.read_instead(piece);
                };
                Some(Content::OfFile(file, flags))
            }
            None => None,
        };
        self.workers[piece.worker] += 1;
        self.bytes += reserved;
        if !piece.zero {
            self.rate.moved(piece.range.len());
        }
        if let Some(content) = content {
            let flight = Flight {
                piece,
                digests: None,
                reserved,
                begun: Instant::now(),
            };
            self.ready(Ready { flight, content });
        } else {
            let load = self.input.load(piece, &self.buffers);
            self.loading.push(load);
        }
    }

    /// Reads a piece that was done before the copy began, unless it is known what is in it.
    fn look_at_done(&mut self, piece: Piece) {
        self.output.pass(piece);
        if piece.zero {
            return self.collect(piece, None);
        }
        self.workers[piece.worker] += 1;
        self.bytes += piece.range.len();
        self.rate.moved(piece.range.len());
        let load = self.input.load(piece, &self.buffers);
        self.loading.push(load);
    }

    fn ready(&mut self, ready: Ready) {
        if let Some(store) = self.output.push(ready) {
            self.storing.push(store);
        }
    }

    fn loaded(&mut self, loaded: Loaded) {
        let (piece, lane, begun) = (loaded.piece, loaded.lane, loaded.begun);
        let reserved = piece.range.len();
        match self.input.loaded(loaded) {
            Ok(Arrival::Piece(arrived, bytes)) => {
                self.achieved(Side::Source, lane);
                self.tell_request(RequestKind::Read, arrived.range.len(), begun);
                let flight = Flight {
                    piece: arrived,
                    digests: None,
                    reserved,
                    begun,
                };
                self.look_at(flight, bytes);
            }
            Ok(Arrival::Nothing) => self.release(&piece, reserved),
            Err(error) => {
                self.release(&piece, reserved);
                self.failed(Side::Source, piece, lane, error);
            }
        }
    }

    /// Has computed what is to be known of a piece that was read, unless that was done before.
    fn look_at(&mut self, mut flight: Flight, bytes: Payload) {
        match (&self.collector, bytes) {
            // The plan takes care that everything to be looked at comes in memory.
            (Some(collector), Payload::Memory(bytes)) if flight.piece.task != Task::CopyAgain => {
                let hashed = collector.hash(flight.piece.range.start(), bytes);
                self.hashing.push(Box::pin(async move {
                    let (bytes, digests) = hashed.await?;
                    flight.digests = Some(Box::new(digests));
                    let content = Content::Bytes(Payload::Memory(bytes));
                    Ok(Ready { flight, content })
                }));
            }
            (_, bytes) => {
                let content = Content::Bytes(bytes);
                self.arrived(Ready { flight, content });
            }
        }
    }

    /// Adds a piece that is done, for the first time, to what is known of the image.
    fn collect(&mut self, piece: Piece, digests: Option<Box<BlockDigests>>) {
        let Some(collector) = &mut self.collector else {
            return;
        };
        match digests {
            Some(digests) => collector.add(*digests),
            None if piece.zero => collector.add_zeroes(piece.range),
            None => {}
        }
    }

    fn arrived(&mut self, ready: Ready) {
        let Flight {
            piece, reserved, ..
        } = ready.flight;
        let range = piece.range;
        if piece.task == Task::LookAt {
            self.release(&piece, reserved);
            self.moved(reserved, ready.flight.begun);
            return self.collect(piece, ready.flight.digests);
        }
        if let Some(room) = self.plan.room.filter(|room| range.end() > *room) {
            let error = too_small(room, range).on(self.output.name());
            self.fail(CopyError::new(Side::Destination, error));
        } else if self.input.stream_length().is_some()
            && !range.end().is_multiple_of(u64::from(self.plan.block))
        {
            // Only now is it known where the image ends.
            self.release(&piece, reserved);
            self.held = match ready.content {
                Content::Bytes(Payload::Memory(bytes)) => Some((range, bytes)),
                _ => None,
            };
        } else {
            self.ready(ready);
        }
    }

    fn stored(&mut self, mut stored: Stored) {
        self.output.stored(&mut stored);
        let Stored {
            flight,
            outcome,
            lane,
            since,
            ..
        } = stored;
        let Flight {
            piece,
            digests,
            reserved,
            begun,
        } = flight;
        if let (Some(since), Ok(Outcome::Done { data, .. })) = (since, &outcome) {
            let kind = match data {
                0 => RequestKind::Zero,
                _ if self.take_over.is_some() => RequestKind::TakeOver,
                _ => RequestKind::Write,
            };
            self.tell_request(kind, piece.range.len(), since);
        }
        self.release(&piece, reserved);
        match outcome {
            Ok(Outcome::Done { data, zero }) => {
                if reserved > 0 && !piece.zero {
                    self.moved(reserved, begun);
                }
                if piece.task == Task::Copy {
                    self.collect(piece, digests);
                }
                self.note_done(piece, lane, data, zero);
            }
            Ok(Outcome::NotZeroed(range)) => self.put_back_whole(Piece { range, ..piece }),
            Ok(Outcome::NotTaken) => self.read_instead(piece),
            // The source's file is cut short: the destination found out as it took it over.
            Err(error) if error.kind() == ErrorKind::UnexpectedEnd => {
                self.fail(CopyError::new(Side::Source, error));
            }
            Err(error) => self.failed(Side::Destination, piece, lane, error),
        }
    }

    /// So many bytes have come to the end of their way.
    fn moved(&mut self, bytes: u64, begun: Instant) {
        if self.pacer.finished(bytes, begun, Instant::now()) {
            let request_size = self.pacer.request_size() as usize;
            self.buffers.expect(request_size, self.pacer.window());
        }
    }

    /// From now on data is read and written, beginning with `piece`.
    fn read_instead(&mut self, piece: Piece) {
        self.take_over = None;
        self.put_back_whole(piece);
    }

    fn put_back_whole(&mut self, piece: Piece) {
        if let Some(input) = self.input.device() {
            let Piece {
                range, zero, task, ..
            } = piece;
            input.pieces.put_back_whole(range, zero, task);
        }
    }

    fn release(&mut self, piece: &Piece, bytes: u64) {
        self.workers[piece.worker] -= 1;
        self.bytes -= bytes;
    }

    /// Keeps the first failure and begins nothing more.
    fn fail(&mut self, failure: CopyError) {
        self.failure.get_or_insert(failure);
        self.loading.clear();
        self.hashing.clear();
    }
}

fn too_small(room: u64, range: ByteRange) -> Error {
    let message = format!("the destination is too small: its size is {room} and the input goes on");
    let error = Error::with_message(ErrorKind::OutOfBounds, message);
    error
        .during(Operation::Write)
        .at(range.start(), range.len())
}
