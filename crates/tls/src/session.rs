//! A TLS session between a socket that somebody else owns and plain bytes.
//!
//! ```text
//!   socket -> room(), received() -> [incoming: records] -> read()  -> the caller's slices
//!   socket <- outgoing(), sent() <- [outgoing: records] <- write() <- the caller's slices
//! ```
//!
//! What was received is decrypted in place, record by record, and copied once into the caller's slices. That
//! is the copy that rustls wants; a record that the slices have no room for is kept and costs one more.

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
    Error, Facts, Result, Role,
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
    /// What the peer did that has ended the session.
    failure: Option<rustls::Error>,
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
            incoming: Incoming::new(),
            traffic: Traffic::default(),
            expected,
            asked: Arc::default(),
            shown: Arc::default(),
            asked_for: Arc::default(),
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

    /// Where to put what arrives on the socket: 256 KiB and more, as long as everything that can be read is
    /// read first. Empty after a peer has sent what nobody can read.
    pub fn room(&mut self) -> &mut [u8] {
        self.incoming.room()
    }

    /// `count` bytes have arrived in [`room`](Self::room).
    pub fn received(&mut self, count: usize) {
        self.incoming.end = self.incoming.bytes.len().min(self.incoming.end + count);
    }

    /// Fills `slices` with plain bytes as far as they have arrived. There may be something to send afterwards.
    ///
    /// # Errors
    /// Whatever is wrong with the peer.
    pub fn read(&mut self, slices: &mut [IoSliceMut<'_>]) -> Result<Received> {
        let mut scatter = Scatter::new(slices);
        self.traffic.hand_over(&mut scatter);
        if self.traffic.early.is_empty() && !scatter.is_full() && !self.traffic.closed {
            self.advance(Some(&mut scatter), Errand::None)?;
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
        if let Some(error) = &self.traffic.failure {
            return Err(self.peer_error(error.clone()));
        }
        loop {
            let (discard, turn) = self.step(scatter.as_deref_mut(), &mut errand);
            self.incoming.discard(discard);
            match turn {
                Ok(None) => {}
                Ok(Some(turn)) => return Ok(turn),
                Err(Failed::Here(error)) => return Err(error),
                Err(Failed::Peer(error)) => {
                    let told = self.peer_error(error.clone());
                    self.collect_alert();
                    // rustls is asked nothing any more: it would find the same again, and tell the peer twice.
                    self.traffic.failure = Some(error);
                    return Err(told);
                }
            }
        }
    }

    fn peer_error(&self, error: rustls::Error) -> Error {
        Error::from_peer(error, &self.expected, self.traffic.answered)
    }

    /// Carries out one thing that rustls says or wants; says also how much of what was received is done with.
    fn step(
        &mut self,
        scatter: Option<&mut Scatter<'_, '_>>,
        errand: &mut Errand<'_, '_>,
    ) -> (usize, Result<Option<Turn>, Failed>) {
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

/// What failed.
enum Failed {
    /// Something that the peer did.
    Peer(rustls::Error),
    /// Something on this side.
    Here(Error),
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

    /// Does what rustls wants, for a client as for a server. The first of the results is how many of the
    /// received bytes are done with.
    fn obey<Data>(
        &mut self,
        status: UnbufferedStatus<'_, '_, Data>,
        mut scatter: Option<&mut Scatter<'_, '_>>,
        errand: &mut Errand<'_, '_>,
    ) -> (usize, Result<Option<Turn>, Failed>) {
        let UnbufferedStatus { mut discard, state } = status;
        let turn = match state {
            Err(error) => Err(Failed::Peer(error)),
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
                            result = Err(Failed::Peer(error));
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
                encoded.map(|()| None).map_err(Failed::Here)
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
                done.map(|()| Some(Turn::CanWrite)).map_err(Failed::Here)
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
struct Incoming {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Incoming {
    fn new() -> Self {
        Self {
            bytes: vec![0; RECEIVE + LONGEST_MESSAGE + RECORD].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    fn pending(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    fn room(&mut self) -> &mut [u8] {
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
}

/// Records that wait to be sent.
#[derive(Default)]
struct Outgoing {
    bytes: Vec<u8>,
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
        }
    }

    /// Gives `fill` room, and more where it needs it, and takes note of what it has put there.
    fn append(&mut self, mut fill: impl FnMut(&mut [u8]) -> Result<usize, Needs>) -> Result<()> {
        loop {
            match fill(&mut self.bytes[self.end..]) {
                Ok(count) => {
                    self.end += count;
                    return Ok(());
                }
                Err(Needs::Room(needed)) => {
                    let usual = SEND + (SEND / RECORD + 2) * RECORD_OVERHEAD;
                    let length = self.end + needed.required_size;
                    // Fresh zeroes: what is never used of them takes no memory.
                    let mut bytes = vec![0; length.max(usual)];
                    bytes[..self.end].copy_from_slice(&self.bytes[..self.end]);
                    self.bytes = bytes;
                }
                Err(Needs::NewKeys) => return Err(Error::Exhausted),
            }
        }
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
    ) -> Result<()> {
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
