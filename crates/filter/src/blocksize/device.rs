//! The device that takes requests of any size.

use std::{
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, BufferPool, ByteRange, Capabilities, Context, CopyFlags,
    DeviceInfo, Error, ErrorKind, Extent, FileRange, Operation, Payload, PipeBuffer, Result,
    Status, WriteFlags, ZeroFlags, range_of, request_range,
};
use futures_util::{StreamExt as _, TryStreamExt as _, future::try_join, stream};
use tokio::runtime::Handle;

use super::{
    BlockSize, LONGEST,
    locks::{BlockLocks, ChangeGuard},
};
use crate::DeviceFilter;

/// How many requests to the source one request becomes at a time, at most.
const SIDE_BY_SIDE: usize = 8;

/// The longest buffers that are kept for the next request, in bytes.
const POOLED: usize = 1 << 20;

/// A device of any block size in front of one that has its own.
pub(super) struct Resized {
    options: BlockSize,
    below: Arc<dyn BlockDevice>,
    locks: Arc<BlockLocks>,
    /// Carries out what must not be left half done.
    runtime: Handle,
    info: DeviceInfo,
    shape: Shape,
    buffers: BufferPool,
}

/// What the source takes.
#[derive(Clone, Copy)]
struct Shape {
    /// The smallest block, in bytes.
    unit: u64,
    /// The longest read or write: whole blocks.
    longest: u64,
    /// The longest range of anything else: whole blocks.
    stretch: u64,
    /// Where the device ends, maybe inside a block.
    end: u64,
}

impl Shape {
    /// The whole blocks that `range` lies in.
    fn around(self, range: ByteRange) -> ByteRange {
        let start = range.start() - range.start() % self.unit;
        let end = range.end().div_ceil(self.unit).saturating_mul(self.unit);
        // With blocks of a byte there is growth behind the end.
        ByteRange::between(start, end.min(self.end.max(range.end())))
    }

    /// The whole blocks that lie in `range`.
    fn within(self, range: ByteRange) -> ByteRange {
        if self.unit == 1 {
            return range;
        }
        let end = match range.end() == self.end {
            true => range.end(),
            false => range.end() - range.end() % self.unit,
        };
        let start = range.start().div_ceil(self.unit).saturating_mul(self.unit);
        ByteRange::between(start.min(end), end)
    }

    /// The blocks of which `range` has a part only: two at most.
    fn partial(self, range: ByteRange) -> Vec<ByteRange> {
        let around = self.around(range);
        let first = around.split_at(self.unit).0;
        let last = self.around(ByteRange::between(
            range.end().saturating_sub(1),
            range.end(),
        ));
        let mut partial = Vec::new();
        if around.start() < range.start() {
            partial.push(first);
        }
        if range.end() < around.end() && partial.last() != Some(&last) {
            partial.push(last);
        }
        partial
    }
}

/// `range` in pieces of `length` bytes, but for the last one.
fn cut(range: ByteRange, length: u64) -> impl Iterator<Item = ByteRange> + Send {
    let mut rest = range;
    std::iter::from_fn(move || {
        let (piece, behind) = rest.split_at(length);
        rest = behind;
        (!piece.is_empty()).then_some(piece)
    })
}

/// What `inner` is in bytes that begin where `outer` does.
fn indices(outer: ByteRange, inner: ByteRange) -> std::ops::Range<usize> {
    let start = (inner.start() - outer.start()) as usize;
    start..start + inner.len() as usize
}

impl Resized {
    pub(super) fn new(
        options: BlockSize,
        below: Arc<dyn BlockDevice>,
        locks: Arc<BlockLocks>,
        runtime: Handle,
    ) -> Result<Self> {
        let mut info = below.info().clone();
        let limits = info.limits;
        let unit = limits.minimum.max(options.minimum.unwrap_or(1)).max(1);
        let longest = limits.maximum.min(options.maximum_data.unwrap_or(u32::MAX));
        if longest < unit {
            let message =
                format!("requests of at most {longest} bytes hold no block of {unit} bytes");
            let error = Error::with_message(ErrorKind::InvalidInput, message);
            return Err(error.during(Operation::Open));
        }
        let unit = u64::from(unit);
        let whole = |length: u64| (length - length % unit).max(unit);
        let shape = Shape {
            unit,
            longest: whole(longest.into()),
            stretch: whole(options.maximum_length.unwrap_or(u64::MAX)),
            end: info.size,
        };
        if unit > 1 {
            // What is written back of the last block would have to be known to be there.
            info.capabilities -= Capabilities::RESIZE;
        }
        let minimum = options.advertise_minimum.unwrap_or(limits.minimum.max(1));
        let maximum = options.advertise_maximum;
        let maximum = maximum.unwrap_or(limits.maximum.min(LONGEST));
        info.limits.minimum = minimum;
        info.limits.maximum = (maximum - maximum % minimum).max(minimum);
        let preferred = u64::from(limits.preferred).max(unit);
        let preferred = u32::try_from(preferred).unwrap_or(u32::MAX).max(minimum);
        let preferred = options.advertise_preferred.unwrap_or(preferred);
        info.limits.preferred = preferred.max(minimum).min(info.limits.maximum);
        let capacity = usize::try_from(shape.longest).unwrap_or(POOLED).min(POOLED);
        Ok(Self {
            buffers: BufferPool::new(capacity, SIDE_BY_SIDE),
            options,
            below,
            locks,
            runtime,
            info,
            shape,
        })
    }

    /// Checks a request against what clients were told.
    fn check(&self, operation: Operation, range: ByteRange) -> Result<()> {
        // Where a device that grows ends now, it knows itself.
        if !self.info.can(Capabilities::RESIZE) {
            self.info.check(operation, range)?;
        }
        if !self.options.enforce {
            return Ok(());
        }
        let limits = self.info.limits;
        let minimum = u64::from(limits.minimum);
        let has_data = matches!(operation, Operation::Read | Operation::Write);
        let ends_well = range.end().is_multiple_of(minimum) || range.end() == self.info.size;
        let message = if !range.start().is_multiple_of(minimum) || !ends_well {
            format!("requests begin and end at multiples of {minimum} bytes")
        } else if has_data && range.len() > limits.maximum.into() {
            format!("requests are no longer than {} bytes", limits.maximum)
        } else {
            return Ok(());
        };
        let error = Error::with_message(ErrorKind::InvalidInput, message);
        Err(error.during(operation).at(range.start(), range.len()))
    }

    /// Whether the source takes a read or write of `range` as it is.
    fn is_whole(&self, range: ByteRange) -> bool {
        self.shape.around(range) == range && range.len() <= self.shape.longest
    }

    /// Waits until `range` can be changed.
    async fn lock(&self, range: ByteRange) -> Option<Arc<ChangeGuard>> {
        // Where there are no parts of blocks, nothing is read and written back.
        if self.shape.unit == 1 || range.is_empty() {
            return None;
        }
        let (around, partial) = (self.shape.around(range), self.shape.partial(range));
        Some(Arc::new(self.locks.lock(around, partial).await))
    }

    async fn read_pieces(&self, range: ByteRange, mut buffer: Buffer) -> Result<Buffer> {
        let pieces = cut(self.shape.around(range), self.shape.longest).map(|piece| async move {
            let scratch = self.buffers.take(piece.len() as usize);
            let read = self.below.read(piece.start(), scratch).await?;
            Ok::<_, Error>((piece, read))
        });
        let mut reads = stream::iter(pieces).buffer_unordered(SIDE_BY_SIDE);
        while let Some((piece, read)) = reads.try_next().await? {
            let wanted = piece.intersection(range);
            buffer[indices(range, wanted)].copy_from_slice(&read[indices(piece, wanted)]);
        }
        Ok(buffer)
    }

    /// Writes `range`, which lies in `guard`'s blocks: zeroes, or what is in `data`.
    async fn write_pieces(
        &self,
        range: ByteRange,
        data: Option<&[u8]>,
        flags: WriteFlags,
        guard: Option<&Arc<ChangeGuard>>,
    ) -> Result<()> {
        let longest = match data {
            Some(_) => self.shape.longest,
            None => self.shape.longest.min((POOLED as u64).max(self.shape.unit)),
        };
        let pieces = cut(self.shape.around(range), longest);
        self.each(pieces, |piece| async move {
            let wanted = piece.intersection(range);
            let mut buffer = self.buffers.take(piece.len() as usize);
            let part = &mut buffer[indices(piece, wanted)];
            match data {
                Some(data) => part.copy_from_slice(&data[indices(range, wanted)]),
                None => part.fill(0),
            }
            if wanted == piece {
                self.below.write(piece.start(), buffer, flags).await?;
                return Ok(());
            }
            let merge = Merge {
                below: Arc::clone(&self.below),
                blocks: self.shape.partial(wanted),
                piece,
                wanted,
                buffer,
                flags,
                _guard: guard.cloned(),
            };
            match self.runtime.spawn(merge.carry_out()).await {
                Ok(result) => result,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => resume_unwind(panic),
                    Err(_) => Err(Error::new(ErrorKind::Cancelled)),
                },
            }
        })
        .await
    }

    /// Calls `call` for each piece, several at a time. After a failure no more are begun; what was begun is waited
    /// for.
    async fn each<F>(
        &self,
        pieces: impl Iterator<Item = ByteRange> + Send,
        call: impl Fn(ByteRange) -> F + Send + Sync,
    ) -> Result<()>
    where
        F: Future<Output = Result<()>> + Send,
    {
        let has_failed = AtomicBool::new(false);
        let pieces = pieces
            .take_while(|_| !has_failed.load(Ordering::Relaxed))
            .map(|piece| {
                let call = call(piece);
                async {
                    // There may be many, each done at once.
                    tokio::task::consume_budget().await;
                    call.await
                }
            });
        let mut calls = stream::iter(pieces).buffer_unordered(SIDE_BY_SIDE);
        let mut failure = Ok(());
        while let Some(result) = calls.next().await {
            if failure.is_ok() && result.is_err() {
                has_failed.store(true, Ordering::Relaxed);
                failure = result;
            }
        }
        failure
    }

    async fn zero_all(&self, range: ByteRange, flags: ZeroFlags) -> Result<()> {
        let inner = self.shape.within(range);
        let unsupported = || Error::new(ErrorKind::Unsupported);
        let is_fast = flags.contains(ZeroFlags::FAST);
        if !self.info.can(Capabilities::ZERO) || (is_fast && inner.is_empty()) {
            return Err(unsupported());
        }
        let guard = self.lock(range).await;
        let mut write = WriteFlags::empty();
        write.set(WriteFlags::FUA, flags.contains(ZeroFlags::FUA));
        // Alone, for nothing may have changed when it is not supported.
        let (first, rest) = inner.split_at(self.shape.stretch);
        if !first.is_empty() {
            self.below.zero(first, flags).await?;
        }
        self.each(cut(rest, self.shape.stretch), |piece| {
            let guard = guard.as_ref();
            async move {
                match self.below.zero(piece, flags).await {
                    Err(error) if error.kind() == ErrorKind::Unsupported => {
                        self.write_pieces(piece, None, write, guard).await
                    }
                    result => result,
                }
            }
        })
        .await?;
        let edges = match inner.is_empty() {
            true => vec![range],
            false => vec![
                ByteRange::between(range.start(), inner.start()),
                ByteRange::between(inner.end(), range.end()),
            ],
        };
        for edge in edges {
            self.write_pieces(edge, None, write, guard.as_ref()).await?;
        }
        Ok(())
    }

    async fn extents_of(&self, range: ByteRange, context: &Context) -> Result<Vec<Extent>> {
        let around = self.shape.around(range).split_at(self.shape.stretch).0;
        let mut extents = self.below.extents(around, context).await?;
        for extent in &mut extents {
            extent.range = extent.range.intersection(range);
        }
        extents.retain(|extent| !extent.range.is_empty());
        if !extents.is_empty() || range.is_empty() {
            return Ok(extents);
        }
        // It spoke of less than a block, or of what is before the range.
        let block = around.split_at(self.shape.unit).0.intersection(range);
        match *context {
            Context::Allocation => Ok(vec![Extent {
                range: block,
                status: Status::DATA,
            }]),
            _ => Err(Error::with_message(
                ErrorKind::Io,
                "the source says nothing of this block",
            )),
        }
    }
}

/// A write of a piece whose first or last block has bytes that stay.
struct Merge {
    below: Arc<dyn BlockDevice>,
    piece: ByteRange,
    /// What is written of the piece; the rest stays.
    wanted: ByteRange,
    /// The blocks that something stays of.
    blocks: Vec<ByteRange>,
    buffer: Buffer,
    flags: WriteFlags,
    _guard: Option<Arc<ChangeGuard>>,
}

impl Merge {
    async fn carry_out(mut self) -> Result<()> {
        let read = |block: Option<&ByteRange>| {
            let below = Arc::clone(&self.below);
            let block = block.copied().unwrap_or_default();
            async move {
                match block.is_empty() {
                    true => Ok(Buffer::zeroed(0)),
                    false => {
                        below
                            .read(block.start(), Buffer::zeroed(block.len() as usize))
                            .await
                    }
                }
            }
        };
        let old = try_join(read(self.blocks.first()), read(self.blocks.get(1))).await?;
        for (block, old) in self.blocks.iter().zip([old.0, old.1]) {
            let before = ByteRange::between(block.start(), self.wanted.start());
            let behind = ByteRange::between(self.wanted.end(), block.end());
            for stays in [before, behind].map(|part| part.intersection(*block)) {
                if !stays.is_empty() {
                    let into = indices(self.piece, stays);
                    self.buffer[into].copy_from_slice(&old[indices(*block, stays)]);
                }
            }
        }
        let write = self
            .below
            .write(self.piece.start(), self.buffer, self.flags);
        write.await.map(drop)
    }
}

/// An error of a part, told of the whole request.
fn told(operation: Operation, range: ByteRange) -> impl FnOnce(Error) -> Error {
    move |error| {
        let error = error.during(operation);
        error.moved_to(range.start(), range.len())
    }
}

impl DeviceFilter for Resized {
    const PASSES: Capabilities = Capabilities::all();

    fn below(&self) -> &Arc<dyn BlockDevice> {
        &self.below
    }

    fn info(&self) -> DeviceInfo {
        self.info.clone()
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Read, offset, &buffer)?;
            self.check(Operation::Read, range)?;
            if range.is_empty() {
                return Ok(buffer);
            }
            if self.is_whole(range) {
                return self.below.read(offset, buffer).await;
            }
            let read = self.read_pieces(range, buffer).await;
            read.map_err(told(Operation::Read, range))
        })
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Write, offset, &data)?;
            self.check(Operation::Write, range)?;
            if range.is_empty() {
                return Ok(data);
            }
            let guard = self.lock(range).await;
            if self.is_whole(range) {
                return self.below.write(offset, data, flags).await;
            }
            let written = self
                .write_pieces(range, Some(&data), flags, guard.as_ref())
                .await;
            written.map_err(told(Operation::Write, range))?;
            Ok(data)
        })
    }

    fn read_piped(
        &self,
        offset: u64,
        length: usize,
        pipe: PipeBuffer,
    ) -> BoxFuture<'_, Result<Payload>> {
        Box::pin(async move {
            let range = range_of(Operation::Read, offset, length as u64)?;
            self.check(Operation::Read, range)?;
            if self.is_whole(range) && length > 0 {
                return self.below.read_piped(offset, length, pipe).await;
            }
            drop(pipe);
            let buffer = self.read(offset, Buffer::zeroed(length)).await?;
            Ok(Payload::Memory(buffer))
        })
    }

    fn write_piped(
        &self,
        offset: u64,
        data: PipeBuffer,
        flags: WriteFlags,
    ) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let range = range_of(Operation::Write, offset, data.len() as u64)?;
            self.check(Operation::Write, range)?;
            if self.is_whole(range) && !range.is_empty() {
                let _guard = self.lock(range).await;
                return self.below.write_piped(offset, data, flags).await;
            }
            let data = data.into_memory().map_err(told(Operation::Write, range))?;
            self.write(offset, data, flags).await.map(drop)
        })
    }

    fn copy_from(
        &self,
        offset: u64,
        source: FileRange,
        flags: CopyFlags,
    ) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let range = range_of(Operation::Copy, offset, source.range().len())?;
            self.check(Operation::Copy, range)?;
            if self.shape.around(range) != range {
                let error = Error::new(ErrorKind::Unsupported);
                return Err(told(Operation::Copy, range)(error));
            }
            let _guard = self.lock(range).await;
            self.below.copy_from(offset, source, flags).await
        })
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.check(Operation::Zero, range)?;
            if range.is_empty() {
                return self.below.zero(ByteRange::default(), flags).await;
            }
            let zeroed = self.zero_all(range, flags).await;
            zeroed.map_err(told(Operation::Zero, range))
        })
    }

    /// Parts of blocks are left as they are.
    fn trim(&self, range: ByteRange, flags: WriteFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.check(Operation::Trim, range)?;
            let inner = self.shape.within(range);
            if inner.is_empty() {
                let trimmed = self.below.trim(ByteRange::default(), flags).await;
                return trimmed.map_err(told(Operation::Trim, range));
            }
            let _guard = self.lock(inner).await;
            let pieces = cut(inner, self.shape.stretch);
            let trimmed = self
                .each(pieces, |piece| self.below.trim(piece, flags))
                .await;
            trimmed.map_err(told(Operation::Trim, range))
        })
    }

    fn cache(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.check(Operation::Cache, range)?;
            let pieces = cut(self.shape.around(range), self.shape.stretch);
            let cached = self.each(pieces, |piece| self.below.cache(piece)).await;
            cached.map_err(told(Operation::Cache, range))
        })
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        Box::pin(async move {
            self.check(Operation::Extents, range)?;
            let extents = self.extents_of(range, context).await;
            extents.map_err(told(Operation::Extents, range))
        })
    }

    fn resize(&self, size: u64) -> BoxFuture<'_, Result<()>> {
        if self.info.can(Capabilities::RESIZE) {
            return self.below.resize(size);
        }
        let error = Error::new(ErrorKind::Unsupported).during(Operation::Resize);
        Box::pin(async move { Err(error) })
    }

    fn over(&self, below: Arc<dyn BlockDevice>) -> Option<Self> {
        let (locks, runtime) = (Arc::clone(&self.locks), self.runtime.clone());
        Self::new(self.options, below, locks, runtime).ok()
    }
}
