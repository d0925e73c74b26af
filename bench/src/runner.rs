//! Running a scenario: a warm-up round, then rounds in which every contender runs once.
//!
//! Rounds are interleaved (A B C A B C ...), so that whatever else the machine does meets all of them
//! alike, and the ratio of two contenders is taken within a round. The warm-up round is thrown away,
//! but what it wrote is compared: a program that is fast because it copies wrongly does not count.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufReader, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::{
    image,
    interrupt::Interrupt,
    placeholder,
    process::{self, Running},
    scenario::{Contender, Measure, Scenario, Stdout},
    server::Server,
    tools::{self, Tools},
};

/// After this long a run is given up.
const TIMEOUT: Duration = Duration::from_secs(900);

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
    /// What the command printed, if that is what is measured.
    pub(crate) rate: Option<f64>,
}

/// What became of a contender.
pub(crate) enum Outcome {
    /// One sample a round.
    Measured(Vec<Sample>),
    /// The program of this name is not there.
    Missing(String),
    /// A run failed, or wrote something else than the others.
    Failed(String),
}

/// What became of each contender, in the scenario's order, and how many rounds counted.
pub(crate) struct Outcomes {
    pub(crate) contenders: Vec<Outcome>,
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
    let stage = Stage {
        scenario,
        quick: settings.quick,
        tools,
        interrupt,
        scratch: scratch.path(),
        images,
    };
    let rounds = match (settings.runs, settings.quick) {
        (Some(runs), _) => runs,
        (None, true) => scenario.runs.min(2),
        (None, false) => scenario.runs,
    };
    let mut outcomes: Vec<Outcome> = scenario
        .contenders
        .iter()
        .map(|contender| stage.look_for(contender))
        .collect::<Result<_>>()?;

    progress("warming up");
    stage.warm_up(&mut outcomes)?;
    for round in 1..=rounds {
        progress(&format!("round {round} of {rounds}"));
        for (contender, outcome) in scenario.contenders.iter().zip(&mut outcomes) {
            stage.round(contender, outcome)?;
            remove(&stage.out())?;
        }
    }
    Ok(Outcomes {
        contenders: outcomes,
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

/// Everything a run takes place in.
struct Stage<'a> {
    scenario: &'a Scenario,
    quick: bool,
    tools: &'a Tools,
    interrupt: &'a Interrupt,
    scratch: &'a Path,
    images: BTreeMap<String, PathBuf>,
}

impl Stage<'_> {
    /// Whether the contender's program is there at all.
    fn look_for(&self, contender: &Contender) -> Result<Outcome> {
        let program = self.expand(&contender.command[0])?;
        Ok(match tools::find(&program) {
            Some(_) => Outcome::Measured(Vec::new()),
            None => Outcome::Missing(base_name(&program)),
        })
    }

    /// Runs each contender once without counting it, and compares what they wrote.
    fn warm_up(&self, outcomes: &mut [Outcome]) -> Result<()> {
        let reference = self.scratch.join("reference");
        let mut writer_of_reference: Option<&str> = None;
        for (contender, outcome) in self.scenario.contenders.iter().zip(&mut *outcomes) {
            self.round(contender, outcome)?;
            let Outcome::Measured(samples) = outcome else {
                remove(&self.out())?;
                continue;
            };
            samples.clear();
            if !writes_output(contender) {
                continue;
            }
            if !self.out().exists() {
                *outcome = Outcome::Failed("it wrote no output".into());
                continue;
            }
            match writer_of_reference {
                None => {
                    fs::rename(self.out(), &reference)?;
                    writer_of_reference = Some(&contender.name);
                }
                Some(name) => {
                    if !same_contents(&self.out(), &reference, self.interrupt)? {
                        let why = format!("its output differs from that of {name}");
                        *outcome = Outcome::Failed(why);
                    }
                    remove(&self.out())?;
                }
            }
        }
        remove(&reference)
    }

    /// One run of a contender that did not fail before; its sample is added.
    fn round(&self, contender: &Contender, outcome: &mut Outcome) -> Result<()> {
        self.interrupt.check()?;
        let Outcome::Measured(samples) = outcome else {
            return Ok(());
        };
        let servers = self.start_servers()?;
        let mut sample = match self.measure(contender) {
            Ok(sample) => sample,
            Err(error) => {
                // An interrupt is no fault of the contender.
                self.interrupt.check()?;
                *outcome = Outcome::Failed(format!("{error:#}"));
                return Ok(());
            }
        };
        for server in servers {
            sample.server_cpu += server.stop(self.interrupt)?;
        }
        samples.push(sample);
        Ok(())
    }

    fn start_servers(&self) -> Result<Vec<Server>> {
        let mut servers = Vec::new();
        for server in &self.scenario.servers {
            let socket = self.socket(&server.name);
            remove(&socket)?;
            let path = socket.to_string_lossy();
            let mut command = Vec::new();
            for argument in &server.command {
                command.push(placeholder::expand(argument, |name| match name {
                    "socket" => Ok(path.clone().into_owned()),
                    name => self.value(name),
                })?);
            }
            servers.push(Server::start(
                &server.name,
                &command,
                &socket,
                self.scratch,
                self.interrupt,
            )?);
        }
        Ok(servers)
    }

    fn measure(&self, contender: &Contender) -> Result<Sample> {
        let rate_is_printed = self.scenario.measure == Measure::Rate;
        let mut command = Command::new(self.expand(&contender.command[0])?);
        for argument in &contender.command[1..] {
            command.arg(self.expand(argument)?);
        }
        let printed = self.scratch.join("printed");
        command.stdout(match contender.stdout {
            _ if rate_is_printed => Stdio::from(File::create(&printed)?),
            Stdout::Null => Stdio::null(),
            Stdout::Pipe => Stdio::piped(),
        });

        let mut running = Running::start(&mut command, &self.scratch.join("stderr"))?;
        let drain = running.take_stdout().map(process::drain);
        let ended = running.wait(self.interrupt, TIMEOUT)?;
        if let Some(drain) = drain {
            drain.join().expect("the reader does not panic")?;
        }
        ended.success()?;
        let rate = rate_is_printed.then(|| rate(&printed)).transpose()?;
        Ok(Sample {
            wall: ended.wall,
            user: ended.usage.user,
            system: ended.usage.system,
            peak_memory: ended.usage.peak_memory,
            server_cpu: Duration::ZERO,
            rate,
        })
    }

    fn expand(&self, argument: &str) -> Result<String> {
        placeholder::expand(argument, |name| self.value(name))
    }

    /// What a placeholder stands for, wherever it stands.
    fn value(&self, name: &str) -> Result<String> {
        let path = match name.split_once(':') {
            Some(("example", example)) => self.tools.example(example),
            Some(("image", image)) => self.images[image].clone(),
            Some(("uri", server)) => return Ok(self.uri(server)),
            None if name == "uri" => return Ok(self.uri(&self.scenario.servers[0].name)),
            None if name == "image" => self.images[self.scenario.images[0].name()].clone(),
            None if name == "out" => self.out(),
            None if name == "size" => {
                let size = self.scenario.size.as_ref().context("there is no size")?;
                return Ok(size.of(self.quick).to_string());
            }
            None => self.tools.program(name),
            Some(_) => bail!("`{{{name}}}` stands for nothing"),
        };
        Ok(path.to_string_lossy().into_owned())
    }

    fn uri(&self, server: &str) -> String {
        format!("nbd+unix:///?socket={}", self.socket(server).display())
    }

    fn socket(&self, server: &str) -> PathBuf {
        self.scratch.join(format!("{server}.sock"))
    }

    fn out(&self) -> PathBuf {
        self.scratch.join("out")
    }
}

/// Whether the contender is told where to write.
fn writes_output(contender: &Contender) -> bool {
    contender
        .command
        .iter()
        .any(|argument| argument.contains("{out}"))
}

fn base_name(program: &str) -> String {
    let name = Path::new(program).file_name();
    name.map_or_else(
        || program.into(),
        |name| name.to_string_lossy().into_owned(),
    )
}

/// The number that a program printed.
fn rate(printed: &Path) -> Result<f64> {
    let text = fs::read_to_string(printed)?;
    let text = text.trim();
    let rate = text.parse::<f64>().ok().filter(|rate| rate.is_finite());
    rate.with_context(|| format!("it printed `{text}`, which is no rate"))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| path.display().to_string())
        }
        _ => Ok(()),
    }
}

fn same_contents(one: &Path, two: &Path, interrupt: &Interrupt) -> Result<bool> {
    const CHUNK: u64 = 1 << 20;
    if fs::metadata(one)?.len() != fs::metadata(two)?.len() {
        return Ok(false);
    }
    let (mut one, mut two) = (
        BufReader::new(File::open(one)?),
        BufReader::new(File::open(two)?),
    );
    let (mut left, mut right) = (Vec::new(), Vec::new());
    loop {
        interrupt.check()?;
        left.clear();
        right.clear();
        one.by_ref().take(CHUNK).read_to_end(&mut left)?;
        two.by_ref().take(CHUNK).read_to_end(&mut right)?;
        if left != right {
            return Ok(false);
        }
        if left.is_empty() {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(contenders: &str) -> Outcomes {
        let text = format!("name = \"t\"\nshows = \"x\"\n{contenders}");
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
    fn a_printed_rate_is_the_sample() {
        let outcomes = outcomes(&("measure = 'rate'\n".to_owned() + &contender("a", "echo 12.5")));
        let Outcome::Measured(samples) = &outcomes.contenders[0] else {
            panic!("it was measured");
        };
        assert_eq!(samples[0].rate, Some(12.5));
    }
}
