//! The command line of `nbddump`.

use std::{ffi::OsString, process::ExitCode};

use crate::cli::output::tell;

/// Runs `nbddump`.
pub(super) fn main(_arguments: Vec<OsString>) -> ExitCode {
    tell("nbddump: not there yet");
    ExitCode::FAILURE
}
