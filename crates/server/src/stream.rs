//! A connection's socket. The one place that knows what lies between the server and the wire.

use std::{
    future::poll_fn,
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, BorrowedFd},
    task::{Context, Poll, ready},
};

use blockferry_sys::socket;
use tokio::{
    io::Interest,
    net::{TcpStream, UnixStream},
};

use crate::listener::Socket;

/// A connected socket of the current runtime. One under TLS would be another variant.
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Takes over a connected socket that does not block.
    pub(crate) fn new(socket: Socket) -> io::Result<Self> {
        match socket {
            Socket::Tcp(socket) => TcpStream::from_std(socket).map(Self::Tcp),
            Socket::Unix(socket) => UnixStream::from_std(socket).map(Self::Unix),
        }
    }

    /// Receives into `slices`, in order, what is there. 0 means that the client sends no more.
    ///
    /// After a short receive the socket counts as empty until more arrives, which saves the call
    /// that would only say so.
    pub(crate) fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        slices: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let room = slices.iter().map(|slice| slice.len()).sum();
        loop {
            let receive = || socket::receive(self.as_fd(), slices);
            if let Some(result) = self.attempt(Interest::READABLE, room, receive) {
                return Poll::Ready(result);
            }
            ready!(match self {
                Self::Tcp(socket) => socket.poll_read_ready(cx),
                Self::Unix(socket) => socket.poll_read_ready(cx),
            })?;
        }
    }

    /// Sends the start of `slices`, as much as there is room for.
    pub(crate) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let size = slices.iter().map(|slice| slice.len()).sum();
        loop {
            let send = || socket::send(self.as_fd(), slices);
            if let Some(result) = self.attempt(Interest::WRITABLE, size, send) {
                return Poll::Ready(result);
            }
            ready!(self.poll_write_ready(cx))?;
        }
    }

    /// Whether sending the pages of a file beats copying them: over TCP it does not.
    pub(crate) fn takes_files(&self) -> bool {
        matches!(self, Self::Unix(_))
    }

    /// Sends the start of `length` bytes of `file`. 0 means that the file has ended.
    pub(crate) fn poll_send_file(
        &self,
        cx: &mut Context<'_>,
        (file, offset): (BorrowedFd<'_>, u64),
        length: usize,
    ) -> Poll<io::Result<usize>> {
        loop {
            let send = || socket::send_file(self.as_fd(), file, offset, length);
            // Being short says nothing of the socket: it may be the file that is.
            if let Some(result) = self.attempt(Interest::WRITABLE, 0, send) {
                return Poll::Ready(result);
            }
            ready!(self.poll_write_ready(cx))?;
        }
    }

    /// Fills `buffer`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the client hung up before.
    pub(crate) async fn receive_exact(&self, buffer: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            let rest = &mut buffer[filled..];
            match poll_fn(|cx| self.poll_receive(cx, &mut [IoSliceMut::new(rest)])).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                received => filled += received,
            }
        }
        Ok(())
    }

    /// Sends all of `bytes`.
    pub(crate) async fn send_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent = poll_fn(|cx| self.poll_send(cx, &[IoSlice::new(bytes)])).await?;
            bytes = &bytes[sent..];
        }
        Ok(())
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(socket) => socket.poll_write_ready(cx),
            Self::Unix(socket) => socket.poll_write_ready(cx),
        }
    }

    /// Makes `call`, and marks the socket as not ready when it moved fewer bytes than `wanted`.
    /// `None` means that the socket was not ready.
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
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(())
        };
        let result = match self {
            Self::Tcp(socket) => socket.try_io(interest, call),
            Self::Unix(socket) => socket.try_io(interest, call),
        };
        match result {
            Ok(()) => Some(Ok(moved)),
            Err(_) if moved > 0 => Some(Ok(moved)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => Some(Err(error)),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }
}
