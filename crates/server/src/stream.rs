//! A connection's socket, with or without TLS. The one place that knows what lies between the server and the
//! wire.

use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    task::{Context, Poll, Waker, ready},
};

use blockferry_sys::socket;
use blockferry_tls::{self as tls, Handshake, Received, Session};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::{TcpStream, UnixStream},
};

use crate::listener::{Socket, watched};

/// A connection of the current runtime. Dropping it ends it, under TLS with the words for that.
pub(crate) struct Stream {
    wire: Wire,
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
    /// Takes over a connected socket that does not block.
    pub(crate) fn new(socket: Socket) -> io::Result<Self> {
        Ok(Self {
            wire: Wire::new(socket)?,
            tls: RefCell::new(None),
        })
    }

    /// Does the handshake of `session`; everything goes through it from then on.
    ///
    /// # Errors
    /// What the socket failed with, or what TLS found wrong as the source of the error. `UnexpectedEof` when
    /// the client hung up.
    pub(crate) async fn secure(&self, mut session: Session) -> io::Result<()> {
        let mut begun = false;
        loop {
            let step = session.handshake();
            let sent = poll_fn(|cx| self.wire.poll_flush(cx, &mut session)).await;
            match step.map_err(io::Error::other)? {
                Handshake::Done => {
                    sent?;
                    break;
                }
                // A client that takes no more may have said why before.
                Handshake::SendAndReceive => {
                    match poll_fn(|cx| self.wire.poll_fill(cx, &mut session)).await {
                        Ok(0) if begun => return Err(io::Error::other(tls::Error::HungUp)),
                        Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                        Ok(_) => begun = true,
                        Err(error) => return Err(sent.err().unwrap_or(error)),
                    }
                }
            }
        }
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
        match &mut *self.tls.borrow_mut() {
            None => self.wire.poll_receive(cx, slices),
            Some(secured) => self.poll_receive_through(cx, &mut secured.session, slices),
        }
    }

    fn poll_receive_through(
        &self,
        cx: &mut Context<'_>,
        session: &mut Session,
        slices: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            let received = session.read(slices);
            // TLS may have something to say itself: new keys, or what is wrong. Whether that leaves shows soon
            // enough.
            let _ = self.wire.poll_flush(cx, session);
            match received.map_err(io::Error::other)? {
                Received::Bytes(count) => return Poll::Ready(Ok(count)),
                Received::Closed => return Poll::Ready(Ok(0)),
                Received::Nothing => {}
            }
            // An end without the words for it is one all the same: NBD has its own, and what a request says
            // of its length is whole or is not carried out.
            if ready!(self.wire.poll_fill(cx, session))? == 0 {
                return Poll::Ready(Ok(0));
            }
        }
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
            return self.wire.poll_send(cx, slices);
        };
        loop {
            let before = session.outgoing().len();
            match self.wire.poll_flush(cx, session)? {
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
            *leaving = session.write(slices, 0).map_err(io::Error::other)?;
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
        matches!(self.wire, Wire::Unix(_)) && self.tls.borrow().is_none()
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
            false => self.wire.poll_send_file(cx, file, length),
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
        if let Some(secured) = self.tls.get_mut() {
            let session = &mut secured.session;
            session.close();
            // As far as the socket takes it at once: the connection closes anyway.
            let mut cx = Context::from_waker(Waker::noop());
            let _ = self.wire.poll_flush(&mut cx, session);
        }
    }
}

/// A connected socket of the current runtime.
enum Wire {
    Tcp(TcpStream),
    Unix(UnixStream),
    Vsock(AsyncFd<OwnedFd>),
}

impl Wire {
    fn new(socket: Socket) -> io::Result<Self> {
        match socket {
            Socket::Tcp(socket) => TcpStream::from_std(socket).map(Self::Tcp),
            Socket::Unix(socket) => UnixStream::from_std(socket).map(Self::Unix),
            Socket::Vsock(socket) => watched(socket).map(Self::Vsock),
        }
    }

    fn poll_receive(
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
            ready!(self.poll_read_ready(cx))?;
        }
    }

    fn poll_send(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let size = slices.iter().map(|slice| slice.len()).sum();
        loop {
            let send = || socket::send(self.as_fd(), slices);
            if let Some(result) = self.attempt(Interest::WRITABLE, size, send) {
                return Poll::Ready(result);
            }
            ready!(self.poll_write_ready(cx))?;
        }
    }

    fn poll_send_file(
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

    /// Sends all that `session` has to send.
    fn poll_flush(&self, cx: &mut Context<'_>, session: &mut Session) -> Poll<io::Result<()>> {
        while !session.outgoing().is_empty() {
            let count = ready!(self.poll_send(cx, &[IoSlice::new(session.outgoing())]))?;
            session.sent(count);
        }
        Poll::Ready(Ok(()))
    }

    /// Receives once for `session`. 0 is the end.
    fn poll_fill(&self, cx: &mut Context<'_>, session: &mut Session) -> Poll<io::Result<usize>> {
        let room = session.room();
        if room.is_empty() {
            // More than any record or message of TLS may have has come, and none of it made sense.
            let error = io::Error::new(io::ErrorKind::InvalidData, "a TLS message is too long");
            return Poll::Ready(Err(error));
        }
        let count = ready!(self.poll_receive(cx, &mut [IoSliceMut::new(room)]))?;
        session.received(count);
        Poll::Ready(Ok(count))
    }

    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(socket) => socket.poll_read_ready(cx),
            Self::Unix(socket) => socket.poll_read_ready(cx),
            Self::Vsock(socket) => socket.poll_read_ready(cx).map_ok(drop),
        }
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(socket) => socket.poll_write_ready(cx),
            Self::Unix(socket) => socket.poll_write_ready(cx),
            Self::Vsock(socket) => socket.poll_write_ready(cx).map_ok(drop),
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
            Self::Vsock(socket) => socket.try_io(interest, |_| call()),
        };
        match result {
            Ok(()) => Some(Ok(moved)),
            Err(_) if moved > 0 => Some(Ok(moved)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => Some(Err(error)),
        }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
            Self::Vsock(socket) => socket.as_fd(),
        }
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
