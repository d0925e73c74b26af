//! The device that a handle of an export is.

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, DeviceInfo, Error, ErrorKind,
    Extent, Mapping, Operation, Result, Status, WriteFlags, ZeroFlags, push_merged, request_range,
};

use super::{CacheMode, engine::Engine};
use crate::{DeviceFilter, aligned::around};

/// A handle of the source with the cache of its export in front.
pub(super) struct CacheDevice {
    below: Arc<dyn BlockDevice>,
    engine: Arc<Engine>,
    info: DeviceInfo,
    block: u64,
}

impl CacheDevice {
    /// `below` with `engine`, whose blocks have `block` bytes, in front.
    ///
    /// # Errors
    /// `InvalidInput` where the source has larger blocks, or has another size than it had.
    pub(super) fn new(
        below: Arc<dyn BlockDevice>,
        engine: Arc<Engine>,
        block: u64,
        mode: CacheMode,
    ) -> Result<Self> {
        let mut info = below.info().clone();
        if u64::from(info.limits.minimum) > block {
            let minimum = info.limits.minimum;
            let message =
                format!("block-size={block} is less than a block of the source, {minimum}");
            return Err(Error::with_message(ErrorKind::InvalidInput, message));
        }
        engine.adopt(info.size)?;
        info.capabilities -=
            Capabilities::RESIZE | Capabilities::BORN_ZERO | Capabilities::DISCARDS;
        info.capabilities |= Capabilities::CACHE;
        let keeps_writes = mode != CacheMode::WriteThrough && info.can(Capabilities::WRITE);
        if keeps_writes {
            info.capabilities |= Capabilities::FLUSH;
        }
        if keeps_writes && mode == CacheMode::Unsafe {
            info.capabilities |= Capabilities::FUA;
        }
        Ok(Self {
            below,
            engine,
            info,
            block,
        })
    }

    fn told(&self, operation: Operation, range: ByteRange) -> impl FnOnce(Error) -> Error {
        move |error| {
            let error = error.during(operation);
            error.moved_to(range.start(), range.len())
        }
    }

    /// The source's answer, with what was written since and is only here called data.
    async fn allocation(&self, range: ByteRange) -> Result<Vec<Extent>> {
        // Before the source is asked: what is written to it meanwhile it may not know yet.
        let dirty = self.engine.blocks.dirty_in(range);
        let answer = self.below.extents(range, &Context::Allocation).await?;
        if dirty.is_empty() {
            return Ok(answer);
        }
        let mut dirty = dirty.into_iter().peekable();
        let mut list = Vec::new();
        for Extent { range, status } in answer {
            let mut rest = range;
            while !rest.is_empty() {
                let next = dirty.peek().map(|block| {
                    let start = block.saturating_mul(self.block);
                    ByteRange::between(start, start.saturating_add(self.block))
                });
                let Some(next) = next.filter(|next| next.start() < rest.end()) else {
                    push_merged(
                        &mut list,
                        Extent {
                            range: rest,
                            status,
                        },
                    );
                    break;
                };
                let before = rest.intersection(ByteRange::between(0, next.start()));
                push_merged(
                    &mut list,
                    Extent {
                        range: before,
                        status,
                    },
                );
                let inside = rest.intersection(next);
                let data = Status::DATA;
                push_merged(
                    &mut list,
                    Extent {
                        range: inside,
                        status: data,
                    },
                );
                let done = ByteRange::between(rest.start(), next.end()).len();
                (_, rest) = rest.split_at(done);
                if rest.start() >= next.end() {
                    dirty.next();
                }
            }
        }
        Ok(list)
    }
}

impl DeviceFilter for CacheDevice {
    const PASSES: Capabilities = Capabilities::REOPEN;

    fn below(&self) -> &Arc<dyn BlockDevice> {
        &self.below
    }

    fn info(&self) -> DeviceInfo {
        self.info.clone()
    }

    fn read(&self, offset: u64, mut buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        let range = request_range(Operation::Read, offset, &buffer);
        let range = range.and_then(|range| {
            self.info.check(Operation::Read, range)?;
            Ok(range)
        });
        let range = match range {
            Ok(range) => range,
            Err(error) => return Box::pin(async move { Err(error) }),
        };
        if self.engine.read_now(range, &mut buffer) {
            return Box::pin(std::future::ready(Ok(buffer)));
        }
        Box::pin(async move {
            let read = self.engine.read(&*self.below, range, buffer).await;
            read.map_err(self.told(Operation::Read, range))
        })
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Write, offset, &data)?;
            self.info.check(Operation::Write, range)?;
            let written = self.engine.write(&*self.below, range, data, flags).await;
            written.map_err(self.told(Operation::Write, range))
        })
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.info.check(Operation::Zero, range)?;
            let zeroed = self.engine.zero(&*self.below, range, flags).await;
            zeroed.map_err(self.told(Operation::Zero, range))
        })
    }

    fn trim(&self, range: ByteRange, flags: WriteFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.info.check(Operation::Trim, range)?;
            let trimmed = self.engine.trim(&*self.below, range, flags).await;
            trimmed.map_err(self.told(Operation::Trim, range))
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let flushed = self.engine.flush(&*self.below).await;
            flushed.map_err(|error| error.during(Operation::Flush))
        })
    }

    fn cache(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.info.check(Operation::Cache, range)?;
            // Whole blocks, so that the source is asked for what it takes.
            let whole = around(range, self.block, self.info.size);
            let fetched = self.engine.fetch(&*self.below, whole).await;
            fetched.map_err(self.told(Operation::Cache, range))
        })
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        if *context != Context::Allocation || self.engine.blocks.dirty() == 0 {
            return self.below.extents(range, context);
        }
        Box::pin(self.allocation(range))
    }

    fn mapping(&self, _: ByteRange) -> Mapping<'_> {
        Mapping::Opaque
    }

    fn resize(&self, size: u64) -> BoxFuture<'_, Result<()>> {
        let error = Error::new(ErrorKind::Unsupported).during(Operation::Resize);
        Box::pin(async move { Err(error.at(0, size)) })
    }

    fn over(&self, below: Arc<dyn BlockDevice>) -> Option<Self> {
        self.engine.adopt(below.info().size).ok()?;
        Some(Self {
            below,
            engine: Arc::clone(&self.engine),
            info: self.info.clone(),
            block: self.block,
        })
    }
}
