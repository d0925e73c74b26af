//! Time that passes with nothing moved. Over sockets only that a timeout comes in the end is asked for; when it
//! comes is asked in virtual time, over streams in memory.

use std::time::Duration;

use blockferry_relay::{Cause, Options, copy_bidirectional, copy_with};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::{
    bytes::{bytes, flood, in_time, receive, receive_exactly},
    line::{Line, MODES, Relayed, on_all_pairings, options},
    sockets::Socket,
};

const SOON: Duration = Duration::from_millis(150);

on_all_pairings!(
    a_silent_connection_ends,
    a_connection_that_is_stuck_ends_and_says_what_was_delivered,
    a_half_that_stays_silent_ends,
    a_half_that_is_stuck_ends,
    a_copy_one_way_ends_when_its_reader_is_silent,
    bytes_that_trickle_keep_a_connection_alive,
);

async fn a_silent_connection_ends<A: Socket, B: Socket>() {
    for mode in MODES {
        let mut options = options(mode);
        options.idle_timeout = Some(SOON);
        let mut ends = Line::<A, B>::new().await.relay(options);
        ends.left.write_all(&bytes(0, 100)).await.unwrap();
        receive_exactly(&mut ends.right, 0, 100).await;
        let error = ends.relay.await.unwrap().unwrap_err();
        assert!(matches!(error.cause, Cause::Idle(SOON)), "{error}");
        assert!(!error.cause.is_reset());
        assert_eq!(error.totals.forward.total(), 100);
        assert_eq!(receive(&mut ends.right, 100).await, 100);
        assert_eq!(receive(&mut ends.left, 0).await, 0);
    }
}

async fn a_connection_that_is_stuck_ends_and_says_what_was_delivered<A: Socket, B: Socket>() {
    for mode in MODES {
        let mut options = options(mode);
        options.idle_timeout = Some(SOON);
        let Relayed {
            mut left,
            mut right,
            relay,
        } = Line::<A, B>::new().await.relay(options);
        let flooding = tokio::spawn(async move { flood(&mut left).await });
        let error = relay.await.unwrap().unwrap_err();
        assert!(matches!(error.cause, Cause::Idle(SOON)), "{error}");
        let delivered = error.totals.forward.total();
        assert!(delivered > 0);
        assert_eq!(receive(&mut right, 0).await, delivered);
        assert!(flooding.await.unwrap() >= delivered);
    }
}

async fn a_half_that_stays_silent_ends<A: Socket, B: Socket>() {
    for mode in MODES {
        let mut options = options(mode);
        options.half_close_timeout = Some(SOON);
        let mut ends = Line::<A, B>::new().await.relay(options.clone());
        ends.left.shutdown().await.unwrap();
        let error = ends.relay.await.unwrap().unwrap_err();
        assert!(matches!(error.cause, Cause::HalfClosed(SOON)), "{error}");
        assert_eq!(receive(&mut ends.right, 0).await, 0);

        let mut ends = Line::<A, B>::new().await.relay(options);
        ends.right.shutdown().await.unwrap();
        let error = ends.relay.await.unwrap().unwrap_err();
        assert!(matches!(error.cause, Cause::HalfClosed(SOON)), "{error}");
        assert_eq!(receive(&mut ends.left, 0).await, 0);
    }
}

async fn a_half_that_is_stuck_ends<A: Socket, B: Socket>() {
    for mode in MODES {
        let mut options = options(mode);
        options.half_close_timeout = Some(SOON);
        let Relayed {
            mut left,
            mut right,
            relay,
        } = Line::<A, B>::new().await.relay(options);
        right.shutdown().await.unwrap();
        assert_eq!(left.read(&mut [0]).await.unwrap(), 0);
        let flooding = tokio::spawn(async move { flood(&mut left).await });
        let error = relay.await.unwrap().unwrap_err();
        assert!(matches!(error.cause, Cause::HalfClosed(SOON)), "{error}");
        assert_eq!(receive(&mut right, 0).await, error.totals.forward.total());
        flooding.await.unwrap();
    }
}

async fn a_copy_one_way_ends_when_its_reader_is_silent<R: Socket, W: Socket>() {
    for mode in MODES {
        let mut options = options(mode);
        options.idle_timeout = Some(SOON);
        let mut line = Line::<R, W>::new().await;
        line.left.write_all(&bytes(0, 100)).await.unwrap();
        let mut limit = 1_000;
        let error = copy_with(&mut line.a, &mut line.b, Some(&mut limit), &options)
            .await
            .unwrap_err();
        assert!(matches!(error.cause, Cause::Idle(SOON)), "{error}");
        assert_eq!((error.moved.total(), error.unwritten), (100, 0));
        assert_eq!(limit, 900);
        receive_exactly(&mut line.right, 0, 100).await;
    }
}

/// For longer than the timeout; one direction alone is enough, and it may be the one that is not stuck.
async fn bytes_that_trickle_keep_a_connection_alive<A: Socket, B: Socket>() {
    const TIMEOUT: Duration = Duration::from_secs(3);
    let trickle = async |mode| {
        let mut options = options(mode);
        options.idle_timeout = Some(TIMEOUT);
        let Relayed {
            left,
            mut right,
            relay,
        } = Line::<A, B>::new().await.relay(options);
        let (mut left_in, mut left_out) = tokio::io::split(left);
        let flooding = tokio::spawn(async move { flood(&mut left_out).await });
        let begin = Instant::now();
        let mut at = 0;
        while begin.elapsed() < TIMEOUT + TIMEOUT / 3 {
            sleep(Duration::from_millis(50)).await;
            right.write_all(&bytes(at, 1)).await.unwrap();
            receive_exactly(&mut left_in, at, at + 1).await;
            at += 1;
        }
        assert!(!relay.is_finished());
        relay.abort();
        assert!(relay.await.unwrap_err().is_cancelled());
        flooding.await.unwrap();
    };
    let [auto, splice, copy] = MODES;
    tokio::join!(trickle(auto), trickle(splice), trickle(copy));
}

/// A relay between streams in memory, whose far ends and cause are given back.
fn relay_memory(options: Options) -> (DuplexStream, DuplexStream, JoinHandle<Cause>) {
    let (left, mut a) = duplex(100);
    let (mut b, right) = duplex(100);
    let relay = tokio::spawn(async move {
        copy_bidirectional(&mut a, &mut b, &options)
            .await
            .unwrap_err()
            .cause
    });
    (left, right, relay)
}

/// Fails unless the time since `moved` is what was asked for, or little more.
fn check_time(moved: Instant, asked: Duration) {
    let passed = moved.elapsed();
    assert!(passed >= asked && passed <= asked * 3 / 2, "{passed:?}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_timeout_counts_from_the_last_byte() {
    const MINUTE: Duration = Duration::from_secs(60);
    for mode in MODES {
        let mut options = options(mode);
        options.idle_timeout = Some(MINUTE);
        let (mut left, mut right, relay) = relay_memory(options);
        for round in 0..20 {
            sleep(Duration::from_secs(59)).await;
            left.write_all(&bytes(round, 1)).await.unwrap();
            receive_exactly(&mut right, round, round + 1).await;
        }
        let moved = Instant::now();
        assert!(matches!(relay.await.unwrap(), Cause::Idle(MINUTE)));
        check_time(moved, MINUTE);
    }
}

#[tokio::test(start_paused = true)]
async fn a_half_has_its_own_timeout_from_its_last_byte() {
    const MINUTE: Duration = Duration::from_secs(60);
    const HOUR: Duration = Duration::from_secs(3_600);
    for mode in MODES {
        let mut options = options(mode);
        options.idle_timeout = Some(HOUR);
        options.half_close_timeout = Some(MINUTE);
        let (mut left, mut right, relay) = relay_memory(options);
        sleep(MINUTE * 30).await;
        left.shutdown().await.unwrap();
        assert_eq!(right.read(&mut [0]).await.unwrap(), 0);
        for round in 0..100 {
            sleep(Duration::from_secs(59)).await;
            right.write_all(&bytes(round, 1)).await.unwrap();
            receive_exactly(&mut left, round, round + 1).await;
        }
        let moved = Instant::now();
        assert!(matches!(relay.await.unwrap(), Cause::HalfClosed(MINUTE)));
        check_time(moved, MINUTE);
    }
}

/// As of a client that waits for pushed messages: it ends its half, and may wait longer than others.
#[tokio::test(start_paused = true)]
async fn a_half_may_live_longer_than_a_whole_connection() {
    const MINUTE: Duration = Duration::from_secs(60);
    const HOUR: Duration = Duration::from_secs(3_600);
    for mode in MODES {
        let mut options = options(mode);
        options.idle_timeout = Some(MINUTE);
        options.half_close_timeout = Some(HOUR);
        let (mut left, mut right, relay) = relay_memory(options);
        left.shutdown().await.unwrap();
        assert_eq!(right.read(&mut [0]).await.unwrap(), 0);
        let moved = Instant::now();
        assert!(matches!(relay.await.unwrap(), Cause::HalfClosed(HOUR)));
        check_time(moved, HOUR);
    }
}

#[tokio::test(start_paused = true)]
async fn a_half_without_its_own_timeout_has_that_of_the_connection() {
    const MINUTE: Duration = Duration::from_secs(60);
    for mode in MODES {
        let mut options = options(mode);
        options.idle_timeout = Some(MINUTE);
        let (mut left, right, relay) = relay_memory(options);
        left.shutdown().await.unwrap();
        let moved = Instant::now();
        let cause = relay.await.unwrap();
        assert!(
            matches!(cause, Cause::Idle(MINUTE) | Cause::HalfClosed(MINUTE)),
            "{cause}"
        );
        check_time(moved, MINUTE);
        drop(right);
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_timeout_a_connection_waits_for_ever() {
    for mode in MODES {
        let (left, mut a) = duplex(100);
        let (mut b, right) = duplex(100);
        let relay =
            tokio::spawn(async move { copy_bidirectional(&mut a, &mut b, &options(mode)).await });
        sleep(Duration::from_secs(1_000_000)).await;
        assert!(!relay.is_finished());
        drop((left, right));
        in_time(relay).await.unwrap().unwrap();
    }
}
