//! Other compilers than the one in use, where rustup has them.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::program;

/// A compiler, with its cargo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Toolchain {
    /// One that rustup knows.
    Named(String),
    /// The one that is in use.
    Current,
}

impl Toolchain {
    /// Its cargo.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = match self {
            // The one that started this program would take its own compiler.
            Self::Named(_) => Command::new("cargo"),
            Self::Current => program::cargo([]),
        };
        self.choose(&mut command);
        command
    }

    /// Makes `command` use it, whatever cargo started this program.
    pub(crate) fn choose(&self, command: &mut Command) {
        command.env("PATH", program::search_path());
        if let Self::Named(name) = self {
            command
                .env("RUSTUP_TOOLCHAIN", name)
                .env_remove("CARGO")
                .env_remove("RUSTC")
                .env_remove("RUSTDOC");
        }
    }
}

/// One that takes unstable options, if there is one.
pub(crate) fn nightly() -> Result<Option<Toolchain>> {
    if let Some(name) = named(&installed(), "nightly") {
        return Ok(Some(Toolchain::Named(name)));
    }
    let version = program::output(Command::new("rustc").arg("--version"))?;
    let is_nightly = String::from_utf8_lossy(&version).contains("nightly");
    Ok(is_nightly.then_some(Toolchain::Current))
}

/// The release `version` (`1.88`), if it is there.
pub(crate) fn release(version: &str) -> Result<Option<Toolchain>> {
    ensure!(!version.is_empty(), "no release is asked for");
    Ok(named(&installed(), version).map(Toolchain::Named))
}

/// What rustup lists; nothing where there is no rustup.
fn installed() -> String {
    let mut list = Command::new("rustup");
    let output = list.args(["toolchain", "list"]).output();
    output.map_or_else(
        |_| String::new(),
        |it| String::from_utf8_lossy(&it.stdout).into_owned(),
    )
}

/// The toolchain in rustup's list whose name begins with `channel`: the plain name comes before one with a date.
fn named(list: &str, channel: &str) -> Option<String> {
    let names = list
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    let is_of_channel = |name: &&str| {
        let rest = name.strip_prefix(channel);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '.']))
    };
    let mut names: Vec<_> = names.filter(is_of_channel).collect();
    names.sort_by_key(|name| name.len());
    names.first().map(|name| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_toolchain_is_found_under_any_of_its_names() {
        let list = "stable-x86_64 (active, default)\nnightly-2026-01-01-x86_64\nnightly-x86_64\n1.88.0-x86_64\n";
        assert_eq!(named(list, "nightly").as_deref(), Some("nightly-x86_64"));
        assert_eq!(named(list, "1.88").as_deref(), Some("1.88.0-x86_64"));
        assert_eq!(named(list, "1.8"), None);
        assert_eq!(named("stable-x86_64 (active)\n", "nightly"), None);
    }
}
