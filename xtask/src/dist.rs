//! `cargo xtask dist`: everything that an installation consists of, laid out as below `/usr`.
//!
//! The program itself prints its man pages and its completions, from its one definition of the command
//! line. Here they only get their places.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::program;

const NAME: &str = "blockferry";

const DOCUMENTS: [&str; 4] = ["README.md", "CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT"];

/// Each shell, and where it looks for the program's completions, below `share`.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "bash-completion/completions/blockferry"),
    ("zsh", "zsh/site-functions/_blockferry"),
    ("fish", "fish/vendor_completions.d/blockferry.fish"),
];

pub(crate) fn run() -> Result<()> {
    let binary = build()?;
    let directory = program::workspace().join("dist");
    if directory.exists() {
        fs::remove_dir_all(&directory).with_context(|| directory.display().to_string())?;
    }
    copy(&binary, &directory.join("bin").join(NAME))?;
    let share = directory.join("share");
    for name in DOCUMENTS {
        let place = share.join("doc").join(NAME).join(name);
        copy(&program::workspace().join(name), &place)?;
    }
    for (shell, place) in COMPLETIONS {
        let script = program::output(Command::new(&binary).args(["completions", shell]))?;
        write(&share.join(place), &script)?;
    }
    manual(&binary, &share.join("man/man1"))?;
    eprintln!("wrote {}", directory.display());
    Ok(())
}

/// Builds the program, optimised, and returns where cargo put it.
fn build() -> Result<PathBuf> {
    eprintln!("building the program");
    let messages = program::output(&mut program::cargo([
        "build",
        "--release",
        "--package=blockferry",
        "--bin=blockferry",
        "--message-format=json-render-diagnostics",
    ]))?;
    let messages = String::from_utf8(messages).context("what cargo says is text")?;
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find_map(|message| Some(message.get("executable")?.as_str()?.into()))
        .context("cargo built no program")
}

/// The program's own page, and one for each command that it refers to.
fn manual(binary: &Path, directory: &Path) -> Result<()> {
    let page = program::output(Command::new(binary).arg("man"))?;
    write(&directory.join(format!("{NAME}.1")), &page)?;
    let page = String::from_utf8(page).context("the manual page is text")?;
    let commands = commands_referred_to(&page);
    anyhow::ensure!(!commands.is_empty(), "the manual page names no commands");
    for command in commands {
        let page = program::output(Command::new(binary).args(["man", &command]))?;
        write(&directory.join(format!("{NAME}-{command}.1")), &page)?;
    }
    Ok(())
}

/// The commands whose pages a page names, as in `blockferry-copy(1)`. `help` has no page of its own.
fn commands_referred_to(page: &str) -> BTreeSet<String> {
    // In roff, a hyphen that is to stay one is escaped.
    let prefix = format!("{NAME}\\-");
    page.lines()
        .filter_map(|line| line.trim().strip_prefix(&prefix)?.strip_suffix("(1)"))
        .map(|command| command.replace('\\', ""))
        .filter(|command| command != "help")
        .collect()
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    make_room(to)?;
    fs::copy(from, to).with_context(|| from.display().to_string())?;
    Ok(())
}

fn write(path: &Path, contents: &[u8]) -> Result<()> {
    make_room(path)?;
    fs::write(path, contents).with_context(|| path.display().to_string())
}

fn make_room(path: &Path) -> Result<()> {
    let directory = path.parent().context("it lies in a directory")?;
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_those_that_the_page_refers_to() {
        let page = ".SH SUBCOMMANDS\n.TP\nblockferry\\-copy(1)\nCopies.\n.TP\n\
                    blockferry\\-dry\\-run(1)\n.TP\nblockferry\\-help(1)\nblockferry moves\n";
        let commands: Vec<_> = commands_referred_to(page).into_iter().collect();
        assert_eq!(commands, ["copy", "dry-run"]);
    }
}
