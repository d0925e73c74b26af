//! Carrying out requests on a device.
//!
//! What a device lacks and a client may expect all the same is made here: FUA of a device that can only
//! flush, zeroing of one that can only write, requests longer than the device takes.

use std::{
    os::fd::BorrowedFd,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context as TaskContext, Poll, ready},
};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, Error, ErrorKind, Mapping,
    Operation, Result, WriteFlags, ZeroFlags,
};
use blockferry_proto::{Command, CommandFlags, Extent};
use blockferry_sys::is_cached;

use crate::buffers::Buffers;

/// Extents in the answer for one context: an answer may be shorter than the request.
const MAX_EXTENTS: usize = 1 << 16;

/// Bytes of zeroes that are written at a time where a device cannot zero.
const ZERO_PIECE: u64 = 256 << 10;

/// A device as the requests of a connection see it.
pub(crate) struct Target {
    device: Arc<dyn BlockDevice>,
    buffers: Buffers,
    /// Whether no byte of a file ever becomes another byte of the device: because nothing is written, or because the
    /// whole device lay in one file when it was opened, one byte after the other.
    is_settled: bool,
    /// Whether the system tells what is cached.
    knows_cached: AtomicBool,
    /// Whether clients may give space back.
    discard: bool,
}

/// What a client wants done, in terms of a device. The range was checked by the protocol's session.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) command: Command,
    pub(crate) flags: CommandFlags,
    pub(crate) range: ByteRange,
    /// What a write writes: exactly the range's length.
    pub(crate) payload: Option<Buffer>,
    /// The contexts of a block status with their numbers.
    pub(crate) contexts: Vec<(u32, Context)>,
}

/// What a request came to.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Done, and nothing to tell.
    Done,
    /// The data of a read.
    Data(Buffer),
    /// The data of a read that the device does not take in one piece.
    Pieces(Vec<Buffer>),
    /// The extents of each context by number.
    Extents(Vec<(u32, Vec<Extent>)>),
}

/// A request on its way. The usual reads and writes are the device's own future and nothing around it.
pub(crate) enum Work<'d> {
    Read(BoxFuture<'d, Result<Buffer>>, ByteRange),
    Write(BoxFuture<'d, Result<Buffer>>),
    Unit(BoxFuture<'d, Result<()>>),
    Other(BoxFuture<'d, Result<Answer>>),
}

impl Target {
    pub(crate) fn new(device: Arc<dyn BlockDevice>, buffers: Buffers) -> Self {
        let size = device.info().size;
        let is_settled = match device.mapping(ByteRange::between(0, size)) {
            _ if !device.info().can(Capabilities::WRITE) => true,
            Mapping::File { length, .. } => length == size,
            _ => false,
        };
        Self {
            device,
            buffers,
            is_settled,
            knows_cached: AtomicBool::new(true),
            discard: true,
        }
    }

    /// The same, of whose space clients give back nothing unless `discard` lets them.
    pub(crate) fn discarding(mut self, discard: bool) -> Self {
        self.discard = discard;
        self
    }

    /// The device, which no request works on any more.
    pub(crate) fn into_device(self) -> Arc<dyn BlockDevice> {
        self.device
    }

    /// The file that `range` lies in, and where, if it lies in memory, too. What must come from a disk is better
    /// read by the device, which does not hold up the connection meanwhile.
    pub(crate) fn cached_file(&self, range: ByteRange) -> Option<(BorrowedFd<'_>, u64)> {
        if !self.is_settled || !self.knows_cached.load(Ordering::Relaxed) {
            return None;
        }
        let (file, offset) = match self.device.mapping(range) {
            Mapping::File { fd, offset, length } if length >= range.len() => (fd, offset),
            _ => return None,
        };
        let is_cached = is_cached(file, offset, range.len()).unwrap_or_else(|_| {
            self.knows_cached.store(false, Ordering::Relaxed);
            false
        });
        is_cached.then_some((file, offset))
    }

    /// A buffer for the payload of a write.
    pub(crate) fn take_buffer(&self, length: usize) -> Buffer {
        self.buffers.take(length)
    }

    /// Starts `task`. Nothing happens before the work is polled.
    pub(crate) fn start(&self, task: Task) -> Work<'_> {
        let Task {
            command,
            flags,
            range,
            payload,
            contexts,
        } = task;
        let fua = flags.contains(CommandFlags::FUA);
        match command {
            Command::Read => self.read(range),
            Command::Write => self.write(range, payload, fua),
            Command::WriteZeroes => Work::Other(Box::pin(self.zero(range, flags))),
            Command::Trim => Work::Other(Box::pin(self.trim(range, fua))),
            Command::Flush | Command::Disconnect => Work::Unit(self.device.flush()),
            Command::Cache => Work::Unit(self.device.cache(range)),
            Command::BlockStatus => {
                let one = flags.contains(CommandFlags::REQ_ONE);
                Work::Other(Box::pin(self.block_status(range, contexts, one)))
            }
        }
    }

    fn read(&self, range: ByteRange) -> Work<'_> {
        if range.len() > self.longest() {
            return Work::Other(Box::pin(self.read_in_pieces(range)));
        }
        let buffer = self.buffers.take(length_of(range));
        Work::Read(self.device.read(range.start(), buffer), range)
    }

    async fn read_in_pieces(&self, range: ByteRange) -> Result<Answer> {
        let mut pieces = Vec::new();
        for piece in range.pieces(self.longest()) {
            let buffer = self.buffers.take(length_of(piece));
            let buffer = self.device.read(piece.start(), buffer).await?;
            pieces.push(checked(buffer, piece)?);
        }
        Ok(Answer::Pieces(pieces))
    }

    fn write(&self, range: ByteRange, payload: Option<Buffer>, fua: bool) -> Work<'_> {
        let Some(payload) = payload else {
            let error = Error::new(ErrorKind::InvalidInput).during(Operation::Write);
            return Work::Unit(Box::pin(async { Err(error) }));
        };
        if range.len() > self.longest() || (fua && !self.has_fua()) {
            return Work::Other(Box::pin(self.write_in_pieces(range, payload, fua)));
        }
        Work::Write(
            self.device
                .write(range.start(), payload, self.write_flags(fua)),
        )
    }

    async fn write_in_pieces(
        &self,
        range: ByteRange,
        payload: Buffer,
        fua: bool,
    ) -> Result<Answer> {
        let flags = self.write_flags(fua);
        if range.len() <= self.longest() {
            self.device.write(range.start(), payload, flags).await?;
        } else {
            let mut rest = &payload[..];
            for piece in range.pieces(self.longest()) {
                let (bytes, behind) = rest.split_at(length_of(piece));
                let mut buffer = self.buffers.take(bytes.len());
                buffer.copy_from_slice(bytes);
                self.device.write(piece.start(), buffer, flags).await?;
                rest = behind;
            }
        }
        self.make_durable(fua).await
    }

    async fn trim(&self, range: ByteRange, fua: bool) -> Result<Answer> {
        if !self.discard {
            return Ok(Answer::Done);
        }
        self.device.trim(range, self.write_flags(fua)).await?;
        self.make_durable(fua).await
    }

    async fn zero(&self, range: ByteRange, flags: CommandFlags) -> Result<Answer> {
        let fua = flags.contains(CommandFlags::FUA);
        let fast = flags.contains(CommandFlags::FAST_ZERO);
        let mut zero = ZeroFlags::empty();
        zero.set(ZeroFlags::FUA, fua && self.has_fua());
        let allocated = !self.discard || flags.contains(CommandFlags::NO_HOLE);
        zero.set(ZeroFlags::NO_HOLE, allocated);
        zero.set(ZeroFlags::FAST, fast);
        match self.device.zero(range, zero).await {
            Err(error) if error.kind() == ErrorKind::Unsupported && !fast => {
                self.write_zeroes(range, self.write_flags(fua)).await?;
            }
            result => result?,
        }
        self.make_durable(fua).await
    }

    async fn write_zeroes(&self, range: ByteRange, flags: WriteFlags) -> Result<()> {
        let size = self.longest().min(ZERO_PIECE);
        let mut zeroes = Buffer::zeroed(usize::try_from(size).unwrap_or(usize::MAX));
        for piece in range.pieces(size) {
            zeroes.set_len(length_of(piece));
            zeroes = self.device.write(piece.start(), zeroes, flags).await?;
        }
        Ok(())
    }

    async fn block_status(
        &self,
        range: ByteRange,
        contexts: Vec<(u32, Context)>,
        one: bool,
    ) -> Result<Answer> {
        let mut answers = Vec::with_capacity(contexts.len());
        for (id, context) in contexts {
            answers.push((id, self.extents(range, &context, one).await?));
        }
        Ok(Answer::Extents(answers))
    }

    /// The extents of `range`, neighbours merged: all of them up to a bound, or just the first, as far as the device
    /// tells it in one answer.
    async fn extents(&self, range: ByteRange, context: &Context, one: bool) -> Result<Vec<Extent>> {
        let mut extents: Vec<Extent> = Vec::new();
        let mut rest = range;
        while !rest.is_empty() {
            let before = rest;
            let answer = match one {
                true => self.device.first_extent(rest, context),
                false => self.device.extents(rest, context),
            };
            for extent in answer.await? {
                // Whatever a device answers, the client gets a contiguous list inside its request.
                let part = extent.range.intersection(rest);
                if part.is_empty() || part.start() != rest.start() {
                    continue;
                }
                (_, rest) = rest.split_at(part.len());
                let full = extents.len() >= if one { 1 } else { MAX_EXTENTS };
                match extents.last_mut() {
                    Some(last) if last.flags == extent.status.0 => last.length += part.len(),
                    Some(_) if full => return Ok(extents),
                    _ => extents.push(Extent {
                        length: part.len(),
                        flags: extent.status.0,
                    }),
                }
            }
            if rest == before || one {
                break;
            }
        }
        if extents.is_empty() {
            return Err(Error::with_message(
                ErrorKind::Io,
                "the device knows nothing of the range",
            )
            .during(Operation::Extents)
            .at(range.start(), range.len()));
        }
        Ok(extents)
    }

    /// The second half of FUA, where the device has only the flush.
    async fn make_durable(&self, fua: bool) -> Result<Answer> {
        if fua && !self.has_fua() {
            self.device.flush().await?;
        }
        Ok(Answer::Done)
    }

    fn has_fua(&self) -> bool {
        self.device.info().can(Capabilities::FUA)
    }

    fn write_flags(&self, fua: bool) -> WriteFlags {
        if fua && self.has_fua() {
            WriteFlags::FUA
        } else {
            WriteFlags::empty()
        }
    }

    /// The longest read or write that the device takes.
    fn longest(&self) -> u64 {
        u64::from(self.device.info().limits.maximum.max(1))
    }
}

impl Future for Work<'_> {
    type Output = Result<Answer>;

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        Poll::Ready(match self.get_mut() {
            Self::Read(read, range) => ready!(read.as_mut().poll(cx))
                .and_then(|data| checked(data, *range).map(Answer::Data)),
            Self::Write(write) => ready!(write.as_mut().poll(cx)).map(|_| Answer::Done),
            Self::Unit(unit) => ready!(unit.as_mut().poll(cx)).map(|()| Answer::Done),
            Self::Other(other) => ready!(other.as_mut().poll(cx)),
        })
    }
}

/// The buffer that a device read `range` into, if it has the right length: a reply of another length
/// would break the connection.
fn checked(buffer: Buffer, range: ByteRange) -> Result<Buffer> {
    if buffer.len() as u64 == range.len() {
        return Ok(buffer);
    }
    Err(Error::with_message(
        ErrorKind::UnexpectedEnd,
        "the device returned another number of bytes than it was asked for",
    )
    .during(Operation::Read)
    .at(range.start(), range.len()))
}

/// The length of a range that a buffer holds: it was validated to be below 2^32.
fn length_of(range: ByteRange) -> usize {
    usize::try_from(range.len()).unwrap_or(usize::MAX)
}
