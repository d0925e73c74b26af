//! The trait that everything which holds an image has.

use std::{
    future::Future,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::Pin,
    sync::Arc,
};

use bitflags::bitflags;

use crate::{
    Buffer, ByteRange, Capabilities, Context, DeviceInfo, Error, ErrorKind, Extent, Operation,
    Payload, PipeBuffer, Result, Status,
};

/// A future behind a pointer, so that the trait works as `dyn BlockDevice`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A random-access device of bytes.
///
/// Buffers go in owned and come back: a future that is dropped can never leave anyone writing into
/// memory that was freed. Requests of one device may run concurrently; the result of overlapping
/// writes is undefined, as on a disk. A device splits nothing: offsets, lengths and sizes respect
/// [`DeviceInfo::limits`], and what does not is refused with `InvalidInput` or `OutOfBounds`.
///
/// Errors name the operation and the range; whoever opened the device adds the endpoint.
pub trait BlockDevice: Send + Sync {
    /// What the device is. Fixed while it is open.
    fn info(&self) -> &DeviceInfo;

    /// Fills the whole of `buffer` from `offset` on and gives it back, or fails.
    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>>;

    /// Writes the whole of `data` at `offset` and gives the buffer back.
    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        let _ = flags;
        let length = data.len() as u64;
        let error = Error::new(ErrorKind::ReadOnly)
            .during(Operation::Write)
            .at(offset, length);
        Box::pin(async move { Err(error) })
    }

    /// Reads `length` bytes from `offset` on into `pipe`, or fails. They are not copied where the device has
    /// [`Capabilities::SPLICE_READ`]; they come back in [`Payload::Memory`] when it could not do without a
    /// copy, which the default never can. Whoever gets memory again and again had better read into buffers of
    /// its own.
    ///
    /// `pipe` is empty. A pipe that a failed read left something in is closed and never used again.
    fn read_piped(
        &self,
        offset: u64,
        length: usize,
        pipe: PipeBuffer,
    ) -> BoxFuture<'_, Result<Payload>> {
        drop(pipe);
        Box::pin(async move {
            let buffer = self.read(offset, Buffer::zeroed(length)).await?;
            Ok(Payload::Memory(buffer))
        })
    }

    /// Writes the whole of `data` at `offset`, without a copy where the device has
    /// [`Capabilities::SPLICE_WRITE`]; the default copies it into memory.
    ///
    /// Unlike a buffer, the data is used up: after a failure it must be read again.
    fn write_piped(
        &self,
        offset: u64,
        data: PipeBuffer,
        flags: WriteFlags,
    ) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let length = data.len() as u64;
            let data = data
                .into_memory()
                .map_err(|error| error.during(Operation::Write).at(offset, length))?;
            self.write(offset, data, flags).await.map(drop)
        })
    }

    /// Takes the bytes of `source` over to `offset`, moved by the kernel and not through this process.
    /// Holes of the source may become data or stay holes.
    ///
    /// Fails with `Unsupported` where that cannot be done between these two; the bytes have to be read
    /// and written then, all of them: some may have come over. A device that failed so answers at once
    /// the next time. Needs [`Capabilities::COPY_FROM`], which only says that it is worth a try. With
    /// `UnexpectedEnd` it is the source that failed: it has fewer bytes than it had.
    fn copy_from(
        &self,
        offset: u64,
        source: FileRange,
        flags: CopyFlags,
    ) -> BoxFuture<'_, Result<()>> {
        let _ = flags;
        let range = ByteRange::between(offset, offset.saturating_add(source.range().len()));
        unsupported(Operation::Copy, range)
    }

    /// Makes `range` read as zeroes, by a hole unless [`ZeroFlags::NO_HOLE`] is given.
    ///
    /// Fails with `Unsupported` where the device has no such operation, or, with
    /// [`ZeroFlags::FAST`], where it would be no faster than writing; nothing has changed then.
    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        let _ = flags;
        unsupported(Operation::Zero, range)
    }

    /// Discards `range`: its contents are undefined afterwards.
    fn trim(&self, range: ByteRange, flags: WriteFlags) -> BoxFuture<'_, Result<()>> {
        let _ = flags;
        unsupported(Operation::Trim, range)
    }

    /// Makes everything durable that was acknowledged before the call.
    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    /// Brings `range` closer (a cache, the page cache). A hint: doing nothing is right.
    fn cache(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        let _ = range;
        Box::pin(async { Ok(()) })
    }

    /// What is known of `range` in `context`.
    ///
    /// The answer begins at the range's start, is contiguous, has no empty extent, ends inside the
    /// range, and may be shorter than it, but not empty unless the range is. A context that the
    /// device does not know is `Unsupported`; the default knows `base:allocation` as all data.
    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        if *context != Context::Allocation {
            return unsupported(Operation::Extents, range);
        }
        let whole = if range.is_empty() {
            Vec::new()
        } else {
            vec![Extent {
                range,
                status: Status::DATA,
            }]
        };
        Box::pin(async move { Ok(whole) })
    }

    /// As [`extents`](Self::extents), for those who only want to know of the start of `range`: one extent is enough,
    /// and more of them may be costly to find. The default finds them all the same.
    fn first_extent<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        self.extents(range, context)
    }

    /// Where the bytes at the start of `range` lie, for those who can move them without a copy.
    /// The answer holds until the next write.
    fn mapping(&self, range: ByteRange) -> Mapping<'_> {
        let _ = range;
        Mapping::Opaque
    }

    /// Opens another, independent handle to the same image: for an NBD export another connection. Several
    /// handles may be written through when they have [`Capabilities::MULTI_CONN`]; a flush of each that
    /// wrote makes all of it durable.
    ///
    /// The new handle belongs to the runtime that this is called in. `Unsupported` where one handle is
    /// all that there is, or all that makes sense: requests of one file run side by side anyway.
    fn reopen(&self) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        let error = Error::new(ErrorKind::Unsupported).during(Operation::Open);
        Box::pin(async move { Err(error) })
    }

    /// Sets the size to `size` bytes; what is new reads as zeroes. `info()` keeps the old size.
    fn resize(&self, size: u64) -> BoxFuture<'_, Result<()>> {
        unsupported(Operation::Resize, ByteRange::between(0, size))
    }
}

/// Where the bytes of a range are.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Mapping<'a> {
    /// The first `length` bytes of the range lie in this file at this offset.
    File {
        /// The file or block device.
        fd: BorrowedFd<'a>,
        /// The offset of the range's first byte in the file.
        offset: u64,
        /// How many bytes of the range the answer is good for.
        length: u64,
    },
    /// The first `length` bytes of the range are zeroes and lie nowhere.
    Zero {
        /// How many bytes of the range the answer is good for.
        length: u64,
    },
    /// The bytes must be read.
    Opaque,
}

impl Mapping<'_> {
    /// The part of the range that lies in a file, with a handle of its own on that file; `None` when the
    /// bytes lie in none.
    ///
    /// # Errors
    /// What duplicating the descriptor failed with.
    pub fn to_file(self) -> Result<Option<FileRange>> {
        let Self::File { fd, offset, length } = self else {
            return Ok(None);
        };
        let range = ByteRange::new(offset, length)
            .map_err(|error| Error::with_source(ErrorKind::OutOfBounds, error))?;
        Ok(Some(FileRange::new(fd.try_clone_to_owned()?, range)))
    }
}

/// A range of an open file that keeps the file open.
#[derive(Clone, Debug)]
pub struct FileRange {
    file: Arc<OwnedFd>,
    range: ByteRange,
}

impl FileRange {
    /// `range` of `file`.
    #[must_use]
    pub fn new(file: impl Into<Arc<OwnedFd>>, range: ByteRange) -> Self {
        let file = file.into();
        Self { file, range }
    }

    /// Where in the file.
    #[must_use]
    pub fn range(&self) -> ByteRange {
        self.range
    }

    /// Lets the system forget what it holds in memory of the range, as far as that is durable, so that what is
    /// read next comes from the medium. A hint: nothing may come of it.
    pub fn drop_cached(&self) {
        let (start, length) = (self.range.start(), self.range.len());
        let _ = blockferry_sys::drop_cached(self.file.as_fd(), start, length);
    }

    /// Another range of the same file, without another descriptor.
    #[must_use]
    pub fn with_range(&self, range: ByteRange) -> Self {
        Self::new(Arc::clone(&self.file), range)
    }
}

impl AsFd for FileRange {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

bitflags! {
    /// How a write or a trim is done.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct WriteFlags: u8 {
        /// Durable when acknowledged (force unit access). Needs [`Capabilities::FUA`].
        const FUA = 1 << 0;
    }

    /// How a range is zeroed.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ZeroFlags: u8 {
        /// Durable when acknowledged (force unit access). Needs [`Capabilities::FUA`].
        const FUA = 1 << 0;
        /// Leave the range allocated.
        const NO_HOLE = 1 << 1;
        /// Fail at once with `Unsupported` rather than be as slow as writing zeroes.
        /// Needs [`Capabilities::FAST_ZERO`].
        const FAST = 1 << 2;
    }

    /// How bytes are taken over from a file.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct CopyFlags: u8 {
        /// Durable when acknowledged (force unit access). Needs [`Capabilities::FUA`].
        const FUA = 1 << 0;
        /// The range gets space of its own, all of it: no blocks shared with the source, no holes. Fail
        /// with `Unsupported` where that is not sure.
        const ALLOCATE = 1 << 1;
        /// Only share the source's blocks (reflink), which takes no space: at most what does not fill a
        /// block is copied. Fail with `Unsupported` where that cannot be; nothing has changed then.
        const SHARE = 1 << 2;
    }
}

fn unsupported<'a, T: Send + 'a>(
    operation: Operation,
    range: ByteRange,
) -> BoxFuture<'a, Result<T>> {
    let error = Error::new(ErrorKind::Unsupported)
        .during(operation)
        .at(range.start(), range.len());
    Box::pin(async move { Err(error) })
}

/// The range of a request of `bytes` at `offset`.
///
/// # Errors
/// As [`range_of`].
pub fn request_range(operation: Operation, offset: u64, bytes: &[u8]) -> Result<ByteRange> {
    range_of(operation, offset, bytes.len() as u64)
}

/// The range of a request of `length` bytes at `offset`.
///
/// # Errors
/// `OutOfBounds`, with the operation and the place, where there can be no such range.
pub fn range_of(operation: Operation, offset: u64, length: u64) -> Result<ByteRange> {
    ByteRange::new(offset, length).map_err(|error| {
        Error::with_source(ErrorKind::OutOfBounds, error)
            .during(operation)
            .at(offset, length)
    })
}

/// Refuses every context but `base:allocation`.
///
/// # Errors
/// `Unsupported`.
pub fn check_allocation(range: ByteRange, context: &Context) -> Result<()> {
    if *context == Context::Allocation {
        return Ok(());
    }
    let error = Error::with_message(
        ErrorKind::Unsupported,
        format!("there is no {context} here"),
    );
    Err(error
        .during(Operation::Extents)
        .at(range.start(), range.len()))
}

impl DeviceInfo {
    /// Checks a request against the device's size and against its being writable; growth past the end
    /// is allowed to a device with [`Capabilities::RESIZE`]. Alignment is not looked at.
    ///
    /// # Errors
    /// `ReadOnly` or `OutOfBounds`, with the operation and the range.
    pub fn check(&self, operation: Operation, range: ByteRange) -> Result<()> {
        self.check_within(self.size, operation, range)
    }

    /// As [`check`](Self::check), for a device that has grown or shrunk to `size` since it was opened.
    pub(crate) fn check_within(
        &self,
        size: u64,
        operation: Operation,
        range: ByteRange,
    ) -> Result<()> {
        let changes = matches!(
            operation,
            Operation::Write | Operation::Zero | Operation::Trim | Operation::Copy
        );
        let kind = if changes && !self.can(Capabilities::WRITE) {
            ErrorKind::ReadOnly
        } else if range.end() > size && !(changes && self.can(Capabilities::RESIZE)) {
            ErrorKind::OutOfBounds
        } else {
            return Ok(());
        };
        Err(Error::new(kind)
            .during(operation)
            .at(range.start(), range.len()))
    }

    /// Checks that the device can become `size` bytes long.
    pub(crate) fn check_resize(&self, size: u64) -> Result<()> {
        let kind = if !self.can(Capabilities::RESIZE) {
            ErrorKind::Unsupported
        } else if i64::try_from(size).is_err() {
            ErrorKind::InvalidInput
        } else {
            return Ok(());
        };
        Err(
            Error::with_message(kind, format!("the size cannot become {size} bytes"))
                .during(Operation::Resize),
        )
    }
}
