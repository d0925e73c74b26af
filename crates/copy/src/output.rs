//! The side that is written: a device in any order, a stream in the image's.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    task::{Context, Poll},
};

use blockferry_block::{
    BoxFuture, ByteRange, ByteSink, CopyFlags, Error, ErrorKind, FileRange, Operation, Payload,
    Result,
};
use tokio::time::Instant;

use crate::{
    Destination,
    buffers::Buffers,
    digest::BlockDigests,
    lanes::{Joining, LaneId, Lanes},
    pieces::Piece,
    plan::Plan,
    transfer::{Outcome, Target, Writing, length},
    zeroes::ZeroPolicy,
};

/// Where pieces go.
pub(crate) struct Output {
    place: Place,
    buffers: Arc<Buffers>,
    /// Where the order matters: pieces whose turn has not come.
    queue: Option<Queue>,
    /// Whether it is noted when each piece began to be stored.
    notes_time: bool,
}

enum Place {
    Device(DeviceOutput),
    Stream {
        /// `None` while a piece is being written to it.
        sink: Option<Box<dyn ByteSink>>,
        name: Arc<str>,
    },
}

/// A device that is being written.
pub(crate) struct DeviceOutput {
    pub(crate) lanes: Lanes,
    /// One for each handle.
    targets: Vec<Arc<Target>>,
    writing: Arc<Writing>,
}

/// Pieces that are stored one after the other.
#[derive(Default)]
struct Queue {
    /// The number of the next piece in order.
    next: u64,
    waiting: BTreeMap<u64, Ready>,
    /// Pieces whose turn came before and whose storing has failed then.
    late: VecDeque<Ready>,
    /// The numbers of pieces to come that need no storing.
    passed: BTreeSet<u64>,
    /// Whether one is being stored.
    busy: bool,
}

/// What a piece is to become.
pub(crate) enum Content {
    Zeroes,
    Bytes(Payload),
    /// The bytes of a file, which the kernel takes over by itself.
    OfFile(FileRange, CopyFlags),
}

/// A piece in flight: what goes with it to the end of its way.
pub(crate) struct Flight {
    pub(crate) piece: Piece,
    /// What was computed of its bytes, where something was to be.
    pub(crate) digests: Option<Box<BlockDigests>>,
    /// How many bytes of the bound on memory it holds.
    pub(crate) reserved: u64,
    /// When its way began.
    pub(crate) begun: Instant,
}

/// A piece that can be stored.
pub(crate) struct Ready {
    pub(crate) flight: Flight,
    pub(crate) content: Content,
}

/// A piece that was stored, or was not.
pub(crate) struct Stored {
    pub(crate) flight: Flight,
    pub(crate) outcome: Result<Outcome>,
    /// When it began to be stored, where that is noted.
    pub(crate) since: Option<Instant>,
    /// The handle that it was written through; a stream has none.
    pub(crate) lane: LaneId,
    sink: Option<Box<dyn ByteSink>>,
}

impl Output {
    /// The destination as the plan wants it written.
    pub(crate) fn new(destination: Destination, buffers: &Arc<Buffers>, plan: &Plan) -> Self {
        let place = match destination {
            Destination::Device(device) => {
                let writing = Arc::new(Writing::new(Arc::clone(buffers), plan));
                let first = Target::new(Arc::clone(&device), Arc::clone(&writing));
                let connections = if plan.in_order { 1 } else { plan.connections };
                Place::Device(DeviceOutput {
                    lanes: Lanes::new(device, connections, plan.retries),
                    targets: vec![Arc::new(first)],
                    writing,
                })
            }
            Destination::Stream(sink) => Place::Stream {
                name: Arc::clone(sink.name()),
                sink: Some(sink),
            },
        };
        Self {
            place,
            buffers: Arc::clone(buffers),
            queue: plan.in_order.then(Queue::default),
            notes_time: false,
        }
    }

    /// Notes from now on when each piece begins to be stored.
    pub(crate) fn note_time(&mut self) {
        self.notes_time = true;
    }

    /// The endpoint, for messages.
    pub(crate) fn name(&self) -> &Arc<str> {
        match &self.place {
            Place::Device(output) => output.targets[0].name(),
            Place::Stream { name, .. } => name,
        }
    }

    /// The device, if it is one.
    pub(crate) fn device(&mut self) -> Option<&mut DeviceOutput> {
        match &mut self.place {
            Place::Device(output) => Some(output),
            Place::Stream { .. } => None,
        }
    }

    /// A handle to write the device through, if it is one.
    pub(crate) fn target(&mut self) -> Option<(LaneId, Arc<Target>)> {
        let output = self.device()?;
        let lane = output.lanes.of_owner(0);
        output.lanes.note_written(lane);
        Some((lane, Arc::clone(&output.targets[lane.place])))
    }

    /// How many handles there were to write through.
    pub(crate) fn connections(&self) -> usize {
        match &self.place {
            Place::Device(output) => output.lanes.joined(),
            Place::Stream { .. } => 1,
        }
    }

    /// Ready when there is news of the handles.
    pub(crate) fn poll_join(&mut self, cx: &mut Context<'_>) -> Poll<Joining> {
        let Place::Device(output) = &mut self.place else {
            return Poll::Pending;
        };
        let news = std::task::ready!(output.lanes.poll_join(cx));
        if let Joining::Joined { place, .. } = news {
            let device = Arc::clone(output.lanes.device(place));
            let target = Arc::new(Target::new(device, Arc::clone(&output.writing)));
            match output.targets.get_mut(place) {
                Some(old) => *old = target,
                None => output.targets.push(target),
            }
        }
        Poll::Ready(news)
    }

    /// Whether there is nothing to write through at the moment.
    pub(crate) fn is_down(&self) -> bool {
        match &self.place {
            Place::Device(output) => output.lanes.is_down(),
            Place::Stream { .. } => false,
        }
    }

    /// How zeroes come about now.
    pub(crate) fn zero_policy(&self) -> ZeroPolicy {
        match &self.place {
            Place::Device(output) => output.writing.zero_policy(),
            Place::Stream { .. } => ZeroPolicy::Write,
        }
    }

    /// Whether pieces are stored in their order.
    pub(crate) fn in_order(&self) -> bool {
        self.queue.is_some()
    }

    /// Takes a piece that is ready, and stores it at once where the order does not matter.
    pub(crate) fn push(&mut self, ready: Ready) -> Option<BoxFuture<'static, Stored>> {
        match &mut self.queue {
            None => Some(self.store(ready)),
            Some(queue) if ready.flight.piece.number < queue.next => {
                queue.late.push_back(ready);
                None
            }
            Some(queue) => {
                queue.waiting.insert(ready.flight.piece.number, ready);
                None
            }
        }
    }

    /// Takes a piece that needs no storing: none behind it waits for it.
    pub(crate) fn pass(&mut self, piece: Piece) {
        if let Some(queue) = &mut self.queue {
            queue.passed.insert(piece.number);
        }
    }

    /// The next piece in order, if its turn has come and it is ready.
    pub(crate) fn begin(&mut self) -> Option<BoxFuture<'static, Stored>> {
        let queue = self.queue.as_mut().filter(|queue| !queue.busy)?;
        if let Some(late) = queue.late.pop_front() {
            queue.busy = true;
            return Some(self.store(late));
        }
        while queue.passed.remove(&queue.next) {
            queue.next += 1;
        }
        let ready = queue.waiting.remove(&queue.next)?;
        queue.next += 1;
        queue.busy = true;
        Some(self.store(ready))
    }

    /// Takes in a piece that was stored.
    pub(crate) fn stored(&mut self, stored: &mut Stored) {
        if let Some(queue) = &mut self.queue {
            queue.busy = false;
        }
        if let Place::Stream { sink, .. } = &mut self.place {
            *sink = stored.sink.take();
        }
    }

    /// Makes durable what was written to a stream.
    pub(crate) async fn flush_stream(&mut self) -> Result<()> {
        let Place::Stream {
            sink: Some(sink),
            name,
        } = &mut self.place
        else {
            return Ok(());
        };
        let done = sink.flush().await;
        done.map_err(|error| error.during(Operation::Flush).on(name))
    }

    fn store(&mut self, ready: Ready) -> BoxFuture<'static, Stored> {
        let in_order = self.in_order();
        let since = self.notes_time.then(Instant::now);
        match &mut self.place {
            Place::Device(output) => output.store(ready, in_order, since),
            Place::Stream { sink, name } => {
                let name = Arc::clone(name);
                let sink = sink.take();
                let buffers = Arc::clone(&self.buffers);
                Box::pin(write(sink, name, ready, buffers, since))
            }
        }
    }
}

impl DeviceOutput {
    fn store(
        &mut self,
        ready: Ready,
        in_order: bool,
        since: Option<Instant>,
    ) -> BoxFuture<'static, Stored> {
        let lane = self.lanes.of_owner(ready.flight.piece.worker);
        self.lanes.note_written(lane);
        let target = Arc::clone(&self.targets[lane.place]);
        Box::pin(async move {
            let Ready { flight, content } = ready;
            let range = flight.piece.range;
            let outcome = match content {
                Content::Bytes(Payload::Memory(bytes)) => target.store(range, bytes).await,
                Content::Bytes(Payload::Piped(bytes)) => target.store_piped(range, bytes).await,
                Content::OfFile(file, flags) => target.take_over(range, file, flags).await,
                // Memory was set aside for it, so it is to be written.
                Content::Zeroes if flight.reserved > 0 => target.store_zeroes(range).await,
                Content::Zeroes if in_order => target.zero_here(range).await,
                Content::Zeroes => target.zero_piece(range).await,
            };
            Stored {
                flight,
                outcome,
                since,
                lane,
                sink: None,
            }
        })
    }

    /// Makes durable what was written through a handle so far. False when the device has no such thing.
    pub(crate) fn flush(&mut self, lane: LaneId) -> BoxFuture<'static, (LaneId, Result<bool>)> {
        self.lanes.begin_flush(lane);
        let target = Arc::clone(&self.targets[lane.place]);
        Box::pin(async move { (lane, target.flush().await) })
    }
}

/// Writes a piece to a stream.
async fn write(
    mut sink: Option<Box<dyn ByteSink>>,
    name: Arc<str>,
    ready: Ready,
    buffers: Arc<Buffers>,
    since: Option<Instant>,
) -> Stored {
    let Ready { flight, content } = ready;
    let range = flight.piece.range;
    let written = match (&mut sink, content) {
        (Some(sink), Content::Bytes(Payload::Memory(bytes))) => sink.write(bytes).await.map(drop),
        (Some(sink), Content::Bytes(Payload::Piped(bytes))) => sink.write_piped(bytes).await,
        (Some(sink), Content::Zeroes) => {
            let zeroes = buffers.zeroes(length(range));
            sink.write(zeroes).await.map(drop)
        }
        (None, _) | (_, Content::OfFile(..)) => Err(Error::new(ErrorKind::Unsupported)),
    };
    let outcome = match written {
        Ok(()) => Ok(done(range, flight.piece.zero)),
        Err(error) => Err(named(error, range, &name)),
    };
    Stored {
        flight,
        outcome,
        since,
        lane: LaneId::default(),
        sink,
    }
}

fn done(range: ByteRange, zero: bool) -> Outcome {
    let (data, zero) = if zero {
        (0, range.len())
    } else {
        (range.len(), 0)
    };
    Outcome::Done { data, zero }
}

fn named(error: Error, range: ByteRange, name: &Arc<str>) -> Error {
    let error = error.during(Operation::Write);
    error.at(range.start(), range.len()).on(name)
}
