//! Pairs of connected sockets of either kind, and how one of them vanishes.

use std::os::fd::AsFd;

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixStream},
};

/// A connected stream socket.
pub(crate) trait Socket: AsyncRead + AsyncWrite + AsFd + Unpin + Send + 'static {
    /// Two of them that are connected to each other.
    fn pair() -> impl Future<Output = (Self, Self)> + Send
    where
        Self: Sized;

    /// Closes it so that its peer learns at once that it is gone, for reading and for writing.
    fn vanish(self);
}

impl Socket for TcpStream {
    async fn pair() -> (Self, Self) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (connected, accepted) = tokio::join!(Self::connect(address), listener.accept());
        (connected.unwrap(), accepted.unwrap().0)
    }

    fn vanish(self) {
        self.set_zero_linger().unwrap();
    }
}

impl Socket for UnixStream {
    async fn pair() -> (Self, Self) {
        Self::pair().unwrap()
    }

    fn vanish(self) {}
}
