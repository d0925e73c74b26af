//! `blockferry serve`: an image over NBD until someone asks to stop.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use blockferry_sys as sys;

use crate::{
    block::{Access, ErrorKind, HumanSize},
    endpoint::{OpenDevice, open_device},
    server::{Ending, Listener, Server, ServerEvent, SingleExport},
};

use super::{
    super::{
        failure::Failure,
        options::{Place, ServeJob, open_options},
        output::{print, tell},
        signals::Signals,
    },
    listen::{SocketFile, bind_tcp, bind_unix, uri_of},
};

/// How many failed requests are told one by one; a client can cause as many as it likes.
const FAILURES_TOLD: u32 = 20;

pub(crate) fn run(job: ServeJob) -> Result<(), Failure> {
    // Before anything else is opened: what we were handed has fixed numbers.
    let activated = match job.listen.is_empty() {
        true => activated_listeners()?,
        false => Vec::new(),
    };
    let runtime = super::runtime()?;
    let result = runtime.block_on(serve(job, activated));
    runtime.shutdown_background();
    result
}

async fn serve(job: ServeJob, activated: Vec<Listener>) -> Result<(), Failure> {
    let mut signals = Signals::listen().map_err(|error| Failure::system("signals", &error))?;
    let is_activated = !activated.is_empty();
    let [served] = &job.exports[..] else {
        return Err(Failure::usage("one source is served"));
    };
    let source = &served.source;
    let read_only = job.server.read_only;
    let access = match read_only {
        true => Access::ReadOnly,
        false => Access::ReadWrite,
    };
    let options = open_options(job.timeouts);
    let OpenDevice { device, connection } = tokio::select! {
        opened = open_device(source, access, &options) => opened.map_err(|error| {
            let may_not_write = matches!(error.kind(), ErrorKind::NotPermitted | ErrorKind::ReadOnly);
            let failure = Failure::from(error);
            if may_not_write && !read_only {
                return failure.hint("--read-only serves what cannot be written");
            }
            failure
        })?,
        // Nobody has connected: there is nothing to finish.
        _ = signals.next() => return Ok(()),
    };
    let size = device.info().size;

    // Removed at the end of this function, however it ends.
    let (listeners, _files) = listen(&job, activated).await?;
    let flush_failed = Arc::new(AtomicBool::new(false));
    let mut exports = SingleExport::new(device);
    if job.any_name {
        exports = exports.under_any_name();
    }
    let exports = Arc::new(exports);
    let observer = observer(&job, Arc::clone(&flush_failed));
    let server = Server::observed(exports, job.server.clone(), observer);

    let uris: Vec<_> = listeners.iter().filter_map(uri_of).collect();
    let took_free_port = job
        .listen
        .iter()
        .any(|place| matches!(place, Place::Tcp(address) if address.ends_with(":0")));
    if job.print_uri || took_free_port {
        print(&(uris.join("\n") + "\n")).map_err(|error| super::standard_output(&error))?;
    }
    if !job.quiet && !is_activated {
        let size = HumanSize(size);
        tell(&format!("serving {source} ({size}) at {}", uris.join(" ")));
    }

    let mut serving = std::pin::pin!(server.serve(listeners));
    let served = tokio::select! {
        served = &mut serving => served,
        _ = signals.next() => {
            server.shutdown();
            tokio::select! {
                served = &mut serving => served,
                again = signals.next() => return Err(Failure::interrupted(again)),
            }
        }
    };
    served.map_err(|error| Failure::system("cannot listen", &error))?;
    connection.close().await;
    if flush_failed.load(Ordering::Relaxed) {
        return Err(Failure::failed(format!(
            "{source}: what was written may not be durable"
        )));
    }
    Ok(())
}

fn activated_listeners() -> Result<Vec<Listener>, Failure> {
    let failed = |error: io::Error| Failure::system("socket activation", &error);
    let sockets = sys::take_activated_sockets().map_err(failed)?;
    if sockets.is_empty() {
        return Err(Failure::usage("there is nowhere to listen")
            .hint("give --unix PATH or --listen ADDR:PORT, or start it by socket activation"));
    }
    sockets
        .into_iter()
        .map(|socket| Listener::from_activation(socket).map_err(failed))
        .collect()
}

/// The sockets to serve, and the files of those that are ours to remove.
async fn listen(
    job: &ServeJob,
    activated: Vec<Listener>,
) -> Result<(Vec<Listener>, Vec<SocketFile>), Failure> {
    let mut listeners = activated;
    let mut files = Vec::new();
    for place in &job.listen {
        match place {
            Place::Unix(path) => {
                let (listener, file) = bind_unix(path).await?;
                listeners.push(listener.into());
                files.push(file);
            }
            Place::Tcp(address) => listeners.push(bind_tcp(address)?.into()),
            Place::PrivateUnix | Place::Vsock(_) | Place::Standard => {
                return Err(Failure::usage("not a place to listen at"));
            }
        }
    }
    Ok((listeners, files))
}

/// Tells what goes wrong, and with `--verbose` who comes and goes.
fn observer(
    job: &ServeJob,
    flush_failed: Arc<AtomicBool>,
) -> impl Fn(&ServerEvent<'_>) + Send + Sync + 'static {
    let (quiet, verbose) = (job.quiet, job.verbose);
    let told = AtomicU32::new(0);
    move |event| {
        if matches!(event, ServerEvent::FlushFailed(_)) {
            flush_failed.store(true, Ordering::Relaxed);
        }
        let Some((level, line)) = describe(event) else {
            return;
        };
        let due = match level {
            Level::Trouble => !quiet,
            Level::Request => {
                verbose || !quiet && told.fetch_add(1, Ordering::Relaxed) < FAILURES_TOLD
            }
            Level::Detail => verbose,
        };
        if due {
            tell(&Failure::failed(line).to_string());
        }
    }
}

enum Level {
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
            let (level, how) = match ending {
                Ending::Disconnected => (Level::Detail, "disconnected".to_owned()),
                Ending::Vanished => (Level::Detail, "went away without a word".to_owned()),
                Ending::HandshakeTimedOut => (Level::Detail, "took too long to begin".to_owned()),
                Ending::Refused => (Level::Detail, "was refused".to_owned()),
                Ending::Misbehaved(error) => (Level::Request, format!("misbehaved: {error}")),
                Ending::Io(error) => (Level::Request, format!("failed: {error}")),
                Ending::ShutDown => (Level::Detail, "shut down".to_owned()),
                other => (Level::Detail, format!("{other:?}")),
            };
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
