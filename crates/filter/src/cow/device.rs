//! The device that a handle of an export is.

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, DeviceInfo, Error, ErrorKind,
    Extent, Mapping, Operation, Payload, PipeBuffer, Result, WriteFlags, ZeroFlags,
    check_allocation, request_range,
};

use super::{
    Cow,
    extents::extents,
    map::State,
    overlay::{Overlay, told},
};
use crate::{
    DeviceFilter,
    aligned::{around, takes},
};

/// A handle of the source with the overlay of its export in front.
pub(super) struct CowDevice {
    pub(super) below: Arc<dyn BlockDevice>,
    pub(super) overlay: Arc<Overlay>,
    pub(super) info: DeviceInfo,
    pub(super) on_read: bool,
    pub(super) on_cache: bool,
}

/// What the overlay can do, whatever the source can.
const OWN: Capabilities = Capabilities::WRITE
    .union(Capabilities::FLUSH)
    .union(Capabilities::FUA)
    .union(Capabilities::TRIM)
    .union(Capabilities::ZERO)
    .union(Capabilities::FAST_ZERO)
    .union(Capabilities::MULTI_CONN);

/// What is the source's affair.
const SOURCES: Capabilities = Capabilities::CACHE
    .union(Capabilities::SPLICE_READ)
    .union(Capabilities::REOPEN);

impl CowDevice {
    /// `below` with `overlay` in front.
    pub(super) fn new(below: Arc<dyn BlockDevice>, overlay: Arc<Overlay>, options: &Cow) -> Self {
        let Cow {
            block_size,
            on_read,
            on_cache,
            ..
        } = *options;
        let mut info = below.info().clone();
        info.capabilities = OWN | info.capabilities & SOURCES;
        if on_read {
            info.capabilities -= Capabilities::SPLICE_READ;
        }
        if on_cache {
            info.capabilities |= Capabilities::CACHE;
        }
        info.limits.minimum = 1;
        info.limits.preferred = info.limits.preferred.max(block_size as u32);
        info.contexts = vec![Context::Allocation];
        Self {
            below,
            overlay,
            info,
            on_read,
            on_cache,
        }
    }

    /// Whether a read of `length` bytes at `offset` can go to the source as it is.
    fn is_for_source(&self, offset: u64, length: usize) -> bool {
        let length = length as u64;
        let range = ByteRange::between(offset, offset.saturating_add(length));
        range.len() == length
            && range.end() <= self.info.size
            && !self.on_read
            && takes(&*self.below, range)
            && self.overlay.map.is_below(range)
    }

    async fn read_both(&self, offset: u64, buffer: Buffer) -> Result<Buffer> {
        let range = request_range(Operation::Read, offset, &buffer)?;
        self.info.check(Operation::Read, range)?;
        if self.on_read {
            // An overlay that is full, or a source that fails, is no reason not to try without.
            let _ = self.overlay.take_over(&*self.below, range).await;
        }
        let read = self.overlay.read(&*self.below, range, buffer).await;
        read.map_err(told(Operation::Read, range))
    }
}

impl DeviceFilter for CowDevice {
    const PASSES: Capabilities = Capabilities::SPLICE_READ.union(Capabilities::REOPEN);

    fn below(&self) -> &Arc<dyn BlockDevice> {
        &self.below
    }

    fn info(&self) -> DeviceInfo {
        self.info.clone()
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        if self.is_for_source(offset, buffer.len()) {
            return self.below.read(offset, buffer);
        }
        Box::pin(self.read_both(offset, buffer))
    }

    fn read_piped(
        &self,
        offset: u64,
        length: usize,
        pipe: PipeBuffer,
    ) -> BoxFuture<'_, Result<Payload>> {
        if self.is_for_source(offset, length) {
            return self.below.read_piped(offset, length, pipe);
        }
        drop(pipe);
        Box::pin(async move {
            let buffer = self.read_both(offset, Buffer::zeroed(length)).await?;
            Ok(Payload::Memory(buffer))
        })
    }

    fn write(&self, offset: u64, data: Buffer, _: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Write, offset, &data)?;
            self.info.check(Operation::Write, range)?;
            let written = self.overlay.write(&*self.below, range, &data).await;
            written.map_err(told(Operation::Write, range))?;
            Ok(data)
        })
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.info.check(Operation::Zero, range)?;
            let zeroed = self.overlay.zero(&*self.below, range, flags).await;
            zeroed.map_err(told(Operation::Zero, range))
        })
    }

    fn trim(&self, range: ByteRange, _: WriteFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.info.check(Operation::Trim, range)?;
            let trimmed = self.overlay.trim(&*self.below, range).await;
            trimmed.map_err(told(Operation::Trim, range))
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn cache(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.info.check(Operation::Cache, range)?;
            if self.on_cache {
                let taken = self.overlay.take_over(&*self.below, range).await;
                return taken.map_err(told(Operation::Cache, range));
            }
            let run = self.overlay.map.first(range);
            if run.state != State::Below || !self.below.info().can(Capabilities::CACHE) {
                return Ok(());
            }
            let minimum = u64::from(self.below.info().limits.minimum.max(1));
            let wanted = around(run.range, minimum, self.info.size);
            let cached = self.below.cache(wanted).await;
            cached.map_err(told(Operation::Cache, range))
        })
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        Box::pin(async move {
            check_allocation(range, context)?;
            self.info.check(Operation::Extents, range)?;
            let answer = extents(&self.overlay.map, &*self.below, range).await;
            answer.map_err(told(Operation::Extents, range))
        })
    }

    fn mapping(&self, range: ByteRange) -> Mapping<'_> {
        let inside = range.intersection(ByteRange::between(0, self.info.size));
        if inside.is_empty() {
            return Mapping::Opaque;
        }
        let run = self.overlay.map.first(inside);
        match run.state {
            State::Below if self.on_read => Mapping::Opaque,
            State::Below => self.below.mapping(run.range),
            _ => self.overlay.mapping(run),
        }
    }

    fn resize(&self, size: u64) -> BoxFuture<'_, Result<()>> {
        let error = Error::new(ErrorKind::Unsupported).during(Operation::Resize);
        Box::pin(async move { Err(error.at(0, size)) })
    }

    fn over(&self, below: Arc<dyn BlockDevice>) -> Option<Self> {
        let overlay = Arc::clone(&self.overlay);
        let mut info = self.info.clone();
        info.size = below.info().size;
        Some(Self {
            below,
            overlay,
            info,
            on_read: self.on_read,
            on_cache: self.on_cache,
        })
    }
}
