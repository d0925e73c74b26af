//! A source of several exports that remembers everything that was ever true of them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, ClientFacts, Context, CopyFlags,
    DeviceInfo, Error, ErrorKind, ExportEntry, Exports, Extent, FileRange, OpenExport, Operation,
    Result, Status, WriteFlags, ZeroFlags, no_such_export, push_merged,
};
use blockferry_filter::{CacheExtents, Filter, Layer};
use tokio::sync::{Notify, Semaphore};

/// What the source knows its state by, in bytes. Not the 64 KiB that the filter forgets in.
pub(crate) const UNIT: u64 = 16 << 10;

/// The contexts that each export has.
pub(crate) fn contexts() -> [Context; 2] {
    [Context::Allocation, Context::from("qemu:dirty-bitmap:b")]
}

/// Some exports.
#[derive(Default)]
pub(crate) struct Source {
    pub(crate) exports: BTreeMap<String, Arc<Disk>>,
}

/// An export.
pub(crate) struct Disk {
    state: Mutex<State>,
    gates: Mutex<Vec<(Operation, Point, Arc<Gate>)>>,
    mood: Mood,
}

/// How a disk behaves where nothing was said of it.
#[derive(Default)]
pub(crate) struct Mood {
    /// With a seed, calls take their time and go wrong now and then.
    pub(crate) seed: Option<Mutex<u64>>,
    /// Whether changes get lost with their connections, and happen later.
    pub(crate) loses: bool,
    /// Where it lives, if connections have runtimes of their own.
    pub(crate) runtime: Option<tokio::runtime::Handle>,
}

struct State {
    size: u64,
    /// For each context and unit what was true of it, the latest last.
    history: Vec<Vec<Vec<u64>>>,
    /// Each status is a new one, so that no old one can pass for it.
    version: u64,
    /// What was asked for.
    calls: Vec<(ByteRange, Context)>,
    /// What the next questions are answered instead.
    answers: Vec<Result<Vec<Extent>>>,
    /// Questions in this range fail.
    bad: ByteRange,
    /// Questions longer than this fail.
    longest: u64,
    /// Whether no change is answered well.
    change_fails: Option<ErrorKind>,
    smallest_block: u32,
    extra_contexts: Vec<Context>,
}

/// When a call is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    /// Before it takes effect.
    Before,
    /// When it has, before it is answered.
    After,
}

/// A place where a call stops.
#[derive(Default)]
pub(crate) struct Gate {
    reached: Notify,
    open: Notify,
}

impl Gate {
    /// Waits until the call is there.
    pub(crate) async fn reached(&self) {
        self.reached.notified().await;
    }

    /// Lets it go on.
    pub(crate) fn open(&self) {
        self.open.notify_one();
    }
}

impl Disk {
    /// A disk where each unit has a status of its own.
    pub(crate) fn new(size: u64) -> Arc<Self> {
        Self::moody(size, Mood::default())
    }

    pub(crate) fn moody(size: u64, mood: Mood) -> Arc<Self> {
        let units = size.div_ceil(UNIT) as usize;
        let mut state = State {
            size,
            history: vec![vec![Vec::new(); units]; contexts().len()],
            version: 0,
            calls: Vec::new(),
            answers: Vec::new(),
            bad: ByteRange::default(),
            longest: u64::MAX,
            change_fails: None,
            smallest_block: 1,
            extra_contexts: Vec::new(),
        };
        for unit in 0..units {
            for context in 0..contexts().len() {
                state.version += 1;
                let version = state.version;
                state.history[context][unit].push(version);
            }
        }
        Arc::new(Self {
            state: Mutex::new(state),
            gates: Mutex::default(),
            mood,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next call of `operation` stops at `point`.
    pub(crate) fn stop(&self, operation: Operation, point: Point) -> Arc<Gate> {
        let gate = Arc::new(Gate::default());
        let mut gates = self.gates.lock().expect("not poisoned");
        gates.push((operation, point, Arc::clone(&gate)));
        gate
    }

    /// How many questions came here.
    pub(crate) fn calls(&self) -> usize {
        self.state().calls.len()
    }

    /// What was asked for.
    pub(crate) fn asked(&self) -> Vec<ByteRange> {
        self.state().calls.iter().map(|(range, _)| *range).collect()
    }

    /// The next question is answered with this.
    pub(crate) fn answer(&self, answer: Result<Vec<Extent>>) {
        self.state().answers.push(answer);
    }

    /// Questions in `range` fail.
    pub(crate) fn break_at(&self, range: ByteRange) {
        self.state().bad = range;
    }

    /// Questions longer than `length` fail.
    pub(crate) fn limit(&self, length: u64) {
        self.state().longest = length;
    }

    /// Changes take effect and fail.
    pub(crate) fn fail_changes(&self, kind: Option<ErrorKind>) {
        self.state().change_fails = kind;
    }

    /// Whoever opens it from now on sees this size. Everything changes.
    pub(crate) fn become_large(&self, size: u64) {
        let mut state = self.state();
        state.size = size;
        let units = size.div_ceil(UNIT) as usize;
        for context in 0..contexts().len() {
            state.history[context].resize(units, Vec::new());
        }
        state.change(ByteRange::between(0, size));
    }

    /// Handles from now on have another smallest block.
    pub(crate) fn set_smallest_block(&self, block: u32) {
        self.state().smallest_block = block;
    }

    /// Handles from now on have another context, which is all zeroes.
    pub(crate) fn add_context(&self, context: Context) {
        self.state().extra_contexts.push(context);
    }

    /// Changes `range` behind everybody's back.
    pub(crate) fn change_now(&self, range: ByteRange) {
        self.state().change(range);
    }

    /// How much history each unit has.
    pub(crate) fn ages(&self, context: usize) -> Vec<usize> {
        let state = self.state();
        state.history[context].iter().map(Vec::len).collect()
    }

    /// What is true of `range` from its start on.
    pub(crate) fn truth(&self, range: ByteRange, context: usize) -> Vec<Extent> {
        self.state().extents(range, context)
    }

    /// Fails unless `answer` to a question for `range` keeps the rules and was true at some moment since the
    /// units had so much history.
    pub(crate) fn check(
        &self,
        range: ByteRange,
        context: usize,
        answer: &[Extent],
        ages: &[usize],
    ) -> Result<(), String> {
        let state = self.state();
        let mut next = range.start();
        for extent in answer {
            if extent.range.start() != next || extent.range.is_empty() {
                return Err(format!("a gap or nothing at {next}: {answer:?}"));
            }
            next = extent.range.end();
            for piece in extent.range.pieces(UNIT) {
                let unit = (piece.start() / UNIT) as usize;
                let history = &state.history[context][unit];
                let possible = &history[ages[unit] - 1..];
                if !possible.contains(&extent.status.0) {
                    return Err(format!(
                        "unit {unit} in context {context} is said to be {}, but was {possible:?}, \
                         and earlier {:?}",
                        extent.status.0,
                        &history[..ages[unit] - 1],
                    ));
                }
            }
        }
        if next == range.start() || next > range.end() {
            return Err(format!("{range} was answered with {answer:?}"));
        }
        Ok(())
    }

    /// A random number below `bound`, 0 without moods.
    fn chance(&self, bound: u64) -> u64 {
        let Some(chance) = &self.mood.seed else {
            return 0;
        };
        let mut state = chance.lock().expect("not poisoned");
        next_random(&mut state) % bound
    }

    /// Waits at the gate that is there, or as the mood is.
    async fn pause(&self, operation: Operation, point: Point) {
        let gate = {
            let mut gates = self.gates.lock().expect("not poisoned");
            let found = gates
                .iter()
                .position(|(its, at, _)| (*its, *at) == (operation, point));
            found.map(|index| gates.remove(index).2)
        };
        if let Some(gate) = gate {
            gate.reached.notify_one();
            gate.open.notified().await;
        }
        for _ in 0..self.chance(12) {
            tokio::task::yield_now().await;
        }
    }
}

/// SplitMix64.
pub(crate) fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

impl State {
    fn change(&mut self, range: ByteRange) {
        for context in 0..self.history.len() {
            self.version += 1;
            for piece in range.pieces(UNIT) {
                let version = self.version;
                if let Some(history) =
                    self.history[context].get_mut((piece.start() / UNIT) as usize)
                {
                    history.push(version);
                }
            }
        }
    }

    fn extents(&self, range: ByteRange, context: usize) -> Vec<Extent> {
        let mut list = Vec::new();
        for piece in range.pieces(UNIT) {
            let history = &self.history[context][(piece.start() / UNIT) as usize];
            let status = Status(*history.last().expect("it was always something"));
            push_merged(
                &mut list,
                Extent {
                    range: piece,
                    status,
                },
            );
        }
        list
    }
}

/// A handle to an export. Each has the size that the export had when it was opened.
struct Handle {
    disk: Arc<Disk>,
    info: DeviceInfo,
}

impl Handle {
    fn new(disk: &Arc<Disk>) -> Self {
        let state = disk.state();
        let mut info = DeviceInfo::new("source", state.size);
        info.capabilities = Capabilities::WRITE
            | Capabilities::ZERO
            | Capabilities::TRIM
            | Capabilities::FLUSH
            | Capabilities::MULTI_CONN
            | Capabilities::SPLICE_WRITE
            | Capabilities::COPY_FROM
            | Capabilities::REOPEN;
        info.contexts = contexts().to_vec();
        info.contexts.extend(state.extra_contexts.iter().cloned());
        info.limits.minimum = state.smallest_block;
        drop(state);
        let disk = Arc::clone(disk);
        Self { disk, info }
    }

    /// The change takes effect whatever becomes of its future, if it does; then it is answered, if it is.
    async fn change(&self, operation: Operation, range: ByteRange) -> Result<()> {
        self.disk.pause(operation, Point::Before).await;
        let fail = |kind| {
            let error = Error::new(kind).during(operation);
            Err(error.at(range.start(), range.len()))
        };
        let mood = self.disk.chance(16);
        if mood == 3 {
            return fail(ErrorKind::NoSpace);
        }
        let disk = Arc::clone(&self.disk);
        let done = Arc::new(Semaphore::new(0));
        let tell = Arc::clone(&done);
        let late = self.disk.chance(20);
        let effect = async move {
            for _ in 0..late {
                tokio::task::yield_now().await;
            }
            disk.state().change(range);
            tell.add_permits(1);
        };
        // Whatever becomes of the connection.
        match &self.disk.mood.runtime {
            Some(runtime) => drop(runtime.spawn(effect)),
            None => drop(tokio::spawn(effect)),
        }
        if mood == 1 && self.disk.mood.loses {
            return fail(ErrorKind::ConnectionLost);
        }
        let _done = done.acquire().await.expect("never closed");
        self.disk.pause(operation, Point::After).await;
        if let Some(kind) = self.disk.state().change_fails {
            return fail(kind);
        }
        match mood {
            2 => fail(ErrorKind::Io),
            _ => Ok(()),
        }
    }
}

impl BlockDevice for Handle {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, _: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move { Ok(buffer) })
    }

    fn write(&self, offset: u64, data: Buffer, _: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        let range = ByteRange::between(offset, offset + data.len() as u64);
        Box::pin(async move {
            self.change(Operation::Write, range).await?;
            Ok(data)
        })
    }

    fn zero(&self, range: ByteRange, _: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.change(Operation::Zero, range))
    }

    fn trim(&self, range: ByteRange, _: WriteFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.change(Operation::Trim, range))
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        Box::pin(async move {
            self.disk.state().calls.push((range, context.clone()));
            self.disk.pause(Operation::Extents, Point::Before).await;
            let answer = {
                let mut state = self.disk.state();
                let too_long = range.len() > state.longest;
                let is_bad = !range.intersection(state.bad).is_empty();
                let block = u64::from(self.info.limits.minimum);
                let is_off = |at: u64| !at.is_multiple_of(block) && at != self.info.size;
                let next = (!state.answers.is_empty()).then(|| state.answers.remove(0));
                let fail = |kind| Err(Error::new(kind).at(range.start(), range.len()));
                if let Some(answer) = next {
                    answer
                } else if range.end() > self.info.size
                    || is_off(range.start())
                    || is_off(range.end())
                {
                    fail(ErrorKind::InvalidInput)
                } else if is_bad || too_long {
                    fail(ErrorKind::Io)
                } else if state.extra_contexts.contains(context) {
                    let status = Status(0);
                    Ok(vec![Extent { range, status }])
                } else {
                    let context = contexts().iter().position(|known| known == context);
                    Ok(state.extents(range, context.expect("a context that it has")))
                }
            };
            self.disk.pause(Operation::Extents, Point::After).await;
            match self.disk.chance(12) {
                1 => Err(Error::new(ErrorKind::Io).at(range.start(), range.len())),
                2 => answer.map(|extents| extents[..extents.len().div_ceil(2)].to_vec()),
                _ => answer,
            }
        })
    }

    fn copy_from(&self, offset: u64, source: FileRange, _: CopyFlags) -> BoxFuture<'_, Result<()>> {
        let range = ByteRange::between(offset, offset + source.range().len());
        Box::pin(self.change(Operation::Copy, range))
    }

    fn reopen(&self) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        Box::pin(async { Ok(Arc::new(Self::new(&self.disk)) as Arc<dyn BlockDevice>) })
    }

    fn resize(&self, size: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.disk.pause(Operation::Resize, Point::Before).await;
            self.disk.become_large(size);
            self.disk.pause(Operation::Resize, Point::After).await;
            Ok(())
        })
    }
}

impl Exports for Source {
    fn list(&self, _: ClientFacts) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn open<'a>(&'a self, name: &'a str, _: ClientFacts) -> BoxFuture<'a, Result<OpenExport>> {
        Box::pin(async move {
            let disk = self.exports.get(name).ok_or_else(no_such_export)?;
            Ok(OpenExport::new(Arc::new(Handle::new(disk))))
        })
    }
}

/// Exports behind the filter.
pub(crate) struct Cached {
    pub(crate) layer: Arc<dyn Layer>,
}

impl Cached {
    /// The filter as `filter` has it, in front of `disks`, which are called `a`, `b` and so on.
    pub(crate) fn new(filter: &CacheExtents, disks: &[&Arc<Disk>]) -> Self {
        let names = ('a'..='z').map(String::from);
        let exports = names.zip(disks.iter().map(|disk| Arc::clone(disk)));
        let exports = exports.collect();
        let layer = filter.layer(Arc::new(Source { exports }));
        Self {
            layer: layer.expect("good parameters"),
        }
    }

    /// Another handle to an export.
    pub(crate) async fn open(&self, name: &str) -> Arc<dyn BlockDevice> {
        let open = self.layer.open(name, ClientFacts::default()).await;
        open.expect("an export").device
    }

    /// What was counted for an export.
    pub(crate) fn count(&self, export: &str, what: &str) -> u64 {
        let counters = self.layer.counters().into_iter();
        let mut counters = counters.filter(|counters| counters.export == export);
        let counts = counters.next().expect("it is in use").counts;
        let found = counts.iter().find(|(name, _)| *name == what);
        found.expect(what).1
    }
}
