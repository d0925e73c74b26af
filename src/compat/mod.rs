//! The command lines of other tools: under the name of one of them, this program speaks as it does.
//!
//! One module for each tool: it parses the tool's options and turns them into the same jobs that the native
//! commands run. What differs on purpose is listed in `docs/drop-in.md`.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
    process::ExitCode,
};

use crate::{
    cli::{failure::Failure, output::speak_as},
    endpoint::{Endpoint, EndpointKind},
};

mod getopt;
mod nbdcopy;
mod nbddump;
mod nbdinfo;
mod nbdkit;
mod qemu;
mod qemu_img;
mod qemu_nbd;
mod refusal;

/// The version of libnbd whose tools are spoken for: what `--version` says.
const VERSION: &str = "1.24.0";

/// What `--version` prints, as scripts take it apart: the tool's version and that of the library.
fn version(tool: &str) -> String {
    format!("{tool} {VERSION}\nlibnbd {VERSION}\n")
}

/// An endpoint that is a server.
fn server(text: &OsStr) -> Result<Endpoint, Failure> {
    let endpoint = Endpoint::parse(text)?;
    match endpoint.kind() {
        EndpointKind::Nbd(_) | EndpointKind::Command(_) => Ok(endpoint),
        _ => Err(Failure::usage(format!(
            "{endpoint} is no NBD URI: those begin with nbd:// or nbd+unix://, for example"
        ))),
    }
}

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

    /// Runs the tool's command line; the first argument is the program's name.
    pub(crate) fn run(self, arguments: Vec<OsString>) -> ExitCode {
        speak_as(self.name());
        match self {
            Self::Nbdcopy => nbdcopy::main(arguments),
            Self::Nbdinfo => nbdinfo::main(arguments),
            Self::Nbddump => nbddump::main(arguments),
            Self::Nbdkit => nbdkit::main(arguments),
            Self::QemuImg => qemu_img::main(arguments),
            Self::QemuNbd => qemu_nbd::main(arguments),
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
