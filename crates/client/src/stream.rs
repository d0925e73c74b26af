//! The sockets that a client talks through, each in a blocking and in an asynchronous form.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem,
    net::{TcpStream as StdTcp, ToSocketAddrs},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream as StdUnix,
    },
    path::Path,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use blockferry_block::{Capabilities, FillStop, PipeBuffer};
use blockferry_sys::socket::{self, Keepalive};
use tokio::{
    io::Interest,
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

/// A connected socket whose calls block.
#[derive(Debug)]
pub(crate) enum BlockingStream {
    Tcp(StdTcp),
    Unix(StdUnix),
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
                    return Ok(Self::Tcp(stream));
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
        Ok(Self::Unix(stream))
    }

    /// Lets each call take until `deadline` at most.
    pub(crate) fn set_deadline(&self, deadline: Instant) -> io::Result<()> {
        self.set_timeout(Some(remaining(deadline)?))
    }

    /// Lets each call wait so long at most, or for ever.
    pub(crate) fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => {
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)
            }
            Self::Unix(stream) => {
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)
            }
        }
    }

    pub(crate) fn receive(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        socket::receive(self.as_fd(), slices)
    }

    pub(crate) fn send(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        socket::send(self.as_fd(), slices)
    }

    /// The same socket for use in the current tokio runtime.
    pub(crate) fn into_async(self) -> io::Result<Stream> {
        let socket = match self {
            Self::Tcp(stream) => {
                stream.set_nonblocking(true)?;
                Socket::Tcp(TcpStream::from_std(stream)?)
            }
            Self::Unix(stream) => {
                stream.set_nonblocking(true)?;
                Socket::Unix(UnixStream::from_std(stream)?)
            }
        };
        Ok(Stream {
            socket,
            progress: false,
        })
    }
}

impl AsFd for BlockingStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
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

/// A connection in a tokio runtime.
#[derive(Debug)]
pub(crate) struct Stream {
    socket: Socket,
    /// Bytes moved since somebody asked.
    progress: bool,
}

impl Stream {
    /// Where splicing costs less than copying: out of any socket, but not into TCP.
    pub(crate) fn splicing(&self) -> Capabilities {
        match self.socket {
            Socket::Tcp(_) => Capabilities::SPLICE_READ,
            Socket::Unix(_) => Capabilities::SPLICE_READ | Capabilities::SPLICE_WRITE,
        }
    }

    /// Whether bytes moved since this was asked last.
    pub(crate) fn take_progress(&mut self) -> bool {
        mem::take(&mut self.progress)
    }

    /// Receives into `slices`.
    pub(crate) fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        slices: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let received = ready!(self.socket.poll_receive(context, slices));
        self.progress = true;
        Poll::Ready(received)
    }

    /// Sends `slices` as far as there is room.
    pub(crate) fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = ready!(self.socket.poll_send(context, slices));
        self.progress = true;
        Poll::Ready(sent)
    }

    /// Moves up to `length` bytes that have arrived into `pipe`, and says how many and why not more.
    pub(crate) fn poll_fill(
        &mut self,
        context: &mut Context<'_>,
        pipe: &mut PipeBuffer,
        length: usize,
    ) -> Poll<io::Result<(usize, FillStop)>> {
        let filled = ready!(self.socket.poll_fill(context, pipe, length));
        self.progress = true;
        Poll::Ready(filled)
    }

    /// Sends what is in `pipe` as far as there is room, and says how many bytes that was.
    pub(crate) fn poll_drain(
        &mut self,
        context: &mut Context<'_>,
        pipe: &mut PipeBuffer,
    ) -> Poll<io::Result<usize>> {
        let sent = ready!(self.socket.poll_drain(context, pipe));
        self.progress = true;
        Poll::Ready(sent)
    }
}

/// A connected socket of a tokio runtime.
#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
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
            match self {
                Self::Tcp(stream) => ready!(stream.poll_read_ready(context))?,
                Self::Unix(stream) => ready!(stream.poll_read_ready(context))?,
            }
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
            match self {
                Self::Tcp(stream) => ready!(stream.poll_write_ready(context))?,
                Self::Unix(stream) => ready!(stream.poll_write_ready(context))?,
            }
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
            match self {
                Self::Tcp(stream) => ready!(stream.poll_read_ready(context))?,
                Self::Unix(stream) => ready!(stream.poll_read_ready(context))?,
            }
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
            match self {
                Self::Tcp(stream) => ready!(stream.poll_write_ready(context))?,
                Self::Unix(stream) => ready!(stream.poll_write_ready(context))?,
            }
            if let Some(result) = self.attempt(Interest::WRITABLE, size, || pipe.drain_to(self)) {
                return Poll::Ready(result);
            }
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
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}
