//! Other people's servers, and ours.

use std::{
    net::{TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::run::{blockferry, until};

/// A running server of an NBD export, on a unix socket unless told otherwise. It ends with the value.
pub(crate) struct Peer {
    child: Child,
    place: Place,
}

enum Place {
    Socket(PathBuf),
    Port(u16),
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

    /// The same on a free TCP port of this machine.
    pub(crate) fn nbdkit_on_tcp(arguments: &[&str]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = port.expect("a free port").port();
        let mut command = Command::new("nbdkit");
        command
            .args(["-f", "-p", &port.to_string()])
            .args(arguments);
        Self::start_at(command, Place::Port(port))
    }

    /// Our own server, serving `image`.
    pub(crate) fn blockferry(directory: &Path, image: &Path) -> Self {
        let socket = directory.join("blockferry.sock");
        let mut command = blockferry(["serve"]);
        command.arg(image).arg("--unix").arg(&socket);
        Self::start(command, socket)
    }

    fn start(command: Command, socket: PathBuf) -> Self {
        Self::start_at(command, Place::Socket(socket))
    }

    fn start_at(mut command: Command, place: Place) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error} (run `cargo xtask test`)"));
        // From here on the child is killed also when the test fails.
        let peer = Self { child, place };
        until("the server's socket", || match &peer.place {
            Place::Socket(socket) => UnixStream::connect(socket).is_ok(),
            Place::Port(port) => TcpStream::connect(("127.0.0.1", *port)).is_ok(),
        });
        peer
    }

    /// The URI of its export.
    pub(crate) fn uri(&self) -> String {
        match &self.place {
            Place::Socket(socket) => format!("nbd+unix:///?socket={}", socket.display()),
            Place::Port(port) => format!("nbd://localhost:{port}/"),
        }
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> &Path {
        match &self.place {
            Place::Socket(socket) => socket,
            Place::Port(port) => panic!("it listens on port {port}"),
        }
    }

    /// Sends it `signal` (as `kill` names it).
    pub(crate) fn signal(&self, signal: &str) {
        super::run::signal(&self.child, signal);
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
