//! A client's connection from its first to its last byte. There are many: what each keeps is small.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{net::TcpStream, sync::OwnedSemaphorePermit};

use crate::{
    relay::{self, Cause, Counters, Direction, Options, RelayError, Sockets, Totals, delivered},
    tls,
};

use super::{
    Relay,
    book::Counts,
    crew::Workplace,
    introduction::Introduction,
    link::{Client, Link, Socket, Stream},
    reach::{Reached, reach},
    tls::secured,
};

/// How long a side may take to get what was sent to it last, when its connection is broken off.
pub(super) const FAREWELL: Duration = Duration::from_secs(5);

/// A client that just connected.
pub(super) struct Arrival {
    pub(super) number: u64,
    pub(super) socket: Socket,
    pub(super) client: Client,
    /// Its place among the connections that there may be.
    pub(super) slot: Option<OwnedSemaphorePermit>,
}

/// One of the two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Target,
}

impl Side {
    /// Its word for programs and people.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Target => "target",
        }
    }
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
    /// There was no TLS with the client.
    NoTls(tls::Error),
    /// This process ended it.
    BrokenOff,
}

/// The words for all endings, as programs are told them.
pub(super) const ENDINGS: [&str; 9] = [
    "ended",
    "gone",
    "reset",
    "failed",
    "idle",
    "half-closed",
    "unreachable",
    "broken-off",
    "no-tls",
];

impl Ending {
    /// Its word among [`ENDINGS`].
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Ended => "ended",
            Self::Failed(Cause::Gone) => "gone",
            Self::Failed(Cause::Idle(_)) => "idle",
            Self::Failed(Cause::HalfClosed(_)) => "half-closed",
            Self::Failed(cause) if cause.is_reset() => "reset",
            Self::Failed(_) => "failed",
            Self::Unreachable => "unreachable",
            Self::BrokenOff => "broken-off",
            Self::NoTls(_) => "no-tls",
        }
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
    /// Which way bytes went when it failed.
    direction: Option<Direction>,
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
            direction: None,
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

    /// Which of its sides it failed by.
    pub(super) fn fault(&self) -> Option<Side> {
        let is_writers = match &self.ending {
            Ending::Failed(Cause::Read(_) | Cause::HalfClosed(_)) => false,
            Ending::Failed(Cause::Write(_) | Cause::Gone) => true,
            _ => return None,
        };
        let is_targets = (self.direction? == Direction::Forward) == is_writers;
        Some(match is_targets {
            true => Side::Target,
            false => Side::Client,
        })
    }

    /// It has ended, or failed.
    pub(super) fn end(&mut self, result: Result<Totals, RelayError>) {
        let (ending, totals) = match result {
            Ok(totals) => (Ending::Ended, totals),
            Err(RelayError {
                totals,
                direction,
                cause,
            }) => {
                self.direction = Some(direction);
                (Ending::Failed(cause), totals)
            }
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
        // With TLS at one end at least.
        Ok((a, b)) => carry(a, b, &mut visit, counters).await,
        Err(ending) => visit.ending = ending,
    }
}

/// Makes both streams of a connection: the client's and the target's. What is agreed on or sent ahead before bytes
/// are relayed is done then.
async fn establish(visit: &mut Visit, socket: Socket) -> Result<(Link, Link), Ending> {
    let (client, introduction) = welcome(visit.relay(), socket).await?;
    match reach(visit.relay(), visit.number, introduction.as_ref()).await {
        Ok(Reached { link, target }) => {
            visit.target = Some(target);
            Ok((client, link))
        }
        // What was wrong with each target has been told.
        Err(_) => {
            client.break_off();
            Err(Ending::Unreachable)
        }
    }
}

/// A client's stream, with TLS where that is asked for, and what targets are to be told of it.
pub(super) async fn welcome(
    relay: &Relay,
    socket: Socket,
) -> Result<(Link, Option<Introduction>), Ending> {
    let version = relay.job.proxy_protocol;
    let gone = |error| Ending::Failed(Cause::Read(error));
    let introduction = version.map(|version| Introduction::new(version, Some(&socket)));
    let mut introduction = introduction.transpose().map_err(gone)?;
    let mut link = Link::accepted(socket).map_err(gone)?;
    if let Some(session) = relay.tls.with_client() {
        let secured = secured(link, session, relay.job.connect_timeout).await;
        link = secured.map_err(Ending::NoTls)?;
    }
    if let (Some(introduction), Link::Tls(stream)) = (&mut introduction, &link) {
        introduction.add(stream.facts());
    }
    Ok((link, introduction))
}

/// Moves bytes both ways until both sides have ended or something is wrong.
async fn carry<A: Stream, B: Stream>(a: A, b: B, visit: &mut Visit, counters: Arc<Counters>) {
    let mut pair = Pair { a, b, whole: false };
    let mut options = visit.options();
    options.counters = Some(counters);
    let sockets = Sockets {
        first: A::descriptor,
        second: B::descriptor,
    };
    let result =
        relay::copy_bidirectional_above(&mut pair.a, &mut pair.b, &sockets, &options).await;
    pair.whole = match &result {
        Ok(_) => true,
        // What it had said before it went has been passed on.
        Err(error) => matches!(error.cause, Cause::Gone),
    };
    visit.end(result);
    if !matches!(visit.ending, Ending::Ended) {
        Box::pin(part(&pair, visit.fault())).await;
    }
}

/// Waits until a side has got what was sent to it last, or for a while; not the one at fault, which is gone.
async fn part<A: Stream, B: Stream>(pair: &Pair<A, B>, fault: Option<Side>) {
    let part = async |side, stream: Option<&TcpStream>| {
        if let Some(stream) = stream.filter(|_| fault != Some(side)) {
            delivered(stream, FAREWELL).await;
        }
    };
    tokio::join!(
        part(Side::Client, pair.a.tcp()),
        part(Side::Target, pair.b.tcp())
    );
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use clap::Parser;

    use super::{
        super::{
            super::super::args::{Cli, Command},
            Room,
        },
        *,
    };
    use crate::cli::options::RelayJob;

    #[tokio::test]
    async fn a_connection_takes_little_memory() {
        let cli = Cli::try_parse_from(["blockferry", "relay", "unix:a", "unix:b"]);
        let cli = cli.expect("valid arguments");
        let Command::Relay(args) = cli.command else {
            panic!("another command");
        };
        let job = RelayJob::resolve(*args, cli.common).expect("a job");
        let room = Room::within(1000);
        let relay = Arc::new(Relay::new(job, &room).expect("a relay"));
        let workplace = Workplace::new(&relay, room.pipes);
        let (socket, _peer) = UnixStream::pair().expect("a pair");
        workplace.book.expect();
        let future = serve(
            &workplace,
            Arrival {
                number: 1,
                socket: Socket::Unix(socket),
                client: Client::Unix,
                slot: None,
            },
        );
        // Ten thousand of them, and what they have elsewhere, must fit in 40 MiB.
        let size = size_of_val(&future);
        assert!(size <= 2048, "{size} bytes");
        drop(future);
        assert_eq!(workplace.book.open(), 0);
    }
}
