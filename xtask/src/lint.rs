//! `cargo xtask lint`: format, clippy, documentation, the rules of the house, the fuzz targets, and what dependencies
//! may be.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{deps, house, program};

type Check = fn() -> Result<()>;

pub(crate) fn run() -> Result<()> {
    let checks: [(&str, Check); 6] = [
        ("format", format),
        ("rules of the house", house::check),
        ("clippy", clippy),
        ("documentation", documentation),
        ("fuzz targets", fuzz_targets),
        ("dependencies", deps::lint),
    ];
    // All of them run, so that one run shows everything that is wrong.
    let mut failed = Vec::new();
    for (name, check) in checks {
        eprintln!("== {name}");
        if let Err(error) = check() {
            eprintln!("xtask: {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("lint failed: {}", failed.join(", "));
    }
    eprintln!("== lint passed");
    Ok(())
}

fn format() -> Result<()> {
    program::run(&mut program::cargo(["fmt", "--all", "--check"]))
}

fn clippy() -> Result<()> {
    program::run(&mut program::cargo([
        "clippy",
        "--workspace",
        "--all-targets",
        "--all-features",
        "--",
        "-D",
        "warnings",
    ]))
}

fn documentation() -> Result<()> {
    // The binary has the library's name; its documentation would overwrite the library's.
    let arguments = ["doc", "--workspace", "--no-deps", "--lib"];
    program::run(program::cargo(arguments).env("RUSTDOCFLAGS", "-D warnings"))
}

/// The fuzz targets are a workspace of their own, which nothing else here compiles.
fn fuzz_targets() -> Result<()> {
    const MANIFEST: &str = "fuzz/Cargo.toml";
    if !program::workspace().join(MANIFEST).is_file() {
        eprintln!("skipped: there is no {MANIFEST}");
        return Ok(());
    }
    if !program::succeeds(Command::new("cargo-fuzz").arg("--version")) {
        eprintln!("skipped: cargo-fuzz is not installed (cargo install cargo-fuzz)");
        return Ok(());
    }
    // A check needs no sanitizer, so it works on the stable toolchain too.
    let mut check = program::cargo([
        "check",
        "--manifest-path",
        MANIFEST,
        "--bins",
        "--all-features",
    ]);
    program::run(check.env("RUSTFLAGS", "--cfg fuzzing -D warnings"))
}
