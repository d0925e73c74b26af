//! Rivals that are libraries: accepting and connecting is the same for all, forwarding is theirs.

use std::{future::Future, io, time::Duration};

use anyhow::Result;
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    time::sleep,
};

use crate::{Address, Listener};

/// After an accept that failed, for want of descriptors mostly.
const PAUSE: Duration = Duration::from_millis(10);

/// A client's connection and the one to the target, as the types that a library is called with.
#[derive(Debug)]
pub enum Pair {
    /// From TCP to TCP.
    TcpTcp(TcpStream, TcpStream),
    /// From TCP to a unix socket.
    TcpUnix(TcpStream, UnixStream),
    /// From a unix socket to TCP.
    UnixTcp(UnixStream, TcpStream),
    /// From a unix socket to another one.
    UnixUnix(UnixStream, UnixStream),
}

enum Client {
    Tcp(TcpStream),
    Unix(UnixStream),
}

enum Acceptor {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Accepts connections at `from` for ever, connects each to `to`, and lets `forward` run in a task of its own.
///
/// # Errors
/// When nothing can listen at `from`. What happens to a connection concerns nobody else.
pub async fn serve<F>(
    from: &Address,
    to: &Address,
    forward: impl Fn(Pair) -> F + Clone + Send + 'static,
) -> Result<()>
where
    F: Future<Output = ()> + Send,
{
    let acceptor = Acceptor::bind(from)?;
    loop {
        let Ok(client) = acceptor.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        let (to, forward) = (to.clone(), forward.clone());
        tokio::spawn(async move {
            if let Ok(pair) = connect(client, &to).await {
                forward(pair).await;
            }
        });
    }
}

async fn connect(client: Client, to: &Address) -> io::Result<Pair> {
    Ok(match (client, to) {
        (Client::Tcp(client), Address::Tcp(at)) => {
            let target = TcpStream::connect(at).await?;
            target.set_nodelay(true)?;
            Pair::TcpTcp(client, target)
        }
        (Client::Tcp(client), Address::Unix(path)) => {
            Pair::TcpUnix(client, UnixStream::connect(path).await?)
        }
        (Client::Unix(client), Address::Tcp(at)) => {
            let target = TcpStream::connect(at).await?;
            target.set_nodelay(true)?;
            Pair::UnixTcp(client, target)
        }
        (Client::Unix(client), Address::Unix(path)) => {
            Pair::UnixUnix(client, UnixStream::connect(path).await?)
        }
    })
}

impl Acceptor {
    fn bind(address: &Address) -> Result<Self> {
        Ok(match Listener::bind(address)? {
            Listener::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                Self::Tcp(TcpListener::from_std(listener)?)
            }
            Listener::Unix(listener) => {
                listener.set_nonblocking(true)?;
                Self::Unix(UnixListener::from_std(listener)?)
            }
        })
    }

    async fn accept(&self) -> io::Result<Client> {
        match self {
            Self::Tcp(listener) => {
                let (client, _) = listener.accept().await?;
                client.set_nodelay(true)?;
                Ok(Client::Tcp(client))
            }
            Self::Unix(listener) => Ok(Client::Unix(listener.accept().await?.0)),
        }
    }
}
