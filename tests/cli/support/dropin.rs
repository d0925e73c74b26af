//! Programs, theirs and ours, side by side.

use std::{
    ffi::OsStr,
    os::unix::{fs::symlink, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{Outcome, run};

/// Whose program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Theirs,
    Ours,
}

pub(crate) const BOTH: [Who; 2] = [Who::Theirs, Who::Ours];

impl Who {
    /// The program under the name `tool`. Messages of the C library are in English.
    pub(crate) fn tool<A: AsRef<OsStr>>(
        self,
        tool: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut command = match self {
            Self::Theirs => Command::new(tool),
            Self::Ours => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_blockferry"));
                command.arg0(tool);
                command
            }
        };
        command
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::null());
        command
    }

    /// `nbdcopy` with `arguments`.
    pub(crate) fn nbdcopy<A: AsRef<OsStr>>(
        self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Command {
        self.tool("nbdcopy", arguments)
    }

    /// A path at which a script finds the program under the name `tool`: a symlink in `directory`, where it
    /// is ours.
    pub(crate) fn path(self, tool: &str, directory: &Path) -> PathBuf {
        if self == Self::Theirs {
            return PathBuf::from(tool);
        }
        let link = directory.join(tool);
        if !link.exists() {
            symlink(env!("CARGO_BIN_EXE_blockferry"), &link).expect("a link");
        }
        link
    }
}

/// `text` taken apart at spaces.
pub(crate) fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

/// Everything of the disk.
pub(crate) const READ: &str = "nbdcopy \"$uri\" - | cat";
/// How it is spread.
pub(crate) const MAP: &str = "nbdinfo --map \"$uri\"";
/// What can be done with it.
pub(crate) const FACTS: &str = "nbdinfo --json \"$uri\" | grep -e export-size -e is_read_only -e '\"can_zero' \
                     -e '\"can_trim' -e '\"can_multi'";

/// `nbdkit` with `arguments` on a private socket and a command that uses it.
pub(crate) fn captive(who: Who, arguments: &[&str], command: &str) -> Outcome {
    let words = [&["-U", "-"], arguments, &["--run", command]].concat();
    run(&mut who.tool("nbdkit", words))
}

/// Fails unless `command` prints the same with both, and succeeds.
#[track_caller]
pub(crate) fn assert_alike(arguments: &[&str], command: &str) -> Vec<u8> {
    let [theirs, ours] = BOTH.map(|who| {
        let outcome = captive(who, arguments, command);
        assert_eq!(outcome.code, 0, "{who:?} {arguments:?}: {}", outcome.stderr);
        outcome.stdout
    });
    if ours != theirs {
        let shown =
            |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(400)]).into_owned();
        panic!(
            "{arguments:?} {command}:\n{}\nis not\n{}",
            shown(&ours),
            shown(&theirs)
        );
    }
    ours
}
