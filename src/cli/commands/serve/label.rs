//! The security label of a server's sockets, which lets confined clients connect to it.

use std::{
    fs::OpenOptions,
    io::{self, Write},
};

use crate::{cli::failure::Failure, endpoint::printable};

/// What the kernel labels the sockets with that this thread makes.
const SOCKETS: &str = "/proc/thread-self/attr/sockcreate";

/// The label of all sockets that this thread makes, until it is [cleared](Self::clear).
#[must_use]
pub(super) struct Label<'a>(&'a str);

impl<'a> Label<'a> {
    /// Sets it. It fails where there is no SELinux, and where the policy does not know the label.
    pub(super) fn set(label: &'a str) -> Result<Self, Failure> {
        // The kernel takes text as C has it.
        let bytes = [label.as_bytes(), b"\0"].concat();
        match write(&bytes) {
            Ok(()) => Ok(Self(label)),
            Err(error) => Err(failure(label, &error)),
        }
    }

    /// Sockets are labelled as usual again.
    pub(super) fn clear(self) -> Result<(), Failure> {
        write(b"").map_err(|error| failure(self.0, &error))
    }
}

fn write(label: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(SOCKETS)?;
    // Exactly one write, also of nothing.
    file.write(label).map(drop)
}

fn failure(label: &str, error: &io::Error) -> Failure {
    let label = printable(label.as_ref());
    Failure::system(&format!("cannot label sockets {label:?}"), error)
}
