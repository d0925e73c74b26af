//! A TLS session between a socket that somebody else owns and plain bytes.
//!
//! ```text
//!   socket -> room(), received() -> [incoming: records] -> read()  -> the caller's slices
//!   socket <- outgoing(), sent() <- [outgoing: records] <- write() <- the caller's slices
//! ```
//!
//! What was received is decrypted in place, record by record, and copied once into the caller's slices. That
//! is the copy that rustls wants; a record that the slices have no room for is kept and costs one more.
//!
//! The memory for records is lent while some are in it: ten thousand sessions that wait have none.

use std::{
    fmt,
    io::{IoSlice, IoSliceMut},
    mem,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use rustls::{
    client::UnbufferedClientConnection,
    server::UnbufferedServerConnection,
    unbuffered::{
        ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
        WriteTraffic,
    },
};

use crate::{
    Error, Facts, Result, Role, buffers,
    error::{Expected, LONGEST_MESSAGE},
    scatter::Scatter,
};

/// How many bytes one receive takes, at least, when so many are there.
const RECEIVE: usize = 256 << 10;

/// How many plain bytes are encrypted before they are sent: sixteen records, still in cache when they leave.
const SEND: usize = 256 << 10;

/// How many plain bytes a record holds, and what it adds to them at most.
const RECORD: usize = 16 << 10;
const RECORD_OVERHEAD: usize = 64;

/// So little memory is kept while a session waits: the header of a request or two.
const KEPT: usize = 1 << 10;

/// The memory for what arrives: room for a receive behind the longest message that is not whole yet.
const INCOMING: usize = RECEIVE + LONGEST_MESSAGE + RECORD;

/// The memory for what is to be sent, unless TLS has much to say itself.
const OUTGOING: usize = SEND + (SEND / RECORD + 2) * RECORD_OVERHEAD;

/// Slices shorter than this share a record with their neighbours.
const SHORT: usize = 4 << 10;

/// One side of a TLS connection.
///
/// It begins with [`handshake`](Self::handshake), again and again until it says [`Handshake::Done`]. Any error
/// ends it; what [`outgoing`](Self::outgoing) still has then tells the peer why.
pub struct Session {
    side: Side,
    incoming: Incoming,
    traffic: Traffic,
    expected: Expected,
    /// The server asked for a certificate, and got none.
    asked: Arc<AtomicBool>,
    /// The server asked for a certificate, and got one.
    shown: Arc<AtomicBool>,
    /// The name that the client asked for.
    asked_for: Arc<OnceLock<String>>,
    /// The peer has said something.
    begun: bool,
}

/// rustls, as one side or the other.
enum Side {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// What a session has to say, and what it has heard.
#[derive(Default)]
struct Traffic {
    outgoing: Outgoing,
    /// Plain bytes that were decrypted before anybody had room for them, and how many were taken since.
    early: Vec<u8>,
    taken: usize,
    /// The peer said that it sends no more.
    closed: bool,
    /// The peer has said something that TLS has an answer to.
    answered: bool,
    /// What has ended the session.
    failure: Option<Failure>,
    /// Short slices on their way into one record.
    gather: Vec<u8>,
}

/// What a handshake needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Handshake {
    /// Send what is [`outgoing`](Session::outgoing), then receive.
    SendAndReceive,
    /// The peer is who it should be. What is [`outgoing`](Session::outgoing) still has to be sent.
    Done,
}

/// What a read came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Received {
    /// So many plain bytes, at least one.
    Bytes(usize),
    /// Nothing before more has been received.
    Nothing,
    /// The peer has said that it sends no more.
    Closed,
}

impl Session {
    pub(crate) fn client(
        connection: UnbufferedClientConnection,
        expected: Expected,
        asked: Arc<AtomicBool>,
        shown: Arc<AtomicBool>,
    ) -> Self {
        Self {
            asked,
            shown,
            ..Self::new(Side::Client(connection), expected)
        }
    }

    pub(crate) fn server(
        connection: UnbufferedServerConnection,
        expected: Expected,
        asked_for: Arc<OnceLock<String>>,
    ) -> Self {
        Self {
            asked_for,
            ..Self::new(Side::Server(connection), expected)
        }
    }

    fn new(side: Side, expected: Expected) -> Self {
        Self {
            side,
            incoming: Incoming::default(),
            traffic: Traffic::default(),
            expected,
            asked: Arc::default(),
            shown: Arc::default(),
            asked_for: Arc::default(),
            begun: false,
        }
    }

    /// Goes on with the handshake, with what was received since.
    ///
    /// # Errors
    /// Whatever is wrong with the peer.
    pub fn handshake(&mut self) -> Result<Handshake> {
        match self.advance(None, Errand::None)? {
            Turn::CanWrite => Ok(Handshake::Done),
            Turn::NeedsMore | Turn::Full => Ok(Handshake::SendAndReceive),
            Turn::Closed => Err(Error::Cut),
        }
    }

    /// Whether the server wanted to see a certificate and this side had none to show. It may go on without.
    #[must_use]
    pub fn owes_certificate(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Whether this side has shown the server its certificate. Under TLS 1.3 the server looks at it when this side
    /// has done its part of the handshake already, and may not say what it thinks of it.
    #[must_use]
    pub fn has_shown_certificate(&self) -> bool {
        self.shown.load(Ordering::Relaxed)
    }

    /// What the handshake has found out, once it is done.
    #[must_use]
    pub fn facts(&self) -> Facts {
        let server_name = self.asked_for.get().cloned();
        match &self.side {
            Side::Client(connection) => Facts::new(connection, server_name),
            Side::Server(connection) => Facts::new(connection, server_name),
        }
    }

    /// Who the peer is.
    #[must_use]
    pub fn peer(&self) -> Role {
        self.expected.role()
    }

    /// Whether the peer has said anything yet, right or wrong.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun
    }

    /// Where to put what arrives on the socket: 256 KiB and more, as long as everything that can be read is
    /// read first. Empty after a peer has sent what nobody can read. Where nothing arrives,
    /// [`rest`](Self::rest) gives the memory back.
    pub fn room(&mut self) -> &mut [u8] {
        self.incoming.room()
    }

    /// `count` bytes have arrived in [`room`](Self::room).
    pub fn received(&mut self, count: usize) {
        self.begun |= count > 0;
        self.incoming.end = self.incoming.bytes.len().min(self.incoming.end + count);
    }

    /// Nothing has arrived, and the caller waits: gives back what memory is not needed meanwhile.
    pub fn rest(&mut self) {
        self.incoming.rest();
        self.traffic.rest();
    }

    /// How many bytes of memory the session has for what is on its way, beside what TLS itself needs.
    #[must_use]
    pub fn memory(&self) -> usize {
        let Traffic {
            outgoing,
            early,
            gather,
            ..
        } = &self.traffic;
        let records = self.incoming.bytes.len() + outgoing.bytes.len();
        records + early.capacity() + gather.capacity()
    }

    /// Fills `slices` with plain bytes as far as they have arrived. There may be something to send afterwards.
    ///
    /// # Errors
    /// Whatever is wrong with the peer, when all that came before has been read.
    pub fn read(&mut self, slices: &mut [IoSliceMut<'_>]) -> Result<Received> {
        let mut scatter = Scatter::new(slices);
        self.traffic.hand_over(&mut scatter);
        if self.traffic.early.is_empty() && !scatter.is_full() && !self.traffic.closed {
            match self.advance(Some(&mut scatter), Errand::None) {
                // It is told to whoever reads on: it ends the session.
                Err(_) if scatter.count() > 0 => {}
                turn => {
                    turn?;
                }
            }
        }
        match scatter.count() {
            0 if self.traffic.closed => Ok(Received::Closed),
            0 => Ok(Received::Nothing),
            count => Ok(Received::Bytes(count)),
        }
    }

    /// Encrypts the start of `slices`, without their first `skip` bytes, and says how many bytes that is. They
    /// are [`outgoing`](Self::outgoing) then; it had better be empty before.
    ///
    /// # Errors
    /// [`Error::Exhausted`], and whatever is wrong with the peer.
    pub fn write(&mut self, slices: &[IoSlice<'_>], skip: usize) -> Result<usize> {
        let mut load = Load {
            slices,
            skip,
            count: 0,
        };
        self.advance(None, Errand::Encrypt(&mut load))?;
        Ok(load.count)
    }

    /// What is to be sent on the socket.
    #[must_use]
    pub fn outgoing(&self) -> &[u8] {
        self.traffic.outgoing.pending()
    }

    /// The first `count` bytes of [`outgoing`](Self::outgoing) have left.
    pub fn sent(&mut self, count: usize) {
        self.traffic.outgoing.sent(count);
    }

    /// Tells the peer that nothing more comes, in [`outgoing`](Self::outgoing). After an error it knows.
    pub fn close(&mut self) {
        if self.traffic.failure.is_none() {
            // What is wrong with the peer does not matter any more.
            let _ = self.advance(None, Errand::Close);
        }
    }

    /// Takes what rustls says and wants until it can do no more without the outside: plain bytes go into
    /// `scatter`, or wait; the `errand` is done once that is possible.
    fn advance(
        &mut self,
        mut scatter: Option<&mut Scatter<'_, '_>>,
        mut errand: Errand<'_, '_>,
    ) -> Result<Turn> {
        if let Some(failure) = &self.traffic.failure {
            return Err(self.told(failure.clone()));
        }
        loop {
            let (discard, turn) = self.step(scatter.as_deref_mut(), &mut errand);
            self.incoming.discard(discard);
            match turn {
                Ok(None) => {}
                Ok(Some(turn)) => return Ok(turn),
                Err(failure) => {
                    let told = self.told(failure.clone());
                    if let Failure::Peer(_) = failure {
                        self.collect_alert();
                    }
                    // rustls is asked nothing any more: it would find the same again, and tell the peer twice. When the
                    // keys are used up, it would tell the peer that nothing was missing.
                    self.traffic.failure = Some(failure);
                    return Err(told);
                }
            }
        }
    }

    /// What the caller is told of a failure.
    fn told(&self, failure: Failure) -> Error {
        match failure {
            Failure::Peer(error) => Error::from_peer(error, &self.expected, self.traffic.answered),
            Failure::Exhausted => Error::Exhausted,
        }
    }

    /// Carries out one thing that rustls says or wants; says also how much of what was received is done with.
    fn step(
        &mut self,
        scatter: Option<&mut Scatter<'_, '_>>,
        errand: &mut Errand<'_, '_>,
    ) -> (usize, Result<Option<Turn>, Failure>) {
        let pending = self.incoming.pending();
        let traffic = &mut self.traffic;
        match &mut self.side {
            Side::Client(it) => traffic.obey(it.process_tls_records(pending), scatter, errand),
            Side::Server(it) => traffic.obey(it.process_tls_records(pending), scatter, errand),
        }
    }

    /// After an error: what rustls wants to tell the peer about it.
    fn collect_alert(&mut self) {
        // Where there is nothing to tell, it fails again.
        let (discard, _) = self.step(None, &mut Errand::None);
        self.incoming.discard(discard);
    }
}

/// What ends a session: it is found once, and told to everybody who asks for more.
#[derive(Clone)]
enum Failure {
    /// Something that the peer did.
    Peer(rustls::Error),
    /// The keys are used up.
    Exhausted,
}

impl Traffic {
    /// Lays down what waits for room.
    fn hand_over(&mut self, scatter: &mut Scatter<'_, '_>) {
        self.taken += scatter.put(&self.early[self.taken..]);
        if self.taken == self.early.len() {
            self.early.clear();
            self.taken = 0;
        }
    }

    /// Gives back the memory of short slices and of what was read late, where it is empty.
    fn rest(&mut self) {
        if self.early.is_empty() {
            self.early = Vec::new();
        }
        if self.gather.capacity() > KEPT {
            self.gather = Vec::new();
        }
    }

    /// Does what rustls wants, for a client as for a server. The first of the results is how many of the
    /// received bytes are done with.
    fn obey<Data>(
        &mut self,
        status: UnbufferedStatus<'_, '_, Data>,
        mut scatter: Option<&mut Scatter<'_, '_>>,
        errand: &mut Errand<'_, '_>,
    ) -> (usize, Result<Option<Turn>, Failure>) {
        let UnbufferedStatus { mut discard, state } = status;
        let turn = match state {
            Err(error) => Err(Failure::Peer(error)),
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                let mut result = Ok(());
                while let Some(record) = traffic.next_record() {
                    match record {
                        Ok(record) => {
                            discard += record.discard;
                            let placed = scatter.as_mut().map_or(0, |it| it.put(record.payload));
                            self.early.extend_from_slice(&record.payload[placed..]);
                        }
                        Err(error) => {
                            result = Err(Failure::Peer(error));
                            break;
                        }
                    }
                }
                let is_full = scatter.is_some_and(|scatter| scatter.is_full());
                result.map(|()| is_full.then_some(Turn::Full))
            }
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                self.answered = true;
                let encoded = self.outgoing.append(|room| match data.encode(room) {
                    Ok(count) => Ok(count),
                    Err(EncodeError::InsufficientSize(needed)) => Err(Needs::Room(needed)),
                    Err(EncodeError::AlreadyEncoded) => Ok(0),
                });
                encoded.map(|()| None)
            }
            // It is sent with whatever follows.
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Ok(None)
            }
            Ok(ConnectionState::PeerClosed) => {
                self.closed = true;
                Ok(None)
            }
            Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                let done = match mem::replace(errand, Errand::None) {
                    Errand::None => Ok(()),
                    Errand::Encrypt(load) => {
                        load.encrypt(&mut traffic, &mut self.outgoing, &mut self.gather)
                    }
                    Errand::Close => self
                        .outgoing
                        .append(|room| traffic.queue_close_notify(room).map_err(Needs::from)),
                };
                done.map(|()| Some(Turn::CanWrite))
            }
            Ok(ConnectionState::BlockedHandshake) => Ok(Some(Turn::NeedsMore)),
            Ok(_) => Ok(Some(Turn::Closed)),
        };
        (discard, turn)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("peer", &self.expected)
            .field("incoming", &(self.incoming.end - self.incoming.start))
            .field("outgoing", &self.outgoing().len())
            .finish_non_exhaustive()
    }
}

/// Why a session cannot go on by itself.
enum Turn {
    /// The handshake is over, and nothing is left to be read.
    CanWrite,
    /// The handshake waits for the peer.
    NeedsMore,
    /// The reader has no room left.
    Full,
    /// Both sides have ended the session.
    Closed,
}

/// Records as they arrived.
#[derive(Default)]
struct Incoming {
    /// Empty while nothing is in it, and nobody was given room.
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Incoming {
    fn pending(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    fn room(&mut self) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes = buffers::lend(INCOMING);
        }
        if self.bytes.len() - self.end < RECEIVE {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.bytes[self.end..]
    }

    fn discard(&mut self, count: usize) {
        self.start = self.end.min(self.start + count);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    fn rest(&mut self) {
        if self.start == self.end && !self.bytes.is_empty() {
            (self.start, self.end) = (0, 0);
            buffers::take_back(mem::take(&mut self.bytes));
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.end = self.start;
        self.rest();
    }
}

/// Records that wait to be sent.
#[derive(Default)]
struct Outgoing {
    /// Empty while nothing is in it.
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

/// Why nothing was appended.
enum Needs {
    Room(InsufficientSizeError),
    NewKeys,
}

impl From<EncryptError> for Needs {
    fn from(error: EncryptError) -> Self {
        match error {
            EncryptError::InsufficientSize(needed) => Self::Room(needed),
            EncryptError::EncryptExhausted => Self::NewKeys,
        }
    }
}

impl Outgoing {
    fn pending(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    fn sent(&mut self, count: usize) {
        self.start = self.end.min(self.start + count);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            self.give_back();
        }
    }

    fn give_back(&mut self) {
        let bytes = mem::take(&mut self.bytes);
        // More was needed for once.
        if bytes.len() == OUTGOING {
            buffers::take_back(bytes);
        }
    }

    /// Gives `fill` room, and more where it needs it, and takes note of what it has put there.
    fn append(
        &mut self,
        mut fill: impl FnMut(&mut [u8]) -> Result<usize, Needs>,
    ) -> Result<(), Failure> {
        loop {
            match fill(&mut self.bytes[self.end..]) {
                Ok(count) => {
                    self.end += count;
                    return Ok(());
                }
                Err(Needs::Room(needed)) => {
                    let length = self.end + needed.required_size;
                    let mut bytes = buffers::lend(length.max(OUTGOING));
                    bytes[..self.end].copy_from_slice(&self.bytes[..self.end]);
                    self.give_back();
                    self.bytes = bytes;
                }
                Err(Needs::NewKeys) => return Err(Failure::Exhausted),
            }
        }
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// What is to be done as soon as this side may write.
enum Errand<'a, 'b> {
    None,
    Encrypt(&'a mut Load<'b>),
    Close,
}

/// Plain bytes to encrypt.
struct Load<'a> {
    slices: &'a [IoSlice<'a>],
    skip: usize,
    /// How many were encrypted.
    count: usize,
}

impl Load<'_> {
    fn encrypt<Data>(
        &mut self,
        traffic: &mut WriteTraffic<'_, Data>,
        outgoing: &mut Outgoing,
        gather: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        let mut seal = |plain: &[u8]| {
            outgoing.append(|room| traffic.encrypt(plain, room).map_err(Needs::from))
        };
        let mut skip = mem::take(&mut self.skip);
        gather.clear();
        for slice in self.slices {
            let skipped = skip.min(slice.len());
            skip -= skipped;
            let rest = &slice[skipped..];
            let part = &rest[..rest.len().min(SEND - self.count)];
            self.count += part.len();
            if part.len() < SHORT {
                gather.extend_from_slice(part);
            } else {
                seal(gather)?;
                gather.clear();
                seal(part)?;
            }
            if gather.len() > RECORD - SHORT {
                seal(gather)?;
                gather.clear();
            }
            if self.count == SEND {
                break;
            }
        }
        seal(gather)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Certificates, ClientOptions, Verification};

    #[test]
    fn keys_that_are_used_up_stay_so_and_nobody_is_told_of_a_proper_end() {
        let mut options = ClientOptions::new("localhost", Certificates::FirstOf(Vec::new()));
        options.verification = Verification::Off;
        let mut session = options.session().expect("a session");
        let spent = session.traffic.outgoing.append(|_| Err(Needs::NewKeys));
        session.traffic.failure = spent.err();
        for _ in 0..2 {
            let written = session.write(&[IoSlice::new(b"more")], 0);
            assert!(matches!(written, Err(Error::Exhausted)), "{written:?}");
            let read = session.read(&mut [IoSliceMut::new(&mut [0])]);
            assert!(matches!(read, Err(Error::Exhausted)), "{read:?}");
        }
        session.close();
        assert!(session.outgoing().is_empty());
    }
}
