//! How fast zeroes are found: prints GB/s (10^9 bytes) of one way to scan one buffer.
//!
//! The buffer is all zeroes, the case in which every byte has to be looked at. A small buffer stays in
//! the processor's cache, as one that was just received does; a large one does not.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "the rate is its output")]

use std::{hint::black_box, time::Instant};

use blockferry_block::{is_zero, parse_size};
use clap::{Parser, ValueEnum};

/// At least this many bytes are scanned, so that a small buffer is measured for long enough.
const WORK: usize = 4 << 30;

/// Prints the GB/s at which a buffer of zeroes is scanned.
#[derive(Parser)]
struct Arguments {
    /// The way to scan it.
    scan: Scan,
    /// The size of the buffer.
    #[arg(value_parser = size)]
    size: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Scan {
    /// What the project uses.
    IsZero,
    /// One byte after the other, as it is first written by everyone.
    Bytewise,
    /// All bytes or-ed together, without a way out at the first that is not zero: a loop that the
    /// compiler can make wide by itself.
    Folded,
}

fn size(text: &str) -> Result<usize, String> {
    let bytes = parse_size(text).map_err(|error| error.to_string())?;
    match usize::try_from(bytes) {
        Ok(0) => Err("there is nothing to scan".into()),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(error.to_string()),
    }
}

impl Scan {
    fn finds_zeroes(self, buffer: &[u8]) -> bool {
        match self {
            Self::IsZero => is_zero(buffer),
            Self::Bytewise => buffer.iter().all(|byte| *byte == 0),
            Self::Folded => buffer.iter().fold(0, |all, byte| all | byte) == 0,
        }
    }
}

fn main() {
    let Arguments { scan, size } = Arguments::parse();
    // Written to, so that each page is there and is not the kernel's one page of zeroes.
    let mut buffer = vec![1; size];
    buffer.fill(black_box(0));
    assert!(scan.finds_zeroes(black_box(&buffer)), "all bytes are zero");

    let passes = WORK.div_ceil(size);
    let started = Instant::now();
    for _ in 0..passes {
        black_box(scan.finds_zeroes(black_box(&buffer)));
    }
    let seconds = started.elapsed().as_secs_f64();
    #[allow(clippy::cast_precision_loss, reason = "a rate needs no more digits")]
    let bytes = (passes * size) as f64;
    println!("{:.3}", bytes / seconds / 1e9);
}
