//! One connection that never has to wait leaves room for the others on its thread.

use std::{
    io,
    os::fd::AsFd,
    pin::Pin,
    sync::{Arc, mpsc},
    task::{Context, Poll},
    thread,
    time::Duration,
};

use blockferry_relay::{Counters, Mode, copy_bidirectional, copy_with};
use tokio::{
    fs::File,
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpStream, UnixStream},
};

use crate::{
    bytes::bytes,
    line::{Line, MODES, on_all_pairings, options},
    sockets::Socket,
};

on_all_pairings!(messages_pass_beside_bulk_on_the_same_thread);

/// Sends a message to and fro through `line` that often.
async fn ping_pong<A: Socket, B: Socket>(line: Line<A, B>, mode: Mode, rounds: u64) {
    let mut ends = line.relay(options(mode));
    let mut message = [0; 64];
    for round in 0..rounds {
        ends.left.write_all(&bytes(round, 64)).await.unwrap();
        ends.right.read_exact(&mut message).await.unwrap();
        ends.right.write_all(&message).await.unwrap();
        ends.left.read_exact(&mut message).await.unwrap();
        assert_eq!(message[..], bytes(round, 64));
    }
    ends.left.shutdown().await.unwrap();
    ends.right.shutdown().await.unwrap();
    ends.relay.await.unwrap().unwrap();
}

async fn messages_pass_beside_bulk_on_the_same_thread<A: Socket, B: Socket>() {
    for mode in MODES {
        let counters = Arc::new(Counters::default());
        let mut bulk_options = options(mode);
        bulk_options.counters = Some(Arc::clone(&counters));
        let Line {
            left,
            mut a,
            mut b,
            right,
        } = Line::<A, B>::new().await;
        // The far ends have threads of their own, so that the relay always has something to do.
        let (feeder, eater) = (feed(&left), eat(&right));
        let bulk =
            tokio::spawn(async move { copy_bidirectional(&mut a, &mut b, &bulk_options).await });
        while counters.totals().forward.total() < 10_000_000 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let before = counters.totals().forward.total();
        ping_pong(Line::<A, B>::new().await, mode, 300).await;
        assert!(!bulk.is_finished());
        while counters.totals().forward.total() == before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        bulk.abort();
        assert!(bulk.await.unwrap_err().is_cancelled());
        let joined = tokio::task::spawn_blocking(|| (feeder.join(), eater.join()));
        let (fed, eaten) = joined.await.unwrap();
        fed.unwrap();
        eaten.unwrap();
    }
}

/// Runs `future` on a thread of its own.
fn on_a_thread<F: Future<Output = ()> + 'static>(
    make: impl FnOnce() -> F + Send + 'static,
) -> thread::JoinHandle<()> {
    thread::spawn(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(async { make().await });
    })
}

/// Writes for as long as it is read.
fn feed(socket: &impl Socket) -> thread::JoinHandle<()> {
    let socket = rustix::io::dup(socket).unwrap();
    thread::spawn(move || {
        blockferry_sys::socket::set_nonblocking(socket.as_fd(), false).unwrap();
        let piece = vec![1; 1 << 18];
        while rustix::net::send(&socket, &piece, rustix::net::SendFlags::NOSIGNAL).is_ok() {}
    })
}

/// Reads to the end.
fn eat(socket: &impl Socket) -> thread::JoinHandle<()> {
    let socket = rustix::io::dup(socket).unwrap();
    thread::spawn(move || {
        blockferry_sys::socket::set_nonblocking(socket.as_fd(), false).unwrap();
        let mut buffer = vec![0; 1 << 18];
        while matches!(rustix::io::read(&socket, &mut buffer), Ok(1..)) {}
    })
}

/// Is always ready, and never says to the runtime that it has done enough.
struct Endless;

impl AsyncRead for Endless {
    fn poll_read(
        self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let most = buffer.remaining();
        buffer.initialize_unfilled();
        buffer.advance(most);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Endless {
    fn poll_write(
        self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Fails unless other tasks get their turn, again and again, beside copies that never have to wait.
fn others_get_their_turn<R, W, F>(open: F)
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
    F: AsyncFn() -> (R, W) + Send + 'static,
{
    let (done, ended) = mpsc::channel();
    // A thread that never comes back cannot be waited for: only what it has to say is.
    drop(on_a_thread(move || async move {
        for mode in MODES {
            let (mut reader, mut writer) = open().await;
            let endless = tokio::spawn(async move {
                copy_with(&mut reader, &mut writer, None, &options(mode)).await
            });
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            ping_pong(Line::<UnixStream, UnixStream>::new().await, mode, 50).await;
            assert!(!endless.is_finished());
            endless.abort();
        }
        done.send(()).unwrap();
    }));
    ended
        .recv_timeout(Duration::from_secs(300))
        .expect("the others never got their turn");
}

#[test]
fn streams_in_memory_that_are_always_ready_leave_room() {
    others_get_their_turn(async || (Endless, Endless));
}

#[test]
fn devices_that_are_always_ready_leave_room() {
    others_get_their_turn(async || {
        (
            File::open("/dev/zero").await.unwrap(),
            File::create("/dev/null").await.unwrap(),
        )
    });
}

#[test]
fn a_socket_that_sends_into_a_device_leaves_room() {
    others_get_their_turn(async || {
        let (reader, peer) = <UnixStream as Socket>::pair().await;
        feed(&peer);
        (reader, File::create("/dev/null").await.unwrap())
    });
}

#[test]
fn a_device_that_sends_into_a_socket_leaves_room() {
    others_get_their_turn(async || {
        let (writer, peer) = <TcpStream as Socket>::pair().await;
        eat(&peer);
        (File::open("/dev/zero").await.unwrap(), writer)
    });
}
