//! How the tools end when they do not do what they were asked for: one exit code for everything.

use std::{fmt, process::ExitCode};

use crate::cli::{failure::Failure, output::tell};

/// A command line that asks for nothing that can be done.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) failure: Failure,
    /// Whether it helps to be told how the tool is called.
    pub(super) usage: bool,
}

impl Refusal {
    /// Tells why, and `usage` where that helps.
    pub(super) fn end(self, usage: &str) -> ExitCode {
        let code = end(self.failure);
        if self.usage {
            tell(usage);
        }
        code
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        let usage = false;
        Self { failure, usage }
    }
}

/// Arguments that break the tool's rules.
pub(super) fn misused(why: impl fmt::Display) -> Refusal {
    Refusal {
        failure: Failure::usage(why.to_string()),
        usage: true,
    }
}

/// What a shell says of a program that was ended by SIGPIPE.
const BROKEN_PIPE: u8 = 128 + 13;

/// Tells the failure as the tools do. Whoever was interrupted still ends as one who was, and `| head` is
/// no reason for a message.
pub(super) fn end(failure: Failure) -> ExitCode {
    let code = exit_code(&failure);
    if !failure.is_reader_gone() {
        failure.without_hint().report();
    }
    ExitCode::from(code)
}

/// The exit code of a failure.
pub(super) fn exit_code(failure: &Failure) -> u8 {
    match failure.code() {
        _ if failure.is_reader_gone() => BROKEN_PIPE,
        signal @ 128.. => signal,
        _ => 1,
    }
}
