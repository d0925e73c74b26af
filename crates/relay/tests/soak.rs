//! Many connections, and how they leave nothing behind: no descriptor, no pipe. What is counted belongs to the whole
//! process, so these tests have one of their own and run one after the other.
#![forbid(unsafe_code)]

#[path = "relay/sockets.rs"]
mod sockets;

use std::{
    fs,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use blockferry_relay::{Mode, Moved, Options, PipePool, copy_bidirectional, copy_with};
use rustix::{
    fd::OwnedFd,
    thread::{CapabilitySet, capabilities, set_capabilities},
};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    runtime,
    task::{JoinHandle, JoinSet},
    time::sleep,
};

use sockets::Socket;

const MODES: [Mode; 3] = [Mode::Auto, Mode::Splice, Mode::Copy];

/// Who holds it is alone.
static ALONE: Mutex<()> = Mutex::new(());

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Runs what `make` makes on a runtime of `threads` threads, and fails unless there are as many open descriptors
/// after it as before it.
fn leaves_no_descriptor<F: Future<Output = ()>>(threads: usize, make: impl FnOnce() -> F) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = blockferry_sys::allow_most_descriptors();
    let runtime = || {
        let mut builder = runtime::Builder::new_multi_thread();
        builder
            .worker_threads(threads)
            .enable_all()
            .build()
            .unwrap()
    };
    // The first runtime of a process opens what all of them share, and nobody closes that.
    drop(runtime());
    let before = open_descriptors();
    runtime()
        .block_on(async { tokio::time::timeout(Duration::from_secs(400), make()).await })
        .expect("it never came to an end");
    assert_eq!(open_descriptors(), before);
}

/// Numbers that look random, the same ones each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }
}

/// How one end behaves.
#[derive(Clone, Copy, Debug)]
enum Manner {
    /// Sends, ends its half, reads to the end.
    Proper,
    /// Sends, and closes.
    Leaves,
    /// Sends, and is gone at once, with a reset over TCP.
    Vanishes,
    /// Sends, ends its half, and vanishes then.
    HalfVanishes,
    /// Sends, reads nothing, and closes when the other side has given up or could have.
    NeverReads,
    /// Says nothing.
    IsSilent,
}

impl Manner {
    fn any(dice: &mut Dice) -> Self {
        [
            Self::Proper,
            Self::Proper,
            Self::Leaves,
            Self::Vanishes,
            Self::HalfVanishes,
            Self::NeverReads,
            Self::IsSilent,
        ][usize::try_from(dice.roll(7)).unwrap()]
    }

    /// Behaves so on `socket`, with `length` bytes to send, until the relay is at its end.
    async fn behave<S: Socket>(self, mut socket: S, length: usize) {
        let data = vec![7; length];
        match self {
            Self::Proper => {
                let (mut reader, mut writer) = tokio::io::split(socket);
                let sending = async {
                    let _ = writer.write_all(&data).await;
                    let _ = writer.shutdown().await;
                };
                let receiving = async {
                    let mut buffer = vec![0; 65_536];
                    while let Ok(1..) = reader.read(&mut buffer).await {}
                };
                tokio::join!(sending, receiving);
            }
            Self::Leaves => {
                let _ = socket.write_all(&data).await;
            }
            Self::Vanishes => {
                let _ = socket.write_all(&data).await;
                socket.vanish();
            }
            Self::HalfVanishes => {
                let _ = socket.write_all(&data).await;
                let _ = socket.shutdown().await;
                tokio::task::yield_now().await;
                socket.vanish();
            }
            Self::NeverReads => {
                // More than fits anywhere, if nobody reads it; but not for ever, if somebody does.
                for _ in 0..20 {
                    if socket.write_all(&data).await.is_err() {
                        return;
                    }
                }
                sleep(Duration::from_millis(100)).await;
            }
            Self::IsSilent => while let Ok(1..) = socket.read(&mut [0; 4_096]).await {},
        }
    }
}

/// One connection and its end.
async fn live<A: Socket, B: Socket>(mut dice: Dice, pool: PipePool) {
    let (left, mut a) = A::pair().await;
    let (mut b, right) = B::pair().await;
    let mut options = Options::new();
    options.mode = MODES[usize::try_from(dice.roll(3)).unwrap()];
    options.pool = (dice.roll(8) > 0).then_some(pool);
    options.idle_timeout = Some(Duration::from_millis(20 + dice.roll(30)));
    let dropped_after = (dice.roll(4) == 0).then(|| Duration::from_micros(dice.roll(3_000)));
    let relay = tokio::spawn(async move {
        match dropped_after {
            None => drop(copy_bidirectional(&mut a, &mut b, &options).await),
            Some(time) => {
                tokio::select! {
                    result = copy_bidirectional(&mut a, &mut b, &options) => drop(result),
                    () = sleep(time) => (),
                }
            }
        }
    });
    let mut length = || usize::try_from(dice.roll(3) * dice.roll(60_000)).unwrap();
    let (first, second) = (length(), length());
    let manners = (Manner::any(&mut dice), Manner::any(&mut dice));
    let left = tokio::spawn(async move { manners.0.behave(left, first).await });
    let right = tokio::spawn(async move { manners.1.behave(right, second).await });
    relay.await.unwrap();
    left.await.unwrap();
    right.await.unwrap();
}

#[test]
fn thousands_of_connections_that_end_in_every_way_leave_nothing_open() {
    const CONNECTIONS: u64 = 2_500;
    const AT_ONCE: usize = 60;
    leaves_no_descriptor(2, || async {
        let pool = PipePool::new(16);
        let mut alive = JoinSet::new();
        for number in 1..=CONNECTIONS {
            let mut dice = Dice(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let pool = pool.clone();
            match dice.roll(4) {
                0 => alive.spawn(live::<TcpStream, TcpStream>(dice, pool)),
                1 => alive.spawn(live::<UnixStream, UnixStream>(dice, pool)),
                2 => alive.spawn(live::<TcpStream, UnixStream>(dice, pool)),
                _ => alive.spawn(live::<UnixStream, TcpStream>(dice, pool)),
            };
            if alive.len() == AT_ONCE {
                alive.join_next().await.unwrap().unwrap();
            }
        }
        while let Some(ended) = alive.join_next().await {
            ended.unwrap();
        }
        assert_eq!(pool.lent(), 0);
        assert!(pool.pipes() <= 16, "{} pipes", pool.pipes());
    });
}

/// Copies into things that fail, or end, with bytes on their way.
#[test]
fn writers_that_fail_leave_nothing_open() {
    leaves_no_descriptor(2, || async {
        let pool = PipePool::new(4);
        for number in 0..600 {
            let mut options = Options::new();
            options.mode = MODES[number % 3];
            options.pool = Some(pool.clone());
            let (mut peer, mut reader) = <UnixStream as Socket>::pair().await;
            peer.write_all(&[1; 30_000]).await.unwrap();
            let error = match number % 4 {
                0 => {
                    let mut full = tokio::fs::OpenOptions::new()
                        .write(true)
                        .open("/dev/full")
                        .await
                        .unwrap();
                    copy_with(&mut reader, &mut full, None, &options).await
                }
                1 => {
                    let (mut writer, gone) = <UnixStream as Socket>::pair().await;
                    drop(gone);
                    copy_with(&mut reader, &mut writer, None, &options).await
                }
                2 => {
                    let (mut writer, gone) = tokio::net::unix::pipe::pipe().unwrap();
                    drop(gone);
                    copy_with(&mut reader, &mut writer, None, &options).await
                }
                _ => {
                    let (mut writer, gone) = tokio::io::duplex(10);
                    drop(gone);
                    copy_with(&mut reader, &mut writer, None, &options).await
                }
            }
            .unwrap_err();
            assert_eq!(error.moved.total(), 0);
            assert_eq!(pool.lent(), 0);
        }
        assert!(pool.pipes() <= 4);
    });
}

/// Opens a connection through a relay, passes some bytes each way, and gives its far ends and the relay.
async fn idle<A: Socket, B: Socket>(options: Options) -> (A, B, JoinHandle<()>) {
    let (mut left, mut a) = A::pair().await;
    let (mut b, mut right) = B::pair().await;
    let relay = tokio::spawn(async move {
        copy_bidirectional(&mut a, &mut b, &options).await.unwrap();
    });
    let mut buffer = vec![0; 100_000];
    left.write_all(&[1; 100_000]).await.unwrap();
    right.read_exact(&mut buffer).await.unwrap();
    right.write_all(&[2; 100]).await.unwrap();
    left.read_exact(&mut buffer[..100]).await.unwrap();
    (left, right, relay)
}

#[test]
fn idle_connections_hold_no_pipe() {
    const CONNECTIONS: usize = 500;
    for mode in MODES {
        leaves_no_descriptor(2, || async {
            let pool = PipePool::new(CONNECTIONS);
            let mut options = Options::new();
            options.mode = mode;
            options.pool = Some(pool.clone());
            let before = open_descriptors();
            let mut held = Vec::new();
            for _ in 0..CONNECTIONS {
                held.push(idle::<TcpStream, UnixStream>(options.clone()).await);
            }
            while pool.lent() > 0 {
                sleep(Duration::from_millis(1)).await;
            }
            // One after the other they needed one pipe each way at most, which the next one takes over.
            let pipes = pool.pipes();
            assert!(pipes <= 8, "{pipes} pipes");
            assert_eq!(open_descriptors(), before + 4 * CONNECTIONS + 2 * pipes);
            for (mut left, mut right, relay) in held {
                left.shutdown().await.unwrap();
                right.shutdown().await.unwrap();
                relay.await.unwrap();
            }
        });
    }
}

/// Pipes of threads that are no more are closed with them.
#[test]
fn threads_that_end_take_their_pipes_along() {
    for mode in MODES {
        leaves_no_descriptor(2, || async {
            let mut options = Options::new();
            options.mode = mode;
            let mut held = Vec::new();
            for _ in 0..20 {
                held.push(idle::<UnixStream, UnixStream>(options.clone()).await);
            }
            drop(held);
        });
    }
}

/// Gives up, for this thread alone, what lets it have more pipes than other users.
fn become_unprivileged() {
    let mut sets = capabilities(None).unwrap();
    sets.effective
        .remove(CapabilitySet::SYS_RESOURCE | CapabilitySet::SYS_ADMIN);
    set_capabilities(None, sets).unwrap();
}

/// Makes pipes of a mebibyte until the system grants no more of that size.
fn use_up_pipe_pages() -> Vec<(OwnedFd, OwnedFd)> {
    let mut pipes = Vec::new();
    loop {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let granted = rustix::pipe::fcntl_setpipe_size(&writer, 1 << 20);
        pipes.push((reader, writer));
        if granted.is_err() || pipes.len() == 400 {
            return pipes;
        }
    }
}

/// Copies `length` bytes from one socket to another, and says which way they went.
async fn pass<R: Socket, W: Socket>(length: u64, options: &Options) -> Moved {
    let (peer, mut reader) = R::pair().await;
    let (mut writer, mut receiver) = W::pair().await;
    let sending = async move {
        let (mut source, mut peer) = (tokio::io::repeat(9).take(length), peer);
        tokio::io::copy(&mut source, &mut peer).await.unwrap();
    };
    let copying = async {
        let moved = copy_with(&mut reader, &mut writer, None, options).await;
        writer.shutdown().await.unwrap();
        moved.unwrap()
    };
    let mut sink = tokio::io::sink();
    let receiving = tokio::io::copy(&mut receiver, &mut sink);
    let ((), moved, received) = tokio::join!(sending, copying, receiving);
    assert_eq!(received.unwrap(), length);
    moved
}

/// An unprivileged user has 64 pipes of a mebibyte, and then F_SETPIPE_SZ is refused and new pipes have two slots.
#[test]
fn a_user_who_gets_no_large_pipes_is_served_as_well() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    become_unprivileged();
    let held = use_up_pipe_pages();
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (large, tiny) = (PipePool::new(8), PipePool::with_pipe_size(8, 8_192));
        for mode in MODES {
            let mut options = Options::new();
            options.mode = mode;
            options.pool = Some(large.clone());
            let moved = pass::<UnixStream, UnixStream>(20 << 20, &options).await;
            assert_eq!(moved.total(), 20 << 20);
            let moved = pass::<TcpStream, TcpStream>(20 << 20, &options).await;
            assert_eq!(moved.total(), 20 << 20);
            // Tiny ones are granted to those who ask for no more.
            options.pool = Some(tiny.clone());
            let moved = pass::<TcpStream, TcpStream>(5 << 20, &options).await;
            assert_eq!(moved.total(), 5 << 20);
            if mode == Mode::Splice {
                assert_eq!(moved.copied, 0);
            }
        }
    });
    drop(held);
}

/// The kernel may be at work on a file for a copy that nobody waits for any more.
#[test]
fn copies_of_files_that_are_given_up_leave_nothing_open() {
    leaves_no_descriptor(2, || async {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("target");
        let pool = PipePool::with_pipe_size(4, 65_536);
        for number in 0..300_u64 {
            let mut options = Options::new();
            options.mode = [Mode::Auto, Mode::Splice][usize::try_from(number % 2).unwrap()];
            options.pool = Some(pool.clone());
            let (mut near, mut far) = <UnixStream as Socket>::pair().await;
            let time = Duration::from_micros(number * 10);
            let (mut sink, mut source) = (tokio::io::sink(), tokio::io::repeat(5));
            if number % 3 == 0 {
                let mut zero = File::open("/dev/zero").await.unwrap();
                tokio::select! {
                    result = copy_with(&mut zero, &mut near, None, &options) => drop(result),
                    _ = tokio::io::copy(&mut far, &mut sink) => (),
                    () = sleep(time) => (),
                }
            } else {
                let mut file = File::create(&path).await.unwrap();
                tokio::select! {
                    result = copy_with(&mut near, &mut file, None, &options) => drop(result),
                    _ = tokio::io::copy(&mut source, &mut far) => (),
                    () = sleep(time) => (),
                }
            }
        }
        while pool.lent() > 0 {
            sleep(Duration::from_millis(1)).await;
        }
        assert!(pool.pipes() <= 4);
    });
}
