//! Our own server, of which is seen what it says and how it ends.

use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use super::run::{Outcome, blockferry, finish, signal, until};

/// `blockferry serve` at a unix socket. It is killed with the value, unless it was seen to its end before.
pub(crate) struct Served {
    child: Option<Child>,
    socket: PathBuf,
}

impl Served {
    /// Serves what `arguments` say at `socket`, where clients can connect from now on.
    pub(crate) fn at(socket: &Path, arguments: &[&str]) -> Self {
        let child = blockferry(["serve"])
            .args(arguments)
            .arg("--unix")
            .arg(socket)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary");
        let served = Self {
            child: Some(child),
            socket: socket.to_owned(),
        };
        until("the server", || UnixStream::connect(socket).is_ok());
        served
    }

    /// The URI of its default export.
    pub(crate) fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    pub(crate) fn child(&self) -> &Child {
        self.child.as_ref().expect("it was not seen to its end")
    }

    /// Asks it to end, and waits for that.
    pub(crate) fn terminate(self) -> Outcome {
        signal(self.child(), "TERM");
        self.finish()
    }

    /// Waits for its end.
    pub(crate) fn finish(mut self) -> Outcome {
        finish(self.child.take().expect("it was not seen to its end"))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
