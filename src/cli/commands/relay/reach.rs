//! The connection to the first target that answers.

use std::{io, time::Duration};

use tokio::{
    io::AsyncWriteExt,
    net::{TcpStream, UnixStream, lookup_host},
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    super::super::options::{Address, TcpAddress},
    Relay,
    introduction::Introduction,
    link::Link,
    tls::secured,
};

/// How long to wait before a unix socket whose queue is full is asked again, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));

/// A target that answered.
pub(super) struct Reached {
    pub(super) link: Link,
    /// Its place among the targets.
    pub(super) target: usize,
}

/// Connects client `number` to the first target that answers; each has its own time for that. It is told of the
/// client by `introduction`, before anything else.
///
/// # Errors
/// What was wrong with the last one. All have been told.
pub(super) async fn reach(
    relay: &Relay,
    number: u64,
    introduction: Option<&Introduction>,
) -> io::Result<Reached> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for (target, address) in relay.job.targets.iter().enumerate() {
        match connect_as_asked(relay, target, address, introduction).await {
            Ok(link) => return Ok(Reached { link, target }),
            Err(error) => {
                relay
                    .observer
                    .connect_failed(number, target, address, &error);
                last = error;
            }
        }
    }
    Err(last)
}

/// Connects, introduces the client, and speaks TLS, as far as that is asked for.
async fn connect_as_asked(
    relay: &Relay,
    target: usize,
    address: &Address,
    introduction: Option<&Introduction>,
) -> io::Result<Link> {
    let patience = relay.job.connect_timeout;
    let mut link = connect(address, patience).await?;
    if let Some(introduction) = introduction {
        let header = introduction.bytes();
        timeout(patience, link.write_all(&header)).await??;
    }
    match relay.tls.with_target(target) {
        None => Ok(link),
        Some(session) => {
            let secured = secured(link, session, patience).await;
            secured.map_err(io::Error::other)
        }
    }
}

async fn connect(address: &Address, patience: Duration) -> io::Result<Link> {
    match address {
        Address::Tcp(address) => connect_tcp(address, patience).await.map(Link::tcp),
        Address::Unix(path) => {
            let asked = connect_unix(path);
            timeout(patience, asked).await?.map(Link::unix)
        }
        // The options have ruled them out.
        Address::Standard | Address::Activated => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Tries all addresses of the host in turn. One that does not answer leaves their share of the time to the
/// others.
async fn connect_tcp(target: &TcpAddress, patience: Duration) -> io::Result<TcpStream> {
    // A time that is too long to be told is a century, too.
    let deadline = Instant::now() + patience.min(Duration::from_secs(3_000_000_000));
    let host = target.host.as_deref().unwrap_or("localhost");
    let found = timeout_at(deadline, lookup_host((host, target.port))).await??;
    let addresses: Vec<_> = found.collect();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
    for (tried, address) in addresses.iter().enumerate() {
        let untried = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        let share = deadline.saturating_duration_since(Instant::now()) / untried;
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(elapsed) => last = elapsed.into(),
        }
    }
    Err(last)
}

/// Connects however long the queue of the listener is full.
async fn connect_unix(path: &std::path::Path) -> io::Result<UnixStream> {
    let (mut pause, longest) = PAUSES;
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                sleep(pause).await;
                pause = (pause * 2).min(longest);
            }
            other => return other,
        }
    }
}
