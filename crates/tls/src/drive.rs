//! A session over something that carries its records: the one loop of all who own a socket, whether they block or
//! not.
//!
//! What they count as sent, and what the end of a socket means to them, is theirs to say: [`Session::write`] is not
//! here.

use std::{
    io::{self, IoSliceMut},
    task::{Poll, ready},
};

use crate::{Error, Handshake, Received, Result, Role, Session};

/// How much may wait to be sent before nothing more is received. More than any batch of data: only what TLS has
/// to answer can add to that, to a peer that asks and does not listen.
const MOST_WAITING: usize = 512 << 10;

/// What carries the records of a session, for the time of one call: a socket, and whoever is to be woken when it is
/// ready. One that blocks is never pending.
pub trait Wire {
    /// Receives into `room`, which is not empty, and says how many bytes came. 0 is the end.
    fn poll_receive(&mut self, room: &mut [u8]) -> Poll<io::Result<usize>>;

    /// Sends the start of `bytes`, which are not empty, and says how many that is.
    fn poll_send(&mut self, bytes: &[u8]) -> Poll<io::Result<usize>>;

    /// Sees to it that what was sent does not wait for more. Sockets need not do anything.
    fn poll_flush(&mut self) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What came of a session's plain bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Arrival {
    /// So many, at least one.
    Bytes(usize),
    /// The peer has said that it sends no more.
    Closed,
    /// The wire has ended, and the peer has not said that it would.
    Cut,
}

impl Session {
    /// Does the handshake over `wire`, sending and receiving at the same time: the peer may do no other than talk,
    /// too. When it fails, the peer is told why, as far as the wire takes it at once.
    ///
    /// # Errors
    /// What is wrong with the peer; [`Error::NeverBegan`], [`Error::HungUp`] or [`Error::Cut`] where it has gone;
    /// [`Error::Stream`] where the wire failed.
    pub fn poll_handshake(&mut self, wire: &mut impl Wire) -> Poll<Result<()>> {
        loop {
            let step = self.handshake();
            let sent = match self.poll_send(wire) {
                Poll::Ready(Ok(())) => wire.poll_flush(),
                unsent => unsent,
            };
            if step? == Handshake::Done {
                self.rest();
                return sent.map_err(Error::Stream);
            }
            // A peer that takes no more may have said why before.
            match (self.poll_fill(wire), sent) {
                (Poll::Pending | Poll::Ready(Err(_)), Poll::Ready(Err(error)))
                | (Poll::Ready(Err(error)), _) => return Poll::Ready(Err(Error::Stream(error))),
                (Poll::Ready(Ok(0)), _) => return Poll::Ready(Err(self.hung_up())),
                (Poll::Ready(Ok(_)), _) => {}
                (Poll::Pending, _) => return Poll::Pending,
            }
        }
    }

    /// What it means that the wire has ended in the handshake.
    fn hung_up(&self) -> Error {
        match self.peer() {
            Role::Client if self.has_begun() => Error::HungUp,
            Role::Client => Error::NeverBegan,
            Role::Server => Error::Cut,
        }
    }

    /// Receives from `wire` until there are plain bytes for `slices`, and says what came. What TLS has to say
    /// meanwhile, new keys or what is wrong, is sent as far as the wire takes it; whether it does shows soon enough,
    /// for a peer that takes no more may have said why before.
    ///
    /// # Errors
    /// What the wire failed with. What is wrong with the peer is the source of the error, which is an [`Error`] then.
    pub fn poll_receive(
        &mut self,
        wire: &mut impl Wire,
        slices: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<Arrival>> {
        loop {
            let received = self.read(slices);
            let sent = self.poll_send(wire);
            match received? {
                Received::Bytes(count) => return Poll::Ready(Ok(Arrival::Bytes(count))),
                Received::Closed => return Poll::Ready(Ok(Arrival::Closed)),
                Received::Nothing => {}
            }
            if self.outgoing().len() > MOST_WAITING {
                ready!(sent)?;
            }
            if ready!(self.poll_fill(wire))? == 0 {
                return Poll::Ready(Ok(Arrival::Cut));
            }
        }
    }

    /// Receives once from `wire`, and says how many bytes of TLS came. 0 is the end.
    ///
    /// # Errors
    /// What the wire failed with; `InvalidData` when more has come than any message of TLS may have, and none of it
    /// made sense.
    pub fn poll_fill(&mut self, wire: &mut impl Wire) -> Poll<io::Result<usize>> {
        let room = self.room();
        if room.is_empty() {
            let error = io::Error::new(io::ErrorKind::InvalidData, "a TLS message is too long");
            return Poll::Ready(Err(error));
        }
        let received = wire.poll_receive(room);
        match &received {
            Poll::Ready(Ok(count)) => self.received(*count),
            _ => self.rest(),
        }
        received
    }

    /// Sends over `wire` all that is [`outgoing`](Self::outgoing).
    ///
    /// # Errors
    /// What the wire failed with; `WriteZero` when it takes nothing.
    pub fn poll_send(&mut self, wire: &mut impl Wire) -> Poll<io::Result<()>> {
        while !self.outgoing().is_empty() {
            match ready!(wire.poll_send(self.outgoing()))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.sent(count),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl From<Error> for io::Error {
    /// The failure of the stream below as it was; everything else as the source of an error of a kind that fits:
    /// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) for what was cut,
    /// [`InvalidData`](io::ErrorKind::InvalidData) for what the peer did wrong.
    fn from(error: Error) -> Self {
        let kind = match error {
            Error::Stream(error) => return error,
            Error::Cut => io::ErrorKind::UnexpectedEof,
            Error::Exhausted => io::ErrorKind::Other,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}
