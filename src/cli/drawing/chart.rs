//! Numbers over time in SVG: lines and areas, drawn by plotters, with marks where something happened.

use std::{fmt::Write, ops::Range};

use plotters::{
    coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter},
    prelude::{
        AreaSeries, ChartBuilder, Color, DashedLineSeries, DrawingBackend, IntoDrawingArea,
        IntoFont, LineSeries, PathElement, RGBColor, Rectangle, SVGBackend, ShapeStyle,
        TRANSPARENT, Text, TextStyle,
    },
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{
    axis::Axis,
    escaped::Escaped,
    palette::{AXIS, Colour, GRID, TEXT, VERMILION},
};

/// The size of a chart. Those below each other have their beginnings at the same place.
const SIZE: (u32, u32) = (520, 230);
const LABELS_LEFT: u32 = 78;
const LABELS_BELOW: u32 = 26;
/// The size of text.
const FONT: i32 = 12;
/// How far apart marks must be to have numbers of their own, as a part of the whole.
const ROOM_FOR_NUMBER: f64 = 0.08;

/// A chart: what is written at its sides, and what is drawn.
pub(crate) struct Chart<'a> {
    /// What it shows, for those who cannot see it.
    pub(crate) title: &'a str,
    pub(crate) time: &'a Axis,
    pub(crate) value: Axis,
    /// The first ones lie below the others.
    pub(crate) series: Vec<Series>,
    pub(crate) marks: &'a [Mark],
    /// Times that are told apart by a ground of another colour: from and to, in seconds.
    pub(crate) grounds: &'a [(f64, f64)],
}

/// A row of values over time.
pub(crate) struct Series {
    pub(crate) name: &'static str,
    pub(crate) colour: Colour,
    pub(crate) line: Line,
    /// Seconds, and places on the axis. A line that is broken off has several runs.
    pub(crate) runs: Vec<Vec<(f64, f64)>>,
}

/// How a row is drawn: as many that are in one chart as there are are told apart without their colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Solid,
    Dashed,
    /// Filled down to the ground.
    Area,
}

/// A time at which something happened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Mark {
    /// In seconds.
    pub(crate) at: f64,
    /// Its number in the list of all.
    pub(crate) number: usize,
}

impl From<Colour> for RGBColor {
    fn from(Colour(red, green, blue): Colour) -> Self {
        Self(red, green, blue)
    }
}

/// The grid and the labels are ours, whatever plotters would have chosen.
impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let part = (value - self.from) / (self.to - self.from);
        from + (f64::from(to - from) * part).round() as i32
    }

    fn key_points<H: KeyPointHint>(&self, hint: H) -> Vec<f64> {
        let light = hint.weight().allow_light_points();
        let ticks = self.ticks.iter().filter(|_| !light);
        ticks.map(|(place, _)| *place).collect()
    }

    fn range(&self) -> Range<f64> {
        self.from..self.to
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        self.label(*value)
    }
}

/// The chart as a part of a page, with a legend in HTML above it.
pub(crate) fn chart(chart: &Chart<'_>) -> String {
    let mut text = String::from("<figure><figcaption>");
    let _ = write!(
        text,
        "<h3>{}</h3><p class=\"legend\">",
        Escaped(chart.title)
    );
    for series in &chart.series {
        let _ = write!(
            text,
            "<span>{}{}</span> ",
            swatch(series.colour, series.line),
            Escaped(series.name)
        );
    }
    text += "</p></figcaption>\n";
    // Nothing can fail that is drawn into memory.
    text += &drawn(chart).unwrap_or_default();
    text + "</figure>\n"
}

/// What a row looks like, for a legend.
fn swatch(colour: Colour, line: Line) -> String {
    let path = match line {
        Line::Area => format!("<rect y=\"2\" width=\"22\" height=\"10\" fill=\"{colour}\"/>"),
        Line::Solid => {
            format!("<path d=\"M0 7H22\" stroke=\"{colour}\" stroke-width=\"2\" fill=\"none\"/>")
        }
        Line::Dashed => format!(
            "<path d=\"M0 7H22\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"5 3\" fill=\"none\"/>"
        ),
    };
    format!("<svg class=\"line\" viewBox=\"0 0 22 14\" aria-hidden=\"true\">{path}</svg>")
}

fn drawn(chart: &Chart<'_>) -> Option<String> {
    let mut svg = String::new();
    draw(chart, SVGBackend::with_string(&mut svg, SIZE)).ok()?;
    let opening = "<svg ";
    let rest = svg.strip_prefix(opening)?;
    let title = Escaped(chart.title);
    Some(format!(
        "{opening}class=\"chart\" role=\"img\" aria-label=\"{title}\" {rest}"
    ))
}

fn draw<B: DrawingBackend>(chart: &Chart<'_>, backend: B) -> Result<(), Box<dyn std::error::Error>>
where
    B::ErrorType: 'static,
{
    let root = backend.into_drawing_area();
    let (time, value) = (chart.time, &chart.value);
    let mut context = ChartBuilder::on(&root)
        .margin_top(18)
        .margin_right(16)
        .margin_left(2)
        .margin_bottom(2)
        .x_label_area_size(LABELS_BELOW)
        .y_label_area_size(LABELS_LEFT)
        .build_cartesian_2d(time.clone(), value.clone())?;
    for (from, to) in chart.grounds {
        let ground = RGBColor::from(AXIS).mix(0.15).filled();
        let corners = [(*from, value.from), (to.min(time.to), value.to)];
        context.draw_series([Rectangle::new(corners, ground)])?;
    }
    let grey = RGBColor::from(TEXT);
    let text = TextStyle::from(("sans-serif", FONT).into_font()).color(&grey);
    context
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor::from(GRID))
        .axis_style(RGBColor::from(AXIS))
        .label_style(text.clone())
        .draw()?;
    for series in &chart.series {
        let colour = RGBColor::from(series.colour);
        for run in &series.runs {
            let points = run.iter().copied();
            match series.line {
                Line::Area => {
                    context.draw_series(AreaSeries::new(points, value.from, colour))?;
                }
                Line::Solid => {
                    context.draw_series(LineSeries::new(points, colour.stroke_width(2)))?;
                }
                Line::Dashed => {
                    let style: ShapeStyle = colour.stroke_width(2);
                    context.draw_series(DashedLineSeries::new(points, 5, 3, style))?;
                }
            }
        }
    }
    let colour = RGBColor::from(VERMILION);
    for mark in chart.marks {
        let at = mark.at.clamp(time.from, time.to);
        let line = vec![(at, value.from), (at, value.to)];
        context.draw_series([PathElement::new(line, colour)])?;
    }
    let near = ROOM_FOR_NUMBER * (time.to - time.from);
    let above = Pos::new(HPos::Center, VPos::Bottom);
    for group in chart.marks.chunk_by(|a, b| b.at - a.at < near) {
        let (first, last) = (group[0], group[group.len() - 1]);
        let middle = (first.at + last.at) / 2.0;
        let place = context.backend_coord(&(middle.clamp(time.from, time.to), value.to));
        let numbers = match group {
            [only] => only.number.to_string(),
            _ => format!("{}\u{2013}{}", first.number, last.number),
        };
        let style = text.clone().color(&colour).pos(above);
        root.draw(&Text::new(numbers, (place.0, place.1 - 2), style))?;
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::drawing::palette::BLUE;

    #[test]
    fn a_chart_has_its_lines_marks_and_labels() {
        let time = Axis::time(10.0);
        let marks = [1.0, 1.1, 5.0].into_iter().enumerate();
        let marks: Vec<_> = marks
            .map(|(index, at)| Mark {
                at,
                number: index + 1,
            })
            .collect();
        let text = chart(&Chart {
            title: "a < b",
            time: &time,
            value: Axis::bytes(5e6, "/s"),
            series: vec![Series {
                name: "data",
                colour: BLUE,
                line: Line::Solid,
                runs: vec![vec![(0.0, 0.0), (3.0, 5e6)], vec![(6.0, 1e6), (10.0, 2e6)]],
            }],
            marks: &marks,
            grounds: &[(8.0, 9.0)],
        });
        let blue = format!("stroke=\"{BLUE}\"");
        let drawn = text.split_once("</figcaption>").expect("a legend").1;
        assert_eq!(drawn.matches(&blue).count(), 2, "{text}");
        assert!(drawn.contains("aria-label=\"a &lt; b\""), "{text}");
        let texts: Vec<_> = drawn
            .split("<text")
            .skip(1)
            .filter_map(|text| Some(text.split_once('>')?.1.split_once('<')?.0.trim()))
            .collect();
        assert!(
            texts.contains(&"10 s") && texts.contains(&"2 MiB/s"),
            "{texts:?}"
        );
        // The second is too near to the first to have a number of its own.
        assert!(texts.contains(&"1\u{2013}2") && texts.contains(&"3"));
    }
}
