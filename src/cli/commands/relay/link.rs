//! The streams at the ends of a connection.

use std::{io, net::SocketAddr, os::fd::AsFd, time::Duration};

use blockferry_sys::socket::{self, Keepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

/// How long a TCP connection may be silent before the kernel asks whether its peer still lives.
const KEEPALIVE: Keepalive = Keepalive {
    idle: Duration::from_secs(60),
    interval: Duration::from_secs(10),
    probes: 6,
};

/// A stream that bytes are relayed from and to.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Lets its peer see that it broke off, when it is closed: what is cut short must not look whole.
    fn break_off(&self);

    /// The TCP connection that it goes over.
    fn tcp(&self) -> Option<&TcpStream> {
        None
    }
}

impl Stream for TcpStream {
    fn break_off(&self) {
        // One that is gone already needs no farewell.
        let _ = self.set_zero_linger();
    }

    fn tcp(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

impl Stream for UnixStream {
    /// Unix sockets know no reset.
    fn break_off(&self) {}
}

/// An end of a connection.
pub(super) enum Link {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Link {
    /// A client that was accepted, in the runtime of now.
    pub(super) fn accepted(socket: Socket) -> io::Result<Self> {
        Ok(match socket {
            Socket::Tcp(socket) => Self::tcp(TcpStream::from_std(socket)?),
            Socket::Unix(socket) => Self::Unix(UnixStream::from_std(socket)?),
        })
    }

    /// A connection over TCP whose peer the kernel looks after.
    pub(super) fn tcp(stream: TcpStream) -> Self {
        // Without it a peer that vanished is noticed later.
        let _ = socket::set_keepalive(stream.as_fd(), &KEEPALIVE);
        Self::Tcp(stream)
    }

    /// As [`Stream::break_off`].
    pub(super) fn break_off(&self) {
        match self {
            Self::Tcp(stream) => stream.break_off(),
            Self::Unix(stream) => stream.break_off(),
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
