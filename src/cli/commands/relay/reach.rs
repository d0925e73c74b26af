//! The connection to the first target that answers.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use blockferry_sys::{is_shortage, socket};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpStream, UnixStream},
    sync::Semaphore,
    task::spawn_blocking,
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
            // Ours alone: the next one could not be reached either.
            Err(error) if is_shortage(&error) => {
                relay.observer.cannot_connect(number, address, &error);
                return Err(error);
            }
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
    let mut link = connect(relay, address, patience).await?;
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

async fn connect(relay: &Relay, address: &Address, patience: Duration) -> io::Result<Link> {
    match address {
        Address::Tcp(address) => {
            let connected = connect_tcp(&relay.lookups, address, patience);
            connected.await.map(Link::tcp)
        }
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
async fn connect_tcp(
    lookups: &Arc<Semaphore>,
    target: &TcpAddress,
    patience: Duration,
) -> io::Result<TcpStream> {
    // A time that is too long to be told is a century, too.
    let deadline = Instant::now() + patience.min(Duration::from_secs(3_000_000_000));
    let host = target.host.as_deref().unwrap_or("localhost");
    let found = look_up(lookups, host, target.port);
    let addresses = timeout_at(deadline, found).await??;
    let mut last = io::Error::from(io::ErrorKind::NotFound);
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

/// The addresses of a host.
async fn look_up(lookups: &Arc<Semaphore>, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let host = host.to_owned();
    in_turn(lookups, move || socket::look_up(&host, port)).await?
}

/// Does `work` on a thread of its own, when it is its turn. It keeps its place until it has ended, also when nobody
/// waits for it any more.
async fn in_turn<T: Send + 'static>(
    turns: &Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let turn = Arc::clone(turns).acquire_owned().await;
    let turn = turn.map_err(io::Error::other)?;
    let working = spawn_blocking(move || {
        let done = work();
        drop(turn);
        done
    });
    Ok(working.await?)
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

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    };

    use super::*;

    #[tokio::test]
    async fn work_that_does_not_end_takes_no_more_threads_than_there_are_turns() {
        let turns = Arc::new(Semaphore::new(2));
        let begun = Arc::new(AtomicUsize::new(0));
        let (release, held) = mpsc::channel::<()>();
        let held = Arc::new(std::sync::Mutex::new(held));
        let hang = || {
            let (begun, held) = (Arc::clone(&begun), Arc::clone(&held));
            move || {
                begun.fetch_add(1, Ordering::SeqCst);
                let held = held.lock().expect("not poisoned");
                held.recv().expect("released");
            }
        };
        // Nobody waits for them any more, and they go on.
        for _ in 0..5 {
            let short = Duration::from_millis(20);
            assert!(timeout(short, in_turn(&turns, hang())).await.is_err());
        }
        assert_eq!(begun.load(Ordering::SeqCst), 2);
        release.send(()).expect("somebody waits");
        release.send(()).expect("somebody waits");
        assert_eq!(in_turn(&turns, || 7).await.expect("its turn"), 7);
    }

    #[tokio::test]
    async fn an_address_is_not_looked_up() {
        let none = Arc::new(Semaphore::new(0));
        for (host, address) in [("127.0.0.1", "127.0.0.1:5"), ("::1", "[::1]:5")] {
            let found = look_up(&none, host, 5).await.expect("an address");
            assert_eq!(found, [address.parse().expect("an address")]);
        }
    }
}
