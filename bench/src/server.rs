//! The servers of a run: started, waited for until they listen, stopped with their cost taken.

use std::{
    os::unix::net::UnixStream,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{interrupt::Interrupt, process::Running};

/// How long a server may take until it listens.
const START: Duration = Duration::from_secs(30);

/// The pause between two looks at a server that starts.
const PAUSE: Duration = Duration::from_millis(2);

/// A server that listens. Dropping it stops it.
pub(crate) struct Server {
    running: Running,
}

impl Server {
    /// Starts `command` and returns when something listens at `socket`.
    pub(crate) fn start(
        name: &str,
        command: &[String],
        socket: &Path,
        scratch: &Path,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let (program, arguments) = command.split_first().context("a server has a command")?;
        let mut command = Command::new(program);
        command.args(arguments).stdout(Stdio::null());
        let running = Running::start(&mut command, &scratch.join(format!("{name}.stderr")))?;
        let started = Instant::now();
        while UnixStream::connect(socket).is_err() {
            interrupt.check()?;
            if running.has_ended(interrupt)? {
                bail!("server `{name}` ended at once: {}", running.complaint());
            }
            if started.elapsed() > START {
                bail!("server `{name}` does not listen after {START:?}");
            }
            thread::sleep(PAUSE);
        }
        Ok(Self { running })
    }

    /// Stops it and returns the processor time it took, from its start on, and the most memory, in bytes.
    pub(crate) fn stop(self, interrupt: &Interrupt) -> Result<(Duration, u64)> {
        let ended = self.running.stop(interrupt)?;
        let time = ended.usage.user + ended.usage.system;
        Ok((time, ended.usage.peak_memory))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_ends_at_once_is_an_error_with_its_complaint() {
        let directory = tempfile::tempdir().unwrap();
        let (interrupt, _writer) = Interrupt::detached();
        let command = ["sh", "-c", "echo no such image >&2"].map(String::from);
        let socket = directory.path().join("socket");
        let error = Server::start("s", &command, &socket, directory.path(), &interrupt);
        let error = error.err().unwrap().to_string();
        assert_eq!(error, "server `s` ended at once: no such image");
    }
}
