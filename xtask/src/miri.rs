//! `cargo xtask miri`: the tests of the lowest floors, in an interpreter that sees what must not be done with memory.
//!
//! It knows few system calls. Tests that need others are left out in the crates themselves, which say why. It is a
//! hundred times slower, too: of `block`, what handles memory is run, and not what fills a disk of it.

use anyhow::{Result, bail};
use clap::Args;

use crate::{program, toolchains, tools};

/// Each crate, and what is run of it.
const SUITES: &[(&str, &[&str])] = &[
    ("blockferry-sys", &["--lib"]),
    (
        "blockferry-block",
        &[
            "--lib",
            "--",
            "--skip=file::",
            "buffer",
            "error::",
            "extent",
            "parameters",
            "range",
            "size",
            "zeroes",
        ],
    ),
    (
        "blockferry-proto",
        &["--lib", "--", "--skip=fragments_are_bounded"],
    ),
];

#[derive(Args)]
pub(crate) struct Options {
    /// Which crates; without any, all that can be interpreted.
    crates: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let Some(nightly) = toolchains::nightly()? else {
        bail!("Miri needs a nightly toolchain: rustup toolchain install nightly");
    };
    let mut version = nightly.cargo();
    if !program::succeeds(version.args(["miri", "--version"])) {
        bail!("Miri is not installed: rustup component add --toolchain nightly miri rust-src");
    }
    let target = tools::target_directory()?.join("miri");
    let mut failed = Vec::new();
    for (name, arguments) in SUITES {
        let chosen = &options.crates;
        if !chosen.is_empty() && !chosen.iter().any(|it| name.ends_with(it.as_str())) {
            continue;
        }
        let mut command = nightly.cargo();
        command
            .args(["miri", "test", "--package", name])
            .args(*arguments)
            .current_dir(program::workspace())
            .env("CARGO_TARGET_DIR", &target)
            // Time and files are those of this machine.
            .env(
                "MIRIFLAGS",
                "-Zmiri-disable-isolation -Zmiri-strict-provenance",
            )
            // Properties are shown with few cases: each takes a hundred times as long.
            .env("PROPTEST_CASES", "4")
            .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1");
        if let Err(error) = program::run(&mut command) {
            eprintln!("xtask: {error:#}");
            failed.push(*name);
        }
    }
    if !failed.is_empty() {
        bail!("Miri found something in {}", failed.join(", "));
    }
    Ok(())
}
