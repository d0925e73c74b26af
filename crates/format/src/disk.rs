//! The disk of an opened image as a device: what the formats have in common.
//!
//! A format is a [`Layer`]: it says where bytes come from, and brings them. The device around it looks at requests
//! before it does, tells errors at the place of the request, and knows the short ways: pipes and mappings.
//!
//! ```text
//!   read ─> Layer::read ─ runs ─┬─ zeroes
//!                               ├─ a file of the image  (the caller's buffer goes down as it is)
//!                               ├─ what is behind the image
//!                               └─ unpacked on threads
//!   read_piped, mapping ─> Layer::known ─ the first run, as far as its table is in memory
//!   extents ─> Layer::status      write, zero, trim, flush ─> Layer::writer, where there is one
//! ```

use std::{convert::Infallible, fmt, sync::Arc};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, DeviceInfo, Error, ErrorKind,
    Extent, Mapping, Operation, Payload, PipeBuffer, Result, WriteFlags, ZeroFlags, range_of,
    request_range,
};

use crate::{Details, Image, Placed, host::HostFile};

/// The smallest preferred block, in bytes: that of most devices.
pub(crate) const PREFERRED: u64 = 4096;

/// The most extents of one answer: 1.5 MiB of memory.
pub(crate) const MOST_EXTENTS: usize = 64 << 10;

/// Where bytes of a disk are found.
pub(crate) enum Origin<'a> {
    /// They are not in this image: what is behind it shows, or zeroes.
    Behind,
    /// They are zeroes.
    Zero,
    /// They lie in this file as they are, the first of them at this offset.
    File(&'a HostFile, u64),
    /// They have to be unpacked.
    Packed,
}

/// One image of a chain: what it has of its disk itself, and what shows through where it has nothing.
///
/// Ranges that are asked about lie on the disk. Errors may have any range: the device tells them at that of the request.
pub(crate) trait Layer: Sized + Send + Sync + 'static {
    /// What writes it in place: [`Infallible`] of a format that is only read.
    type Writer: Writer;

    /// What the device says of itself; asked once.
    fn info(&self) -> DeviceInfo;

    /// What the image says of itself.
    fn details(&self) -> Details;

    /// What is behind the image.
    fn behind(&self) -> Option<&HostFile>;

    /// Where the beginning of `range` is found, and how much of it in a row, as far as that is known without asking a
    /// file; `None` where it is not, or the range is empty. What is said to lie in a file lies before its end.
    fn known(&self, range: ByteRange) -> Option<(ByteRange, Origin<'_>)>;

    /// Fills `buffer` with `range`, which is as long.
    fn read(&self, range: ByteRange, buffer: Buffer)
    -> impl Future<Output = Result<Buffer>> + Send;

    /// What is known of `range` in one of the contexts of [`info`](Self::info), as [`BlockDevice::extents`] answers: of
    /// `most` extents at most.
    fn status(
        &self,
        range: ByteRange,
        context: &Context,
        most: usize,
    ) -> impl Future<Output = Result<Vec<Extent>>> + Send;

    /// As [`Image::placed`].
    fn placed(&self, range: ByteRange) -> impl Future<Output = Result<Vec<Placed>>> + Send;

    /// The same image through other handles to its files, of which one at least has some.
    fn again(&self) -> impl Future<Output = Result<Self>> + Send;

    /// What writes it, where it was opened for that.
    fn writer(&self) -> Option<&Self::Writer> {
        None
    }

    /// Keeps what is looked up from now on from being used for something else, until it is dropped.
    fn enter(&self) -> impl Send {}
}

/// What writes an image in place. Ranges lie on the disk; errors may have any.
pub(crate) trait Writer: Send + Sync {
    /// As [`BlockDevice::write`].
    fn write(
        &self,
        range: ByteRange,
        data: Buffer,
        flags: WriteFlags,
    ) -> impl Future<Output = Result<Buffer>> + Send;

    /// As [`BlockDevice::zero`].
    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> impl Future<Output = Result<()>> + Send;

    /// As [`BlockDevice::trim`].
    fn trim(&self, range: ByteRange, flags: WriteFlags) -> impl Future<Output = Result<()>> + Send;

    /// As [`BlockDevice::flush`].
    fn flush(&self) -> impl Future<Output = Result<()>> + Send;

    /// As [`Image::close`].
    fn close(&self) -> impl Future<Output = Result<()>> + Send;
}

/// The writer of formats that have none.
impl Writer for Infallible {
    async fn write(&self, _: ByteRange, _: Buffer, _: WriteFlags) -> Result<Buffer> {
        match *self {}
    }

    async fn zero(&self, _: ByteRange, _: ZeroFlags) -> Result<()> {
        match *self {}
    }

    async fn trim(&self, _: ByteRange, _: WriteFlags) -> Result<()> {
        match *self {}
    }

    async fn flush(&self) -> Result<()> {
        match *self {}
    }

    async fn close(&self) -> Result<()> {
        match *self {}
    }
}

/// The disk of an opened image.
///
/// Requests of any size at any place run side by side, from any runtime. What lies in a file as it is has a
/// [`mapping`](BlockDevice::mapping) when the file has one and its table is in memory.
pub(crate) struct Disk<L> {
    info: DeviceInfo,
    layer: L,
}

impl<L: Layer> Disk<L> {
    pub(crate) fn new(layer: L) -> Self {
        let info = layer.info();
        Self { info, layer }
    }

    #[cfg(test)]
    pub(crate) fn layer(&self) -> &L {
        &self.layer
    }

    async fn known(&self, range: ByteRange, context: &Context, most: usize) -> Result<Vec<Extent>> {
        self.info.check(Operation::Extents, range)?;
        if !self.info.contexts.contains(context) {
            let message = format!("there is no {context} here");
            let error = Error::with_message(ErrorKind::Unsupported, message);
            return Err(told(Operation::Extents, range)(error));
        }
        let known = self.layer.status(range, context, most).await;
        known.map_err(told(Operation::Extents, range))
    }

    /// What writes, after a check that a request lies on the disk.
    fn writer(&self, operation: Operation, range: ByteRange) -> Result<&L::Writer> {
        self.info.check(operation, range)?;
        self.layer.writer().ok_or_else(|| {
            let error = Error::new(ErrorKind::ReadOnly).during(operation);
            error.at(range.start(), range.len())
        })
    }
}

/// What the device says of an image that is only read: the one in `file`, for a disk of `size` bytes in units of
/// `unit`, whose bytes lie in `data`.
pub(crate) fn describe(
    file: &HostFile,
    size: u64,
    unit: u64,
    data: &[HostFile],
    behind: Option<&HostFile>,
) -> DeviceInfo {
    let can = |file: &HostFile, what| file.device().info().can(what);
    let mut info = DeviceInfo::new(Arc::clone(&file.device().info().name), size);
    info.limits.preferred = u32::try_from(unit.max(PREFERRED)).unwrap_or(u32::MAX >> 1);
    info.rotational = data.iter().any(|file| file.device().info().rotational);
    info.capabilities = Capabilities::MULTI_CONN;
    if data.iter().all(|file| can(file, Capabilities::SPLICE_READ)) {
        info.capabilities |= Capabilities::SPLICE_READ;
    }
    let mut files = data.iter().chain(behind).chain([file]);
    if files.any(|file| can(file, Capabilities::REOPEN)) {
        info.capabilities |= Capabilities::REOPEN;
    }
    info.contexts = vec![Context::Allocation, Context::AllocationDepth];
    info
}

/// As [`HostFile::again`], where there is one.
pub(crate) async fn again(file: Option<&HostFile>) -> Result<Option<HostFile>> {
    match file {
        Some(file) => file.again().await.map(Some),
        None => Ok(None),
    }
}

/// An error of a file below, told as one of the request.
pub(crate) fn told(operation: Operation, range: ByteRange) -> impl FnOnce(Error) -> Error {
    move |error| {
        let error = error.during(operation);
        error.moved_to(range.start(), range.len())
    }
}

impl<L: Layer> fmt::Debug for Disk<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self as &dyn Image, f)
    }
}

impl<L: Layer> Image for Disk<L> {
    fn details(&self) -> Details {
        self.layer.details()
    }

    fn placed(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Placed>>> {
        Box::pin(async move {
            self.info.check(Operation::Extents, range)?;
            let placed = self.layer.placed(range).await;
            placed.map_err(told(Operation::Extents, range))
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            match self.layer.writer() {
                Some(writer) => writer.close().await,
                None => Ok(()),
            }
        })
    }
}

impl<L: Layer> BlockDevice for Disk<L> {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Read, offset, &buffer)?;
            self.info.check(Operation::Read, range)?;
            let _pass = self.layer.enter();
            let read = self.layer.read(range, buffer).await;
            read.map_err(told(Operation::Read, range))
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
            self.info.check(Operation::Read, range)?;
            let _pass = self.layer.enter();
            if let Some((known, Origin::File(file, host))) = self.layer.known(range)
                && known == range
                && file.takes(ByteRange::between(host, host + range.len()))
            {
                let read = file.device().read_piped(host, length, pipe).await;
                return read.map_err(told(Operation::Read, range));
            }
            drop(pipe);
            let buffer = self.read(offset, Buffer::zeroed(length)).await?;
            Ok(Payload::Memory(buffer))
        })
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Write, offset, &data)?;
            let writer = self.writer(Operation::Write, range)?;
            let written = writer.write(range, data, flags).await;
            written.map_err(told(Operation::Write, range))
        })
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let writer = self.writer(Operation::Zero, range)?;
            let zeroed = writer.zero(range, flags).await;
            zeroed.map_err(told(Operation::Zero, range))
        })
    }

    fn trim(&self, range: ByteRange, flags: WriteFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let writer = self.writer(Operation::Trim, range)?;
            let trimmed = writer.trim(range, flags).await;
            trimmed.map_err(told(Operation::Trim, range))
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            match self.layer.writer() {
                Some(writer) => writer.flush().await,
                None => Ok(()),
            }
        })
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        Box::pin(self.known(range, context, MOST_EXTENTS))
    }

    fn first_extent<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        Box::pin(self.known(range, context, 1))
    }

    fn mapping(&self, range: ByteRange) -> Mapping<'_> {
        let range = range.intersection(ByteRange::between(0, self.info.size));
        let Some((known, origin)) = self.layer.known(range) else {
            return Mapping::Opaque;
        };
        let length = known.len();
        match (origin, self.layer.behind()) {
            (Origin::File(file, host), _) => {
                let place = ByteRange::between(host, host + length);
                file.device().mapping(place)
            }
            (Origin::Behind, Some(behind)) if known.start() < behind.end() => {
                let disk = ByteRange::between(0, behind.end());
                behind.device().mapping(known.intersection(disk))
            }
            (Origin::Zero | Origin::Behind, _) => Mapping::Zero { length },
            (Origin::Packed, _) => Mapping::Opaque,
        }
    }

    fn reopen(&self) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        Box::pin(async move {
            if !self.info.can(Capabilities::REOPEN) {
                return Err(Error::new(ErrorKind::Unsupported).during(Operation::Open));
            }
            let layer = self.layer.again().await?;
            Ok(Arc::new(Self::new(layer)) as Arc<dyn BlockDevice>)
        })
    }
}
