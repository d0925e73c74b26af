//! A device around a device, of which only what it changes must be written down.

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, CopyFlags, DeviceInfo, Error,
    ErrorKind, Extent, FileRange, Mapping, Operation, Payload, PipeBuffer, Result, WriteFlags,
    ZeroFlags,
};

/// What a filter's device does where it differs from the one below.
///
/// Requests that are not written down go to the device below as they are. Ways around `read` and `write` (pipes,
/// files, mappings, further handles) are only open to a filter that says so in [`PASSES`](Self::PASSES): what
/// goes through them it never sees, unless it writes those methods down, too.
pub trait DeviceFilter: Send + Sync + Sized + 'static {
    /// Which ways around `read` and `write` there are, if the device below has them:
    ///
    /// - `SPLICE_READ`: bytes are read as they are and where they are, so `read_piped` and `mapping` may go below.
    /// - `SPLICE_WRITE`, `COPY_FROM`: bytes are written as they are and where they are.
    /// - `REOPEN`: [`over`](Self::over) gives the filter around another handle.
    const PASSES: Capabilities;

    /// The device below.
    fn below(&self) -> &Arc<dyn BlockDevice>;

    /// What the device says of itself; asked once. What [`PASSES`](Self::PASSES) does not have is taken away.
    fn info(&self) -> DeviceInfo {
        self.below().info().clone()
    }

    /// As [`BlockDevice::read`].
    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        self.below().read(offset, buffer)
    }

    /// As [`BlockDevice::write`].
    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        self.below().write(offset, data, flags)
    }

    /// As [`BlockDevice::read_piped`]; used with `SPLICE_READ`.
    fn read_piped(
        &self,
        offset: u64,
        length: usize,
        pipe: PipeBuffer,
    ) -> BoxFuture<'_, Result<Payload>> {
        self.below().read_piped(offset, length, pipe)
    }

    /// As [`BlockDevice::write_piped`]; used with `SPLICE_WRITE`.
    fn write_piped(
        &self,
        offset: u64,
        data: PipeBuffer,
        flags: WriteFlags,
    ) -> BoxFuture<'_, Result<()>> {
        self.below().write_piped(offset, data, flags)
    }

    /// As [`BlockDevice::copy_from`]; used with `COPY_FROM`.
    fn copy_from(
        &self,
        offset: u64,
        source: FileRange,
        flags: CopyFlags,
    ) -> BoxFuture<'_, Result<()>> {
        self.below().copy_from(offset, source, flags)
    }

    /// As [`BlockDevice::zero`].
    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        self.below().zero(range, flags)
    }

    /// As [`BlockDevice::trim`].
    fn trim(&self, range: ByteRange, flags: WriteFlags) -> BoxFuture<'_, Result<()>> {
        self.below().trim(range, flags)
    }

    /// As [`BlockDevice::flush`].
    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        self.below().flush()
    }

    /// As [`BlockDevice::cache`].
    fn cache(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        self.below().cache(range)
    }

    /// As [`BlockDevice::extents`].
    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        self.below().extents(range, context)
    }

    /// As [`BlockDevice::first_extent`]; through `extents`, for whoever changes those changes this.
    fn first_extent<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        self.extents(range, context)
    }

    /// As [`BlockDevice::mapping`]; the device's with `SPLICE_READ`, otherwise the bytes must be read.
    fn mapping(&self, range: ByteRange) -> Mapping<'_> {
        match Self::PASSES.contains(Capabilities::SPLICE_READ) {
            true => self.below().mapping(range),
            false => Mapping::Opaque,
        }
    }

    /// As [`BlockDevice::resize`].
    fn resize(&self, size: u64) -> BoxFuture<'_, Result<()>> {
        self.below().resize(size)
    }

    /// The same filter around another handle to the device below, sharing what handles share; needed with
    /// `REOPEN`.
    fn over(&self, below: Arc<dyn BlockDevice>) -> Option<Self> {
        let _ = below;
        None
    }
}

/// The ways around `read` and `write`.
const WAYS_AROUND: Capabilities = Capabilities::SPLICE_READ
    .union(Capabilities::SPLICE_WRITE)
    .union(Capabilities::COPY_FROM)
    .union(Capabilities::REOPEN);

/// A [`DeviceFilter`] as a [`BlockDevice`].
pub struct Filtered<F> {
    filter: F,
    info: DeviceInfo,
}

impl<F: DeviceFilter> Filtered<F> {
    /// The device that `filter` makes of the one below it.
    #[must_use]
    pub fn new(filter: F) -> Self {
        let mut info = filter.info();
        info.capabilities -= WAYS_AROUND - F::PASSES;
        Self { filter, info }
    }

    /// The filter.
    #[must_use]
    pub fn filter(&self) -> &F {
        &self.filter
    }
}

impl<F: DeviceFilter> BlockDevice for Filtered<F> {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        self.filter.read(offset, buffer)
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        self.filter.write(offset, data, flags)
    }

    fn read_piped(
        &self,
        offset: u64,
        length: usize,
        pipe: PipeBuffer,
    ) -> BoxFuture<'_, Result<Payload>> {
        if F::PASSES.contains(Capabilities::SPLICE_READ) {
            return self.filter.read_piped(offset, length, pipe);
        }
        drop(pipe);
        Box::pin(async move {
            let buffer = self.filter.read(offset, Buffer::zeroed(length)).await?;
            Ok(Payload::Memory(buffer))
        })
    }

    fn write_piped(
        &self,
        offset: u64,
        data: PipeBuffer,
        flags: WriteFlags,
    ) -> BoxFuture<'_, Result<()>> {
        if F::PASSES.contains(Capabilities::SPLICE_WRITE) {
            return self.filter.write_piped(offset, data, flags);
        }
        Box::pin(async move {
            let length = data.len() as u64;
            let data = data
                .into_memory()
                .map_err(|error| error.during(Operation::Write).at(offset, length))?;
            self.filter.write(offset, data, flags).await.map(drop)
        })
    }

    fn copy_from(
        &self,
        offset: u64,
        source: FileRange,
        flags: CopyFlags,
    ) -> BoxFuture<'_, Result<()>> {
        if F::PASSES.contains(Capabilities::COPY_FROM) {
            return self.filter.copy_from(offset, source, flags);
        }
        let error = Error::new(ErrorKind::Unsupported)
            .during(Operation::Copy)
            .at(offset, source.range().len());
        Box::pin(async move { Err(error) })
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        self.filter.zero(range, flags)
    }

    fn trim(&self, range: ByteRange, flags: WriteFlags) -> BoxFuture<'_, Result<()>> {
        self.filter.trim(range, flags)
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        self.filter.flush()
    }

    fn cache(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        self.filter.cache(range)
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        self.filter.extents(range, context)
    }

    fn first_extent<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        self.filter.first_extent(range, context)
    }

    fn mapping(&self, range: ByteRange) -> Mapping<'_> {
        self.filter.mapping(range)
    }

    fn reopen(&self) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        Box::pin(async move {
            let unsupported = || Error::new(ErrorKind::Unsupported).during(Operation::Open);
            if !F::PASSES.contains(Capabilities::REOPEN) {
                return Err(unsupported());
            }
            let below = self.filter.below().reopen().await?;
            let filter = self.filter.over(below).ok_or_else(unsupported)?;
            Ok(Arc::new(Self::new(filter)) as Arc<dyn BlockDevice>)
        })
    }

    fn resize(&self, size: u64) -> BoxFuture<'_, Result<()>> {
        self.filter.resize(size)
    }
}
