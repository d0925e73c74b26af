//! A place for one test of TLS: an authority of its own, and servers that show what it signed.

use std::path::{Path, PathBuf};

use tempfile::{TempDir, tempdir};

use super::{
    Peer,
    certificates::{Authority, Flaw},
    sparse_image,
};

/// The size of its image in bytes.
pub(crate) const SIZE: u64 = 24 << 20;

/// A room with an authority of its own.
pub(crate) struct Realm {
    pub(crate) room: TempDir,
    pub(crate) authority: Authority,
}

impl Realm {
    pub(crate) fn new() -> Self {
        Self {
            room: tempdir().expect("a directory"),
            authority: Authority::new(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.room.path().join(name)
    }

    pub(crate) fn image(&self) -> PathBuf {
        let image = self.path("image.raw");
        sparse_image(&image, SIZE);
        image
    }

    /// What a server shows.
    pub(crate) fn server(&self, flaw: Flaw) -> PathBuf {
        self.authority.server(self.room.path(), "server", flaw)
    }

    /// What a client trusts, as a parameter of a URI.
    pub(crate) fn trust(&self) -> String {
        let directory = self.authority.directory(self.room.path(), "trust");
        format!("tls-certificates={}", directory.display())
    }

    /// The same, with a client's own certificate.
    pub(crate) fn member(&self) -> String {
        let directory = self.authority.client(self.room.path(), "member");
        format!("tls-certificates={}", directory.display())
    }

    /// `nbdkit` on a unix socket, with TLS alone.
    pub(crate) fn nbdkit(&self, flaw: Flaw, arguments: &[&str]) -> Peer {
        let certificates = format!("--tls-certificates={}", self.server(flaw).display());
        let arguments = [&["--tls=require", &certificates], arguments].concat();
        Peer::nbdkit(self.room.path(), &arguments)
    }

    /// `qemu-nbd` on a unix socket, with TLS alone.
    pub(crate) fn qemu_nbd(&self, image: &Path, verify: &str) -> Peer {
        let credentials = format!(
            "tls-creds-x509,id=tls0,endpoint=server,verify-peer={verify},dir={}",
            self.server(Flaw::None).display()
        );
        let extra = ["--object", &credentials, "--tls-creds", "tls0"];
        Peer::qemu_nbd(self.room.path(), "raw", image, &extra)
    }
}

/// The URI of a unix socket with TLS.
pub(crate) fn secure(uri: &str, parameter: &str) -> String {
    format!("{}&{parameter}", uri.replace("nbd+unix:", "nbds+unix:"))
}
