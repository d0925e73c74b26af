//! `blockferry serve`: images over NBD, until someone asks to stop, the last client has gone, or a command
//! has ended.
//!
//! | file | has |
//! |---|---|
//! | `catalog`, `late` | sources become exports |
//! | `names` | exports under other names |
//! | `label` | the security label of sockets |
//! | `places`, `listen`, `standard` | where clients come in |
//! | `observe` | what is told and logged |
//! | `metrics` | what is counted |
//! | `captive` | `--run` |
//! | `pidfile` | `--pidfile` |
//! | `tls` | the certificates that are shown |

mod captive;
mod catalog;
mod label;
mod late;
mod listen;
mod metrics;
mod names;
mod observe;
mod pidfile;
mod places;
mod standard;
mod tls;

use std::{future::pending, process::ExitCode, sync::Arc, time::Duration};

use blockferry_sys::{self as sys, Background, Ready};
use serde_json::json;

use crate::{
    block::HumanSize,
    server::{Listener, Server},
};

use super::super::{
    failure::Failure,
    options::{Identity, Place, ServeJob, Stay},
    output::{Voice, print, speak_to, tell},
    report::tell_counters,
    signals::Signals,
};

use super::exposition;
use catalog::Catalog;
use names::Renamed;
use observe::Observer;
use pidfile::PidFile;
use places::Places;

/// How long sources may take to be closed after a failure.
const PARTING: Duration = Duration::from_secs(2);

/// How long connections may take to let go of their devices when the server is asked to end at once.
const FAREWELL: Duration = Duration::from_millis(500);

/// Serves until the end, and says with which exit code.
pub(crate) fn run(job: ServeJob) -> Result<ExitCode, Failure> {
    // Before anything else is opened: what we were handed has fixed numbers, and is for this process.
    let activated = match job.listen.is_empty() {
        true => places::activated()?,
        false => Vec::new(),
    };
    let mut job = job;
    job.server.tls = tls::options(&job.tls)?;
    if job.exit_with_parent {
        let parent_lives = sys::end_with_parent();
        if !parent_lives.map_err(|error| Failure::system("--exit-with-parent", &error))? {
            return Ok(ExitCode::SUCCESS);
        }
    }
    let mut ready = None;
    if job.background {
        let background = sys::to_background();
        match background.map_err(|error| Failure::system("the background", &error))? {
            Background::Before(code) => return Ok(ExitCode::from(code)),
            Background::Behind(behind) => ready = Some(behind),
        }
    }
    if job.lock_memory {
        let locked = sys::lock_memory();
        locked.map_err(|error| Failure::system("cannot lock the memory", &error))?;
    }
    let runtime = super::runtime()?;
    let result = runtime.block_on(serve(job, activated, ready));
    runtime.shutdown_background();
    result.map(ExitCode::from)
}

async fn serve(
    job: ServeJob,
    activated: Vec<Listener>,
    ready: Option<Ready>,
) -> Result<u8, Failure> {
    let mut signals = Signals::listen().map_err(|error| Failure::system("signals", &error))?;
    let is_activated = !activated.is_empty();
    let observer = Arc::new(Observer::new(&job)?);
    let catalog = tokio::select! {
        catalog = Catalog::open(&job, &observer) => catalog?,
        // Nobody has connected: there is nothing to finish.
        _ = signals.next() => return Ok(0),
    };
    let server = {
        let observer = Arc::clone(&observer);
        let mut options = job.server.clone();
        options.measured |= job.metrics.is_some();
        options.tells_requests |= job.log.as_ref().is_some_and(|log| log.requests);
        options.once |= job.stay == Stay::Once;
        let mut exports = catalog.exports();
        if let Some(names) = job.names.clone() {
            exports = Arc::new(Renamed::new(exports, names));
        }
        Server::observed(exports, options, move |event| observer.see(event))
    };
    let served = Served {
        job: &job,
        server,
        observer: Arc::clone(&observer),
        is_activated,
        catalog: &catalog,
    };
    let code = match served
        .listen_and_serve(activated, ready, &mut signals)
        .await
    {
        Ok(code) => code,
        Err(failure) => {
            let closing = async {
                catalog.exports().close().await;
                let _ = catalog.close().await;
            };
            // Nobody waits long for something that has failed, or was asked twice to end.
            let _ = tokio::time::timeout(PARTING, closing).await;
            return Err(failure);
        }
    };
    if job.verbose {
        let counters = catalog.filter_counters().read();
        counters.iter().for_each(tell_counters);
    }
    let closed = catalog.close().await;
    observer.log("stopped", json!({ "exit_code": code }));
    closed?;
    if observer.flush_failed() {
        return Err(Failure::failed(format!(
            "{}: what was written may not be durable",
            job.exports
                .iter()
                .map(|export| export.source.to_string())
                .collect::<Vec<_>>()
                .join(", ")
        )));
    }
    Ok(code)
}

/// A server whose exports are open.
struct Served<'j> {
    job: &'j ServeJob,
    server: Server,
    observer: Arc<Observer>,
    is_activated: bool,
    catalog: &'j Catalog,
}

impl Served<'_> {
    async fn listen_and_serve(
        &self,
        activated: Vec<Listener>,
        ready: Option<Ready>,
        signals: &mut Signals,
    ) -> Result<u8, Failure> {
        let job = self.job;
        // What they leave behind is removed at the end of this function, however it ends.
        let mut places = Places::open(job, activated).await?;
        let listeners = std::mem::take(&mut places.listeners);
        if let Some(address) = &job.metrics {
            let listener = exposition::bind(address).await?;
            if let (true, Ok(address)) = (!job.quiet, listener.local_addr()) {
                tell(&format!("metrics at http://{address}/metrics"));
            }
            let counted = metrics::Counted {
                server: self.server.clone(),
                filters: self.catalog.filter_counters(),
            };
            tokio::spawn(exposition::answer_all(listener, move || counted.text()));
        }
        let _pidfile = job.pidfile.as_deref().map(PidFile::write).transpose()?;
        let Identity { user, group } = job.identity;
        let became = sys::become_identity(user, group);
        became.map_err(|error| Failure::system("cannot change the user or the group", &error))?;
        self.announce(&places)?;
        if let Some(ready) = ready {
            let told = ready.tell();
            told.map_err(|error| Failure::system("the background", &error))?;
            // Standard error leads nowhere from here on.
            speak_to(Voice::SystemLog);
        }
        let mut captive = match &job.run {
            Some(command) => Some(captive::start(&places.variables(job), command)?),
            None => None,
        };
        let ended = async {
            match &mut captive {
                Some(child) => child.wait().await,
                None => pending().await,
            }
        };

        let serving = async {
            match places.connected.take() {
                Some(socket) => self.server.serve_connected(socket).await,
                None => self.server.serve(listeners).await,
            }
        };
        let mut serving = std::pin::pin!(serving);
        let mut code = 0;
        let served = tokio::select! {
            served = &mut serving => served,
            status = ended => {
                code = captive::exit_code(status.map_err(|error| Failure::system("--run", &error))?);
                self.stop(&mut serving, signals).await?
            }
            _ = signals.next() => self.stop(&mut serving, signals).await?,
        };
        served.map_err(|error| Failure::system("cannot listen", &error))?;
        Ok(code)
    }

    /// Shuts the server down, and waits for it unless it is asked again.
    async fn stop<T>(
        &self,
        serving: &mut (impl Future<Output = T> + Unpin),
        signals: &mut Signals,
    ) -> Result<T, Failure> {
        self.server.shutdown();
        self.catalog.stop_waiting();
        tokio::select! {
            served = &mut *serving => Ok(served),
            again = signals.next() => {
                self.server.abort();
                // Nothing is finished any more, but what was started for the sources is ended.
                let _ = tokio::time::timeout(FAREWELL, serving).await;
                Err(Failure::interrupted(again))
            }
        }
    }

    /// Says that clients can connect, and where.
    fn announce(&self, places: &Places) -> Result<(), Failure> {
        let (job, uris) = (self.job, &places.uris);
        let took_free_port = job
            .listen
            .iter()
            .any(|place| matches!(place, Place::Tcp(address) if address.ends_with(":0")));
        let is_news = job.greets && took_free_port && job.run.is_none();
        let is_asked = job.print_uri || is_news;
        if is_asked && !uris.is_empty() {
            print(&(uris.join("\n") + "\n"))?;
        }
        let details = json!({ "uris": uris, "pid": std::process::id() });
        self.observer.log("listening", details);
        let greets = job.greets && !job.quiet;
        if !greets || self.is_activated || job.run.is_some() || places.connected.is_some() {
            return Ok(());
        }
        let what = match &job.exports[..] {
            [only] => only.source.to_string(),
            all => format!("{} exports", all.len()),
        };
        let size = self
            .catalog
            .size
            .map(|size| format!(" ({})", HumanSize(size)));
        let size = size.unwrap_or_default();
        tell(&format!("serving {what}{size} at {}", uris.join(" ")));
        Ok(())
    }
}
