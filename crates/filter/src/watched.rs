//! A device whose requests are looked at one by one: what `delay`, `error`, `log` and `stats` have in common.

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, CopyFlags, DeviceInfo, Error,
    ErrorKind, Extent, FileRange, Mapping, Operation, Payload, PipeBuffer, Result, WriteFlags,
    ZeroFlags,
};

/// Who looks at the requests of one handle.
pub(crate) trait Watch: Send + Sync + Sized + 'static {
    /// What is kept of a request while it is under way.
    type Ticket: Send;

    /// Whether requests of this kind are looked at; always the same for a handle. What is read is read through
    /// it then, and not from where it lies; what is written is not taken over from files.
    fn watches(&self, operation: Operation) -> bool;

    /// Before a request goes below. A failure is its answer, and it does not go below.
    fn begin(&self, request: &Request<'_>) -> impl Future<Output = Result<Self::Ticket>> + Send;

    /// After a request.
    fn end(&self, ticket: Self::Ticket, request: &Request<'_>, outcome: Outcome<'_>) {
        let _ = (ticket, request, outcome);
    }

    /// Who looks at the requests of another handle, `below`, that was opened from this one.
    fn of_another(&self, below: &Arc<dyn BlockDevice>)
    -> impl Future<Output = Result<Self>> + Send;
}

/// A request as it came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    pub(crate) operation: Operation,
    /// Where; nothing for a flush.
    pub(crate) range: ByteRange,
    /// How; what a write or a trim can be told is among it.
    pub(crate) flags: ZeroFlags,
    /// What is asked about.
    pub(crate) context: Option<&'a Context>,
}

/// What became of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome<'e> {
    Done,
    /// What was answered to a question for extents.
    Extents(&'e [Extent]),
    Failed(&'e Error),
    /// Nobody waited for the end of it.
    GivenUp,
}

/// A device, and who looks at its requests.
pub(crate) struct Watched<W: Watch> {
    below: Arc<dyn BlockDevice>,
    watch: W,
    info: DeviceInfo,
}

impl<W: Watch> Watched<W> {
    pub(crate) fn new(below: Arc<dyn BlockDevice>, watch: W) -> Self {
        let mut info = below.info().clone();
        if watch.watches(Operation::Write) {
            info.capabilities -= Capabilities::COPY_FROM;
        }
        Self { below, watch, info }
    }

    /// Makes a request of which nothing is to be seen, or one that is looked at.
    fn pass<'a, T: Send + 'a>(
        &'a self,
        request: Request<'a>,
        call: impl FnOnce() -> BoxFuture<'a, Result<T>> + Send + 'a,
    ) -> BoxFuture<'a, Result<T>> {
        self.pass_telling(request, call, |_| Outcome::Done)
    }

    /// The same, with an answer that is looked at, too.
    fn pass_telling<'a, T: Send + 'a>(
        &'a self,
        request: Request<'a>,
        call: impl FnOnce() -> BoxFuture<'a, Result<T>> + Send + 'a,
        tell: impl Fn(&T) -> Outcome<'_> + Send + 'a,
    ) -> BoxFuture<'a, Result<T>> {
        if !self.watch.watches(request.operation) {
            return call();
        }
        Box::pin(async move {
            let range = request.range;
            let ticket = self.watch.begin(&request).await.map_err(|error| {
                error
                    .during(request.operation)
                    .at(range.start(), range.len())
            })?;
            let mut under_way = UnderWay {
                watch: &self.watch,
                request,
                ticket: Some(ticket),
            };
            let result = call().await;
            under_way.end(match &result {
                Ok(answer) => tell(answer),
                Err(error) => Outcome::Failed(error),
            });
            result
        })
    }
}

impl<'a> Request<'a> {
    fn new(operation: Operation, range: ByteRange) -> Self {
        Self {
            operation,
            range,
            flags: ZeroFlags::empty(),
            context: None,
        }
    }

    /// A request of so many bytes. Whether there are such bytes is the device's to say.
    fn of(operation: Operation, offset: u64, length: usize) -> Self {
        let end = offset.saturating_add(length as u64);
        Self::new(operation, ByteRange::between(offset, end))
    }

    fn with(mut self, flags: WriteFlags) -> Self {
        self.flags
            .set(ZeroFlags::FUA, flags.contains(WriteFlags::FUA));
        self
    }
}

/// A request that has begun, and ends also when nobody waits for it.
struct UnderWay<'a, W: Watch> {
    watch: &'a W,
    request: Request<'a>,
    ticket: Option<W::Ticket>,
}

impl<W: Watch> UnderWay<'_, W> {
    fn end(&mut self, outcome: Outcome<'_>) {
        if let Some(ticket) = self.ticket.take() {
            self.watch.end(ticket, &self.request, outcome);
        }
    }
}

impl<W: Watch> Drop for UnderWay<'_, W> {
    fn drop(&mut self) {
        self.end(Outcome::GivenUp);
    }
}

impl<W: Watch> BlockDevice for Watched<W> {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        let request = Request::of(Operation::Read, offset, buffer.len());
        self.pass(request, move || self.below.read(offset, buffer))
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        let request = Request::of(Operation::Write, offset, data.len()).with(flags);
        self.pass(request, move || self.below.write(offset, data, flags))
    }

    fn read_piped(
        &self,
        offset: u64,
        length: usize,
        pipe: PipeBuffer,
    ) -> BoxFuture<'_, Result<Payload>> {
        let request = Request::of(Operation::Read, offset, length);
        self.pass(request, move || self.below.read_piped(offset, length, pipe))
    }

    fn write_piped(
        &self,
        offset: u64,
        data: PipeBuffer,
        flags: WriteFlags,
    ) -> BoxFuture<'_, Result<()>> {
        let request = Request::of(Operation::Write, offset, data.len()).with(flags);
        self.pass(request, move || self.below.write_piped(offset, data, flags))
    }

    fn copy_from(
        &self,
        offset: u64,
        source: FileRange,
        flags: CopyFlags,
    ) -> BoxFuture<'_, Result<()>> {
        if !self.watch.watches(Operation::Write) {
            return self.below.copy_from(offset, source, flags);
        }
        let error = Error::new(ErrorKind::Unsupported)
            .during(Operation::Copy)
            .at(offset, source.range().len());
        Box::pin(async move { Err(error) })
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        let request = Request {
            flags,
            ..Request::new(Operation::Zero, range)
        };
        self.pass(request, move || self.below.zero(range, flags))
    }

    fn trim(&self, range: ByteRange, flags: WriteFlags) -> BoxFuture<'_, Result<()>> {
        let request = Request::new(Operation::Trim, range).with(flags);
        self.pass(request, move || self.below.trim(range, flags))
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        let request = Request::of(Operation::Flush, 0, 0);
        self.pass(request, || self.below.flush())
    }

    fn cache(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        let request = Request::new(Operation::Cache, range);
        self.pass(request, move || self.below.cache(range))
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        let request = Request {
            context: Some(context),
            ..Request::new(Operation::Extents, range)
        };
        let call = move || self.below.extents(range, context);
        self.pass_telling(request, call, |answer| Outcome::Extents(answer))
    }

    fn first_extent<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        let request = Request {
            context: Some(context),
            ..Request::new(Operation::Extents, range)
        };
        let call = move || self.below.first_extent(range, context);
        self.pass_telling(request, call, |answer| Outcome::Extents(answer))
    }

    fn mapping(&self, range: ByteRange) -> Mapping<'_> {
        match self.watch.watches(Operation::Read) {
            true => Mapping::Opaque,
            false => self.below.mapping(range),
        }
    }

    fn reopen(&self) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        Box::pin(async move {
            let below = self.below.reopen().await?;
            let watch = self.watch.of_another(&below).await;
            let watch = watch.map_err(|error| error.during(Operation::Open))?;
            Ok(Arc::new(Self::new(below, watch)) as Arc<dyn BlockDevice>)
        })
    }

    fn resize(&self, size: u64) -> BoxFuture<'_, Result<()>> {
        let request = Request::new(Operation::Resize, ByteRange::between(0, size));
        self.pass(request, move || self.below.resize(size))
    }
}
