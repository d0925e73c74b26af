//! The asynchronous client: a handle to a connection that a task of its own drives.

mod piped;

use std::{
    fmt,
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context as TaskContext, Poll, Waker},
};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, DeviceInfo, Error, ErrorKind,
    Extent, Operation, Payload, PipeBuffer, Result, WriteFlags, ZeroFlags, check_fit,
};
use blockferry_proto::{ClientSession, Command, CommandFlags, NbdUri, Negotiated, Request};

use crate::{
    ConnectOptions,
    connect::connect_aside,
    driver::Driver,
    errors,
    in_flight::{Failure, Reply, Shared, Ticket},
    info::{device_info, write_flags, zero_flags},
    status::{context_id, extents_of},
    watchdog::Patience,
};

/// The length in bytes from which on a read or a write is long: glibc's first threshold for `mmap`.
const LONG: u64 = 128 << 10;

/// An asynchronous connection to one export. Cloning is cheap and shares the connection.
///
/// Requests are pipelined: each call enters its request at once, and answers come in any order. A
/// future may be dropped at any time: its request goes on to its end in the background, and the buffer
/// goes back to its pool then. When the connection is lost, every request in flight fails with a
/// transient error, and so does every later one.
///
/// It must be used inside the tokio runtime that it was connected in (with I/O enabled).
#[derive(Clone)]
pub struct Client {
    handle: Arc<Handle>,
}

/// What the clones share; the last one to go closes the connection.
struct Handle {
    shared: Arc<Shared>,
    info: DeviceInfo,
    negotiated: Negotiated,
    /// Whether a block status was asked for: see [`Client::warm_up`].
    warm: AtomicBool,
    /// The server refused to answer a long read in one chunk, so it is not asked to any more.
    in_chunks: AtomicBool,
    /// How it was reached, to open another connection.
    uri: NbdUri,
    options: ConnectOptions,
}

impl Client {
    /// Connects to `uri` as `options` say.
    ///
    /// # Errors
    /// When nobody answers, or the server refuses the export.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn connect(uri: &NbdUri, options: &ConnectOptions) -> Result<Self> {
        let (uri, options) = (uri.clone(), options.clone());
        let (stream, negotiated, name) = connect_aside(&uri, &options).await?;
        let stream = stream
            .into_async()
            .map_err(|error| Error::from(error).during(Operation::Open).on(&name))?;
        let splicing = stream.splicing();
        let shared = Arc::new(Shared::new(ClientSession::new(&negotiated)));
        let patience = Patience::new(&options);
        tokio::spawn(Driver::new(stream, Arc::clone(&shared), patience).drive());
        let mut info = device_info(&negotiated, name);
        info.capabilities |= splicing;
        if !info.can(Capabilities::WRITE) {
            info.capabilities -= Capabilities::SPLICE_WRITE;
        }
        Ok(Self {
            handle: Arc::new(Handle {
                shared,
                info,
                negotiated,
                warm: AtomicBool::new(false),
                in_chunks: AtomicBool::new(false),
                uri,
                options,
            }),
        })
    }

    /// What was negotiated with the server.
    #[must_use]
    pub fn negotiated(&self) -> &Negotiated {
        &self.handle.negotiated
    }

    /// Finishes what is in flight, says goodbye, and waits until the connection is closed. Requests
    /// made afterwards, through any clone, fail.
    pub async fn disconnect(&self) {
        self.close();
        poll_fn(|context| self.handle.shared.poll_closed(context)).await;
    }

    /// Another connection to the same export, which must still be what it was. Whether this one lives does
    /// not matter.
    pub(crate) async fn another(&self) -> Result<Self> {
        let Handle { uri, options, .. } = &*self.handle;
        let other = Self::connect(uri, options).await?;
        if self.is_alive() {
            // The same server answers.
            other.skip_warm_up();
        }
        check_fit(self.info(), other.info())
            .map_err(|error| error.during(Operation::Open).on(&self.info().name))?;
        Ok(other)
    }

    /// Takes note that the server was warmed up through another connection.
    pub(crate) fn skip_warm_up(&self) {
        self.handle.warm.store(true, Ordering::Relaxed);
    }

    /// The connection's end, and why it came. Waiting for it does not keep the connection open.
    pub(crate) fn closed(&self) -> impl Future<Output = Error> + Send + use<> {
        let shared = Arc::clone(&self.handle.shared);
        async move {
            poll_fn(|context| shared.poll_closed(context)).await;
            shared.end_reason()
        }
    }

    /// Why the connection ended, once it has.
    pub(crate) fn end_reason(&self) -> Error {
        self.handle.shared.end_reason()
    }

    /// Whether the connection has not ended yet.
    pub(crate) fn is_alive(&self) -> bool {
        self.handle.shared.is_alive()
    }

    /// Lets no new request in; what is in flight is finished.
    pub(crate) fn close(&self) {
        self.handle.shared.close();
    }

    /// Enters a request and waits for its answer.
    async fn request(
        &self,
        operation: Operation,
        request: Request,
        load: Option<Payload>,
    ) -> Result<Reply, Failure> {
        let mut exchange = Exchange {
            shared: &self.handle.shared,
            ticket: None,
        };
        let mut load = load;
        let answer = poll_fn(|context| exchange.poll(context, request, &mut load)).await;
        answer.map_err(|Failure { error, buffer }| {
            let error = error.during(operation);
            let error = match operation {
                Operation::Flush => error,
                _ => error.at(request.offset, request.length),
            };
            let error = error.on(&self.handle.info.name);
            Failure { error, buffer }
        })
    }

    /// One request per piece of `range` that is short enough, one after the other.
    async fn change(
        &self,
        operation: Operation,
        command: Command,
        flags: CommandFlags,
        range: ByteRange,
    ) -> Result<()> {
        self.check(operation, range)?;
        let limit = self.handle.shared.max_length(command);
        for piece in range.pieces(limit) {
            let request = Request {
                command,
                flags,
                offset: piece.start(),
                length: piece.len(),
            };
            self.request(operation, request, None).await?;
        }
        Ok(())
    }

    fn check(&self, operation: Operation, range: ByteRange) -> Result<()> {
        self.handle
            .info
            .check(operation, range)
            .map_err(errors::naming(&self.handle.info.name))
    }

    fn range_of(&self, operation: Operation, offset: u64, length: usize) -> Result<ByteRange> {
        let range = ByteRange::new(offset, length as u64)
            .map_err(|error| Error::with_source(ErrorKind::OutOfBounds, error).during(operation))?;
        self.check(operation, range)?;
        Ok(range)
    }

    /// Moves a whole buffer. What fails because the connection was lost gives the buffer back.
    ///
    /// A read is asked for in one chunk where the block status can be asked for, too: whoever wants to know of holes has
    /// other ways, and qemu-nbd looks for the holes of each read that may come in several, which takes it
    /// milliseconds in a file in memory, and one such search at a time.
    pub(crate) async fn transfer(
        &self,
        operation: Operation,
        command: Command,
        flags: CommandFlags,
        offset: u64,
        buffer: Buffer,
    ) -> Result<Buffer, Failure> {
        let in_one = match command {
            Command::Read if self.handle.info.knows_allocation() => self.flags_of_a_read_in_one(),
            _ => CommandFlags::empty(),
        };
        let length = buffer.len();
        let moved = self.move_buffer(operation, command, flags | in_one, offset, buffer);
        match moved.await {
            // A server may refuse more than 64 KiB in one chunk (EOVERFLOW).
            Err(failure)
                if !in_one.is_empty() && failure.error.kind() == ErrorKind::InvalidInput =>
            {
                let buffer = failure.buffer.unwrap_or_else(|| Buffer::zeroed(length));
                self.read_in_chunks(offset, buffer).await
            }
            moved => moved,
        }
    }

    /// Reads from a server that has refused to answer in one chunk. It is not asked for that again, if this is what
    /// it wants.
    async fn read_in_chunks(&self, offset: u64, buffer: Buffer) -> Result<Buffer, Failure> {
        let flags = CommandFlags::empty();
        let read = self.move_buffer(Operation::Read, Command::Read, flags, offset, buffer);
        let buffer = read.await?;
        self.handle.in_chunks.store(true, Ordering::Relaxed);
        Ok(buffer)
    }

    /// Moves a whole buffer with these flags and no others.
    async fn move_buffer(
        &self,
        operation: Operation,
        command: Command,
        flags: CommandFlags,
        offset: u64,
        buffer: Buffer,
    ) -> Result<Buffer, Failure> {
        let failed = |error| Failure {
            error,
            buffer: None,
        };
        let range = self
            .range_of(operation, offset, buffer.len())
            .map_err(failed)?;
        if range.is_empty() {
            return Ok(buffer);
        }
        let request = Request {
            command,
            flags,
            offset,
            length: range.len(),
        };
        if range.len() >= LONG {
            self.warm_up(range);
        }
        let load = Some(Payload::Memory(buffer));
        let reply = self.request(operation, request, load).await?;
        let missing = || failed(Error::new(ErrorKind::Io).during(operation));
        reply.buffer.ok_or_else(missing)
    }

    /// Before the first long read or write, asks for the block status that nobody asked for yet, and
    /// ignores the answer. qemu-nbd 10 takes the memory of each request from the kernel anew, page by page,
    /// until it has once freed something larger, and what it needs to answer this question is larger.
    fn warm_up(&self, range: ByteRange) {
        if self.handle.warm.swap(true, Ordering::Relaxed) || !self.handle.info.knows_allocation() {
            return;
        }
        let request = Request {
            command: Command::BlockStatus,
            flags: CommandFlags::empty(),
            offset: range.start(),
            length: range.len(),
        };
        let mut context = TaskContext::from_waker(Waker::noop());
        let shared = &self.handle.shared;
        if let Poll::Ready(Ok(ticket)) = shared.poll_enter(&mut context, request, &mut None) {
            shared.abandon(ticket);
        }
    }

    fn lacks(&self, capability: Capabilities) -> bool {
        !self.handle.info.can(capability)
    }

    fn unsupported(&self, operation: Operation, range: ByteRange) -> Error {
        Error::with_message(ErrorKind::Unsupported, "the server has no such command")
            .during(operation)
            .at(range.start(), range.len())
            .on(&self.handle.info.name)
    }

    /// What the server says of as much of `range` as fits one question.
    async fn block_status(
        &self,
        range: ByteRange,
        context: &Context,
        flags: CommandFlags,
    ) -> Result<Vec<Extent>> {
        self.check(Operation::Extents, range)?;
        let naming = errors::naming(&self.handle.info.name);
        let id = context_id(&self.handle.negotiated, context).map_err(&naming)?;
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let (asked, _) = range.split_at(self.handle.shared.max_length(Command::BlockStatus));
        let request = Request {
            command: Command::BlockStatus,
            flags,
            offset: asked.start(),
            length: asked.len(),
        };
        self.handle.warm.store(true, Ordering::Relaxed);
        let reply = self.request(Operation::Extents, request, None).await?;
        let answer = reply.extents.iter().find(|(context, _)| *context == id);
        let extents = answer.map_or(&[][..], |(_, extents)| extents);
        extents_of(asked, extents).map_err(naming)
    }
}

impl BlockDevice for Client {
    fn info(&self) -> &DeviceInfo {
        &self.handle.info
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        let none = CommandFlags::empty();
        let answer = self.transfer(Operation::Read, Command::Read, none, offset, buffer);
        Box::pin(async { Ok(answer.await?) })
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        let flags = write_flags(flags);
        let answer = self.transfer(Operation::Write, Command::Write, flags, offset, data);
        Box::pin(async { Ok(answer.await?) })
    }

    fn read_piped(
        &self,
        offset: u64,
        length: usize,
        pipe: PipeBuffer,
    ) -> BoxFuture<'_, Result<Payload>> {
        Box::pin(self.read_into_pipe(offset, length, pipe))
    }

    fn write_piped(
        &self,
        offset: u64,
        data: PipeBuffer,
        flags: WriteFlags,
    ) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.write_from_pipe(offset, data, flags))
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        let fast = flags.contains(ZeroFlags::FAST) && self.lacks(Capabilities::FAST_ZERO);
        if (self.lacks(Capabilities::ZERO) || fast) && !self.lacks(Capabilities::WRITE) {
            let error = self.unsupported(Operation::Zero, range);
            return Box::pin(async move { Err(error) });
        }
        Box::pin(self.change(
            Operation::Zero,
            Command::WriteZeroes,
            zero_flags(flags),
            range,
        ))
    }

    fn trim(&self, range: ByteRange, flags: WriteFlags) -> BoxFuture<'_, Result<()>> {
        if self.lacks(Capabilities::TRIM) && !self.lacks(Capabilities::WRITE) {
            let error = self.unsupported(Operation::Trim, range);
            return Box::pin(async move { Err(error) });
        }
        Box::pin(self.change(Operation::Trim, Command::Trim, write_flags(flags), range))
    }

    /// A server without a flush command has nothing to make durable.
    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            if self.lacks(Capabilities::FLUSH) {
                return Ok(());
            }
            let flush = Request {
                command: Command::Flush,
                flags: CommandFlags::empty(),
                offset: 0,
                length: 0,
            };
            self.request(Operation::Flush, flush, None).await?;
            Ok(())
        })
    }

    fn cache(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            if self.lacks(Capabilities::CACHE) {
                return Ok(());
            }
            self.change(
                Operation::Cache,
                Command::Cache,
                CommandFlags::empty(),
                range,
            )
            .await
        })
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        Box::pin(self.block_status(range, context, CommandFlags::empty()))
    }

    fn first_extent<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        Box::pin(self.block_status(range, context, CommandFlags::REQ_ONE))
    }

    /// Another connection to the same export, with the same options, also after this one was lost.
    ///
    /// Beside what [`Client::connect`] fails with: `Incompatible` when the export is not what it was any more
    /// (its size, block sizes, abilities), and `Unsupported` when its server has gone for good
    /// ([`ConnectOptions::gone`]). A server that is only not there at present is `Refused` or `NotFound`, or a
    /// transient error.
    fn reopen(&self) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        Box::pin(async { Ok(Arc::new(self.another().await?) as Arc<dyn BlockDevice>) })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("name", &self.handle.info.name)
            .field("is_alive", &self.is_alive())
            .finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// A request on its way: not yet entered, or waiting for its answer. Dropping it leaves the request to
/// the driver.
struct Exchange<'a> {
    shared: &'a Shared,
    ticket: Option<Ticket>,
}

impl Exchange<'_> {
    fn poll(
        &mut self,
        context: &mut TaskContext<'_>,
        request: Request,
        load: &mut Option<Payload>,
    ) -> Poll<Result<Reply, Failure>> {
        if self.ticket.is_none() {
            let entered = std::task::ready!(self.shared.poll_enter(context, request, load));
            let failed = |error| {
                let buffer = match load.take() {
                    Some(Payload::Memory(buffer)) => Some(buffer),
                    _ => None,
                };
                Failure { error, buffer }
            };
            self.ticket = Some(entered.map_err(failed)?);
            return Poll::Pending;
        }
        let Some(ticket) = self.ticket.take() else {
            return Poll::Pending;
        };
        let answer = self.shared.poll_reply(context, ticket);
        if answer.is_pending() {
            self.ticket = Some(ticket);
        }
        answer
    }
}

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.shared.abandon(ticket);
        }
    }
}
