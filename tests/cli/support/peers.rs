//! Other people's servers, and ours.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::run::{blockferry, until};

/// A running server of an NBD export on a unix socket. It ends with the value.
pub(crate) struct Peer {
    child: Child,
    socket: PathBuf,
}

impl Peer {
    /// `qemu-nbd` serving `image` of `format`, to any number of clients.
    pub(crate) fn qemu_nbd(directory: &Path, format: &str, image: &Path, extra: &[&str]) -> Self {
        let socket = directory.join("qemu-nbd.sock");
        let mut command = Command::new("qemu-nbd");
        command
            .args(["-t", "-e0", "-f", format, "-k"])
            .arg(&socket)
            .args(extra)
            .arg(image);
        Self::start(command, socket)
    }

    /// `nbdkit` with `arguments` (a plugin and its parameters, or filters first).
    pub(crate) fn nbdkit(directory: &Path, arguments: &[&str]) -> Self {
        let socket = directory.join("nbdkit.sock");
        let mut command = Command::new("nbdkit");
        command.args(["-f", "-U"]).arg(&socket).args(arguments);
        Self::start(command, socket)
    }

    /// Our own server, serving `image`.
    pub(crate) fn blockferry(directory: &Path, image: &Path) -> Self {
        let socket = directory.join("blockferry.sock");
        let mut command = blockferry(["serve"]);
        command.arg(image).arg("--unix").arg(&socket);
        Self::start(command, socket)
    }

    fn start(mut command: Command, socket: PathBuf) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error} (run `cargo xtask test`)"));
        // From here on the child is killed also when the test fails.
        let peer = Self { child, socket };
        until("the server's socket", || {
            std::os::unix::net::UnixStream::connect(&peer.socket).is_ok()
        });
        peer
    }

    /// The URI of its export.
    pub(crate) fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.kill();
    }
}
