//! TLS for NBD's sockets: certificates in the layout that libnbd, qemu and nbdkit share, and a session
//! without I/O of its own.
//!
//! - [`ClientOptions`] says which authorities are trusted, which name the server's certificate must be for, and
//!   where this side's own certificate is. [`ClientOptions::session`] reads the files and makes a [`Session`];
//!   a [`ClientTls`] makes many.
//! - [`ServerTls`] is the same for the other side: what a server shows, and whether its clients have to show
//!   something themselves. [`ServerTls::session`] makes a [`Session`] for each new connection.
//! - A [`Session`] turns bytes of a socket into plain bytes and back. Whoever owns the socket gives it what
//!   arrived and sends what it has to say. One receive takes up to 256 KiB, one send as much, however many
//!   records that is. What the handshake has found out is in its [`Facts`].
//! - A [`Wire`] is what carries records: with it a session does the receiving and sending itself, whether the socket
//!   blocks or not ([`Session::poll_handshake`], [`Session::poll_receive`], [`Session::poll_send`]).
//! - A `TlsStream`, behind the feature `tokio`, is a session that owns its socket: tokio's `AsyncRead` and
//!   `AsyncWrite` over any other that is both.
//! - An [`Error`] names what failed, which file or which certificate, and what can be done.
//!
//! The names of the files in a directory of certificates:
//!
//! | file | holds | must be there for |
//! |---|---|---|
//! | `ca-cert.pem` | the authorities that are trusted | a client, and a server that verifies its clients |
//! | `ca-crl.pem` | what those have revoked | nobody |
//! | `client-cert.pem`, `client-key.pem` | what a client shows | nobody, but neither without the other |
//! | `server-cert.pem`, `server-key.pem` | what a server shows, its own certificate first | a server |
//!
//! ```
//! use blockferry_tls::{Certificates, ClientOptions, ErrorKind, Handshake};
//!
//! let directory = Certificates::Directory("/nowhere".into());
//! let missing = ClientOptions::new("localhost", directory).session();
//! let error = missing.expect_err("there are no certificates");
//! assert_eq!(error.kind(), ErrorKind::Configuration);
//!
//! // The system's authorities, and whatever they are worth nothing is verified here.
//! let mut options = ClientOptions::new("localhost", Certificates::FirstOf(Vec::new()));
//! options.verification = blockferry_tls::Verification::Off;
//! let mut session = options.session()?;
//! // A client speaks first.
//! assert_eq!(session.handshake()?, Handshake::SendAndReceive);
//! assert!(!session.outgoing().is_empty());
//! # Ok::<(), blockferry_tls::Error>(())
//! ```
//!
//! There are no pre-shared keys: rustls knows them for resumed sessions only.

#![forbid(unsafe_code)]
#![warn(missing_debug_implementations)]

mod buffers;
mod certificates;
mod client;
mod drive;
mod error;
mod facts;
mod reread;
mod scatter;
mod server;
mod session;
#[cfg(feature = "tokio")]
mod stream;
mod verifier;

pub use certificates::trusted_by_system;
pub use client::{Certificates, ClientOptions, ClientTls, Verification};
pub use drive::{Arrival, Wire};
pub use error::{Alert, CertificateProblem, Error, ErrorKind, Problem, Result, Role};
pub use facts::{Facts, PeerCertificate};
pub use server::ServerTls;
pub use session::{Handshake, Received, Session};
#[cfg(feature = "tokio")]
pub use stream::TlsStream;
