//! Which way bytes take: what the default chooses, and which streams are recognised.

use std::sync::Arc;

use blockferry_relay::{Counters, Mode, Moved, copy_with};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};

use crate::{
    bytes::{bytes, check, in_time, receive, receive_exactly, send},
    line::{Line, MODES, check_way, on_all_pairings, options, options_with, pool_of},
    sockets::Socket,
};

/// More than any pairing needs to be known as bulk.
const BULK: u64 = 64 << 20;

on_all_pairings!(
    small_messages_are_never_spliced_by_default,
    both_ways_take_the_way_that_was_asked_for,
    tcp_answers_at_once_after_a_relay_began,
);

/// What the default does with much data that comes fast.
async fn carried_by_default<R: Socket, W: Socket>() -> Moved {
    let moved = in_time(
        Line::<R, W>::new()
            .await
            .carry(BULK, 1 << 19, options(Mode::Auto)),
    )
    .await
    .unwrap();
    assert_eq!(moved.total(), BULK);
    assert!(moved.copied > 0, "it begins through memory");
    moved
}

#[tokio::test]
async fn bulk_between_tcp_sockets_is_spliced_by_default() {
    assert!(carried_by_default::<TcpStream, TcpStream>().await.spliced > 0);
}

#[tokio::test]
async fn bulk_between_unix_sockets_is_spliced_by_default() {
    assert!(carried_by_default::<UnixStream, UnixStream>().await.spliced > 0);
}

#[tokio::test]
async fn bulk_from_tcp_to_unix_sockets_is_spliced_by_default() {
    assert!(carried_by_default::<TcpStream, UnixStream>().await.spliced > 0);
}

#[tokio::test]
async fn bulk_from_unix_to_tcp_sockets_is_copied_by_default() {
    assert_eq!(
        carried_by_default::<UnixStream, TcpStream>().await.spliced,
        0
    );
}

async fn small_messages_are_never_spliced_by_default<A: Socket, B: Socket>() {
    let pool = pool_of(4);
    let mut ends = Line::<A, B>::new()
        .await
        .relay(options_with(Mode::Auto, &pool));
    let mut message = [0; 256];
    for round in 0..1_000 {
        ends.left.write_all(&bytes(round, 256)).await.unwrap();
        ends.right.read_exact(&mut message).await.unwrap();
        check(round, &message);
        ends.right.write_all(&message).await.unwrap();
        ends.left.read_exact(&mut message).await.unwrap();
        check(round, &message);
    }
    ends.left.shutdown().await.unwrap();
    ends.right.shutdown().await.unwrap();
    let totals = ends.relay.await.unwrap().unwrap();
    check_way(Mode::Copy, totals.forward, 256_000);
    check_way(Mode::Copy, totals.backward, 256_000);
    assert_eq!(pool.pipes(), 0, "no pipe was ever needed");
}

async fn both_ways_take_the_way_that_was_asked_for<A: Socket, B: Socket>() {
    const TOTAL: u64 = 20 << 20;
    for mode in MODES {
        let counters = Arc::new(Counters::default());
        let mut options = options(mode);
        options.counters = Some(Arc::clone(&counters));
        let ends = Line::<A, B>::new().await.relay(options);
        let (mut left_in, mut left_out) = tokio::io::split(ends.left);
        let (mut right_in, mut right_out) = tokio::io::split(ends.right);
        let forward = async {
            send(&mut left_out, 0, TOTAL, 1 << 17).await;
            left_out.shutdown().await.unwrap();
        };
        let backward = async {
            send(&mut right_out, 7, 7 + TOTAL, 1 << 16).await;
            right_out.shutdown().await.unwrap();
        };
        let (.., forth, back) = tokio::join!(
            forward,
            backward,
            receive(&mut right_in, 0),
            receive(&mut left_in, 7)
        );
        assert_eq!((forth, back), (TOTAL, 7 + TOTAL));
        let totals = ends.relay.await.unwrap().unwrap();
        check_way(mode, totals.forward, TOTAL);
        check_way(mode, totals.backward, TOTAL);
        assert_eq!(counters.totals(), totals);
    }
}

/// Nagle's algorithm is off wherever there is TCP.
async fn tcp_answers_at_once_after_a_relay_began<A: Socket, B: Socket>() {
    for mode in MODES {
        let mut line = Line::<A, B>::new().await;
        line.left.shutdown().await.unwrap();
        line.right.shutdown().await.unwrap();
        blockferry_relay::copy_bidirectional(&mut line.a, &mut line.b, &options(mode))
            .await
            .unwrap();
        for socket in [line.a.as_fd(), line.b.as_fd()] {
            // Of a unix socket nobody can ask that.
            assert!(rustix::net::sockopt::tcp_nodelay(socket).unwrap_or(true));
        }
    }
}

/// Copies between halves of two connections, whose far ends are `left` and `right`.
async fn halves_are_spliced(
    mut left: impl Socket,
    mut reader: impl AsyncRead + Unpin + 'static,
    mut writer: impl AsyncWrite + Unpin + 'static,
    mut right: impl Socket,
) {
    left.write_all(&bytes(0, 50_000)).await.unwrap();
    left.shutdown().await.unwrap();
    let options = options(Mode::Splice);
    let (moved, ()) = in_time(async {
        tokio::join!(
            copy_with(&mut reader, &mut writer, None, &options),
            receive_exactly(&mut right, 0, 50_000)
        )
    })
    .await;
    check_way(Mode::Splice, moved.unwrap(), 50_000);
}

#[tokio::test]
async fn owned_halves_of_tcp_sockets_are_recognised() {
    let line = Line::<TcpStream, TcpStream>::new().await;
    let (reader, _writer) = line.a.into_split();
    let (_reader, writer) = line.b.into_split();
    halves_are_spliced(line.left, reader, writer, line.right).await;
}

#[tokio::test]
async fn owned_halves_of_unix_sockets_are_recognised() {
    let line = Line::<UnixStream, UnixStream>::new().await;
    let (reader, _writer) = line.a.into_split();
    let (_reader, writer) = line.b.into_split();
    halves_are_spliced(line.left, reader, writer, line.right).await;
}
