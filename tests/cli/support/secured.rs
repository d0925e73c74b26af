//! Ends of TLS that are rustls's own, and blocking: they do just what a test says, its end among it.

use std::{
    fs,
    io::{self, Read, Write},
    net::{Shutdown, TcpListener},
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};

use super::relay::patient;

pub(crate) type Client<S> = StreamOwned<ClientConnection, S>;
pub(crate) type Server<S> = StreamOwned<ServerConnection, S>;

fn authorities(directory: &Path) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(directory.join("ca-cert.pem"));
    roots.add(authority.expect("PEM")).expect("a certificate");
    roots
}

fn identity(
    directory: &Path,
    role: &str,
) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let certificate = fs::read(directory.join(format!("{role}-cert.pem"))).expect("a file");
    let key = PrivateKeyDer::from_pem_file(directory.join(format!("{role}-key.pem")));
    let certificate = CertificateDer::from_pem_slice(&certificate).expect("PEM");
    (vec![certificate], key.expect("a key"))
}

/// A client of `localhost` over `stream` that trusts the authority in `directory`, and shows its certificate if there
/// is one. Its handshake is done, as far as it is concerned.
pub(crate) fn client<S: Read + Write>(stream: S, directory: &Path) -> io::Result<Client<S>> {
    let builder = ClientConfig::builder().with_root_certificates(authorities(directory));
    let config = match directory.join("client-cert.pem").exists() {
        true => {
            let (chain, key) = identity(directory, "client");
            builder.with_client_auth_cert(chain, key).expect("a pair")
        }
        false => builder.with_no_client_auth(),
    };
    let name = ServerName::try_from("localhost").expect("a name");
    let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut stream = StreamOwned::new(connection, stream);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

/// A server over `stream` with the certificate in `directory`.
pub(crate) fn server<S: Read + Write>(stream: S, directory: &Path) -> io::Result<Server<S>> {
    let (chain, key) = identity(directory, "server");
    let config = ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(chain, key).expect("a pair");
    let connection = ServerConnection::new(Arc::new(config)).expect("a server");
    let mut stream = StreamOwned::new(connection, stream);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

/// Tells the peer that nothing more comes.
pub(crate) fn close_client<S: Read + Write>(stream: &mut Client<S>) {
    stream.conn.send_close_notify();
    stream.flush().expect("room");
}

/// The same for a server.
pub(crate) fn close_server<S: Read + Write>(stream: &mut Server<S>) {
    stream.conn.send_close_notify();
    stream.flush().expect("room");
}

/// All that comes until an end that was said.
pub(crate) fn read_all(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    Ok(all)
}

/// A listener on a free port of this machine, and its address as a relay takes it.
pub(crate) fn target() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    (listener, format!("tcp:localhost:{port}"))
}

/// Serves `count` connections one after the other: each is read to its end and gets back what came, in an own thread.
pub(crate) fn mirror(listener: TcpListener, count: usize) -> JoinHandle<()> {
    thread::spawn(move || {
        for _ in 0..count {
            let mut stream = patient(listener.accept().expect("a client").0);
            let mut all = Vec::new();
            stream.read_to_end(&mut all).expect("an end");
            stream.write_all(&all).expect("room");
            stream.shutdown(Shutdown::Write).expect("open");
        }
    })
}
