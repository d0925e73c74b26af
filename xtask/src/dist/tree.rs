//! Everything that an installation consists of, laid out as below `/usr`.
//!
//! The program itself prints its man pages and its completions, from its one definition of the command
//! line. Here they only get their places.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{NAME, Release, binary, files, third_party};
use crate::program;

/// The names of other tools under which the program speaks their command lines.
pub(super) const NAMES: [&str; 6] = [
    "nbdcopy", "nbddump", "nbdinfo", "nbdkit", "qemu-img", "qemu-nbd",
];

/// Where links of those names lie, below `/usr`: a directory for `PATH`, in nobody's way.
pub(super) const NAMES_DIRECTORY: &str = "lib/blockferry/bin";

/// For people: from the root of the workspace to `share/doc/blockferry`.
const DOCUMENTS: [&str; 5] = [
    "README.md",
    "CHANGELOG.md",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "docs/drop-in.md",
];

/// What systemd needs to start a server by its socket, as examples.
const UNITS: [&str; 2] = ["blockferry-serve@.service", "blockferry-serve@.socket"];

/// Each shell, and where it looks for the program's completions, below `share`.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "bash-completion/completions/blockferry"),
    ("zsh", "zsh/site-functions/_blockferry"),
    ("fish", "fish/vendor_completions.d/blockferry.fish"),
];

/// Where the files lie that are in the repository only for packages.
pub(super) fn packaging() -> PathBuf {
    program::workspace().join("packaging")
}

pub(super) fn lay_out(release: &Release, built: &Path) -> Result<()> {
    let tree = release.tree();
    let debug = release.directory.join(format!("{NAME}.debug"));
    binary::strip(built, &tree.join("bin").join(NAME), &debug)?;
    for name in NAMES {
        let target = Path::new("../../../bin").join(NAME);
        files::link(&target, &tree.join(NAMES_DIRECTORY).join(name))?;
    }

    let share = tree.join("share");
    for (shell, place) in COMPLETIONS {
        let script = program::output(Command::new(built).args(["completions", shell]))?;
        files::write(&share.join(place), &script)?;
    }
    manual(built, &share.join("man"))?;
    documents(release, &share.join("doc").join(NAME))
}

/// The program's own page, one for each command that it refers to, and one about the names of other tools.
fn manual(built: &Path, directory: &Path) -> Result<()> {
    let page = program::output(Command::new(built).arg("man"))?;
    let commands = directory.join("man1");
    files::write(&commands.join(format!("{NAME}.1")), &page)?;
    let page = String::from_utf8(page).context("the manual page is text")?;
    let referred_to = commands_referred_to(&page);
    anyhow::ensure!(!referred_to.is_empty(), "the manual page names no commands");
    for command in referred_to {
        let page = program::output(Command::new(built).args(["man", &command]))?;
        files::write(&commands.join(format!("{NAME}-{command}.1")), &page)?;
    }
    let names = "blockferry-drop-in.7";
    files::copy(
        &packaging().join("man").join(names),
        &directory.join("man7").join(names),
    )
}

fn documents(release: &Release, directory: &Path) -> Result<()> {
    for document in DOCUMENTS {
        let source = program::workspace().join(document);
        let name = source.file_name().context("a document has a name")?;
        files::copy(&source, &directory.join(name))?;
    }
    for unit in UNITS {
        let place = directory.join("examples").join(unit);
        files::copy(&packaging().join("systemd").join(unit), &place)?;
    }
    let notices = third_party::notices(&release.metadata)?;
    files::write(&directory.join("THIRD-PARTY.txt"), notices.as_bytes())
}

/// The commands whose pages a page names, as in `blockferry-copy(1)`.
fn commands_referred_to(page: &str) -> BTreeSet<String> {
    // In roff, a hyphen that is to stay one is escaped.
    let prefix = format!("{NAME}\\-");
    page.lines()
        .filter_map(|line| line.trim().strip_prefix(&prefix)?.strip_suffix("(1)"))
        .map(|command| command.replace('\\', ""))
        .collect()
}

/// The version of the program's package.
pub(super) fn version(metadata: &Value) -> Result<String> {
    let packages = metadata.get("packages").and_then(Value::as_array);
    packages
        .into_iter()
        .flatten()
        .find(|package| package["name"] == NAME)
        .and_then(|package| Some(package["version"].as_str()?.to_owned()))
        .context("cargo metadata has no version of the program")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_those_that_the_page_refers_to() {
        let page = ".SH SUBCOMMANDS\n.TP\nblockferry\\-copy(1)\nCopies.\n.TP\n\
                    blockferry\\-dry\\-run(1)\nblockferry moves\n";
        let commands: Vec<_> = commands_referred_to(page).into_iter().collect();
        assert_eq!(commands, ["copy", "dry-run"]);
    }

    #[test]
    fn the_package_registers_and_removes_each_name() {
        let list = format!("for name in {}; do\n", NAMES.join(" "));
        for script in ["postinst", "prerm", "postrm"] {
            let path = packaging().join("debian").join(script);
            let text = std::fs::read_to_string(path).unwrap();
            assert!(text.contains(&list), "{script} has other names");
            assert!(text.contains("update-alternatives"), "{script}");
        }
    }
}
