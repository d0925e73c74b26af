//! One message there and back at a time: what a relay adds to a round trip.

use std::{
    io::{Read, Write},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use blockferry_bench::{Address, Stream};

use crate::link::Links;

/// Returns round trips a second of all streams together, and the 99th percentile of their times in microseconds.
pub(crate) fn run(
    from: &Address,
    to: &Address,
    rounds: u32,
    size: usize,
    streams: u16,
) -> Result<(f64, f64)> {
    let mut links = Links::new(from, to)?;
    let mut opened = Vec::new();
    for _ in 0..streams {
        opened.push(links.open()?);
    }

    let (sender, results) = mpsc::channel();
    let started = Instant::now();
    for link in opened {
        let sender = sender.clone();
        // It ends with the connection, and if it ends earlier the client sees that.
        thread::spawn(move || echo(link.target, size));
        thread::spawn(move || {
            // Only a program that has failed listens no more.
            let _ = sender.send(ask(link.client, rounds, size));
        });
    }
    drop(sender);
    let mut times = Vec::new();
    for result in results {
        times.extend(result?);
    }
    let elapsed = started.elapsed();
    times.sort_unstable();
    let slow = times[(times.len() * 99).div_ceil(100) - 1];
    #[allow(clippy::cast_precision_loss, reason = "a rate needs no more digits")]
    let count = times.len() as f64;
    Ok((count / elapsed.as_secs_f64(), slow.as_secs_f64() * 1e6))
}

fn echo(mut stream: Stream, size: usize) -> Result<()> {
    let mut message = vec![0; size];
    loop {
        stream.read_exact(&mut message)?;
        stream.write_all(&message)?;
    }
}

/// Sends messages of `size` bytes, at least 8, and returns how long each answer took.
fn ask(mut stream: Stream, rounds: u32, size: usize) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(rounds as usize);
    let mut message = vec![0; size];
    let mut answer = vec![0; size];
    for round in 0..rounds {
        message[..4].copy_from_slice(&round.to_le_bytes());
        let started = Instant::now();
        stream.write_all(&message).context("asking")?;
        stream.read_exact(&mut answer).context("waiting")?;
        times.push(started.elapsed());
        ensure!(
            answer == message,
            "the answer is that to another message than {round}"
        );
    }
    Ok(times)
}
