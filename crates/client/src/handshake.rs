//! Negotiation over a blocking socket: it is short, and both clients begin with it.

use std::io::{IoSlice, IoSliceMut};

use blockferry_block::{Error, ErrorKind, Result};
use blockferry_proto::{ClientConfig, ClientHandshake, Outcome, Step};
use blockferry_tls::Session;

use crate::{errors, stream::BlockingStream};

/// Negotiates what `config` asks for, within the deadline of `stream`. `session` is for a server that has
/// agreed to TLS.
pub(crate) fn negotiate(
    stream: &mut BlockingStream,
    config: ClientConfig,
    session: Option<Session>,
) -> Result<Outcome> {
    let mut session = session;
    let mut handshake = ClientHandshake::new(config).map_err(errors::from_proto)?;
    let mut received = Vec::new();
    loop {
        match handshake.step() {
            Step::Send(bytes) => send_all(stream, &bytes)?,
            Step::Receive(count) => {
                received.resize(count, 0);
                if !receive_exact(stream, &mut received)? {
                    return Err(errors::from_proto(handshake.hung_up()));
                }
                handshake.receive(&received).map_err(errors::from_proto)?;
            }
            Step::StartTls => {
                // Bytes that came after the server's consent in the clear are still in the socket: they
                // are nothing but the beginning of TLS, and wrong as that.
                let Some(session) = session.take() else {
                    return Err(Error::with_message(
                        ErrorKind::Protocol,
                        "TLS was begun without having been asked for",
                    ));
                };
                stream.secure(session).map_err(errors::lost)?;
                handshake.tls_ready();
            }
            Step::Done => {
                return handshake.take_outcome().ok_or_else(|| {
                    Error::with_message(
                        ErrorKind::Protocol,
                        "the negotiation ended without a result",
                    )
                });
            }
        }
    }
}

pub(crate) fn send_all(stream: &mut BlockingStream, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        let sent = stream.send(&[IoSlice::new(bytes)]).map_err(errors::lost)?;
        bytes = &bytes[sent..];
    }
    Ok(())
}

/// Fills `bytes`. False when the server closed the connection first.
fn receive_exact(stream: &mut BlockingStream, mut bytes: &mut [u8]) -> Result<bool> {
    while !bytes.is_empty() {
        let count = stream
            .receive(&mut [IoSliceMut::new(bytes)])
            .map_err(errors::lost)?;
        if count == 0 {
            return Ok(false);
        }
        bytes = &mut bytes[count..];
    }
    Ok(true)
}
