//! The one loop: begins pieces as long as there is room, and takes in whatever finishes first.
//!
//! A piece is loaded, then stored. Loads can be dropped at any time, for nothing has changed yet;
//! stores are let finish. So a copy that fails or is cancelled drops its loads (a pipe may never
//! deliver more) and waits for its stores. A piece counts as in flight from the beginning of its load
//! to the end of its store, whichever way it goes and however long it waits for its turn.
//!
//! Where both sides can be used in any order there is a worker for each connection: it takes a
//! segment of the image and moves it through its own connections. All of them run in this loop.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use blockferry_block::{
    BoxFuture, Buffer, ByteRange, CopyFlags, Error, ErrorKind, Operation, Payload,
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::Instant;

use crate::{
    Control, CopyError, Event, Observer, Progress, Side, Warning,
    buffers::Buffers,
    input::{Arrival, Input, Loaded},
    lanes::{LaneId, Lanes},
    output::{Content, Output, Ready, Stored},
    pacer::Pacer,
    pieces::{Cut, Piece},
    plan::Plan,
    transfer::Outcome,
    zeroes::ZeroPolicy,
};

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
    buffers: Arc<Buffers>,
    pub(crate) input: Input,
    pub(crate) output: Output,
    loading: FuturesUnordered<BoxFuture<'static, Loaded>>,
    storing: FuturesUnordered<BoxFuture<'static, Stored>>,
    pub(crate) pacer: Pacer,
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
    Stored(Stored),
    Extents(Option<Warning>),
    /// Another handle has joined.
    Joined,
    /// Waiting for extents would take longer than reading.
    Hurry,
    Cancelled,
    Done,
}

impl<'a> Engine<'a> {
    /// A copy that has not begun.
    pub(crate) fn new(
        plan: &'a Plan,
        observer: &'a dyn Observer,
        buffers: Arc<Buffers>,
        input: Input,
        output: Output,
    ) -> Self {
        let pacer = Pacer::new(plan, Instant::now());
        buffers.expect(pacer.request_size() as usize, pacer.window());
        Self {
            plan,
            observer,
            buffers,
            input,
            output,
            loading: FuturesUnordered::new(),
            storing: FuturesUnordered::new(),
            pacer,
            take_over: plan.take_over,
            workers: Vec::new(),
            bytes: 0,
            progress: Progress::default(),
            held: None,
            failure: None,
        }
    }

    /// Moves everything. What is left is the stream's incomplete last block, if it has one.
    pub(crate) async fn run(
        &mut self,
        control: &Control,
    ) -> Result<Option<(ByteRange, Buffer)>, CopyError> {
        let mut cancelled = pin!(control.cancelled());
        loop {
            self.begin_pieces();
            match poll_fn(|cx| self.poll_step(cancelled.as_mut(), cx)).await {
                Step::Loaded(loaded) => self.loaded(loaded),
                Step::Stored(stored) => self.stored(stored),
                Step::Extents(Some(warning)) => self.observer.event(Event::Warning(warning)),
                Step::Extents(None) | Step::Joined | Step::Hurry => {}
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

    /// Counts bytes as done and tells of it.
    pub(crate) fn count(&mut self, data: u64, zero: u64) {
        self.progress.add(data, zero);
        self.observer.event(Event::Progress(self.progress));
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
        if let Poll::Ready(Some(loaded)) = self.loading.poll_next_unpin(cx) {
            return Poll::Ready(Step::Loaded(loaded));
        }
        if running && let Poll::Ready(warning) = self.input.poll_more(cx) {
            return Poll::Ready(Step::Extents(warning));
        }
        let idle = self.storing.is_empty() && self.loading.is_empty();
        if idle && (!running || self.input.is_done()) {
            return Poll::Ready(Step::Done);
        }
        if self.input.poll_join(cx).is_ready() || self.output.poll_join(cx).is_ready() {
            return Poll::Ready(Step::Joined);
        }
        if running && self.is_starved() && self.hurry() {
            return Poll::Ready(Step::Hurry);
        }
        Poll::Pending
    }

    fn begin_pieces(&mut self) {
        let connections = self.input.connections().max(self.output.connections());
        let workers = if self.plan.in_order { 1 } else { connections };
        self.workers.resize(workers.max(self.workers.len()), 0);
        // What waits for its turn behind these may hold all the room that there is.
        while self.failure.is_none()
            && let Some(piece) = self.input.device().and_then(|it| it.pieces.next_failed())
        {
            self.begin(piece, self.output.zero_policy());
        }
        while self.failure.is_none() && self.has_room() && self.begin_piece() {}
        if self.failure.is_none()
            && let Some(store) = self.output.begin()
        {
            self.storing.push(store);
        }
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
        if piece.zero && policy == ZeroPolicy::Skip {
            self.output.pass(piece);
            self.count(0, piece.range.len());
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
                    return self.read_instead(piece.range);
                };
                Some(Content::OfFile(file, flags))
            }
            None => None,
        };
        self.workers[piece.worker] += 1;
        self.bytes += reserved;
        if let Some(content) = content {
            self.ready(Ready {
                piece,
                content,
                reserved,
                begun: Instant::now(),
            });
        } else {
            let load = self.input.load(piece, &self.buffers);
            self.loading.push(load);
        }
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
            Ok(Arrival::Piece(arrived, bytes)) => self.arrived(Ready {
                piece: arrived,
                content: Content::Bytes(bytes),
                reserved,
                begun,
            }),
            Ok(Arrival::Nothing) => self.release(&piece, reserved),
            Err(error) => {
                self.release(&piece, reserved);
                self.failed(Side::Source, piece, lane, error);
            }
        }
    }

    fn arrived(&mut self, ready: Ready) {
        let range = ready.piece.range;
        if let Some(room) = self.plan.room.filter(|room| range.end() > *room) {
            let error = too_small(room, range).on(self.output.name());
            self.fail(CopyError::new(Side::Destination, error));
        } else if self.input.stream_length().is_some()
            && !range.end().is_multiple_of(u64::from(self.plan.block))
        {
            // Only now is it known where the image ends.
            self.release(&ready.piece, ready.reserved);
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
            piece,
            reserved,
            begun,
            outcome,
            lane,
            ..
        } = stored;
        self.release(&piece, reserved);
        match outcome {
            Ok(Outcome::Done { data, zero }) => {
                if reserved > 0
                    && !piece.zero
                    && self.pacer.finished(reserved, begun, Instant::now())
                {
                    let request_size = self.pacer.request_size() as usize;
                    self.buffers.expect(request_size, self.pacer.window());
                }
                self.count(data, zero);
            }
            Ok(Outcome::NotZeroed(range)) => {
                self.put_back_whole(range, true);
            }
            Ok(Outcome::NotTaken) => self.read_instead(piece.range),
            // The source's file is cut short: the destination found out as it took it over.
            Err(error) if error.kind() == ErrorKind::UnexpectedEnd => {
                self.fail(CopyError::new(Side::Source, error));
            }
            Err(error) => self.failed(Side::Destination, piece, lane, error),
        }
    }

    /// From now on data is read and written, beginning with `range`.
    fn read_instead(&mut self, range: ByteRange) {
        self.take_over = None;
        self.put_back_whole(range, false);
    }

    fn put_back_whole(&mut self, range: ByteRange, zero: bool) {
        if let Some(input) = self.input.device() {
            input.pieces.put_back_whole(range, zero);
        }
    }

    /// A piece failed. When it was for the loss of a connection that is not the last one, the others do
    /// it again: reading twice harms nobody, nor does writing the same bytes to the same place.
    fn failed(&mut self, side: Side, piece: Piece, lane: LaneId, error: Error) {
        if !error.is_transient() || !self.lose(side, lane, &error) {
            self.fail(CopyError::new(side, error));
        } else if let Some(input) = self.input.device() {
            match self.plan.in_order {
                true => input.pieces.put_back(piece),
                // It may have been cut longer than what is read or written at once.
                false => input.pieces.put_back_whole(piece.range, piece.zero),
            }
        } else {
            self.fail(CopyError::new(side, error));
        }
    }

    /// Gives up a connection. False when it is the last one.
    fn lose(&mut self, side: Side, lane: LaneId, error: &Error) -> bool {
        let lanes: Option<&mut Lanes> = match side {
            Side::Source => self.input.device().map(|input| &mut input.lanes),
            _ => self.output.device().map(|output| &mut output.lanes),
        };
        let Some(lanes) = lanes else { return false };
        if lanes.is_lost(lane) {
            return true;
        }
        let others = lanes.retire(lane);
        if others {
            let warning = Warning::ConnectionLost {
                error: error.clone(),
                left: lanes.live(),
            };
            self.observer.event(Event::Warning(warning));
        }
        if let (true, Side::Source, Some(input)) = (others, side, self.input.device()) {
            let lost = input.lanes.device(lane);
            let other = input.lanes.device(input.lanes.of_owner(0));
            input.pieces.ask_instead(lost, other);
        }
        others
    }

    fn release(&mut self, piece: &Piece, bytes: u64) {
        self.workers[piece.worker] -= 1;
        self.bytes -= bytes;
    }

    /// Keeps the first failure and begins nothing more.
    fn fail(&mut self, failure: CopyError) {
        self.failure.get_or_insert(failure);
        self.loading.clear();
    }
}

fn too_small(room: u64, range: ByteRange) -> Error {
    let message = format!("the destination is too small: its size is {room} and the input goes on");
    let error = Error::with_message(ErrorKind::OutOfBounds, message);
    error
        .during(Operation::Write)
        .at(range.start(), range.len())
}
