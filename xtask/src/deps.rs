//! `cargo xtask deps`: whether dependencies are what they should be.
//!
//! Each check says what it needs where that is missing, and is skipped then; what is found fails.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::{program, toolchains, tools};

const CARGO_DENY: &str = "0.20.2";
const CARGO_MACHETE: &str = "0.9.2";
const CARGO_SEMVER_CHECKS: &str = "0.51.0";

/// The packages that nobody else uses: their dependencies bind nobody.
const PRIVATE: [&str; 2] = ["blockferry-bench", "xtask"];

#[derive(Args)]
pub(crate) struct Options {
    /// Which; without any, those that take no build: licences, unused, advisories.
    checks: Vec<Check>,

    /// For `semver`: the revision that the public interface is compared with.
    #[arg(long, default_value = "main")]
    baseline: String,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Check {
    /// Licences, sources and unwanted crates, as deny.toml has them.
    Licences,
    /// What is asked for in a manifest and used nowhere.
    Unused,
    /// Known faults of dependencies, from the network.
    Advisories,
    /// The public crates with the lowest versions that their manifests allow.
    Minimal,
    /// The public crates with the oldest compiler that they say is enough.
    Msrv,
    /// Whether the public interface breaks what was promised.
    Semver,
}

const QUICK: [Check; 3] = [Check::Licences, Check::Unused, Check::Advisories];

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut checks = options.checks.clone();
    if checks.is_empty() {
        checks = QUICK.to_vec();
    }
    let mut failed = Vec::new();
    for check in checks {
        let name = check
            .to_possible_value()
            .map(|value| value.get_name().to_owned());
        let name = name.unwrap_or_default();
        eprintln!("== {name}");
        let outcome = match check {
            Check::Licences => licences(),
            Check::Unused => unused(),
            Check::Advisories => advisories(),
            Check::Minimal => minimal(),
            Check::Msrv => msrv(),
            Check::Semver => semver(&options.baseline),
        };
        if let Err(error) = outcome {
            eprintln!("xtask: {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("dependencies: {}", failed.join(", "));
    }
    Ok(())
}

/// What `lint` runs of it, which builds nothing: where the tools are not installed, it says so.
pub(crate) fn lint() -> Result<()> {
    let Some(deny) = tools::installed_tool("cargo-deny", CARGO_DENY)? else {
        eprintln!(
            "skipped: no cargo-deny {CARGO_DENY} is installed (cargo xtask deps installs it)"
        );
        return Ok(());
    };
    deny_offline(&deny)
}

fn licences() -> Result<()> {
    deny_offline(&tools::cargo_tool("cargo-deny", CARGO_DENY)?)
}

fn deny_offline(deny: &PathBuf) -> Result<()> {
    let mut command = Command::new(deny);
    command.args(["--offline", "check", "bans", "licenses", "sources"]);
    program::run(command.current_dir(program::workspace()))
}

fn unused() -> Result<()> {
    let machete = tools::cargo_tool("cargo-machete", CARGO_MACHETE)?;
    let mut command = Command::new(machete);
    // The fuzz targets are a workspace of their own, and a directory as others.
    program::run(
        command
            .arg("--with-metadata")
            .current_dir(program::workspace()),
    )
}

/// The list of known faults lies in a repository of its own.
fn advisories() -> Result<()> {
    const LIST: &str = "https://github.com/rustsec/advisory-db";
    let mut reach = Command::new("git");
    let reach = reach.args(["ls-remote", "--exit-code", LIST, "HEAD"]);
    if !program::succeeds(reach.env("GIT_TERMINAL_PROMPT", "0")) {
        eprintln!("skipped: {LIST} cannot be reached, so known faults were not looked for");
        return Ok(());
    }
    let deny = tools::cargo_tool("cargo-deny", CARGO_DENY)?;
    let mut command = Command::new(deny);
    program::run(
        command
            .args(["check", "advisories"])
            .current_dir(program::workspace()),
    )
}

/// In a copy of the tree, whose lock file is another one. What is on the next floor stays as it is: the lowest
/// versions that *others'* manifests allow are not ours to mend.
fn minimal() -> Result<()> {
    let Some(nightly) = toolchains::nightly()? else {
        eprintln!("skipped: it needs a nightly toolchain (rustup toolchain install nightly)");
        return Ok(());
    };
    let target = tools::target_directory()?.join("minimal");
    let copy = target.join("tree");
    if copy.exists() {
        fs::remove_dir_all(&copy).with_context(|| copy.display().to_string())?;
    }
    let files = program::output(
        Command::new("git")
            .arg("ls-files")
            .current_dir(program::workspace()),
    )?;
    for name in String::from_utf8(files)?
        .lines()
        .filter(|name| *name != "Cargo.lock")
    {
        let (from, to) = (program::workspace().join(name), copy.join(name));
        if let (true, Some(parent)) = (from.is_file(), to.parent()) {
            fs::create_dir_all(parent)?;
            fs::copy(&from, &to).with_context(|| from.display().to_string())?;
        }
    }
    let mut lock = nightly.cargo();
    lock.args(["generate-lockfile", "-Zdirect-minimal-versions"]);
    program::run(lock.current_dir(&copy))?;
    let mut check = program::cargo(public("check"));
    program::run(check.current_dir(&copy).env("CARGO_TARGET_DIR", &target))
}

fn msrv() -> Result<()> {
    let version = env!("CARGO_PKG_RUST_VERSION");
    let Some(oldest) = toolchains::release(version)? else {
        // What the standard library did not have then is found by clippy::incompatible_msrv in `lint`.
        eprintln!("skipped: it needs Rust {version} (rustup toolchain install {version})");
        return Ok(());
    };
    let mut check = oldest.cargo();
    check
        .args(public("check"))
        .current_dir(program::workspace());
    let target = tools::target_directory()?.join("msrv");
    program::run(check.env("CARGO_TARGET_DIR", target))
}

fn semver(baseline: &str) -> Result<()> {
    let tool = tools::cargo_tool("cargo-semver-checks", CARGO_SEMVER_CHECKS)?;
    let mut command = Command::new(tool);
    command.args(["semver-checks", "--workspace", "--baseline-rev", baseline]);
    for name in PRIVATE {
        command.args(["--exclude", name]);
    }
    program::run(command.current_dir(program::workspace()))
}

/// The arguments of cargo's `subcommand` that mean what others can use.
fn public(subcommand: &str) -> Vec<&str> {
    let mut arguments = vec![subcommand, "--workspace", "--lib", "--bins"];
    for name in PRIVATE {
        arguments.extend(["--exclude", name]);
    }
    arguments
}
