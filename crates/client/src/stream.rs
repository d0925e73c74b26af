//! What a client talks through, in a blocking and in an asynchronous form: a socket, with or without TLS.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem,
    net::{TcpStream as StdTcp, ToSocketAddrs},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream as StdUnix,
    },
    path::Path,
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use blockferry_block::{Capabilities, FillStop, PipeBuffer};
use blockferry_sys::{
    socket::{self, Keepalive},
    vsock,
};
use blockferry_tls::{self as tls, Handshake, Received, Session};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::{TcpStream, UnixStream},
};

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
    Tcp(StdTcp),
    Unix(StdUnix),
    Vsock(OwnedFd),
}

impl BlockingStream {
    /// Connects to the first address of `host` that answers.
    pub(crate) fn tcp(host: &str, port: u16, deadline: Instant) -> io::Result<Self> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
        let addresses = (host, port)
            .to_socket_addrs()
            .map_err(|error| io::Error::new(io::ErrorKind::NotFound, error))?;
        for address in addresses {
            match StdTcp::connect_timeout(&address, remaining(deadline)?) {
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
        let stream = StdUnix::from(socket::connect_unix(path, remaining(deadline)?)?);
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
        loop {
            let step = session.handshake();
            let sent = self.flush(&mut session);
            match step.map_err(io::Error::other)? {
                Handshake::Done => {
                    sent?;
                    break;
                }
                Handshake::SendAndReceive => {
                    // A server that takes no more may have said why before.
                    self.fill(&mut session)
                        .map_err(|error| sent.err().unwrap_or(error))?;
                }
            }
        }
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
        let received = self.receive_through(&mut session, slices);
        self.tls = Some(session);
        received
    }

    fn receive_through(
        &self,
        session: &mut Session,
        slices: &mut [IoSliceMut<'_>],
    ) -> io::Result<usize> {
        loop {
            let received = session.read(slices);
            // It may have something to say itself; whether that arrives shows soon enough.
            let _ = self.flush(session);
            match received.map_err(io::Error::other)? {
                Received::Bytes(count) => return Ok(count),
                Received::Closed => return Ok(0),
                Received::Nothing => self.fill(session)?,
            }
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
        let count = session.write(slices, 0).map_err(io::Error::other)?;
        let Err(error) = self.flush(session) else {
            return Ok(count);
        };
        // A server that takes no more may have said why before.
        if self.fill(session).is_ok() {
            session.handshake().map(drop).map_err(io::Error::other)?;
        }
        Err(error)
    }

    /// Tells the server that nothing more comes. Only TLS has words for it.
    pub(crate) fn close(&mut self) {
        if let Some(mut session) = self.tls.take() {
            session.close();
            // The connection closes anyway.
            let _ = self.flush(&mut session);
        }
    }

    /// Sends all that `session` has to send.
    fn flush(&self, session: &mut Session) -> io::Result<()> {
        while !session.outgoing().is_empty() {
            self.arm()?;
            let outgoing = [IoSlice::new(session.outgoing())];
            let count = socket::send(self.socket.as_fd(), &outgoing)?;
            session.sent(count);
        }
        Ok(())
    }

    /// Receives once for `session`.
    fn fill(&self, session: &mut Session) -> io::Result<()> {
        self.arm()?;
        let room = session.room();
        if room.is_empty() {
            return Err(unreadable());
        }
        let count = socket::receive(self.socket.as_fd(), &mut [IoSliceMut::new(room)])?;
        if count == 0 {
            return Err(io::Error::other(tls::Error::Cut));
        }
        session.received(count);
        Ok(())
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
            BlockingSocket::Tcp(stream) => {
                stream.set_nonblocking(true)?;
                Socket::Tcp(TcpStream::from_std(stream)?)
            }
            BlockingSocket::Unix(stream) => {
                stream.set_nonblocking(true)?;
                Socket::Unix(UnixStream::from_std(stream)?)
            }
            BlockingSocket::Vsock(socket) => {
                socket::set_nonblocking(socket.as_fd(), true)?;
                Socket::Vsock(watched(socket)?)
            }
        };
        Ok(Stream {
            socket,
            tls: self.tls,
            progress: false,
        })
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

/// A socket for which tokio has no type, in the current runtime.
#[allow(
    deprecated,
    reason = "a descriptor that is owned stays open and the same, which is all that is unsound about it otherwise"
)]
fn watched(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(socket)
}

/// More than any record or message of TLS may have has come, and none of it made sense.
fn unreadable() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a TLS message is too long")
}

/// What is left until `deadline`, at least a millisecond's worth.
fn remaining(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(left.max(Duration::from_millis(1)))
}

/// A connection in a tokio runtime.
#[derive(Debug)]
pub(crate) struct Stream {
    socket: Socket,
    /// What it has encrypted leaves with the next send or receive.
    tls: Option<Box<Session>>,
    /// Bytes moved since somebody asked.
    progress: bool,
}

impl Stream {
    /// Where splicing costs less than copying: out of any socket, but not into TCP. What is encrypted cannot
    /// be spliced.
    pub(crate) fn splicing(&self) -> Capabilities {
        match self.socket {
            _ if self.tls.is_some() => Capabilities::empty(),
            Socket::Vsock(_) => Capabilities::empty(),
            Socket::Tcp(_) => Capabilities::SPLICE_READ,
            Socket::Unix(_) => Capabilities::SPLICE_READ | Capabilities::SPLICE_WRITE,
        }
    }

    /// Whether bytes moved since this was asked last.
    pub(crate) fn take_progress(&mut self) -> bool {
        mem::take(&mut self.progress)
    }

    /// Receives into `slices`. 0 means that the server sends no more. What TLS still has to send goes on
    /// leaving meanwhile.
    pub(crate) fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        slices: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let Some(session) = &mut self.tls else {
            let received = ready!(self.socket.poll_receive(context, slices));
            self.progress = true;
            return Poll::Ready(received);
        };
        loop {
            let received = session.read(slices);
            // Whether it leaves shows soon enough: a server that takes no more may have said why before.
            let _ = poll_flush(&self.socket, session, &mut self.progress, context);
            match received.map_err(io::Error::other)? {
                Received::Bytes(count) => return Poll::Ready(Ok(count)),
                Received::Closed => return Poll::Ready(Ok(0)),
                Received::Nothing => {}
            }
            let room = session.room();
            if room.is_empty() {
                return Poll::Ready(Err(unreadable()));
            }
            let mut room = [IoSliceMut::new(room)];
            let count = ready!(self.socket.poll_receive(context, &mut room))?;
            self.progress = true;
            if count == 0 {
                return Poll::Ready(Err(io::Error::other(tls::Error::Cut)));
            }
            session.received(count);
        }
    }

    /// Sends `slices` as far as there is room.
    ///
    /// Under TLS bytes count as sent once they are encrypted, for an answer may come before the last of a
    /// batch has left; what is left leaves with the next call of this or of
    /// [`poll_receive`](Self::poll_receive).
    pub(crate) fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Some(session) = &mut self.tls else {
            let sent = ready!(self.socket.poll_send(context, slices));
            self.progress = true;
            return Poll::Ready(sent);
        };
        let size: usize = slices.iter().map(|slice| slice.len()).sum();
        let mut sent = 0;
        loop {
            let flushed = poll_flush(&self.socket, session, &mut self.progress, context)?;
            match flushed {
                Poll::Ready(()) if sent < size => {
                    sent += session.write(slices, sent).map_err(io::Error::other)?;
                }
                Poll::Pending if sent == 0 => return Poll::Pending,
                _ => return Poll::Ready(Ok(sent)),
            }
        }
    }

    /// Tells the server that nothing more comes, as far as the socket takes it at once. Only TLS has words for
    /// it.
    pub(crate) fn close(&mut self) {
        if let Some(mut session) = self.tls.take() {
            session.close();
            let mut context = Context::from_waker(Waker::noop());
            let _ = poll_flush(&self.socket, &mut session, &mut self.progress, &mut context);
        }
    }

    /// Moves up to `length` bytes that have arrived into `pipe`, and says how many and why not more.
    /// `Unsupported` under TLS.
    pub(crate) fn poll_fill(
        &mut self,
        context: &mut Context<'_>,
        pipe: &mut PipeBuffer,
        length: usize,
    ) -> Poll<io::Result<(usize, FillStop)>> {
        if self.tls.is_some() {
            return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
        }
        let filled = ready!(self.socket.poll_fill(context, pipe, length));
        self.progress = true;
        Poll::Ready(filled)
    }

    /// Sends what is in `pipe` as far as there is room, and says how many bytes that was. `Unsupported` under
    /// TLS.
    pub(crate) fn poll_drain(
        &mut self,
        context: &mut Context<'_>,
        pipe: &mut PipeBuffer,
    ) -> Poll<io::Result<usize>> {
        if self.tls.is_some() {
            return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
        }
        let sent = ready!(self.socket.poll_drain(context, pipe));
        self.progress = true;
        Poll::Ready(sent)
    }
}

/// Sends all that `session` has to send.
fn poll_flush(
    socket: &Socket,
    session: &mut Session,
    progress: &mut bool,
    context: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    while !session.outgoing().is_empty() {
        let outgoing = [IoSlice::new(session.outgoing())];
        let count = ready!(socket.poll_send(context, &outgoing))?;
        *progress = true;
        session.sent(count);
    }
    Poll::Ready(Ok(()))
}

/// A connected socket of a tokio runtime.
#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    Vsock(AsyncFd<OwnedFd>),
}

impl Socket {
    /// Receives into `slices`; after a short receive the socket counts as empty, which saves the call
    /// that would only say so: the next bytes wake the task.
    fn poll_receive(
        &self,
        context: &mut Context<'_>,
        slices: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let room: usize = slices.iter().map(|slice| slice.len()).sum();
        loop {
            ready!(self.poll_read_ready(context))?;
            if let Some(result) = self.attempt(Interest::READABLE, room, || {
                socket::receive(self.as_fd(), slices)
            }) {
                return Poll::Ready(result);
            }
        }
    }

    /// Sends `slices` as far as there is room.
    fn poll_send(
        &self,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let size: usize = slices.iter().map(|slice| slice.len()).sum();
        loop {
            ready!(self.poll_write_ready(context))?;
            if let Some(result) = self.attempt(Interest::WRITABLE, size, || {
                socket::send(self.as_fd(), slices)
            }) {
                return Poll::Ready(result);
            }
        }
    }

    /// Moves up to `length` bytes that have arrived into `pipe`, and says how many and why not more. The
    /// socket counts as empty when it is, not when the pipe is full.
    fn poll_fill(
        &self,
        context: &mut Context<'_>,
        pipe: &mut PipeBuffer,
        length: usize,
    ) -> Poll<io::Result<(usize, FillStop)>> {
        loop {
            ready!(self.poll_read_ready(context))?;
            let mut filled = (0, FillStop::SourceEmpty);
            let call = || {
                filled = pipe.fill_from(self, length)?;
                match filled.1 {
                    FillStop::SourceEmpty => Err(io::ErrorKind::WouldBlock.into()),
                    _ => Ok(()),
                }
            };
            match self.try_io(Interest::READABLE, call) {
                Ok(()) => return Poll::Ready(Ok(filled)),
                Err(_) if filled.0 > 0 => return Poll::Ready(Ok(filled)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Sends what is in `pipe` as far as there is room, and says how many bytes that was.
    fn poll_drain(
        &self,
        context: &mut Context<'_>,
        pipe: &mut PipeBuffer,
    ) -> Poll<io::Result<usize>> {
        let size = pipe.len();
        loop {
            ready!(self.poll_write_ready(context))?;
            if let Some(result) = self.attempt(Interest::WRITABLE, size, || pipe.drain_to(self)) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_read_ready(context),
            Self::Unix(stream) => stream.poll_read_ready(context),
            Self::Vsock(socket) => socket.poll_read_ready(context).map_ok(drop),
        }
    }

    fn poll_write_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_write_ready(context),
            Self::Unix(stream) => stream.poll_write_ready(context),
            Self::Vsock(socket) => socket.poll_write_ready(context).map_ok(drop),
        }
    }

    /// Runs `call` and clears the socket's readiness when it moved fewer than `wanted` bytes. `None`
    /// means that the socket was not ready after all.
    fn attempt(
        &self,
        interest: Interest,
        wanted: usize,
        call: impl FnOnce() -> io::Result<usize>,
    ) -> Option<io::Result<usize>> {
        let mut moved = 0;
        let call = || {
            moved = call()?;
            if moved > 0 && moved < wanted {
                Err(io::ErrorKind::WouldBlock.into())
            } else {
                Ok(())
            }
        };
        match self.try_io(interest, call) {
            Ok(()) => Some(Ok(moved)),
            Err(_) if moved > 0 => Some(Ok(moved)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => Some(Err(error)),
        }
    }

    fn try_io<T>(&self, interest: Interest, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match self {
            Self::Tcp(stream) => stream.try_io(interest, call),
            Self::Unix(stream) => stream.try_io(interest, call),
            Self::Vsock(socket) => socket.try_io(interest, |_| call()),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
            Self::Vsock(socket) => socket.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        io::{Read, Write},
        thread,
    };

    use super::*;

    /// Whatever is behind the descriptor: the kernel of a test may have no way from a machine to itself over
    /// AF_VSOCK.
    #[test]
    fn a_bare_descriptor_is_a_stream_like_any_other() {
        let (ours, mut theirs) = StdUnix::pair().expect("a pair");
        let echo = thread::spawn(move || {
            let mut bytes = [0; 4];
            for _ in 0..2 {
                theirs.read_exact(&mut bytes)?;
                theirs.write_all(&bytes)?;
            }
            io::Result::Ok(())
        });
        let mut stream = BlockingStream::new(BlockingSocket::Vsock(ours.into()));
        let patience = Duration::from_secs(30);
        stream.set_deadline(Instant::now() + patience);
        let mut bytes = [0; 4];
        assert_eq!(stream.send(&[IoSlice::new(b"ping")]).expect("sent"), 4);
        let count = stream.receive(&mut [IoSliceMut::new(&mut bytes)]);
        assert_eq!((count.expect("received"), &bytes), (4, b"ping"));
        stream.set_timeout(Some(patience)).expect("an option");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let mut stream = stream.into_async().expect("a stream");
            assert_eq!(stream.splicing(), Capabilities::empty());
            let sent = poll_fn(|cx| stream.poll_send(cx, &[IoSlice::new(b"pong")])).await;
            assert_eq!(sent.expect("sent"), 4);
            let received =
                poll_fn(|cx| stream.poll_receive(cx, &mut [IoSliceMut::new(&mut bytes)])).await;
            assert_eq!((received.expect("received"), &bytes), (4, b"pong"));
        });
        echo.join().expect("no panic").expect("no failure");
    }
}
