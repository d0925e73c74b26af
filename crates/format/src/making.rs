//! A new image as a device: what the formats have in common.
//!
//! A format is a [`Make`]: it puts data into its places, and completes the image. The device around it looks at requests
//! before it does, tells errors at the place of the request, and sees to it that an image is finished once.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, CopyFlags, DeviceInfo, Error,
    ErrorKind, Extent, FileRange, Mapping, Operation, PipeBuffer, Result, WriteFlags, ZeroFlags,
    check_allocation, range_of, request_range,
};

use crate::{NewImage, disk::told, doubt::Doubt, qcow2::BitmapDetails};

/// How far an image is.
pub(crate) struct Progress {
    pub(crate) info: DeviceInfo,
    size: AtomicU64,
    /// Where writes failed or were given up.
    pub(crate) doubt: Doubt,
    /// Nothing is written any more.
    is_closed: AtomicBool,
    /// Held by who finishes it.
    end: tokio::sync::Mutex<End>,
}

/// Whether the image is finished.
#[derive(Default)]
enum End {
    #[default]
    Open,
    Failed(Error),
    Finished,
}

impl Progress {
    /// That of an image that was begun, as a device that says `info` of itself.
    pub(crate) fn new(info: DeviceInfo) -> Self {
        Self {
            size: AtomicU64::new(info.size),
            info,
            doubt: Doubt::default(),
            is_closed: AtomicBool::new(false),
            end: tokio::sync::Mutex::default(),
        }
    }

    /// The virtual size at the moment.
    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    pub(crate) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    /// Fails where the virtual size can no longer become another one.
    pub(crate) fn check_resize(&self) -> Result<()> {
        if !self.info.can(Capabilities::RESIZE) {
            return Err(Error::new(ErrorKind::Unsupported));
        }
        self.check_open()
    }

    fn check_open(&self) -> Result<()> {
        if !self.is_closed.load(Ordering::Acquire) {
            return Ok(());
        }
        let message = "the image is finished";
        Err(Error::with_message(ErrorKind::InvalidInput, message))
    }
}

/// What a new image in `file` says of itself, for a disk of `size` bytes: `None` of one that grows.
pub(crate) fn describe(file: &DeviceInfo, size: Option<u64>) -> DeviceInfo {
    let mut info = DeviceInfo::new(Arc::clone(&file.name), size.unwrap_or(0));
    info.rotational = file.rotational;
    info.contexts = vec![Context::Allocation];
    info.capabilities =
        Capabilities::WRITE | Capabilities::ZERO | Capabilities::FLUSH | Capabilities::BORN_ZERO;
    if size.is_none() {
        info.capabilities |= Capabilities::RESIZE;
    }
    info
}

/// The abilities of a file that an image has, too, that keeps data as it is.
pub(crate) const AS_IT_IS: Capabilities = Capabilities::COPY_FROM.union(Capabilities::SPLICE_WRITE);

/// Makes an image. Ranges lie on the disk and are in whole [units](Self::unit), and what is changed is not empty; errors
/// may have any.
pub(crate) trait Make: Send + Sync + 'static {
    fn progress(&self) -> &Progress;

    /// What the image is written in, in bytes, and what that is called; only the disk ends within one. `None`: in any
    /// pieces.
    fn unit(&self) -> Option<(u64, &'static str)>;

    /// Fails where no such image can have `size` bytes.
    fn check_size(&self, size: u64) -> Result<()>;

    fn write_range(
        &self,
        range: ByteRange,
        data: Buffer,
    ) -> impl Future<Output = Result<Buffer>> + Send;

    /// As [`write_range`](Self::write_range) of an image with `SPLICE_WRITE`.
    fn write_pipe(
        &self,
        range: ByteRange,
        data: PipeBuffer,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Takes `range` over from a file, of an image with `COPY_FROM`. Where that cannot be done nothing is said of it: it
    /// is written then.
    fn copy_range(
        &self,
        range: ByteRange,
        source: &FileRange,
        flags: CopyFlags,
    ) -> impl Future<Output = Result<()>> + Send;

    fn zero_range(
        &self,
        range: ByteRange,
        flags: ZeroFlags,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Fills `buffer` with `range`, whose end may lie behind that of the disk.
    fn read_range(
        &self,
        range: ByteRange,
        buffer: Buffer,
    ) -> impl Future<Output = Result<Buffer>> + Send;

    /// The extents of `range`, whose end may lie behind that of the disk.
    fn find_extents(&self, range: ByteRange) -> impl Future<Output = Result<Vec<Extent>>> + Send;

    /// As [`BlockDevice::mapping`].
    fn map_range(&self, range: ByteRange) -> Mapping<'_> {
        let _ = range;
        Mapping::Opaque
    }

    /// Makes durable what was written so far. It is no image for all that.
    fn flush(&self) -> impl Future<Output = Result<()>> + Send;

    /// Gives the disk another size. What is cut off is zero when it grows again.
    fn set_size(&self, size: u64) -> impl Future<Output = Result<()>> + Send;

    /// Writes everything but the header, makes it durable, then the header, durably.
    fn complete(&self) -> impl Future<Output = Result<()>> + Send;

    /// As [`NewImage::add_bitmap`].
    fn add_bitmap(&self, details: BitmapDetails, source: Arc<dyn BlockDevice>) -> Result<()> {
        let _ = (details, source);
        let message = "images of this format have no bitmaps";
        Err(Error::with_message(ErrorKind::InvalidInput, message))
    }
}

/// An image that is being made.
pub(crate) struct NewDisk<M>(pub(crate) M);

impl<M: Make> NewDisk<M> {
    /// Checks a request for a change, and makes the image longer where it may be.
    fn check_change(&self, operation: Operation, range: ByteRange) -> Result<()> {
        let progress = self.0.progress();
        let check = || {
            progress.check_open()?;
            if range.is_empty() {
                return Ok(());
            }
            let size = progress.size();
            if range.end() > size && !progress.info.can(Capabilities::RESIZE) {
                let message = "the image ends before";
                return Err(Error::with_message(ErrorKind::OutOfBounds, message));
            }
            if let Some((unit, name)) = self.0.unit() {
                let ends_well = range.end().is_multiple_of(unit) || range.end() >= size;
                if !range.start().is_multiple_of(unit) || !ends_well {
                    let message = format!("a new image is written in whole {name} of {unit} bytes");
                    return Err(Error::with_message(ErrorKind::InvalidInput, message));
                }
            }
            if range.end() > size {
                self.0.check_size(range.end())?;
                progress.size.fetch_max(range.end(), Ordering::AcqRel);
            }
            Ok(())
        };
        let refused = |error: Error| error.during(operation).at(range.start(), range.len());
        check().map_err(refused)
    }

    /// Writes what is in a pipe as it is written from memory.
    async fn write_memory(&self, range: ByteRange, data: PipeBuffer) -> Result<()> {
        self.0
            .write_range(range, data.into_memory()?)
            .await
            .map(drop)
    }

    async fn finish_once(&self) -> Result<()> {
        let progress = self.0.progress();
        let mut end = progress.end.lock().await;
        match &*end {
            End::Open => {}
            End::Failed(error) => return Err(error.clone()),
            End::Finished => return Ok(()),
        }
        progress.is_closed.store(true, Ordering::Release);
        let message = "finishing the image was given up before";
        *end = End::Failed(Error::with_message(ErrorKind::Cancelled, message));
        let completed = self.0.complete().await;
        *end = match &completed {
            Ok(()) => End::Finished,
            Err(error) => End::Failed(error.clone()),
        };
        completed
    }
}

impl<M: Make> NewImage for NewDisk<M> {
    fn finish(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.finish_once())
    }

    fn add_bitmap(&self, details: BitmapDetails, source: Arc<dyn BlockDevice>) -> Result<()> {
        self.0.add_bitmap(details, source)
    }
}

impl<M: Make> fmt::Debug for NewDisk<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self as &dyn NewImage, f)
    }
}

impl<M: Make> BlockDevice for NewDisk<M> {
    fn info(&self) -> &DeviceInfo {
        &self.0.progress().info
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Read, offset, &buffer)?;
            let read = self.0.read_range(range, buffer).await;
            read.map_err(told(Operation::Read, range))
        })
    }

    fn write(&self, offset: u64, data: Buffer, _: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Write, offset, &data)?;
            self.check_change(Operation::Write, range)?;
            if range.is_empty() {
                return Ok(data);
            }
            let written = self.0.write_range(range, data).await;
            written.map_err(told(Operation::Write, range))
        })
    }

    fn write_piped(
        &self,
        offset: u64,
        data: PipeBuffer,
        _: WriteFlags,
    ) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let range = range_of(Operation::Write, offset, data.len() as u64)?;
            self.check_change(Operation::Write, range)?;
            if range.is_empty() {
                return Ok(());
            }
            let written = match self.info().can(Capabilities::SPLICE_WRITE) {
                true => self.0.write_pipe(range, data).await,
                false => self.write_memory(range, data).await,
            };
            written.map_err(told(Operation::Write, range))
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
            if !self.info().can(Capabilities::COPY_FROM) {
                let error = Error::new(ErrorKind::Unsupported);
                return Err(told(Operation::Copy, range)(error));
            }
            self.check_change(Operation::Copy, range)?;
            if range.is_empty() {
                return Ok(());
            }
            let copied = self.0.copy_range(range, &source, flags).await;
            copied.map_err(told(Operation::Copy, range))
        })
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.check_change(Operation::Zero, range)?;
            if range.is_empty() {
                return Ok(());
            }
            let zeroed = self.0.zero_range(range, flags).await;
            zeroed.map_err(told(Operation::Zero, range))
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let flushed = self.0.flush().await;
            flushed.map_err(|error| error.during(Operation::Flush))
        })
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        Box::pin(async move {
            check_allocation(range, context)?;
            let extents = self.0.find_extents(range).await;
            extents.map_err(told(Operation::Extents, range))
        })
    }

    fn mapping(&self, range: ByteRange) -> Mapping<'_> {
        self.0.map_range(range)
    }

    fn resize(&self, size: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let resized = self.0.set_size(size).await;
            resized.map_err(|error| error.during(Operation::Resize))
        })
    }
}
