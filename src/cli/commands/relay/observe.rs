//! What is told and logged of a relay.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{relay::Moved, system, tls};

use super::{
    super::{
        super::{
            failure::Failure,
            options::{Address, RelayJob},
        },
        journal::{Journal, Level, Teller, with},
    },
    connection::{Ending, Side, Visit},
    entrance::Entrance,
    link::Client,
};

/// Sees what happens.
pub(super) struct Observer {
    teller: Teller,
    log: Option<Journal>,
    /// The targets' names.
    targets: Vec<String>,
    connections: AtomicU64,
    connect_failures: Vec<AtomicU64>,
    accept_failures: AtomicU64,
    /// How often there was no descriptor, or no memory, to reach a target.
    shortages: AtomicU64,
    /// When accepting or reaching failed last for such a reason.
    last_trouble: Mutex<Option<Instant>>,
}

/// Trouble that comes back after so long is told again.
const QUIET: Duration = Duration::from_secs(60);

impl Observer {
    /// # Errors
    /// When the log cannot be written.
    pub(super) fn new(job: &RelayJob) -> Result<Self, Failure> {
        let targets = job.targets.iter().map(ToString::to_string);
        Ok(Self {
            teller: Teller::new(job.quiet, job.verbose),
            log: job.log.as_deref().map(Journal::open).transpose()?,
            targets: targets.collect(),
            connections: AtomicU64::new(0),
            connect_failures: job.targets.iter().map(|_| AtomicU64::new(0)).collect(),
            accept_failures: AtomicU64::new(0),
            shortages: AtomicU64::new(0),
            last_trouble: Mutex::new(None),
        })
    }

    /// How many clients have connected.
    pub(super) fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// How often each target did not answer.
    pub(super) fn connect_failures(&self) -> impl Iterator<Item = (&str, u64)> {
        let counts = self.connect_failures.iter();
        let counts = counts.map(|count| count.load(Ordering::Relaxed));
        self.targets.iter().map(String::as_str).zip(counts)
    }

    /// Opens the log again.
    pub(super) fn reopen(&self) {
        if let Some(Err(failure)) = self.log.as_ref().map(Journal::reopen) {
            failure.report();
        }
    }

    /// Logs `event`.
    pub(super) fn log(&self, event: &str, details: Value) {
        if let Some(log) = &self.log {
            log.write(with(json!({ "event": event }), details));
        }
    }

    /// There may be more connections than descriptors.
    pub(super) fn few_descriptors(&self, wanted: usize, possible: usize) {
        let line = format!(
            "--max-connections {wanted}: there are descriptors for {possible} only (see 'ulimit -n')"
        );
        self.teller.tell(Level::Trouble, line);
    }

    pub(super) fn metrics_at(&self, address: SocketAddr) {
        let line = format!("metrics at http://{address}/metrics");
        self.teller.tell(Level::News, line);
    }

    /// Clients can connect.
    pub(super) fn listening(&self, entrance: &Entrance, targets: &[Address]) {
        let join =
            |addresses: &mut dyn Iterator<Item = String>| addresses.collect::<Vec<_>>().join(", ");
        let places = join(&mut entrance.addresses().map(|address| address.to_string()));
        let to = join(&mut targets.iter().map(ToString::to_string));
        self.teller
            .tell(Level::News, format!("relaying {places} to {to}"));
        let addresses: Vec<_> = entrance.addresses().map(|it| it.to_string()).collect();
        let pid = std::process::id();
        let details = json!({ "addresses": addresses, "targets": self.targets, "pid": pid });
        self.log("listening", details);
    }

    /// A client connected, and gets this number.
    pub(super) fn connected(&self, client: &Client) -> u64 {
        let number = self.connections.fetch_add(1, Ordering::Relaxed) + 1;
        if self.teller.wants(Level::Detail) {
            let line = format!("client {number}: connected from {client}");
            self.teller.tell(Level::Detail, line);
        }
        number
    }

    /// How often a client could not be accepted, and how often no target could be reached for want of descriptors or
    /// memory here.
    pub(super) fn own_failures(&self) -> [(&'static str, u64); 2] {
        [
            ("accept", &self.accept_failures),
            ("connect", &self.shortages),
        ]
        .map(|(what, count)| (what, count.load(Ordering::Relaxed)))
    }

    /// Whether trouble is worth telling: it comes again and again, ten times a second.
    fn is_news(&self) -> bool {
        let now = Instant::now();
        let mut last = self
            .last_trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let before = last.replace(now);
        before.is_none_or(|before| now.duration_since(before) >= QUIET)
    }

    /// A target was not reached, and the fault is ours.
    pub(super) fn cannot_connect(&self, number: u64, address: &Address, error: &io::Error) {
        self.shortages.fetch_add(1, Ordering::Relaxed);
        let error = words(error);
        let details = json!({
            "connection": number,
            "target": address.to_string(),
            "error": error,
            "fault": "relay",
        });
        self.log("connect-failed", details);
        if self.is_news() {
            let line = format!("targets cannot be reached from here: {error}");
            self.teller.tell(Level::Trouble, line);
        }
    }

    pub(super) fn accept_failed(&self, error: &io::Error) {
        self.accept_failures.fetch_add(1, Ordering::Relaxed);
        if self.is_news() {
            let line = format!("clients cannot be accepted: {}; they wait", words(error));
            self.teller.tell(Level::Trouble, line);
            self.log("accept-failed", json!({ "error": words(error) }));
        }
    }

    /// A target did not answer.
    pub(super) fn connect_failed(
        &self,
        number: u64,
        target: usize,
        address: &Address,
        error: &io::Error,
    ) {
        if let Some(count) = self.connect_failures.get(target) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let error = words(error);
        let details =
            json!({ "connection": number, "target": address.to_string(), "error": error });
        self.log("connect-failed", details);
        if self.teller.wants(Level::Request) {
            let line = format!("client {number}: {address}: {error}");
            self.teller.tell(Level::Request, line);
        }
    }

    /// No more clients are accepted.
    pub(super) fn draining(&self, open: usize) {
        if open > 0 {
            let line = format!("no more clients; waiting for {} to end", connections(open));
            self.teller.tell(Level::News, line);
        }
    }

    /// A connection is over.
    pub(super) fn closed(&self, visit: &Visit) {
        let (level, how) = describe(&visit.ending);
        if self.log.is_none() && !self.teller.wants(level) {
            return;
        }
        let (number, totals) = (visit.number, visit.totals());
        let seconds = visit.lasted().as_secs_f64();
        let target = visit.target.and_then(|target| self.targets.get(target));
        self.log(
            "closed",
            json!({
                "connection": number,
                "client": visit.client.to_string(),
                "target": target,
                "seconds": seconds,
                "to_target": moved(totals.forward),
                "to_client": moved(totals.backward),
                "ending": visit.ending.word(),
                "how": how,
                "fault": visit.fault().map(Side::word),
                "clean": matches!(visit.ending, Ending::Ended),
            }),
        );
        let fault = visit.fault().map(|side| format!("{}: ", side.word()));
        let line = format!(
            "client {number}: {}{how} ({} bytes to {}, {} bytes back, {seconds:.3} s)",
            fault.unwrap_or_default(),
            totals.forward.total(),
            target.map_or("nowhere", String::as_str),
            totals.backward.total(),
        );
        self.teller.tell(level, line);
    }
}

/// What an error says, without its number.
pub(super) fn words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::TimedOut if error.raw_os_error().is_none() => {
            "it did not answer in time".to_owned()
        }
        _ => system::words(error),
    }
}

/// So many connections.
pub(super) fn connections(count: usize) -> String {
    match count {
        1 => "1 connection".to_owned(),
        count => format!("{count} connections"),
    }
}

fn moved(moved: Moved) -> Value {
    json!({ "spliced": moved.spliced, "copied": moved.copied })
}

fn describe(ending: &Ending) -> (Level, String) {
    match ending {
        Ending::Ended => (Level::Detail, "ended".to_owned()),
        Ending::Failed(cause) => {
            let level = match ending.word() {
                "failed" => Level::Request,
                _ => Level::Detail,
            };
            (level, system::without_numbers(cause.to_string()))
        }
        // What was wrong with each of them has been told.
        Ending::Unreachable => (Level::Detail, "closed, for no target answered".to_owned()),
        // Somebody looked whether there is a listener.
        Ending::NoTls(error @ tls::Error::NeverBegan) => (Level::Detail, error.to_string()),
        Ending::NoTls(error) => (Level::Request, error.to_string()),
        Ending::BrokenOff => (Level::Detail, "broken off".to_owned()),
    }
}
