//! `cargo xtask test`: everything a fresh machine needs, and then every test there is.

use anyhow::{Result, bail};
use clap::Args;

use crate::{packages, program};

#[derive(Args)]
pub(crate) struct Options {
    /// Installs nothing: a missing program is an error that names its package.
    #[arg(long)]
    no_install: bool,

    /// Runs only the tests whose names contain one of these, and leaves the examples in the
    /// documentation out. Options of the test harness are passed on (`--nocapture`).
    #[arg(last = true, value_name = "FILTER")]
    filters: Vec<String>,
}

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

    let mut tests = program::cargo(["test", "--workspace", "--all-targets", "--no-fail-fast"]);
    if !options.filters.is_empty() {
        return program::run(tests.arg("--").args(&options.filters));
    }
    // Both run even if the first fails, so that one run shows everything that is wrong.
    let outcomes = [
        program::run(&mut tests),
        program::run(&mut program::cargo([
            "test",
            "--workspace",
            "--doc",
            "--no-fail-fast",
        ])),
    ];
    let failures: Vec<String> = outcomes
        .into_iter()
        .filter_map(Result::err)
        .map(|error| format!("{error:#}"))
        .collect();
    if !failures.is_empty() {
        bail!(failures.join("; "));
    }
    Ok(())
}
