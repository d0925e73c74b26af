//! `stats`: how many requests there were, how large, and how long they took, told at the end.

use std::{
    fs::File,
    io::{self, Write},
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use blockferry_block::{
    BlockDevice, BoxFuture, Exports, Operation, Parameter, ParameterType, Result, Values,
};

use crate::{
    DeviceLayer, Effects, Filter, FilterKind, Layer, Opened, PerExport,
    lines::{Common, open_for_lines},
    watched::{Outcome, Request, Watch, Watched},
};

mod nbdkit;
mod text;

use nbdkit::Totals;

pub(crate) static STATS: FilterKind = FilterKind {
    name: "stats",
    syntax: "stats[:FILE][,append=on|off][,format=table|json|nbdkit]",
    help: "Counts requests and bytes of each command, with histograms of sizes and times, and tells them at the end",
    parameters: &[
        Parameter::new(
            "file",
            ParameterType::Path,
            "Where to; - is standard error, as without this",
        )
        .first(),
        Parameter::new(
            "append",
            ParameterType::Switch,
            "Whether what the file has is kept",
        )
        .or("off"),
        Parameter::new(
            "format",
            ParameterType::Choice(&["table", "json", "nbdkit"]),
            "A table or a line of JSON for each export, or what nbdkit's filter writes of all of them",
        )
        .or("table"),
    ],
    effects: Effects {
        mapping: "hidden, so that all reads are seen: bytes are read, or moved through pipes",
        concurrency: "as the source's; nobody waits to be counted",
        ..Effects::NONE
    },
    build: |values| Ok(Arc::new(Stats::from_values(values))),
};

/// Counts requests, and tells of each export at the end how many of each command there were, their bytes, and
/// how their sizes and times are spread.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// The file; standard error without one.
    pub file: Option<PathBuf>,
    /// Whether what the file has is kept.
    pub append: bool,
    /// How.
    pub format: StatsFormat,
    output: Common<Output>,
}

/// How statistics are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum StatsFormat {
    /// A table for each export that was opened, and histograms below it.
    #[default]
    Table,
    /// A line of JSON for each export that was opened.
    Json,
    /// What nbdkit's filter of this name writes: a line for all exports together, a line for each command that
    /// there was, and what most of its requests were like.
    Nbdkit {
        /// Sizes, and alignments among those of a size, that are less than this many percent are summed up.
        threshold: u32,
    },
}

impl StatsFormat {
    /// That of nbdkit's filter, with its threshold.
    pub const NBDKIT: Self = Self::Nbdkit { threshold: 5 };
}

impl Stats {
    /// Statistics in a file of that name, which is emptied before.
    #[must_use]
    pub fn to(file: impl Into<PathBuf>) -> Self {
        Self {
            file: Some(file.into()),
            ..Self::default()
        }
    }

    fn from_values(values: &Values) -> Self {
        let file = values.path("file").filter(|path| path.as_os_str() != "-");
        Self {
            // A server in the background is elsewhere.
            file: file.map(|path| std::path::absolute(&path).unwrap_or(path)),
            append: values.switch("append").unwrap_or(false),
            format: match values.word("format").as_deref() {
                Some("json") => StatsFormat::Json,
                Some("nbdkit") => StatsFormat::NBDKIT,
                _ => StatsFormat::Table,
            },
            output: Common::default(),
        }
    }
}

impl Filter for Stats {
    fn kind(&self) -> &'static FilterKind {
        &STATS
    }

    fn layer(&self, below: Arc<dyn Exports>) -> Result<Arc<dyn Layer>> {
        let output = self.output.open(|| {
            let file = self.file.as_ref();
            let file = file.map(|file| open_for_lines(file, self.append));
            Ok(Output(file.transpose()?.map(Mutex::new)))
        })?;
        let layer = Counting {
            output,
            format: self.format,
            totals: match self.format {
                StatsFormat::Nbdkit { .. } => Some(Arc::new(Totals::new())),
                StatsFormat::Table | StatsFormat::Json => None,
            },
        };
        Ok(Arc::new(PerExport::new(layer, below)))
    }
}

/// Where the results of all exports go.
#[derive(Debug)]
struct Output(Option<Mutex<File>>);

impl Output {
    fn write(&self, text: &str) -> io::Result<()> {
        match &self.0 {
            None => io::stderr().lock().write_all(text.as_bytes()),
            Some(file) => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.write_all(text.as_bytes())
            }
        }
    }
}

struct Counting {
    output: Arc<Output>,
    format: StatsFormat,
    /// Where all exports are counted together.
    totals: Option<Arc<Totals>>,
}

impl DeviceLayer for Counting {
    type Shared = ExportStats;

    fn name(&self) -> &'static str {
        STATS.name
    }

    fn share(&self, _: &str) -> Result<ExportStats> {
        Ok(ExportStats {
            began: Instant::now(),
            commands: Default::default(),
        })
    }

    fn open(&self, opened: Opened<ExportStats>) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        let counter = Counter {
            export: opened.shared,
            totals: self.totals.clone(),
        };
        let watched = Watched::new(opened.device, counter);
        Box::pin(async move { Ok(Arc::new(watched) as Arc<dyn BlockDevice>) })
    }

    fn counts(&self, shared: &ExportStats) -> Vec<(&'static str, u64)> {
        let commands = COMMANDS.iter().zip(&shared.commands);
        let used = commands.filter_map(|(row, stats)| Some((row, stats.get()?)));
        used.flat_map(|(row, stats)| {
            let values = [&stats.requests, &stats.failed, &stats.bytes];
            row.counts
                .into_iter()
                .zip(values.map(|it| it.load(Relaxed)))
        })
        .collect()
    }

    fn must_keep(&self, shared: &ExportStats) -> bool {
        shared.commands.iter().any(|stats| stats.get().is_some())
    }

    fn close<'a>(&'a self, export: &'a str, shared: Arc<ExportStats>) -> BoxFuture<'a, ()> {
        let text = match self.format {
            StatsFormat::Json => Some(text::json(export, &shared)),
            StatsFormat::Table => Some(text::table(export, &shared)),
            StatsFormat::Nbdkit { .. } => None,
        };
        if let Some(text) = text {
            // Nobody is left who could be told that a disk is full.
            let _ = self.output.write(&text);
        }
        Box::pin(async {})
    }

    fn all_closed(&self) -> BoxFuture<'_, ()> {
        if let (StatsFormat::Nbdkit { threshold }, Some(totals)) = (self.format, &self.totals) {
            let _ = self.output.write(&totals.text(threshold));
        }
        Box::pin(async {})
    }
}

/// A command, by the name that it has over NBD, and what its counts are called.
struct Command {
    operation: Operation,
    name: &'static str,
    counts: [&'static str; 3],
}

macro_rules! commands {
    ($($operation:ident $name:literal)*) => {
        [$(Command {
            operation: Operation::$operation,
            name: $name,
            counts: [
                concat!($name, "_requests"),
                concat!($name, "_errors"),
                concat!($name, "_bytes"),
            ],
        }),*]
    };
}

static COMMANDS: [Command; 7] = commands! {
    Read "read"
    Write "write"
    Zero "write_zeroes"
    Trim "trim"
    Flush "flush"
    Extents "block_status"
    Cache "cache"
};

/// Sizes are told apart by powers of two, up to those of 4 GiB and more.
const SIZES: usize = 34;

/// Times are told apart by powers of two microseconds, up to a day and more.
const TIMES: usize = 38;

/// What was counted for an export.
struct ExportStats {
    began: Instant,
    commands: [OnceLock<Box<CommandStats>>; COMMANDS.len()],
}

/// What was counted for a command.
struct CommandStats {
    requests: AtomicU64,
    /// Those of them that failed, or that nobody waited for.
    failed: AtomicU64,
    /// Of those that did not fail.
    bytes: AtomicU64,
    nanoseconds: AtomicU64,
    longest: AtomicU64,
    sizes: [AtomicU64; SIZES],
    times: [AtomicU64; TIMES],
}

impl Default for CommandStats {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            requests: zero(),
            failed: zero(),
            bytes: zero(),
            nanoseconds: zero(),
            longest: zero(),
            sizes: std::array::from_fn(|_| zero()),
            times: std::array::from_fn(|_| zero()),
        }
    }
}

impl CommandStats {
    fn count(&self, length: u64, time: Duration, done: bool) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.requests.fetch_add(1, Relaxed);
        self.failed.fetch_add((!done).into(), Relaxed);
        if done {
            self.bytes.fetch_add(length, Relaxed);
        }
        self.nanoseconds.fetch_add(nanoseconds, Relaxed);
        self.longest.fetch_max(nanoseconds, Relaxed);
        self.sizes[bucket(length, SIZES)].fetch_add(1, Relaxed);
        self.times[bucket(nanoseconds / 1000, TIMES)].fetch_add(1, Relaxed);
    }
}

/// The place of a number among powers of two: 0 is at 0, and `n` from 2^(k-1) to below 2^k at k.
fn bucket(number: u64, buckets: usize) -> usize {
    let bits = (u64::BITS - number.leading_zeros()) as usize;
    bits.min(buckets - 1)
}

/// The smallest number of a bucket.
fn least(bucket: usize) -> u64 {
    match bucket {
        0 => 0,
        bucket => 1 << (bucket - 1),
    }
}

/// Who counts the requests of one handle.
struct Counter {
    export: Arc<ExportStats>,
    totals: Option<Arc<Totals>>,
}

fn place(operation: Operation) -> Option<usize> {
    COMMANDS.iter().position(|row| row.operation == operation)
}

impl Watch for Counter {
    type Ticket = Instant;

    fn watches(&self, operation: Operation) -> bool {
        place(operation).is_some()
    }

    async fn begin(&self, _: &Request<'_>) -> Result<Instant> {
        Ok(Instant::now())
    }

    fn end(&self, began: Instant, request: &Request<'_>, outcome: Outcome<'_>) {
        if let Some(place) = place(request.operation) {
            let stats = self.export.commands[place].get_or_init(Default::default);
            let done = !matches!(outcome, Outcome::Failed(_) | Outcome::GivenUp);
            let time = began.elapsed();
            stats.count(request.range.len(), time, done);
            if let Some(totals) = self.totals.as_ref().filter(|_| done) {
                totals.count(place, request.range, time);
            }
        }
    }

    async fn of_another(&self, _: &Arc<dyn BlockDevice>) -> Result<Self> {
        Ok(Self {
            export: Arc::clone(&self.export),
            totals: self.totals.clone(),
        })
    }
}
