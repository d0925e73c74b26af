//! Certificates for one test, and a client's socket with TLS.

use std::{
    fs,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::Arc,
};

use blockferry_proto::{ClientConfig, Outcome, Tls};
use blockferry_server::{ServerOptions, TlsOptions, TlsPolicy};
use blockferry_tls::{
    Certificates, ClientOptions, Handshake, Received, ServerTls, Session, Verification,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use crate::peer::{Host, Peer, options, shake_on};

/// An authority with a directory for a server, one for a client that trusts it, and one for a client that has
/// a certificate, too.
pub(crate) struct Realm {
    room: TempDir,
}

impl Realm {
    pub(crate) fn new() -> Self {
        let room = tempfile::tempdir().expect("a directory");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let authority = params.self_signed(&key).expect("a certificate").pem();
        let issuer = Issuer::new(params, key);
        for (name, role) in [("server", "server"), ("member", "client"), ("trust", "")] {
            let directory = room.path().join(name);
            fs::create_dir(&directory).expect("room");
            fs::write(directory.join("ca-cert.pem"), &authority).expect("room");
            if role.is_empty() {
                continue;
            }
            let key = KeyPair::generate().expect("a key");
            let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
            let certificate = params.signed_by(&key, &issuer).expect("a certificate");
            let write = |kind: &str, text: &str| {
                fs::write(directory.join(format!("{role}-{kind}.pem")), text).expect("room");
            };
            write("cert", &certificate.pem());
            write("key", &key.serialize_pem());
        }
        Self { room }
    }

    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        self.room.path().join(name)
    }

    /// The options of a server with these certificates.
    pub(crate) fn server(
        &self,
        policy: TlsPolicy,
        clients: Verification,
        change: impl FnOnce(&mut ServerOptions),
    ) -> ServerOptions {
        options(|options| {
            let tls = Arc::new(ServerTls::new(self.directory("server"), clients));
            options.tls = Some(TlsOptions::new(policy, tls));
            change(options);
        })
    }

    /// A client of `host` that trusts this authority, in transmission through TLS.
    pub(crate) fn connect(&self, host: &Host) -> Peer<SecureSocket> {
        self.connect_as(host, "trust", ClientConfig::default())
    }

    pub(crate) fn connect_as(
        &self,
        host: &Host,
        who: &str,
        config: ClientConfig,
    ) -> Peer<SecureSocket> {
        match self.handshake(host, who, config) {
            Ok((socket, Outcome::Transmit(negotiated))) => Peer::new(socket, &negotiated),
            other => panic!("the handshake came to {:?}", other.map(|it| it.1)),
        }
    }

    /// What a handshake through TLS comes to.
    pub(crate) fn handshake(
        &self,
        host: &Host,
        who: &str,
        config: ClientConfig,
    ) -> Result<(SecureSocket, Outcome), String> {
        let tls = Tls::Require;
        let mut config = config;
        config.tls = tls;
        let socket = SecureSocket::plain(host.raw());
        let directory = self.directory(who);
        shake_on(socket, config, |socket| {
            socket
                .secure(session(&directory))
                .map_err(|e| e.to_string())
        })
    }
}

/// A client's session that trusts what is in `directory`.
pub(crate) fn session(directory: &Path) -> Session {
    let directory = Certificates::Directory(directory.to_owned());
    let options = ClientOptions::new("localhost", directory);
    options.session().expect("good certificates")
}

/// A socket, and at some time TLS.
#[derive(Debug)]
pub(crate) struct SecureSocket {
    pub(crate) socket: UnixStream,
    session: Option<Session>,
    /// Whether the server has said that it sends no more.
    pub(crate) closed: bool,
}

impl SecureSocket {
    pub(crate) fn plain(socket: UnixStream) -> Self {
        Self {
            socket,
            session: None,
            closed: false,
        }
    }

    pub(crate) fn secure(&mut self, mut session: Session) -> io::Result<()> {
        while session.handshake().map_err(io::Error::other)? != Handshake::Done {
            send(&self.socket, &mut session)?;
            if receive(&self.socket, &mut session)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        send(&self.socket, &mut session)?;
        self.session = Some(session);
        Ok(())
    }

    /// Says that nothing more comes.
    pub(crate) fn close(&mut self) {
        let session = self.session.as_mut().expect("TLS");
        session.close();
        send(&self.socket, session).expect("sent");
    }
}

fn send(mut socket: &UnixStream, session: &mut Session) -> io::Result<()> {
    socket.write_all(session.outgoing())?;
    session.sent(session.outgoing().len());
    Ok(())
}

fn receive(mut socket: &UnixStream, session: &mut Session) -> io::Result<usize> {
    let count = socket.read(session.room())?;
    session.received(count);
    Ok(count)
}

impl Read for SecureSocket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let Some(session) = &mut self.session else {
            return self.socket.read(bytes);
        };
        loop {
            let received = session.read(&mut [IoSliceMut::new(bytes)]);
            send(&self.socket, session).ok();
            match received.map_err(io::Error::other)? {
                Received::Bytes(count) => return Ok(count),
                Received::Closed => {
                    self.closed = true;
                    return Ok(0);
                }
                Received::Nothing => {}
            }
            if receive(&self.socket, session)? == 0 {
                return Ok(0);
            }
        }
    }
}

impl Write for SecureSocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(session) = &mut self.session else {
            return self.socket.write(bytes);
        };
        let count = session
            .write(&[IoSlice::new(bytes)], 0)
            .map_err(io::Error::other)?;
        send(&self.socket, session)?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
