//! `cargo xtask bench`: builds what is measured, optimised, and hands over to the benchmark runner.

use anyhow::Result;

use crate::program;

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    // One build with one set of features, before anything is measured.
    program::run(&mut program::cargo([
        "build",
        "--release",
        "--package=blockferry",
        "--package=blockferry-bench",
        "--bins",
        "--examples",
    ]))?;
    let mut runner = program::cargo([
        "run",
        "--quiet",
        "--release",
        "--package=blockferry-bench",
        "--bin=blockferry-bench",
        "--",
    ]);
    program::run(runner.args(arguments))
}
