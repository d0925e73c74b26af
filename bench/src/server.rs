//! The servers of a run: started, waited for until they listen, stopped with their cost taken.

use std::{
    net::{Ipv4Addr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{interrupt::Interrupt, process::Running};

/// How long a server may take until it listens.
const START: Duration = Duration::from_secs(30);

/// The pause between two looks at a server that starts.
const PAUSE: Duration = Duration::from_millis(2);

/// A server that listens. Dropping it stops it.
pub(crate) struct Server {
    running: Running,
}

/// Where a server listens.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    Socket(&'a Path),
    /// Of 127.0.0.1.
    Port(u16),
}

impl Server {
    /// Starts `command` and returns when something listens at `place`.
    pub(crate) fn start(
        name: &str,
        command: &mut Command,
        place: Place<'_>,
        scratch: &Path,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        command.stdout(Stdio::null());
        let running = Running::start(command, &scratch.join(format!("{name}.stderr")))?;
        let started = Instant::now();
        while !place.is_listened_at() {
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

impl Place<'_> {
    fn is_listened_at(self) -> bool {
        match self {
            Self::Socket(path) => UnixStream::connect(path).is_ok(),
            Self::Port(port) => TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_ends_at_once_is_an_error_with_its_complaint() {
        let directory = tempfile::tempdir().unwrap();
        let (interrupt, _writer) = Interrupt::detached();
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such image >&2"]);
        let socket = directory.path().join("socket");
        let place = Place::Socket(&socket);
        let error = Server::start("s", &mut command, place, directory.path(), &interrupt);
        let error = error.err().unwrap().to_string();
        assert_eq!(error, "server `s` ended at once: no such image");
    }
}
