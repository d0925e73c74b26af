//! A device that fails on demand.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, CopyFlags, DeviceInfo, Error,
    ErrorKind, Extent, FileRange, Mapping, Operation, Payload, PipeBuffer, Result, WriteFlags,
    ZeroFlags,
    device::{range_of, request_range},
};

/// A device in front of another that follows [`Rule`]s about which calls go wrong, and counts calls.
///
/// The first rule that applies to a call decides; a call without one goes through.
pub struct FaultyDevice {
    inner: Arc<dyn BlockDevice>,
    info: DeviceInfo,
    state: Mutex<State>,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
    bytes_until_death: AtomicU64,
    is_dead: AtomicBool,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    calls: HashMap<Operation, u64>,
}

/// Which calls go wrong, and how.
#[derive(Clone, Debug)]
pub struct Rule {
    operation: Option<Operation>,
    range: Option<ByteRange>,
    skip: u64,
    times: u64,
    fault: Fault,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// Nothing: the call goes through, whatever later rules say.
    None,
    /// The call fails and changes nothing.
    Error(ErrorKind),
    /// The call is made after this long (in the time of tokio's clock).
    Delay(Duration),
    /// The call is not made and never answered.
    Hang,
    /// This call and every later one fail with `ConnectionLost`.
    Die,
    /// The answer to a question about extents is this function's, right or wrong; see [`answers`](super::answers).
    Extents(fn(ByteRange) -> Vec<Extent>),
}

impl Rule {
    /// A rule for every call of `operation`.
    #[must_use]
    pub fn on(operation: Operation) -> Self {
        Self {
            operation: Some(operation),
            ..Self::on_all()
        }
    }

    /// A rule for every call.
    #[must_use]
    pub fn on_all() -> Self {
        Self {
            operation: None,
            range: None,
            skip: 0,
            times: u64::MAX,
            fault: Fault::None,
        }
    }

    /// Only for calls whose range overlaps `range`.
    #[must_use]
    pub fn within(mut self, range: ByteRange) -> Self {
        self.range = Some(range);
        self
    }

    /// Not for the first `count` calls that it would be for.
    #[must_use]
    pub fn after(mut self, count: u64) -> Self {
        self.skip = count;
        self
    }

    /// For `count` calls, and none after those.
    #[must_use]
    pub fn times(mut self, count: u64) -> Self {
        self.times = count;
        self
    }

    /// What goes wrong then.
    #[must_use]
    pub fn fault(mut self, fault: Fault) -> Self {
        self.fault = fault;
        self
    }

    /// Whether the rule decides this call, counting down.
    fn applies(&mut self, operation: Operation, range: ByteRange) -> bool {
        let fits = self.operation.is_none_or(|own| own == operation)
            && self
                .range
                .is_none_or(|own| !own.intersection(range).is_empty())
            && (operation == Operation::Extents || !matches!(self.fault, Fault::Extents(_)));
        if !fits {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        if self.times == 0 {
            return false;
        }
        self.times -= 1;
        true
    }
}

impl FaultyDevice {
    /// `inner` as it is, until rules are added.
    #[must_use]
    pub fn new(inner: Arc<dyn BlockDevice>) -> Self {
        Self {
            info: inner.info().clone(),
            inner,
            state: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            most_in_flight: AtomicUsize::new(0),
            bytes_until_death: AtomicU64::new(u64::MAX),
            is_dead: AtomicBool::new(false),
        }
    }

    /// Adds a rule behind those that are there.
    #[must_use]
    pub fn with(self, rule: Rule) -> Self {
        self.add(rule);
        self
    }

    /// Lets the device die once `bytes` bytes were read and written: the call that would go beyond
    /// that and every later call fail with `ConnectionLost`.
    #[must_use]
    pub fn dying_after(self, bytes: u64) -> Self {
        self.bytes_until_death.store(bytes, Ordering::Relaxed);
        self
    }

    /// Changes what the device says of itself: its size, limits, capabilities.
    #[must_use]
    pub fn with_info(mut self, change: impl FnOnce(&mut DeviceInfo)) -> Self {
        change(&mut self.info);
        self
    }

    /// Lets it read into pipes and write from them. It copies the data, so this is for tests alone.
    #[must_use]
    pub fn piping(mut self) -> Self {
        self.info.capabilities |= Capabilities::SPLICE_READ | Capabilities::SPLICE_WRITE;
        self
    }

    /// Adds a rule behind those that are there, to a device that is in use.
    pub fn add(&self, rule: Rule) {
        self.state().rules.push(rule);
    }

    /// Forgets all rules, and a death.
    pub fn heal(&self) {
        self.state().rules.clear();
        self.bytes_until_death.store(u64::MAX, Ordering::Relaxed);
        self.is_dead.store(false, Ordering::Relaxed);
    }

    /// How many calls of `operation` were made, those that failed included.
    #[must_use]
    pub fn calls(&self, operation: Operation) -> u64 {
        self.state().calls.get(&operation).copied().unwrap_or(0)
    }

    /// The largest number of calls that were under way at one time.
    #[must_use]
    pub fn most_in_flight(&self) -> usize {
        self.most_in_flight.load(Ordering::Relaxed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the call and lets happen to it what its rule says. Gives what to answer instead of
    /// the device, where there is something.
    async fn enter(
        &self,
        operation: Operation,
        range: ByteRange,
    ) -> Result<(InFlight<'_>, Option<Vec<Extent>>)> {
        let in_flight = InFlight::new(self);
        let fault = {
            let mut state = self.state();
            *state.calls.entry(operation).or_default() += 1;
            state
                .rules
                .iter_mut()
                .find_map(|rule| rule.applies(operation, range).then_some(rule.fault))
                .unwrap_or(Fault::None)
        };
        let fail = |kind| {
            let error = Error::with_message(kind, "a fault was asked for");
            Err(error.during(operation).at(range.start(), range.len()))
        };
        let moved = match operation {
            Operation::Read | Operation::Write | Operation::Copy => range.len(),
            _ => 0,
        };
        let spent =
            self.bytes_until_death
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                    if left == u64::MAX {
                        Some(left)
                    } else {
                        left.checked_sub(moved)
                    }
                });
        if spent.is_err() || matches!(fault, Fault::Die) {
            self.is_dead.store(true, Ordering::Relaxed);
        }
        if self.is_dead.load(Ordering::Relaxed) {
            return fail(ErrorKind::ConnectionLost);
        }
        match fault {
            Fault::None | Fault::Die => Ok((in_flight, None)),
            Fault::Error(kind) => fail(kind),
            Fault::Delay(duration) => {
                tokio::time::sleep(duration).await;
                Ok((in_flight, None))
            }
            Fault::Hang => std::future::pending().await,
            Fault::Extents(answer) => Ok((in_flight, Some(answer(range)))),
        }
    }
}

/// Counts a call that is under way, also when its future is dropped.
struct InFlight<'a>(&'a FaultyDevice);

impl<'a> InFlight<'a> {
    fn new(device: &'a FaultyDevice) -> Self {
        let now = device.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        device.most_in_flight.fetch_max(now, Ordering::Relaxed);
        Self(device)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl BlockDevice for FaultyDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Read, offset, &buffer)?;
            let _in_flight = self.enter(Operation::Read, range).await?;
            self.inner.read(offset, buffer).await
        })
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Write, offset, &data)?;
            let _in_flight = self.enter(Operation::Write, range).await?;
            self.inner.write(offset, data, flags).await
        })
    }

    fn read_piped(
        &self,
        offset: u64,
        length: usize,
        mut pipe: PipeBuffer,
    ) -> BoxFuture<'_, Result<Payload>> {
        Box::pin(async move {
            let buffer = self.read(offset, Buffer::zeroed(length)).await?;
            if self.info.can(Capabilities::SPLICE_READ) && pipe.put(&buffer)? == length {
                return Ok(Payload::Piped(pipe));
            }
            Ok(Payload::Memory(buffer))
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
            let _in_flight = self.enter(Operation::Copy, range).await?;
            self.inner.copy_from(offset, source, flags).await
        })
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let _in_flight = self.enter(Operation::Zero, range).await?;
            self.inner.zero(range, flags).await
        })
    }

    fn trim(&self, range: ByteRange, flags: WriteFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let _in_flight = self.enter(Operation::Trim, range).await?;
            self.inner.trim(range, flags).await
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let whole = ByteRange::between(0, u64::MAX);
            let _in_flight = self.enter(Operation::Flush, whole).await?;
            self.inner.flush().await
        })
    }

    fn cache(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let _in_flight = self.enter(Operation::Cache, range).await?;
            self.inner.cache(range).await
        })
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        Box::pin(async move {
            let (_in_flight, answer) = self.enter(Operation::Extents, range).await?;
            match answer {
                Some(answer) => Ok(answer),
                None => self.inner.extents(range, context).await,
            }
        })
    }

    /// Always opaque: bytes that are taken from elsewhere would escape the rules.
    fn mapping(&self, _: ByteRange) -> Mapping<'_> {
        Mapping::Opaque
    }

    fn resize(&self, size: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let range = ByteRange::between(0, size);
            let _in_flight = self.enter(Operation::Resize, range).await?;
            self.inner.resize(size).await
        })
    }
}

impl fmt::Debug for FaultyDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyDevice")
            .field("info", &self.info)
            .field("rules", &self.state().rules)
            .finish_non_exhaustive()
    }
}
