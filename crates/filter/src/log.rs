//! `log`: each request, with what became of it, in lines of JSON or as nbdkit writes them.

mod json;
mod nbdkit;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use blockferry_block::{
    BlockDevice, BoxFuture, DeviceInfo, Exports, Operation, Parameter, ParameterType, Result,
    Values,
};

use crate::{
    DeviceLayer, Effects, Filter, FilterKind, Layer, Opened, PerExport,
    lines::{Common, Lines},
    watched::{Outcome, Request, Watch, Watched},
};

pub(crate) static LOG: FilterKind = FilterKind {
    name: "log",
    syntax: "log:FILE[,append=on|off][,requests=on|off][,while=PATH][,format=json|nbdkit]",
    help: "Each request is written down with its result and its time",
    parameters: &[
        Parameter::new("file", ParameterType::Path, "Where to")
            .first()
            .required(),
        Parameter::new(
            "append",
            ParameterType::Switch,
            "Whether what the file has is kept",
        )
        .or("off"),
        Parameter::new(
            "requests",
            ParameterType::Switch,
            "Whether requests are written down; opening and closing always is",
        )
        .or("on"),
        Parameter::new(
            "while",
            ParameterType::Path,
            "Requests are written down only while there is such a file",
        ),
        Parameter::new(
            "format",
            ParameterType::Choice(&["json", "nbdkit"]),
            "Lines of JSON, one for a request, or what nbdkit's filter writes, two for a request",
        )
        .or("json"),
    ],
    effects: Effects {
        mapping: "passed through with requests=off; otherwise bytes are read, or moved through pipes, to be seen",
        concurrency: "as the source's; requests only wait for the file when it is far behind; all exports have one file",
        ..Effects::NONE
    },
    build: |values| Ok(Arc::new(LogRequests::from_values(values))),
};

/// Writes down requests.
#[derive(Clone, Debug)]
pub struct LogRequests {
    /// The file.
    pub file: PathBuf,
    /// Whether what it has is kept.
    pub append: bool,
    /// Whether requests are written down, and not only that devices are opened and closed.
    pub requests: bool,
    /// Where this is given, they are only while there is such a file.
    pub only_while: Option<PathBuf>,
    /// How.
    pub format: LogFormat,
    journal: Common<Journal>,
}

/// How requests are written down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogFormat {
    /// A line of JSON for each request when it has ended.
    ///
    /// `event` is `opened`, `request` or `closed`. `handle` is the number of the open device, `request` that of the
    /// request of it; the other fields are called as in the log of a server: `command`, `offset`, `length`, `fua`,
    /// `seconds` (how long it took), `error` (a message, or null) with its `kind`, and `time`.
    #[default]
    Json,
    /// A line when a request begins and one when it has ended, as nbdkit's filter of this name writes them; the
    /// time is UTC.
    Nbdkit,
}

impl LogRequests {
    /// A log of all requests in a file of that name, which is emptied before.
    #[must_use]
    pub fn to(file: impl Into<PathBuf>) -> Self {
        Self {
            file: file.into(),
            append: false,
            requests: true,
            only_while: None,
            format: LogFormat::default(),
            journal: Common::default(),
        }
    }

    fn from_values(values: &Values) -> Self {
        // A server in the background is elsewhere.
        let path = |name| {
            let path = values.path(name)?;
            Some(std::path::absolute(&path).unwrap_or(path))
        };
        Self {
            append: values.switch("append").unwrap_or(false),
            requests: values.switch("requests").unwrap_or(true),
            only_while: path("while"),
            format: match values.word("format").as_deref() {
                Some("nbdkit") => LogFormat::Nbdkit,
                _ => LogFormat::Json,
            },
            ..Self::to(path("file").unwrap_or_default())
        }
    }
}

impl Filter for LogRequests {
    fn kind(&self) -> &'static FilterKind {
        &LOG
    }

    fn layer(&self, below: Arc<dyn Exports>) -> Result<Arc<dyn Layer>> {
        let journal = self.journal.open(|| {
            Ok(Journal {
                lines: Lines::open(&self.file, self.append)?,
                requests: self.requests,
                only_while: self.only_while.clone(),
                format: self.format,
                handles: AtomicU64::new(0),
            })
        })?;
        Ok(Arc::new(PerExport::new(Logging(journal), below)))
    }

    /// Programs look for the first client's lines under the number 1.
    fn minds_openings(&self) -> bool {
        self.format == LogFormat::Nbdkit
    }
}

struct Logging(Arc<Journal>);

/// What all handles write to.
#[derive(Debug)]
struct Journal {
    lines: Lines,
    requests: bool,
    only_while: Option<PathBuf>,
    format: LogFormat,
    handles: AtomicU64,
}

impl DeviceLayer for Logging {
    type Shared = ();

    fn name(&self) -> &'static str {
        LOG.name
    }

    fn share(&self, _: &str) -> Result<()> {
        Ok(())
    }

    fn open(&self, opened: Opened<()>) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        Box::pin(async move {
            let facts = Facts {
                export: opened.export,
                read_only: opened.client.read_only,
                tls: opened.client.tls,
            };
            let handle = Handle::open(Arc::clone(&self.0), facts, opened.device.info());
            Ok(Arc::new(Watched::new(opened.device, handle)) as Arc<dyn BlockDevice>)
        })
    }

    fn close<'a>(&'a self, _: &'a str, _: Arc<()>) -> BoxFuture<'a, ()> {
        Box::pin(self.0.lines.written())
    }
}

/// For whom a handle was opened.
#[derive(Clone)]
struct Facts {
    export: String,
    read_only: bool,
    tls: bool,
}

/// A handle, of which all is written down.
struct Handle {
    journal: Arc<Journal>,
    facts: Facts,
    number: u64,
    requests: AtomicU64,
}

impl Handle {
    fn open(journal: Arc<Journal>, facts: Facts, info: &DeviceInfo) -> Self {
        let number = journal.handles.fetch_add(1, Ordering::Relaxed) + 1;
        journal.lines.push(match journal.format {
            LogFormat::Json => json::opened(number, &facts, info),
            LogFormat::Nbdkit => nbdkit::opened(number, &facts, info),
        });
        Self {
            journal,
            facts,
            number,
            requests: AtomicU64::new(0),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let requests = self.requests.load(Ordering::Relaxed);
        self.journal.lines.push(match self.journal.format {
            LogFormat::Json => json::closed(self.number, requests),
            LogFormat::Nbdkit => nbdkit::closed(self.number, requests),
        });
    }
}

/// A request that is under way.
struct Begun {
    number: u64,
    at: Instant,
}

impl Watch for Handle {
    /// Nothing for a request that is not written down.
    type Ticket = Option<Begun>;

    fn watches(&self, _: Operation) -> bool {
        self.journal.requests
    }

    async fn begin(&self, request: &Request<'_>) -> Result<Option<Begun>> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let only_while = self.journal.only_while.as_ref();
        if only_while.is_some_and(|path| !path.exists()) {
            return Ok(None);
        }
        self.journal.lines.wait_for_room().await;
        if self.journal.format == LogFormat::Nbdkit {
            let line = nbdkit::begun(self.number, number, request);
            self.journal.lines.push(line);
        }
        let at = Instant::now();
        Ok(Some(Begun { number, at }))
    }

    fn end(&self, ticket: Option<Begun>, request: &Request<'_>, outcome: Outcome<'_>) {
        let Some(Begun { number, at }) = ticket else {
            return;
        };
        self.journal.lines.push(match self.journal.format {
            LogFormat::Json => json::ended(self.number, number, request, outcome, at.elapsed()),
            LogFormat::Nbdkit => nbdkit::ended(self.number, number, request, outcome),
        });
    }

    async fn of_another(&self, below: &Arc<dyn BlockDevice>) -> Result<Self> {
        let journal = Arc::clone(&self.journal);
        Ok(Self::open(journal, self.facts.clone(), below.info()))
    }
}

/// What a request is called over NBD.
pub(crate) fn command(operation: Operation) -> &'static str {
    match operation {
        Operation::Zero => "write_zeroes",
        Operation::Extents => "block_status",
        other => other.as_str(),
    }
}
