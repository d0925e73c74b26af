//! The side that is read: pieces, and how their bytes come.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use blockferry_block::{BlockDevice, BoxFuture, Buffer, ByteRange, ByteSource, Operation, Result};

use crate::{
    Source, Warning,
    buffers::Buffers,
    pieces::{Piece, Pieces},
    plan::Plan,
    transfer::{length, read},
};

/// Where pieces come from.
pub(crate) enum Input {
    /// A device: many pieces at a time.
    Device {
        device: Arc<dyn BlockDevice>,
        pieces: Pieces,
    },
    /// A stream: one piece after the other.
    Stream(StreamInput),
}

/// A stream that is being read.
pub(crate) struct StreamInput {
    /// `None` while a piece is being read from it.
    stream: Option<Box<dyn ByteSource>>,
    name: Arc<str>,
    request_size: u64,
    position: u64,
    number: u64,
    ended: bool,
}

/// A piece that was read, or was not.
pub(crate) struct Loaded {
    pub(crate) piece: Piece,
    pub(crate) bytes: Result<Buffer>,
    stream: Option<Box<dyn ByteSource>>,
}

impl Input {
    /// The source from 0 to `end`, or to its own end if it is a stream.
    pub(crate) fn new(source: Source, end: u64, plan: &Plan) -> Self {
        match source {
            Source::Device(device) => Self::Device {
                pieces: Pieces::new(Arc::clone(&device), end, plan),
                device,
            },
            Source::Stream(stream) => Self::Stream(StreamInput {
                name: Arc::clone(stream.name()),
                stream: Some(stream),
                request_size: u64::from(plan.request_size),
                position: 0,
                number: 0,
                ended: false,
            }),
        }
    }

    /// The next piece, if one is known now. `written` says that zeroes will be written.
    pub(crate) fn next_piece(&mut self, written: bool) -> Option<Piece> {
        match self {
            Self::Device { pieces, .. } => pieces.next_piece(written),
            Self::Stream(input) => input.next_piece(),
        }
    }

    /// Reads a piece.
    pub(crate) fn load(&mut self, piece: Piece, buffers: &Buffers) -> BoxFuture<'static, Loaded> {
        let buffer = buffers.take_long(length(piece.range));
        match self {
            Self::Device { device, .. } => {
                let device = Arc::clone(device);
                Box::pin(async move {
                    Loaded {
                        piece,
                        bytes: read(&device, piece.range, buffer).await,
                        stream: None,
                    }
                })
            }
            Self::Stream(input) => {
                let mut stream = input.stream.take();
                Box::pin(async move {
                    let bytes = match &mut stream {
                        Some(stream) => stream.read(buffer).await,
                        None => unreachable!("a stream hands out one piece at a time"),
                    };
                    Loaded {
                        piece,
                        bytes,
                        stream,
                    }
                })
            }
        }
    }

    /// Takes in a piece that was read: its range, which a stream's end cuts short, and its bytes.
    /// `None` at a stream's end.
    pub(crate) fn loaded(&mut self, loaded: Loaded) -> Result<Option<(Piece, Buffer)>> {
        let Loaded {
            piece,
            bytes,
            stream,
        } = loaded;
        match self {
            Self::Device { .. } => bytes.map(|bytes| Some((piece, bytes))),
            Self::Stream(input) => {
                input.stream = stream;
                input.arrived(piece, bytes)
            }
        }
    }

    /// Takes back a piece of zeroes, to hand it out again in smaller ones.
    pub(crate) fn put_back(&mut self, range: ByteRange) {
        if let Self::Device { pieces, .. } = self {
            pieces.put_back(range);
        }
    }

    /// Whether no piece will come any more.
    pub(crate) fn is_done(&self) -> bool {
        match self {
            Self::Device { pieces, .. } => pieces.is_done(),
            Self::Stream(input) => input.ended,
        }
    }

    /// Ready when more pieces may be known, with what should be told.
    pub(crate) fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Option<Warning>> {
        match self {
            Self::Device { pieces, .. } => pieces.poll_more(cx),
            Self::Stream(_) => Poll::Pending,
        }
    }

    /// How many bytes came from the stream; `None` for a device.
    pub(crate) fn stream_length(&self) -> Option<u64> {
        match self {
            Self::Device { .. } => None,
            Self::Stream(input) => Some(input.position),
        }
    }

    /// How many questions for extents were asked.
    pub(crate) fn extent_requests(&self) -> u64 {
        match self {
            Self::Device { pieces, .. } => pieces.extent_requests(),
            Self::Stream(_) => 0,
        }
    }
}

impl StreamInput {
    fn next_piece(&mut self) -> Option<Piece> {
        if self.ended || self.stream.is_none() {
            return None;
        }
        let number = self.number;
        self.number += 1;
        Some(Piece {
            number,
            range: ByteRange::between(self.position, self.position + self.request_size),
            zero: false,
        })
    }

    fn arrived(&mut self, piece: Piece, bytes: Result<Buffer>) -> Result<Option<(Piece, Buffer)>> {
        let bytes = bytes.map_err(|error| {
            let error = error.during(Operation::Read).at_offset(self.position);
            error.on(&self.name)
        })?;
        let (range, missing) = piece.range.split_at(bytes.len() as u64);
        self.position = range.end();
        self.ended = !missing.is_empty();
        Ok((!range.is_empty()).then_some((Piece { range, ..piece }, bytes)))
    }
}
