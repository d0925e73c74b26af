//! The result of a scenario, reckoned once from the samples and shown three ways.

mod json;
mod markdown;
mod overview;
mod svg;
mod table;
mod verdict;

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    machine::{self, Machine},
    placeholder,
    runner::{Outcome, Outcomes, Sample, Settings},
    scenario::{Contender, Measure, Scenario},
    statistics::Summary,
    tools,
};

use self::verdict::{Limits, Verdict};
pub(crate) use self::{
    json::{from_json, json},
    markdown::{into_readme, markdown},
    overview::Overview,
    svg::svg,
    table::table,
};

/// The unit that system calls are counted for, in bytes.
const CALLS_PER: f64 = 262_144.0;

/// Everything that is to be said about one scenario. Its JSON is this, field by field.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Report {
    pub(crate) scenario: String,
    #[serde(default)]
    pub(crate) title: String,
    pub(crate) shows: String,
    pub(crate) measure: Measure,
    /// A quick run shows that the scenario works. It measures nothing.
    pub(crate) quick: bool,
    pub(crate) size: Option<String>,
    pub(crate) rounds: usize,
    pub(crate) machine: Machine,
    pub(crate) machine_summary: String,
    /// What each program said when it was asked for its version, by the program's name.
    pub(crate) versions: BTreeMap<String, String>,
    pub(crate) servers: BTreeMap<String, Vec<String>>,
    pub(crate) contenders: Vec<Entry>,
    /// What counted system calls, if they were to be counted and something was there to do so.
    #[serde(default)]
    pub(crate) system_calls_counted_by: Option<String>,
    #[serde(default)]
    pub(crate) targets: Vec<Verdict>,
    #[serde(default)]
    pub(crate) bounds: Vec<Limits>,
}

/// One contender.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) ours: bool,
    /// As the scenario has it, with its placeholders.
    pub(crate) command: Vec<String>,
    #[serde(flatten)]
    pub(crate) state: State,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub(crate) enum State {
    Measured(Box<Figures>),
    Missing { program: String },
    Failed { why: String },
}

/// Seconds, bytes and GB/s, over the rounds.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Figures {
    pub(crate) wall_seconds: Summary,
    pub(crate) user_seconds: Summary,
    pub(crate) system_seconds: Summary,
    pub(crate) cpu_seconds: Summary,
    pub(crate) server_cpu_seconds: Option<Summary>,
    /// The most that any run took.
    pub(crate) peak_memory_bytes: u64,
    /// Of one run that was not timed, for each 256 KiB of the scenario's size.
    #[serde(default)]
    pub(crate) system_calls_per_256_kib: Option<f64>,
    /// The most that all servers of any run took together.
    #[serde(default)]
    pub(crate) server_memory_bytes: u64,
    pub(crate) rate: Option<Summary>,
    #[serde(default)]
    pub(crate) latency_microseconds: Option<Summary>,
    /// The length of the file that was written, where it is in a format whose length depends on the writer.
    #[serde(default)]
    pub(crate) written_bytes: Option<Summary>,
    /// How many times as fast as this one ours is, taken round by round. Nothing for ours itself.
    pub(crate) speed_of_ours: Option<Summary>,
    /// How many times less processor time than this one ours takes, taken round by round.
    pub(crate) cpu_of_ours: Option<Summary>,
}

impl Report {
    pub(crate) fn new(scenario: &Scenario, settings: Settings, outcomes: &Outcomes) -> Self {
        let machine = Machine::this();
        let quick = settings.quick;
        let first_of_ours = &scenario.ours().name;
        let ours = outcomes.samples_of(scenario, first_of_ours);
        let size = scenario.size.as_ref().map(|size| size.of(quick));
        let mut contenders = Vec::new();
        for ((contender, outcome), calls) in scenario
            .contenders
            .iter()
            .zip(&outcomes.contenders)
            .zip(&outcomes.system_calls)
        {
            let rival_of = ours.filter(|_| contender.name != *first_of_ours);
            let mut entry = Entry::new(contender, outcome, rival_of);
            if let (State::Measured(figures), Some(calls), Some(size)) =
                (&mut entry.state, calls, size)
            {
                figures.system_calls_per_256_kib = Some(rate_of_calls(*calls, size.bytes));
            }
            contenders.push(entry);
        }
        let targets = scenario.targets.iter();
        let targets = targets.map(|target| Verdict::new(target, scenario, outcomes));
        let bounds = scenario.bounds.iter();
        let bounds = bounds.map(|bound| Limits::new(bound, scenario, &contenders));
        let servers = scenario.servers.iter();
        Self {
            scenario: scenario.name.clone(),
            title: scenario.title.trim().to_owned(),
            shows: scenario.shows.trim().to_owned(),
            measure: scenario.measure,
            quick,
            size: size.map(ToString::to_string),
            rounds: outcomes.rounds,
            machine_summary: machine.summary(),
            machine,
            versions: versions(scenario),
            servers: servers
                .map(|server| (server.name.clone(), server.command.clone()))
                .collect(),
            system_calls_counted_by: outcomes.counter.map(|counter| counter.name().to_owned()),
            targets: targets.collect(),
            bounds: bounds.collect(),
            contenders,
        }
    }

    /// Whether every contender did its work. Only rivals may be missing.
    pub(crate) fn is_sound(&self) -> bool {
        self.contenders.iter().all(|entry| match entry.state {
            State::Measured(_) => true,
            State::Missing { .. } => !entry.ours,
            State::Failed { .. } => false,
        })
    }
}

impl Entry {
    fn new(contender: &Contender, outcome: &Outcome, ours: Option<&[Sample]>) -> Self {
        let state = match outcome {
            Outcome::Missing(program) => State::Missing {
                program: program.clone(),
            },
            Outcome::Failed(why) => State::Failed { why: why.clone() },
            Outcome::Measured(samples) => match Figures::new(samples, ours) {
                Some(figures) => State::Measured(Box::new(figures)),
                None => State::Failed {
                    why: "it was not run".into(),
                },
            },
        };
        Self {
            name: contender.name.clone(),
            ours: contender.ours,
            command: contender.command.clone(),
            state,
        }
    }

    pub(crate) fn figures(&self) -> Option<&Figures> {
        match &self.state {
            State::Measured(figures) => Some(figures),
            State::Missing { .. } | State::Failed { .. } => None,
        }
    }

    #[cfg(test)]
    pub(crate) fn figures_mut(&mut self) -> Option<&mut Figures> {
        match &mut self.state {
            State::Measured(figures) => Some(figures),
            State::Missing { .. } | State::Failed { .. } => None,
        }
    }
}

impl Figures {
    /// Of at least one sample; `ours` are our samples of the same rounds.
    fn new(samples: &[Sample], ours: Option<&[Sample]>) -> Option<Self> {
        let seconds = |time: fn(&Sample) -> Duration| {
            Summary::of(samples.iter().map(|sample| time(sample).as_secs_f64()))
        };
        let rates = samples.iter().filter_map(|sample| sample.rate);
        Some(Self {
            wall_seconds: seconds(|sample| sample.wall)?,
            user_seconds: seconds(|sample| sample.user)?,
            system_seconds: seconds(|sample| sample.system)?,
            cpu_seconds: seconds(cpu)?,
            server_cpu_seconds: seconds(|sample| sample.server_cpu)
                .filter(|summary| summary.maximum > 0.0),
            peak_memory_bytes: samples.iter().map(|sample| sample.peak_memory).max()?,
            server_memory_bytes: samples.iter().map(|sample| sample.server_memory).max()?,
            rate: Summary::of(rates),
            latency_microseconds: Summary::of(samples.iter().filter_map(|sample| sample.latency)),
            written_bytes: Summary::of(samples.iter().filter_map(written)),
            system_calls_per_256_kib: None,
            speed_of_ours: ours.and_then(|ours| speed_ratio(ours, samples)),
            cpu_of_ours: ours.and_then(|ours| cpu_ratio(ours, samples)),
        })
    }
}

impl Outcomes {
    /// The samples of a contender, if it was measured.
    fn samples_of(&self, scenario: &Scenario, name: &str) -> Option<&[Sample]> {
        let named = scenario.contenders.iter().zip(&self.contenders);
        let mut named = named.filter(|(contender, _)| contender.name == name);
        match named.next()?.1 {
            Outcome::Measured(samples) => Some(samples),
            Outcome::Missing(_) | Outcome::Failed(_) => None,
        }
    }
}

/// How many times as fast as theirs ours is, taken round by round.
fn speed_ratio(ours: &[Sample], theirs: &[Sample]) -> Option<Summary> {
    ratio(ours, theirs, |ours, theirs| {
        match (ours.rate, theirs.rate) {
            (Some(ours), Some(theirs)) => ours / theirs,
            _ => theirs.wall.as_secs_f64() / ours.wall.as_secs_f64(),
        }
    })
}

/// How many times less processor time than theirs ours takes, taken round by round.
fn cpu_ratio(ours: &[Sample], theirs: &[Sample]) -> Option<Summary> {
    ratio(ours, theirs, |ours, theirs| {
        cpu(theirs).as_secs_f64() / cpu(ours).as_secs_f64()
    })
}

/// How many times less processor time the servers took, round by round.
fn server_cpu_ratio(ours: &[Sample], theirs: &[Sample]) -> Option<Summary> {
    ratio(ours, theirs, |ours, theirs| {
        theirs.server_cpu.as_secs_f64() / ours.server_cpu.as_secs_f64()
    })
}

/// How many times shorter the latency was, round by round.
fn latency_ratio(ours: &[Sample], theirs: &[Sample]) -> Option<Summary> {
    ratio(ours, theirs, |ours, theirs| {
        match (ours.latency, theirs.latency) {
            (Some(ours), Some(theirs)) => theirs / ours,
            _ => f64::NAN,
        }
    })
}

/// How many times as large as ours what they write is, round by round.
fn written_ratio(ours: &[Sample], theirs: &[Sample]) -> Option<Summary> {
    ratio(ours, theirs, |ours, theirs| {
        match (written(ours), written(theirs)) {
            (Some(ours), Some(theirs)) => theirs / ours,
            _ => f64::NAN,
        }
    })
}

#[allow(
    clippy::cast_precision_loss,
    reason = "nobody writes 2^53 bytes in a benchmark"
)]
fn written(sample: &Sample) -> Option<f64> {
    sample.written.map(|bytes| bytes as f64)
}

fn ratio(
    ours: &[Sample],
    theirs: &[Sample],
    ratio: fn(&Sample, &Sample) -> f64,
) -> Option<Summary> {
    let pairs = ours.iter().zip(theirs);
    let ratios = pairs.map(|(ours, theirs)| ratio(ours, theirs));
    Summary::of(ratios.filter(|ratio| ratio.is_finite()))
}

#[allow(clippy::cast_precision_loss, reason = "nobody counts to 2^53 calls")]
fn rate_of_calls(calls: u64, bytes: u64) -> f64 {
    calls as f64 / (bytes as f64 / CALLS_PER)
}

fn cpu(sample: &Sample) -> Duration {
    sample.user + sample.system
}

/// The version of each foreign program, and ours once.
fn versions(scenario: &Scenario) -> BTreeMap<String, String> {
    let mut versions = BTreeMap::from([("blockferry".to_owned(), machine::our_version())]);
    let contenders = scenario.contenders.iter().map(|c| &c.command);
    let servers = scenario.servers.iter().map(|s| &s.command);
    for program in contenders.chain(servers).filter_map(|c| c.first()) {
        let is_ours = placeholder::names(program).is_ok_and(|names| !names.is_empty());
        if is_ours || versions.contains_key(program) {
            continue;
        }
        let version = match tools::find(program) {
            None => Some("missing".to_owned()),
            Some(path) => tools::version(&path),
        };
        let version = version.unwrap_or_else(|| "says no version".to_owned());
        versions.insert(program.clone(), version);
    }
    versions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls::Counter;

    fn sample(wall: u64, cpu: u64) -> Sample {
        Sample {
            wall: Duration::from_secs(wall),
            user: Duration::from_secs(cpu),
            system: Duration::ZERO,
            peak_memory: 1 << 20,
            server_cpu: Duration::ZERO,
            server_memory: 0,
            rate: None,
            latency: None,
            written: None,
        }
    }

    pub(super) fn example_scenario() -> Scenario {
        toml::from_str(
            "name = 'example'
            title = 'an example'
            size = { full = '1M', quick = '1M' }
            shows = 'how <fast>'
            [[contender]]
            name = 'we'
            ours = true
            command = ['{blockferry}']
            [[contender]]
            name = 'they'
            command = ['no-such-program-anywhere']
            [[contender]]
            name = 'others'
            command = ['no-such-program-anywhere']
            [[target]]
            rival = 'they'
            speed = 2.5
            cpu = 2.0
            [[target]]
            rival = 'others'
            speed = 1.0
            [[target]]
            rival = ['others', 'they']
            speed = 2.0
            [[bound]]
            peak_memory = '2M'
            system_calls = 2.0
            [[bound]]
            of = 'they'
            system_calls = 2.0",
        )
        .unwrap()
    }

    /// Ours takes 1, 2, 2 seconds; the rival 3, 4, 5; another one is missing.
    pub(super) fn example() -> Report {
        let scenario = example_scenario();
        let outcomes = Outcomes {
            contenders: vec![
                Outcome::Measured(vec![sample(1, 1), sample(2, 1), sample(2, 1)]),
                Outcome::Measured(vec![sample(3, 1), sample(4, 1), sample(5, 1)]),
                Outcome::Missing("no-such-program-anywhere".into()),
            ],
            system_calls: vec![Some(10), None, None],
            counter: Some(Counter::Strace),
            rounds: 3,
        };
        let settings = Settings {
            runs: None,
            quick: false,
        };
        Report::new(&scenario, settings, &outcomes)
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let report = example();
        let speed = report.contenders[1].figures().unwrap().speed_of_ours;
        let speed = speed.unwrap();
        assert_eq!(
            (speed.minimum, speed.median, speed.maximum),
            (2.0, 2.5, 3.0)
        );
        assert!(
            report.contenders[0]
                .figures()
                .unwrap()
                .speed_of_ours
                .is_none()
        );
    }

    #[test]
    fn system_calls_are_reckoned_for_each_256_kib() {
        let report = example();
        let calls = |index: usize| {
            let figures = report.contenders[index].figures().unwrap();
            figures.system_calls_per_256_kib
        };
        assert_eq!((calls(0), calls(1)), (Some(2.5), None));
    }

    #[test]
    fn a_missing_rival_is_in_the_report_and_no_failure() {
        let report = example();
        assert!(matches!(&report.contenders[2].state, State::Missing { .. }));
        assert_eq!(report.versions["no-such-program-anywhere"], "missing");
        assert!(report.is_sound());
    }
}
