//! Other people's cargo tools: the one on `PATH` if it has the wanted version, or one built below `target/tools`.
//!
//! The version belongs to the caller, so that everybody's machine, and CI, runs the same. What was built once
//! stays, and `cargo clean` removes it.

use std::{
    env,
    ffi::{OsStr, OsString},
    io, iter,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::program;

/// The program `name` (`cargo-deb`) of the crate of that name, in exactly this version.
///
/// # Errors
///
/// When it is not there and cannot be built: without a network, above all.
pub(crate) fn cargo_tool(name: &str, version: &str) -> Result<PathBuf> {
    if let Some(found) = installed_tool(name, version)? {
        return Ok(found);
    }
    let root = target_directory()?.join("tools");
    let own = root.join("bin");
    eprintln!(
        "xtask: no {name} {version} is installed, so it is built into {}, which takes some minutes",
        own.display()
    );
    let mut install = program::cargo(["install", "--locked", "--force", "--root"]);
    install
        .arg(&root)
        .args(["--version", version, name])
        // The settings of this workspace's builds are not the tool's; without a target directory, cargo
        // takes one that it removes.
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS");
    program::run(&mut install)
        .with_context(|| format!("{name} {version} is missing and cannot be installed"))?;
    Ok(own.join(name))
}

/// The same if it is there already: nothing is built.
pub(crate) fn installed_tool(name: &str, version: &str) -> Result<Option<PathBuf>> {
    let own = target_directory()?.join("tools/bin");
    Ok(installed(name, version, &own))
}

/// Where cargo builds this workspace: `target`, or what `CARGO_TARGET_DIR` and the configuration say.
pub(crate) fn target_directory() -> Result<PathBuf> {
    let metadata = metadata(&["--no-deps"])?;
    let directory = metadata.get("target_directory").and_then(Value::as_str);
    Ok(directory
        .context("cargo metadata has no target directory")?
        .into())
}

/// What `cargo metadata` says of the workspace.
pub(crate) fn metadata(arguments: &[&str]) -> Result<Value> {
    let mut command = program::cargo(["metadata", "--format-version=1"]);
    let metadata = program::output(command.args(arguments))?;
    serde_json::from_slice(&metadata).context("cargo metadata")
}

/// The first program of this name and version in `own`, then on `PATH`.
fn installed(name: &str, version: &str, own: &Path) -> Option<PathBuf> {
    let path = program::search_path();
    iter::once(own.to_owned())
        .chain(env::split_paths(&path))
        .map(|directory| directory.join(name))
        .find(|program| program.is_file() && says_version(program, version))
}

/// Whether the program's `--version` names this version.
///
/// Asked as cargo asks its subcommands, too: `cargo-miri --version` would not answer, `cargo-miri miri
/// --version` does.
fn says_version(program: &Path, version: &str) -> bool {
    let name = program
        .file_name()
        .and_then(OsStr::to_str)
        .unwrap_or_default();
    let subcommand = name.strip_prefix("cargo-").map(OsString::from);
    [None, subcommand].into_iter().any(|first| {
        let mut command = Command::new(program);
        command.args(first).arg("--version");
        says(&mut command).is_ok_and(|said| names_version(&said, version))
    })
}

fn says(command: &mut Command) -> io::Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether a word of the first line is the version: `cargo-deny 0.18.4`, `mdbook v0.4.52`, `3.8.0`.
fn names_version(said: &str, version: &str) -> bool {
    let first = said.lines().next().unwrap_or_default();
    first
        .split_whitespace()
        .any(|word| word.strip_prefix('v').unwrap_or(word) == version)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn tool(directory: &Path, script: &str) -> PathBuf {
        let (source, path) = (directory.join("source"), directory.join("cargo-thing"));
        fs::write(&source, format!("#!/bin/sh\n{script}\n")).unwrap();
        // Written by another process: a program that any thread's child still has open cannot be started.
        program::run(Command::new("install").args([&source, &path])).unwrap();
        path
    }

    #[test]
    fn a_version_is_a_word_of_the_first_line() {
        assert!(names_version("cargo-deny 0.18.4\n", "0.18.4"));
        assert!(names_version("mdbook v0.4.52", "0.4.52"));
        assert!(names_version("3.8.0\n", "3.8.0"));
        assert!(!names_version("cargo-deny 0.18.40\n", "0.18.4"));
        assert!(!names_version("usage\n0.18.4\n", "0.18.4"));
        assert!(!names_version("", "0.18.4"));
    }

    #[test]
    fn a_tool_of_another_version_is_not_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = tool(directory.path(), "echo cargo-thing 1.2.3");
        assert_eq!(
            installed("cargo-thing", "1.2.3", directory.path()),
            Some(path)
        );
        assert_eq!(installed("cargo-thing", "1.2.4", directory.path()), None);
    }

    #[test]
    fn a_tool_that_only_answers_as_a_subcommand_is_recognised() {
        let directory = tempfile::tempdir().unwrap();
        let script = "[ \"$1\" = thing ] || exit 2\necho cargo-thing-thing 1.2.3";
        let path = tool(directory.path(), script);
        assert!(says_version(&path, "1.2.3"));
    }
}
