//! What is said of a running server: to people on standard error, to programs in a log of JSON lines.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::{
    block::Error,
    client::PoolEvent,
    proto::{CommandFlags, ReplyMode},
    server::{Ending, ServerEvent},
};

use super::super::{
    super::{
        failure::{Failure, in_words},
        options::ServeJob,
    },
    journal::{Journal, Level, Teller, with},
};

/// Sees what happens in a server.
pub(super) struct Observer {
    teller: Teller,
    log: Option<Journal>,
    /// Whether each request gets a line.
    logs_requests: bool,
    flush_failed: AtomicBool,
}

impl Observer {
    /// # Errors
    /// When the log cannot be written.
    pub(super) fn new(job: &ServeJob) -> Result<Self, Failure> {
        let path = job.log.as_ref().map(|log| log.path.as_path());
        Ok(Self {
            teller: Teller::new(job.quiet, job.verbose),
            log: path.map(Journal::open).transpose()?,
            logs_requests: job.log.as_ref().is_some_and(|log| log.requests),
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
        let wanted = self.logs_requests || !matches!(event, ServerEvent::RequestDone { .. });
        if let Some(log) = self.log.as_ref().filter(|_| wanted)
            && let Some(entry) = entry(event)
        {
            log.write(entry);
        }
        if let Some((level, line)) = describe(event) {
            self.teller.tell(level, line);
        }
    }

    /// Tells and logs what happened to the connections to a server that is served on.
    pub(super) fn see_upstream(&self, source: &str, event: &PoolEvent) {
        if let Some((level, line, entry)) = describe_upstream(source, event) {
            if let Some(log) = &self.log {
                log.write(entry);
            }
            self.teller.tell(level, line);
        }
    }

    /// Logs that the server listens, or that it ends.
    pub(super) fn log(&self, event: &str, details: Value) {
        if let Some(log) = &self.log {
            log.write(with(json!({ "event": event }), details));
        }
    }
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
            let line = format!("client {connection}: uses export {export:?}, {mode} replies");
            (Level::Detail, line)
        }
        ServerEvent::OpenFailed {
            connection,
            export,
            error,
        } => (
            Level::Trouble,
            format!(
                "client {connection}: export {export:?}: {}",
                in_words(error)
            ),
        ),
        ServerEvent::RequestFailed {
            connection,
            command,
            error,
        } => (
            Level::Request,
            format!("client {connection}: {command}: {}", in_words(error)),
        ),
        ServerEvent::Closed { connection, ending } => {
            let (level, how) = describe_ending(ending);
            (level, format!("client {connection}: {how}"))
        }
        ServerEvent::AcceptFailed(error) => (
            Level::Request,
            format!("a client could not be accepted: {error}"),
        ),
        ServerEvent::FlushFailed(error) => (Level::Trouble, format!("flush: {}", in_words(error))),
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
            let entry = with(
                with_error(entry("upstream-lost"), error),
                json!({ "left": left }),
            );
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
            let entry = with(
                with_error(entry("upstream-attempt-failed"), error),
                json!({ "attempt": attempt }),
            );
            let line = format!("{error} (attempt {attempt}; the next in {seconds} s)");
            (Level::Detail, line, entry)
        }
        PoolEvent::Reconnected { attempts } => {
            let entry = with(
                entry("upstream-reconnected"),
                json!({ "attempts": attempts }),
            );
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

fn with_error(entry: Value, error: &Error) -> Value {
    let details = json!({
        "error": error.to_string(),
        "kind": format!("{:?}", error.kind()),
        "offset": error.offset(),
        "length": error.length(),
    });
    with(entry, details)
}
