//! A client's connection from its first to its last byte. There are many: what each keeps is small.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::OwnedSemaphorePermit;

use crate::relay::{self, Cause, Counters, Options, RelayError, Totals};

use super::{
    Relay,
    book::Counts,
    crew::Workplace,
    link::{Client, Link, Socket, Stream},
    reach::{Reached, reach},
};

/// A client that just connected.
pub(super) struct Arrival {
    pub(super) number: u64,
    pub(super) socket: Socket,
    pub(super) client: Client,
    /// Its place among the connections that there may be.
    pub(super) slot: Option<OwnedSemaphorePermit>,
}

/// How a connection ended.
#[derive(Debug)]
pub(super) enum Ending {
    /// Both sides have ended.
    Ended,
    /// One of them failed, or time was up.
    Failed(Cause),
    /// No target answered.
    Unreachable,
    /// This process ended it.
    BrokenOff,
}

/// The words for all endings, as programs are told them.
pub(super) const ENDINGS: [&str; 7] = [
    "ended",
    "reset",
    "failed",
    "idle",
    "half-closed",
    "unreachable",
    "broken-off",
];

impl Ending {
    /// Its place among [`ENDINGS`].
    pub(super) fn index(&self) -> usize {
        match self {
            Self::Ended => 0,
            Self::Failed(Cause::Idle(_)) => 3,
            Self::Failed(Cause::HalfClosed(_)) => 4,
            Self::Failed(cause) if cause.is_reset() => 1,
            Self::Failed(_) => 2,
            Self::Unreachable => 5,
            Self::BrokenOff => 6,
        }
    }

    /// Its word among [`ENDINGS`].
    pub(super) fn word(&self) -> &'static str {
        ENDINGS[self.index()]
    }
}

/// What is known of a connection. When it is dropped the connection is over, and told and counted, also where a
/// worker goes with all of its connections.
pub(super) struct Visit {
    workplace: Arc<Workplace>,
    pub(super) number: u64,
    pub(super) client: Client,
    /// The place of its target among all of them, once one has answered.
    pub(super) target: Option<usize>,
    since: Instant,
    counts: Counts,
    pub(super) ending: Ending,
    /// What it moved, once that is known for good.
    totals: Option<Totals>,
    _slot: Option<OwnedSemaphorePermit>,
}

impl Visit {
    pub(super) fn new(
        workplace: &Arc<Workplace>,
        number: u64,
        client: Client,
        counts: Counts,
        slot: Option<OwnedSemaphorePermit>,
    ) -> Self {
        workplace.book.enter(number, counts.clone());
        Self {
            workplace: Arc::clone(workplace),
            number,
            client,
            target: None,
            since: Instant::now(),
            counts,
            ending: Ending::BrokenOff,
            totals: None,
            _slot: slot,
        }
    }

    pub(super) fn relay(&self) -> &Arc<Relay> {
        &self.workplace.relay
    }

    /// How its bytes move.
    pub(super) fn options(&self) -> Options {
        let mut options = self.workplace.relay.options();
        options.pool = Some(self.workplace.pool.clone());
        options
    }

    /// What it moved until now.
    pub(super) fn totals(&self) -> Totals {
        self.totals.unwrap_or_else(|| self.counts.totals())
    }

    /// How long it lasts.
    pub(super) fn lasted(&self) -> Duration {
        self.since.elapsed()
    }

    /// It has ended, or failed.
    pub(super) fn end(&mut self, result: Result<Totals, RelayError>) {
        let (ending, totals) = match result {
            Ok(totals) => (Ending::Ended, totals),
            Err(RelayError { totals, cause, .. }) => (Ending::Failed(cause), totals),
        };
        self.ending = ending;
        self.totals = Some(totals);
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.workplace.relay.observer.closed(self);
        let totals = self.totals();
        self.workplace
            .book
            .leave(self.number, &totals, &self.ending);
    }
}

/// Relays a client to the first target that answers.
pub(super) fn serve(
    workplace: &Arc<Workplace>,
    arrival: Arrival,
) -> impl Future<Output = ()> + Send + use<> {
    let Arrival {
        number,
        socket,
        client,
        slot,
    } = arrival;
    let counters = Arc::default();
    let counts = Counts::Joined(Arc::clone(&counters));
    let visit = Visit::new(workplace, number, client, counts, slot);
    relay_client(visit, socket, counters)
}

async fn relay_client(mut visit: Visit, socket: Socket, counters: Arc<Counters>) {
    // What only the beginning needs is let go of after it.
    let ends = Box::pin(establish(&mut visit, socket)).await;
    match ends {
        Ok((Link::Tcp(a), Link::Tcp(b))) => carry(a, b, &mut visit, counters).await,
        Ok((Link::Tcp(a), Link::Unix(b))) => carry(a, b, &mut visit, counters).await,
        Ok((Link::Unix(a), Link::Tcp(b))) => carry(a, b, &mut visit, counters).await,
        Ok((Link::Unix(a), Link::Unix(b))) => carry(a, b, &mut visit, counters).await,
        // What was wrong with each target has been told.
        Err(_) => visit.ending = Ending::Unreachable,
    }
}

/// Makes both streams of a connection: the client's and the target's. Whatever is agreed on or sent ahead before
/// bytes are relayed belongs here.
async fn establish(visit: &mut Visit, socket: Socket) -> io::Result<(Link, Link)> {
    let client = Link::accepted(socket)?;
    match reach(visit.relay(), visit.number).await {
        Ok(Reached { link, target }) => {
            visit.target = Some(target);
            Ok((client, link))
        }
        Err(error) => {
            client.break_off();
            Err(error)
        }
    }
}

/// Moves bytes both ways until both sides have ended or something is wrong.
async fn carry<A: Stream, B: Stream>(a: A, b: B, visit: &mut Visit, counters: Arc<Counters>) {
    let mut pair = Pair { a, b, whole: false };
    let mut options = visit.options();
    options.counters = Some(counters);
    let result = relay::copy_bidirectional(&mut pair.a, &mut pair.b, &options).await;
    pair.whole = result.is_ok();
    visit.end(result);
}

/// Two streams, which are broken off when they are dropped unless all of both was relayed.
struct Pair<A: Stream, B: Stream> {
    a: A,
    b: B,
    whole: bool,
}

impl<A: Stream, B: Stream> Drop for Pair<A, B> {
    fn drop(&mut self) {
        if !self.whole {
            self.a.break_off();
            self.b.break_off();
        }
    }
}
