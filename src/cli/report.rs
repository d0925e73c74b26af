//! What a copy did, in a sentence or as JSON.

use std::time::Duration;

use serde::Serialize;

use crate::{
    block::HumanSize,
    copy::{DigestOptions, Report},
    endpoint::printable,
    filter::Counters,
};

use super::{
    commands::checksum::JsonDigest,
    failure::{Details, Failure},
    output::tell,
};

/// The last line of a copy: what was copied, how fast, how much of it data, how much zero.
pub(crate) fn sentence(report: &Report, elapsed: Duration) -> String {
    format!(
        "copied {} in {} ({}/s): {} data, {} zero{}",
        HumanSize(report.size),
        HumanTime(elapsed),
        HumanSize(rate(moved(report), elapsed)),
        HumanSize(report.data),
        HumanSize(report.zero),
        match (report.flushed, report.verified) {
            (true, false) => "",
            (true, true) => ", verified",
            (false, false) => ", not flushed",
            (false, true) => ", verified, not flushed",
        },
    )
}

/// What this copy did itself, in bytes: an earlier one may have done a part.
fn moved(report: &Report) -> u64 {
    report.size.saturating_sub(report.resumed)
}

/// The report as one JSON object, with the digest if one was computed, as `digest` says. Sizes are bytes.
pub(crate) fn json(
    report: &Report,
    digest: Option<DigestOptions>,
    elapsed: Duration,
    warnings: &[String],
) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "kebab-case")]
    struct Json<'a> {
        size: u64,
        data: u64,
        zero: u64,
        seconds: f64,
        bytes_per_second: u64,
        flushed: bool,
        resumed: u64,
        reconnections: u64,
        verified: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        checksum: Option<JsonDigest>,
        extent_requests: u64,
        source_connections: usize,
        destination_connections: usize,
        request_size: u32,
        queue_size: u64,
        warnings: &'a [String],
    }
    let value = Json {
        size: report.size,
        data: report.data,
        zero: report.zero,
        seconds: elapsed.as_secs_f64(),
        bytes_per_second: rate(moved(report), elapsed),
        flushed: report.flushed,
        resumed: report.resumed,
        reconnections: report.reconnections,
        verified: report.verified,
        checksum: digest
            .zip(report.digest)
            .map(|(options, digest)| JsonDigest::new(options, digest)),
        extent_requests: report.extent_requests,
        source_connections: report.source_connections,
        destination_connections: report.destination_connections,
        request_size: report.request_size,
        queue_size: report.queue_size,
        warnings,
    };
    pretty(&value)
}

/// A failure as one JSON object.
pub(crate) fn json_failure(failure: &Failure, warnings: &[String]) -> String {
    #[derive(Serialize)]
    struct Json<'a> {
        error: Details<'a>,
        warnings: &'a [String],
    }
    let error = failure.details();
    pretty(&Json { error, warnings })
}

fn pretty(value: &impl Serialize) -> String {
    let text = serde_json::to_string_pretty(value).expect("numbers and text only");
    text + "\n"
}

/// Bytes per second. A copy that took no time took a millisecond.
pub(crate) fn rate(bytes: u64, elapsed: Duration) -> u64 {
    let milliseconds = elapsed.as_millis().max(1);
    u64::try_from(u128::from(bytes) * 1000 / milliseconds).unwrap_or(u64::MAX)
}

/// A duration as people say it: `16 ms`, `1.9 s`, `2 min 5 s`, `3 h 20 min`.
pub(crate) struct HumanTime(pub(crate) Duration);

impl std::fmt::Display for HumanTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.0.as_secs();
        match seconds {
            0 if self.0 < Duration::from_millis(100) => write!(f, "{} ms", self.0.as_millis()),
            0..10 => write!(f, "{:.1} s", self.0.as_secs_f64()),
            10..60 => write!(f, "{seconds} s"),
            60..3600 => write!(f, "{} min {} s", seconds / 60, seconds % 60),
            _ => write!(f, "{} h {} min", seconds / 3600, seconds % 3600 / 60),
        }
    }
}

/// Says what a filter has counted, on standard error.
pub(crate) fn tell_counters(counters: &Counters) {
    tell(&counters_sentence(counters));
}

pub(crate) fn counters_sentence(counters: &Counters) -> String {
    let counts = counters.counts.iter();
    let counts = counts.map(|(name, count)| format!("{} {count}", name.replace('_', " ")));
    let counts: Vec<_> = counts.collect();
    let export = match &*counters.export {
        "" => String::new(),
        name => format!(" of export {:?}", printable(name.as_ref())),
    };
    format!("{}{export}: {}", counters.filter, counts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{Error, ErrorKind, Operation};

    fn report() -> Report {
        let mut report = Report::default();
        report.size = 4 << 30;
        report.data = 1 << 30;
        report.zero = 3 << 30;
        report.flushed = true;
        report
    }

    #[test]
    fn the_sentence_says_what_how_fast_and_of_what() {
        assert_eq!(
            sentence(&report(), Duration::from_millis(2000)),
            "copied 4.0 GiB in 2.0 s (2.0 GiB/s): 1.0 GiB data, 3.0 GiB zero"
        );
    }

    #[test]
    fn what_was_done_before_is_no_part_of_the_rate() {
        let mut report = report();
        report.resumed = 3 << 30;
        let sentence = sentence(&report, Duration::from_millis(2000));
        assert!(sentence.contains("(512.0 MiB/s)"), "{sentence}");
    }

    #[test]
    fn a_copy_that_was_not_flushed_says_so() {
        let mut report = report();
        report.flushed = false;
        assert!(sentence(&report, Duration::from_secs(1)).ends_with(", not flushed"));
    }

    #[test]
    fn the_json_has_every_number() {
        let warnings = ["beware".to_owned()];
        let text = json(&report(), None, Duration::from_millis(500), &warnings);
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["size"], 4_u64 << 30);
        assert_eq!(value["data"], 1_u64 << 30);
        assert_eq!(value["zero"], 3_u64 << 30);
        assert_eq!(value["seconds"], 0.5);
        assert_eq!(value["bytes-per-second"], 8_u64 << 30);
        assert_eq!(value["flushed"], true);
        assert_eq!(
            (&value["resumed"], &value["reconnections"]),
            (&0.into(), &0.into())
        );
        assert_eq!(value["warnings"][0], "beware");
    }

    #[test]
    fn the_json_of_a_failure_has_what_is_known() {
        let error = Error::new(ErrorKind::ConnectionLost).during(Operation::Read);
        let error = error.at(4096, 512).on(&"nbd://host/".into());
        let failure = Failure::from(&error).note("half of it is there");
        let value = json_failure(&failure, &[]);
        let value: serde_json::Value = serde_json::from_str(&value).expect("JSON");
        let error = &value["error"];
        assert_eq!(error["kind"], "connection-lost");
        assert_eq!(error["operation"], "read");
        assert_eq!(
            (&error["offset"], &error["length"]),
            (&4096.into(), &512.into())
        );
        assert_eq!(error["endpoint"], "nbd://host/");
        assert_eq!(error["transient"], true);
        assert_eq!(error["notes"][0], "half of it is there");
        assert!(error["hint"].is_string());

        let value = json_failure(&Failure::usage("no"), &[]);
        let value: serde_json::Value = serde_json::from_str(&value).expect("JSON");
        assert_eq!(value["error"]["kind"], "usage");
        assert!(value["error"]["offset"].is_null());
    }

    #[test]
    fn no_time_is_no_division_by_zero() {
        assert_eq!(rate(5, Duration::ZERO), 5000);
        assert_eq!(rate(u64::MAX, Duration::ZERO), u64::MAX);
    }

    #[test]
    fn times_are_said_in_the_unit_that_fits() {
        let text = |milliseconds| HumanTime(Duration::from_millis(milliseconds)).to_string();
        assert_eq!(text(16), "16 ms");
        assert_eq!(text(1_940), "1.9 s");
        assert_eq!(text(59_999), "59 s");
        assert_eq!(text(125_000), "2 min 5 s");
        assert_eq!(text(12_000_000), "3 h 20 min");
    }
}
