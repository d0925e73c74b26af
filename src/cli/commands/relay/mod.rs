//! `blockferry relay`: forwards byte streams until someone asks to stop.
//!
//! | file | has |
//! |---|---|
//! | `entrance` | where clients come in |
//! | `crew` | the threads that connections are shared out to |
//! | `connection` | a client's connection from its first to its last byte |
//! | `reach` | the connection to the first target that answers |
//! | `link` | the streams at both ends |
//! | `tls` | TLS at either end |
//! | `introduction` | what a target is told of its client |
//! | `standard` | standard input and output as an end |
//! | `book` | what is counted while bytes move |
//! | `observe` | what is told and logged |
//! | `metrics` | the page of what is counted |

mod book;
mod connection;
mod crew;
mod entrance;
mod introduction;
mod link;
mod metrics;
mod observe;
mod reach;
mod standard;
mod tls;

use std::{convert::Infallible, process::ExitCode, sync::Arc, thread, time::Duration};

use blockferry_sys as sys;
use serde_json::json;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};

use crate::relay::{Options, Rate};

use super::{
    super::{
        failure::Failure,
        options::{Address, RelayJob},
        signals::{Interrupt, Reload, Signals},
    },
    exposition, listen,
};

use connection::Arrival;
use crew::{Crew, Workplace};
use entrance::Entrance;
use observe::Observer;
use tls::Tls;

/// More threads gain nothing: the kernel does the work.
const MOST_WORKERS: usize = 8;

/// More connections at a time are no limit.
const MOST_CONNECTIONS: usize = 1 << 24;

/// The most pipes that bytes are spliced through, of all workers together.
const MOST_PIPES: usize = 256;

/// Descriptors that are neither connections nor pipes: standard streams, listeners, the log, readers of the
/// metrics.
const OTHER_DESCRIPTORS: usize = 24;

/// Those that each worker has for itself, to wait with.
const WORKER_DESCRIPTORS: usize = 4;

/// How many names are looked up at a time. Nobody can end one, and each has a thread until it ends by itself.
const MOST_LOOKUPS: usize = 16;

/// How long accepting rests after it failed, for want of descriptors for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all connections have in common.
pub(super) struct Relay {
    job: RelayJob,
    observer: Observer,
    tls: Tls,
    /// Names that are being looked up.
    lookups: Arc<Semaphore>,
    /// What all connections share, from clients to targets and back.
    rates: Option<(Rate, Rate)>,
    slots: Arc<Semaphore>,
    /// How many connections there may be at a time.
    most: usize,
}

/// Relays until the end, and says with which exit code.
pub(crate) fn run(job: RelayJob) -> Result<ExitCode, Failure> {
    // Before anything else is opened: what we were handed has fixed numbers.
    let activated = match job.listen {
        Address::Activated => listen::activated()?,
        _ => Vec::new(),
    };
    let descriptors = sys::allow_most_descriptors();
    let descriptors = descriptors.and_then(|limit| usize::try_from(limit).ok());
    let room = Room::within(descriptors.unwrap_or(usize::MAX));
    let runtime = super::runtime()?;
    let result = runtime.block_on(async {
        let mut signals = Signals::listen().map_err(|error| Failure::system("signals", &error))?;
        let reload = signals.reload(job.log.is_some());
        let reload = reload.map_err(|error| Failure::system("signals", &error))?;
        let requests = Requests { signals, reload };
        let relay = Arc::new(Relay::new(job, &room)?);
        match (&relay.job.listen, &relay.job.targets[..]) {
            (Address::Standard, _) => standard::from(&relay, &room, requests).await,
            (_, [Address::Standard]) => {
                let entrance = Entrance::open(&relay.job.listen, activated).await?;
                standard::to(&relay, &room, entrance, requests).await
            }
            _ => {
                let entrance = Entrance::open(&relay.job.listen, activated).await?;
                relay_all(&relay, &room, entrance, requests).await
            }
        }
    });
    runtime.shutdown_background();
    result.map(|()| ExitCode::SUCCESS)
}

/// How much the limit of descriptors has room for.
struct Room {
    /// Connections at a time, with all the pipes.
    connections: usize,
    /// Connections at a time, at the cost of the pipes.
    most: usize,
    /// For each worker.
    pipes: usize,
    workers: usize,
}

impl Room {
    fn within(descriptors: usize) -> Self {
        let workers = thread::available_parallelism().map_or(1, usize::from);
        let workers = workers.min(MOST_WORKERS);
        let pipes = (descriptors / 16).clamp(workers, MOST_PIPES) / workers;
        let taken = OTHER_DESCRIPTORS + WORKER_DESCRIPTORS * workers;
        let left = descriptors.saturating_sub(taken);
        let without = |pipes| (left.saturating_sub(2 * pipes) / 2).clamp(1, MOST_CONNECTIONS);
        Self {
            connections: without(pipes * workers),
            most: without(0),
            pipes,
            workers,
        }
    }
}

/// What is asked of this process by signals.
pub(super) struct Requests {
    signals: Signals,
    reload: Reload,
}

impl Requests {
    /// Waits for the next request to end. Until then the log is opened again as often as that is asked for.
    async fn until_end(&mut self, observer: &Observer) -> Interrupt {
        loop {
            tokio::select! {
                interrupt = self.signals.next() => return interrupt,
                () = self.reload.asked() => observer.reopen(),
            }
        }
    }
}

impl Relay {
    fn new(job: RelayJob, room: &Room) -> Result<Self, Failure> {
        let wanted = job.max_connections.unwrap_or(room.connections);
        let observer = Observer::new(&job)?;
        let most = wanted.min(room.most);
        if most < wanted {
            observer.few_descriptors(wanted, most);
        }
        Ok(Self {
            tls: Tls::new(&job)?,
            lookups: Arc::new(Semaphore::new(MOST_LOOKUPS)),
            observer,
            rates: job.rate.map(|rate| (Rate::new(rate), Rate::new(rate))),
            slots: Arc::new(Semaphore::new(most)),
            most,
            job,
        })
    }

    /// How the bytes of one connection move.
    fn options(&self) -> Options {
        let own = self.job.connection_rate;
        let own = own.map(|rate| (Rate::new(rate), Rate::new(rate)));
        let rates = match (own, &self.rates) {
            (Some(own), Some(all)) => Some((own.0.and(&all.0), own.1.and(&all.1))),
            (own, all) => own.or_else(|| all.clone()),
        };
        let (rate, rate_back) = rates.unzip();
        let mut options = Options::new();
        options.mode = self.job.mode;
        options.rate = rate;
        options.rate_back = rate_back;
        options.idle_timeout = self.job.idle_timeout;
        options.half_close_timeout = self.job.half_close_timeout;
        options
    }

    /// Waits until another connection may be accepted.
    async fn slot(&self) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed.
        Arc::clone(&self.slots).acquire_owned().await.ok()
    }

    /// Waits until there is no connection.
    async fn emptied(&self) {
        // Such a count fits, and the semaphore is never closed.
        let all = u32::try_from(self.most).unwrap_or(u32::MAX);
        let _ = self.slots.acquire_many(all).await;
    }

    /// Accepts the next client, however long it takes until that works.
    async fn next(&self, entrance: &mut Entrance) -> Arrival {
        loop {
            let Some(slot) = self.slot().await else {
                // Never, as above.
                std::future::pending::<()>().await;
                continue;
            };
            match entrance.accept().await {
                Ok((socket, client)) => {
                    let number = self.observer.connected(&client);
                    return Arrival {
                        number,
                        socket,
                        client,
                        slot: Some(slot),
                    };
                }
                // Its client left while it waited.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    self.observer.accept_failed(&error);
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Tells that clients can connect, and where, and answers readers of the metrics.
    async fn begin(
        self: &Arc<Self>,
        entrance: Option<&Entrance>,
        workplaces: Vec<Arc<Workplace>>,
    ) -> Result<(), Failure> {
        if let Some(address) = &self.job.metrics {
            let listener = exposition::bind(address).await?;
            if let Ok(address) = listener.local_addr() {
                self.observer.metrics_at(address);
            }
            let relay = Arc::clone(self);
            let page = move || metrics::text(&relay, &workplaces);
            tokio::spawn(exposition::answer_all(listener, page));
        }
        if let Some(entrance) = entrance {
            self.observer.listening(entrance, &self.job.targets);
        }
        Ok(())
    }
}

/// Relays clients until a request to end comes and they have ended.
async fn relay_all(
    relay: &Arc<Relay>,
    room: &Room,
    mut entrance: Entrance,
    mut requests: Requests,
) -> Result<(), Failure> {
    let crew = Crew::start(relay, room.workers, room.pipes)?;
    relay.begin(Some(&entrance), crew.workplaces()).await?;
    let mut accepting = async || -> Infallible {
        loop {
            crew.hand(relay.next(&mut entrance).await);
        }
    };
    let interrupt = tokio::select! {
        interrupt = requests.until_end(&relay.observer) => interrupt,
        never = accepting() => match never {},
    };
    // Nobody else comes in, and the socket's file is gone.
    drop(entrance);
    relay.observer.draining(crew.open());
    let patience = relay.job.drain_timeout;
    let result = tokio::select! {
        () = relay.emptied() => Ok(()),
        again = requests.until_end(&relay.observer) => Err(Failure::interrupted(again)),
        () = sleep(patience) => {
            let (open, seconds) = (crew.open(), patience.as_secs_f64());
            Err(Failure::interrupted(interrupt).note(format!(
                "what had not ended after {seconds} s was broken off: {}",
                observe::connections(open)
            )))
        }
    };
    crew.dismiss();
    let code = result.as_ref().err().map_or(0, Failure::code);
    relay.observer.log("stopped", json!({ "exit_code": code }));
    result
}
