//! The command lines of other tools: under the name of one of them, this program speaks as it does.
//!
//! One module for each tool: it parses the tool's options and turns them into the same jobs that the native
//! commands run. What differs on purpose is listed in `docs/drop-in.md`.
//!
//! All of them go the same way. `main` is given the words behind the program's name; `getopt` reads them by the tool's
//! table of options, `FLAGS`, and tells each option to the tool's `Choices`, which note what was said; when all are
//! read, the choices become a job, and a native command does it. What ends that way earlier, a `--help` as well as a
//! mistake, is an `EarlyEnd`; `ending` has also the exit codes.
//!
//! | file | what it does |
//! |---|---|
//! | `getopt` | words to options and operands, as `getopt_long(3)` reads them |
//! | `ending` | answers, failures, and exit codes |
//! | `libnbd` | what nbdcopy, nbddump and nbdinfo have in common |
//! | `qemu` | what qemu-img and qemu-nbd have in common |

use std::{
    ffi::{OsStr, OsString},
    path::Path,
    process::ExitCode,
};

use crate::cli::output::speak_as;

mod ending;
mod getopt;
mod libnbd;
mod nbdcopy;
mod nbddump;
mod nbdinfo;
mod nbdkit;
mod qemu;
mod qemu_img;
mod qemu_nbd;

/// A tool whose command line is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tool {
    Nbdcopy,
    Nbdinfo,
    Nbddump,
    Nbdkit,
    QemuImg,
    QemuNbd,
}

impl Tool {
    /// All of them.
    pub(crate) const ALL: &'static [Self] = &[
        Self::Nbdcopy,
        Self::Nbdinfo,
        Self::Nbddump,
        Self::Nbdkit,
        Self::QemuImg,
        Self::QemuNbd,
    ];

    /// The tool that a program of this name (argument 0, a path or not) stands in for.
    pub(crate) fn of_program(name: &OsStr) -> Option<Self> {
        let name = Path::new(name).file_name()?;
        Self::ALL.iter().copied().find(|tool| name == tool.name())
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nbdcopy => "nbdcopy",
            Self::Nbdinfo => "nbdinfo",
            Self::Nbddump => "nbddump",
            Self::Nbdkit => "nbdkit",
            Self::QemuImg => "qemu-img",
            Self::QemuNbd => "qemu-nbd",
        }
    }

    /// Runs the tool's command line, whose `words` come behind the program's name.
    pub(crate) fn run(self, words: Vec<OsString>) -> ExitCode {
        speak_as(self.name());
        match self {
            Self::Nbdcopy => nbdcopy::main(words),
            Self::Nbdinfo => nbdinfo::main(words),
            Self::Nbddump => nbddump::main(words),
            Self::Nbdkit => nbdkit::main(words),
            Self::QemuImg => qemu_img::main(words),
            Self::QemuNbd => qemu_nbd::main(words),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_is_told_by_the_last_part_of_the_programs_name() {
        let tool = |name: &str| Tool::of_program(OsStr::new(name));
        assert_eq!(tool("nbdcopy"), Some(Tool::Nbdcopy));
        assert_eq!(tool("/usr/local/bin/nbdinfo"), Some(Tool::Nbdinfo));
        assert_eq!(tool("./nbddump"), Some(Tool::Nbddump));
        assert_eq!(tool("blockferry"), None);
        assert_eq!(tool("nbdcopy.old"), None);
    }
}
