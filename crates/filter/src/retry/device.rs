//! A device that is opened again when it fails.

use std::{
    ops::Deref,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, BufferPool, ByteRange, Capabilities, ClientFacts, Context,
    DeviceInfo, Error, ErrorKind, Exports, Extent, Operation, Result, Wishes, WriteFlags,
    ZeroFlags, check_fit, request_range,
};
use tokio::{
    runtime::Handle,
    sync::Mutex as Turn,
    time::{Instant, sleep_until, timeout_at},
};

use super::{Retry, Tries, is_worth_repeating};
use crate::Opened;

/// The longest copies of written data that are kept for the next write, in bytes, and how many.
const POOLED: (usize, usize) = (256 << 10, 16);

/// What needs no repetition, or cannot have one.
const WAYS_AROUND: Capabilities = Capabilities::SPLICE_READ
    .union(Capabilities::SPLICE_WRITE)
    .union(Capabilities::COPY_FROM)
    .union(Capabilities::RESIZE);

/// What a device needs to be written to.
const WRITING: Capabilities = Capabilities::WRITE
    .union(Capabilities::TRIM)
    .union(Capabilities::ZERO)
    .union(Capabilities::FAST_ZERO)
    .union(Capabilities::FUA)
    .union(Capabilities::FLUSH);

/// What the handles of one export share.
#[derive(Default)]
pub(super) struct Export {
    /// How often a handle was left that had written what was not flushed.
    losses: AtomicU64,
    /// How many of those somebody was told of.
    told: AtomicU64,
    pub(super) repeated: AtomicU64,
    pub(super) reopened: AtomicU64,
    pub(super) gave_up: AtomicU64,
}

/// A handle to an export that outlives the device below.
pub(super) struct Reopening {
    options: Retry,
    below: Arc<dyn Exports>,
    export: Arc<Export>,
    name: String,
    client: ClientFacts,
    info: DeviceInfo,
    /// What the device has to be when it is opened again.
    was: DeviceInfo,
    /// Where whoever opened this looks for wishes.
    wishes: Option<Arc<Wishes>>,
    current: Mutex<Current>,
    /// Whose turn it is to open it again.
    turn: Turn<()>,
    /// How many losses this handle was told of.
    told: AtomicU64,
    buffers: BufferPool,
}

/// The device of now.
struct Current {
    /// `None` while it is opened again, and when that has failed.
    device: Option<Arc<Below>>,
    wishes: Option<Arc<Wishes>>,
    /// How often it was opened again.
    generation: u64,
    /// How many changes it has acknowledged, and how many of those need no flush any more.
    changes: u64,
    settled: u64,
    /// How many flushes failed while something was at stake.
    failed_flushes: u64,
    /// How often it was given up to open it again, and why the last time.
    given_up: u64,
    failure: Option<Error>,
}

/// A device to make one attempt with.
struct Attempt {
    device: Arc<Below>,
    generation: u64,
    /// How many changes it had acknowledged.
    changes: u64,
}

/// A device below, and how it goes.
struct Below {
    // In this order: who goes last decides where.
    device: Arc<dyn BlockDevice>,
    last: Last,
}

/// What a device is closed with. One that was left is closed by the last request that it still had, on a thread
/// where nobody else waits: closing may have to wait for whoever is opening it again in the same task.
struct Last {
    device: Option<Arc<dyn BlockDevice>>,
    is_left: AtomicBool,
}

impl Below {
    fn new(device: Arc<dyn BlockDevice>) -> Arc<Self> {
        let last = Last {
            device: Some(Arc::clone(&device)),
            is_left: AtomicBool::new(false),
        };
        Arc::new(Self { device, last })
    }

    /// Closes it here if no request has it, and otherwise lets the last of them.
    fn leave(self: Arc<Self>) {
        self.last.is_left.store(true, Ordering::Release);
        if let Some(below) = Arc::into_inner(self) {
            below.last.is_left.store(false, Ordering::Release);
        }
    }
}

impl Deref for Below {
    type Target = dyn BlockDevice;

    fn deref(&self) -> &Self::Target {
        &*self.device
    }
}

impl Drop for Last {
    fn drop(&mut self) {
        if self.is_left.load(Ordering::Acquire)
            && let Ok(runtime) = Handle::try_current()
        {
            let device = self.device.take();
            runtime.spawn_blocking(move || drop(device));
        }
    }
}

impl Reopening {
    pub(super) fn new(options: Retry, below: Arc<dyn Exports>, opened: Opened<Export>) -> Self {
        let Opened {
            device,
            export: name,
            client,
            wishes,
            shared: export,
            ..
        } = opened;
        let own_wishes = wishes.clone();
        let mut info = device.info().clone();
        let mut was = info.clone();
        info.capabilities -= WAYS_AROUND;
        if options.read_only {
            was.capabilities -= WRITING;
        }
        Self {
            told: AtomicU64::new(export.told.load(Ordering::Acquire)),
            buffers: BufferPool::new(POOLED.0, POOLED.1),
            turn: Turn::new(()),
            current: Mutex::new(Current {
                device: Some(Below::new(device)),
                wishes,
                generation: 0,
                changes: 0,
                settled: 0,
                failed_flushes: 0,
                given_up: 0,
                failure: None,
            }),
            wishes: own_wishes,
            options,
            below,
            export,
            name,
            client,
            info,
            was,
        }
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes attempts with `call` until one succeeds, fails for good, or is the last.
    async fn attempts<T, F>(&self, mut call: impl FnMut(Attempt) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send,
        T: Send,
    {
        let mut tries = Tries::new(self.options);
        loop {
            let attempt = self.attempt(&mut tries).await?;
            let generation = attempt.generation;
            let result = call(attempt).await;
            let is_wish = self.hand_wishes_on();
            match result {
                Err(error) if is_worth_repeating(&error) && !is_wish => {
                    self.recover(generation, error, &mut tries).await?;
                    self.export.repeated.fetch_add(1, Ordering::Relaxed);
                }
                result => return result,
            }
        }
    }

    /// As [`attempts`](Self::attempts), for a change that has to be flushed unless it `is_durable`.
    async fn change<T, F>(&self, is_durable: bool, mut call: impl FnMut(Attempt) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send,
        T: Send,
    {
        self.attempts(|attempt| {
            let generation = attempt.generation;
            let call = call(attempt);
            async move {
                let result = call.await;
                if result.is_ok() && !is_durable {
                    self.changed(generation);
                }
                result
            }
        })
        .await
    }

    /// The device of now, opened again where there is none.
    async fn attempt(&self, tries: &mut Tries) -> Result<Attempt> {
        loop {
            let failure = {
                let current = self.current();
                if let Some(device) = &current.device {
                    return Ok(Attempt {
                        device: Arc::clone(device),
                        generation: current.generation,
                        changes: current.changes,
                    });
                }
                current.failure.clone()
            };
            let failure = failure.unwrap_or_else(|| Error::new(ErrorKind::ConnectionLost));
            self.recover(u64::MAX, failure, tries).await?;
        }
    }

    /// Opens the device again after one of that generation has failed so (`u64::MAX` where there was none), or waits
    /// until somebody else has. Fails with the last failure.
    async fn recover(&self, generation: u64, failure: Error, tries: &mut Tries) -> Result<()> {
        let given_up = self.current().given_up;
        let _turn = self.turn.lock().await;
        {
            let current = self.current();
            let is_new = generation == u64::MAX || current.generation > generation;
            if current.device.is_some() && is_new {
                // It was not this one that failed; but no request is repeated for ever.
                return match generation == u64::MAX || tries.next().is_some() {
                    true => Ok(()),
                    false => self.give_up(current, failure),
                };
            }
            if current.given_up > given_up {
                let failure = current.failure.clone().unwrap_or(failure);
                return self.give_up(current, failure);
            }
        }
        let mut failure = failure;
        // What nobody has opened yet can be there again by now.
        let mut is_at_once = generation == u64::MAX;
        loop {
            let Some(pause) = tries.next() else {
                let mut current = self.current();
                current.given_up += 1;
                current.failure = Some(failure.clone());
                return self.give_up(current, failure);
            };
            if !std::mem::take(&mut is_at_once) {
                self.pause(pause, &failure).await;
            }
            failure = match self.open_again().await {
                Ok(()) => return Ok(()),
                // One that is not what it was may be on its way to be that again.
                Err(error) if is_worth_repeating(&error) || is_another(&error) => error,
                Err(error) => {
                    let mut current = self.current();
                    current.given_up += 1;
                    current.failure = Some(error.clone());
                    return self.give_up(current, error);
                }
            };
        }
    }

    fn give_up(&self, current: MutexGuard<'_, Current>, failure: Error) -> Result<()> {
        drop(current);
        self.export.gave_up.fetch_add(1, Ordering::Relaxed);
        Err(failure)
    }

    /// Waits, and makes durable what the device has acknowledged, if it still answers.
    async fn pause(&self, pause: Duration, failure: &Error) {
        let end = Instant::now() + pause;
        let old = {
            let current = self.current();
            let at_stake = current.changes > current.settled && !failure.is_transient();
            let device = current.device.as_ref().filter(|_| at_stake);
            device.map(|device| (Arc::clone(device), current.generation, current.changes))
        };
        if let Some((device, generation, changes)) = old
            && let Ok(Ok(())) = timeout_at(end, device.flush()).await
        {
            self.settle(generation, changes);
        }
        sleep_until(end).await;
    }

    async fn open_again(&self) -> Result<()> {
        let old = {
            let mut current = self.current();
            if current.changes > current.settled {
                current.settled = current.changes;
                self.export.losses.fetch_add(1, Ordering::AcqRel);
            }
            current.device.take()
        };
        if let Some(old) = old {
            // The last handle to some sources has to go before they are opened anew.
            old.leave();
        }
        let mut client = self.client;
        client.read_only |= self.options.read_only;
        let open = self.below.open(&self.name, client).await?;
        check_fit(&self.was, open.device.info())
            .map_err(|error| error.during(Operation::Open).on(&self.info.name))?;
        let mut current = self.current();
        current.device = Some(Below::new(open.device));
        current.wishes = open.wishes;
        current.generation += 1;
        current.failure = None;
        self.export.reopened.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// A device of that generation has acknowledged a change.
    fn changed(&self, generation: u64) {
        if !self.info.can(Capabilities::FLUSH) {
            return;
        }
        let mut current = self.current();
        if current.generation == generation && current.device.is_some() {
            current.changes += 1;
        } else {
            // It was left meanwhile.
            self.export.losses.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Nothing is at stake any more of the first `changes` of that generation.
    fn settle(&self, generation: u64, changes: u64) {
        let mut current = self.current();
        if current.generation == generation {
            current.settled = current.settled.max(changes);
        }
    }

    /// Fails if changes were lost and this handle was not told so, or if there are more losses than `known`.
    fn tell_losses(&self, known: u64) -> Result<()> {
        let losses = self.export.losses.load(Ordering::Acquire);
        let is_told = self.told.fetch_max(losses, Ordering::AcqRel) >= losses;
        if is_told && losses <= known {
            return Ok(());
        }
        self.export.told.fetch_max(losses, Ordering::AcqRel);
        let message = "the source was opened again, and what was written before and not flushed \
                       may be lost";
        let error = Error::with_message(ErrorKind::Io, message).during(Operation::Flush);
        Err(error.on(&self.info.name))
    }

    async fn flush_all(&self) -> Result<()> {
        let mut tries = Tries::new(self.options);
        // What is lost from here on concerns every flush that is under way, whoever is told first.
        let known = self.export.losses.load(Ordering::Acquire);
        let failed_flushes = self.current().failed_flushes;
        loop {
            self.tell_losses(known)?;
            let attempt = self.attempt(&mut tries).await?;
            let (generation, changes) = (attempt.generation, attempt.changes);
            let result = attempt.device.flush().await;
            drop(attempt);
            let is_wish = self.hand_wishes_on();
            let Err(error) = result else {
                self.settle(generation, changes);
                return self.tell_losses(known);
            };
            let at_stake = {
                let mut current = self.current();
                let own = current.generation == generation && current.changes > current.settled;
                current.failed_flushes += u64::from(own);
                current.failed_flushes > failed_flushes
            };
            if at_stake || is_wish || !is_worth_repeating(&error) {
                // Whoever hears of it counts on nothing that came before.
                self.settle(generation, changes);
                return Err(error);
            }
            self.recover(generation, error, &mut tries).await?;
            self.export.repeated.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Makes the wishes of the device of now where they are looked for, and says whether there are any.
    fn hand_wishes_on(&self) -> bool {
        let Some(own) = &self.wishes else {
            return false;
        };
        if let Some(wish) = self.current().wishes.as_ref().and_then(|it| it.current()) {
            own.wish(wish);
        }
        own.current().is_some()
    }
}

/// Whether an attempt to open failed so because what was opened is not what it was.
fn is_another(error: &Error) -> bool {
    error.kind() == ErrorKind::Incompatible && error.operation() == Some(Operation::Open)
}

/// Says what failed, also where it was an attempt to open, which knows of no request.
fn told(operation: Operation, range: ByteRange) -> impl FnOnce(Error) -> Error {
    move |error| {
        let error = match error.operation() {
            Some(Operation::Open) => Error::with_source(error.kind(), error),
            _ => error,
        };
        error.during(operation).moved_to(range.start(), range.len())
    }
}

impl BlockDevice for Reopening {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Read, offset, &buffer)?;
            let length = buffer.len();
            let mut first = Some(buffer);
            let read = self.attempts(|it| {
                let buffer = first.take().unwrap_or_else(|| Buffer::zeroed(length));
                async move { it.device.read(offset, buffer).await }
            });
            read.await.map_err(told(Operation::Read, range))
        })
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Write, offset, &data)?;
            let written = self.change(flags.contains(WriteFlags::FUA), |it| {
                // What is written is not given back by a write that fails.
                let mut copy = self.buffers.take(data.len());
                copy.copy_from_slice(&data);
                async move { it.device.write(offset, copy, flags).await.map(drop) }
            });
            written.await.map_err(told(Operation::Write, range))?;
            Ok(data)
        })
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let zeroed = self.change(flags.contains(ZeroFlags::FUA), |it| async move {
                it.device.zero(range, flags).await
            });
            zeroed.await.map_err(told(Operation::Zero, range))
        })
    }

    fn trim(&self, range: ByteRange, flags: WriteFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let trimmed = self.change(flags.contains(WriteFlags::FUA), |it| async move {
                it.device.trim(range, flags).await
            });
            trimmed.await.map_err(told(Operation::Trim, range))
        })
    }

    /// Fails with `Io`, once for each handle, when what was acknowledged before may have been lost.
    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.flush_all())
    }

    fn cache(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let cached = self.attempts(|it| async move { it.device.cache(range).await });
            cached.await.map_err(told(Operation::Cache, range))
        })
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        Box::pin(async move {
            let extents =
                self.attempts(|it| async move { it.device.extents(range, context).await });
            extents.await.map_err(told(Operation::Extents, range))
        })
    }

    /// A handle with attempts, and losses, of its own.
    fn reopen(&self) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        Box::pin(async move {
            let device = self.attempts(|it| async move { it.device.reopen().await });
            let opened = Opened {
                device: device.await?,
                export: self.name.clone(),
                client: self.client,
                wishes: self.wishes.clone(),
                shared: Arc::clone(&self.export),
            };
            let device = Self::new(self.options, Arc::clone(&self.below), opened);
            Ok(Arc::new(device) as Arc<dyn BlockDevice>)
        })
    }
}
