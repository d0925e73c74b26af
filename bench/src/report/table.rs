//! The report as a table for a terminal.

use std::fmt::Write as _;

use super::{
    Entry, Report, State,
    verdict::{Limits, Verdict, Want},
};
use crate::statistics::Summary;

const HEADINGS: [&str; 10] = [
    "",
    "",
    "ours is x times as fast",
    "p99 us",
    "CPU s",
    "server CPU s",
    "peak MiB",
    "server MiB",
    "calls/256K",
    "MB written",
];

/// The table, with the machine above it and the targets below.
pub(crate) fn table(report: &Report) -> String {
    let mut text = format!("{}: {}\n", report.scenario, report.shows);
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(text, "{}", subtitle(report));
    let mut rows = vec![headings(report)];
    rows.extend(report.contenders.iter().map(row));
    text.push_str(&aligned(&without_empty_columns(rows)));
    for entry in &report.contenders {
        match &entry.state {
            State::Measured(_) => {}
            State::Missing { program } => {
                let _ = writeln!(text, "{}: there is no {program}", entry.name);
            }
            State::Failed { why } => {
                let _ = writeln!(text, "{}: FAILED: {why}", entry.name);
            }
        }
    }
    for verdict in &report.targets {
        let _ = writeln!(text, "{}", target(verdict));
    }
    for limits in &report.bounds {
        let _ = writeln!(text, "{}", bound(limits, report));
    }
    if report.quick {
        text.push_str("a quick run: it shows that the scenario works, and measures nothing\n");
    }
    text
}

/// Where and how it was measured, in one line.
pub(super) fn subtitle(report: &Report) -> String {
    let mut text = report.machine_summary.clone();
    if let Some(size) = &report.size {
        let _ = write!(text, "; {size}");
    }
    let _ = write!(text, "; median of {}", report.rounds);
    text
}

fn headings(report: &Report) -> Vec<String> {
    let mut headings = HEADINGS.map(str::to_owned);
    headings[1] = format!("{} (min..max)", report.measure.unit());
    headings.into()
}

fn row(entry: &Entry) -> Vec<String> {
    let Some(figures) = entry.figures() else {
        let state = match entry.state {
            State::Missing { .. } => "missing",
            _ => "failed",
        };
        return vec![entry.name.clone(), state.into()];
    };
    let spread = |summary: &Summary| {
        let [median, minimum, maximum] = [summary.median, summary.minimum, summary.maximum];
        format!(
            "{} ({}..{})",
            figure(median),
            figure(minimum),
            figure(maximum)
        )
    };
    vec![
        entry.name.clone(),
        spread(figures.rate.as_ref().unwrap_or(&figures.wall_seconds)),
        figures.speed_of_ours.as_ref().map_or("".into(), spread),
        figures
            .latency_microseconds
            .map_or("".into(), |latency| figure(latency.median)),
        figure(figures.cpu_seconds.median),
        figures
            .server_cpu_seconds
            .map_or("".into(), |cpu| figure(cpu.median)),
        mebibytes(figures.peak_memory_bytes),
        match figures.server_memory_bytes {
            0 => "".into(),
            bytes => mebibytes(bytes),
        },
        figures.system_calls_per_256_kib.map_or("".into(), figure),
        figures
            .written_bytes
            .map_or("".into(), |bytes| figure(bytes.median / 1e6)),
    ]
}

fn mebibytes(bytes: u64) -> String {
    format!("{}", bytes.div_ceil(1 << 20))
}

/// Three significant digits, for times from microseconds to hours.
pub(super) fn figure(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value if value >= 0.1 => format!("{value:.2}"),
        value if value >= 0.01 => format!("{value:.3}"),
        value => format!("{value:.4}"),
    }
}

fn target(verdict: &Verdict) -> String {
    let mut parts = Vec::new();
    let several = verdict.rivals.len() > 1;
    let shown = |want: &Want| match (&want.against, several) {
        (Some(rival), true) => format!("{} ({rival})", shown(want.got)),
        _ => shown(want.got),
    };
    if let Some(want) = &verdict.speed {
        let rivals = match &*verdict.rivals {
            [rival] => rival.clone(),
            rivals => format!("the best of {}", rivals.join(", ")),
        };
        let wanted = want.wanted;
        parts.push(format!(
            "at least {wanted} times as fast as {rivals}: {}",
            shown(want)
        ));
    }
    if let Some(want) = &verdict.cpu {
        let whose = match (&*verdict.rivals, verdict.speed.is_some()) {
            (_, true) => "its".to_owned(),
            (rivals, false) => format!("{}'s", rivals.join("'s, ")),
        };
        let wanted = want.wanted;
        parts.push(format!(
            "{whose} CPU time at least {wanted} times ours: {}",
            shown(want)
        ));
    }
    let rivals = verdict.rivals.join("'s, ");
    if let Some(want) = &verdict.server_cpu {
        let wanted = want.wanted;
        parts.push(format!(
            "{rivals}'s CPU time of the servers at least {wanted} times ours: {}",
            shown(want)
        ));
    }
    if let Some(want) = &verdict.latency {
        let wanted = want.wanted;
        parts.push(format!(
            "{rivals}'s latency at least {wanted} times ours: {}",
            shown(want)
        ));
    }
    if let Some(want) = &verdict.written {
        let wanted = want.wanted;
        parts.push(format!(
            "what {rivals} writes at least {wanted} times as large as ours: {}",
            shown(want)
        ));
    }
    if verdict.is_measured() && !verdict.unmeasured.is_empty() {
        parts.push(format!("not measured: {}", verdict.unmeasured.join(", ")));
    }
    let state = state(verdict.is_measured(), verdict.reached);
    format!("target: {}: {}: {state}", verdict.of, parts.join("; "))
}

fn bound(limits: &Limits, report: &Report) -> String {
    let mut parts = Vec::new();
    let memory = [
        ("peak memory", &limits.peak_memory_bytes),
        ("peak memory of the servers", &limits.server_memory_bytes),
    ];
    for (what, limit) in memory {
        let Some(limit) = limit else { continue };
        let [at_most, got] = [Some(limit.at_most), limit.got].map(|bytes| {
            let mib = bytes.map(|bytes| bytes / f64::from(1 << 20));
            mib.map_or("nothing".into(), |mib| format!("{} MiB", mib.ceil()))
        });
        parts.push(format!("{what} at most {at_most}: {got}"));
    }
    if let Some(limit) = &limits.system_calls_per_256_kib {
        let counted_by = match &report.system_calls_counted_by {
            Some(counter) => format!("counted by {counter}"),
            None => "neither perf nor strace can count them here".into(),
        };
        parts.push(format!(
            "system calls per 256 KiB at most {}: {} ({counted_by})",
            limit.at_most,
            shown(limit.got)
        ));
    }
    let state = state(limits.is_measured(), limits.kept);
    format!("bound: {}: {}: {state}", limits.of, parts.join("; "))
}

fn state(measured: bool, reached: bool) -> &'static str {
    match (measured, reached) {
        (false, _) => "NOT MEASURED",
        (true, true) => "reached",
        (true, false) => "MISSED",
    }
}

fn shown(value: Option<f64>) -> String {
    value.map_or("nothing".into(), figure)
}

/// The rows without the columns in which nothing is said below the heading.
fn without_empty_columns(mut rows: Vec<Vec<String>>) -> Vec<Vec<String>> {
    let says_something = |column: usize| {
        let cells = rows.iter().skip(1).filter_map(|row| row.get(column));
        cells.into_iter().any(|cell| !cell.is_empty())
    };
    let kept: Vec<bool> = (0..HEADINGS.len()).map(says_something).collect();
    for row in &mut rows {
        let mut column = kept.iter();
        row.retain(|_| *column.next().expect("no row is longer than the headings"));
    }
    rows
}

/// Columns as wide as their widest cell; names to the left, numbers to the right.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let _ = match column {
                0 => write!(line, "  {cell:<width$}"),
                _ => write!(line, "  {cell:>width$}"),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::example;

    #[test]
    fn the_table_shows_every_contender_and_every_target() {
        let text = table(&example());
        let row = text.lines().find(|line| line.starts_with("  they "));
        let cells: Vec<_> = row.unwrap().split_whitespace().collect();
        let expected = [
            "they",
            "4.00",
            "(3.00..5.00)",
            "2.50",
            "(2.00..3.00)",
            "1.00",
            "1",
        ];
        assert_eq!(cells, expected);
        assert!(text.lines().any(|line| line.starts_with("  we ")));
        assert!(text.contains("others: there is no no-such-program-anywhere"));
        assert!(
            text.contains(
                "as fast as they: 2.50; its CPU time at least 2 times ours: 1.00: MISSED"
            )
        );
        assert!(text.contains("as fast as others: nothing: NOT MEASURED"));
        assert!(
            text.contains("the best of others, they: 2.50 (they); not measured: others: reached")
        );
        assert!(text.contains(
            "bound: we: peak memory at most 2 MiB: 1 MiB; system calls per 256 KiB at most 2: 2.50 \
             (counted by strace -f -c): MISSED"
        ));
    }

    #[test]
    fn figures_have_three_digits() {
        let shown = [1234.4, 12.34, 1.234, 0.1234, 0.01234, 0.00123].map(figure);
        assert_eq!(shown, ["1234", "12.3", "1.23", "0.12", "0.012", "0.0012"]);
    }

    #[test]
    fn columns_that_say_nothing_are_left_out() {
        let text = table(&example());
        assert!(text.contains("calls/256K"));
        assert!(!text.contains("server CPU"));
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [
            vec!["a".into(), "10".into()],
            vec!["bcd".into(), "2".into()],
        ];
        assert_eq!(aligned(&rows), "  a    10\n  bcd   2\n");
    }
}
