//! Rates: every byte, and no sooner than allowed. How long it took is asked in virtual time, over streams in memory.

use std::time::Duration;

use blockferry_relay::{Options, Rate, copy_bidirectional, copy_with};
use tokio::{
    io::{AsyncWriteExt, DuplexStream, duplex},
    task::JoinHandle,
    time::Instant,
};

use crate::{
    bytes::{in_time, receive, receive_exactly, send},
    line::{Line, MODES, on_all_pairings, options},
    sockets::Socket,
};

const RATE: u64 = 1_000_000;

on_all_pairings!(a_rate_loses_and_doubles_nothing);

async fn a_rate_loses_and_doubles_nothing<R: Socket, W: Socket>() {
    for mode in MODES {
        let mut options = options(mode);
        options.rate = Some(Rate::new(20_000_000));
        let moved = Line::<R, W>::new()
            .await
            .carry(6_000_001, 100_000, options)
            .await
            .unwrap();
        crate::line::check_way(mode, moved, 6_000_001);
    }
}

/// Sends and receives that many bytes through a relay in memory.
fn carry(options: Options, total: u64) -> JoinHandle<()> {
    let (mut left, mut a) = duplex(10_000);
    let (mut b, mut right) = duplex(10_000);
    tokio::spawn(async move {
        let copying = async {
            let moved = copy_with(&mut a, &mut b, None, &options).await.unwrap();
            b.shutdown().await.unwrap();
            moved
        };
        let sending = async {
            send(&mut left, 0, total, 777).await;
            left.shutdown().await.unwrap();
        };
        let (moved, (), end) = tokio::join!(copying, sending, receive(&mut right, 0));
        assert_eq!((moved.total(), end), (total, total));
    })
}

/// Fails unless about so many seconds have passed.
fn check_seconds(begin: Instant, seconds: u64) {
    let passed = begin.elapsed();
    let asked = Duration::from_secs(seconds);
    assert!(
        passed >= asked * 8 / 10 && passed <= asked * 12 / 10,
        "{passed:?} instead of {asked:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn bytes_take_as_long_as_their_rate_says() {
    for (rate, seconds) in [(RATE, 20), (1_000, 50), (7, 100)] {
        let mut options = Options::new();
        options.rate = Some(Rate::new(rate));
        let begin = Instant::now();
        carry(options, rate * seconds).await.unwrap();
        check_seconds(begin, seconds);
    }
}

#[tokio::test(start_paused = true)]
async fn those_who_share_a_rate_share_its_bytes() {
    let rate = Rate::new(RATE);
    let mut options = Options::new();
    options.rate = Some(rate.clone());
    assert_eq!(rate.bytes_per_second(), RATE);
    let begin = Instant::now();
    let all: Vec<_> = (0..5).map(|_| carry(options.clone(), 4 * RATE)).collect();
    for one in all {
        one.await.unwrap();
    }
    check_seconds(begin, 20);
}

/// Time in which nothing was sent is not saved up for later, or a limit would be none after a pause.
#[tokio::test(start_paused = true)]
async fn an_idle_hour_is_no_credit() {
    let mut options = Options::new();
    options.rate = Some(Rate::new(RATE));
    carry(options.clone(), RATE).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    let begin = Instant::now();
    carry(options, 20 * RATE).await.unwrap();
    check_seconds(begin, 20);
}

/// Sends and receives that many bytes through an end of a relay.
async fn pass(
    mut from: DuplexStream,
    mut to: DuplexStream,
    forth: u64,
    back: u64,
) -> [Duration; 2] {
    let begin = Instant::now();
    let (mut from_in, mut from_out) = tokio::io::split(&mut from);
    let (mut to_in, mut to_out) = tokio::io::split(&mut to);
    let forward = async {
        tokio::join!(
            send(&mut from_out, 0, forth, 5_000),
            receive_exactly(&mut to_in, 0, forth)
        );
        begin.elapsed()
    };
    let backward = async {
        tokio::join!(
            send(&mut to_out, 0, back, 5_000),
            receive_exactly(&mut from_in, 0, back)
        );
        begin.elapsed()
    };
    let (forward, backward) = tokio::join!(forward, backward);
    [forward, backward]
}

#[tokio::test(start_paused = true)]
async fn each_direction_has_its_own_rate() {
    let mut options = Options::new();
    options.rate = Some(Rate::new(RATE));
    options.rate_back = Some(Rate::new(RATE / 10));
    let (left, mut a) = duplex(10_000);
    let (mut b, right) = duplex(10_000);
    let relay = tokio::spawn(async move { copy_bidirectional(&mut a, &mut b, &options).await });
    let [forward, backward] = pass(left, right, 10 * RATE, 4 * RATE).await;
    assert!(forward >= Duration::from_secs(8) && forward <= Duration::from_secs(12));
    assert!(backward >= Duration::from_secs(32) && backward <= Duration::from_secs(48));
    let totals = in_time(relay).await.unwrap().unwrap();
    assert_eq!(totals.forward.total(), 10 * RATE);
    assert_eq!(totals.backward.total(), 4 * RATE);
}

/// Waiting for one's turn is not being idle.
#[tokio::test(start_paused = true)]
async fn a_slow_rate_is_no_silence() {
    let mut options = Options::new();
    options.rate = Some(Rate::new(100));
    options.idle_timeout = Some(Duration::from_secs(10));
    carry(options, 60_000).await.unwrap();
}
