//! A connection whose calls block: how both clients connect and negotiate, and the one that goes on so.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::TcpStream,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    task::Poll,
    time::{Duration, Instant},
};

use blockferry_sys::{
    AsyncSocket,
    socket::{self, Keepalive},
    vsock,
};
use blockferry_tls::{self as tls, Arrival, Session, Wire};

use super::Stream;

/// The buffers of a unix socket in bytes: several payloads, so that a server can run ahead.
const UNIX_BUFFER: usize = 1 << 20;

/// A host that is gone is noticed within a minute, also where nothing is in flight.
///
/// There is no `TCP_USER_TIMEOUT` beside it: it would end connections to a server that takes nothing because
/// it is busy, which is for the request timeout to decide, and it would take the place of the probes' number.
const KEEPALIVE: Keepalive = Keepalive {
    idle: Duration::from_secs(30),
    interval: Duration::from_secs(10),
    probes: 3,
};

/// A connection whose calls block.
#[derive(Debug)]
pub(crate) struct BlockingStream {
    socket: BlockingSocket,
    /// All bytes go through it, once its handshake is done.
    tls: Option<Box<Session>>,
    /// When the last call must be over.
    deadline: Option<Instant>,
}

#[derive(Debug)]
enum BlockingSocket {
    Tcp(TcpStream),
    Unix(UnixStream),
    Vsock(OwnedFd),
}

impl BlockingStream {
    /// Connects to the first address of `host` that answers.
    pub(crate) fn tcp(host: &str, port: u16, deadline: Instant) -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for address in socket::look_up(host, port)? {
            match TcpStream::connect_timeout(&address, remaining(deadline)?) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    // Without it only a connection that has been silent for very long costs more.
                    let _ = socket::set_keepalive(stream.as_fd(), &KEEPALIVE);
                    return Ok(Self::new(BlockingSocket::Tcp(stream)));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Connects to the unix socket at `path`.
    pub(crate) fn unix(path: &Path, deadline: Instant) -> io::Result<Self> {
        let stream = UnixStream::from(socket::connect_unix(path, remaining(deadline)?)?);
        // A smaller buffer only costs speed.
        let _ = socket::set_buffer_sizes(stream.as_fd(), UNIX_BUFFER);
        Ok(Self::new(BlockingSocket::Unix(stream)))
    }

    /// Connects to a port of the machine that `cid` names.
    pub(crate) fn vsock(cid: u32, port: u32, deadline: Instant) -> io::Result<Self> {
        let address = vsock::Address { cid, port };
        let socket = vsock::connect(address, remaining(deadline)?)?;
        Ok(Self::new(BlockingSocket::Vsock(socket)))
    }

    #[cfg(test)]
    pub(super) fn of_descriptor(socket: OwnedFd) -> Self {
        Self::new(BlockingSocket::Vsock(socket))
    }

    fn new(socket: BlockingSocket) -> Self {
        Self {
            socket,
            tls: None,
            deadline: None,
        }
    }

    /// Lets all calls together take until `deadline` at most, however little each of them moves.
    pub(crate) fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = Some(deadline);
    }

    /// Lets each call wait so long at most, or for ever; there is no deadline any more.
    pub(crate) fn set_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.deadline = None;
        self.socket.set_timeout(timeout)
    }

    /// Does the handshake of `session`; everything goes through it from then on.
    ///
    /// # Errors
    /// What the socket failed with, or what TLS found wrong as the source of the error.
    pub(crate) fn secure(&mut self, session: Session) -> io::Result<()> {
        let mut session = Box::new(session);
        at_once(
            session
                .poll_handshake(&mut self.wire())
                .map_err(io::Error::from),
        )?;
        self.tls = Some(session);
        Ok(())
    }

    /// Whether the server has asked for a certificate and got none.
    pub(crate) fn owes_certificate(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.owes_certificate())
    }

    /// Whether the server has seen this side's certificate.
    pub(crate) fn has_shown_certificate(&self) -> bool {
        self.tls
            .as_ref()
            .is_some_and(|tls| tls.has_shown_certificate())
    }

    pub(crate) fn receive(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let Some(mut session) = self.tls.take() else {
            self.arm()?;
            return socket::receive(self.socket.as_fd(), slices);
        };
        let received = at_once(session.poll_receive(&mut self.wire(), slices));
        self.tls = Some(session);
        match received? {
            Arrival::Bytes(count) => Ok(count),
            Arrival::Closed => Ok(0),
            Arrival::Cut => Err(tls::Error::Cut.into()),
        }
    }

    pub(crate) fn send(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let Some(mut session) = self.tls.take() else {
            self.arm()?;
            return socket::send(self.socket.as_fd(), slices);
        };
        let sent = self.send_through(&mut session, slices);
        self.tls = Some(session);
        sent
    }

    fn send_through(&self, session: &mut Session, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let count = session.write(slices, 0)?;
        let Err(error) = at_once(session.poll_send(&mut self.wire())) else {
            return Ok(count);
        };
        // A server that takes no more may have said why before.
        if let Ok(1..) = at_once(session.poll_fill(&mut self.wire())) {
            session.handshake().map(drop)?;
        }
        Err(error)
    }

    /// Tells the server that nothing more comes. Only TLS has words for it.
    pub(crate) fn close(&mut self) {
        if let Some(mut session) = self.tls.take() {
            session.close();
            // The connection closes anyway.
            let _ = at_once(session.poll_send(&mut self.wire()));
        }
    }

    fn wire(&self) -> BlockingWire<'_> {
        BlockingWire(self)
    }

    /// Lets the next call of the socket take what is left until the deadline.
    fn arm(&self) -> io::Result<()> {
        match self.deadline {
            Some(deadline) => self.socket.set_timeout(Some(remaining(deadline)?)),
            None => Ok(()),
        }
    }

    /// The same connection for use in the current tokio runtime.
    pub(crate) fn into_async(self) -> io::Result<Stream> {
        let socket = match self.socket {
            BlockingSocket::Tcp(socket) => AsyncSocket::tcp(socket)?,
            BlockingSocket::Unix(socket) => AsyncSocket::unix(socket)?,
            BlockingSocket::Vsock(socket) => AsyncSocket::vsock(socket)?,
        };
        Ok(Stream::new(socket, self.tls))
    }
}

/// The socket as a session sees it.
struct BlockingWire<'s>(&'s BlockingStream);

impl Wire for BlockingWire<'_> {
    fn poll_receive(&mut self, room: &mut [u8]) -> Poll<io::Result<usize>> {
        self.0.arm()?;
        let room = &mut [IoSliceMut::new(room)];
        Poll::Ready(socket::receive(self.0.socket.as_fd(), room))
    }

    fn poll_send(&mut self, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.arm()?;
        let bytes = &[IoSlice::new(bytes)];
        Poll::Ready(socket::send(self.0.socket.as_fd(), bytes))
    }
}

/// What came of a call on a wire that blocks.
fn at_once<T>(answer: Poll<io::Result<T>>) -> io::Result<T> {
    match answer {
        Poll::Ready(answer) => answer,
        // Never: only a wire that does not block is pending.
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl BlockingSocket {
    fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        socket::set_timeouts(self.as_fd(), timeout)
    }
}

impl AsFd for BlockingSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
            Self::Vsock(socket) => socket.as_fd(),
        }
    }
}

/// What is left until `deadline`, at least a millisecond's worth.
fn remaining(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(left.max(Duration::from_millis(1)))
}
