//! One piece on its way into a device: where it is zero, and how either part gets there.

use std::{sync::Arc, thread};

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, CopyFlags, Error, ErrorKind, FileRange, Mapping, Operation,
    Payload, PipeBuffer, Result, WriteFlags, run_blocking, zero_runs,
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::runtime::Handle;

use crate::{
    buffers::Buffers,
    plan::Plan,
    zeroes::{ZeroPolicy, Zeroing},
};

/// How many parts of one piece are in flight at a time, where a piece is zero here and data there.
const PARTS_IN_FLIGHT: usize = 8;

/// A handle to the device that is written to.
pub(crate) struct Target {
    device: Arc<dyn BlockDevice>,
    writing: Arc<Writing>,
}

/// How the device is written; what one handle learns of it holds for all.
pub(crate) struct Writing {
    buffers: Arc<Buffers>,
    zeroing: Zeroing,
    granularity: Option<u32>,
    /// The longest run of zeroes that is written at once.
    request_size: u64,
}

impl Writing {
    /// As the plan wants it.
    pub(crate) fn new(buffers: Arc<Buffers>, plan: &Plan) -> Self {
        Self {
            buffers,
            zeroing: Zeroing::new(plan.zeroes),
            granularity: plan.granularity,
            request_size: u64::from(plan.shortest_request),
        }
    }

    /// How zeroes come about now.
    pub(crate) fn zero_policy(&self) -> ZeroPolicy {
        self.zeroing.policy()
    }

    /// The granularity of zero detection, where finding zeroes helps.
    fn detection(&self) -> Option<u32> {
        self.granularity
            .filter(|_| self.zeroing.policy() != ZeroPolicy::Write)
    }
}

/// What became of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is there: so many bytes of data, so many of zeroes.
    Done { data: u64, zero: u64 },
    /// The device cannot take bytes over from that file. They must be read and written.
    NotTaken,
    /// The device does not zero. The piece is too long to be written as zeroes at once.
    NotZeroed(ByteRange),
}

/// A run of a piece that is partly zero.
struct Part {
    range: ByteRange,
    /// `None` for zeroes.
    data: Option<Buffer>,
}

impl Target {
    /// The handle `device`.
    pub(crate) fn new(device: Arc<dyn BlockDevice>, writing: Arc<Writing>) -> Self {
        Self { device, writing }
    }

    /// The endpoint, for messages.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.device.info().name
    }

    /// Stores `bytes` at `range`; where they are zero, by not writing them.
    pub(crate) async fn store(&self, range: ByteRange, bytes: Buffer) -> Result<Outcome> {
        let whole = bytes.len();
        let Some(granularity) = self.writing.detection() else {
            return self.store_data(range, bytes).await;
        };
        let first = zero_runs(&bytes, granularity as usize).next();
        match first {
            Some(run) if run.range.len() == whole && !run.is_zero => {
                self.store_data(range, bytes).await
            }
            Some(run) if run.range.len() == whole => {
                drop(bytes);
                self.store_zeroes(range).await
            }
            _ => {
                let parts = self.parts(range, &bytes, granularity as usize);
                drop(bytes);
                self.store_parts(parts).await
            }
        }
    }

    /// Stores `bytes` at `range` as they are.
    pub(crate) async fn store_data(&self, range: ByteRange, bytes: Buffer) -> Result<Outcome> {
        self.write(range, bytes).await?;
        Ok(Outcome::Done {
            data: range.len(),
            zero: 0,
        })
    }

    /// Stores what is in a pipe at `range`.
    pub(crate) async fn store_piped(&self, range: ByteRange, bytes: PipeBuffer) -> Result<Outcome> {
        let none = WriteFlags::empty();
        let done = self.device.write_piped(range.start(), bytes, none).await;
        done.map_err(|error| {
            let error = error.during(Operation::Write);
            self.named(error.at(range.start(), range.len()))
        })?;
        Ok(Outcome::Done {
            data: range.len(),
            zero: 0,
        })
    }

    /// Lets the device take `range` over from a file, or says that it cannot.
    pub(crate) async fn take_over(
        &self,
        range: ByteRange,
        file: FileRange,
        flags: CopyFlags,
    ) -> Result<Outcome> {
        match self.device.copy_from(range.start(), file, flags).await {
            Ok(()) => Ok(Outcome::Done {
                data: range.len(),
                zero: 0,
            }),
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(Outcome::NotTaken),
            Err(error) => {
                let error = error.during(Operation::Copy);
                Err(self.named(error.at(range.start(), range.len())))
            }
        }
    }

    /// Makes a piece zero that is known to be, or says that it must be written.
    pub(crate) async fn zero_piece(&self, range: ByteRange) -> Result<Outcome> {
        if self.zero(range).await? {
            return Ok(Outcome::Done {
                data: 0,
                zero: range.len(),
            });
        }
        if range.len() > self.writing.request_size {
            return Ok(Outcome::NotZeroed(range));
        }
        self.store_zeroes(range).await
    }

    /// Makes a piece zero that is known to be, by writing if it must be, one request at a time.
    pub(crate) async fn zero_here(&self, range: ByteRange) -> Result<Outcome> {
        let Outcome::NotZeroed(range) = self.zero_piece(range).await? else {
            return Ok(Outcome::Done {
                data: 0,
                zero: range.len(),
            });
        };
        for part in range.pieces(self.writing.request_size) {
            self.store_zeroes(part).await?;
        }
        Ok(Outcome::Done {
            data: 0,
            zero: range.len(),
        })
    }

    /// Sets the size of the device to `size` bytes.
    pub(crate) async fn resize(&self, size: u64) -> Result<()> {
        let done = self.device.resize(size).await;
        done.map_err(|error| self.named(error.during(Operation::Resize)))
    }

    /// Stores `bytes` as the end of the image within a block that the device goes on in: what the
    /// device has behind the image stays.
    pub(crate) async fn store_padded(
        &self,
        range: ByteRange,
        bytes: &[u8],
        block: u32,
    ) -> Result<Outcome> {
        let block = u64::from(block);
        let end = range.end().next_multiple_of(block);
        let end = end.min(self.device.info().size);
        let last = ByteRange::between(range.end() - range.end() % block, end);
        let present = read(&self.device, last, self.writing.buffers.take(length(last))).await?;

        let padded = ByteRange::between(range.start(), end);
        let mut whole = self.writing.buffers.take(length(padded));
        let kept = present.len() - (whole.len() - bytes.len());
        whole[..bytes.len()].copy_from_slice(bytes);
        whole[bytes.len()..].copy_from_slice(&present[kept..]);
        self.write(padded, whole).await?;
        Ok(Outcome::Done {
            data: range.len(),
            zero: 0,
        })
    }

    /// Makes durable what was written. False when the device has no such thing.
    pub(crate) async fn flush(&self) -> Result<bool> {
        match self.device.flush().await {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(false),
            Err(error) => Err(self.named(error.during(Operation::Flush))),
        }
    }

    fn parts(&self, range: ByteRange, bytes: &[u8], granularity: usize) -> Vec<Part> {
        let parts = zero_runs(bytes, granularity).map(|run| Part {
            range: ByteRange::between(
                range.start() + run.range.start as u64,
                range.start() + run.range.end as u64,
            ),
            data: (!run.is_zero).then(|| self.writing.buffers.copy_of(&bytes[run.range])),
        });
        parts.collect()
    }

    /// Stores the parts of a piece, several at a time. After a failure no more are begun.
    async fn store_parts(&self, parts: Vec<Part>) -> Result<Outcome> {
        let mut parts = parts.into_iter();
        let mut running = FuturesUnordered::new();
        let (mut data, mut zero) = (0, 0);
        let mut failure = None;
        loop {
            while failure.is_none() && running.len() < PARTS_IN_FLIGHT {
                let Some(part) = parts.next() else { break };
                running.push(self.store_part(part));
            }
            match running.next().await {
                Some(Ok(Outcome::Done { data: d, zero: z })) => {
                    data += d;
                    zero += z;
                }
                Some(Ok(Outcome::NotZeroed(_) | Outcome::NotTaken)) => {}
                Some(Err(error)) => failure = failure.or(Some(error)),
                None => break,
            }
        }
        failure.map_or(Ok(Outcome::Done { data, zero }), Err)
    }

    async fn store_part(&self, part: Part) -> Result<Outcome> {
        match part.data {
            Some(bytes) => self.store_data(part.range, bytes).await,
            None => self.store_zeroes(part.range).await,
        }
    }

    /// Makes `range`, a request's length at most, zero in any way there is.
    pub(crate) async fn store_zeroes(&self, range: ByteRange) -> Result<Outcome> {
        if !self.zero(range).await? {
            let zeroes = self.writing.buffers.zeroes(length(range));
            self.write(range, zeroes).await?;
        }
        Ok(Outcome::Done {
            data: 0,
            zero: range.len(),
        })
    }

    /// Makes `range` zero without writing it; false where that cannot be.
    async fn zero(&self, range: ByteRange) -> Result<bool> {
        let flags = match self.writing.zeroing.policy() {
            ZeroPolicy::Skip => return Ok(true),
            ZeroPolicy::Write => return Ok(false),
            ZeroPolicy::Request(flags) => flags,
        };
        match self.device.zero(range, flags).await {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                self.writing.zeroing.refuse();
                Ok(false)
            }
            Err(error) => {
                let error = error.during(Operation::Zero);
                Err(self.named(error.at(range.start(), range.len())))
            }
        }
    }

    async fn write(&self, range: ByteRange, bytes: Buffer) -> Result<()> {
        let done = self.device.write(range.start(), bytes, WriteFlags::empty());
        match done.await {
            Ok(_) => Ok(()),
            Err(error) => {
                let error = error.during(Operation::Write);
                Err(self.named(error.at(range.start(), range.len())))
            }
        }
    }

    fn named(&self, error: Error) -> Error {
        error.on(self.name())
    }
}

/// Reads `range` of `device` into `buffer`, which has room for it.
pub(crate) async fn read(
    device: &Arc<dyn BlockDevice>,
    range: ByteRange,
    buffer: Buffer,
) -> Result<Buffer> {
    let read = device.read(range.start(), buffer).await;
    whole(device, range, read, |buffer| buffer.len())
}

/// Reads `range` of `device` into `room`, which is a buffer of that length or an empty pipe.
pub(crate) async fn load(
    device: &Arc<dyn BlockDevice>,
    range: ByteRange,
    room: Payload,
) -> Result<Payload> {
    match room {
        Payload::Memory(buffer) => read(device, range, buffer).await.map(Payload::Memory),
        Payload::Piped(pipe) => {
            let read = device.read_piped(range.start(), length(range), pipe).await;
            whole(device, range, read, Payload::len)
        }
    }
}

/// Whether what begins at `offset` lies in a file of this machine: reading it takes a processor's time, and is no waiting
/// for others.
pub(crate) fn is_local(device: &dyn BlockDevice, offset: u64) -> bool {
    let first = ByteRange::between(offset, offset.saturating_add(1));
    matches!(device.mapping(first), Mapping::File { .. })
}

/// Whether there are processors for more than one thread.
pub(crate) fn are_several_processors() -> bool {
    thread::available_parallelism().is_ok_and(|number| number.get() > 1)
}

/// Runs `work` on another thread, while this one does something else. It goes on when nobody waits for it any more.
pub(crate) async fn beside<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let Ok(runtime) = Handle::try_current() else {
        return work.await;
    };
    run_blocking(move || runtime.block_on(work)).await?
}

/// What was read of `range`, if it is all there; errors say what was read.
fn whole<T>(
    device: &Arc<dyn BlockDevice>,
    range: ByteRange,
    read: Result<T>,
    len: impl Fn(&T) -> usize,
) -> Result<T> {
    let name = |error: Error| {
        let error = error.during(Operation::Read);
        error.at(range.start(), range.len()).on(&device.info().name)
    };
    let bytes = read.map_err(name)?;
    if len(&bytes) as u64 != range.len() {
        let message = format!("only {} of {} bytes came", len(&bytes), range.len());
        return Err(name(Error::with_message(ErrorKind::UnexpectedEnd, message)));
    }
    Ok(bytes)
}

/// The length of a range that was made to fit in memory.
pub(crate) fn length(range: ByteRange) -> usize {
    usize::try_from(range.len()).expect("a piece fits in memory")
}
