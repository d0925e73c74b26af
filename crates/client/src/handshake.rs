//! Negotiation over a blocking socket: it is short, and both clients begin with it.

use std::{
    io::{IoSlice, IoSliceMut},
    time::Instant,
};

use blockferry_block::{Error, ErrorKind, Result};
use blockferry_proto::{ClientConfig, ClientHandshake, Outcome, Step};

use crate::{errors, stream::BlockingStream};

/// Negotiates what `config` asks for, until `deadline` at most, however slowly the server answers.
pub(crate) fn negotiate(
    stream: &mut BlockingStream,
    config: ClientConfig,
    deadline: Instant,
) -> Result<Outcome> {
    let mut handshake = ClientHandshake::new(config).map_err(errors::from_proto)?;
    let mut received = Vec::new();
    loop {
        stream.set_deadline(deadline).map_err(errors::lost)?;
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
                return Err(Error::with_message(
                    ErrorKind::Unsupported,
                    "TLS is not supported yet",
                ));
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
