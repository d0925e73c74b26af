//! Where clients come in.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    task::{Context, Poll},
};

use tokio::net::{TcpListener, UnixListener};

use crate::server::Listener;

use super::{
    super::{
        super::{
            failure::Failure,
            options::{Address, TcpAddress},
        },
        listen::{SocketFile, bind_tcp, bind_unix},
    },
    link::{Client, Socket},
};

/// The listening sockets. What they leave in the file system is removed when this is dropped.
pub(super) struct Entrance {
    /// Removed before the sockets are closed: afterwards it could be somebody else's.
    _file: Option<SocketFile>,
    listeners: Vec<Listening>,
    /// Which one is asked first, so that a busy one cannot starve the others.
    first: usize,
}

enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Entrance {
    /// Listens at an address; `activated` are the sockets that this process was handed for it.
    pub(super) async fn open(address: &Address, activated: Vec<Listener>) -> Result<Self, Failure> {
        let (listeners, file) = match address {
            Address::Tcp(TcpAddress { host, port }) => {
                let place = match host {
                    Some(_) => address.to_string().split_off("tcp:".len()),
                    None => format!(":{port}"),
                };
                (vec![bind_tcp(&place)?.into()], None)
            }
            Address::Unix(path) => {
                let (listener, file) = bind_unix(path).await?;
                (vec![listener.into()], Some(file))
            }
            Address::Activated if activated.is_empty() => {
                return Err(Failure::usage("systemd: there are no activated sockets")
                    .hint("start it by socket activation, or write tcp:HOST:PORT or unix:PATH"));
            }
            Address::Activated => (activated, None),
            Address::Standard => (Vec::new(), None),
        };
        let listeners = listeners.into_iter().map(Listening::new);
        let listeners = listeners.collect::<io::Result<_>>();
        Ok(Self {
            listeners: listeners.map_err(|error| Failure::system("cannot listen", &error))?,
            first: 0,
            _file: file,
        })
    }

    /// The addresses that clients connect to: real ports, not 0.
    pub(super) fn addresses(&self) -> impl Iterator<Item = Address> {
        self.listeners
            .iter()
            .filter_map(|listener| listener.address().ok())
    }

    /// Accepts one client on any of the sockets.
    pub(super) async fn accept(&mut self) -> io::Result<(Socket, Client)> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Socket, Client)>> {
        let count = self.listeners.len();
        for index in (self.first..count).chain(0..self.first) {
            if let Poll::Ready(result) = self.listeners[index].poll_accept(cx) {
                self.first = (index + 1) % count;
                return Poll::Ready(result);
            }
        }
        Poll::Pending
    }
}

impl Listening {
    fn new(listener: Listener) -> io::Result<Self> {
        match listener {
            Listener::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener).map(Self::Tcp)
            }
            Listener::Unix(listener) => {
                listener.set_nonblocking(true)?;
                UnixListener::from_std(listener).map(Self::Unix)
            }
            Listener::Vsock(_) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a socket of AF_VSOCK is not relayed",
            )),
        }
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Socket, Client)>> {
        match self {
            Self::Tcp(listener) => listener.poll_accept(cx).map(|accepted| {
                let (stream, address) = accepted?;
                Ok((Socket::Tcp(stream.into_std()?), Client::Tcp(address)))
            }),
            Self::Unix(listener) => listener.poll_accept(cx).map(|accepted| {
                let (stream, _) = accepted?;
                Ok((Socket::Unix(stream.into_std()?), Client::Unix))
            }),
        }
    }

    fn address(&self) -> io::Result<Address> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(tcp_address),
            Self::Unix(listener) => {
                let address = listener.local_addr()?;
                let path = address.as_pathname();
                path.map(|path| Address::Unix(path.to_owned()))
                    .ok_or_else(|| io::ErrorKind::NotFound.into())
            }
        }
    }
}

fn tcp_address(address: SocketAddr) -> Address {
    let host = Some(address.ip()).filter(|ip| !ip.is_unspecified());
    Address::Tcp(TcpAddress {
        host: host.map(|ip| ip.to_string()),
        port: address.port(),
    })
}
