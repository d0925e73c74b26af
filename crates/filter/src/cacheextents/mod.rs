//! `cacheextents`: what a source says of its extents is asked for in large pieces and remembered.
//!
//! For sources that take long to say where their data is, and clients that ask for one extent after the other:
//! `qemu-img map` of a disk of 4,096 extents makes 4,096 questions, of which two or three go on to the source.
//!
//! - [`known`]: the extents that are known in one context;
//! - [`shared`]: what all handles of one export share: what may be remembered, and for how long;
//! - here: the filter, and what one handle does with a question.

mod known;
mod shared;

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, CopyFlags, Error, ErrorKind,
    Exports, Extent, FileRange, Operation, Parameter, ParameterType, PipeBuffer, Result, Values,
    WriteFlags, ZeroFlags, push_merged,
};
use tokio::{runtime::Handle, task::AbortHandle, time::timeout};

use self::shared::{Asking, Change, Manner, Next, Outcome, Shared, Waiting, Wanted, clipped};
use crate::{
    DeviceFilter, DeviceLayer, Effects, Filter, FilterKind, Filtered, Layer, Opened, PerExport,
};

pub(crate) static CACHE_EXTENTS: FilterKind = FilterKind {
    name: "cacheextents",
    syntax: "cacheextents[:window=SIZE,entries=N,prefetch=on|off]",
    help: "What the source says of its extents is asked for in large pieces and remembered",
    parameters: &[
        Parameter::new(
            "window",
            ParameterType::Size,
            "The most that is asked for at a time",
        )
        .or("32G"),
        Parameter::new(
            "entries",
            ParameterType::Number,
            "How many extents of an export are remembered at most, in about 50 bytes each",
        )
        .or("1048576"),
        Parameter::new(
            "prefetch",
            ParameterType::Switch,
            "Whether more is asked for in the background while a client goes through it in order",
        )
        .or("on"),
    ],
    effects: Effects {
        extents: "remembered for all connections to an export, in base:allocation, \
                  qemu:allocation-depth and dirty bitmaps, until something writes there through \
                  this server; other contexts are passed through",
        mapping: "passed through",
        flush: "passed through",
        concurrency: "as the source's; one of several clients with the same question asks the source",
    },
    build: |values| Ok(Arc::new(CacheExtents::from_values(values)?)),
};

/// How many of the most extents are remembered at most, whatever is asked for.
const MOST_ENTRIES: usize = 1 << 28;

/// A change of some bytes can change what is said of the bytes beside them, as sources allocate in blocks: what
/// is forgotten is whole blocks of so many bytes, or the source's own if those are larger.
const BLOCK: u64 = 64 << 10;

/// Larger blocks than this are not believed in: so many bytes are the largest cluster of a qcow2 image.
const LARGEST_BLOCK: u64 = 2 << 20;

/// How often another one's question is waited for in vain before the source is asked in any case.
const MOST_WAITS: u32 = 2;

/// How long another one's question is waited for: the one who asked may have stopped, without having gone.
const LONGEST_WAIT: std::time::Duration = std::time::Duration::from_secs(10);

/// Remembers extents.
///
/// What is remembered is shared by all connections to one export. It is true as long as everything that writes
/// there goes through this filter: a server whose images others write to must not have it.
#[derive(Clone, Debug)]
pub struct CacheExtents {
    /// The most that is asked for at a time, in bytes: 32 GiB by default, at least 1. The first question is for
    /// 256 MiB or what the client wants to know, whichever is more; the next ones are for as much as is known
    /// before them. A longer one makes fewer questions for a client to wait for, each for longer.
    pub window: u64,
    /// How many extents of an export are remembered at most, in all contexts: 1,048,576 by default, from 1 to
    /// 2^28. Each takes about 50 bytes. When there are more, those that lie farthest from the last question are
    /// forgotten.
    pub entries: usize,
    /// Whether the source is asked for more, in the background, while a client goes over a device in order. It
    /// is, by default.
    pub prefetch: bool,
}

impl Default for CacheExtents {
    fn default() -> Self {
        Self {
            window: 32 << 30,
            entries: 1 << 20,
            prefetch: true,
        }
    }
}

impl CacheExtents {
    fn from_values(values: &Values) -> Result<Self, String> {
        let default = Self::default();
        let filter = Self {
            window: values.size("window").unwrap_or(default.window),
            entries: values.number("entries").unwrap_or(default.entries),
            prefetch: values.switch("prefetch").unwrap_or(default.prefetch),
        };
        filter.check()?;
        Ok(filter)
    }

    fn check(&self) -> Result<(), String> {
        if self.window == 0 {
            return Err("window is at least 1".to_owned());
        }
        if !(1..=MOST_ENTRIES).contains(&self.entries) {
            return Err(format!("entries is from 1 to {MOST_ENTRIES}"));
        }
        Ok(())
    }
}

impl Filter for CacheExtents {
    fn kind(&self) -> &'static FilterKind {
        &CACHE_EXTENTS
    }

    fn layer(&self, below: Arc<dyn Exports>) -> Result<Arc<dyn Layer>> {
        self.check()
            .map_err(|message| Error::with_message(ErrorKind::InvalidInput, message))?;
        let layer = CacheLayer {
            options: self.clone(),
            runtime: Handle::try_current().ok(),
        };
        Ok(Arc::new(PerExport::new(layer, below)))
    }
}

struct CacheLayer {
    options: CacheExtents,
    /// Where questions that nobody waits for yet are asked.
    runtime: Option<Handle>,
}

impl DeviceLayer for CacheLayer {
    type Shared = Shared;

    fn name(&self) -> &'static str {
        CACHE_EXTENTS.name
    }

    fn share(&self, _: &str) -> Result<Shared> {
        Ok(Shared::new(self.options.entries, self.options.window))
    }

    fn open(&self, opened: Opened<Shared>) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        let runtime = self.runtime.clone().filter(|_| self.options.prefetch);
        let device = CachedExtents::new(opened.device, opened.shared, runtime);
        Box::pin(async move { Ok(Arc::new(Filtered::new(device)) as Arc<dyn BlockDevice>) })
    }

    fn counts(&self, shared: &Shared) -> Vec<(&'static str, u64)> {
        shared.counts()
    }
}

/// A handle to a device whose extents are remembered.
struct CachedExtents {
    below: Arc<dyn BlockDevice>,
    shared: Arc<Shared>,
    /// Where more is asked for, if it is.
    runtime: Option<Handle>,
    /// The last question of this handle that nobody waited for.
    ahead: Mutex<Option<AbortHandle>>,
}

impl CachedExtents {
    fn new(below: Arc<dyn BlockDevice>, shared: Arc<Shared>, runtime: Option<Handle>) -> Self {
        shared.opened(below.info().size);
        Self {
            below,
            shared,
            runtime,
            ahead: Mutex::default(),
        }
    }

    /// What of `context` can be remembered: what only changes with the bytes, or when something is written.
    fn remembers(&self, context: &Context) -> bool {
        let is_known = matches!(
            context,
            Context::Allocation | Context::AllocationDepth | Context::DirtyBitmap(_)
        );
        is_known && self.below.info().contexts.contains(context)
    }

    async fn ask(&self, wanted: Wanted<'_>) -> Result<Vec<Extent>> {
        let Wanted { range, context, .. } = wanted;
        let mut manner = Manner {
            wait: true,
            widen: true,
        };
        let mut waits = 0;
        let mut has_missed = false;
        loop {
            let asking = match self.shared.look(wanted, manner) {
                Next::Known(extents) => {
                    if !has_missed {
                        count(&self.shared.hits);
                    }
                    self.ask_ahead(wanted);
                    return Ok(extents);
                }
                Next::Wait(waiting) => {
                    waits += 1;
                    manner.wait = wait(waiting).await && waits < MOST_WAITS;
                    continue;
                }
                Next::Ask(asking) => asking,
                Next::Pass => return self.pass(range, context).await,
            };
            if !has_missed {
                count(&self.shared.misses);
            }
            has_missed = true;
            let question = asking.range();
            match self.put(&asking, context).await {
                Ok(extents) => {
                    asking.answered(&extents);
                    let mine = clipped(&extents, range);
                    if !mine.is_empty() {
                        self.ask_ahead(wanted);
                        return Ok(mine);
                    }
                }
                Err(error) if question == range || error.is_transient() || !manner.widen => {
                    asking.failed();
                    return Err(error.moved_to(range.start(), range.len()));
                }
                Err(_) => asking.failed(),
            }
            // More than was wanted was too much, or there was nothing about what was wanted.
            manner.widen = false;
        }
    }

    /// Asks the source.
    async fn put(&self, asking: &Asking, context: &Context) -> Result<Vec<Extent>> {
        count(&self.shared.source_calls);
        let range = asking.range();
        let answer = self.below.extents(range, context).await?;
        checked(range, &answer, self.shared.entries())
    }

    /// Asks the source for what is not remembered.
    async fn pass(&self, range: ByteRange, context: &Context) -> Result<Vec<Extent>> {
        count(&self.shared.source_calls);
        self.below.extents(range, context).await
    }

    /// Asks for more in the background where a client is likely to want that.
    fn ask_ahead(&self, wanted: Wanted<'_>) {
        let Some(runtime) = &self.runtime else {
            return;
        };
        let Some(asking) = self.shared.look_ahead(wanted) else {
            return;
        };
        count(&self.shared.source_calls);
        let below = Arc::clone(&self.below);
        let context = wanted.context.clone();
        let most = self.shared.entries();
        let task = runtime.spawn(async move {
            let range = asking.range();
            let answer = below.extents(range, &context).await;
            match answer.and_then(|answer| checked(range, &answer, most)) {
                Ok(extents) => asking.answered(&extents),
                Err(_) => asking.failed(),
            }
        });
        *self.ahead.lock().unwrap_or_else(PoisonError::into_inner) = Some(task.abort_handle());
    }

    /// `range` begins to be changed, whether it can be or not.
    fn change(&self, start: u64, length: u64) -> Change {
        let block = u64::from(self.below.info().limits.preferred).clamp(BLOCK, LARGEST_BLOCK);
        let end = start.saturating_add(length);
        let end = end.checked_next_multiple_of(block).unwrap_or(u64::MAX);
        self.shared
            .change(ByteRange::between(start - start % block, end))
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Waits until it is worth another look. Gives whether it is worth waiting again.
async fn wait(waiting: Waiting) -> bool {
    // Each of those who waited for a question that failed meets with a failure of its own, or with none.
    let outcome = timeout(LONGEST_WAIT, waiting.outcome()).await;
    matches!(outcome, Ok(Outcome::Answered | Outcome::GivenUp))
}

/// Extents of `range` from its start on, without gaps and `most` at most.
fn checked(range: ByteRange, answer: &[Extent], most: usize) -> Result<Vec<Extent>> {
    let mut list: Vec<Extent> = Vec::new();
    let mut rest = range;
    for extent in answer {
        let part = extent.range.intersection(rest);
        if part.is_empty() {
            continue;
        }
        if part.start() != rest.start() || list.len() > most {
            break;
        }
        let status = extent.status;
        push_merged(
            &mut list,
            Extent {
                range: part,
                status,
            },
        );
        (_, rest) = rest.split_at(part.len());
    }
    if list.is_empty() && !range.is_empty() {
        let message = "the source knows nothing of the range";
        return Err(Error::with_message(ErrorKind::Io, message).during(Operation::Extents));
    }
    Ok(list)
}

impl DeviceFilter for CachedExtents {
    const PASSES: Capabilities = Capabilities::all();

    fn below(&self) -> &Arc<dyn BlockDevice> {
        &self.below
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let change = self.change(offset, data.len() as u64);
            let result = self.below.write(offset, data, flags).await;
            change.settled(&result);
            result
        })
    }

    fn write_piped(
        &self,
        offset: u64,
        data: PipeBuffer,
        flags: WriteFlags,
    ) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let change = self.change(offset, data.len() as u64);
            let result = self.below.write_piped(offset, data, flags).await;
            change.settled(&result);
            result
        })
    }

    fn copy_from(
        &self,
        offset: u64,
        source: FileRange,
        flags: CopyFlags,
    ) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let change = self.change(offset, source.range().len());
            let result = self.below.copy_from(offset, source, flags).await;
            change.settled(&result);
            result
        })
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let change = self.change(range.start(), range.len());
            let result = self.below.zero(range, flags).await;
            change.settled(&result);
            result
        })
    }

    fn trim(&self, range: ByteRange, flags: WriteFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let change = self.change(range.start(), range.len());
            let result = self.below.trim(range, flags).await;
            change.settled(&result);
            result
        })
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        if range.is_empty() || !self.remembers(context) {
            return Box::pin(self.pass(range, context));
        }
        let info = self.below.info();
        let wanted = Wanted {
            range,
            context,
            size: info.size,
            block: u64::from(info.limits.minimum.max(1)),
        };
        Box::pin(self.ask(wanted))
    }

    fn resize(&self, size: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let change = self.shared.resize();
            let result = self.below.resize(size).await;
            change.settled(&result);
            result
        })
    }

    fn over(&self, below: Arc<dyn BlockDevice>) -> Option<Self> {
        let (shared, runtime) = (Arc::clone(&self.shared), self.runtime.clone());
        Some(Self::new(below, shared, runtime))
    }
}

impl Drop for CachedExtents {
    fn drop(&mut self) {
        // No question keeps the device open for longer than this handle is.
        let ahead = self.ahead.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(ahead) = ahead.take() {
            ahead.abort();
        }
    }
}
