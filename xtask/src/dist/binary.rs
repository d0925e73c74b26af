//! Building the program, and taking its debug information out of it.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{NAME, files};
use crate::program;

/// Builds the program, and returns where cargo put it.
pub(super) fn build(profile: &str) -> Result<PathBuf> {
    eprintln!("building the program (profile {profile})");
    let messages = program::output(&mut program::cargo([
        "build",
        "--profile",
        profile,
        "--package",
        NAME,
        "--bin",
        NAME,
        "--message-format=json-render-diagnostics",
    ]))?;
    let messages = String::from_utf8(messages).context("what cargo says is text")?;
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
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
