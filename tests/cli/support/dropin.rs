//! nbdcopy, theirs and ours, side by side.

use std::{
    ffi::OsStr,
    os::unix::{fs::symlink, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

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
