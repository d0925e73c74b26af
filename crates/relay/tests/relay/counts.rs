//! Counts are never lost: not by an error, and not when nobody waits for the end.

use std::{any::TypeId, sync::Arc};

use blockferry_relay::{Cause, Counters, Moved, copy_with};
use rustix::net::Shutdown;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpStream, UnixStream},
};

use crate::{
    bytes::{bytes, flood, in_time, receive, receive_exactly},
    line::{Flooded, Line, MODES, on_all_pairings, options},
    sockets::Socket,
};

on_all_pairings!(
    a_reader_that_is_reset_is_told_with_what_was_delivered,
    a_writer_that_is_reset_is_told_with_what_was_taken,
    counters_hold_what_a_dropped_relay_delivered,
    a_limit_holds_what_a_dropped_copy_took,
    several_copies_count_on_the_same_counters,
);

async fn a_reader_that_is_reset_is_told_with_what_was_delivered<R: Socket, W: Socket>() {
    for mode in MODES {
        let mut line = Line::<R, W>::new().await;
        let counters = Arc::new(Counters::default());
        let mut options = options(mode);
        options.counters = Some(Arc::clone(&counters));
        let (mut a, mut b) = (line.a, line.b);
        let mut limit = u64::MAX;
        let copying = tokio::spawn(async move {
            let result = copy_with(&mut a, &mut b, Some(&mut limit), &options).await;
            (result, u64::MAX - limit)
        });
        line.left.write_all(&bytes(0, 50_000)).await.unwrap();
        receive_exactly(&mut line.right, 0, 50_000).await;
        // What is in the socket when it is closed makes that a reset, for a unix socket, too.
        line.left.vanish();
        let (result, taken) = copying.await.unwrap();
        let moved = match result {
            Ok(moved) => moved,
            Err(error) => {
                assert!(matches!(error.cause, Cause::Read(_)), "{error}");
                assert_eq!(error.unwritten, 0);
                error.moved
            }
        };
        assert_eq!((moved.total(), taken), (50_000, 50_000));
        assert_eq!(counters.totals().forward, moved);
        assert_eq!(counters.totals().backward, Moved::default());
        assert_eq!(receive(&mut line.right, 50_000).await, 50_000);
    }
}

/// A unix socket delivers up to the moment at which it is shut: there the counts can be compared exactly.
#[tokio::test]
async fn a_writer_that_is_shut_is_told_with_what_its_peer_got() {
    for mode in MODES {
        let Flooded {
            mut right,
            flooding,
            copying,
        } = Line::<UnixStream, UnixStream>::new()
            .await
            .flood_copy(options(mode));
        in_time(receive_exactly(&mut right, 0, 1_000_000)).await;
        rustix::net::shutdown(&right, Shutdown::Read).unwrap();
        // Whoever waits for room in such a socket is woken when there is some, and not before.
        let got = in_time(receive(&mut right, 1_000_000)).await;
        let (mut a, error, taken) = in_time(copying).await.unwrap();
        assert!(matches!(error.cause, Cause::Write(_)), "{error}");
        assert!(error.cause.is_reset());
        assert_eq!(taken, error.moved.total() + error.unwritten);
        assert_eq!(got, error.moved.total());
        // Nothing is lost between what was taken and what is still there.
        in_time(receive_exactly(&mut a, taken, taken + 1_000)).await;
        drop(a);
        in_time(flooding).await.unwrap();
    }
}

async fn a_writer_that_is_reset_is_told_with_what_was_taken<R: Socket, W: Socket>() {
    for mode in MODES {
        let Flooded {
            mut right,
            flooding,
            copying,
        } = Line::<R, W>::new().await.flood_copy(options(mode));
        receive_exactly(&mut right, 0, 1_000_000).await;
        right.vanish();
        let (mut a, error, taken) = copying.await.unwrap();
        assert!(matches!(error.cause, Cause::Write(_)), "{error}");
        assert!(error.cause.is_reset());
        assert!(error.moved.total() >= 1_000_000);
        assert_eq!(taken, error.moved.total() + error.unwritten);
        receive_exactly(&mut a, taken, taken + 1_000).await;
        drop(a);
        flooding.await.unwrap();
    }
}

fn is_tcp<S: Socket>() -> bool {
    TypeId::of::<S>() == TypeId::of::<TcpStream>()
}

async fn counters_hold_what_a_dropped_relay_delivered<A: Socket, B: Socket>() {
    for mode in MODES {
        let counters = Arc::new(Counters::default());
        let mut options = options(mode);
        options.counters = Some(Arc::clone(&counters));
        let ends = Line::<A, B>::new().await.relay(options);
        let mut ends = ends.flood(2_000_000).await;
        // Nobody reads any more: both ways are stuck or will be.
        ends.relay.abort();
        assert!(ends.relay.await.unwrap_err().is_cancelled());
        let totals = counters.totals();
        let (forth, back) = tokio::join!(
            receive(&mut ends.right, 2_000_000),
            receive(&mut ends.left, 2_000_000)
        );
        // A TCP socket that is closed with bytes unread is reset, and what it had not sent is lost.
        for (got, moved, over_tcp) in [
            (forth, totals.forward, is_tcp::<B>()),
            (back, totals.backward, is_tcp::<A>()),
        ] {
            if over_tcp {
                assert!(got <= moved.total());
            } else {
                assert_eq!(got, moved.total());
            }
        }
        assert!(ends.forward.await.unwrap() >= forth);
        assert!(ends.backward.await.unwrap() >= back);
    }
}

async fn a_limit_holds_what_a_dropped_copy_took<R: Socket, W: Socket>() {
    for mode in MODES {
        let Line {
            mut left,
            mut a,
            mut b,
            mut right,
        } = Line::<R, W>::new().await;
        let counters = Arc::new(Counters::default());
        let mut options = options(mode);
        options.counters = Some(Arc::clone(&counters));
        let flooding = tokio::spawn(async move { flood(&mut left).await });
        let mut limit = u64::MAX;
        tokio::select! {
            result = copy_with(&mut a, &mut b, Some(&mut limit), &options) => panic!("{result:?}"),
            () = receive_exactly(&mut right, 0, 3_000_000) => (),
        }
        let taken = u64::MAX - limit;
        let moved = counters.totals().forward.total();
        assert!(taken >= moved);
        drop(b);
        assert_eq!(receive(&mut right, 3_000_000).await, moved);
        receive_exactly(&mut a, taken, taken + 1_000).await;
        drop(a);
        flooding.await.unwrap();
    }
}

async fn several_copies_count_on_the_same_counters<R: Socket, W: Socket>() {
    let counters = Arc::new(Counters::default());
    let mut total = Moved::default();
    for mode in MODES {
        let mut options = options(mode);
        options.counters = Some(Arc::clone(&counters));
        let moved = Line::<R, W>::new()
            .await
            .carry(1_000_000, 30_000, options)
            .await
            .unwrap();
        total.spliced += moved.spliced;
        total.copied += moved.copied;
        assert_eq!(counters.totals().forward, total);
    }
    assert_eq!(total.total(), 3_000_000);
}
