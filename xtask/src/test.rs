//! `cargo xtask test`: everything a fresh machine needs, and then every test there is.

use std::{num::NonZero, thread};

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    packages, program, python,
    suites::{self, Durations, Suite},
    tools,
};

#[derive(Args)]
pub(crate) struct Options {
    /// Installs nothing: a missing program is an error that names its package.
    #[arg(long)]
    no_install: bool,

    /// Test programs that run at a time; without it as many as there are processors, and 2 at least.
    #[arg(long)]
    jobs: Option<NonZero<usize>>,

    /// Runs only the tests whose names contain one of these, and leaves the examples in the
    /// documentation out. Options of the test harness are passed on (`--nocapture`).
    #[arg(last = true, value_name = "FILTER")]
    filters: Vec<String>,
}

/// Threads of a test program for each processor: most tests wait for other programs.
const THREADS: usize = 3;

pub(crate) fn run(options: &Options) -> Result<()> {
    packages::require(packages::PACKAGES, !options.no_install)?;
    // Built first and as a whole: tests run the real programs, and an error in them should come before.
    // `cargo test --all-targets` builds the examples as tests only, not as the programs they are.
    program::run(&mut program::cargo([
        "build",
        "--workspace",
        "--lib",
        "--bins",
        "--examples",
    ]))?;

    let tests = ["test", "--workspace", "--all-targets"];
    if !options.filters.is_empty() {
        let mut tests = program::cargo(tests);
        return program::run(tests.arg("--no-fail-fast").arg("--").args(&options.filters));
    }
    let processors = thread::available_parallelism().map_or(2, NonZero::get);
    let at_a_time = options.jobs.map_or(processors.max(2), NonZero::get);
    let built = program::output(
        program::cargo(tests).args(["--no-run", "--message-format=json-render-diagnostics"]),
    )?;
    let mut suites = suites::parse(&built)?;
    for suite in &mut suites {
        let threads = (processors * THREADS).to_string();
        suite.command.env("RUST_TEST_THREADS", threads);
    }
    suites.push(Suite {
        name: "examples in the documentation".to_owned(),
        command: program::cargo(["test", "--workspace", "--doc", "--no-fail-fast"]),
    });
    suites.push(Suite {
        name: "the Python package".to_owned(),
        command: python::tests(),
    });
    let count = suites.len();
    eprintln!("{count} test programs, {at_a_time} at a time");
    let mut durations = Durations::read(tools::target_directory()?.join("test-durations.json"));
    // All of them run even if the first fails, so that one run shows everything that is wrong.
    let failed = suites::run(suites, at_a_time, &mut durations)?;
    if !failed.is_empty() {
        bail!(
            "{} of {count} test programs failed: {}",
            failed.len(),
            failed.join("; ")
        );
    }
    Ok(())
}
