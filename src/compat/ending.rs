//! How the tools end: with an answer about themselves, with what they were asked for, or with a failure, for which
//! they have one exit code.

use std::{fmt, process::ExitCode};

use crate::cli::{
    failure::Failure,
    output::{print, tell},
};

use super::getopt::Mistake;

/// Why a tool ends before its work begins.
#[derive(Debug)]
pub(super) enum EarlyEnd {
    /// It was asked for something about itself, which this text says.
    Answer(String),
    /// The arguments break its rules, and it helps to be told how it is called.
    Misused(Failure),
    /// They ask for what cannot be done.
    Refused(Failure),
}

impl EarlyEnd {
    /// Answers, or tells why, and `usage` where that helps.
    pub(super) fn end(self, usage: &str) -> ExitCode {
        self.end_with(usage, end)
    }

    /// The same for a tool that has its own way to `end` with a failure.
    pub(super) fn end_with(self, usage: &str, end: fn(Failure) -> ExitCode) -> ExitCode {
        match self {
            Self::Answer(text) => match print(&text) {
                Ok(()) => ExitCode::SUCCESS,
                Err(failure) => end(failure),
            },
            Self::Misused(failure) => {
                let code = end(failure);
                tell(usage);
                code
            }
            Self::Refused(failure) => end(failure),
        }
    }
}

impl From<Failure> for EarlyEnd {
    fn from(failure: Failure) -> Self {
        Self::Refused(failure)
    }
}

impl From<Mistake> for EarlyEnd {
    fn from(mistake: Mistake) -> Self {
        misused(mistake)
    }
}

/// Arguments that break the tool's rules.
pub(super) fn misused(why: impl fmt::Display) -> EarlyEnd {
    EarlyEnd::Misused(Failure::usage(why.to_string()))
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
