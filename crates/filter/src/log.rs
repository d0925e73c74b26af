//! `log`: a line for each request, with what became of it.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use blockferry_block::{
    BlockDevice, BoxFuture, Capabilities, DeviceInfo, Exports, Operation, Parameter, ParameterType,
    Result, Values, ZeroFlags,
};
use serde_json::{Map, Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    DeviceLayer, Effects, Filter, FilterKind, Layer, Opened, PerExport,
    lines::{Common, Lines},
    watched::{Outcome, Request, Watch, Watched},
};

pub(crate) static LOG: FilterKind = FilterKind {
    name: "log",
    syntax: "log:FILE[,append=on|off][,requests=on|off][,while=PATH]",
    help: "Each request is written down with its result and its time, in lines of JSON",
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
    ],
    effects: Effects {
        mapping: "passed through with requests=off; otherwise bytes are read, or moved through pipes, to be seen",
        concurrency: "as the source's; requests only wait for the file when it is far behind; all exports have one file",
        ..Effects::NONE
    },
    build: |values| Ok(Arc::new(LogRequests::from_values(values))),
};

/// Writes down requests, each in a line of JSON when it has ended.
///
/// `event` is `opened`, `request` or `closed`. `handle` is the number of the open device, `request` that of the
/// request of it; the other fields are called as in the log of a server: `command`, `offset`, `length`, `fua`,
/// `seconds` (how long it took), `error` (a message, or null) with its `kind`, and `time`.
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
    journal: Common<Journal>,
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
                handles: AtomicU64::new(0),
            })
        })?;
        Ok(Arc::new(PerExport::new(Logging(journal), below)))
    }
}

struct Logging(Arc<Journal>);

/// What all handles write to.
#[derive(Debug)]
struct Journal {
    lines: Lines,
    requests: bool,
    only_while: Option<PathBuf>,
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

impl Journal {
    /// Writes down an event and the time.
    fn write(&self, event: Value) {
        let mut line = event;
        let now = OffsetDateTime::now_utc().format(&Rfc3339);
        line["time"] = now.unwrap_or_default().into();
        self.lines.push(line.to_string());
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
        let names = info.capabilities.iter_names();
        let capabilities: Vec<_> = names.map(|(name, _)| name.to_lowercase()).collect();
        journal.write(json!({
            "event": "opened",
            "handle": number,
            "export": facts.export,
            "size": info.size,
            "read_only": facts.read_only || !info.can(Capabilities::WRITE),
            "tls": facts.tls,
            "capabilities": capabilities,
        }));
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
        self.journal.write(json!({
            "event": "closed",
            "handle": self.number,
            "requests": self.requests.load(Ordering::Relaxed),
        }));
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

    async fn begin(&self, _: &Request<'_>) -> Result<Option<Begun>> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let only_while = self.journal.only_while.as_ref();
        if only_while.is_some_and(|path| !path.exists()) {
            return Ok(None);
        }
        self.journal.lines.wait_for_room().await;
        let at = Instant::now();
        Ok(Some(Begun { number, at }))
    }

    fn end(&self, ticket: Option<Begun>, request: &Request<'_>, outcome: Outcome<'_>) {
        let Some(Begun { number, at }) = ticket else {
            return;
        };
        let mut line = json!({
            "event": "request",
            "handle": self.number,
            "request": number,
            "command": command(request.operation),
            "offset": request.range.start(),
            "length": request.range.len(),
            "fua": request.flags.contains(ZeroFlags::FUA),
            "seconds": at.elapsed().as_secs_f64(),
            "error": null,
        });
        if let Some(fields) = line.as_object_mut() {
            add_details(fields, request, outcome);
        }
        self.journal.write(line);
    }

    async fn of_another(&self, below: &Arc<dyn BlockDevice>) -> Result<Self> {
        let journal = Arc::clone(&self.journal);
        Ok(Self::open(journal, self.facts.clone(), below.info()))
    }
}

fn add_details(fields: &mut Map<String, Value>, request: &Request<'_>, outcome: Outcome<'_>) {
    let mut set = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    if request.operation == Operation::Zero {
        let flag = |flag| request.flags.contains(flag).into();
        set("no_hole", flag(ZeroFlags::NO_HOLE));
        set("fast", flag(ZeroFlags::FAST));
    }
    if let Some(context) = request.context {
        set("context", context.to_string().into());
    }
    match outcome {
        Outcome::Done => {}
        Outcome::Failed(error) => {
            set("error", error.to_string().into());
            set("kind", format!("{:?}", error.kind()).into());
        }
        Outcome::GivenUp => {
            set("error", "nobody waited for it".into());
            set("kind", "Cancelled".into());
        }
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
