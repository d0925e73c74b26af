//! The report of nbdkit-stats-filter(1): programs search it for the lines of the commands.
//!
//! Unlike in theirs, what is summed up as `other sizes` has the bytes of those requests alone, and no size is
//! left out.

use std::{
    fmt::Write,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use blockferry_block::{ByteRange, Operation};

use super::{COMMANDS, SIZES, bucket};

/// Offsets are told apart by the powers of two that they are multiples of; the last is that of 0.
const ALIGNMENTS: usize = 65;

/// The commands in the order of the report, and what it calls them.
const ROWS: [(Operation, &str); 7] = [
    (Operation::Read, "read"),
    (Operation::Write, "write"),
    (Operation::Trim, "trim"),
    (Operation::Zero, "zero"),
    (Operation::Extents, "extents"),
    (Operation::Cache, "cache"),
    (Operation::Flush, "flush"),
];

/// What was counted for all exports together, of requests that did not fail.
pub(super) struct Totals {
    began: Instant,
    commands: [OnceLock<Box<Requests>>; COMMANDS.len()],
}

/// Of a command.
struct Requests {
    nanoseconds: AtomicU64,
    sizes: [OfSize; SIZES],
}

/// Of requests whose sizes are between the same powers of two.
struct OfSize {
    bytes: AtomicU64,
    alignments: [AtomicU64; ALIGNMENTS],
}

impl Default for Requests {
    fn default() -> Self {
        let none = |_| OfSize {
            bytes: AtomicU64::new(0),
            alignments: std::array::from_fn(|_| AtomicU64::new(0)),
        };
        Self {
            nanoseconds: AtomicU64::new(0),
            sizes: std::array::from_fn(none),
        }
    }
}

impl OfSize {
    fn requests(&self) -> u64 {
        self.alignments
            .iter()
            .map(|count| count.load(Relaxed))
            .sum()
    }
}

impl Requests {
    fn requests(&self) -> u64 {
        self.sizes.iter().map(OfSize::requests).sum()
    }

    fn bytes(&self) -> u64 {
        self.sizes.iter().map(|size| size.bytes.load(Relaxed)).sum()
    }
}

impl Totals {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            commands: Default::default(),
        }
    }

    /// Counts a request of the command at `place` of [`COMMANDS`].
    pub(super) fn count(&self, place: usize, range: ByteRange, time: Duration) {
        let requests = self.commands[place].get_or_init(Default::default);
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        requests.nanoseconds.fetch_add(nanoseconds, Relaxed);
        let size = &requests.sizes[bucket(range.len(), SIZES)];
        size.bytes.fetch_add(range.len(), Relaxed);
        let alignment = range.start().trailing_zeros() as usize;
        size.alignments[alignment].fetch_add(1, Relaxed);
    }

    /// The report.
    pub(super) fn text(&self, threshold: u32) -> String {
        let elapsed = self.began.elapsed();
        let rows = ROWS.iter().filter_map(|(operation, name)| {
            let place = super::place(*operation)?;
            let requests = &**self.commands[place].get()?;
            Some((*operation, *name, requests))
        });
        let rows: Vec<_> = rows.collect();
        let count: u64 = rows
            .iter()
            .map(|(_, _, requests)| requests.requests())
            .sum();
        // What is only asked about, or fetched in advance, is not moved.
        let moved = rows
            .iter()
            .filter(|(operation, ..)| !matches!(operation, Operation::Extents | Operation::Cache));
        let bytes: u64 = moved.map(|(_, _, requests)| requests.bytes()).sum();
        let mut text = format!(
            "total: {count} ops, {:.6} s, {}, {}/s\n",
            elapsed.as_secs_f64(),
            size(bytes),
            rate(bytes, elapsed),
        );
        for (operation, name, requests) in rows {
            let bytes = requests.bytes();
            let time = Duration::from_nanos(requests.nanoseconds.load(Relaxed));
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "{name}: {} ops, {:.6} s, {}, {}/s op, {}/s total",
                requests.requests(),
                time.as_secs_f64(),
                size(bytes),
                rate(bytes, time),
                rate(bytes, elapsed),
            );
            if operation != Operation::Flush {
                add_breakdown(&mut text, requests, threshold);
            }
        }
        text
    }
}

/// The sizes of a command's requests, the most frequent ones first, and how those of each size are aligned.
fn add_breakdown(text: &mut String, requests: &Requests, threshold: u32) {
    let all = requests.requests();
    let mut sizes: Vec<_> = requests
        .sizes
        .iter()
        .enumerate()
        .map(|(bucket, of_size)| (bucket.saturating_sub(1), of_size.requests(), of_size))
        .filter(|(_, count, _)| *count > 0)
        .collect();
    sizes.sort_by_key(|(_, count, _)| std::cmp::Reverse(*count));
    text.push_str("  Request size and alignment breakdown:\n");
    let (mut other, mut other_bytes) = (0, 0);
    for (bits, count, of_size) in sizes {
        let bytes = of_size.bytes.load(Relaxed);
        if percent(count, all) < f64::from(threshold) {
            other += count;
            other_bytes += bytes;
            continue;
        }
        let _ = writeln!(
            text,
            "    {bits:2} bits: {:4.1}% ({count} reqs, {} total)",
            percent(count, all),
            size(bytes),
        );
        add_alignments(text, of_size, count, threshold);
    }
    if other > 0 {
        let _ = writeln!(
            text,
            "    other sizes: {:4.1}% ({other} reqs, {} total)",
            percent(other, all),
            size(other_bytes),
        );
    }
    text.push('\n');
}

/// How many of `all` requests are aligned to each power of two, or to a larger one.
fn add_alignments(text: &mut String, of_size: &OfSize, all: u64, threshold: u32) {
    let counts = of_size.alignments.iter().map(|count| count.load(Relaxed));
    let mut counts = counts
        .enumerate()
        .filter(|(_, count)| *count > 0)
        .peekable();
    let mut left = all;
    while let Some((bits, count)) = counts.next() {
        let percent = percent(left, all);
        if percent < f64::from(threshold) && counts.peek().is_some() {
            let _ = writeln!(
                text,
                "         {bits:2}+ bit-aligned: {percent:4.1}% ({left})"
            );
            return;
        }
        // 0 is a multiple of anything.
        if bits < ALIGNMENTS - 1 {
            let _ = writeln!(
                text,
                "         {bits:2} bit aligned: {percent:5.1}% ({left})"
            );
        }
        left = left.saturating_sub(count);
    }
}

fn percent(part: u64, all: u64) -> f64 {
    part as f64 * 100.0 / all.max(1) as f64
}

/// A number of bytes, with two digits behind the point.
fn size(bytes: u64) -> String {
    let value = bytes as f64;
    match bytes {
        ..0x400 => format!("{bytes} bytes"),
        0x400..0x10_0000 => format!("{:.2} KiB", value / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.2} MiB", value / 1_048_576.0),
        _ => format!("{:.2} GiB", value / 1_073_741_824.0),
    }
}

/// Bytes a second, where any time has passed.
fn rate(bytes: u64, time: Duration) -> String {
    let microseconds = time.as_micros();
    let rate = (u128::from(bytes) * 1_000_000).checked_div(microseconds);
    rate.map_or_else(
        || "(n/a)".to_owned(),
        |rate| size(u64::try_from(rate).unwrap_or(u64::MAX)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(totals: &Totals, operation: Operation, start: u64, length: u64) {
        let place = super::super::place(operation).expect("a command");
        let range = ByteRange::new(start, length).expect("a range");
        totals.count(place, range, Duration::ZERO);
    }

    /// The report without the line of all, and without times and rates.
    fn lines(totals: &Totals) -> Vec<String> {
        let text = totals.text(5);
        let lines = text.lines().skip(1);
        lines
            .map(|line| line.split(" s, ").next().unwrap_or(line).to_owned())
            .collect()
    }

    #[test]
    fn the_report_tells_sizes_and_alignments_as_nbdkit_does() {
        let totals = Totals::new();
        for number in 0..100 {
            count(&totals, Operation::Read, 4096 * number, 4096);
        }
        for (start, length) in [(0, 5), (100, 200), (7, 3000)] {
            count(&totals, Operation::Read, start, length);
        }
        count(&totals, Operation::Flush, 0, 0);
        count(&totals, Operation::Flush, 0, 0);
        assert_eq!(
            lines(&totals),
            [
                "read: 103 ops, 0.000000",
                "  Request size and alignment breakdown:",
                "    12 bits: 97.1% (100 reqs, 400.00 KiB total)",
                "         12 bit aligned: 100.0% (100)",
                "         13 bit aligned:  50.0% (50)",
                "         14 bit aligned:  25.0% (25)",
                "         15 bit aligned:  13.0% (13)",
                "         16 bit aligned:   7.0% (7)",
                "         17+ bit-aligned:  4.0% (4)",
                "    other sizes:  2.9% (3 reqs, 3.13 KiB total)",
                "",
                "flush: 2 ops, 0.000000",
            ]
        );
    }

    #[test]
    fn a_report_of_nothing_is_one_line() {
        let text = Totals::new().text(5);
        assert!(text.starts_with("total: 0 ops, 0."), "{text}");
        assert!(text.contains(" s, 0 bytes, "), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }

    #[test]
    fn questions_are_not_among_the_bytes_of_all_and_no_size_is_too_odd() {
        let totals = Totals::new();
        count(&totals, Operation::Extents, 0, 1 << 40);
        count(&totals, Operation::Cache, 1, 1 << 62);
        count(&totals, Operation::Write, u64::MAX >> 1, 0);
        count(&totals, Operation::Trim, 1 << 62, 1 << 32);
        let text = totals.text(5);
        assert!(text.starts_with("total: 4 ops, "), "{text}");
        assert!(text.contains(" s, 4.00 GiB, "), "{text}");
        for line in [
            "    32 bits: 100.0% (1 reqs, 4.00 GiB total)\n         62 bit aligned: 100.0% (1)\n",
            "     0 bits: 100.0% (1 reqs, 0 bytes total)\n          0 bit aligned: 100.0% (1)\n",
            "1024.00 GiB, (n/a)/s op, ",
        ] {
            assert!(text.contains(line), "{line} {text}");
        }
    }
}
