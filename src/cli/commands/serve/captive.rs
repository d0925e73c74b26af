//! `--run`: a command that the server lives for.

use std::{ffi::OsString, os::unix::process::ExitStatusExt, process::ExitStatus};

use tokio::process::{Child, Command};

use crate::cli::{failure::Failure, output::tell};

/// Starts `command` by the shell, with `variables` before it.
pub(super) fn start(variables: &str, command: &OsString) -> Result<Child, Failure> {
    let mut text = OsString::from(variables);
    text.push(command);
    Command::new("/bin/sh")
        .arg("-c")
        .arg(text)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| Failure::system("--run: cannot start the shell", &error))
}

/// The exit code that hands on how the command ended.
pub(super) fn exit_code(status: ExitStatus) -> u8 {
    if let Some(signal) = status.signal() {
        tell(&Failure::failed(format!("the command was killed by signal {signal}")).to_string());
        return u8::try_from(128 + signal).unwrap_or(u8::MAX);
    }
    status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(1)
}
