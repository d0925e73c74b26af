//! Medians and quartiles of a handful of runs.

use serde::{Deserialize, Serialize};

/// Where the middle of some numbers lies, and how far they spread.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) minimum: f64,
    pub(crate) lower_quartile: f64,
    pub(crate) upper_quartile: f64,
    pub(crate) maximum: f64,
}

impl Summary {
    /// Of at least one number.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            median: quantile(&sorted, 2)?,
            minimum: *sorted.first()?,
            lower_quartile: quantile(&sorted, 1)?,
            upper_quartile: quantile(&sorted, 3)?,
            maximum: *sorted.last()?,
        })
    }
}

/// The quartile `quarters` (of 4), interpolated between its neighbours.
fn quantile(sorted: &[f64], quarters: usize) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let (whole, part) = (last * quarters / 4, last * quarters % 4);
    let low = sorted[whole];
    let high = sorted[(whole + 1).min(last)];
    #[allow(clippy::cast_precision_loss, reason = "it is below 4")]
    let part = part as f64;
    Some(low + (high - low) * part / 4.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_odd_number_of_runs_has_one_in_the_middle() {
        let summary = Summary::of([5.0, 1.0, 3.0, 2.0, 4.0]).unwrap();
        assert_eq!((summary.minimum, summary.maximum), (1.0, 5.0));
        assert_eq!(summary.median, 3.0);
        assert_eq!((summary.lower_quartile, summary.upper_quartile), (2.0, 4.0));
    }

    #[test]
    fn an_even_number_of_runs_is_interpolated() {
        let summary = Summary::of([4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!(summary.median, 2.5);
        assert_eq!(
            (summary.lower_quartile, summary.upper_quartile),
            (1.75, 3.25)
        );
    }

    #[test]
    fn one_run_is_its_own_spread_and_none_has_no_summary() {
        let summary = Summary::of([7.0]).unwrap();
        assert_eq!(
            (summary.minimum, summary.median, summary.maximum),
            (7.0, 7.0, 7.0)
        );
        assert_eq!(Summary::of([]), None);
    }
}
