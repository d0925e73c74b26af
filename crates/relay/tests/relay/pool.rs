//! Pipes: how many there are, who holds them, and what becomes of those that cannot be had.

use std::time::Duration;

use blockferry_relay::{Mode, PipePool, copy_with};
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

use crate::{
    bytes::{bytes, check, receive, receive_exactly, stretch},
    line::{Line, MODES, Relayed, check_way, on_all_pairings, options_with, pool_of},
    sockets::Socket,
};

/// How long nothing happens where nothing is to be expected any more.
const SOON: Duration = Duration::from_millis(200);

on_all_pairings!(
    many_tiny_pieces_pass_through_a_small_pipe_to_a_slow_reader,
    a_pool_without_pipes_leaves_the_bytes_to_memory,
    a_pool_that_has_lent_its_last_pipe_leaves_the_bytes_to_memory,
    a_pipe_is_lent_while_bytes_are_in_it_and_given_back,
    what_a_dropped_copy_left_in_its_pipe_reaches_nobody_else,
    a_page_is_pipe_enough,
);

/// A pipe is full when it has so many pieces, however small they are: that it takes nothing does not mean that
/// the socket has nothing.
async fn many_tiny_pieces_pass_through_a_small_pipe_to_a_slow_reader<R: Socket, W: Socket>() {
    for (mode, pipe) in [
        (Mode::Splice, 4_096),
        (Mode::Splice, 8_192),
        (Mode::Splice, 65_536),
        (Mode::Auto, 8_192),
    ] {
        let pool = PipePool::with_pipe_size(4, pipe);
        let Line {
            mut left,
            mut a,
            mut b,
            mut right,
        } = Line::<R, W>::new().await;
        set_socket_send_buffer_size(&b, 4_096).unwrap();
        set_socket_recv_buffer_size(&right, 16_384).unwrap();
        // All of it is there before the relay begins, in pieces, unless the kernel takes less.
        let mut sent = 0;
        while sent < 60_000
            && let Ok(count) = timeout(SOON, left.write(stretch(sent, 256))).await
        {
            sent += count.unwrap() as u64;
        }
        let options = options_with(mode, &pool);
        let copying = tokio::spawn(async move { copy_with(&mut a, &mut b, None, &options).await });
        // The sender neither sends more nor ends: what is queued must arrive by itself.
        let mut buffer = [0; 3_000];
        let mut at = 0;
        while at < sent {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let count = right.read(&mut buffer).await.unwrap();
            check(at, &buffer[..count]);
            at += count as u64;
        }
        left.shutdown().await.unwrap();
        check_way(mode, copying.await.unwrap().unwrap(), sent);
    }
}

async fn a_pool_without_pipes_leaves_the_bytes_to_memory<R: Socket, W: Socket>() {
    let pool = pool_of(0);
    for mode in MODES {
        let moved = Line::<R, W>::new()
            .await
            .carry(10 << 20, 1 << 18, options_with(mode, &pool))
            .await
            .unwrap();
        check_way(Mode::Copy, moved, 10 << 20);
        assert_eq!((pool.pipes(), pool.lent()), (0, 0));
    }
}

/// Waits until `pool` has lent so many pipes.
async fn until_lent(pool: &PipePool, pipes: usize) {
    while pool.lent() != pipes {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A relay whose receiver takes nothing: it holds a pipe for as long as it lives.
async fn stuck<A: Socket, B: Socket>(pool: &PipePool) -> Relayed<A, B> {
    let lent = pool.lent();
    let mut ends = Line::<A, B>::new()
        .await
        .relay(options_with(Mode::Splice, pool));
    let mut at = 0;
    while pool.lent() == lent {
        while let Ok(count) = timeout(SOON, ends.left.write(stretch(at, 1 << 18))).await {
            at += count.unwrap() as u64;
        }
    }
    ends
}

async fn a_pool_that_has_lent_its_last_pipe_leaves_the_bytes_to_memory<R: Socket, W: Socket>() {
    let pool = pool_of(1);
    let holder = stuck::<UnixStream, UnixStream>(&pool).await;
    let moved = Line::<R, W>::new()
        .await
        .carry(10 << 20, 1 << 18, options_with(Mode::Splice, &pool))
        .await
        .unwrap();
    check_way(Mode::Copy, moved, 10 << 20);
    assert_eq!((pool.pipes(), pool.lent()), (1, 1));

    holder.relay.abort();
    assert!(holder.relay.await.unwrap_err().is_cancelled());
    until_lent(&pool, 0).await;
    let moved = Line::<R, W>::new()
        .await
        .carry(10 << 20, 1 << 18, options_with(Mode::Splice, &pool))
        .await
        .unwrap();
    check_way(Mode::Splice, moved, 10 << 20);
}

async fn a_pipe_is_lent_while_bytes_are_in_it_and_given_back<A: Socket, B: Socket>() {
    for mode in MODES {
        let pool = pool_of(3);
        let mut ends = Line::<A, B>::new().await.relay(options_with(mode, &pool));
        for round in 0..5 {
            tokio::join!(
                crate::bytes::send(
                    &mut ends.left,
                    round * 5_000_000,
                    (round + 1) * 5_000_000,
                    1 << 18
                ),
                receive_exactly(&mut ends.right, round * 5_000_000, (round + 1) * 5_000_000),
            );
            // Everything has passed: the connection is idle, and holds nothing.
            until_lent(&pool, 0).await;
            assert!(pool.pipes() <= 3);
        }
        if mode == Mode::Copy {
            assert_eq!(pool.pipes(), 0);
        }
        if mode == Mode::Splice {
            assert!(pool.pipes() > 0, "the pipe waits for whoever needs it next");
        }
        drop((ends.left, ends.right));
        drop(ends.relay.await.unwrap());
        assert_eq!(pool.lent(), 0);
    }
}

async fn what_a_dropped_copy_left_in_its_pipe_reaches_nobody_else<R: Socket, W: Socket>() {
    let pool = pool_of(1);
    for mode in MODES {
        for _ in 0..3 {
            let holder = stuck::<R, W>(&pool).await;
            holder.relay.abort();
            assert!(holder.relay.await.unwrap_err().is_cancelled());
            until_lent(&pool, 0).await;
            let moved = Line::<R, W>::new()
                .await
                .carry(3_000_000, 1 << 16, options_with(mode, &pool))
                .await
                .unwrap();
            check_way(mode, moved, 3_000_000);
            until_lent(&pool, 0).await;
        }
    }
}

async fn a_page_is_pipe_enough<R: Socket, W: Socket>() {
    for bytes in [0, 1, 4_096, 5_000] {
        let pool = PipePool::with_pipe_size(2, bytes);
        let moved = Line::<R, W>::new()
            .await
            .carry(3_000_000, 1 << 16, options_with(Mode::Splice, &pool))
            .await
            .unwrap();
        check_way(Mode::Splice, moved, 3_000_000);
    }
}

/// Each way of a connection holds its own pipe, or none.
#[tokio::test]
async fn one_pipe_serves_two_directions_that_both_want_it() {
    crate::bytes::in_time(async {
        let pool = pool_of(1);
        let ends = Line::<UnixStream, UnixStream>::new()
            .await
            .relay(options_with(Mode::Splice, &pool));
        let mut ends = ends.flood(30_000_000).await;
        assert!(pool.pipes() <= 1);
        ends.relay.abort();
        assert!(ends.relay.await.unwrap_err().is_cancelled());
        tokio::join!(
            receive(&mut ends.right, 30_000_000),
            receive(&mut ends.left, 30_000_000)
        );
        ends.forward.await.unwrap();
        ends.backward.await.unwrap();
        assert_eq!(pool.lent(), 0);
    })
    .await;
}

#[tokio::test]
async fn clones_of_a_pool_are_the_same_pool() {
    let pool = pool_of(2);
    let holder = stuck::<UnixStream, UnixStream>(&pool.clone()).await;
    assert_eq!((pool.lent(), pool.pipes()), (1, 1));
    drop(holder.left);
    drop(holder.right);
    drop(crate::bytes::in_time(holder.relay).await.unwrap());
    assert_eq!(pool.lent(), 0);
    let mut line = Line::<UnixStream, UnixStream>::new().await;
    line.left.write_all(&bytes(0, 10)).await.unwrap();
    line.left.shutdown().await.unwrap();
    let moved = copy_with(
        &mut line.a,
        &mut line.b,
        None,
        &options_with(Mode::Splice, &pool),
    )
    .await
    .unwrap();
    check_way(Mode::Splice, moved, 10);
    receive_exactly(&mut line.right, 0, 10).await;
}
