//! The side that is read: pieces, and how their bytes come.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use blockferry_block::{
    BoxFuture, ByteRange, ByteSource, FileRange, Operation, Payload, PipeBuffer, PipePool, Result,
};
use tokio::time::Instant;

use crate::{
    Source,
    buffers::Buffers,
    extents::Told,
    lanes::{Joining, LaneId, Lanes},
    pieces::{Cut, Piece, Pieces, Task},
    plan::Plan,
    transfer::{are_several_processors, beside, is_local, length, load},
};

/// Where pieces come from.
pub(crate) enum Input {
    /// A device: many pieces at a time, through one or more handles.
    Device(Box<DeviceInput>),
    /// A stream: one piece after the other.
    Stream(StreamInput),
}

/// A device that is being read.
pub(crate) struct DeviceInput {
    pub(crate) lanes: Lanes,
    pub(crate) pieces: Pieces,
    /// Whether one worker reads through all handles; else each has its own.
    in_order: bool,
    /// Where payloads go that nobody looks at.
    pipes: Option<PipePool>,
    /// How often a payload came in memory although there was a pipe for it.
    spilled: u32,
    /// Whether there are processors for reading while others hash what was read. Reading while others write gains
    /// nothing: writing a file is nearly all that a copy costs.
    several: bool,
}

/// A stream that is being read.
pub(crate) struct StreamInput {
    /// `None` while a piece is being read from it.
    stream: Option<Box<dyn ByteSource>>,
    name: Arc<str>,
    position: u64,
    number: u64,
    ended: bool,
}

/// A piece that was read, or was not.
pub(crate) struct Loaded {
    pub(crate) piece: Piece,
    pub(crate) bytes: Result<Payload>,
    /// The handle that it was read through; a stream has none.
    pub(crate) lane: LaneId,
    pub(crate) begun: Instant,
    /// Whether there was a pipe for it.
    piped: bool,
    stream: Option<Box<dyn ByteSource>>,
}

/// What became of a piece that was loaded.
pub(crate) enum Arrival {
    /// It is here; the range may be shorter than the piece was, at a stream's end.
    Piece(Piece, Payload),
    /// The stream has ended.
    Nothing,
}

impl Input {
    /// The source from 0 to `end`, or to its own end if it is a stream.
    pub(crate) fn new(source: Source, end: u64, plan: &Plan) -> Self {
        match source {
            Source::Device(device) => Self::Device(Box::new(DeviceInput {
                pieces: Pieces::new(Arc::clone(&device), end, plan, plan.done.clone()),
                lanes: Lanes::new(device, plan.connections, plan.retries),
                in_order: plan.in_order,
                pipes: plan.pipes(),
                spilled: 0,
                several: plan.digest.is_some() && are_several_processors(),
            })),
            Source::Stream(stream) => Self::Stream(StreamInput {
                name: Arc::clone(stream.name()),
                stream: Some(stream),
                position: 0,
                number: 0,
                ended: false,
            }),
        }
    }

    /// Keeps what a device says of itself for [`Pieces::take_heard`].
    pub(crate) fn note_extents(&mut self) {
        if let Self::Device(input) = self {
            input.pieces.note_extents();
        }
    }

    /// The next piece of `worker`, if one is known now.
    pub(crate) fn next_piece(&mut self, worker: usize, cut: Cut) -> Option<Piece> {
        match self {
            Self::Device(input) => input.pieces.next_piece(worker, cut),
            Self::Stream(input) => input.next_piece(cut),
        }
    }

    /// Reads a piece.
    pub(crate) fn load(&mut self, piece: Piece, buffers: &Buffers) -> BoxFuture<'static, Loaded> {
        let begun = Instant::now();
        match self {
            Self::Device(input) => {
                let lane = match input.in_order {
                    true => input.lanes.least_busy(),
                    false => input.lanes.of_owner(piece.worker),
                };
                input.lanes.begin(lane);
                let device = Arc::clone(input.lanes.device(lane.place));
                let room = match input.pipe_for(piece) {
                    Some(pipe) => Payload::Piped(pipe),
                    None => Payload::Memory(buffers.take(length(piece.range))),
                };
                let piped = matches!(room, Payload::Piped(_));
                let is_beside = input.several && !piped && is_local(&*device, piece.range.start());
                Box::pin(async move {
                    let range = piece.range;
                    let bytes = match is_beside {
                        // One thread reads while others do something else.
                        true => beside(async move { load(&device, range, room).await }).await,
                        false => load(&device, range, room).await,
                    };
                    Loaded {
                        piece,
                        bytes,
                        lane,
                        begun,
                        piped,
                        stream: None,
                    }
                })
            }
            Self::Stream(input) => {
                let mut stream = input.stream.take();
                let buffer = buffers.take(length(piece.range));
                Box::pin(async move {
                    let bytes = match &mut stream {
                        Some(stream) => stream.read(buffer).await.map(Payload::Memory),
                        None => unreachable!("a stream hands out one piece at a time"),
                    };
                    Loaded {
                        piece,
                        bytes,
                        lane: LaneId::default(),
                        begun,
                        piped: false,
                        stream,
                    }
                })
            }
        }
    }

    /// Takes in a piece that was read: its range, which a stream's end cuts short, and its bytes.
    pub(crate) fn loaded(&mut self, loaded: Loaded) -> Result<Arrival> {
        let Loaded {
            piece,
            bytes,
            stream,
            ..
        } = loaded;
        match self {
            Self::Device(input) => {
                input.lanes.end(loaded.lane);
                if loaded.piped && matches!(bytes, Ok(Payload::Memory(_))) {
                    input.spilled += 1;
                    if input.spilled == MOST_SPILLED {
                        input.pipes = None;
                    }
                }
                bytes.map(|bytes| Arrival::Piece(piece, bytes))
            }
            Self::Stream(input) => {
                input.stream = stream;
                input.arrived(piece, bytes)
            }
        }
    }

    /// The device, if it is one.
    pub(crate) fn device(&mut self) -> Option<&mut DeviceInput> {
        match self {
            Self::Device(input) => Some(input),
            Self::Stream(_) => None,
        }
    }

    /// How many handles there were to read through.
    pub(crate) fn connections(&self) -> usize {
        match self {
            Self::Device(input) => input.lanes.joined(),
            Self::Stream(_) => 1,
        }
    }

    /// How many handles there are to read through.
    pub(crate) fn live(&self) -> usize {
        match self {
            Self::Device(input) => input.lanes.live(),
            Self::Stream(_) => 1,
        }
    }

    /// Whether no piece will come any more.
    pub(crate) fn is_done(&self) -> bool {
        match self {
            Self::Device(input) => input.pieces.is_done(),
            Self::Stream(input) => input.ended,
        }
    }

    /// Ready when more pieces may be known, with what should be told.
    pub(crate) fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Told> {
        match self {
            Self::Device(input) => input.pieces.poll_more(cx),
            Self::Stream(_) => Poll::Pending,
        }
    }

    /// Ready when there is news of the handles.
    pub(crate) fn poll_join(&mut self, cx: &mut Context<'_>) -> Poll<Joining> {
        let Self::Device(input) = self else {
            return Poll::Pending;
        };
        let news = std::task::ready!(input.lanes.poll_join(cx));
        if let Joining::Joined { place, .. } = news {
            let joined = Arc::clone(input.lanes.device(place));
            let asked = Arc::clone(input.pieces.asked());
            if input
                .lanes
                .find(&asked)
                .is_none_or(|lane| input.lanes.is_lost(lane))
            {
                input.pieces.ask_instead(&asked, &joined);
            }
        }
        Poll::Ready(news)
    }

    /// Whether there is nothing to read through at the moment.
    pub(crate) fn is_down(&self) -> bool {
        match self {
            Self::Device(input) => input.lanes.is_down(),
            Self::Stream(_) => false,
        }
    }

    /// How many bytes came from the stream; `None` for a device.
    pub(crate) fn stream_length(&self) -> Option<u64> {
        match self {
            Self::Device(_) => None,
            Self::Stream(input) => Some(input.position),
        }
    }

    /// How many questions for extents were asked.
    pub(crate) fn extent_requests(&self) -> u64 {
        match self {
            Self::Device(input) => input.pieces.extent_requests(),
            Self::Stream(_) => 0,
        }
    }
}

/// The shortest payload for which a pipe is cheaper than memory, in bytes.
const LEAST_PIPED: u64 = 64 << 10;
/// The longest payload that a pipe has certainly room for: a pipe is filled by pieces of pages, and they may
/// be small.
const MOST_PIPED: u64 = 256 << 10;

/// A source whose payloads so often do not fit in a pipe is read into memory from then on.
const MOST_SPILLED: u32 = 16;

impl DeviceInput {
    /// Where a piece lies, if all of it lies in one file.
    pub(crate) fn in_file(&self, piece: Piece) -> Option<FileRange> {
        let device = self.lanes.device(self.lanes.of_owner(piece.worker).place);
        // Without a descriptor to spare the bytes are read.
        let file = device.mapping(piece.range).to_file().ok()??;
        (file.range().len() >= piece.range.len()).then_some(file)
    }

    /// A pipe for a piece that nobody looks at and that is worth it.
    fn pipe_for(&self, piece: Piece) -> Option<PipeBuffer> {
        let fits = (LEAST_PIPED..=MOST_PIPED).contains(&piece.range.len());
        self.pipes.as_ref().filter(|_| fits)?.take()
    }
}

impl StreamInput {
    fn next_piece(&mut self, cut: Cut) -> Option<Piece> {
        if self.ended || self.stream.is_none() {
            return None;
        }
        let number = self.number;
        self.number += 1;
        Some(Piece {
            number,
            range: ByteRange::between(self.position, self.position + u64::from(cut.request_size)),
            zero: false,
            worker: 0,
            task: Task::Copy,
        })
    }

    fn arrived(&mut self, piece: Piece, bytes: Result<Payload>) -> Result<Arrival> {
        let bytes = bytes.map_err(|error| {
            let error = error.during(Operation::Read).at_offset(self.position);
            error.on(&self.name)
        })?;
        let (range, missing) = piece.range.split_at(bytes.len() as u64);
        self.position = range.end();
        self.ended = !missing.is_empty();
        Ok(match range.is_empty() {
            true => Arrival::Nothing,
            false => Arrival::Piece(Piece { range, ..piece }, bytes),
        })
    }
}
