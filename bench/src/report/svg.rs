//! The report as a bar chart: one bar a contender, its median, with a line from minimum to maximum.

use std::fmt::Write as _;

use super::{
    Report, State,
    table::{figure, subtitle},
};
use crate::{scenario::Measure, statistics::Summary};

const WIDTH: f64 = 860.0;
/// Where the bars begin, and how long the longest may be.
const BAR_LEFT: f64 = 300.0;
const BAR_LENGTH: f64 = 440.0;
const ROW: f64 = 34.0;
const BAR: f64 = 20.0;
const TOP: f64 = 84.0;
const LINE: f64 = 16.0;

pub(super) const OURS: &str = "#1f6f8b";
pub(super) const RIVAL: &str = "#b8b8b8";
pub(super) const TEXT: &str = "#222222";
pub(super) const FAINT: &str = "#666666";

/// The chart as a complete SVG file.
pub(crate) fn svg(report: &Report) -> String {
    let bars: Vec<Option<&Summary>> = report.contenders.iter().map(shown).collect();
    let longest = bars
        .iter()
        .flatten()
        .map(|summary| summary.maximum)
        .fold(f64::MIN_POSITIVE, f64::max);
    let mut body = String::new();
    let mut y = TOP;
    for (entry, summary) in report.contenders.iter().zip(&bars) {
        let middle = y + ROW / 2.0;
        text(
            &mut body,
            BAR_LEFT - 10.0,
            middle + 5.0,
            "end",
            TEXT,
            13,
            &entry.name,
        );
        match summary {
            Some(summary) => {
                let colour = if entry.ours { OURS } else { RIVAL };
                bar(&mut body, middle, summary, BAR_LENGTH / longest, colour);
                let end = BAR_LEFT + summary.maximum * BAR_LENGTH / longest + 8.0;
                let label = figure(summary.median);
                text(&mut body, end, middle + 5.0, "start", TEXT, 13, &label);
            }
            None => {
                let why = match entry.state {
                    State::Missing { .. } => "missing",
                    _ => "failed",
                };
                text(&mut body, BAR_LEFT, middle + 5.0, "start", FAINT, 13, why);
            }
        }
        y += ROW;
    }
    y += LINE;
    for (program, version) in &report.versions {
        let line = if version.starts_with(program.as_str()) {
            version.clone()
        } else {
            format!("{program}: {version}")
        };
        text(&mut body, 20.0, y, "start", FAINT, 11, &line);
        y += LINE;
    }

    let unit = match report.measure {
        Measure::Wall => "wall seconds, less is better",
        measure => &format!("{}, more is better", measure.unit()),
    };
    let mut title = format!("{}: {unit}", report.scenario);
    if report.quick {
        title.push_str(" (a quick run, no measurement)");
    }
    let mut head = String::new();
    text(&mut head, 20.0, 30.0, "start", TEXT, 17, &title);
    text(&mut head, 20.0, 52.0, "start", FAINT, 11, &subtitle(report));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y}\" \
         font-family=\"sans-serif\" role=\"img\">\n\
         <title>{}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         {head}{body}</svg>\n",
        escaped(&title)
    )
}

/// What a contender's bar stands for.
fn shown(entry: &super::Entry) -> Option<&Summary> {
    let figures = entry.figures()?;
    Some(figures.rate.as_ref().unwrap_or(&figures.wall_seconds))
}

fn bar(body: &mut String, middle: f64, summary: &Summary, scale: f64, colour: &str) {
    let (top, length) = (middle - BAR / 2.0, summary.median * scale);
    let [from, to] = [summary.minimum, summary.maximum].map(|value| BAR_LEFT + value * scale);
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(
        body,
        "<rect x=\"{BAR_LEFT}\" y=\"{top:.1}\" width=\"{length:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>"
    );
    let _ = writeln!(
        body,
        "<path d=\"M{from:.1} {middle:.1}H{to:.1}\" stroke=\"{TEXT}\" stroke-width=\"1.5\"/>"
    );
}

pub(super) fn text(
    body: &mut String,
    x: f64,
    y: f64,
    anchor: &str,
    colour: &str,
    size: u32,
    text: &str,
) {
    let text = escaped(text);
    let _ = writeln!(
        body,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\" font-size=\"{size}\">{text}</text>"
    );
}

pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::example;

    #[test]
    fn every_contender_is_named_and_the_longest_bar_fits() {
        let chart = svg(&example());
        for name in [">we<", ">they<", ">others<", ">missing<"] {
            assert!(chart.contains(name), "{name}");
        }
        // The rival's median is 4 of at most 5 seconds.
        assert!(chart.contains("width=\"352.0\""), "{chart}");
    }

    #[test]
    fn what_has_a_meaning_in_xml_is_escaped() {
        let mut report = example();
        report.contenders[0].name = "a<b>&c".into();
        let chart = svg(&report);
        assert!(chart.contains(">a&lt;b&gt;&amp;c<"));
        assert!(!chart.contains("a<b>"));
    }
}
