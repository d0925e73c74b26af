//! What a copy did over time, as charts below each other.

use crate::copy::RequestKind;

use super::{
    super::drawing::{
        axis::Axis,
        chart::{Chart, Line, Mark, Series, chart},
        palette::{BLUE, Colour, GREEN, ORANGE, PALE, PURPLE},
    },
    record::Record,
    timeline::Stretch,
};

/// How many points a line has at most, and at least where there is enough to tell.
const MOST_POINTS: usize = 120;
const LEAST_POINTS: usize = 12;
/// How many requests a point stands for at least: fewer would make lines of chance.
const REQUESTS: u64 = 6;

/// All charts of a copy, of an image of that size as far as it is known.
pub(super) fn all(record: &Record, size: u64) -> String {
    let end = record.elapsed();
    let points = usize::try_from(record.timeline.total().requests() / REQUESTS);
    let points = points.map_or(MOST_POINTS, |it| it.clamp(LEAST_POINTS, MOST_POINTS));
    let stretches = record.timeline.stretches(points, end);
    let last = stretches.last().map_or(0.0, |stretch| stretch.to);
    let time = Axis::time(last);
    let marks = record.marks.iter().enumerate().map(|(index, mark)| Mark {
        at: mark.at.as_secs_f64(),
        number: index + 1,
    });
    let marks: Vec<_> = marks.collect();
    let seconds = |at: Option<std::time::Duration>| at.map(|at| at.as_secs_f64());
    let grounds: Vec<_> = match (seconds(record.flushing), seconds(record.verifying)) {
        (Some(from), to) => vec![(from, to.unwrap_or(last))],
        (None, _) => Vec::new(),
    };
    let drawing = Drawing {
        stretches: &stretches,
        time: &time,
        marks: &marks,
        grounds: &grounds,
    };
    let mut text = String::from("<div class=\"charts\">\n");
    text += &drawing.throughput();
    text += &drawing.progress(record.before, size);
    text += &drawing.latency().unwrap_or_default();
    text += &drawing.in_flight().unwrap_or_default();
    text += &drawing.connections().unwrap_or_default();
    text += &drawing.reading_back().unwrap_or_default();
    text += "</div>\n<p class=\"small\">Time is that since the copy began.";
    if !marks.is_empty() {
        text += " Numbered marks are the warnings below.";
    }
    if !grounds.is_empty() {
        text += " On the grey ground the destination was flushed.";
    }
    text + "</p>\n"
}

/// What all charts have in common.
struct Drawing<'a> {
    stretches: &'a [Stretch],
    time: &'a Axis,
    marks: &'a [Mark],
    grounds: &'a [(f64, f64)],
}

impl Drawing<'_> {
    fn chart(&self, title: &str, value: Axis, series: Vec<Series>) -> String {
        chart(&Chart {
            title,
            time: self.time,
            value,
            series,
            marks: self.marks,
            grounds: self.grounds,
        })
    }

    /// Bytes a second. What was known to be zero costs no time, and would hide all else.
    fn throughput(&self) -> String {
        let moved = self.rates(|it| it.slot.data + it.slot.zero);
        let data = self.rates(|it| it.slot.data);
        let most = moved.iter().copied().fold(0.0, f64::max);
        let all = vec![
            series(
                "zeroes found in data",
                ORANGE,
                Line::Area,
                vec![self.line(&moved)],
            ),
            series("data", BLUE, Line::Area, vec![self.line(&data)]),
        ];
        self.chart("Throughput", Axis::bytes(most, "/s"), all)
    }

    /// The same of what was read back to be verified.
    fn reading_back(&self) -> Option<String> {
        let rates = self.rates(|it| it.slot.verified);
        let most = rates.iter().copied().fold(0.0, f64::max);
        let line = vec![self.line(&rates)];
        let all = vec![series("read back", PURPLE, Line::Area, line)];
        (most > 0.0).then(|| self.chart("Reading back", Axis::bytes(most, "/s"), all))
    }

    fn rates(&self, bytes: impl Fn(&Stretch) -> u64) -> Vec<f64> {
        let rate = |it: &Stretch| bytes(it) as f64 / (it.to - it.from).max(1e-9);
        self.stretches.iter().map(rate).collect()
    }

    /// How much was done, one kind upon the other.
    fn progress(&self, before: u64, size: u64) -> String {
        let (mut data, mut zero, mut known) = (before, 0, 0);
        let mut lines: [Vec<(f64, f64)>; 4] = std::array::from_fn(|_| Vec::new());
        let mut point = |at: f64, data: u64, zero: u64, known: u64| {
            let heights = [data + zero + known, data + zero, data, before];
            for (line, height) in lines.iter_mut().zip(heights) {
                line.push((at, height as f64));
            }
        };
        point(0.0, data, zero, known);
        for stretch in self.stretches {
            data += stretch.slot.data;
            zero += stretch.slot.zero;
            known += stretch.slot.known;
            point(stretch.to, data, zero, known);
        }
        let most = size.max(data + zero + known) as f64;
        let [known_line, zero_line, data_line, before_line] = lines;
        let mut all = vec![
            series("holes and known zeroes", PALE, Line::Area, vec![known_line]),
            series("zeroes found in data", ORANGE, Line::Area, vec![zero_line]),
            series("data", BLUE, Line::Area, vec![data_line]),
        ];
        if before > 0 {
            all.push(series("done before", GREEN, Line::Area, vec![before_line]));
        }
        self.chart("Done so far", Axis::bytes(most, ""), all)
    }

    /// How long requests took: the half that was quickest, and all but one in a hundred.
    fn latency(&self) -> Option<String> {
        let kinds = [
            (RequestKind::Read, BLUE, "reads, median", "reads, 99%"),
            (RequestKind::Write, ORANGE, "writes, median", "writes, 99%"),
            (
                RequestKind::TakeOver,
                GREEN,
                "taken over, median",
                "taken over, 99%",
            ),
        ];
        let mut all = Vec::new();
        let (mut least, mut most) = (f64::INFINITY, 0.0_f64);
        for (kind, colour, median, slow) in kinds {
            for (part, name, line) in [(0.5, median, Line::Solid), (0.99, slow, Line::Dashed)] {
                let value = |stretch: &Stretch| {
                    let histogram = stretch.slot.latency(kind)?;
                    Some(histogram.quantile(part)?.as_secs_f64())
                };
                let values: Vec<_> = self.stretches.iter().map(value).collect();
                for seconds in values.iter().flatten() {
                    (least, most) = (least.min(*seconds), most.max(*seconds));
                }
                let places = values.into_iter().map(|it| it.map(Axis::place_of_time));
                let runs = self.runs(places);
                if !runs.is_empty() {
                    all.push(series(name, colour, line, runs));
                }
            }
        }
        let any = !all.is_empty();
        any.then(|| self.chart("Latency of requests", Axis::latency(least, most), all))
    }

    /// What was in memory on its way, what could have been, and in how large requests.
    fn in_flight(&self) -> Option<String> {
        let rows: [Row; 3] = [
            ("in flight at most", BLUE, Line::Solid, |it| {
                it.slot.in_flight
            }),
            ("allowed in flight", ORANGE, Line::Dashed, |it| {
                it.slot.window
            }),
            ("longest request", GREEN, Line::Solid, |it| {
                it.slot.request_size.into()
            }),
        ];
        let all_values = self.stretches.iter().flat_map(|stretch| {
            let values = rows.iter().map(move |(.., of)| of(stretch));
            values.filter(|bytes| *bytes > 0)
        });
        let (least, most) = all_values.fold((u64::MAX, 0), |(least, most), bytes| {
            (bytes.min(least), bytes.max(most))
        });
        if self.stretches.iter().all(|it| it.slot.in_flight == 0) {
            return None;
        }
        let all = rows.map(|(name, colour, line, of)| {
            // What was not told of anew is as it was.
            let mut last = None;
            let places = self.stretches.iter().map(|stretch| {
                let bytes = of(stretch);
                let place = (bytes > 0).then(|| Axis::place_of_bytes(bytes as f64));
                last = place.or(last);
                last
            });
            let runs = self.runs(places);
            series(name, colour, line, runs)
        });
        let axis = Axis::powers(least as f64, most as f64);
        Some(self.chart("Bytes in flight and request size", axis, all.into()))
    }

    /// How many connections there were, where there were several or some were lost.
    fn connections(&self) -> Option<String> {
        let mut all = Vec::new();
        let mut most = 0;
        for (side, name, colour, line) in [
            (0, "to the source", BLUE, Line::Solid),
            (1, "to the destination", ORANGE, Line::Dashed),
        ] {
            let mut points: Vec<(f64, f64)> = Vec::new();
            for stretch in self.stretches {
                let Some(live) = stretch.slot.handles[side] else {
                    continue;
                };
                most = most.max(live);
                let from = if points.is_empty() { 0.0 } else { stretch.from };
                if let Some((_, before)) = points.last().copied() {
                    points.push((from, before));
                }
                points.push((from, live as f64));
            }
            if let Some((_, live)) = points.last().copied() {
                points.push((self.time.to, live));
                all.push(series(name, colour, line, vec![points]));
            }
        }
        let changed = all.iter().flat_map(|it| it.runs.iter().flatten());
        let interesting = changed.clone().any(|(_, live)| *live != 1.0);
        interesting.then(|| self.chart("Connections", Axis::count(most as f64), all))
    }

    /// A value for each stretch as a line from its beginning to its end.
    fn line(&self, values: &[f64]) -> Vec<(f64, f64)> {
        let values = values.iter().map(|value| Some(*value));
        self.runs(values).into_iter().next().unwrap_or_default()
    }

    /// The same where there are not values for all of them: a line for each run of those that have one.
    fn runs(&self, values: impl Iterator<Item = Option<f64>>) -> Vec<Vec<(f64, f64)>> {
        let mut runs: Vec<Vec<(f64, f64)>> = Vec::new();
        let mut end = None;
        for (stretch, value) in self.stretches.iter().zip(values) {
            let Some(value) = value else {
                if let (Some(last), Some((to, value))) = (runs.last_mut(), end.take()) {
                    last.push((to, value));
                }
                continue;
            };
            match runs.last_mut().filter(|_| end.is_some()) {
                Some(run) => run.push(((stretch.from + stretch.to) / 2.0, value)),
                None => runs.push(vec![(stretch.from, value)]),
            }
            end = Some((stretch.to, value));
        }
        if let (Some(last), Some(end)) = (runs.last_mut(), end) {
            last.push(end);
        }
        runs
    }
}

/// A row of a chart, and its values.
type Row = (&'static str, Colour, Line, fn(&Stretch) -> u64);

fn series(name: &'static str, colour: Colour, line: Line, runs: Vec<Vec<(f64, f64)>>) -> Series {
    Series {
        name,
        colour,
        line,
        runs,
    }
}
