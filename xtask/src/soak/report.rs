//! What a soak found: a text for people, and JSON.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::{Value, json};

use super::{watch::History, watch::Usage};

/// How a round went.
pub(crate) struct RoundReport {
    pub(crate) number: u64,
    pub(crate) source: String,
    pub(crate) destination: String,
    pub(crate) fault: String,
    /// How the copies ended, in turn.
    pub(crate) codes: Vec<i32>,
    pub(crate) peak: Usage,
    pub(crate) seconds: f64,
    /// What should not have been.
    pub(crate) problems: Vec<String>,
}

#[derive(Default)]
pub(crate) struct Report {
    rounds: u64,
    copies: u64,
    sources: BTreeMap<String, u64>,
    destinations: BTreeMap<String, u64>,
    faults: BTreeMap<String, u64>,
    codes: BTreeMap<i32, u64>,
    peak: Usage,
    longest: f64,
    pub(crate) failures: Vec<(Option<u64>, String)>,
}

impl Report {
    pub(crate) fn add(&mut self, round: RoundReport) {
        self.rounds += 1;
        self.copies += round.codes.len() as u64;
        *self.sources.entry(round.source).or_default() += 1;
        *self.destinations.entry(round.destination).or_default() += 1;
        *self.faults.entry(round.fault).or_default() += 1;
        for code in round.codes {
            *self.codes.entry(code).or_default() += 1;
        }
        self.peak = self.peak.max(round.peak);
        self.longest = self.longest.max(round.seconds);
        let problems = round.problems.into_iter();
        self.failures
            .extend(problems.map(|it| (Some(round.number), it)));
    }

    pub(crate) fn rounds(&self) -> u64 {
        self.rounds
    }

    pub(crate) fn text<'a>(&self, histories: impl Iterator<Item = &'a History>) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} rounds, {} copies", self.rounds, self.copies);
        let counts = |counts: &BTreeMap<String, u64>| {
            let counts: Vec<_> = counts
                .iter()
                .map(|(name, count)| format!("{name} {count}"))
                .collect();
            counts.join(", ")
        };
        let _ = writeln!(text, "sources: {}", counts(&self.sources));
        let _ = writeln!(text, "destinations: {}", counts(&self.destinations));
        let _ = writeln!(text, "faults: {}", counts(&self.faults));
        let codes: Vec<_> = self
            .codes
            .iter()
            .map(|(code, count)| format!("{code}: {count}"))
            .collect();
        let _ = writeln!(text, "exit codes: {}", codes.join(", "));
        let _ = writeln!(
            text,
            "a copy at most: {} KiB, {} descriptors, {} threads; the longest round {:.1} s",
            self.peak.memory, self.peak.descriptors, self.peak.threads, self.longest
        );
        for history in histories {
            let _ = writeln!(text, "{}", history.line());
        }
        let _ = match self.failures.len() {
            0 => writeln!(text, "nothing went wrong"),
            count => writeln!(text, "{count} things went wrong"),
        };
        text
    }

    pub(crate) fn to_json<'a>(
        &self,
        seed: u64,
        histories: impl Iterator<Item = &'a History>,
    ) -> Value {
        json!({
            "seed": seed,
            "rounds": self.rounds,
            "copies": self.copies,
            "sources": self.sources,
            "destinations": self.destinations,
            "faults": self.faults,
            "exit-codes": self.codes.iter().map(|(code, count)| (code.to_string(), *count)).collect::<BTreeMap<_, _>>(),
            "copy-peak": self.peak.to_json(),
            "longest-round-seconds": self.longest,
            "residents": histories.map(History::to_json).collect::<Vec<_>>(),
            "failures": self.failures.iter().map(|(round, what)| json!({"round": round, "what": what})).collect::<Vec<_>>(),
        })
    }
}
