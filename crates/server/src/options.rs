//! What a server can be told, and what it tells while it runs.

use std::{sync::Arc, time::Duration};

use blockferry_block::{ByteRange, Error};
use blockferry_proto::{Command, CommandFlags, HandshakeFlags, Negotiated, TlsPolicy};
use blockferry_tls::{self as tls, ServerTls};

/// How a server behaves. Everything that a client can make it hold is bounded here.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerOptions {
    /// Refuses every change, whatever the devices can do. Default: false.
    pub read_only: bool,
    /// Connections at a time; more of them wait in the listener's backlog. At least 1, default 100. With 1
    /// clients are not told that they may use several.
    pub max_connections: usize,
    /// How long a client may take from connecting to the end of the handshake, not counting the
    /// time that it takes to open a device. Default 10 s.
    pub handshake_timeout: Duration,
    /// Requests of one connection that are carried out or wait to be answered at a time; the
    /// connection is not read from while there are so many. At least 1, default 64.
    pub max_in_flight_requests: usize,
    /// Bytes of payload that one connection holds at a time. A single request beyond it is let
    /// through alone. Default 8 MiB.
    pub max_in_flight_bytes: u64,
    /// Offers structured replies, without which there is no block status. Default: true.
    pub structured: bool,
    /// Offers extended (64-bit) headers. Default: true.
    pub extended: bool,
    /// Knows of metadata contexts, without which there is no block status. Default: true.
    pub meta_contexts: bool,
    /// What is offered at the start of the handshake. Fewer flags are for trying out clients. Default: all.
    pub handshake_flags: HandshakeFlags,
    /// How long a client may keep silent while nothing of it is in flight, or not take its answers, before
    /// it is disconnected: so long at least, and half as long again at most. Default: for ever.
    pub idle_timeout: Option<Duration>,
    /// Answers long reads with the pages of a file where that is faster than copying them. Whoever changes
    /// the file meanwhile changes what such a reader gets. Default: true.
    pub zero_copy: bool,
    /// Lets clients give space back: trims reach the device, and zeroes may become holes. Otherwise a trim is
    /// acknowledged and changes nothing, and zeroes stay allocated. Default: true.
    pub discard: bool,
    /// Counts requests by export and command, and measures them. Default: false.
    pub measured: bool,
    /// Tells the observer of every request. Default: false.
    pub tells_requests: bool,
    /// Shuts down when the last client has gone, of some that used an export. Default: false.
    pub once: bool,
    /// How long clients may take to hear the last answers when the server shuts down; after it
    /// their connections are cut. Default 5 s.
    pub shutdown_grace: Duration,
    /// How long what a device is still doing is waited for when its client is gone, or was cut. Default 15 s.
    pub device_patience: Duration,
    /// TLS, or none. What clients may take for its handshake is part of `handshake_timeout`. Default: none.
    pub tls: Option<TlsOptions>,
}

/// TLS as a server offers it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TlsOptions {
    /// Who gets it.
    pub policy: TlsPolicy,
    /// The certificates. A problem with them is found by [`ServerTls::check`]; without it, by the first client.
    pub tls: Arc<ServerTls>,
}

impl TlsOptions {
    /// TLS for whom `policy` says, with the certificates of `tls`.
    #[must_use]
    pub fn new(policy: TlsPolicy, tls: Arc<ServerTls>) -> Self {
        Self { policy, tls }
    }
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            max_connections: 100,
            handshake_timeout: Duration::from_secs(10),
            max_in_flight_requests: 64,
            max_in_flight_bytes: 8 << 20,
            structured: true,
            extended: true,
            meta_contexts: true,
            handshake_flags: HandshakeFlags::all(),
            idle_timeout: None,
            zero_copy: true,
            discard: true,
            measured: false,
            tells_requests: false,
            once: false,
            shutdown_grace: Duration::from_secs(5),
            device_patience: Duration::from_secs(15),
            tls: None,
        }
    }
}

impl ServerOptions {
    /// Whether somebody wants to know how long requests take.
    pub(crate) fn has_clock(&self) -> bool {
        self.measured || self.tells_requests
    }
}

/// The number of a connection: counted from 1 for every one that a server accepted.
pub type ConnectionId = u64;

/// What happens in a server. The library prints nothing: an observer gets these, on the thread where
/// they happen, and must not block. Strings in them may come from clients: escape before printing.
#[derive(Debug)]
#[non_exhaustive]
pub enum ServerEvent<'a> {
    /// A client connected.
    Connected {
        /// The new connection.
        connection: ConnectionId,
        /// The address of the client, `unix` for a unix socket.
        peer: &'a str,
    },
    /// The handshake is over, the client uses an export.
    Serving {
        /// The connection.
        connection: ConnectionId,
        /// What client and server agreed on.
        negotiated: &'a Negotiated,
    },
    /// A device could not be opened, which its client was told.
    OpenFailed {
        /// The connection.
        connection: ConnectionId,
        /// The export as the client named it.
        export: &'a str,
        /// Why.
        error: &'a Error,
    },
    /// A request failed on the device, which its client was told.
    RequestFailed {
        /// The connection.
        connection: ConnectionId,
        /// What the client wanted.
        command: Command,
        /// Why it failed.
        error: &'a Error,
    },
    /// A request was answered. Only where [`ServerOptions::tells_requests`] is set.
    RequestDone {
        /// The connection.
        connection: ConnectionId,
        /// What the client wanted.
        command: Command,
        /// Of which bytes: empty for a flush.
        range: ByteRange,
        /// How.
        flags: CommandFlags,
        /// From having received it until its answer was ready to be sent.
        time: Duration,
        /// Why it failed, if it did.
        failure: Option<&'a str>,
    },
    /// A connection is over.
    Closed {
        /// The connection.
        connection: ConnectionId,
        /// How it ended.
        ending: &'a Ending,
    },
    /// A connection could not be taken on: descriptors or threads ran out.
    AcceptFailed(&'a std::io::Error),
    /// What was written could not be made durable at the end.
    FlushFailed(&'a Error),
}

/// How a connection ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum Ending {
    /// The client said goodbye, with `NBD_CMD_DISC` or `NBD_OPT_ABORT`.
    Disconnected,
    /// The client went away without a word.
    Vanished,
    /// The handshake took too long.
    HandshakeTimedOut,
    /// The client kept silent for too long.
    Idle,
    /// The export wanted the connection to end.
    Dismissed,
    /// The client asked for what the server could not give, where the protocol leaves closing only.
    Refused,
    /// The client broke the protocol.
    Misbehaved(blockferry_proto::Error),
    /// TLS did not come about or broke: certificates, on one side or the other, or plaintext.
    Tls(tls::Error),
    /// The socket failed.
    Io(std::io::Error),
    /// The server shut down.
    ShutDown,
}

/// The most bytes of a read or a write that a server takes in one request.
pub(crate) const MAX_PAYLOAD: u32 = 64 << 20;

impl Ending {
    /// What a failure of the socket says of the client.
    pub(crate) fn from_io(error: std::io::Error) -> Self {
        use std::io::ErrorKind;
        let error = match error.downcast::<tls::Error>() {
            Ok(error) => return Self::Tls(error),
            Err(error) => error,
        };
        match error.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {
                Self::Vanished
            }
            _ => Self::Io(error),
        }
    }
}
