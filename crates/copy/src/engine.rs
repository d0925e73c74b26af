//! The one loop: begins pieces as long as there is room, and takes in whatever finishes first.
//!
//! A piece is loaded, then stored. Loads can be dropped at any time, for nothing has changed yet;
//! stores are let finish. So a copy that fails or is cancelled drops its loads (a pipe may never
//! deliver more) and waits for its stores. A piece counts as in flight from the beginning of its load
//! to the end of its store, whichever way it goes and however long it waits for its turn.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use blockferry_block::{BoxFuture, Buffer, ByteRange, Error, ErrorKind, Operation};
use futures_util::{StreamExt, stream::FuturesUnordered};

use crate::{
    Control, CopyError, Event, Observer, Progress, Side, Warning,
    buffers::Buffers,
    input::{Input, Loaded},
    output::{Output, Ready, Stored},
    pieces::Piece,
    plan::Plan,
    transfer::Outcome,
    zeroes::ZeroPolicy,
};

/// A copy that is running.
pub(crate) struct Engine<'a> {
    plan: &'a Plan,
    observer: &'a dyn Observer,
    buffers: Arc<Buffers>,
    pub(crate) input: Input,
    pub(crate) output: Output,
    loading: FuturesUnordered<BoxFuture<'static, Loaded>>,
    storing: FuturesUnordered<BoxFuture<'static, Stored>>,
    /// How many pieces are in flight, and how many bytes of memory they hold.
    pieces: usize,
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
        Self {
            plan,
            observer,
            buffers,
            input,
            output,
            loading: FuturesUnordered::new(),
            storing: FuturesUnordered::new(),
            pieces: 0,
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
                Step::Extents(None) => {}
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
        Poll::Pending
    }

    fn begin_pieces(&mut self) {
        while self.failure.is_none() && self.has_room() {
            let policy = self.output.zero_policy();
            let Some(piece) = self.input.next_piece(policy == ZeroPolicy::Write) else {
                break;
            };
            if piece.zero && policy == ZeroPolicy::Skip {
                self.count(0, piece.range.len());
            } else {
                self.begin(piece, policy);
            }
        }
        if self.failure.is_none()
            && let Some(store) = self.output.begin(&self.buffers)
        {
            self.storing.push(store);
        }
    }

    fn has_room(&self) -> bool {
        let next = u64::from(self.plan.request_size);
        let room = self.bytes == 0 || self.bytes.saturating_add(next) <= self.plan.queue_size;
        self.pieces < self.plan.requests && room
    }

    fn begin(&mut self, piece: Piece, policy: ZeroPolicy) {
        let no_bytes = piece.zero && policy != ZeroPolicy::Write;
        let reserved = if no_bytes { 0 } else { piece.range.len() };
        self.pieces += 1;
        self.bytes += reserved;
        if piece.zero {
            self.ready(Ready {
                piece,
                bytes: None,
                reserved,
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
        let reserved = loaded.piece.range.len();
        match self.input.loaded(loaded) {
            Ok(Some((piece, bytes))) => self.arrived(piece, bytes, reserved),
            Ok(None) => self.release(reserved),
            Err(error) => self.fail(CopyError::new(Side::Source, error)),
        }
    }

    fn arrived(&mut self, piece: Piece, bytes: Buffer, reserved: u64) {
        let range = piece.range;
        if let Some(room) = self.plan.room.filter(|room| range.end() > *room) {
            let error = too_small(room, range).on(self.output.name());
            self.fail(CopyError::new(Side::Destination, error));
        } else if self.input.stream_length().is_some()
            && !range.end().is_multiple_of(u64::from(self.plan.block))
        {
            // Only now is it known where the image ends.
            self.held = Some((range, bytes));
            self.release(reserved);
        } else {
            self.ready(Ready {
                piece,
                bytes: Some(bytes),
                reserved,
            });
        }
    }

    fn stored(&mut self, mut stored: Stored) {
        self.output.stored(&mut stored);
        self.release(stored.reserved);
        match stored.outcome {
            Ok(Outcome::Done { data, zero }) => self.count(data, zero),
            Ok(Outcome::NotZeroed(range)) => self.input.put_back(range),
            Err(error) => self.fail(CopyError::new(Side::Destination, error)),
        }
    }

    fn release(&mut self, bytes: u64) {
        self.pieces -= 1;
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
