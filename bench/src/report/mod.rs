//! The result of a scenario, reckoned once from the samples and shown three ways.

mod json;
mod svg;
mod table;

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use crate::{
    machine::{self, Machine},
    placeholder,
    runner::{Outcome, Outcomes, Sample, Settings},
    scenario::{Contender, Measure, Scenario, Target},
    statistics::Summary,
    tools,
};

pub(crate) use self::{json::json, svg::svg, table::table};

/// Everything that is to be said about one scenario. Its JSON is this, field by field.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) scenario: String,
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
    pub(crate) targets: Vec<Verdict>,
}

/// One contender.
#[derive(Debug, Serialize)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) ours: bool,
    /// As the scenario has it, with its placeholders.
    pub(crate) command: Vec<String>,
    #[serde(flatten)]
    pub(crate) state: State,
}

#[derive(Debug, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub(crate) enum State {
    Measured(Box<Figures>),
    Missing { program: String },
    Failed { why: String },
}

/// Seconds, bytes and GB/s, over the rounds.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    pub(crate) wall_seconds: Summary,
    pub(crate) user_seconds: Summary,
    pub(crate) system_seconds: Summary,
    pub(crate) cpu_seconds: Summary,
    pub(crate) server_cpu_seconds: Option<Summary>,
    pub(crate) peak_memory_bytes: u64,
    pub(crate) rate: Option<Summary>,
    /// How many times as fast as this one ours is, taken round by round. Nothing for ours itself.
    pub(crate) speed_of_ours: Option<Summary>,
    /// How many times less processor time than this one ours takes, taken round by round.
    pub(crate) cpu_of_ours: Option<Summary>,
}

/// Whether a target was reached.
#[derive(Debug, Serialize)]
pub(crate) struct Verdict {
    pub(crate) rival: String,
    pub(crate) wanted_speed: f64,
    /// Nothing when one of the two was not measured.
    pub(crate) speed: Option<f64>,
    pub(crate) wanted_cpu: Option<f64>,
    pub(crate) cpu: Option<f64>,
    pub(crate) reached: bool,
}

impl Report {
    pub(crate) fn new(scenario: &Scenario, settings: Settings, outcomes: &Outcomes) -> Self {
        let machine = Machine::this();
        let ours = scenario
            .contenders
            .iter()
            .zip(&outcomes.contenders)
            .find(|(contender, _)| contender.ours)
            .and_then(|(_, outcome)| samples(outcome));
        let first_of_ours = &scenario.ours().name;
        let contenders: Vec<Entry> = scenario
            .contenders
            .iter()
            .zip(&outcomes.contenders)
            .map(|(contender, outcome)| {
                let rival_of = ours.filter(|_| contender.name != *first_of_ours);
                Entry::new(contender, outcome, rival_of)
            })
            .collect();
        let targets = scenario
            .targets
            .iter()
            .map(|target| Verdict::new(target, &contenders))
            .collect();
        let servers = scenario.servers.iter();
        Self {
            scenario: scenario.name.clone(),
            shows: scenario.shows.trim().to_owned(),
            measure: scenario.measure,
            quick: settings.quick,
            size: scenario
                .size
                .as_ref()
                .map(|size| size.of(settings.quick).to_string()),
            rounds: outcomes.rounds,
            machine_summary: machine.summary(),
            machine,
            versions: versions(scenario),
            servers: servers
                .map(|server| (server.name.clone(), server.command.clone()))
                .collect(),
            contenders,
            targets,
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
}

impl Figures {
    /// Of at least one sample; `ours` are our samples of the same rounds.
    fn new(samples: &[Sample], ours: Option<&[Sample]>) -> Option<Self> {
        let seconds = |time: fn(&Sample) -> Duration| {
            Summary::of(samples.iter().map(|sample| time(sample).as_secs_f64()))
        };
        let rates = samples.iter().filter_map(|sample| sample.rate);
        let ratios = |ratio: fn(&Sample, &Sample) -> f64| {
            let pairs = ours?.iter().zip(samples);
            let ratios = pairs.map(|(ours, theirs)| ratio(ours, theirs));
            Summary::of(ratios.filter(|ratio| ratio.is_finite()))
        };
        Some(Self {
            wall_seconds: seconds(|sample| sample.wall)?,
            user_seconds: seconds(|sample| sample.user)?,
            system_seconds: seconds(|sample| sample.system)?,
            cpu_seconds: seconds(cpu)?,
            server_cpu_seconds: seconds(|sample| sample.server_cpu)
                .filter(|summary| summary.maximum > 0.0),
            peak_memory_bytes: samples.iter().map(|sample| sample.peak_memory).max()?,
            rate: Summary::of(rates),
            speed_of_ours: ratios(|ours, theirs| match (ours.rate, theirs.rate) {
                (Some(ours), Some(theirs)) => ours / theirs,
                _ => theirs.wall.as_secs_f64() / ours.wall.as_secs_f64(),
            }),
            cpu_of_ours: ratios(|ours, theirs| cpu(theirs).as_secs_f64() / cpu(ours).as_secs_f64()),
        })
    }
}

impl Verdict {
    fn new(target: &Target, contenders: &[Entry]) -> Self {
        let figures = contenders
            .iter()
            .find(|entry| entry.name == target.rival)
            .and_then(Entry::figures);
        let median = |summary: Option<Summary>| summary.map(|summary| summary.median);
        let speed = median(figures.and_then(|figures| figures.speed_of_ours));
        let cpu = median(figures.and_then(|figures| figures.cpu_of_ours));
        let is_reached = |wanted: f64, reached: Option<f64>| reached.is_some_and(|r| r >= wanted);
        Self {
            rival: target.rival.clone(),
            wanted_speed: target.speed,
            speed,
            wanted_cpu: target.cpu,
            cpu,
            reached: is_reached(target.speed, speed)
                && target.cpu.is_none_or(|wanted| is_reached(wanted, cpu)),
        }
    }
}

fn samples(outcome: &Outcome) -> Option<&[Sample]> {
    match outcome {
        Outcome::Measured(samples) => Some(samples),
        Outcome::Missing(_) | Outcome::Failed(_) => None,
    }
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

    fn sample(wall: u64, cpu: u64) -> Sample {
        Sample {
            wall: Duration::from_secs(wall),
            user: Duration::from_secs(cpu),
            system: Duration::ZERO,
            peak_memory: 1 << 20,
            server_cpu: Duration::ZERO,
            rate: None,
        }
    }

    /// Ours takes 1, 2, 2 seconds; the rival 3, 4, 5; another one is missing.
    pub(super) fn example() -> Report {
        let scenario: Scenario = toml::from_str(
            "name = 'example'
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
            speed = 1.0",
        )
        .unwrap();
        let outcomes = Outcomes {
            contenders: vec![
                Outcome::Measured(vec![sample(1, 1), sample(2, 1), sample(2, 1)]),
                Outcome::Measured(vec![sample(3, 1), sample(4, 1), sample(5, 1)]),
                Outcome::Missing("no-such-program-anywhere".into()),
            ],
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
    fn a_target_needs_both_the_speed_and_the_processor_time() {
        let report = example();
        assert_eq!(report.targets[0].speed, Some(2.5));
        assert_eq!(report.targets[0].cpu, Some(1.0));
        assert!(!report.targets[0].reached);
    }

    #[test]
    fn a_target_against_a_missing_rival_is_not_reached() {
        let verdict = &example().targets[1];
        assert_eq!((verdict.speed, verdict.reached), (None, false));
    }

    #[test]
    fn a_missing_rival_is_in_the_report_and_no_failure() {
        let report = example();
        assert!(matches!(&report.contenders[2].state, State::Missing { .. }));
        assert_eq!(report.versions["no-such-program-anywhere"], "missing");
        assert!(report.is_sound());
    }
}
