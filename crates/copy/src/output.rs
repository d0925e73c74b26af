//! The side that is written: a device in any order, a stream in the image's.

use std::{collections::BTreeMap, sync::Arc};

use blockferry_block::{BoxFuture, Buffer, ByteRange, ByteSink, Error, Operation, Result};

use crate::{
    Destination,
    buffers::Buffers,
    pieces::Piece,
    plan::Plan,
    transfer::{Outcome, Target, length},
    zeroes::ZeroPolicy,
};

/// Where pieces go.
pub(crate) enum Output {
    /// A device.
    Device(Arc<Target>),
    /// A stream.
    Stream(StreamOutput),
}

/// A stream that is being written.
pub(crate) struct StreamOutput {
    /// `None` while a piece is being written to it.
    sink: Option<Box<dyn ByteSink>>,
    name: Arc<str>,
    /// The number of the next piece in order.
    next: u64,
    /// Pieces whose turn has not come.
    waiting: BTreeMap<u64, Ready>,
}

/// A piece that can be stored.
pub(crate) struct Ready {
    pub(crate) piece: Piece,
    /// `None` for a piece of zeroes.
    pub(crate) bytes: Option<Buffer>,
    /// How many bytes of the bound on memory it holds.
    pub(crate) reserved: u64,
}

/// A piece that was stored, or was not.
pub(crate) struct Stored {
    pub(crate) reserved: u64,
    pub(crate) outcome: Result<Outcome>,
    sink: Option<Box<dyn ByteSink>>,
}

impl Output {
    /// The destination as the plan wants it written.
    pub(crate) fn new(destination: Destination, buffers: &Arc<Buffers>, plan: &Plan) -> Self {
        match destination {
            Destination::Device(device) => {
                Self::Device(Arc::new(Target::new(device, Arc::clone(buffers), plan)))
            }
            Destination::Stream(sink) => Self::Stream(StreamOutput {
                name: Arc::clone(sink.name()),
                sink: Some(sink),
                next: 0,
                waiting: BTreeMap::new(),
            }),
        }
    }

    /// The endpoint, for messages.
    pub(crate) fn name(&self) -> &Arc<str> {
        match self {
            Self::Device(target) => target.name(),
            Self::Stream(output) => &output.name,
        }
    }

    /// How zeroes come about now.
    pub(crate) fn zero_policy(&self) -> ZeroPolicy {
        match self {
            Self::Device(target) => target.zero_policy(),
            Self::Stream(_) => ZeroPolicy::Write,
        }
    }

    /// Takes a piece that is ready, and stores it at once where the order does not matter.
    pub(crate) fn push(&mut self, ready: Ready) -> Option<BoxFuture<'static, Stored>> {
        match self {
            Self::Device(target) => Some(store(Arc::clone(target), ready)),
            Self::Stream(output) => {
                output.waiting.insert(ready.piece.number, ready);
                None
            }
        }
    }

    /// The next piece in order, if its turn has come and it is ready.
    pub(crate) fn begin(&mut self, buffers: &Buffers) -> Option<BoxFuture<'static, Stored>> {
        match self {
            Self::Device(_) => None,
            Self::Stream(output) => output.begin(buffers),
        }
    }

    /// Takes in a piece that was stored.
    pub(crate) fn stored(&mut self, stored: &mut Stored) {
        if let Self::Stream(output) = self {
            output.sink = stored.sink.take();
        }
    }

    /// Makes durable what was written. False when the destination has no such thing.
    pub(crate) async fn flush(&mut self) -> Result<bool> {
        match self {
            Self::Device(target) => target.flush().await,
            Self::Stream(output) => {
                if let Some(sink) = &mut output.sink {
                    let done = sink.flush().await;
                    done.map_err(|error| error.during(Operation::Flush).on(&output.name))?;
                }
                Ok(true)
            }
        }
    }
}

impl StreamOutput {
    fn begin(&mut self, buffers: &Buffers) -> Option<BoxFuture<'static, Stored>> {
        let mut sink = self.sink.take()?;
        let Some(ready) = self.waiting.remove(&self.next) else {
            self.sink = Some(sink);
            return None;
        };
        self.next += 1;
        let Ready {
            piece,
            bytes,
            reserved,
        } = ready;
        let range = piece.range;
        let bytes = bytes.unwrap_or_else(|| buffers.zeroes(length(range)));
        let name = Arc::clone(&self.name);
        Some(Box::pin(async move {
            let outcome = match sink.write(bytes).await {
                Ok(_) => Ok(done(range, piece.zero)),
                Err(error) => Err(named(error, range, &name)),
            };
            Stored {
                reserved,
                outcome,
                sink: Some(sink),
            }
        }))
    }
}

fn store(target: Arc<Target>, ready: Ready) -> BoxFuture<'static, Stored> {
    Box::pin(async move {
        let range = ready.piece.range;
        let outcome = match ready.bytes {
            Some(bytes) => target.store(range, bytes).await,
            None => target.zero_piece(range).await,
        };
        Stored {
            reserved: ready.reserved,
            outcome,
            sink: None,
        }
    })
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
