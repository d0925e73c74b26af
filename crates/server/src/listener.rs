//! Where clients come in.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use blockferry_sys::{
    socket::{self, Keepalive},
    vsock, watched,
};
use tokio::io::unix::AsyncFd;

/// The buffers of a unix socket in bytes: several payloads, so that neither side waits for the other.
const UNIX_BUFFER: usize = 1 << 20;

/// How long a TCP connection may be silent before the kernel asks whether its client still lives.
const KEEPALIVE: Keepalive = Keepalive {
    idle: Duration::from_secs(60),
    interval: Duration::from_secs(60),
    probes: 9,
};

/// A listening socket.
#[derive(Debug)]
pub enum Listener {
    /// A unix socket. Its file is the caller's to remove.
    Unix(UnixListener),
    /// A TCP socket.
    Tcp(TcpListener),
    /// A socket of AF_VSOCK, between virtual machines and their host.
    Vsock(OwnedFd),
}

impl Listener {
    /// Listens on a port of AF_VSOCK.
    ///
    /// # Errors
    /// As `socket(2)` and `bind(2)`: `EAFNOSUPPORT` where the kernel has no such sockets.
    pub fn bind_vsock(port: u32) -> io::Result<Self> {
        vsock::listen(port).map(Self::Vsock)
    }

    /// The port of a listener of AF_VSOCK.
    #[must_use]
    pub fn vsock_port(&self) -> Option<u32> {
        match self {
            Self::Vsock(socket) => vsock::local_address(socket.as_fd())
                .ok()
                .map(|address| address.port),
            _ => None,
        }
    }

    /// A listening socket that was handed to this process, by socket activation for one.
    ///
    /// # Errors
    /// `InvalidInput` when it is neither a unix nor a TCP nor a vsock socket.
    pub fn from_activation(socket: OwnedFd) -> io::Result<Self> {
        let unix = UnixListener::from(socket);
        if unix.local_addr().is_ok() {
            return Ok(Self::Unix(unix));
        }
        let tcp = TcpListener::from(OwnedFd::from(unix));
        if tcp.local_addr().is_ok() {
            return Ok(Self::Tcp(tcp));
        }
        let socket = OwnedFd::from(tcp);
        if vsock::local_address(socket.as_fd()).is_ok() {
            return Ok(Self::Vsock(socket));
        }
        Err(no_such_socket())
    }
}

fn no_such_socket() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "neither a unix nor a TCP nor a vsock socket",
    )
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self::Unix(listener)
    }
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

/// A client that just connected.
pub(crate) struct Accepted {
    pub(crate) socket: Socket,
    /// Its address.
    pub(crate) peer: String,
}

impl Accepted {
    /// A client at the other end of a socket that was connected by someone else.
    ///
    /// # Errors
    /// `InvalidInput` when it is neither a unix nor a TCP nor a vsock socket.
    pub(crate) fn connected(socket: OwnedFd) -> io::Result<Self> {
        let unix = UnixStream::from(socket);
        if unix.local_addr().is_ok() {
            return Ok(Self::unix(unix));
        }
        let tcp = TcpStream::from(OwnedFd::from(unix));
        if let Ok(peer) = tcp.peer_addr() {
            return Ok(Self::tcp(tcp, peer));
        }
        let socket = OwnedFd::from(tcp);
        let peer = vsock::peer_address(socket.as_fd()).map_err(|_| no_such_socket())?;
        Ok(Self::vsock(socket, peer))
    }

    // A socket whose options cannot be set still works, only slower.

    fn unix(socket: UnixStream) -> Self {
        let _ = socket::set_buffer_sizes(socket.as_fd(), UNIX_BUFFER);
        Self {
            socket: Socket::Unix(socket),
            peer: "unix".to_owned(),
        }
    }

    fn tcp(socket: TcpStream, peer: SocketAddr) -> Self {
        let _ = socket.set_nodelay(true);
        let _ = socket::set_keepalive(socket.as_fd(), &KEEPALIVE);
        Self {
            socket: Socket::Tcp(socket),
            peer: peer.to_string(),
        }
    }

    fn vsock(socket: OwnedFd, vsock::Address { cid, port }: vsock::Address) -> Self {
        Self {
            socket: Socket::Vsock(socket),
            peer: format!("vsock:{cid}:{port}"),
        }
    }
}

/// A connected socket that belongs to no runtime yet.
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    Vsock(OwnedFd),
}

/// The listeners of a server, in its runtime.
pub(crate) struct Listeners {
    all: Vec<Accepting>,
    /// Which one is asked first, so that a busy one cannot starve the others.
    first: usize,
}

enum Accepting {
    Unix(tokio::net::UnixListener),
    Tcp(tokio::net::TcpListener),
    Vsock(AsyncFd<OwnedFd>),
}

impl Listeners {
    pub(crate) fn new(listeners: Vec<Listener>) -> io::Result<Self> {
        let all = listeners.into_iter().map(Accepting::new);
        Ok(Self {
            all: all.collect::<io::Result<_>>()?,
            first: 0,
        })
    }

    /// Accepts one client on any of the listeners.
    pub(crate) fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        let count = self.all.len();
        for index in (self.first..count).chain(0..self.first) {
            if let Poll::Ready(result) = self.all[index].poll_accept(cx) {
                self.first = (index + 1) % count;
                return Poll::Ready(result);
            }
        }
        Poll::Pending
    }
}

impl Accepting {
    fn new(listener: Listener) -> io::Result<Self> {
        match listener {
            Listener::Unix(listener) => {
                listener.set_nonblocking(true)?;
                tokio::net::UnixListener::from_std(listener).map(Self::Unix)
            }
            Listener::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                tokio::net::TcpListener::from_std(listener).map(Self::Tcp)
            }
            Listener::Vsock(listener) => {
                socket::set_nonblocking(listener.as_fd(), true)?;
                watched(listener).map(Self::Vsock)
            }
        }
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        match self {
            Self::Unix(listener) => listener
                .poll_accept(cx)
                .map(|result| Ok(Accepted::unix(result?.0.into_std()?))),
            Self::Tcp(listener) => listener.poll_accept(cx).map(|result| {
                let (stream, address) = result?;
                Ok(Accepted::tcp(stream.into_std()?, address))
            }),
            Self::Vsock(listener) => loop {
                let mut ready = ready!(listener.poll_read_ready(cx))?;
                if let Ok(accepted) = ready.try_io(|listener| vsock::accept(listener.as_fd())) {
                    let (socket, peer) = accepted?;
                    return Poll::Ready(Ok(Accepted::vsock(socket, peer)));
                }
            },
        }
    }
}
