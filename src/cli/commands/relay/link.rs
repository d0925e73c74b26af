//! The streams at the ends of a connection.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use blockferry_sys::socket::{self, Keepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};

use crate::tls::TlsStream;

/// How long a TCP connection may be silent before the kernel asks whether its peer still lives.
const KEEPALIVE: Keepalive = Keepalive {
    idle: Duration::from_secs(60),
    interval: Duration::from_secs(10),
    probes: 6,
};

/// The buffers of a unix socket in bytes, as far as the system allows.
const UNIX_BUFFER: usize = 1 << 20;

/// A stream that bytes are relayed from and to.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Lets its peer see that it broke off, when it is closed: what is cut short must not look whole.
    fn break_off(&self);

    /// The TCP connection that it goes over.
    fn tcp(&self) -> Option<&TcpStream> {
        None
    }

    /// The descriptor of the socket that it goes over.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;
}

impl Stream for TcpStream {
    fn break_off(&self) {
        // One that is gone already needs no farewell.
        let _ = self.set_zero_linger();
    }

    fn tcp(&self) -> Option<&TcpStream> {
        Some(self)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }
}

impl Stream for UnixStream {
    /// Unix sockets know no reset.
    fn break_off(&self) {}

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }
}

/// An end of a connection.
pub(super) enum Link {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// One of them, encrypted.
    Tls(Box<TlsStream<Link>>),
}

impl Link {
    /// A client that was accepted, in the runtime of now.
    pub(super) fn accepted(socket: Socket) -> io::Result<Self> {
        Ok(match socket {
            Socket::Tcp(socket) => Self::tcp(TcpStream::from_std(socket)?),
            Socket::Unix(socket) => Self::unix(UnixStream::from_std(socket)?),
        })
    }

    /// A connection over TCP whose peer the kernel looks after.
    pub(super) fn tcp(stream: TcpStream) -> Self {
        // Without it a peer that vanished is noticed later.
        let _ = socket::set_keepalive(stream.as_fd(), &KEEPALIVE);
        Self::Tcp(stream)
    }

    /// A connection over a unix socket that holds enough for both sides to work at the same time.
    pub(super) fn unix(stream: UnixStream) -> Self {
        // Without it the sides wait for each other more often.
        let _ = socket::set_buffer_sizes(stream.as_fd(), UNIX_BUFFER);
        Self::Unix(stream)
    }

    /// The socket, with or without TLS above it.
    pub(super) fn socket(&self) -> &Self {
        match self {
            Self::Tcp(_) | Self::Unix(_) => self,
            Self::Tls(stream) => stream.below().socket(),
        }
    }
}

impl Stream for Link {
    fn break_off(&self) {
        match self {
            Self::Tcp(stream) => stream.break_off(),
            Self::Unix(stream) => stream.break_off(),
            // That TLS's own end is missing says it, too.
            Self::Tls(stream) => stream.below().break_off(),
        }
    }

    fn tcp(&self) -> Option<&TcpStream> {
        match self.socket() {
            Self::Tcp(stream) => Some(stream),
            _ => None,
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Tcp(stream) => stream.descriptor(),
            Self::Unix(stream) => stream.descriptor(),
            Self::Tls(stream) => stream.below().descriptor(),
        }
    }
}

impl AsyncRead for Link {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A connected socket that does not block and belongs to no runtime yet.
pub(super) enum Socket {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

/// Who is at the other end of a client's connection.
#[derive(Clone, Copy, Debug)]
pub(super) enum Client {
    Tcp(SocketAddr),
    Unix,
    Standard,
}

impl std::fmt::Display for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix => f.write_str("unix"),
            Self::Standard => f.write_str("-"),
        }
    }
}
