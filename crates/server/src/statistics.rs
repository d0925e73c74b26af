//! What a server counts: connections, and by export and command requests, bytes, failures and latencies.
//!
//! Each connection counts for itself, so nobody waits for a counter that another one holds; whoever asks
//! for the sums pays for adding up.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use blockferry_proto::Command;

/// Upper bounds of the latency histogram's buckets; one more bucket has what took longer.
pub const LATENCY_BOUNDS: [Duration; 15] = [
    Duration::from_micros(10),
    Duration::from_micros(25),
    Duration::from_micros(50),
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(5),
];

/// The commands that are counted, in the order of their counters.
const COMMANDS: [Command; 7] = [
    Command::Read,
    Command::Write,
    Command::Flush,
    Command::Trim,
    Command::Cache,
    Command::WriteZeroes,
    Command::BlockStatus,
];

/// Exports beyond so many names are counted under one name that is none: clients choose names.
const MOST_EXPORTS: usize = 1024;

/// What a server has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Statistics {
    /// Clients that connected.
    pub connections: u64,
    /// Those that are connected now.
    pub connected: u64,
    /// Clients that broke the protocol, or were gone or refused before they used an export.
    pub failed_connections: u64,
    /// By export, in the order of their names. Only where [`ServerOptions::measured`](crate::ServerOptions)
    /// is set.
    pub exports: Vec<ExportStatistics>,
}

/// What was done with one export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportStatistics {
    /// Its name, hostile where clients may choose it; escape it.
    pub name: String,
    /// Connections that use it now.
    pub connected: u64,
    /// By command; those that nobody used are not there.
    pub commands: Vec<(Command, CommandStatistics)>,
}

/// What was done by one command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CommandStatistics {
    /// Requests that were answered, with success or without.
    pub requests: u64,
    /// Bytes of their ranges, where they succeeded.
    pub bytes: u64,
    /// Requests that failed.
    pub errors: u64,
    /// From having received a request until its answer was ready to be sent, summed up.
    pub time: Duration,
    /// How many took no longer than [`LATENCY_BOUNDS`] says, each counted in one bucket, and at the end
    /// those that took longer.
    pub latency: [u64; LATENCY_BOUNDS.len() + 1],
}

/// The counters of one connection.
#[derive(Debug, Default)]
pub(crate) struct Counters([CommandCounters; COMMANDS.len()]);

#[derive(Debug, Default)]
struct CommandCounters {
    requests: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    nanoseconds: AtomicU64,
    latency: [AtomicU64; LATENCY_BOUNDS.len() + 1],
}

impl Counters {
    /// Counts a request; `bytes` is `None` for a failure.
    pub(crate) fn count(&self, command: Command, bytes: Option<u64>, time: Duration) {
        let Some(place) = COMMANDS.iter().position(|known| *known == command) else {
            return;
        };
        let counters = &self.0[place];
        // Nobody else adds to them, so a load and a store do.
        let add = |counter: &AtomicU64, more: u64| {
            let sum = counter.load(Ordering::Relaxed).wrapping_add(more);
            counter.store(sum, Ordering::Relaxed);
        };
        add(&counters.requests, 1);
        match bytes {
            Some(bytes) => add(&counters.bytes, bytes),
            None => add(&counters.errors, 1),
        }
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        add(&counters.nanoseconds, nanoseconds);
        let bucket = LATENCY_BOUNDS.partition_point(|bound| *bound < time);
        add(&counters.latency[bucket], 1);
    }

    fn add_to(&self, sums: &mut Sums) {
        for (counters, sum) in self.0.iter().zip(sums.iter_mut()) {
            let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            sum.requests = sum.requests.wrapping_add(read(&counters.requests));
            sum.bytes = sum.bytes.wrapping_add(read(&counters.bytes));
            sum.errors = sum.errors.wrapping_add(read(&counters.errors));
            let time = Duration::from_nanos(read(&counters.nanoseconds));
            sum.time = sum.time.saturating_add(time);
            for (bucket, total) in counters.latency.iter().zip(&mut sum.latency) {
                *total = total.wrapping_add(read(bucket));
            }
        }
    }
}

type Sums = [CommandStatistics; COMMANDS.len()];

/// All that is counted in a server.
#[derive(Debug, Default)]
pub(crate) struct Book {
    pub(crate) connections: AtomicU64,
    pub(crate) failed_connections: AtomicU64,
    pub(crate) connected: AtomicU64,
    exports: Mutex<BTreeMap<String, Account>>,
}

/// What is known of an export: connections that are over, and those that live.
#[derive(Debug, Default)]
struct Account {
    past: Sums,
    live: Vec<Arc<Counters>>,
}

impl Book {
    /// Counters for a connection that begins to use `export`.
    pub(crate) fn open(&self, export: &str) -> Arc<Counters> {
        let counters = Arc::new(Counters::default());
        let mut exports = self.exports();
        let key = key_of(&exports, export);
        let account = exports.entry(key).or_default();
        account.live.push(Arc::clone(&counters));
        counters
    }

    /// The connection is over.
    pub(crate) fn close(&self, export: &str, counters: &Arc<Counters>) {
        let mut exports = self.exports();
        let key = key_of(&exports, export);
        if let Some(account) = exports.get_mut(&key) {
            account.live.retain(|live| !Arc::ptr_eq(live, counters));
            counters.add_to(&mut account.past);
        }
    }

    pub(crate) fn read(&self) -> Statistics {
        let exports = self.exports();
        let exports = exports.iter().map(|(name, account)| {
            let mut sums = account.past;
            for counters in &account.live {
                counters.add_to(&mut sums);
            }
            let used = COMMANDS.into_iter().zip(sums);
            ExportStatistics {
                name: name.clone(),
                connected: account.live.len() as u64,
                commands: used.filter(|(_, sum)| sum.requests > 0).collect(),
            }
        });
        Statistics {
            connections: self.connections.load(Ordering::Relaxed),
            connected: self.connected.load(Ordering::Relaxed),
            failed_connections: self.failed_connections.load(Ordering::Relaxed),
            exports: exports.collect(),
        }
    }

    fn exports(&self) -> MutexGuard<'_, BTreeMap<String, Account>> {
        self.exports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key_of(exports: &BTreeMap<String, Account>, name: &str) -> String {
    match exports.len() < MOST_EXPORTS || exports.contains_key(name) {
        true => name.to_owned(),
        // No name of an export has a control character that would get here.
        false => "\u{0}others".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_connections_did_is_summed_up_by_export_beyond_their_end() {
        let book = Book::default();
        let one = book.open("a");
        let other = book.open("a");
        one.count(Command::Read, Some(100), Duration::from_micros(10));
        other.count(Command::Read, Some(11), Duration::from_micros(11));
        other.count(Command::Write, None, Duration::from_secs(60));
        book.close("a", &one);
        book.open("b");
        let statistics = book.read();
        let [a, b] = &statistics.exports[..] else {
            panic!("{statistics:?}");
        };
        assert_eq!((a.name.as_str(), a.connected), ("a", 1));
        let [(Command::Read, reads), (Command::Write, writes)] = &a.commands[..] else {
            panic!("{a:?}");
        };
        assert_eq!((reads.requests, reads.bytes, reads.errors), (2, 111, 0));
        assert_eq!(reads.latency[..3], [1, 1, 0]);
        assert_eq!(reads.time, Duration::from_micros(21));
        assert_eq!((writes.requests, writes.bytes, writes.errors), (1, 0, 1));
        assert_eq!(writes.latency.last(), Some(&1));
        assert!(b.commands.is_empty());
    }

    #[test]
    fn names_that_clients_invent_take_no_memory_without_bound() {
        let book = Book::default();
        for number in 0..2 * MOST_EXPORTS {
            let name = number.to_string();
            let counters = book.open(&name);
            counters.count(Command::Flush, Some(0), Duration::ZERO);
            book.close(&name, &counters);
        }
        let statistics = book.read();
        assert_eq!(statistics.exports.len(), MOST_EXPORTS + 1);
        let counted = |export: &ExportStatistics| export.commands[0].1.requests;
        let all: u64 = statistics.exports.iter().map(counted).sum();
        assert_eq!(all, 2 * MOST_EXPORTS as u64);
        assert!(
            statistics
                .exports
                .iter()
                .all(|export| export.connected == 0)
        );
    }
}
