//! Several connections to one export that are one device, which may outlive its server.
//!
//! # What is repeated
//!
//! A request that fails because its connection was lost is repeated on another, or, where there is
//! reconnection, on one that is opened again: it was not acknowledged, so nobody counts on it. It may be
//! carried out twice; no other that overlaps it may be in flight meanwhile, which NBD asks of clients
//! anyway. A write out of a pipe is not repeated, for its data is used up.
//!
//! # What may be lost
//!
//! What a server acknowledged and did not flush is lost with it when its machine goes down, or when it
//! keeps a cache of its own; the pool no longer has the data. It does not cover that up: the next flush
//! fails with `Io`, once for each loss and each handle (clone) of the pool, as the write-back errors of
//! Linux are told once for each open file. The one after that is a flush like any other.
//!
//! Not every lost connection is a lost server. What one connection wrote is flushed through another, for what
//! one flush does is visible to all connections of a server with `MULTI_CONN`, if the server is certainly
//! still the same: the lost connection had answered a request that was made when the other one stood
//! already, and the other one stands still. A write that was durable when it was acknowledged (FUA) is never
//! lost, and of a server without flush nobody can expect anything.
//!
//! # Who may share it
//!
//! A pool has `MULTI_CONN` whatever its server has: with it, all of a pool's connections are one to those
//! who read; without it, there is only one. A flush through any handle reaches each connection that was
//! written through, whoever wrote.

mod members;
mod options;
mod revival;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Context, DeviceInfo, Error, Extent, Operation,
    Payload, PipeBuffer, Result, WriteFlags, ZeroFlags,
};
use blockferry_proto::{Command, CommandFlags, NbdUri};
use futures_util::future::join_all;

use self::members::{Busy, Flushing, Inner, lost_writes};
pub use self::options::{PoolEvent, PoolObserver, PoolOptions};
use crate::{Client, ConnectOptions, in_flight::Failure, info::write_flags};

/// Several connections to one export, for a server that does more through several than through one, or
/// that may restart. Cloning is cheap, shares the connections, and gives another handle, which is told of
/// lost writes for itself.
///
/// Each request goes out on the live connection that has the fewest of the pool's requests in flight.
/// One that fails because its connection was lost is repeated on another. When the last connection is lost,
/// a pool without reconnection fails, and for good. One with [`retries`](PoolOptions::retries) opens
/// connections again, with growing pauses from 0.1 to 10 s, while requests wait; after so many attempts in
/// vain they fail with a transient error. Later requests wait for one attempt each, so that the pool works
/// again as soon as the server does. A server that comes back as something else (another size, larger
/// blocks, fewer abilities) is refused, and requests fail with `Incompatible`.
///
/// A repeated write or zeroing may be done twice, so let no other overlap it until it is answered. What
/// the server may have forgotten, because it was lost with writes that were acknowledged and not flushed, is
/// told by the next flush through each handle: it fails with `Io`, once.
///
/// A flush goes out on each connection that wrote since it was last flushed. As with
/// [`Client`], futures may be dropped. The connections live in the tokio runtime that the pool was connected
/// in, which must go on running; requests may come from any other, or from none.
pub struct Pool {
    inner: Arc<Inner>,
    /// How many losses of writes this handle was told of.
    told: AtomicU64,
}

impl Pool {
    /// Connects to `uri` as `connecting` says. A number in place of `options` is that of the connections.
    ///
    /// It returns with the first connection. The others are opened in the background, one after the other,
    /// and take part as they come: only when the server advertises
    /// [`MULTI_CONN`](blockferry_block::Capabilities::MULTI_CONN), and no more after one that it does not want.
    ///
    /// # Errors
    /// When nobody answers, or the server refuses the first connection: that is not tried again.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn connect(
        uri: &NbdUri,
        connecting: &ConnectOptions,
        options: impl Into<PoolOptions>,
    ) -> Result<Self> {
        let options = options.into();
        let first = Client::connect(uri, connecting).await?;
        let inner = Inner::begin(uri.clone(), connecting.clone(), options, first);
        Ok(Self::of(inner))
    }

    /// How many connections live at present.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.inner.live()
    }

    /// Opens no connection any more, through any clone. Requests go on as long as there are some; those that
    /// have none, or lose it, fail and wait for nothing. For whoever is about to end.
    pub fn stop_waiting(&self) {
        self.inner.stop_waiting();
    }

    /// Finishes what is in flight, says goodbye on every connection, and waits until they are closed.
    /// Requests made afterwards, through any clone, fail.
    pub async fn disconnect(&self) {
        let clients = self.inner.close();
        clients.iter().for_each(Client::close);
        join_all(clients.iter().map(Client::disconnect)).await;
    }

    fn of(inner: Arc<Inner>) -> Self {
        let told = AtomicU64::new(inner.told());
        Self { inner, told }
    }

    fn tries(&self, operation: Operation, range: Option<ByteRange>) -> Tries<'_> {
        Tries {
            inner: &self.inner,
            operation,
            range,
            left: self.inner.most_repeats(),
            last: None,
        }
    }

    /// Moves a whole buffer through whichever connection lives.
    async fn transfer(
        &self,
        operation: Operation,
        flags: CommandFlags,
        offset: u64,
        mut buffer: Buffer,
    ) -> Result<Buffer> {
        let command = match operation {
            Operation::Write => Command::Write,
            _ => Command::Read,
        };
        let mut tries = self.tries(operation, range_of(offset, buffer.len()));
        loop {
            let busy = tries.next().await?;
            let transfer = busy
                .client()
                .transfer(operation, command, flags, offset, buffer);
            match transfer.await {
                Ok(buffer) => {
                    match operation {
                        Operation::Write => self.inner.changed(&busy, is_durable(flags)),
                        _ => self.inner.answered(&busy),
                    }
                    return Ok(buffer);
                }
                Err(Failure {
                    error,
                    buffer: Some(back),
                }) => {
                    tries.failed(&busy, error)?;
                    buffer = back;
                }
                Err(Failure { error, .. }) => return Err(error),
            }
        }
    }

    async fn flush_all(&self) -> Result<()> {
        let mut tries = self.tries(Operation::Flush, None);
        loop {
            self.tell_lost_writes()?;
            let mut flushes = self.inner.flushes();
            if flushes.is_empty() {
                // Nothing of ours is at stake, but others may have written.
                flushes.push(Flushing::of_nothing(tries.next().await?));
            }
            let answers = join_all(flushes.iter().map(|it| it.busy.client().flush())).await;
            let mut again = false;
            for (flush, answer) in flushes.iter().zip(answers) {
                match answer {
                    Ok(()) => self.inner.flushed(flush),
                    Err(error) => {
                        tries.failed(&flush.busy, error)?;
                        again = true;
                    }
                }
            }
            if !again {
                return self.tell_lost_writes();
            }
        }
    }

    /// Fails if writes were lost and this handle was not told so.
    fn tell_lost_writes(&self) -> Result<()> {
        let losses = self.inner.losses();
        if self.told.fetch_max(losses, Ordering::AcqRel) >= losses {
            return Ok(());
        }
        self.inner.note_told(losses);
        Err(lost_writes().on(&self.inner.info().name))
    }
}

impl Clone for Pool {
    /// A handle that is told of every loss of writes that nobody was told of yet, and of later ones.
    fn clone(&self) -> Self {
        Self::of(Arc::clone(&self.inner))
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("name", &self.inner.info().name)
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

/// How many extents somebody wants to know.
#[derive(Clone, Copy)]
enum Wanted {
    All,
    First,
}

impl Pool {
    async fn block_status(
        &self,
        range: ByteRange,
        context: &Context,
        wanted: Wanted,
    ) -> Result<Vec<Extent>> {
        let mut tries = self.tries(Operation::Extents, Some(range));
        loop {
            let busy = tries.next().await?;
            let asked = match wanted {
                Wanted::All => busy.client().extents(range, context),
                Wanted::First => busy.client().first_extent(range, context),
            };
            match asked.await {
                Ok(extents) => {
                    self.inner.answered(&busy);
                    return Ok(extents);
                }
                Err(error) => tries.failed(&busy, error)?,
            }
        }
    }
}

impl BlockDevice for Pool {
    /// That of the first connection, with `MULTI_CONN`.
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(self.transfer(Operation::Read, CommandFlags::empty(), offset, buffer))
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(self.transfer(Operation::Write, write_flags(flags), offset, data))
    }

    /// What a lost connection left undone is read into memory through another.
    fn read_piped(
        &self,
        offset: u64,
        length: usize,
        pipe: PipeBuffer,
    ) -> BoxFuture<'_, Result<Payload>> {
        Box::pin(async move {
            let mut tries = self.tries(Operation::Read, range_of(offset, length));
            let busy = tries.next().await?;
            match busy.client().read_piped(offset, length, pipe).await {
                Ok(payload) => {
                    self.inner.answered(&busy);
                    Ok(payload)
                }
                Err(error) => {
                    tries.failed(&busy, error)?;
                    drop(busy);
                    let buffer = self.read(offset, Buffer::zeroed(length)).await?;
                    Ok(Payload::Memory(buffer))
                }
            }
        })
    }

    /// Fails with a lost connection although others live: the data was used up.
    fn write_piped(
        &self,
        offset: u64,
        data: PipeBuffer,
        flags: WriteFlags,
    ) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let mut tries = self.tries(Operation::Write, range_of(offset, data.len()));
            let busy = tries.next().await?;
            match busy.client().write_piped(offset, data, flags).await {
                Ok(()) => {
                    self.inner.changed(&busy, flags.contains(WriteFlags::FUA));
                    Ok(())
                }
                Err(error) => {
                    tries.failed(&busy, error.clone())?;
                    Err(error)
                }
            }
        })
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let mut tries = self.tries(Operation::Zero, Some(range));
            loop {
                let busy = tries.next().await?;
                match busy.client().zero(range, flags).await {
                    Ok(()) => {
                        self.inner.changed(&busy, flags.contains(ZeroFlags::FUA));
                        return Ok(());
                    }
                    Err(error) => tries.failed(&busy, error)?,
                }
            }
        })
    }

    fn trim(&self, range: ByteRange, flags: WriteFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let mut tries = self.tries(Operation::Trim, Some(range));
            loop {
                let busy = tries.next().await?;
                match busy.client().trim(range, flags).await {
                    Ok(()) => {
                        self.inner.changed(&busy, flags.contains(WriteFlags::FUA));
                        return Ok(());
                    }
                    Err(error) => tries.failed(&busy, error)?,
                }
            }
        })
    }

    /// Fails with `Io`, once for each handle, when the server was lost with writes that were not flushed.
    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.flush_all())
    }

    fn cache(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let mut tries = self.tries(Operation::Cache, Some(range));
            loop {
                let busy = tries.next().await?;
                match busy.client().cache(range).await {
                    Ok(()) => return Ok(()),
                    Err(error) => tries.failed(&busy, error)?,
                }
            }
        })
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        Box::pin(self.block_status(range, context, Wanted::All))
    }

    fn first_extent<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        Box::pin(self.block_status(range, context, Wanted::First))
    }

    /// One more connection to the same export, which is none of the pool's.
    fn reopen(&self) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        Box::pin(async { Ok(Arc::new(self.inner.another().await?) as Arc<dyn BlockDevice>) })
    }
}

/// The attempts to carry out one request.
struct Tries<'p> {
    inner: &'p Inner,
    operation: Operation,
    range: Option<ByteRange>,
    /// How often it may still be repeated: a request may be what its server dies of.
    left: u32,
    last: Option<Error>,
}

impl Tries<'_> {
    /// A connection for the next attempt, once there is one.
    async fn next(&mut self) -> Result<Busy> {
        match self.inner.connection().await {
            Ok(busy) => Ok(busy),
            Err(error) => {
                // Without reconnection, what the request itself met with says most.
                let last = self.last.take().filter(|_| !self.inner.reconnects());
                let error = last.unwrap_or(error).during(self.operation);
                let error = match self.range {
                    Some(range) => error.at(range.start(), range.len()),
                    None => error,
                };
                Err(error.on(&self.inner.info().name))
            }
        }
    }

    /// Fails with `error` unless it came of the connection's loss, so that another attempt may do.
    fn failed(&mut self, busy: &Busy, error: Error) -> Result<()> {
        if !self.inner.is_lost(busy, &error) {
            return Err(error);
        }
        self.inner.retire(busy, &error);
        self.left = match self.left.checked_sub(1) {
            Some(left) => left,
            None => return Err(error),
        };
        self.last = Some(error);
        Ok(())
    }
}

fn range_of(offset: u64, length: usize) -> Option<ByteRange> {
    ByteRange::new(offset, length as u64).ok()
}

fn is_durable(flags: CommandFlags) -> bool {
    flags.contains(CommandFlags::FUA)
}
