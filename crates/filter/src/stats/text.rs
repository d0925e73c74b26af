//! Statistics as a table, and as JSON.

use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use serde_json::{Map, Value, json};

use super::{COMMANDS, CommandStats, ExportStats, least};

/// A table for people, and the histograms below it.
pub(super) fn table(export: &str, stats: &ExportStats) -> String {
    let seconds = stats.began.elapsed().as_secs_f64();
    let mut text = format!("export {export:?}, {seconds:.3} s\n");
    let mut rows = vec![
        [
            "command",
            "requests",
            "failed",
            "bytes",
            "per second",
            "mean",
            "longest",
        ]
        .map(str::to_owned),
    ];
    for (name, stats) in used(stats) {
        let requests = stats.requests.load(Relaxed);
        let bytes = stats.bytes.load(Relaxed);
        let nanoseconds = stats.nanoseconds.load(Relaxed);
        let mean = nanoseconds.checked_div(requests).unwrap_or(0);
        rows.push([
            name.to_owned(),
            requests.to_string(),
            stats.failed.load(Relaxed).to_string(),
            size(bytes),
            size(rate(bytes, seconds)),
            time(mean),
            time(stats.longest.load(Relaxed)),
        ]);
    }
    if rows.len() == 1 {
        return text + "  no requests\n";
    }
    add_rows(&mut text, &rows);
    for (name, stats) in used(stats) {
        let requests = stats.requests.load(Relaxed);
        let from_size = |from| match from {
            0 => "0".to_owned(),
            from => size(from),
        };
        add_histogram(&mut text, name, "sizes", &stats.sizes, requests, from_size);
        let from_time = |from: u64| time(from.saturating_mul(1000));
        add_histogram(&mut text, name, "times", &stats.times, requests, from_time);
    }
    text
}

/// A line of JSON.
pub(super) fn json(export: &str, stats: &ExportStats) -> String {
    let commands: Map<_, _> = used(stats)
        .map(|(name, stats)| {
            let nanoseconds = |it: &AtomicU64| Duration::from_nanos(it.load(Relaxed));
            let facts = json!({
                "requests": stats.requests.load(Relaxed),
                "failed": stats.failed.load(Relaxed),
                "bytes": stats.bytes.load(Relaxed),
                "seconds": nanoseconds(&stats.nanoseconds).as_secs_f64(),
                "longest_seconds": nanoseconds(&stats.longest).as_secs_f64(),
                "sizes": histogram(&stats.sizes),
                "microseconds": histogram(&stats.times),
            });
            (name.to_owned(), facts)
        })
        .collect();
    let line = json!({
        "export": export,
        "seconds": stats.began.elapsed().as_secs_f64(),
        "commands": commands,
    });
    format!("{line}\n")
}

/// The commands that there were.
fn used(stats: &ExportStats) -> impl Iterator<Item = (&'static str, &CommandStats)> {
    let commands = COMMANDS.iter().zip(&stats.commands);
    commands.filter_map(|(row, stats)| Some((row.name, &**stats.get()?)))
}

fn histogram(counts: &[AtomicU64]) -> Vec<Value> {
    let counts = counts.iter().map(|count| count.load(Relaxed)).enumerate();
    counts
        .filter(|(_, count)| *count > 0)
        .map(|(bucket, count)| json!({ "from": least(bucket), "requests": count }))
        .collect()
}

/// Columns with two spaces between them, numbers to the right.
fn add_rows<const N: usize>(text: &mut String, rows: &[[String; N]]) {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    for row in rows {
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            // Writing to a string fails never.
            let _ = match column {
                0 => write!(text, "  {cell:width$}"),
                _ => write!(text, "  {cell:>width$}"),
            };
        }
        text.push('\n');
    }
}

fn add_histogram(
    text: &mut String,
    command: &str,
    what: &str,
    counts: &[AtomicU64],
    all: u64,
    from: impl Fn(u64) -> String,
) {
    let mut rows = Vec::new();
    for (bucket, count) in counts.iter().enumerate() {
        let count = count.load(Relaxed);
        if count == 0 {
            continue;
        }
        let percent = count as f64 * 100.0 / all.max(1) as f64;
        let is_last = bucket + 1 == counts.len();
        let below = match (bucket, is_last) {
            (0, _) => String::new(),
            (_, true) => "and more".to_owned(),
            (bucket, false) => format!("to below {}", from(least(bucket + 1))),
        };
        rows.push([
            from(least(bucket)),
            below,
            count.to_string(),
            format!("{percent:.1} %"),
        ]);
    }
    let _ = writeln!(text, "\n  {command}: {what}");
    add_rows(text, &rows);
}

/// A number of bytes, with at most one digit behind the point.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut unit = "B";
    for larger in UNITS {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    match value.fract() == 0.0 {
        true => format!("{value} {unit}"),
        false => format!("{value:.1} {unit}"),
    }
}

/// A time in the unit that suits it.
fn time(nanoseconds: u64) -> String {
    match nanoseconds {
        ..1_000_000 => format!("{} us", nanoseconds / 1000),
        1_000_000..1_000_000_000 => format!("{:.1} ms", nanoseconds as f64 / 1e6),
        _ => format!("{:.1} s", nanoseconds as f64 / 1e9),
    }
}

fn rate(bytes: u64, seconds: f64) -> u64 {
    match seconds > 0.0 {
        true => (bytes as f64 / seconds) as u64,
        false => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn sizes_and_times_are_in_the_unit_that_suits_them() {
        for (bytes, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (4096, "4 KiB"),
            (1536 << 10, "1.5 MiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(size(bytes), shown);
        }
        for (nanoseconds, shown) in [
            (0, "0 us"),
            (999_999, "999 us"),
            (1_500_000, "1.5 ms"),
            (61_000_000_000, "61.0 s"),
        ] {
            assert_eq!(time(nanoseconds), shown);
        }
    }

    #[test]
    fn a_table_has_a_row_for_each_command_and_its_histograms() {
        let stats = ExportStats {
            began: Instant::now(),
            commands: Default::default(),
        };
        assert!(table("x", &stats).contains("no requests"));
        let reads = stats.commands[0].get_or_init(Default::default);
        reads.count(4096, Duration::from_micros(100), true);
        reads.count(4097, Duration::from_micros(127), true);
        reads.count(u64::MAX, Duration::from_secs(1 << 40), false);
        let text = table("x\n", &stats);
        assert!(text.starts_with("export \"x\\n\", 0."), "{text}");
        let lines: Vec<_> = text.lines().map(str::trim_end).collect();
        let starts = ["  command", "  read  ", "", "  read: sizes", "  4 KiB"];
        for (line, start) in lines[1..].iter().zip(starts) {
            assert!(line.starts_with(start), "{line:?} {start:?}");
        }
        assert!(text.contains("to below 8 KiB  2  66.7 %"), "{text}");
        assert!(text.contains("and more  1  33.3 %"), "{text}");
        assert!(text.contains("  to below 128 us  2  66.7 %"), "{text}");
    }
}
