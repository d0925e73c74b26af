//! The report as JSON, for other programs and for comparing runs.

use anyhow::Result;

use super::Report;

/// Indented, with a newline at its end, so that two results can be compared line by line.
pub(crate) fn json(report: &Report) -> Result<String> {
    Ok(serde_json::to_string_pretty(report)? + "\n")
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
}
