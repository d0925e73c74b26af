//! A connection's socket, with or without TLS. The one place that knows what lies between the server and the
//! wire.

use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, IoSlice, IoSliceMut},
    os::fd::BorrowedFd,
    task::{Context, Poll, Waker, ready},
};

use blockferry_sys::{AsyncSocket, SocketKind};
use blockferry_tls::{self as tls, Arrival, Session, Wire};

use crate::listener::Socket;

/// A connection of the current runtime. Dropping it ends it, under TLS with the words for that.
pub(crate) struct Stream {
    socket: AsyncSocket,
    /// All bytes go through it, once its handshake is done. One task at a time uses a connection.
    tls: RefCell<Option<Box<Secured>>>,
}

/// A session, and what it owes.
struct Secured {
    session: Session,
    /// How many plain bytes were encrypted and have not left yet.
    leaving: usize,
}

impl Stream {
    /// Takes over a connected socket.
    pub(crate) fn new(socket: Socket) -> io::Result<Self> {
        Ok(Self {
            socket: match socket {
                Socket::Tcp(socket) => AsyncSocket::tcp(socket)?,
                Socket::Unix(socket) => AsyncSocket::unix(socket)?,
                Socket::Vsock(socket) => AsyncSocket::vsock(socket)?,
            },
            tls: RefCell::new(None),
        })
    }

    /// Does the handshake of `session`; everything goes through it from then on.
    ///
    /// # Errors
    /// What the socket failed with, or what TLS found wrong as the source of the error. `UnexpectedEof` when
    /// the client hung up.
    pub(crate) async fn secure(&self, mut session: Session) -> io::Result<()> {
        let shaken = poll_fn(|cx| session.poll_handshake(&mut self.wire(cx))).await;
        shaken.map_err(|error| match error {
            tls::Error::NeverBegan => io::ErrorKind::UnexpectedEof.into(),
            error => io::Error::from(error),
        })?;
        let leaving = 0;
        *self.tls.borrow_mut() = Some(Box::new(Secured { session, leaving }));
        Ok(())
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
        let mut tls = self.tls.borrow_mut();
        let Some(Secured { session, .. }) = tls.as_deref_mut() else {
            return self.socket.poll_receive(cx, slices);
        };
        Poll::Ready(Ok(
            match ready!(session.poll_receive(&mut self.wire(cx), slices))? {
                Arrival::Bytes(count) => count,
                // An end without the words for it is one all the same: NBD has its own, and what a request says
                // of its length is whole or is not carried out.
                Arrival::Closed | Arrival::Cut => 0,
            },
        ))
    }

    /// Sends the start of `slices`, as much as there is room for.
    ///
    /// The next call must be with slices that begin with the bytes that were not sent: under TLS some of them may
    /// have been encrypted, and count as sent when they have left.
    pub(crate) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut tls = self.tls.borrow_mut();
        let Some(Secured { session, leaving }) = tls.as_deref_mut() else {
            return self.socket.poll_send(cx, slices);
        };
        loop {
            let before = session.outgoing().len();
            match session.poll_send(&mut self.wire(cx))? {
                Poll::Ready(()) if *leaving > 0 => {
                    return Poll::Ready(Ok(std::mem::take(leaving)));
                }
                Poll::Ready(()) => {}
                // A part of them has left. Which one is nobody's business, but that they move is; the last one
                // counts when nothing is left.
                Poll::Pending => {
                    let moved = before - session.outgoing().len();
                    let counted = moved.min(leaving.saturating_sub(1));
                    *leaving -= counted;
                    return match counted {
                        0 => Poll::Pending,
                        _ => Poll::Ready(Ok(counted)),
                    };
                }
            }
            *leaving = session.write(slices, 0)?;
            if *leaving == 0 {
                // There was nothing to send, or TLS takes nothing any more.
                return Poll::Ready(match slices.iter().all(|slice| slice.is_empty()) {
                    true => Ok(0),
                    false => Err(io::ErrorKind::BrokenPipe.into()),
                });
            }
        }
    }

    /// Whether sending the pages of a file beats copying them: over TCP it does not, and what is encrypted is
    /// a copy.
    pub(crate) fn takes_files(&self) -> bool {
        self.socket.kind() == SocketKind::Unix && self.tls.borrow().is_none()
    }

    /// Sends the start of `length` bytes of `file`, where the stream [takes files](Self::takes_files). 0 means
    /// that the file has ended.
    pub(crate) fn poll_send_file(
        &self,
        cx: &mut Context<'_>,
        file: (BorrowedFd<'_>, u64),
        length: usize,
    ) -> Poll<io::Result<usize>> {
        match self.tls.borrow().is_some() {
            true => Poll::Ready(Err(io::ErrorKind::Unsupported.into())),
            false => self.socket.poll_send_file(cx, file, length),
        }
    }

    fn wire<'a, 'c>(&'a self, cx: &'a mut Context<'c>) -> SocketWire<'a, 'c> {
        SocketWire {
            socket: &self.socket,
            cx,
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
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(mut secured) = self.tls.get_mut().take() {
            let session = &mut secured.session;
            session.close();
            // As far as the socket takes it at once: the connection closes anyway.
            let mut cx = Context::from_waker(Waker::noop());
            let _ = session.poll_send(&mut self.wire(&mut cx));
        }
    }
}

/// The socket as a session sees it.
struct SocketWire<'a, 'c> {
    socket: &'a AsyncSocket,
    cx: &'a mut Context<'c>,
}

impl Wire for SocketWire<'_, '_> {
    fn poll_receive(&mut self, room: &mut [u8]) -> Poll<io::Result<usize>> {
        self.socket
            .poll_receive(self.cx, &mut [IoSliceMut::new(room)])
    }

    fn poll_send(&mut self, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.socket.poll_send(self.cx, &[IoSlice::new(bytes)])
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixStream as StdUnix, thread};

    use super::*;

    /// Whatever is behind the descriptor: the kernel of a test may have no way from a machine to itself over
    /// AF_VSOCK.
    #[test]
    fn a_bare_descriptor_is_a_stream_like_any_other() {
        let (ours, theirs) = StdUnix::pair().expect("a pair");
        ours.set_nonblocking(true).expect("an option");
        let length = 4 << 20;
        let echo = thread::spawn(move || {
            let mut theirs = theirs;
            let mut bytes = vec![0; length];
            io::Read::read_exact(&mut theirs, &mut bytes)?;
            io::Write::write_all(&mut theirs, &bytes)
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .expect("a runtime");
        let sent: Vec<u8> = (0..length).map(|index| (index % 251) as u8).collect();
        let mut received = vec![0; length];
        runtime.block_on(async {
            let stream = Stream::new(Socket::Vsock(ours.into())).expect("a stream");
            assert!(!stream.takes_files());
            stream.send_all(&sent).await.expect("sent");
            stream.receive_exact(&mut received).await.expect("received");
            let end = stream.receive_exact(&mut [0]).await.expect_err("the end");
            assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
        });
        assert!(sent == received);
        echo.join().expect("no panic").expect("no failure");
    }
}
