//! Several connections to one export that are one device.

use std::{
    iter,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, DeviceInfo, Error, Extent,
    Operation, Payload, PipeBuffer, Result, WriteFlags, ZeroFlags,
};
use blockferry_proto::{Command, CommandFlags, NbdUri};
use futures_util::future::{join_all, try_join_all};
use tokio::task::JoinHandle;

use crate::{Client, ConnectOptions, in_flight::Failure, info::write_flags};

/// How many connections a pool has at most.
const MOST: usize = 256;

/// Several connections to one export, for a server that does more through several than through one.
/// Cloning is cheap and shares the connections.
///
/// Each request goes out on the live connection that has the fewest of the pool's requests in flight.
/// One that fails because its connection was lost is repeated on another; only when the last connection
/// is lost does the pool fail, and for good: what a server forgot that began anew must not be covered up.
/// A write out of a pipe is not repeated, for its data is used up: whoever made it gets the error.
/// A repeated write or zeroing may be done twice, so let no other overlap it until it is answered.
///
/// A flush goes out on each connection that wrote since it was last flushed. As with
/// [`Client`], futures may be dropped, and the pool must be used inside the tokio runtime that it was
/// connected in.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

/// What the clones share; the last one to go closes the connections.
struct Inner {
    info: DeviceInfo,
    first: Member,
    /// Places for the further connections, filled as they come. Those that are lost stay.
    others: Box<[OnceLock<Member>]>,
    /// Where the search for the next connection begins, so that equals take turns.
    turn: AtomicUsize,
    /// The task that opens the further connections.
    opening: Mutex<Option<JoinHandle<()>>>,
}

/// One connection.
struct Member {
    client: Client,
    /// How many of the pool's requests wait for this connection's answer.
    in_flight: AtomicUsize,
    /// How many changes were acknowledged, and how many of those are known to be durable.
    changes: AtomicU64,
    durable: AtomicU64,
}

impl Pool {
    /// Connects to `uri` as `options` say, `connections` times (256 at most).
    ///
    /// It returns with the first connection. The others are opened in the background, one after the other,
    /// and take part as they come: only when the server advertises
    /// [`MULTI_CONN`](Capabilities::MULTI_CONN), and no more after one that it does not want.
    ///
    /// # Errors
    /// When nobody answers, or the server refuses the first connection.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn connect(
        uri: &NbdUri,
        options: &ConnectOptions,
        connections: usize,
    ) -> Result<Self> {
        let first = Client::connect(uri, options).await?;
        let wanted = match first.info().can(Capabilities::MULTI_CONN) {
            true => connections.clamp(1, MOST),
            false => 1,
        };
        let inner = Arc::new(Inner {
            info: first.info().clone(),
            first: Member::new(first.clone()),
            others: (1..wanted).map(|_| OnceLock::new()).collect(),
            turn: AtomicUsize::new(0),
            opening: Mutex::new(None),
        });
        if wanted > 1 {
            let task = tokio::spawn(open_others(Arc::downgrade(&inner), first, wanted - 1));
            *inner.opening() = Some(task);
        }
        Ok(Self { inner })
    }

    /// How many connections live at present.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.inner.live().count()
    }

    /// Finishes what is in flight, says goodbye on every connection, and waits until they are closed.
    /// Requests made afterwards, through any clone, fail.
    pub async fn disconnect(&self) {
        let opening = self.inner.opening().take();
        if let Some(task) = opening {
            task.abort();
            let _ = task.await;
        }
        self.inner
            .members()
            .for_each(|member| member.client.close());
        join_all(
            self.inner
                .members()
                .map(|member| member.client.disconnect()),
        )
        .await;
    }

    /// Moves a whole buffer through whichever connection lives.
    async fn transfer(
        &self,
        operation: Operation,
        command: Command,
        flags: CommandFlags,
        offset: u64,
        mut buffer: Buffer,
    ) -> Result<(Buffer, &Member)> {
        loop {
            let busy = self.inner.choose();
            let client = &busy.member.client;
            let failure = match client
                .transfer(operation, command, flags, offset, buffer)
                .await
            {
                Ok(buffer) => return Ok((buffer, busy.member)),
                Err(failure) => failure,
            };
            let Failure {
                error,
                buffer: back,
            } = failure;
            buffer = match back {
                Some(buffer) if self.inner.outlives(busy.member, &error) => buffer,
                _ => return Err(error),
            };
        }
    }

    /// Makes a request through whichever connection lives.
    async fn request<'a, T>(
        &'a self,
        request: impl Fn(&'a Client) -> BoxFuture<'a, Result<T>>,
    ) -> Result<(T, &'a Member)> {
        loop {
            let busy = self.inner.choose();
            match request(&busy.member.client).await {
                Ok(answer) => return Ok((answer, busy.member)),
                Err(error) if self.inner.outlives(busy.member, &error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes a request that changes something.
    async fn change<'a>(
        &'a self,
        request: impl Fn(&'a Client) -> BoxFuture<'a, Result<()>>,
    ) -> Result<()> {
        let ((), member) = self.request(request).await?;
        member.changed();
        Ok(())
    }

    /// Makes the changes durable that `member` acknowledged: through itself, or, where it is lost, through
    /// another, for what one flush does is visible to all connections of a server with `MULTI_CONN`.
    async fn flush_one(&self, member: &Member, changes: u64) -> Result<()> {
        match member.client.flush().await {
            Err(error) if self.inner.outlives(member, &error) => {
                self.request(|client| client.flush()).await?;
            }
            answer => answer?,
        }
        member.durable.fetch_max(changes, Ordering::AcqRel);
        Ok(())
    }
}

impl BlockDevice for Pool {
    /// That of the first connection.
    fn info(&self) -> &DeviceInfo {
        &self.inner.info
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        let none = CommandFlags::empty();
        let answer = self.transfer(Operation::Read, Command::Read, none, offset, buffer);
        Box::pin(async { Ok(answer.await?.0) })
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        let flags = write_flags(flags);
        let answer = self.transfer(Operation::Write, Command::Write, flags, offset, data);
        Box::pin(async {
            let (data, member) = answer.await?;
            member.changed();
            Ok(data)
        })
    }

    /// What a lost connection left undone is read into memory through another.
    fn read_piped(
        &self,
        offset: u64,
        length: usize,
        pipe: PipeBuffer,
    ) -> BoxFuture<'_, Result<Payload>> {
        Box::pin(async move {
            let busy = self.inner.choose();
            let read = busy.member.client.read_piped(offset, length, pipe);
            match read.await {
                Err(error) if self.inner.outlives(busy.member, &error) => {
                    drop(busy);
                    let buffer = self.read(offset, Buffer::zeroed(length)).await?;
                    Ok(Payload::Memory(buffer))
                }
                answer => answer,
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
            let busy = self.inner.choose();
            busy.member.client.write_piped(offset, data, flags).await?;
            busy.member.changed();
            Ok(())
        })
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.change(move |client| client.zero(range, flags)))
    }

    fn trim(&self, range: ByteRange, flags: WriteFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.change(move |client| client.trim(range, flags)))
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let members = self.inner.members();
            let mut flushes: Vec<_> = members
                .filter_map(|member| Some(self.flush_one(member, member.unflushed()?)))
                .collect();
            if flushes.is_empty() {
                // Nothing of ours is at stake, but others may have written.
                flushes.push(self.flush_one(self.inner.choose().member, 0));
            }
            try_join_all(flushes).await?;
            Ok(())
        })
    }

    fn cache(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        let answer = self.request(move |client| client.cache(range));
        Box::pin(async {
            let ((), _) = answer.await?;
            Ok(())
        })
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        let answer = self.request(move |client| client.extents(range, context));
        Box::pin(async { Ok(answer.await?.0) })
    }

    /// One more connection to the same export, which is none of the pool's.
    fn reopen(&self) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        let answer = self.request(|client| client.reopen());
        Box::pin(async { Ok(answer.await?.0) })
    }
}

impl Inner {
    /// The connections that were opened so far.
    fn members(&self) -> impl Iterator<Item = &Member> {
        let others = self.others.iter().map_while(OnceLock::get);
        iter::once(&self.first).chain(others)
    }

    fn live(&self) -> impl Iterator<Item = &Member> {
        self.members().filter(|member| member.client.is_alive())
    }

    /// The live connection that has the fewest requests in flight, with one more from now on. When none
    /// lives it is a lost one, which tells why.
    fn choose(&self) -> Busy<'_> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let places = 1 + self.others.len();
        let rank = |(place, member): &(usize, &Member)| {
            let lost = !member.client.is_alive();
            let in_flight = member.in_flight.load(Ordering::Relaxed);
            (lost, in_flight, place.wrapping_sub(turn) % places)
        };
        let chosen = self.members().enumerate().min_by_key(rank);
        Busy::new(chosen.map_or(&self.first, |(_, member)| member))
    }

    /// Whether what failed with `error` on `member` can be done again, on another connection.
    fn outlives(&self, member: &Member, error: &Error) -> bool {
        error.is_transient() && !member.client.is_alive() && self.live().next().is_some()
    }

    fn opening(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.opening.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(task) = self.opening().take() {
            task.abort();
        }
    }
}

impl Member {
    fn new(client: Client) -> Self {
        Self {
            client,
            in_flight: AtomicUsize::new(0),
            changes: AtomicU64::new(0),
            durable: AtomicU64::new(0),
        }
    }

    /// Takes note that a change was acknowledged.
    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// How many changes were acknowledged so far, unless all of them are durable.
    fn unflushed(&self) -> Option<u64> {
        let changes = self.changes.load(Ordering::Acquire);
        (changes > self.durable.load(Ordering::Acquire)).then_some(changes)
    }
}

/// A connection with a request of ours in flight.
struct Busy<'a> {
    member: &'a Member,
}

impl<'a> Busy<'a> {
    fn new(member: &'a Member) -> Self {
        member.in_flight.fetch_add(1, Ordering::Relaxed);
        Self { member }
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.member.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Opens the other connections, until one fails or the pool is gone or lost.
async fn open_others(pool: Weak<Inner>, first: Client, places: usize) {
    for place in 0..places {
        let Ok(client) = first.another().await else {
            return;
        };
        let Some(pool) = pool.upgrade() else { return };
        // A server that comes back after all was lost is another one.
        if pool.live().next().is_none() || pool.others[place].set(Member::new(client)).is_err() {
            return;
        }
    }
}
