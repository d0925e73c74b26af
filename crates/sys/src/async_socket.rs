//! A connected stream socket in a tokio runtime, with the calls of [`socket`]: vectored, without signals, and few.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::TcpStream as StdTcp,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream as StdUnix,
    },
    task::{Context, Poll, ready},
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    net::{TcpStream, UnixStream},
};

use crate::socket;

/// A connected socket of the runtime that it was made in.
///
/// After a call that moved fewer bytes than were wanted, the socket counts as empty, or full, until the system says
/// otherwise: that saves the call that would only say so.
#[derive(Debug)]
pub struct AsyncSocket(Inner);

#[derive(Debug)]
enum Inner {
    Tcp(TcpStream),
    Unix(UnixStream),
    Vsock(AsyncFd<OwnedFd>),
}

/// What kind of socket it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketKind {
    /// TCP.
    Tcp,
    /// A unix socket.
    Unix,
    /// AF_VSOCK, between virtual machines and their host; or any descriptor that is used like a socket.
    Vsock,
}

impl AsyncSocket {
    /// A TCP socket, which is set not to block.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    ///
    /// # Panics
    /// As all of these: outside of a tokio runtime with I/O.
    pub fn tcp(socket: StdTcp) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self(Inner::Tcp(TcpStream::from_std(socket)?)))
    }

    /// A unix socket, which is set not to block.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub fn unix(socket: StdUnix) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self(Inner::Unix(UnixStream::from_std(socket)?)))
    }

    /// A socket of AF_VSOCK, which is set not to block.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub fn vsock(socket: OwnedFd) -> io::Result<Self> {
        socket::set_nonblocking(socket.as_fd(), true)?;
        Ok(Self(Inner::Vsock(watched(socket)?)))
    }

    /// What kind of socket it is.
    #[must_use]
    pub fn kind(&self) -> SocketKind {
        match self.0 {
            Inner::Tcp(_) => SocketKind::Tcp,
            Inner::Unix(_) => SocketKind::Unix,
            Inner::Vsock(_) => SocketKind::Vsock,
        }
    }

    /// Receives into `slices`, in order, what is there. 0 means that the peer closed its side.
    ///
    /// # Errors
    /// As [`socket::receive`].
    pub fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        slices: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let room = slices.iter().map(|slice| slice.len()).sum();
        self.poll_with(cx, Interest::READABLE, room, || {
            socket::receive(self.as_fd(), slices)
        })
    }

    /// Sends `slices`, in order, as much as there is room for.
    ///
    /// # Errors
    /// As [`socket::send`].
    pub fn poll_send(
        &self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let size = slices.iter().map(|slice| slice.len()).sum();
        self.poll_with(cx, Interest::WRITABLE, size, || {
            socket::send(self.as_fd(), slices)
        })
    }

    /// Sends up to `length` bytes of `file` from `offset` on. 0 means that the file has ended.
    ///
    /// # Errors
    /// As [`socket::send_file`].
    pub fn poll_send_file(
        &self,
        cx: &mut Context<'_>,
        (file, offset): (BorrowedFd<'_>, u64),
        length: usize,
    ) -> Poll<io::Result<usize>> {
        // Being short says nothing of the socket: it may be the file that is.
        self.poll_with(cx, Interest::WRITABLE, 0, || {
            socket::send_file(self.as_fd(), file, offset, length)
        })
    }

    /// Makes `call` when the socket is ready for `interest`, and again when it says `WouldBlock`. What moves fewer
    /// than `wanted` bytes has emptied or filled the socket.
    ///
    /// # Errors
    /// As `call`.
    pub fn poll_with(
        &self,
        cx: &mut Context<'_>,
        interest: Interest,
        wanted: usize,
        mut call: impl FnMut() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        self.poll_until(cx, interest, || {
            let moved = call()?;
            Ok((moved, moved == 0 || moved >= wanted))
        })
    }

    /// The same for calls that tell themselves whether the socket may be ready for more, which is the second of what
    /// they return.
    ///
    /// # Errors
    /// As `call`.
    pub fn poll_until<T>(
        &self,
        cx: &mut Context<'_>,
        interest: Interest,
        mut call: impl FnMut() -> io::Result<(T, bool)>,
    ) -> Poll<io::Result<T>> {
        loop {
            ready!(self.poll_ready(cx, interest))?;
            let mut done = None;
            let mut attempt = || {
                let (result, is_ready) = call()?;
                done = Some(result);
                match is_ready {
                    true => Ok(()),
                    false => Err(io::ErrorKind::WouldBlock.into()),
                }
            };
            let attempted = match &self.0 {
                Inner::Tcp(socket) => socket.try_io(interest, attempt),
                Inner::Unix(socket) => socket.try_io(interest, attempt),
                Inner::Vsock(socket) => socket.try_io(interest, |_| attempt()),
            };
            match (done, attempted) {
                (Some(result), _) => return Poll::Ready(Ok(result)),
                (None, Err(error)) if error.kind() != io::ErrorKind::WouldBlock => {
                    return Poll::Ready(Err(error));
                }
                (None, _) => {}
            }
        }
    }

    fn poll_ready(&self, cx: &mut Context<'_>, interest: Interest) -> Poll<io::Result<()>> {
        match (&self.0, interest.is_readable()) {
            (Inner::Tcp(socket), true) => socket.poll_read_ready(cx),
            (Inner::Tcp(socket), false) => socket.poll_write_ready(cx),
            (Inner::Unix(socket), true) => socket.poll_read_ready(cx),
            (Inner::Unix(socket), false) => socket.poll_write_ready(cx),
            (Inner::Vsock(socket), true) => socket.poll_read_ready(cx).map_ok(drop),
            (Inner::Vsock(socket), false) => socket.poll_write_ready(cx).map_ok(drop),
        }
    }
}

impl AsFd for AsyncSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Inner::Tcp(socket) => socket.as_fd(),
            Inner::Unix(socket) => socket.as_fd(),
            Inner::Vsock(socket) => socket.as_fd(),
        }
    }
}

/// A socket for which tokio has no type, in the current runtime. It must not block.
///
/// # Errors
/// When the runtime cannot watch it.
#[allow(
    deprecated,
    reason = "a descriptor that is owned stays open and the same, which is all that is unsound about it otherwise"
)]
pub fn watched(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(socket)
}
