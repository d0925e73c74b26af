//! From a URI to a negotiated connection.

use std::{sync::Arc, thread, time::Instant};

use blockferry_block::{Error, ErrorKind, Operation, Result};
use blockferry_proto::{Goal, NbdUri, Negotiated, Outcome, Transport};
use tokio::sync::oneshot;

use crate::{ConnectOptions, Gone, errors, handshake, stream::BlockingStream, tls};

/// Connects and negotiates, all within the time that `options` gives. Errors name the endpoint.
pub(crate) fn connect(
    uri: &NbdUri,
    options: &ConnectOptions,
    goal: Goal,
) -> Result<(BlockingStream, Outcome)> {
    let name = options.endpoint_name(uri);
    let deadline = Instant::now() + options.connect_timeout;
    let attempt = || {
        let session = tls::session(uri)?;
        let mut stream = dial(&uri.transport, deadline)?;
        stream.set_deadline(deadline);
        let config = options.handshake(uri, goal);
        let outcome = handshake::negotiate(&mut stream, config, session)
            .map_err(|error| or_certificate_missing(error, &stream))?;
        stream.set_timeout(options.request_timeout)?;
        Ok((stream, outcome))
    };
    attempt().map_err(|error: Error| error.during(Operation::Open).on(&name))
}

/// A connection in transmission: the socket, what was negotiated, and the endpoint's name.
pub(crate) type Connected = (BlockingStream, Negotiated, Arc<str>);

/// Connects for transmission.
pub(crate) fn connect_for_transmission(
    uri: &NbdUri,
    options: &ConnectOptions,
) -> Result<Connected> {
    match connect(uri, options, Goal::Transmit)? {
        (stream, Outcome::Transmit(negotiated)) => {
            Ok((stream, negotiated, options.endpoint_name(uri)))
        }
        _ => Err(unexpected_outcome()),
    }
}

/// [`connect_for_transmission`] on a thread of its own. Nobody waits for the thread when the future is
/// dropped, nor does the end of the runtime: a server may well stay silent until the timeout.
pub(crate) async fn connect_aside(uri: &NbdUri, options: &ConnectOptions) -> Result<Connected> {
    let (send, receive) = oneshot::channel();
    let (uri, options) = (uri.clone(), options.clone());
    thread::Builder::new()
        .name("nbd-connect".to_owned())
        .spawn(move || {
            let connected = connect_for_transmission(&uri, &options);
            drop(send.send(connected.map_err(|error| or_gone(error, &uri, &options))));
        })
        .map_err(|error| Error::from(error).during(Operation::Open))?;
    receive
        .await
        .map_err(|error| Error::with_source(ErrorKind::Cancelled, error).during(Operation::Open))?
}

/// `error`, or what a server that hangs up behind the TLS handshake may have missed: under TLS 1.3 it looks at
/// the client's certificate when the client has done its part already.
fn or_certificate_missing(error: Error, stream: &BlockingStream) -> Error {
    if error.kind() == ErrorKind::ConnectionLost && stream.owes_certificate() {
        let message = "the server closed the connection after it had asked for a client certificate; put client-cert.pem and client-key.pem into the directory that tls-certificates names";
        return Error::with_message(ErrorKind::NotPermitted, message);
    }
    if error.kind() == ErrorKind::ConnectionLost && stream.has_shown_certificate() {
        // It may have ended for another reason as well, so another attempt may do.
        let message = "the server closed the connection after it was shown this client's certificate: it may not accept it";
        return Error::with_message(ErrorKind::ConnectionLost, message).because(error);
    }
    error
}

/// `error`, or that there is no server any more, which no further attempt can heal.
fn or_gone(error: Error, uri: &NbdUri, options: &ConnectOptions) -> Error {
    match options.gone.as_ref().and_then(Gone::why) {
        Some(why) => Error::with_message(ErrorKind::Unsupported, why)
            .during(Operation::Open)
            .on(&options.endpoint_name(uri)),
        None => error,
    }
}

/// The negotiation ended in another state than it was asked for.
pub(crate) fn unexpected_outcome() -> Error {
    Error::with_message(
        ErrorKind::Protocol,
        "the negotiation ended in an unexpected state",
    )
}

fn dial(transport: &Transport, deadline: Instant) -> Result<BlockingStream> {
    let stream = match transport {
        Transport::Tcp { host, port } => BlockingStream::tcp(host, *port, deadline),
        Transport::Unix { path } => BlockingStream::unix(path, deadline),
        Transport::Vsock { cid, port } => BlockingStream::vsock(*cid, *port, deadline),
        Transport::Ssh { .. } => return Err(unsupported("SSH tunnels are")),
    };
    stream.map_err(errors::not_connected)
}

fn unsupported(what: &str) -> Error {
    Error::with_message(ErrorKind::Unsupported, format!("{what} not supported yet"))
}
