//! What is said of a running server: to people on standard error, to programs in a log of JSON lines.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    block::Error,
    client::PoolEvent,
    proto::{CommandFlags, ReplyMode},
    server::{Ending, ServerEvent},
};

use super::super::super::{
    failure::Failure,
    options::{LogJob, ServeJob},
    output::tell,
};

/// How many failed requests are told one by one; a client can cause as many as it likes.
const FAILURES_TOLD: u32 = 20;

/// Sees what happens in a server.
pub(super) struct Observer {
    quiet: bool,
    verbose: bool,
    told: AtomicU32,
    log: Option<Log>,
    flush_failed: AtomicBool,
}

impl Observer {
    /// # Errors
    /// When the log cannot be written.
    pub(super) fn new(job: &ServeJob) -> Result<Self, Failure> {
        let log = job.log.as_ref().map(Log::open).transpose()?;
        Ok(Self {
            quiet: job.quiet,
            verbose: job.verbose,
            told: AtomicU32::new(0),
            log,
            flush_failed: AtomicBool::new(false),
        })
    }

    /// Whether something that was written may not be durable.
    pub(super) fn flush_failed(&self) -> bool {
        self.flush_failed.load(Ordering::Relaxed)
    }

    /// Tells and logs an event.
    pub(super) fn see(&self, event: &ServerEvent<'_>) {
        if matches!(event, ServerEvent::FlushFailed(_)) {
            self.flush_failed.store(true, Ordering::Relaxed);
        }
        if let Some(log) = &self.log
            && let Some(entry) = entry(event)
        {
            log.write(entry);
        }
        if let Some((level, line)) = describe(event) {
            self.tell(level, line);
        }
    }

    /// Tells and logs what happened to the connections to a server that is served on.
    pub(super) fn see_upstream(&self, source: &str, event: &PoolEvent) {
        if let Some((level, line, entry)) = describe_upstream(source, event) {
            if let Some(log) = &self.log {
                log.write(entry);
            }
            self.tell(level, line);
        }
    }

    fn tell(&self, level: Level, line: String) {
        let due = match level {
            Level::News => !self.quiet,
            Level::Trouble => !self.quiet,
            Level::Request => {
                let few = || self.told.fetch_add(1, Ordering::Relaxed) < FAILURES_TOLD;
                self.verbose || !self.quiet && few()
            }
            Level::Detail => self.verbose,
        };
        match level {
            _ if !due => {}
            Level::News => tell(&line),
            _ => tell(&Failure::failed(line).to_string()),
        }
    }

    /// Logs that the server listens, or that it ends.
    pub(super) fn log(&self, event: &str, details: Value) {
        if let Some(log) = &self.log {
            let mut entry = json!({ "event": event });
            merge(&mut entry, details);
            log.write(entry);
        }
    }
}

#[derive(Clone, Copy)]
enum Level {
    /// Good news: told unless quiet.
    News,
    /// Always told unless quiet.
    Trouble,
    /// A failed request: told unless there are too many.
    Request,
    /// Told when asked.
    Detail,
}

fn describe(event: &ServerEvent<'_>) -> Option<(Level, String)> {
    Some(match event {
        ServerEvent::Connected { connection, peer } => (
            Level::Detail,
            format!("client {connection}: connected from {peer}"),
        ),
        ServerEvent::Serving {
            connection,
            negotiated,
        } => {
            let (export, mode) = (&negotiated.export_name, negotiated.mode);
            let line = format!("client {connection}: uses export {export:?}, {mode:?} replies");
            (Level::Detail, line)
        }
        ServerEvent::OpenFailed {
            connection,
            export,
            error,
        } => (
            Level::Trouble,
            format!("client {connection}: export {export:?}: {error}"),
        ),
        ServerEvent::RequestFailed {
            connection,
            command,
            error,
        } => (
            Level::Request,
            format!("client {connection}: {command:?}: {error}"),
        ),
        ServerEvent::Closed { connection, ending } => {
            let (level, how) = describe_ending(ending);
            (level, format!("client {connection}: {how}"))
        }
        ServerEvent::AcceptFailed(error) => (
            Level::Request,
            format!("a client could not be accepted: {error}"),
        ),
        ServerEvent::FlushFailed(error) => (Level::Trouble, format!("flush: {error}")),
        _ => return None,
    })
}

/// What happened to the connections to `source`: for people and for programs.
fn describe_upstream(source: &str, event: &PoolEvent) -> Option<(Level, String, Value)> {
    let entry = |name: &str| json!({ "event": name, "source": source });
    Some(match event {
        PoolEvent::Lost { error, left } => {
            let (level, rest) = match left {
                0 => (Level::Trouble, String::new()),
                left => (Level::Detail, format!(" ({left} connections left)")),
            };
            let mut entry = with_error(entry("upstream-lost"), error);
            merge(&mut entry, json!({ "left": left }));
            (level, format!("{error}{rest}"), entry)
        }
        PoolEvent::WritesLost => (
            Level::Trouble,
            format!(
                "{source}: the server was lost with writes that were not flushed: clients are told when they flush"
            ),
            entry("upstream-writes-lost"),
        ),
        PoolEvent::AttemptFailed {
            error,
            attempt,
            pause,
        } => {
            let seconds = pause.as_secs_f64();
            let mut entry = with_error(entry("upstream-attempt-failed"), error);
            merge(&mut entry, json!({ "attempt": attempt }));
            let line = format!("{error} (attempt {attempt}; the next in {seconds} s)");
            (Level::Detail, line, entry)
        }
        PoolEvent::Reconnected { attempts } => {
            let mut entry = entry("upstream-reconnected");
            merge(&mut entry, json!({ "attempts": attempts }));
            (Level::News, format!("{source}: connected again"), entry)
        }
        PoolEvent::GaveUp { error } => (
            Level::Trouble,
            format!("{error}; requests fail until it can be"),
            with_error(entry("upstream-gave-up"), error),
        ),
        _ => return None,
    })
}

fn describe_ending(ending: &Ending) -> (Level, String) {
    match ending {
        Ending::Disconnected => (Level::Detail, "disconnected".to_owned()),
        Ending::Vanished => (Level::Detail, "went away without a word".to_owned()),
        Ending::HandshakeTimedOut => (Level::Detail, "took too long to begin".to_owned()),
        Ending::Idle => (Level::Detail, "kept silent for too long".to_owned()),
        Ending::Dismissed => (Level::Detail, "was dismissed by the export".to_owned()),
        Ending::Refused => (Level::Detail, "was refused".to_owned()),
        Ending::Misbehaved(error) => (Level::Request, format!("misbehaved: {error}")),
        Ending::Tls(error) => (Level::Request, format!("no TLS: {error}")),
        Ending::Io(error) => (Level::Request, format!("failed: {error}")),
        Ending::ShutDown => (Level::Detail, "shut down".to_owned()),
        other => (Level::Detail, format!("{other:?}")),
    }
}

/// A file of JSON lines. Each is written at once, so that whoever follows the file never sees a part.
struct Log {
    file: Mutex<File>,
    requests: bool,
}

impl Log {
    fn open(job: &LogJob) -> Result<Self, Failure> {
        let path: &Path = &job.path;
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.map_err(|error| {
            let path = crate::endpoint::printable(path.as_os_str());
            Failure::system(&format!("the log {path}"), &error)
        })?;
        Ok(Self {
            file: Mutex::new(file),
            requests: job.requests,
        })
    }

    fn write(&self, mut entry: Value) {
        if !self.requests && entry["event"] == "request" {
            return;
        }
        let now = OffsetDateTime::now_utc().format(&Rfc3339);
        merge(&mut entry, json!({ "time": now.unwrap_or_default() }));
        let line = entry.to_string() + "\n";
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // A disk that is full must not keep the server from serving.
        let _: io::Result<()> = file.write_all(line.as_bytes());
    }
}

fn merge(entry: &mut Value, details: Value) {
    if let (Some(entry), Value::Object(details)) = (entry.as_object_mut(), details) {
        entry.extend(details);
    }
}

/// An event for programs.
fn entry(event: &ServerEvent<'_>) -> Option<Value> {
    Some(match event {
        ServerEvent::Connected { connection, peer } => {
            json!({ "event": "connected", "connection": connection, "peer": peer })
        }
        ServerEvent::Serving {
            connection,
            negotiated,
        } => json!({
            "event": "serving",
            "connection": connection,
            "export": negotiated.export_name,
            "size": negotiated.export.size,
            "tls": negotiated.tls,
            "replies": match negotiated.mode {
                ReplyMode::Simple => "simple",
                ReplyMode::Structured => "structured",
                ReplyMode::Extended => "extended",
            },
            "read_only": negotiated.export.flags.contains(crate::proto::TransmissionFlags::READ_ONLY),
        }),
        ServerEvent::OpenFailed {
            connection,
            export,
            error,
        } => {
            let details =
                json!({ "event": "open-failed", "connection": connection, "export": export });
            with_error(details, error)
        }
        ServerEvent::RequestFailed {
            connection,
            command,
            error,
        } => {
            let name = command.name();
            let details =
                json!({ "event": "request-failed", "connection": connection, "command": name });
            with_error(details, error)
        }
        ServerEvent::RequestDone {
            connection,
            command,
            range,
            flags,
            time,
            failure,
        } => json!({
            "event": "request",
            "connection": connection,
            "command": command.name(),
            "offset": range.start(),
            "length": range.len(),
            "fua": flags.contains(CommandFlags::FUA),
            "seconds": time.as_secs_f64(),
            "error": failure,
        }),
        ServerEvent::Closed { connection, ending } => {
            let (_, how) = describe_ending(ending);
            let clean = matches!(ending, Ending::Disconnected | Ending::ShutDown);
            json!({ "event": "closed", "connection": connection, "how": how, "clean": clean })
        }
        ServerEvent::AcceptFailed(error) => {
            json!({ "event": "accept-failed", "error": error.to_string() })
        }
        ServerEvent::FlushFailed(error) => with_error(json!({ "event": "flush-failed" }), error),
        _ => return None,
    })
}

fn with_error(mut entry: Value, error: &Error) -> Value {
    let details = json!({
        "error": error.to_string(),
        "kind": format!("{:?}", error.kind()),
        "offset": error.offset(),
        "length": error.length(),
    });
    merge(&mut entry, details);
    entry
}
