//! Running a scenario: a warm-up round, then rounds in which every contender runs once.
//!
//! Rounds are interleaved (A B C A B C ...), so that whatever else the machine does meets all of them
//! alike, and the ratio of two contenders is taken within a round. The warm-up round is thrown away,
//! but what it wrote is compared: a program that is fast because it copies wrongly does not count.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::{
    calls::Counter,
    contents::Output,
    image,
    interrupt::Interrupt,
    ports,
    scenario::{Contender, Scenario},
    stage::Stage,
    tools::Tools,
};

/// Where images and outputs are put when it is there: no disk is to be measured by accident.
const MEMORY: &str = "/dev/shm";

/// How to run, from the command line.
#[derive(Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) runs: Option<usize>,
    pub(crate) quick: bool,
}

/// What one run took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) wall: Duration,
    pub(crate) user: Duration,
    pub(crate) system: Duration,
    /// Of the command, in bytes.
    pub(crate) peak_memory: u64,
    /// User and system time of all servers, their start included.
    pub(crate) server_cpu: Duration,
    /// Of all servers at their peaks, in bytes.
    pub(crate) server_memory: u64,
    /// What the command printed, if that is what is measured.
    pub(crate) rate: Option<f64>,
    /// A latency in microseconds that it printed behind it.
    pub(crate) latency: Option<f64>,
    /// The length of what it wrote in bytes, where that is in a format.
    pub(crate) written: Option<u64>,
}

/// What became of a contender.
pub(crate) enum Outcome {
    /// One sample a round.
    Measured(Vec<Sample>),
    /// The program of this name is not there: its own, or one of its servers'.
    Missing(String),
    /// A run failed, or wrote something else than the others.
    Failed(String),
}

/// What became of each contender, in the scenario's order, and how many rounds counted.
pub(crate) struct Outcomes {
    pub(crate) contenders: Vec<Outcome>,
    /// The system calls of one run, of those that were counted.
    pub(crate) system_calls: Vec<Option<u64>>,
    /// What counted them, if anything was there to do so.
    pub(crate) counter: Option<Counter>,
    pub(crate) rounds: usize,
}

/// Runs the scenario. Contenders that are missing or fail are part of the outcome; an error means
/// that nothing could be measured.
pub(crate) fn run(
    scenario: &Scenario,
    settings: Settings,
    tools: &Tools,
    interrupt: &Interrupt,
    progress: &mut dyn FnMut(&str),
) -> Result<Outcomes> {
    let scratch = scratch()?;
    progress("preparing images");
    let images = image::prepare(scenario, settings.quick, scratch.path(), interrupt)?;
    let names = scenario.with_ports();
    let ports = ports::free(names.len())?;
    let stage = Stage {
        scenario,
        quick: settings.quick,
        tools,
        interrupt,
        scratch: scratch.path(),
        images,
        ports: names.into_iter().map(String::from).zip(ports).collect(),
    };
    let rounds = match (settings.runs, settings.quick) {
        (Some(runs), _) => runs,
        (None, true) => scenario.runs.min(2),
        (None, false) => scenario.runs,
    };
    let mut outcomes = Vec::new();
    for contender in &scenario.contenders {
        outcomes.push(match stage.missing_for(contender)? {
            Some(program) => Outcome::Missing(program),
            None => Outcome::Measured(Vec::new()),
        });
    }

    progress("warming up");
    stage.warm_up(&mut outcomes)?;
    let mut counter = None;
    let mut system_calls = vec![None; outcomes.len()];
    if scenario.counts_system_calls() {
        progress("counting system calls");
        counter = Counter::find(stage.scratch, interrupt)?;
        if let Some(counter) = counter {
            system_calls = stage.count(&mut outcomes, counter)?;
        }
    }
    for round in 1..=rounds {
        progress(&format!("round {round} of {rounds}"));
        for (contender, outcome) in scenario.contenders.iter().zip(&mut outcomes) {
            stage.round(contender, outcome)?;
            stage.tidy(contender)?;
        }
    }
    Ok(Outcomes {
        contenders: outcomes,
        system_calls,
        counter,
        rounds,
    })
}

fn scratch() -> Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("blockferry-bench-");
    let directory = if Path::new(MEMORY).is_dir() {
        builder.tempdir_in(MEMORY)
    } else {
        builder.tempdir()
    };
    directory.context("a directory for the images")
}

impl Stage<'_> {
    /// Runs each contender once without counting it, and compares what they wrote.
    fn warm_up(&self, outcomes: &mut [Outcome]) -> Result<()> {
        let mut reference: Option<(&str, Output)> = None;
        for (contender, outcome) in self.scenario.contenders.iter().zip(&mut *outcomes) {
            self.round(contender, outcome)?;
            if let Outcome::Measured(samples) = outcome {
                samples.clear();
                let why = match self.output_of(contender) {
                    Some(output) => self.compare(contender, &output, &mut reference)?,
                    None => None,
                };
                if let Some(why) = why {
                    *outcome = Outcome::Failed(why);
                }
            }
            self.tidy(contender)?;
        }
        reference.map_or(Ok(()), |(_, output)| output.remove())
    }

    /// What is wrong with the contender's output, if anything is. The first output becomes the reference.
    fn compare<'a>(
        &self,
        contender: &'a Contender,
        output: &Output,
        reference: &mut Option<(&'a str, Output)>,
    ) -> Result<Option<String>> {
        if !output.path.exists() {
            return Ok(Some("it wrote no output".into()));
        }
        let Some((writer, right)) = reference else {
            let path = self.scratch.join("reference");
            fs::rename(&output.path, &path)?;
            let format = output.format;
            *reference = Some((&contender.name, Output { path, format }));
            return Ok(None);
        };
        let same = output.equals(right, self.scratch, self.interrupt)?;
        Ok((!same).then(|| format!("its output differs from that of {writer}")))
    }

    /// Counts the system calls of each contender that has not failed, in a run of its own.
    fn count(&self, outcomes: &mut [Outcome], counter: Counter) -> Result<Vec<Option<u64>>> {
        let mut counts = Vec::new();
        for (contender, outcome) in self.scenario.contenders.iter().zip(outcomes) {
            self.interrupt.check()?;
            let mut count = None;
            if matches!(outcome, Outcome::Measured(_)) {
                let counted = self.count_calls(contender, counter);
                count = self.unless_failed(counted, outcome)?;
            }
            counts.push(count);
            self.tidy(contender)?;
        }
        Ok(counts)
    }

    /// One run of a contender that did not fail before; its sample is added.
    fn round(&self, contender: &Contender, outcome: &mut Outcome) -> Result<()> {
        self.interrupt.check()?;
        if matches!(outcome, Outcome::Measured(_)) {
            let sample = self.unless_failed(self.measure(contender), outcome)?;
            if let Outcome::Measured(samples) = outcome {
                samples.extend(sample);
            }
        }
        Ok(())
    }

    /// The result of a run. A failure becomes the contender's outcome.
    fn unless_failed<T>(&self, result: Result<T>, outcome: &mut Outcome) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                // An interrupt is no fault of the contender.
                self.interrupt.check()?;
                *outcome = Outcome::Failed(format!("{error:#}"));
                Ok(None)
            }
        }
    }

    /// Removes what the contender wrote, so that the next one finds the memory and the place free.
    fn tidy(&self, contender: &Contender) -> Result<()> {
        self.output_of(contender)
            .map_or(Ok(()), |output| output.remove())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(contenders: &str) -> Outcomes {
        let text = format!("name = \"t\"\ntitle = \"t\"\nshows = \"x\"\n{contenders}");
        let scenario: Scenario = toml::from_str(&text).unwrap();
        let settings = Settings {
            runs: Some(3),
            quick: true,
        };
        let (interrupt, _writer) = Interrupt::detached();
        let tools = Tools::beside_the_runner().unwrap();
        run(&scenario, settings, &tools, &interrupt, &mut |_| ()).unwrap()
    }

    fn contender(name: &str, script: &str) -> String {
        format!("[[contender]]\nname = '{name}'\nours = true\ncommand = ['sh', '-c', '{script}']\n")
    }

    #[test]
    fn each_contender_has_a_sample_for_each_round_that_counts() {
        let outcomes = outcomes(&(contender("a", "exit 0") + &contender("b", "true")));
        assert_eq!(outcomes.rounds, 3);
        for outcome in &outcomes.contenders {
            assert!(matches!(outcome, Outcome::Measured(samples) if samples.len() == 3));
        }
    }

    #[test]
    fn a_missing_program_and_a_failing_one_are_told_apart() {
        let missing = "[[contender]]\nname = 'm'\ncommand = ['no-such-program-anywhere']\n";
        let outcomes = outcomes(&(contender("f", "echo why >&2; exit 9") + missing));
        assert!(
            matches!(&outcomes.contenders[0], Outcome::Failed(why) if why == "sh: exit code 9: why")
        );
        assert!(
            matches!(&outcomes.contenders[1], Outcome::Missing(name) if name == "no-such-program-anywhere")
        );
    }

    #[test]
    fn a_contender_that_writes_something_else_fails() {
        let outcomes = outcomes(
            &(contender("a", "printf one > {out}")
                + &contender("b", "printf one > {out}")
                + &contender("c", "printf two > {out}")),
        );
        assert!(matches!(&outcomes.contenders[1], Outcome::Measured(_)));
        assert!(matches!(
            &outcomes.contenders[2],
            Outcome::Failed(why) if why == "its output differs from that of a"
        ));
    }

    #[test]
    fn a_contender_that_writes_nothing_where_it_should_fails() {
        let outcomes = outcomes(&contender("a", ": {out}"));
        assert!(matches!(
            &outcomes.contenders[0],
            Outcome::Failed(why) if why == "it wrote no output"
        ));
    }

    #[test]
    fn a_server_that_is_missing_or_fails_is_the_outcome_of_those_that_need_it() {
        let servers = "server = [
            { name = 'gone', command = ['no-such-server'] },
            { name = 'broken', command = ['sh', '-c', 'echo why >&2'] },
        ]\n";
        let outcomes = outcomes(
            &(servers.to_owned()
                + &contender("a", ": {uri:gone}")
                + &contender("b", ": {uri:broken}")
                + &contender("c", "exit 0")),
        );
        assert!(
            matches!(&outcomes.contenders[0], Outcome::Missing(name) if name == "no-such-server")
        );
        assert!(matches!(
            &outcomes.contenders[1],
            Outcome::Failed(why) if why == "server `broken` ended at once: why"
        ));
        assert!(matches!(&outcomes.contenders[2], Outcome::Measured(_)));
    }

    #[test]
    fn a_server_is_given_ports_and_variables() {
        let server = "places = ['target']\nserver = [{
            name = 's', command = ['sh', '-c', 'test $MINE = {port} && echo $OTHER >&2'],
            environment = { MINE = '{port}', OTHER = '{port:target}' },
        }]\n";
        let outcomes = outcomes(&(server.to_owned() + &contender("a", ": {port:s}")));
        let Outcome::Failed(why) = &outcomes.contenders[0] else {
            panic!("the server ends");
        };
        let port = why.strip_prefix("server `s` ended at once: ").unwrap();
        assert_ne!(port.parse::<u16>().unwrap(), 0);
    }

    #[test]
    fn each_run_finds_an_empty_image_and_what_is_written_to_it_is_compared() {
        let setting = "size = { full = '1G', quick = '8' }
            image = [{ kind = 'empty', name = 'new', format = 'raw' }]\n";
        let write = |name, text| {
            let check = "test $(tr -d \"\\000\" <{image:new} | wc -c) = 0";
            contender(name, &format!("{check} && printf {text} >{{image:new}}"))
        };
        let outcomes = outcomes(
            &(setting.to_owned() + &write("a", "x") + &write("b", "x") + &write("c", "y")),
        );
        for same in &outcomes.contenders[..2] {
            assert!(matches!(same, Outcome::Measured(samples) if samples.len() == 3));
        }
        assert!(matches!(&outcomes.contenders[2], Outcome::Failed(_)));
    }

    #[test]
    fn a_printed_rate_is_the_sample() {
        let outcomes = outcomes(&("measure = 'rate'\n".to_owned() + &contender("a", "echo 12.5")));
        let Outcome::Measured(samples) = &outcomes.contenders[0] else {
            panic!("it was measured");
        };
        assert_eq!(samples[0].rate, Some(12.5));
    }
}
