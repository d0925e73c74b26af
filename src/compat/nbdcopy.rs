//! The command line of `nbdcopy`.

use std::{ffi::OsString, process::ExitCode};

use crate::cli::output::tell;

/// Runs `nbdcopy`.
pub(super) fn main(_arguments: Vec<OsString>) -> ExitCode {
    tell("nbdcopy: not there yet");
    ExitCode::FAILURE
}
