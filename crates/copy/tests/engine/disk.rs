//! A disk in memory that refuses every request which breaks its rules, and remembers the others.

use std::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, DeviceInfo, Error, ErrorKind,
    Extent, Operation, Result, Status, WriteFlags, ZeroFlags,
};

/// Says whether the nth (from 0) operation of its kind fails.
pub(crate) type Fault = Box<dyn Fn(Operation, ByteRange, usize) -> Option<ErrorKind> + Send + Sync>;

/// What is done to an answer about extents before it is given.
pub(crate) type Lie = Box<dyn Fn(ByteRange, Vec<Extent>) -> Vec<Extent> + Send + Sync>;

pub(crate) struct Disk {
    info: DeviceInfo,
    state: Mutex<State>,
    fault: Option<Fault>,
    lie: Option<Lie>,
    /// Requests take a while that differs from one to the next.
    delays: bool,
    pub(crate) traffic: Arc<Traffic>,
}

struct State {
    bytes: Vec<u8>,
    marks: Vec<Mark>,
    zero_extents: Vec<ByteRange>,
}

/// How a byte was changed last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    Untouched,
    Written,
    Hole,
    Allocated,
}

/// What two disks of one copy count together.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) reads: AtomicUsize,
    pub(crate) writes: AtomicUsize,
    pub(crate) zeroes: AtomicUsize,
    pub(crate) flushes: AtomicUsize,
    pub(crate) questions: AtomicUsize,
    /// Bytes that were read (or are being read) and not yet written; the most there ever were.
    in_flight: AtomicU64,
    pub(crate) most_in_flight: AtomicU64,
    writing: AtomicUsize,
    pub(crate) most_writing: AtomicUsize,
}

impl Traffic {
    pub(crate) fn count(counter: &AtomicUsize) -> usize {
        counter.fetch_add(1, Ordering::Relaxed)
    }
}

impl Disk {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        let mut info = DeviceInfo::new("disk", bytes.len() as u64);
        info.capabilities = Capabilities::WRITE | Capabilities::ZERO | Capabilities::FLUSH;
        info.contexts = vec![Context::Allocation];
        Self {
            info,
            state: Mutex::new(State {
                marks: vec![Mark::Untouched; bytes.len()],
                bytes,
                zero_extents: Vec::new(),
            }),
            fault: None,
            lie: None,
            delays: false,
            traffic: Arc::default(),
        }
    }

    /// Full of bytes that are not zero.
    pub(crate) fn dirty(size: usize) -> Self {
        Self::new(vec![0xd1; size])
    }

    /// Takes any size, and has none now.
    pub(crate) fn growing() -> Self {
        Self::new(Vec::new()).with(Capabilities::RESIZE | Capabilities::BORN_ZERO)
    }

    pub(crate) fn named(mut self, name: &str) -> Self {
        self.info.name = Arc::from(name);
        self
    }

    pub(crate) fn with(mut self, capabilities: Capabilities) -> Self {
        self.info.capabilities |= capabilities;
        self
    }

    pub(crate) fn without(mut self, capabilities: Capabilities) -> Self {
        self.info.capabilities -= capabilities;
        self
    }

    pub(crate) fn limits(mut self, minimum: u32, maximum: u32) -> Self {
        self.info.limits.minimum = minimum;
        self.info.limits.maximum = maximum;
        self
    }

    /// Clears these ranges and answers them as zero extents.
    pub(crate) fn zero_extents(self, ranges: impl IntoIterator<Item = (u64, u64)>) -> Self {
        {
            let mut state = self.state();
            for (start, end) in ranges {
                let whole = ByteRange::between(0, self.info.size);
                let range = ByteRange::between(start, end).intersection(whole);
                if range.is_empty() {
                    continue;
                }
                state.bytes[indices(range)].fill(0);
                state.zero_extents.push(range);
            }
        }
        self
    }

    pub(crate) fn failing(
        mut self,
        fault: impl Fn(Operation, ByteRange, usize) -> Option<ErrorKind> + Send + Sync + 'static,
    ) -> Self {
        self.fault = Some(Box::new(fault));
        self
    }

    pub(crate) fn lying(
        mut self,
        lie: impl Fn(ByteRange, Vec<Extent>) -> Vec<Extent> + Send + Sync + 'static,
    ) -> Self {
        self.lie = Some(Box::new(lie));
        self
    }

    pub(crate) fn slow(mut self) -> Self {
        self.delays = true;
        self
    }

    pub(crate) fn counting_with(mut self, other: &Self) -> Self {
        self.traffic = Arc::clone(&other.traffic);
        self
    }

    pub(crate) fn into_arc(self) -> Arc<Self> {
        Arc::new(self)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.state().bytes.clone()
    }

    pub(crate) fn marks(&self) -> Vec<Mark> {
        self.state().marks.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("not poisoned")
    }

    async fn pause(&self, offset: u64, nth: usize) {
        if self.delays {
            let rounds = (offset / 512 * 7 + nth as u64 * 5) % 13;
            for _ in 0..rounds {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Refuses what breaks the rules, and what was told to fail.
    fn check(&self, operation: Operation, range: ByteRange, nth: usize) -> Result<()> {
        let size = self.state().bytes.len() as u64;
        let resize = self.info.can(Capabilities::RESIZE);
        let changes = operation != Operation::Read && operation != Operation::Extents;
        let minimum = u64::from(self.info.limits.minimum);
        let aligned = range.start().is_multiple_of(minimum)
            && (range.end().is_multiple_of(minimum) || range.end() == size);
        let moves = matches!(operation, Operation::Read | Operation::Write);
        let kind = if let Some(kind) = self.fault(operation, range, nth) {
            kind
        } else if changes && !self.info.can(Capabilities::WRITE) {
            ErrorKind::ReadOnly
        } else if range.end() > size && !(changes && resize) {
            ErrorKind::OutOfBounds
        } else if !aligned
            || range.is_empty()
            || (moves && range.len() > u64::from(self.info.limits.maximum))
        {
            ErrorKind::InvalidInput
        } else {
            return Ok(());
        };
        Err(Error::new(kind))
    }

    fn fault(&self, operation: Operation, range: ByteRange, nth: usize) -> Option<ErrorKind> {
        self.fault.as_ref()?(operation, range, nth)
    }

    fn change(&self, range: ByteRange, mark: Mark, change: impl FnOnce(&mut [u8])) {
        let mut state = self.state();
        let indices = indices(range);
        if state.bytes.len() < indices.end {
            state.bytes.resize(indices.end, 0);
            state.marks.resize(indices.end, Mark::Untouched);
        }
        change(&mut state.bytes[indices.clone()]);
        state.marks[indices].fill(mark);
    }
}

impl BlockDevice for Disk {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, mut buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        let length = buffer.len() as u64;
        Box::pin(async move {
            let traffic = &self.traffic;
            let now = traffic.in_flight.fetch_add(length, Ordering::Relaxed) + length;
            traffic.most_in_flight.fetch_max(now, Ordering::Relaxed);
            let nth = Traffic::count(&traffic.reads);
            let range = ByteRange::between(offset, offset + length);
            self.pause(offset, nth).await;
            self.check(Operation::Read, range, nth)?;
            buffer.copy_from_slice(&self.state().bytes[indices(range)]);
            Ok(buffer)
        })
    }

    fn write(&self, offset: u64, data: Buffer, _: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let traffic = &self.traffic;
            let nth = Traffic::count(&traffic.writes);
            let now = traffic.writing.fetch_add(1, Ordering::Relaxed) + 1;
            traffic.most_writing.fetch_max(now, Ordering::Relaxed);
            let range = ByteRange::between(offset, offset + data.len() as u64);
            self.pause(offset, nth).await;
            traffic.writing.fetch_sub(1, Ordering::Relaxed);
            self.check(Operation::Write, range, nth)?;
            self.change(range, Mark::Written, |bytes| bytes.copy_from_slice(&data));
            let length = data.len() as u64;
            // What was written without having been read here is not counted.
            let less = |now: u64| Some(now.saturating_sub(length));
            let _ = traffic
                .in_flight
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
            Ok(data)
        })
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let nth = Traffic::count(&self.traffic.zeroes);
            self.pause(range.start(), nth).await;
            self.check(Operation::Zero, range, nth)?;
            assert!(self.info.can(Capabilities::ZERO), "zeroing was not offered");
            let mark = match flags.contains(ZeroFlags::NO_HOLE) {
                true => Mark::Allocated,
                false => Mark::Hole,
            };
            self.change(range, mark, |bytes| bytes.fill(0));
            Ok(())
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let nth = Traffic::count(&self.traffic.flushes);
            let everything = ByteRange::default();
            match self.fault(Operation::Flush, everything, nth) {
                Some(kind) => Err(Error::new(kind)),
                None => Ok(()),
            }
        })
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        Box::pin(async move {
            let nth = Traffic::count(&self.traffic.questions);
            assert_eq!(*context, Context::Allocation);
            self.pause(range.start(), nth).await;
            self.check(Operation::Extents, range, nth)?;
            let mut zeroes = self.state().zero_extents.clone();
            zeroes.sort();
            let mut answer = Vec::new();
            let mut done = range.start();
            let mut add = |start: u64, end: u64, status| {
                let range = ByteRange::between(start, end);
                if !range.is_empty() {
                    answer.push(Extent { range, status });
                }
            };
            for zero in zeroes {
                let zero = ByteRange::between(done, range.end()).intersection(zero);
                if !zero.is_empty() {
                    add(done, zero.start(), Status::DATA);
                    add(zero.start(), zero.end(), Status::HOLE_ZERO);
                    done = zero.end();
                }
            }
            add(done, range.end(), Status::DATA);
            Ok(match &self.lie {
                Some(lie) => lie(range, answer),
                None => answer,
            })
        })
    }

    fn resize(&self, size: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            assert!(self.info.can(Capabilities::RESIZE));
            if let Some(kind) = self.fault(Operation::Resize, ByteRange::between(0, size), 0) {
                return Err(Error::new(kind));
            }
            let size = usize::try_from(size).expect("a test's size");
            let mut state = self.state();
            state.bytes.resize(size, 0);
            state.marks.resize(size, Mark::Untouched);
            Ok(())
        })
    }
}

fn indices(range: ByteRange) -> std::ops::Range<usize> {
    range.start() as usize..range.end() as usize
}
