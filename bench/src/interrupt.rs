//! Ctrl-C and its relatives as a readable descriptor, so that the runner always unwinds: servers are
//! stopped and images removed by the same drop guards that do it at an ordinary end.

use std::{
    io::{ErrorKind, Read},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
};

use anyhow::{Result, bail};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    low_level::pipe,
};

/// What the run is stopped with. Its text is what the user reads.
pub(crate) const MESSAGE: &str = "interrupted";

/// Readable from the first signal on.
pub(crate) struct Interrupt {
    signals: UnixStream,
}

impl Interrupt {
    /// Takes over SIGINT, SIGTERM and SIGHUP for the rest of the process.
    pub(crate) fn install() -> Result<Self> {
        let (signals, writer) = UnixStream::pair()?;
        signals.set_nonblocking(true)?;
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            pipe::register(signal, writer.try_clone()?)?;
        }
        Ok(Self { signals })
    }

    /// One that no signal reaches. The other end has to be kept, and writing to it interrupts.
    #[cfg(test)]
    pub(crate) fn detached() -> (Self, UnixStream) {
        let (signals, writer) = UnixStream::pair().unwrap();
        signals.set_nonblocking(true).unwrap();
        (Self { signals }, writer)
    }

    /// An error if a signal has come. The caller gives up then: it is reported once.
    pub(crate) fn check(&self) -> Result<()> {
        match (&self.signals).read(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => bail!(MESSAGE),
        }
    }
}

impl AsFd for Interrupt {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }
}
