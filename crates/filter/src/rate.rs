//! A limit on the bytes that are read and written a second.
//!
//! Reads and writes each have a budget: one that all clients of an export share, and one that each connection has
//! for itself. Requests go in the order in which they come, each when those before it are paid for; a long one goes
//! at once and is paid for by those behind it. What moves no data costs nothing: zeroing, trimming, questions
//! about extents, flushes, filling a cache.
//!
//! A limit can also stand in a file, which is looked at again while requests pass, at most once a second. It holds
//! instead of the limit that was given as parameter; while the file is not there, or holds no size, that one
//! holds again. A limit of 0 is none.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, Capabilities, Exports, Parameter, ParameterType, Result,
    Throttle, Values, WriteFlags, read_rate, run_blocking,
};
use tokio::{
    sync::Mutex as Turn,
    time::{Instant, sleep_until},
};

use crate::{
    DeviceFilter, DeviceLayer, Effects, Filter, FilterKind, Filtered, Layer, Opened, PerExport,
};

pub(crate) static RATE: FilterKind = FilterKind {
    name: "rate",
    syntax: "rate[:RATE,read=SIZE,write=SIZE,file=PATH,connection-rate=SIZE,connection-file=PATH,burst=TIME]",
    help: "Limits the bytes that are read and written a second",
    parameters: &[
        Parameter::new(
            "rate",
            ParameterType::Size,
            "How many bytes a second may be read, and as many written",
        )
        .first(),
        Parameter::new("read", ParameterType::Size, "How many bytes a second may be read"),
        Parameter::new("write", ParameterType::Size, "How many bytes a second may be written"),
        Parameter::new(
            "file",
            ParameterType::Path,
            "A file that holds the rate instead; it is looked at once a second",
        ),
        Parameter::new(
            "connection-rate",
            ParameterType::Size,
            "How many bytes a second each connection may read, and as many write",
        ),
        Parameter::new(
            "connection-file",
            ParameterType::Path,
            "A file that holds the rate of each connection instead",
        ),
        Parameter::new(
            "burst",
            ParameterType::Duration,
            "How long a pause may be made up for: as much as the rate allows in this time goes at once",
        )
        .or("0.1"),
    ],
    effects: Effects {
        mapping: "hidden: what goes around reads and writes cannot be counted",
        concurrency: "as the source's; requests wait for those that came before them",
        ..Effects::NONE
    },
    build: |values| RateLimit::from_values(values).map(|filter| Arc::new(filter) as _),
};

/// How often the file is looked at, at most.
const LOOK: Duration = Duration::from_secs(1);

/// Limits the bytes that are read and written a second.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RateLimit {
    /// What all clients of an export have together.
    pub export: Rates,
    /// What each connection has for itself, beside that.
    pub connection: Rates,
    /// How long a pause may be made up for: as much as the rate allows in this time goes at once after it.
    /// Default: 0.1 seconds.
    pub burst: Duration,
    /// What rates are in, also those in files. Default: bytes.
    pub unit: RateUnit,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self {
            export: Rates::default(),
            connection: Rates::default(),
            burst: Duration::from_millis(100),
            unit: RateUnit::Bytes,
        }
    }
}

/// How much may be moved a second. `None` and 0 are no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// How much may be read.
    pub read: Option<u64>,
    /// How much may be written.
    pub write: Option<u64>,
    /// A file that holds the rate of both instead, as the text of a size.
    pub file: Option<PathBuf>,
}

/// What rates are counted in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RateUnit {
    /// Bytes a second.
    #[default]
    Bytes,
    /// Bits a second, as nbdkit has them.
    Bits,
}

impl RateUnit {
    /// A rate in bytes, if it is a limit.
    fn bytes(self, rate: u64) -> Option<u64> {
        let bytes = match self {
            Self::Bytes => rate,
            Self::Bits => rate.div_ceil(8),
        };
        (bytes > 0).then_some(bytes)
    }
}

impl RateLimit {
    fn from_values(values: &Values) -> Result<Self, String> {
        let (rate, connection) = (values.size("rate"), values.size("connection-rate"));
        let filter = Self {
            export: Rates {
                read: values.size("read").or(rate),
                write: values.size("write").or(rate),
                file: values.path("file"),
            },
            connection: Rates {
                read: connection,
                write: connection,
                file: values.path("connection-file"),
            },
            burst: values.duration("burst").unwrap_or(Self::default().burst),
            unit: RateUnit::Bytes,
        };
        match filter.export == Rates::default() && filter.connection == Rates::default() {
            true => Err("there is no limit: say how many bytes a second".to_owned()),
            false => Ok(filter),
        }
    }
}

impl Filter for RateLimit {
    fn kind(&self) -> &'static FilterKind {
        &RATE
    }

    fn layer(&self, below: Arc<dyn Exports>) -> Result<Arc<dyn Layer>> {
        Ok(Arc::new(PerExport::new(Limiting(self.clone()), below)))
    }
}

struct Limiting(RateLimit);

impl DeviceLayer for Limiting {
    type Shared = Budget;

    fn name(&self) -> &'static str {
        RATE.name
    }

    fn share(&self, _: &str) -> Result<Budget> {
        Ok(Budget::new(&self.0, &self.0.export))
    }

    fn open(&self, opened: Opened<Budget>) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        Box::pin(async move {
            let device = Limited::new(self.0.clone(), opened.device, opened.shared);
            Ok(Arc::new(Filtered::new(device)) as Arc<dyn BlockDevice>)
        })
    }
}

/// What somebody may move a second.
struct Budget {
    read: Direction,
    write: Direction,
    file: Option<Mutex<Followed>>,
}

struct Direction {
    /// In bytes a second.
    limit: Option<u64>,
    /// Held by the request whose turn it is: others wait in order.
    turn: Turn<Throttle>,
}

/// A file with a rate.
struct Followed {
    path: PathBuf,
    unit: RateUnit,
    /// When it was looked at last.
    looked: Option<Instant>,
    /// What it said then; `Some(None)` for no limit.
    rate: Option<Option<u64>>,
}

impl Budget {
    fn new(options: &RateLimit, rates: &Rates) -> Self {
        let unit = options.unit;
        let direction = |rate: Option<u64>| Direction {
            limit: rate.and_then(|rate| unit.bytes(rate)),
            turn: Turn::new(Throttle::new(Instant::now()).with_burst(options.burst)),
        };
        let followed = |path: &PathBuf| Followed {
            path: path.clone(),
            unit,
            looked: None,
            rate: None,
        };
        Self {
            read: direction(rates.read),
            write: direction(rates.write),
            file: rates.file.as_ref().map(|path| Mutex::new(followed(path))),
        }
    }

    /// Waits until `bytes` more may be moved.
    async fn take(&self, direction: &Direction, bytes: u64) {
        if bytes == 0 || (direction.limit.is_none() && self.file.is_none()) {
            return;
        }
        let mut throttle = direction.turn.lock().await;
        loop {
            let Some(limit) = self.limit(direction).await else {
                return;
            };
            let now = Instant::now();
            let Some(next) = throttle.next(limit, now) else {
                break;
            };
            // The file may say something else by then.
            let next = match self.file {
                Some(_) => next.min(now + LOOK),
                None => next,
            };
            sleep_until(next).await;
        }
        throttle.moved(bytes);
    }

    /// The limit of now.
    async fn limit(&self, direction: &Direction) -> Option<u64> {
        let Some(file) = &self.file else {
            return direction.limit;
        };
        let lock = || file.lock().unwrap_or_else(PoisonError::into_inner);
        let path = {
            let (mut file, now) = (lock(), Instant::now());
            let is_due = file.looked.is_none_or(|looked| now - looked >= LOOK);
            is_due.then(|| {
                file.looked = Some(now);
                file.path.clone()
            })
        };
        if let Some(path) = path {
            let found = run_blocking(move || read_rate(&path)).await;
            let mut file = lock();
            let unit = file.unit;
            file.rate = found.ok().and_then(Result::ok).map(|rate| unit.bytes(rate));
        }
        let found = lock().rate;
        found.unwrap_or(direction.limit)
    }
}

/// A device whose reads and writes are counted.
struct Limited {
    options: RateLimit,
    below: Arc<dyn BlockDevice>,
    export: Arc<Budget>,
    connection: Budget,
}

impl Limited {
    fn new(options: RateLimit, below: Arc<dyn BlockDevice>, export: Arc<Budget>) -> Self {
        let connection = Budget::new(&options, &options.connection);
        Self {
            options,
            below,
            export,
            connection,
        }
    }

    async fn take(&self, direction: fn(&Budget) -> &Direction, bytes: u64) {
        for budget in [&self.connection, &*self.export] {
            budget.take(direction(budget), bytes).await;
        }
    }
}

impl DeviceFilter for Limited {
    const PASSES: Capabilities = Capabilities::REOPEN;

    fn below(&self) -> &Arc<dyn BlockDevice> {
        &self.below
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            self.take(|budget| &budget.read, buffer.len() as u64).await;
            self.below.read(offset, buffer).await
        })
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            self.take(|budget| &budget.write, data.len() as u64).await;
            self.below.write(offset, data, flags).await
        })
    }

    fn over(&self, below: Arc<dyn BlockDevice>) -> Option<Self> {
        let (options, export) = (self.options.clone(), Arc::clone(&self.export));
        Some(Self::new(options, below, export))
    }
}

#[cfg(test)]
mod tests;
