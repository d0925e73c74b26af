//! What is written beside a chart: where the lines of its grid are, and their labels.

use crate::block::HumanSize;

/// The most lines that a grid has in one direction.
const MOST: f64 = 6.0;

/// A scale: from where to where, and what is written where.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Axis {
    pub(crate) from: f64,
    pub(crate) to: f64,
    pub(crate) ticks: Vec<(f64, String)>,
}

impl Axis {
    /// Time from 0 to `end` seconds.
    pub(crate) fn time(end: f64) -> Self {
        let end = if end.is_finite() { end.max(1e-6) } else { 1.0 };
        let (unit, name) = match end {
            ..2e-3 => (1e-6, "µs"),
            ..2.0 => (1e-3, "ms"),
            ..120.0 => (1.0, "s"),
            ..7200.0 => (60.0, "min"),
            ..172_800.0 => (3600.0, "h"),
            _ => (86_400.0, "d"),
        };
        let step = unit * nice(end / unit / MOST);
        Self {
            from: 0.0,
            to: end,
            ticks: ticks(0.0, end, step, |at| format!("{} {name}", number(at / unit))),
        }
    }

    /// Bytes from 0 to `most`, and a little more; `per` stands behind the unit.
    pub(crate) fn bytes(most: f64, per: &str) -> Self {
        let most = most.max(1.0);
        let (unit, name) = binary(most);
        let step = unit * nice(most / unit / MOST);
        let to = (most * 1.02 / step).ceil() * step;
        Self {
            from: 0.0,
            to,
            ticks: ticks(0.0, to, step, |at| match at == 0.0 {
                true => "0".to_owned(),
                false => format!("{} {name}{per}", number(at / unit)),
            }),
        }
    }

    /// Numbers from 0 to `most`.
    pub(crate) fn count(most: f64) -> Self {
        let most = most.max(1.0);
        let step = nice(most / MOST).max(1.0).round();
        let to = (most * 1.1 / step).ceil() * step;
        Self {
            from: 0.0,
            to,
            ticks: ticks(0.0, to, step, number),
        }
    }

    /// Seconds between two of the powers of ten, which are equally far from each other: see [`Axis::place_of_time`].
    pub(crate) fn latency(least: f64, most: f64) -> Self {
        let from = Self::place_of_time(least).floor();
        let to = Self::place_of_time(most).ceil().max(from + 1.0);
        let label = |at: f64| {
            let seconds = 10_f64.powf(at);
            match at {
                ..-3.0 => format!("{} µs", number(seconds * 1e6)),
                ..0.0 => format!("{} ms", number(seconds * 1e3)),
                _ => format!("{} s", number(seconds)),
            }
        };
        Self {
            from,
            to,
            ticks: ticks(from, to, 1.0, label),
        }
    }

    /// Where so many seconds are on an axis of latencies.
    pub(crate) fn place_of_time(seconds: f64) -> f64 {
        seconds.clamp(1e-9, 1e9).log10()
    }

    /// Bytes between two of the powers of two, which are equally far from each other: see [`Axis::place_of_bytes`].
    pub(crate) fn powers(least: f64, most: f64) -> Self {
        // Neither the least nor the most lies on the frame.
        let from = (Self::place_of_bytes(least).ceil() - 1.0).max(0.0);
        let to = Self::place_of_bytes(most).floor() + 1.0;
        let step = ((to - from) / MOST).ceil().max(1.0);
        let to = from + ((to - from) / step).ceil() * step;
        let label = |at: f64| {
            let bytes = at.exp2();
            let (unit, name) = binary(bytes);
            format!("{} {name}", number(bytes / unit))
        };
        Self {
            from,
            to,
            ticks: ticks(from, to, step, label),
        }
    }

    /// Where so many bytes are on an axis of powers of two.
    pub(crate) fn place_of_bytes(bytes: f64) -> f64 {
        bytes.max(1.0).log2()
    }

    /// What is written at a place.
    pub(crate) fn label(&self, place: f64) -> String {
        let near = |tick: &&(f64, String)| (tick.0 - place).abs() <= (self.to - self.from) * 1e-6;
        let tick = self.ticks.iter().find(near);
        tick.map(|(_, label)| label.clone()).unwrap_or_default()
    }
}

fn ticks(from: f64, to: f64, step: f64, label: impl Fn(f64) -> String) -> Vec<(f64, String)> {
    let count = ((to - from) / step + 1e-6).floor() as usize;
    let places = (0..=count.min(100)).map(|number| from + number as f64 * step);
    places.map(|place| (place, label(place))).collect()
}

/// The next 1, 2 or 5 with some zeroes behind or in front of it.
fn nice(least: f64) -> f64 {
    let magnitude = 10_f64.powf(least.max(1e-12).log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter();
    let mut fitting = factor.filter(|factor| factor * magnitude >= least * 0.999_999);
    fitting.next().unwrap_or(10.0) * magnitude
}

/// The unit that a number of bytes is told in, as [`HumanSize`] has them.
fn binary(bytes: f64) -> (f64, String) {
    let text = HumanSize(bytes as u64).to_string();
    let name = text.rsplit(' ').next().unwrap_or_default().to_owned();
    let power = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
        .iter()
        .position(|unit| *unit == name);
    match power {
        Some(power) => (f64::from(1 << 10).powi(power as i32 + 1), name),
        None => (1.0, "B".to_owned()),
    }
}

/// A number with as many digits as it needs, and no more than it has.
fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    match text {
        "-0" => "0".to_owned(),
        text => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, label)| label.as_str()).collect()
    }

    #[test]
    fn time_has_the_unit_that_fits() {
        assert_eq!(labels(&Axis::time(0.05))[..3], ["0 ms", "10 ms", "20 ms"]);
        assert_eq!(labels(&Axis::time(9.0))[..3], ["0 s", "2 s", "4 s"]);
        assert_eq!(labels(&Axis::time(600.0))[..3], ["0 min", "2 min", "4 min"]);
        assert_eq!(labels(&Axis::time(40_000.0))[..3], ["0 h", "2 h", "4 h"]);
        assert_eq!(labels(&Axis::time(1e6))[..2], ["0 d", "2 d"]);
        for end in [0.0, 1e-9, 3.3, 59.0, 61.0, 1e5, 1e7, f64::INFINITY] {
            let axis = Axis::time(end);
            assert!((2..=8).contains(&axis.ticks.len()), "{axis:?}");
        }
    }

    #[test]
    fn bytes_are_told_in_one_unit_up_to_the_most() {
        let axis = Axis::bytes(3.4 * f64::from(1 << 30), "/s");
        assert_eq!(
            labels(&axis),
            ["0", "1 GiB/s", "2 GiB/s", "3 GiB/s", "4 GiB/s"]
        );
        assert!(axis.to >= 3.4 * f64::from(1 << 30));
        for most in [0.0, 1.0, 1023.0, 1e6, 1e12, 1e19] {
            let axis = Axis::bytes(most, "");
            assert!((2..=9).contains(&axis.ticks.len()), "{axis:?}");
            assert!(axis.to >= most);
        }
    }

    #[test]
    fn latencies_and_sizes_are_told_by_their_powers() {
        assert_eq!(
            labels(&Axis::latency(3e-5, 4e-3)),
            ["10 µs", "100 µs", "1 ms", "10 ms"]
        );
        assert_eq!(
            labels(&Axis::powers(262_144.0, 4_194_304.0)),
            [
                "128 KiB", "256 KiB", "512 KiB", "1 MiB", "2 MiB", "4 MiB", "8 MiB"
            ]
        );
        assert_eq!(labels(&Axis::latency(1.0, 1.0)), ["1 s", "10 s"]);
    }

    #[test]
    fn a_label_is_found_at_its_place() {
        let axis = Axis::count(4.0);
        assert_eq!(axis.label(2.0), "2");
        assert_eq!(axis.label(2.5), "");
    }
}
