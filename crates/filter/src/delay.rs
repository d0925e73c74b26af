//! `delay`: requests that take longer.

use std::{sync::Arc, time::Duration};

use blockferry_block::{
    BlockDevice, BoxFuture, Error, ErrorKind, Exports, Operation, Parameter, ParameterType, Result,
    Values, ZeroFlags,
};

use crate::{
    DeviceLayer, Effects, Filter, FilterKind, Layer, Opened, PerExport,
    watched::{Request, Watch, Watched},
};

pub(crate) static DELAY: FilterKind = FilterKind {
    name: "delay",
    syntax: "delay[:TIME][,read=TIME][,write=TIME][,zero=TIME][,trim=TIME][,flush=TIME]\
             [,extents=TIME][,cache=TIME][,open=TIME][,fast-zero=on|off]",
    help: "Each request waits before it is made",
    parameters: &[
        Parameter::new(
            "time",
            ParameterType::Duration,
            "How long requests of all kinds wait that have no time of their own; opening does not",
        )
        .first(),
        time("read", "How long reads wait"),
        time("write", "How long writes wait"),
        time("zero", "How long zeroing waits"),
        time("trim", "How long discarding waits"),
        time("flush", "How long flushes wait"),
        time("extents", "How long questions about extents wait"),
        time("cache", "How long requests to read ahead wait"),
        time(
            "open",
            "How long a client waits for an export that it opens",
        ),
        Parameter::new(
            "fast-zero",
            ParameterType::Switch,
            "Whether zeroing that is to be fast waits as well; it fails at once otherwise",
        )
        .or("on"),
    ],
    effects: Effects {
        extents: "passed through, delayed where that is asked for",
        mapping: "passed through unless reads are delayed: then bytes are read, or moved through pipes",
        flush: "passed through, delayed where that is asked for",
        concurrency: "as the source's; each request waits on its own",
    },
    build: |values| Ok(Arc::new(Delay::from_values(values))),
};

const fn time(name: &'static str, help: &'static str) -> Parameter {
    Parameter::new(name, ParameterType::Duration, help)
}

/// Delays requests. The default delays nothing.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Delay {
    /// How long reads wait.
    pub read: Duration,
    /// How long writes wait.
    pub write: Duration,
    /// How long zeroing waits.
    pub zero: Duration,
    /// How long discarding waits.
    pub trim: Duration,
    /// How long flushes wait.
    pub flush: Duration,
    /// How long questions about extents wait, in all contexts.
    pub extents: Duration,
    /// How long requests to read ahead wait.
    pub cache: Duration,
    /// How long opening waits.
    pub open: Duration,
    /// Whether zeroing with [`ZeroFlags::FAST`] waits as well; it fails at once otherwise.
    pub fast_zero: bool,
}

impl Default for Delay {
    fn default() -> Self {
        Self::of_all(Duration::ZERO)
    }
}

impl Delay {
    /// Requests of all kinds wait for `time`; opening does not.
    #[must_use]
    pub fn of_all(time: Duration) -> Self {
        Self {
            read: time,
            write: time,
            zero: time,
            trim: time,
            flush: time,
            extents: time,
            cache: time,
            open: Duration::ZERO,
            fast_zero: true,
        }
    }

    fn from_values(values: &Values) -> Self {
        let all = values.duration("time").unwrap_or_default();
        let time = |name| values.duration(name).unwrap_or(all);
        Self {
            read: time("read"),
            write: time("write"),
            zero: time("zero"),
            trim: time("trim"),
            flush: time("flush"),
            extents: time("extents"),
            cache: time("cache"),
            open: values.duration("open").unwrap_or_default(),
            fast_zero: values.switch("fast-zero").unwrap_or(true),
        }
    }

    fn of(&self, operation: Operation) -> Duration {
        match operation {
            Operation::Open => self.open,
            Operation::Read => self.read,
            Operation::Write => self.write,
            Operation::Zero => self.zero,
            Operation::Trim => self.trim,
            Operation::Flush => self.flush,
            Operation::Extents => self.extents,
            Operation::Cache => self.cache,
            _ => Duration::ZERO,
        }
    }

    async fn wait(&self, operation: Operation) {
        let time = self.of(operation);
        if !time.is_zero() {
            tokio::time::sleep(time).await;
        }
    }
}

impl Filter for Delay {
    fn kind(&self) -> &'static FilterKind {
        &DELAY
    }

    fn minds_openings(&self) -> bool {
        !self.open.is_zero()
    }

    fn layer(&self, below: Arc<dyn Exports>) -> Result<Arc<dyn Layer>> {
        Ok(Arc::new(PerExport::new(*self, below)))
    }
}

impl DeviceLayer for Delay {
    type Shared = ();

    fn name(&self) -> &'static str {
        DELAY.name
    }

    fn share(&self, _: &str) -> Result<()> {
        Ok(())
    }

    fn open(&self, opened: Opened<()>) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        Box::pin(async move {
            let watch = self.of_another(&opened.device).await?;
            Ok(Arc::new(Watched::new(opened.device, watch)) as Arc<dyn BlockDevice>)
        })
    }
}

impl Watch for Delay {
    type Ticket = ();

    fn watches(&self, operation: Operation) -> bool {
        let refused = operation == Operation::Zero && !self.fast_zero;
        refused || !self.of(operation).is_zero()
    }

    async fn begin(&self, request: &Request<'_>) -> Result<()> {
        if request.flags.contains(ZeroFlags::FAST) && !self.fast_zero {
            return Err(Error::new(ErrorKind::Unsupported));
        }
        self.wait(request.operation).await;
        Ok(())
    }

    async fn of_another(&self, _: &Arc<dyn BlockDevice>) -> Result<Self> {
        self.wait(Operation::Open).await;
        Ok(*self)
    }
}
