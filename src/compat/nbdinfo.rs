//! The command line of `nbdinfo`.

use std::{ffi::OsString, process::ExitCode};

use crate::cli::output::tell;

/// Runs `nbdinfo`.
pub(super) fn main(_arguments: Vec<OsString>) -> ExitCode {
    tell("nbdinfo: not there yet");
    ExitCode::FAILURE
}
