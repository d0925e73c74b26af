//! What `doctor` takes.

use std::path::PathBuf;

use clap::{Args, ValueHint};

use super::{brief, whole};

/// Show what this machine can do, and what follows from it.
///
/// What can be tried is tried, with small files that leave nothing behind; nothing that is there is written to. The
/// exit code is 0 unless something that is needed is missing.
#[derive(Args, Debug)]
#[command(after_help = brief("doctor"), after_long_help = whole("doctor", None, &[]))]
pub(crate) struct DoctorArgs {
    /// Directories, files and block devices to look at, as sources or destinations; the current directory and that
    /// of temporary files unless given.
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) path: Vec<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}
