//! All scenarios at a glance: how many times as fast as the best rival we are in each, as a chart and as a table.
//!
//! The best rival is the fastest program of others that did the work. Ways of ours that a scenario compares with each other are in
//! its own table only.

use std::fmt::Write as _;

use super::{
    Entry, Figures, Report,
    markdown::{cell, pace, ratio, state},
    svg::{FAINT, OURS, RIVAL, TEXT, escaped, text},
    table::figure,
};
use crate::{
    scenario::{Measure, Scenario},
    statistics::Summary,
};

const WIDTH: f64 = 900.0;
/// Where one time as fast is, and how far a factor of ten is from it.
const EVEN: f64 = 400.0;
const TENFOLD: f64 = 170.0;
/// The slowest that is drawn, and the fastest.
const LEAST: f64 = 0.4;
const MOST: f64 = 300.0;
const ROW: f64 = 22.0;
const BAR: f64 = 12.0;
const TOP: f64 = 92.0;
/// The lines that ratios are read off at.
const TICKS: [f64; 7] = [0.5, 1.0, 2.0, 5.0, 10.0, 50.0, 200.0];

/// What each scenario comes to, the greatest gain first.
pub(crate) struct Overview<'a>(Vec<Row<'a>>);

struct Row<'a> {
    name: &'a str,
    report: &'a Report,
    ours: &'a Entry,
    rival: &'a Entry,
    /// How many times as fast as the rival we are.
    speed: Summary,
}

impl<'a> Overview<'a> {
    /// Of those that have a name for it and were measured with a rival.
    pub(crate) fn new(results: &'a [(Scenario, Report)]) -> Self {
        let rows = results
            .iter()
            .filter_map(|(scenario, report)| Row::new(scenario, report));
        let mut rows: Vec<Row<'_>> = rows.collect();
        rows.sort_by(|one, other| other.speed.median.total_cmp(&one.speed.median));
        Self(rows)
    }

    /// A row for each scenario, in Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut table = String::from(
            "| what | ours: wall, CPU, peak memory | the best rival | its wall, CPU, peak memory | x (spread) | CPU |\n\
             |---|---|---|---|---|---|\n",
        );
        for row in &self.0 {
            let measure = row.report.measure;
            let title = match row.report.title.as_str() {
                "" => &row.report.scenario,
                title => title,
            };
            let rival = row.rival.figures();
            let _ = writeln!(
                table,
                "| {} | {} | {} | {} | {} | {} |",
                cell(title),
                state(row.ours, measure),
                cell(&row.rival.name),
                state(row.rival, measure),
                rival.map(ratio).unwrap_or_default(),
                row.cpu().map(figure).unwrap_or_default(),
            );
        }
        table
    }

    /// The same in brief: with the scenario's name, and one figure for each side.
    pub(crate) fn brief(&self) -> String {
        let mut table = String::from(
            "| what | ours | the best rival | x (spread) | scenario |\n|---|---|---|---|---|\n",
        );
        for row in &self.0 {
            let measure = row.report.measure;
            let _ = writeln!(
                table,
                "| {} | {} | {} {} | {} | `{}` |",
                cell(row.name),
                pace(row.ours, measure),
                cell(&row.rival.name),
                pace(row.rival, measure),
                row.rival.figures().map(ratio).unwrap_or_default(),
                row.report.scenario,
            );
        }
        table
    }

    /// A bar for each scenario, to the right where we are faster, to the left where we are slower.
    pub(crate) fn svg(&self) -> String {
        let mut body = String::new();
        let bottom = TOP + self.0.len() as f64 * ROW;
        for tick in TICKS {
            let x = place(tick);
            let _ = writeln!(
                body,
                "<path d=\"M{x:.1} {:.1}V{bottom:.1}\" stroke=\"{}\"/>",
                TOP - 6.0,
                if tick == 1.0 { FAINT } else { "#e4e4e4" }
            );
            text(
                &mut body,
                x,
                TOP - 12.0,
                "middle",
                FAINT,
                11,
                &format!("{tick}x"),
            );
        }
        for (index, row) in self.0.iter().enumerate() {
            row.draw(&mut body, TOP + (index as f64 + 0.5) * ROW);
        }
        let title = "How many times as fast as the best rival";
        let machines = self.0.first().map(|row| &*row.report.machine_summary);
        let mut head = String::new();
        text(&mut head, 20.0, 30.0, "start", TEXT, 17, title);
        let about = format!(
            "medians and spread of interleaved rounds, logarithmic; {}",
            machines.unwrap_or_default()
        );
        text(&mut head, 20.0, 52.0, "start", FAINT, 11, &about);
        let height = bottom + 16.0;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
             font-family=\"sans-serif\" role=\"img\">\n\
             <title>{}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
             {head}{body}</svg>\n",
            escaped(title)
        )
    }
}

impl<'a> Row<'a> {
    fn new(scenario: &'a Scenario, report: &'a Report) -> Option<Self> {
        let name = scenario.overview.as_deref()?;
        let ours = report.contenders.iter().find(|entry| entry.ours)?;
        let is_rival = |entry: &&Entry| {
            let mut contenders = scenario.contenders.iter();
            contenders.any(|one| one.name == entry.name && scenario.is_foreign(one))
        };
        let speed = |entry: &Entry| entry.figures().and_then(|figures| figures.speed_of_ours);
        let rivals = report.contenders.iter().filter(is_rival);
        let measured = rivals.filter_map(|entry| Some((entry, speed(entry)?)));
        let (rival, speed) =
            measured.min_by(|(_, one), (_, other)| one.median.total_cmp(&other.median))?;
        Some(Self {
            name,
            report,
            ours,
            rival,
            speed,
        })
    }

    /// How many times less processor time, the servers' counted in, the same work took us.
    fn cpu(&self) -> Option<f64> {
        // As many requests as possible in a given time are not the same work.
        if self.report.measure == Measure::Iops {
            return None;
        }
        let all = |figures: &Figures| {
            let servers = figures
                .server_cpu_seconds
                .map_or(0.0, |summary| summary.median);
            figures.cpu_seconds.median + servers
        };
        let ratio = all(self.rival.figures()?) / all(self.ours.figures()?);
        ratio.is_finite().then_some(ratio)
    }

    fn draw(&self, body: &mut String, middle: f64) {
        let baseline = middle + 4.0;
        text(body, 250.0, baseline, "end", TEXT, 12, self.name);
        let median = place(self.speed.median);
        let (left, right) = (median.min(EVEN), median.max(EVEN));
        let colour = if self.speed.median < 1.0 {
            "#d55e00"
        } else {
            OURS
        };
        let (top, width) = (middle - BAR / 2.0, right - left);
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(
            body,
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>"
        );
        let (from, to) = (place(self.speed.minimum), place(self.speed.maximum));
        let _ = writeln!(
            body,
            "<path d=\"M{from:.1} {middle:.1}H{to:.1}\" stroke=\"{RIVAL}\" stroke-width=\"2\"/>"
        );
        let said = format!("{} ({})", figure(self.speed.median), self.rival.name);
        text(
            body,
            right.max(to) + 8.0,
            baseline,
            "start",
            FAINT,
            11,
            &said,
        );
    }
}

/// Where a ratio is drawn: equal factors are equally far from each other.
fn place(ratio: f64) -> f64 {
    EVEN + ratio.clamp(LEAST, MOST).log10() * TENFOLD
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{example, example_scenario};

    fn results(speed: f64) -> Vec<(Scenario, Report)> {
        let mut scenario = example_scenario();
        scenario.overview = Some("an example".into());
        let mut report = example();
        let figures = report.contenders[1].figures_mut().expect("it was measured");
        figures
            .speed_of_ours
            .as_mut()
            .expect("it is a rival")
            .median = speed;
        vec![(scenario, report)]
    }

    #[test]
    fn a_gain_goes_to_the_right_and_a_loss_to_the_left() {
        let gain = Overview::new(&results(2.5)[..]).svg();
        assert!(gain.contains(">2.50 (they)<"), "{gain}");
        assert!(gain.contains(&format!("<rect x=\"{EVEN:.1}\"")), "{gain}");
        let loss = Overview::new(&results(0.5)[..]).svg();
        let width = EVEN - place(0.5);
        assert!(loss.contains(&format!("width=\"{width:.1}\"")), "{loss}");
    }

    #[test]
    fn the_rival_is_the_best_one_that_was_measured() {
        let table = Overview::new(&results(2.5)[..]).markdown();
        let row = table.lines().nth(2).expect("a row");
        assert_eq!(
            row,
            "| an example | 2.00 s, 1.00 s, 1 MiB | they | 4.00 s, 1.00 s, 1 MiB | 2.50 (2.00..3.00) | 1.00 |"
        );
    }

    #[test]
    fn in_brief_only_what_is_compared_is_shown() {
        let results = results(2.5);
        let table = Overview::new(&results).brief();
        let row = table.lines().nth(2).expect("a row").to_owned();
        let expected = "| an example | 2.00 s | they 4.00 s | 2.50 (2.00..3.00) | ";
        assert!(row.starts_with(expected), "{row}");
        assert!(row.contains(&results[0].1.scenario), "{row}");
    }

    #[test]
    fn what_has_no_name_for_it_is_not_shown() {
        let mut results = results(2.5);
        results[0].0.overview = None;
        assert_eq!(Overview::new(&results).markdown().lines().count(), 2);
    }
}
