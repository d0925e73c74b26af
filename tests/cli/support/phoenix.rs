//! Servers that die and come back.

use std::{fs, path::Path, thread, time::Duration};

use super::Peer;

/// A server that can be killed and started again in the same place.
pub(crate) struct Phoenix {
    peer: Option<Peer>,
    start: Box<dyn Fn() -> Peer>,
    uri: String,
}

impl Phoenix {
    pub(crate) fn new(start: impl Fn() -> Peer + 'static) -> Self {
        let peer = start();
        Self {
            uri: peer.uri(),
            peer: Some(peer),
            start: Box::new(start),
        }
    }

    pub(crate) fn uri(&self) -> String {
        self.uri.clone()
    }

    /// Kills it without a warning, and starts it again a moment later.
    pub(crate) fn restart(&mut self) {
        self.stop();
        thread::sleep(Duration::from_millis(150));
        self.start();
    }

    /// Kills it without a warning.
    pub(crate) fn stop(&mut self) {
        if let Some(peer) = self.peer.take() {
            let socket = peer.socket().to_owned();
            drop(peer);
            let _ = fs::remove_file(&socket);
        }
    }

    /// Starts it again.
    pub(crate) fn start(&mut self) {
        self.peer = Some((self.start)());
    }
}

/// Each of the servers, of the file `disk`.
pub(crate) fn phoenixes(dir: &Path, disk: &Path) -> Vec<(&'static str, Phoenix)> {
    let owned = || (dir.to_owned(), disk.to_owned());
    let (nbdkit, qemu, own) = (owned(), owned(), owned());
    vec![
        (
            "nbdkit",
            Phoenix::new(move || {
                let file = format!("file={}", nbdkit.1.display());
                Peer::nbdkit(&nbdkit.0, &["file", &file])
            }),
        ),
        (
            "qemu-nbd",
            Phoenix::new(move || Peer::qemu_nbd(&qemu.0, "raw", &qemu.1, &[])),
        ),
        (
            "blockferry",
            Phoenix::new(move || Peer::blockferry(&own.0, &own.1)),
        ),
    ]
}
