//! `cargo xtask bench`: builds what is measured, optimised, and hands over to the benchmark runner.

use anyhow::Result;

use crate::program;

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    if arguments.iter().all(|argument| !only_asks(argument)) {
        // One build with one set of features, before anything is measured.
        program::run(&mut program::cargo([
            "build",
            "--release",
            "--package=blockferry",
            "--package=blockferry-bench",
            "--bins",
            "--examples",
        ]))?;
    }
    let mut runner = program::cargo([
        "run",
        "--quiet",
        "--release",
        "--package=blockferry-bench",
        "--bin=blockferry-bench",
        "--",
    ]);
    // In place of this program, so that a signal reaches the one that has to clean up.
    program::replace(runner.args(arguments))
}

/// Whether the runner will measure nothing.
fn only_asks(argument: &str) -> bool {
    matches!(argument, "--list" | "--readme" | "--help" | "-h")
}
