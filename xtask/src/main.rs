//! The project's chores. `cargo xtask test` and `cargo xtask lint` are what CI runs.
//!
//! This crate is kept thin: it starts other programs, and needs nothing of the project itself, so that
//! it runs (and can say what is wrong) while the project does not compile.

#![forbid(unsafe_code)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line of chores talks to a terminal"
)]

mod bench;
mod deps;
mod dist;
mod docs;
mod fuzz;
mod house;
mod lint;
mod miri;
mod packages;
mod program;
mod publish;
mod python;
mod soak;
mod suites;
mod test;
mod toolchains;
mod tools;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Installs what the tests need, builds the workspace and runs every test.
    Test(test::Options),
    /// Builds the Python package and runs its tests.
    Python(python::Options),
    /// Checks format, clippy, documentation and the rules of the house.
    Lint,
    /// Runs the benchmarks, ours and the rivals', in interleaved rounds.
    #[command(disable_help_flag = true)]
    Bench {
        /// What the runner understands; `--help` lists it.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Draws the map of the crates, docs/house.svg.
    House,
    /// Checks dependencies: licences, sources, whether they are used, their lowest versions.
    Deps(deps::Options),
    /// Interprets the tests of the lowest floors, and sees what must not be done with memory.
    Miri(miri::Options),
    /// Builds the guide and the documentation of the crates as a book in target/book.
    Docs(docs::Options),
    /// Runs every fuzz target for some seconds.
    Fuzz(fuzz::Options),
    /// Copies at random, with faults and kills, for as long as one likes, and watches what it costs.
    Soak(soak::Options),
    /// Writes to dist/ what users get: the program, its manual and completions, an archive, a Debian package, a
    /// Containerfile.
    Dist(dist::Options),
    /// Checks that every public crate can be published, without publishing it.
    Publish(publish::Options),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().chore {
        Chore::Test(options) => test::run(&options),
        Chore::Python(options) => python::run(&options),
        Chore::Lint => lint::run(),
        Chore::Bench { arguments } => bench::run(&arguments),
        Chore::House => house::draw(),
        Chore::Deps(options) => deps::run(&options),
        Chore::Miri(options) => miri::run(&options),
        Chore::Docs(options) => docs::run(&options),
        Chore::Fuzz(options) => fuzz::run(&options),
        Chore::Soak(options) => soak::run(&options),
        Chore::Dist(options) => dist::run(&options),
        Chore::Publish(options) => publish::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
