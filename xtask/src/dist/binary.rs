//! Building the program, and taking its debug information out of it.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{NAME, files};
use crate::program;

/// What is compiled, and so with which features of what is below.
#[derive(Clone, Copy)]
pub(super) enum Selection {
    /// What users get: the features that the program alone asks for.
    Program,
    /// All programs of the workspace, as `xtask test` builds them: what it has built is not built again.
    Workspace,
}

/// Builds the program, and returns where cargo put it.
pub(super) fn build(profile: &str, selection: Selection) -> Result<PathBuf> {
    eprintln!("building the program (profile {profile})");
    let mut cargo = program::cargo(["build", "--profile", profile]);
    cargo.arg("--message-format=json-render-diagnostics");
    match selection {
        Selection::Program => cargo.args(["--package", NAME, "--bin", NAME]),
        Selection::Workspace => cargo.args(["--workspace", "--bins"]),
    };
    let messages = String::from_utf8(program::output(&mut cargo)?);
    let messages = messages.context("what cargo says is text")?;
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == NAME)
        .find_map(|message| Some(message.get("executable")?.as_str()?.into()))
        .context("cargo built no program")
}

/// Writes the program without its symbols to `to`, and what a debugger wants of it to `debug`. The former names the
/// latter, so that debuggers find it in the same directory or below `/usr/lib/debug`.
pub(super) fn strip(built: &Path, to: &Path, debug: &Path) -> Result<()> {
    files::copy(built, to)?;
    let objcopy = || Command::new("objcopy");
    let hint = "objcopy, of the package binutils, takes the debug information apart";
    program::run(
        objcopy()
            .args(["--only-keep-debug", "--compress-debug-sections"])
            .args([built, debug]),
    )
    .context(hint)?;
    let link = format!("--add-gnu-debuglink={}", debug.display());
    program::run(
        objcopy()
            .args(["--strip-all", "--remove-section=.comment", &link])
            .args([built, to]),
    )
    .context(hint)?;
    files::set_mode(debug, 0o644)?;
    files::set_mode(to, 0o755)
}
