//! Test programs, several at a time, those that take longest first.
//!
//! cargo runs one after the other, and most of what they do is to wait: for servers to start, for a connection to be
//! given up. What a program prints is kept until it ends.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
    thread,
    time::Instant,
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::program;

/// A test program, or something else that ends well or not.
pub(crate) struct Suite {
    pub(crate) name: String,
    pub(crate) command: Command,
}

/// How long each took when it was run last, by name, in seconds.
pub(crate) struct Durations {
    file: PathBuf,
    known: BTreeMap<String, f64>,
}

impl Durations {
    /// Those that `file` has, if it is there.
    pub(crate) fn read(file: PathBuf) -> Self {
        let text = fs::read(&file).unwrap_or_default();
        let known = serde_json::from_slice(&text).unwrap_or_default();
        Self { file, known }
    }

    /// What is not known may be the longest.
    fn of(&self, name: &str) -> f64 {
        self.known.get(name).copied().unwrap_or(f64::INFINITY)
    }

    fn write(&self) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.known)?;
        fs::write(&self.file, text).with_context(|| self.file.display().to_string())
    }
}

/// What `cargo test --no-run --message-format=json` built: the test programs, each in its package's directory.
pub(crate) fn parse(messages: &[u8]) -> Result<Vec<Suite>> {
    let text = std::str::from_utf8(messages).context("what cargo says is text")?;
    let messages = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut suites = Vec::new();
    for message in messages.filter(|message| message["profile"]["test"] == true) {
        let Some(executable) = message["executable"].as_str() else {
            continue;
        };
        let manifest = message["manifest_path"]
            .as_str()
            .context("a program without a package")?;
        let directory = Path::new(manifest)
            .parent()
            .context("a manifest lies in a directory")?;
        let target = &message["target"];
        let (kind, name) = (target["kind"][0].as_str(), target["name"].as_str());
        let package = directory
            .strip_prefix(program::workspace())
            .unwrap_or(directory);
        let words = [package.to_str(), kind, name].map(Option::unwrap_or_default);
        let mut command = Command::new(executable);
        command
            .current_dir(directory)
            .env("CARGO_MANIFEST_DIR", directory)
            .env("PATH", program::search_path());
        suites.push(Suite {
            name: words.join(" ").trim().to_owned(),
            command,
        });
    }
    Ok(suites)
}

/// Runs all of `suites`, so many at a time, and returns what failed: the suite, and what it printed of it.
pub(crate) fn run(
    suites: Vec<Suite>,
    at_a_time: usize,
    durations: &mut Durations,
) -> Result<Vec<String>> {
    let mut suites = suites;
    suites.sort_by(|one, other| {
        durations
            .of(&other.name)
            .total_cmp(&durations.of(&one.name))
    });
    let waiting = Mutex::new(VecDeque::from(suites));
    let done = Mutex::new((Vec::new(), &mut durations.known));
    thread::scope(|scope| {
        for _ in 0..at_a_time {
            scope.spawn(|| {
                loop {
                    // A name of its own, so that the lock is given back.
                    let next = lock(&waiting).pop_front();
                    let Some(suite) = next else { break };
                    let (name, started) = (suite.name.clone(), Instant::now());
                    let failure = outcome(suite);
                    let seconds = started.elapsed().as_secs_f64();
                    let mut done = lock(&done);
                    let (failures, known) = &mut *done;
                    let left = lock(&waiting).len();
                    let word = if failure.is_ok() { "ok" } else { "FAILED" };
                    eprintln!("{word:<6} {name} ({seconds:.1} s; {left} wait)");
                    known.insert(name.clone(), seconds);
                    if let Err(printed) = failure {
                        eprintln!("{printed}");
                        failures.push(name);
                    }
                }
            });
        }
    });
    let (failures, _) = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    durations.write()?;
    Ok(failures)
}

/// Runs one to its end. The error is what it printed.
fn outcome(mut suite: Suite) -> Result<(), String> {
    let output = suite.command.output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed);
    // What passed is of no interest.
    let lines = printed
        .lines()
        .filter(|line| !(line.starts_with("test ") && line.ends_with(" ... ok")));
    Err(lines.collect::<Vec<_>>().join("\n") + &format!("\n{}", output.status))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suite(name: &str, script: &str) -> Suite {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Suite {
            name: name.to_owned(),
            command,
        }
    }

    #[test]
    fn all_of_them_run_and_those_that_fail_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("durations.json");
        let mut durations = Durations::read(file.clone());
        let suites = vec![
            suite("good", "true"),
            suite("bad", "echo why; exit 3"),
            suite("other", "true"),
        ];
        assert_eq!(run(suites, 2, &mut durations).unwrap(), ["bad"]);
        let known: BTreeMap<String, f64> =
            serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        assert_eq!(
            known.into_keys().collect::<Vec<_>>(),
            ["bad", "good", "other"]
        );
    }

    #[test]
    fn the_longest_begins_and_what_is_not_known_comes_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let order = dir.path().join("order");
        let mut durations = Durations::read(dir.path().join("durations.json"));
        durations.known = BTreeMap::from([("short".into(), 1.0), ("long".into(), 9.0)]);
        let suites = ["short", "new", "long"];
        let suites = suites.map(|name| suite(name, &format!("echo {name} >> {}", order.display())));
        assert!(run(suites.into(), 1, &mut durations).unwrap().is_empty());
        assert_eq!(fs::read_to_string(order).unwrap(), "new\nlong\nshort\n");
    }

    #[test]
    fn what_failed_is_printed_without_what_passed() {
        let printed = outcome(suite(
            "bad",
            "echo 'test a ... ok'; echo 'test b ... FAILED'; exit 1",
        ));
        let printed = printed.unwrap_err();
        assert!(
            !printed.contains("test a") && printed.contains("test b"),
            "{printed}"
        );
    }

    #[test]
    fn test_programs_are_found_in_what_cargo_says() {
        let root = program::workspace().display();
        let line = |test: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"{root}/crates/x/Cargo.toml","target":{{"kind":["test"],"name":"model"}},"profile":{{"test":{test}}},"executable":"/t/model-1"}}"#
            )
        };
        let messages = format!("{}\n{}\nnot JSON\n", line(true), line(false));
        let suites = parse(messages.as_bytes()).unwrap();
        assert_eq!(suites.len(), 1);
        assert_eq!(suites[0].name, "crates/x test model");
        assert_eq!(suites[0].command.get_program(), "/t/model-1");
    }
}
