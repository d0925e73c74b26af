//! The report as JSON, for other programs and for comparing runs.

use anyhow::{Context, Result};

use super::Report;

/// Indented, with a newline at its end, so that two results can be compared line by line.
pub(crate) fn json(report: &Report) -> Result<String> {
    Ok(serde_json::to_string_pretty(report)? + "\n")
}

/// The report that [`json`] made `text` of.
pub(crate) fn from_json(text: &str) -> Result<Report> {
    serde_json::from_str(text)
        .context("this is no result of a scenario, or one of an older runner: run it again")
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::report::tests::example;

    #[test]
    fn every_contender_is_in_it_with_its_state() {
        let value: Value = serde_json::from_str(&json(&example()).unwrap()).unwrap();
        assert_eq!(value["contenders"][0]["state"], "measured");
        assert_eq!(value["contenders"][0]["wall_seconds"]["median"], 2.0);
        assert_eq!(value["contenders"][2]["state"], "missing");
        assert_eq!(
            value["contenders"][2]["program"],
            "no-such-program-anywhere"
        );
        assert_eq!(value["targets"][0]["reached"], false);
    }

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let text = json(&example()).unwrap();
        assert_eq!(json(&from_json(&text).unwrap()).unwrap(), text);
    }
}
