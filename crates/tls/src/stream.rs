//! A session that owns its socket: TLS over any stream of tokio's.
//!
//! rustls has a stream for tokio of its own (tokio-rustls), made for rustls with buffers, which receives 4 KiB at
//! a time. This one takes a [`Session`], as the rest of this project does: a receive is as long as what the
//! reader has room for, and its errors are in this crate's words.
//!
//! How much memory a connection takes is bounded, whatever the peer does, and none while nothing is on its way: what is
//! received and not decrypted yet, at most 336 KiB; what is encrypted and not sent yet, some 264 KiB and what TLS itself has to say; and
//! what is decrypted and not read yet, two records.

use std::{
    fmt,
    future::poll_fn,
    io::{self, IoSlice, IoSliceMut},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Wake, Waker, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time,
};

use crate::{Arrival, Error, Facts, Result, Session, Wire};

/// The longest record there is, with its header (RFC 8446, section 5.2; RFC 5246, section 6.2.3).
const LONGEST_RECORD: usize = 5 + (16 << 10) + 2048;

/// A stream of plain bytes over one of TLS records.
///
/// - What is written is encrypted at once, and leaves as far as the stream below takes it; the rest leaves with the
///   next write, flush or read.
/// - Shutting it down says in TLS that nothing more comes (`close_notify`) and shuts the stream below down. The other
///   way goes on until the peer says the same.
/// - The end of the stream below, without TLS's own end, is an error of the kind
///   [`UnexpectedEof`](io::ErrorKind::UnexpectedEof): what was cut off must not look whole. So does nothing that is
///   dropped before it was shut down, to the peer.
/// - What the peer does wrong is an error of the kind [`InvalidData`](io::ErrorKind::InvalidData) with an [`Error`]
///   of this crate as its source.
/// - Nothing is lost when a read, write, flush or shutdown is given up before it has ended.
pub struct TlsStream<S> {
    stream: S,
    session: Session,
    writing: Writing,
    wakers: Arc<Wakers>,
    /// What the stream below wakes when it takes more: both of [`wakers`](Self::wakers).
    waker: Waker,
}

/// Whether more can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writing {
    Open,
    /// The peer was told that nothing more comes, or is about to be.
    Closed,
}

impl<S> TlsStream<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    /// Does the handshake of `session` with whoever is at the other end of `stream`, in `limit` at most. When it
    /// fails, the peer is told why, where TLS has words for it.
    ///
    /// It is to be called in a tokio runtime with time.
    ///
    /// # Errors
    /// What is wrong with the peer, and [`Error::TimedOut`], [`Error::NeverBegan`], [`Error::HungUp`],
    /// [`Error::Cut`] or [`Error::Stream`] where it did not get so far.
    pub async fn handshake(stream: S, session: Session, limit: Duration) -> Result<Self> {
        let wakers = Arc::new(Wakers::default());
        let mut this = Self {
            stream,
            session,
            writing: Writing::Open,
            waker: Waker::from(Arc::clone(&wakers)),
            wakers,
        };
        let shaken = time::timeout(limit, poll_fn(|cx| this.poll_handshake(cx)));
        match shaken.await {
            Ok(done) => done.map(|()| this),
            Err(_) => Err(Error::TimedOut {
                by: this.session.peer(),
                begun: this.session.has_begun(),
                limit,
            }),
        }
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.wakers.writer.set(cx);
        let mut below = Below {
            stream: &mut self.stream,
            reader: cx,
            writer: Context::from_waker(&self.waker),
            reading: None,
            wanted: LONGEST_RECORD,
        };
        self.session.poll_handshake(&mut below)
    }

    /// What the handshake has found out.
    #[must_use]
    pub fn facts(&self) -> Facts {
        self.session.facts()
    }

    /// The stream below.
    #[must_use]
    pub fn below(&self) -> &S {
        &self.stream
    }

    /// Gives all that the session has to send to the stream below.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut below = Below {
            stream: &mut self.stream,
            reader: cx,
            writer: Context::from_waker(&self.waker),
            reading: None,
            wanted: 0,
        };
        self.session.poll_send(&mut below)
    }

    /// The same, and lets the stream below pass it on.
    fn poll_all_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wakers.writer.set(cx);
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.stream).poll_flush(&mut Context::from_waker(&self.waker))
    }

    fn poll_write_slices(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if slices.iter().all(|slice| slice.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        if self.writing == Writing::Closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.wakers.writer.set(cx);
        // One batch at a time is all that may wait.
        ready!(self.poll_send(cx))?;
        let written = self.session.write(slices, 0);
        let sent = self.poll_send(cx);
        let count = written?;
        match sent {
            _ if count == 0 => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(count)),
        }
    }
}

impl<S> AsyncRead for TlsStream<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let this = self.get_mut();
        let mut below = Below {
            stream: &mut this.stream,
            reader: cx,
            writer: Context::from_waker(&this.waker),
            reading: Some(&this.wakers.reader),
            wanted: buffer.remaining().max(LONGEST_RECORD),
        };
        let room = buffer.initialize_unfilled();
        let received = this
            .session
            .poll_receive(&mut below, &mut [IoSliceMut::new(room)]);
        Poll::Ready(match ready!(received)? {
            Arrival::Bytes(count) => {
                buffer.advance(count);
                Ok(())
            }
            Arrival::Closed => Ok(()),
            Arrival::Cut => Err(Error::Cut.into()),
        })
    }
}

impl<S> AsyncWrite for TlsStream<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_slices(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_slices(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_all_out(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.writing == Writing::Open {
            this.writing = Writing::Closed;
            this.session.close();
        }
        ready!(this.poll_all_out(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(&mut Context::from_waker(&this.waker))
    }
}

impl<S: fmt::Debug> fmt::Debug for TlsStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream")
            .field("stream", &self.stream)
            .field("session", &self.session)
            .field("writing", &self.writing)
            .finish_non_exhaustive()
    }
}

/// The stream below, for the time of one call.
struct Below<'a, 'c, 'w, S> {
    stream: &'a mut S,
    /// Who is woken when there is something to receive.
    reader: &'a mut Context<'c>,
    /// Those who are woken when there is room to send.
    writer: Context<'w>,
    /// Where a reader says that it waits for that, too, for it has something to send.
    reading: Option<&'a Slot>,
    /// How many bytes are received at most.
    wanted: usize,
}

impl<S> Wire for Below<'_, '_, '_, S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    fn poll_receive(&mut self, room: &mut [u8]) -> Poll<io::Result<usize>> {
        let length = room.len().min(self.wanted);
        let mut room = ReadBuf::new(&mut room[..length]);
        ready!(Pin::new(&mut *self.stream).poll_read(self.reader, &mut room))?;
        Poll::Ready(Ok(room.filled().len()))
    }

    fn poll_send(&mut self, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(reading) = self.reading {
            reading.set(self.reader);
        }
        Pin::new(&mut *self.stream).poll_write(&mut self.writer, bytes)
    }

    fn poll_flush(&mut self) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(&mut self.writer)
    }
}

/// Who waits until the stream below takes more. It is written to for readers, too, and knows the last one that
/// asked; reader and writer may be two tasks, and either may have given up meanwhile.
#[derive(Debug, Default)]
struct Wakers {
    reader: Slot,
    writer: Slot,
}

impl Wake for Wakers {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        for slot in [&self.reader, &self.writer] {
            if let Some(waker) = slot.take() {
                waker.wake();
            }
        }
    }
}

/// One of them.
#[derive(Debug, Default)]
struct Slot(Mutex<Option<Waker>>);

impl Slot {
    fn set(&self, cx: &Context<'_>) {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *slot {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *slot = Some(cx.waker().clone()),
        }
    }

    fn take(&self) -> Option<Waker> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
