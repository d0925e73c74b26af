//! Traffic through a relay: `relay-traffic KIND FROM TO` listens at TO, the relay's target, and connects to FROM, where
//! the relay listens. Threads that block, and buffers that are prepared: what is measured is to be the relay.

#![forbid(unsafe_code)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what was measured is its output, and errors go to stderr"
)]

mod bulk;
mod idle;
mod link;
mod ping_pong;

use std::{process::ExitCode, time::Duration};

use anyhow::Result;
use blockferry_bench::Address;
use blockferry_block::parse_size;
use clap::{Args, Parser, Subcommand};

/// Sends traffic through a relay and prints how fast it went.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Args)]
struct Ends {
    /// Where the relay listens.
    from: Address,
    /// Where the relay connects to: this program listens there.
    to: Address,
}

#[derive(Subcommand)]
enum Kind {
    /// Sends as much as goes one way, and prints GB/s (10^9 bytes) from the first byte to the last.
    Bulk {
        #[command(flatten)]
        ends: Ends,
        /// How many bytes all streams send together.
        #[arg(long, value_parser = size)]
        bytes: u64,
        /// The bytes of each write, a multiple of 8.
        #[arg(long, default_value = "512K", value_parser = size)]
        write: u64,
        /// How many connections do it at a time.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
        streams: u16,
    },
    /// Sends messages, each when the one before was answered. Prints round trips a second and the 99th percentile of
    /// their times in microseconds.
    PingPong {
        #[command(flatten)]
        ends: Ends,
        /// How many round trips each stream makes.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
        /// The bytes of each message, at least 8.
        #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(8..))]
        size: u32,
        /// How many connections do it at a time.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
        streams: u16,
    },
    /// Opens connections, sends a few bytes each way through each of them, holds them all and prints how many.
    Idle {
        #[command(flatten)]
        ends: Ends,
        #[arg(long, default_value_t = 10_000)]
        connections: u32,
        /// For how many seconds they are held.
        #[arg(long, default_value_t = 2)]
        hold: u64,
    },
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|error| error.to_string())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("relay-traffic: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    match Arguments::parse().kind {
        Kind::Bulk {
            ends: Ends { from, to },
            bytes,
            write,
            streams,
        } => {
            let rate = bulk::run(&from, &to, bytes, write, streams)?;
            println!("{rate:.3}");
        }
        Kind::PingPong {
            ends: Ends { from, to },
            rounds,
            size,
            streams,
        } => {
            let (rate, latency) = ping_pong::run(&from, &to, rounds, size as usize, streams)?;
            println!("{rate:.0} {latency:.1}");
        }
        Kind::Idle {
            ends: Ends { from, to },
            connections,
            hold,
        } => {
            idle::run(&from, &to, connections, Duration::from_secs(hold))?;
            println!("{connections}");
        }
    }
    Ok(())
}
