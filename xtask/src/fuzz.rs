//! `cargo xtask fuzz`: every fuzz target for some seconds.
//!
//! A smoke, not a search: it shows that each target builds, runs and finds nothing near its seeds. What a target
//! finds, and the corpus that it grows, stay in `fuzz/artifacts` and `fuzz/corpus`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::{
    program,
    toolchains::{self, Toolchain},
    tools,
};

const CARGO_FUZZ: &str = "0.13.2";

/// Bytes of memory that a target may take, in MiB: what an input only claims must not be allocated.
const MEMORY: &str = "-rss_limit_mb=2048";

/// Seconds that one input may take: longer counts as a hang.
const PATIENCE: &str = "-timeout=25";

#[derive(Args)]
pub(crate) struct Options {
    /// How long each target runs.
    #[arg(long, default_value_t = 10)]
    seconds: u64,

    /// The toolchain: one that takes unstable options. Without it a nightly one, as rustup lists it.
    #[arg(long)]
    toolchain: Option<String>,

    /// The targets; without any, all of them.
    targets: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let directory = program::workspace().join("fuzz");
    let all = targets(&directory)?;
    let mut chosen = options.targets.clone();
    if chosen.is_empty() {
        chosen.clone_from(&all);
    }
    for name in &chosen {
        ensure!(
            all.contains(name),
            "there is no target {name}: there are {}",
            all.join(", ")
        );
    }
    let fuzzer = Fuzzer {
        tool: tools::cargo_tool("cargo-fuzz", CARGO_FUZZ)?,
        toolchain: toolchain(options.toolchain.as_deref())?,
        built: tools::target_directory()?.join("fuzz"),
        directory,
    };
    fs::create_dir_all(&fuzzer.built)?;
    let mut failed = Vec::new();
    for name in &chosen {
        let outcome = fuzzer.smoke(name, options.seconds)?;
        println!("{name:<20} {}", outcome.told);
        if !outcome.passed {
            failed.push(name.clone());
        }
    }
    if !failed.is_empty() {
        bail!(
            "{} of {} targets failed: {}",
            failed.len(),
            chosen.len(),
            failed.join(", ")
        );
    }
    Ok(())
}

/// What compiles the targets: sanitizers are unstable options.
fn toolchain(wanted: Option<&str>) -> Result<Toolchain> {
    if let Some(name) = wanted {
        return Ok(Toolchain::Named(name.to_owned()));
    }
    toolchains::nightly()?.context(
        "fuzzing needs a nightly toolchain: rustup toolchain install nightly, or --toolchain NAME",
    )
}

struct Fuzzer {
    tool: PathBuf,
    toolchain: Toolchain,
    directory: PathBuf,
    /// Apart from the other builds, whose flags are others.
    built: PathBuf,
}

struct Outcome {
    passed: bool,
    told: String,
}

impl Fuzzer {
    fn command(&self, subcommand: &str, name: &str) -> Command {
        let mut command = Command::new(&self.tool);
        command
            .args([subcommand, "--fuzz-dir"])
            .arg(&self.directory)
            .current_dir(&self.directory)
            .env("CARGO_TARGET_DIR", &self.built)
            // libdeflate has a table twice, under one name and alike, and the sanitizer takes it for a mistake.
            .env("ASAN_OPTIONS", "detect_odr_violation=0")
            .env_remove("RUSTFLAGS");
        self.toolchain.choose(&mut command);
        if name == "endpoint" {
            // It brings the whole house with it.
            command.args(["--features", "endpoint"]);
        }
        command.arg(name);
        command
    }

    /// Builds `name`, whose output is shown, and runs it, whose output goes to a file.
    fn smoke(&self, name: &str, seconds: u64) -> Result<Outcome> {
        program::run(&mut self.command("build", name))?;
        let corpus = self.directory.join("corpus").join(name);
        fs::create_dir_all(&corpus)?;
        let mut command = self.command("run", name);
        command.arg(&corpus);
        let seeds = self.directory.join("seeds").join(name);
        if seeds.is_dir() {
            command.arg(&seeds);
        }
        command.args([
            "--",
            MEMORY,
            PATIENCE,
            &format!("-max_total_time={seconds}"),
        ]);
        if let Some(dictionary) = dictionary(name) {
            command.arg(format!(
                "-dict={}",
                self.directory.join(dictionary).display()
            ));
        }
        let output = command.output().context("cannot start cargo-fuzz")?;
        let said = String::from_utf8_lossy(&output.stderr);
        let log = self.built.join(format!("{name}.log"));
        fs::write(&log, said.as_bytes())?;
        if output.status.success() {
            let told = summary(&said).unwrap_or_else(|| "passed".to_owned());
            return Ok(Outcome { passed: true, told });
        }
        let kept = said
            .lines()
            .rev()
            .find_map(|line| line.split_once("written to "));
        let kept = kept.map_or("no input was kept", |(_, path)| path.trim());
        let why = reason(&said).unwrap_or("it ended early");
        let told = format!(
            "FAILED: {why}\n  input: {kept}\n  output: {}",
            log.display()
        );
        Ok(Outcome {
            passed: false,
            told,
        })
    }
}

/// The targets that the manifest names, in its order.
fn targets(directory: &Path) -> Result<Vec<String>> {
    let manifest = directory.join("Cargo.toml");
    let text = fs::read_to_string(&manifest).with_context(|| manifest.display().to_string())?;
    let bins = text.split("[[bin]]").skip(1);
    let names = bins.filter_map(|bin| {
        let name = bin.lines().find_map(|line| line.strip_prefix("name = "))?;
        Some(name.trim_matches('"').to_owned())
    });
    Ok(names.collect())
}

/// The words that a target's inputs are made of.
fn dictionary(name: &str) -> Option<&'static str> {
    match name {
        "data_language" => Some("data.dict"),
        _ if name.starts_with("client_") || name.starts_with("server_") => Some("nbd.dict"),
        _ => None,
    }
}

/// What libFuzzer says in the end, in a few words.
fn summary(said: &str) -> Option<String> {
    let done = said.lines().rev().find(|line| line.contains("DONE"))?;
    let coverage = done
        .split_whitespace()
        .skip_while(|word| *word != "cov:")
        .nth(1)?;
    let runs = done.split_whitespace().next()?.trim_start_matches('#');
    Some(format!("passed, {runs} runs, {coverage} edges"))
}

/// The line that says what was wrong.
fn reason(said: &str) -> Option<&str> {
    let marks = ["panicked at", "ERROR: ", "SUMMARY: "];
    marks
        .iter()
        .find_map(|mark| said.lines().find(|line| line.contains(mark)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_targets_are_those_that_lie_there() {
        let directory = program::workspace().join("fuzz");
        let mut named = targets(&directory).unwrap();
        named.sort();
        let sources = fs::read_dir(directory.join("fuzz_targets")).unwrap();
        let names = sources.map(|file| file.unwrap().path());
        let mut lying: Vec<_> = names
            .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
            .collect();
        lying.sort();
        assert_eq!(named, lying);
    }

    #[test]
    fn the_end_of_a_run_is_told_in_a_few_words() {
        let said = "#2\tINITED cov: 12 ft: 13\n#52817\tDONE   cov: 412 ft: 913 corp: 40/1Kb lim: 4096\nDone 52817 runs in 11 second(s)\n";
        assert_eq!(summary(said).unwrap(), "passed, 52817 runs, 412 edges");
        let said = "thread '<unnamed>' panicked at src/a.rs:3:4:\nno\n==1== ERROR: libFuzzer: deadly signal\n";
        assert!(reason(said).unwrap().contains("src/a.rs:3:4"));
    }
}
