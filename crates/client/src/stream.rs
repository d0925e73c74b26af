//! What a client talks through, in a blocking and in an asynchronous form: a socket, with or without TLS.

mod blocking;

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem,
    task::{Context, Poll, Waker, ready},
};

use blockferry_block::{Capabilities, FillStop, PipeBuffer};
use blockferry_sys::{AsyncSocket, SocketKind};
use blockferry_tls::{self as tls, Arrival, Session, Wire};
use tokio::io::Interest;

pub(crate) use self::blocking::BlockingStream;

/// A connection in a tokio runtime.
#[derive(Debug)]
pub(crate) struct Stream {
    socket: AsyncSocket,
    /// What it has encrypted leaves with the next send or receive.
    tls: Option<Box<Session>>,
    /// Bytes moved since somebody asked.
    progress: bool,
}

impl Stream {
    fn new(socket: AsyncSocket, tls: Option<Box<Session>>) -> Self {
        Self {
            socket,
            tls,
            progress: false,
        }
    }

    /// Where splicing costs less than copying: out of any socket, but not into TCP. What is encrypted cannot
    /// be spliced.
    pub(crate) fn splicing(&self) -> Capabilities {
        match self.socket.kind() {
            _ if self.tls.is_some() => Capabilities::empty(),
            SocketKind::Vsock => Capabilities::empty(),
            SocketKind::Tcp => Capabilities::SPLICE_READ,
            SocketKind::Unix => Capabilities::SPLICE_READ | Capabilities::SPLICE_WRITE,
        }
    }

    /// Whether bytes moved since this was asked last.
    pub(crate) fn take_progress(&mut self) -> bool {
        mem::take(&mut self.progress)
    }

    /// Receives into `slices`. 0 means that the server sends no more. What TLS still has to send goes on
    /// leaving meanwhile.
    pub(crate) fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        slices: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let Some(session) = &mut self.tls else {
            let received = ready!(self.socket.poll_receive(context, slices));
            self.progress = true;
            return Poll::Ready(received);
        };
        let mut wire = AsyncWire {
            socket: &self.socket,
            context,
            progress: &mut self.progress,
        };
        Poll::Ready(match ready!(session.poll_receive(&mut wire, slices))? {
            Arrival::Bytes(count) => Ok(count),
            Arrival::Closed => Ok(0),
            Arrival::Cut => Err(tls::Error::Cut.into()),
        })
    }

    /// Sends `slices` as far as there is room.
    ///
    /// Under TLS bytes count as sent once they are encrypted, for an answer may come before the last of a
    /// batch has left; what is left leaves with the next call of this or of
    /// [`poll_receive`](Self::poll_receive).
    pub(crate) fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Some(session) = &mut self.tls else {
            let sent = ready!(self.socket.poll_send(context, slices));
            self.progress = true;
            return Poll::Ready(sent);
        };
        let mut wire = AsyncWire {
            socket: &self.socket,
            context,
            progress: &mut self.progress,
        };
        let size: usize = slices.iter().map(|slice| slice.len()).sum();
        let mut sent = 0;
        loop {
            match session.poll_send(&mut wire)? {
                Poll::Ready(()) if sent < size => sent += session.write(slices, sent)?,
                Poll::Pending if sent == 0 => return Poll::Pending,
                _ => return Poll::Ready(Ok(sent)),
            }
        }
    }

    /// Tells the server that nothing more comes, as far as the socket takes it at once. Only TLS has words for
    /// it.
    pub(crate) fn close(&mut self) {
        if let Some(mut session) = self.tls.take() {
            session.close();
            let mut wire = AsyncWire {
                socket: &self.socket,
                context: &mut Context::from_waker(Waker::noop()),
                progress: &mut self.progress,
            };
            let _ = session.poll_send(&mut wire);
        }
    }

    /// Moves up to `length` bytes that have arrived into `pipe`, and says how many and why not more. The socket
    /// counts as empty when it is, not when the pipe is full. `Unsupported` under TLS.
    pub(crate) fn poll_fill(
        &mut self,
        context: &mut Context<'_>,
        pipe: &mut PipeBuffer,
        length: usize,
    ) -> Poll<io::Result<(usize, FillStop)>> {
        if self.tls.is_some() {
            return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
        }
        let fill = || match pipe.fill_from(&self.socket, length)? {
            (0, FillStop::SourceEmpty) => Err(io::ErrorKind::WouldBlock.into()),
            filled => Ok((filled, filled.1 != FillStop::SourceEmpty)),
        };
        let filled = ready!(self.socket.poll_until(context, Interest::READABLE, fill));
        self.progress = true;
        Poll::Ready(filled)
    }

    /// Sends what is in `pipe` as far as there is room, and says how many bytes that was. `Unsupported` under
    /// TLS.
    pub(crate) fn poll_drain(
        &mut self,
        context: &mut Context<'_>,
        pipe: &mut PipeBuffer,
    ) -> Poll<io::Result<usize>> {
        if self.tls.is_some() {
            return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
        }
        let size = pipe.len();
        let drain = || pipe.drain_to(&self.socket);
        let sent = ready!(
            self.socket
                .poll_with(context, Interest::WRITABLE, size, drain)
        );
        self.progress = true;
        Poll::Ready(sent)
    }
}

/// The socket as a session sees it.
struct AsyncWire<'a, 'c> {
    socket: &'a AsyncSocket,
    context: &'a mut Context<'c>,
    progress: &'a mut bool,
}

impl Wire for AsyncWire<'_, '_> {
    fn poll_receive(&mut self, room: &mut [u8]) -> Poll<io::Result<usize>> {
        let room = &mut [IoSliceMut::new(room)];
        let received = ready!(self.socket.poll_receive(self.context, room));
        *self.progress = true;
        Poll::Ready(received)
    }

    fn poll_send(&mut self, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let sent = ready!(self.socket.poll_send(self.context, &[IoSlice::new(bytes)]));
        *self.progress = true;
        Poll::Ready(sent)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        io::{Read, Write},
        os::unix::net::UnixStream,
        thread,
        time::{Duration, Instant},
    };

    use super::*;

    /// Whatever is behind the descriptor: the kernel of a test may have no way from a machine to itself over
    /// AF_VSOCK.
    #[test]
    fn a_bare_descriptor_is_a_stream_like_any_other() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let echo = thread::spawn(move || {
            let mut bytes = [0; 4];
            for _ in 0..2 {
                theirs.read_exact(&mut bytes)?;
                theirs.write_all(&bytes)?;
            }
            io::Result::Ok(())
        });
        let mut stream = BlockingStream::of_descriptor(ours.into());
        let patience = Duration::from_secs(30);
        stream.set_deadline(Instant::now() + patience);
        let mut bytes = [0; 4];
        assert_eq!(stream.send(&[IoSlice::new(b"ping")]).expect("sent"), 4);
        let count = stream.receive(&mut [IoSliceMut::new(&mut bytes)]);
        assert_eq!((count.expect("received"), &bytes), (4, b"ping"));
        stream.set_timeout(Some(patience)).expect("an option");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let mut stream = stream.into_async().expect("a stream");
            assert_eq!(stream.splicing(), Capabilities::empty());
            let sent = poll_fn(|cx| stream.poll_send(cx, &[IoSlice::new(b"pong")])).await;
            assert_eq!(sent.expect("sent"), 4);
            let received =
                poll_fn(|cx| stream.poll_receive(cx, &mut [IoSliceMut::new(&mut bytes)])).await;
            assert_eq!((received.expect("received"), &bytes), (4, b"pong"));
        });
        echo.join().expect("no panic").expect("no failure");
    }
}
