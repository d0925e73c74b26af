//! The reports as one table with a row for each rival, and the place in a page where a table of results is.

use std::{collections::BTreeSet, fmt::Write as _};

use anyhow::{Result, ensure};

use super::{Entry, Figures, Report, State, table::figure};
use crate::scenario::Measure;

/// What surrounds the table in a page.
const BEGIN: &str = "<!-- the results: written by `cargo xtask bench --readme` -->\n";
const END: &str = "<!-- the end of the results -->";

/// A row for each rival of each report, and below them what was measured where.
pub(crate) fn markdown(reports: &[&Report]) -> String {
    let mut text = String::from(
        "| what | ours: wall, CPU, peak memory | rival | its wall, CPU, peak memory | x (spread) |\n\
         |---|---|---|---|---|\n",
    );
    for report in reports {
        let ours = report.contenders.iter().find(|entry| entry.ours);
        let Some(ours) = ours else { continue };
        let title = match report.title.as_str() {
            "" => &report.scenario,
            title => title,
        };
        let mut first = [cell(title), state(ours, report.measure)];
        for rival in &report.contenders {
            if rival.name == ours.name {
                continue;
            }
            let [what, figures] = std::mem::take(&mut first);
            let _ = writeln!(
                text,
                "| {what} | {figures} | {} | {} | {} |",
                cell(&rival.name),
                state(rival, report.measure),
                rival.figures().map(ratio).unwrap_or_default()
            );
        }
    }
    text.push_str(&footing(reports));
    text
}

/// `readme` with `table` in place of the one it has.
pub(crate) fn into_readme(readme: &str, table: &str) -> Result<String> {
    let parts = readme.split_once(BEGIN);
    let parts = parts.and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    ensure!(
        parts.is_some(),
        "the page has no place for the table: {}",
        [BEGIN.trim(), END].join(" ")
    );
    let (before, after) = parts.unwrap_or_default();
    Ok(format!("{before}{BEGIN}\n{table}\n{END}{after}"))
}

/// What the table was measured on and with, each thing said once.
pub(super) fn footing(reports: &[&Report]) -> String {
    let of = |what: &dyn Fn(&Report) -> Vec<String>| {
        let all: BTreeSet<String> = reports.iter().flat_map(|report| what(report)).collect();
        all.into_iter().collect::<Vec<_>>().join("; ")
    };
    let machines = of(&|report| vec![report.machine_summary.clone()]);
    let versions = of(&|report| {
        let versions = report.versions.iter();
        let versions = versions.map(|(program, version)| match version.contains(&**program) {
            true => version.clone(),
            false => format!("{program}: {version}"),
        });
        versions.map(|version| cell(&version)).collect()
    });
    let rounds: BTreeSet<usize> = reports.iter().map(|report| report.rounds).collect();
    let rounds: Vec<String> = rounds.iter().map(ToString::to_string).collect();
    format!(
        "\nMedians of {} interleaved rounds; {machines}. {versions}.\n",
        rounds.join(" or ")
    )
}

pub(super) fn state(entry: &Entry, measure: Measure) -> String {
    match &entry.state {
        State::Measured(figures) => measured(figures, measure),
        State::Missing { program } => format!("missing: {}", cell(program)),
        State::Failed { .. } => "failed".into(),
    }
}

/// What is compared, and nothing else: the rate, or the time. Of what was not measured, nothing.
pub(super) fn pace(entry: &Entry, measure: Measure) -> String {
    let figures = entry.figures();
    figures.map_or_else(String::new, |figures| match &figures.rate {
        Some(rate) => format!("{} {}", figure(rate.median), measure.unit()),
        None => time(figures.wall_seconds.median),
    })
}

fn measured(figures: &Figures, measure: Measure) -> String {
    if let Some(rate) = &figures.rate {
        return format!("{} {}", figure(rate.median), measure.unit());
    }
    format!(
        "{}, {}, {} MiB",
        time(figures.wall_seconds.median),
        time(figures.cpu_seconds.median),
        figures.peak_memory_bytes.div_ceil(1 << 20)
    )
}

fn time(seconds: f64) -> String {
    if seconds < 0.1 {
        format!("{:.1} ms", seconds * 1000.0)
    } else {
        format!("{} s", figure(seconds))
    }
}

/// The median and the spread; bold where we are slower.
pub(super) fn ratio(figures: &Figures) -> String {
    let Some(speed) = &figures.speed_of_ours else {
        return String::new();
    };
    let median = figure(speed.median);
    let median = if speed.median < 1.0 {
        format!("**{median}**")
    } else {
        median
    };
    let (least, most) = (figure(speed.minimum), figure(speed.maximum));
    format!("{median} ({least}..{most})")
}

/// Text that does not end the cell it is in.
pub(super) fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::example;

    #[test]
    fn each_rival_has_a_row_and_the_first_one_has_ours_too() {
        let mut report = example();
        report.contenders[1].name = "a|b".into();
        let text = markdown(&[&report]);
        let rows: Vec<_> = text.lines().skip(2).take(2).collect();
        let expected = [
            "| an example | 2.00 s, 1.00 s, 1 MiB | a\\|b | 4.00 s, 1.00 s, 1 MiB | 2.50 (2.00..3.00) |",
            "|  |  | others | missing: no-such-program-anywhere |  |",
        ];
        assert_eq!(rows, expected);
        assert!(text.contains("Medians of 3 interleaved rounds"));
        assert!(text.contains("no-such-program-anywhere: missing"));
    }

    #[test]
    fn where_we_are_slower_is_bold() {
        let mut report = example();
        let State::Measured(figures) = &mut report.contenders[1].state else {
            panic!("it was measured");
        };
        figures.speed_of_ours.as_mut().unwrap().median = 0.5;
        assert!(markdown(&[&report]).contains("**0.50** (2.00..3.00)"));
    }

    #[test]
    fn the_table_of_the_readme_is_replaced_and_nothing_else() {
        let readme = format!("before\n{BEGIN}old\n{END}\nafter\n");
        let new = into_readme(&readme, "new\n").unwrap();
        assert_eq!(new, format!("before\n{BEGIN}\nnew\n\n{END}\nafter\n"));
        assert_eq!(into_readme(&new, "new\n").unwrap(), new);
        assert!(into_readme("before", "new").is_err());
    }
}
