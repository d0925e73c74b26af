//! Both directions of a connection.

use std::{
    future::{Future, poll_fn},
    io, mem,
    os::fd::BorrowedFd,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use blockferry_sys::socket::has_failed;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep, sleep},
};

use crate::{
    Cause, Direction, Options, RelayError, Totals,
    clock::Clock,
    flow::{Ending, Flow},
    hangup::Hangup,
    stream::{Kind, Stream},
};

/// Moves bytes both ways between `a` and `b` until both have ended, and says how many.
///
/// When one of them ends, all it sent is delivered, and the writing side of the other one is shut down; bytes the
/// other way go on. A peer that broke off, or that is gone after it had ended, ends both. One that takes no bytes
/// any more and still sends some is heard to its end.
///
/// Sockets of tokio (`TcpStream`, `UnixStream`) are spliced where that is faster; see [`Mode`](crate::Mode).
/// TCP sockets are set to send at once (`TCP_NODELAY`).
///
/// Dropping the future is safe, and loses what is on its way; [`Options::counters`] still have what was delivered.
///
/// ```
/// use blockferry_relay::{Options, copy_bidirectional};
/// use tokio::net::{TcpStream, UnixStream};
///
/// async fn forward(mut client: TcpStream) -> Result<(), Box<dyn std::error::Error>> {
///     let mut server = UnixStream::connect("/run/nbd.sock").await?;
///     let totals = copy_bidirectional(&mut client, &mut server, &Options::default()).await?;
///     println!("{} bytes came from the client", totals.forward.total());
///     Ok(())
/// }
/// ```
///
/// # Errors
/// When one of them fails or is gone, or time is up; what was moved is in the error.
pub async fn copy_bidirectional<A, B>(
    a: &mut A,
    b: &mut B,
    options: &Options,
) -> Result<Totals, RelayError>
where
    A: AsyncRead + AsyncWrite + Unpin + 'static,
    B: AsyncRead + AsyncWrite + Unpin + 'static,
{
    copy_bidirectional_above(a, b, &Sockets::unknown(), options).await
}

/// As [`copy_bidirectional`], between streams that stand above sockets, such as those of TLS: their bytes cannot be
/// spliced, but whether a peer is gone that nothing is read from any more is seen at its socket, and bytes count as
/// delivered when such a stream has been flushed.
///
/// # Errors
/// As [`copy_bidirectional`].
pub async fn copy_bidirectional_above<A, B>(
    a: &mut A,
    b: &mut B,
    sockets: &Sockets<A, B>,
    options: &Options,
) -> Result<Totals, RelayError>
where
    A: AsyncRead + AsyncWrite + Unpin + 'static,
    B: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let mut relay = Relay::new(a, b, options);
    if Stream::of_writer(b).is_none() && (sockets.second)(b).is_some() {
        relay.forward.write_above();
    }
    if Stream::of_writer(a).is_none() && (sockets.first)(a).is_some() {
        relay.backward.write_above();
    }
    let ended = poll_fn(|context| relay.poll(context, a, b, sockets)).await;
    let totals = relay.totals();
    match ended {
        Ok(()) => Ok(totals),
        Err((direction, cause)) => Err(RelayError {
            totals,
            direction,
            cause,
        }),
    }
}

/// Where the sockets below two streams are found, if there are any.
#[derive(Debug)]
pub struct Sockets<A, B> {
    /// That of the first stream.
    pub first: fn(&A) -> Option<BorrowedFd<'_>>,
    /// That of the second stream.
    pub second: fn(&B) -> Option<BorrowedFd<'_>>,
}

impl<A, B> Sockets<A, B> {
    /// Nobody knows of any.
    #[must_use]
    pub fn unknown() -> Self {
        Self {
            first: |_| None,
            second: |_| None,
        }
    }
}

/// A connection that is being relayed.
struct Relay {
    forward: Flow,
    backward: Flow,
    /// A direction whose writer takes nothing any more, and why.
    deaf: Option<(Direction, Cause)>,
    clock: Option<Box<Clock>>,
    hangup: Watch,
    stall: Option<Box<Stall>>,
    backward_first: bool,
}

/// A direction whose writer has no room may wait for ever, although its reader's peer has broken off: nobody reads
/// that one meanwhile.
struct Stall {
    sleep: Pin<Box<Sleep>>,
    progress: u64,
}

/// How often a direction that is stuck looks whether its reader's peer is still there.
const STALL: Duration = Duration::from_secs(30);

/// Whether the end that nothing is read from any more is watched.
enum Watch {
    NotYet,
    /// `None` is one that cannot be watched.
    Begun(Option<Box<Hangup>>),
}

type Failure = (Direction, Cause);

impl Relay {
    fn new<A: 'static, B: 'static>(a: &A, b: &B, options: &Options) -> Self {
        let (forward, backward) = (Direction::Forward, Direction::Backward);
        Self {
            forward: Flow::new(a, b, options, forward, Ending::Shutdown),
            backward: Flow::new(b, a, options, backward, Ending::Shutdown),
            deaf: None,
            clock: Clock::new(options),
            hangup: Watch::NotYet,
            stall: None,
            backward_first: true,
        }
    }

    fn totals(&self) -> Totals {
        Totals {
            forward: self.forward.moved(),
            backward: self.backward.moved(),
        }
    }

    fn poll<A, B>(
        &mut self,
        context: &mut Context<'_>,
        a: &mut A,
        b: &mut B,
        sockets: &Sockets<A, B>,
    ) -> Poll<Result<(), Failure>>
    where
        A: AsyncRead + AsyncWrite + Unpin + 'static,
        B: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        // Both draw on what tokio lets one task do at a time: the first one would leave nothing to the other.
        self.backward_first = !self.backward_first;
        for is_first in [true, false] {
            if self.backward_first == is_first {
                if self.moves(Direction::Backward)
                    && let Poll::Ready(Err(cause)) = self.backward.poll(context, b, a)
                {
                    self.failed(Direction::Backward, cause)?;
                }
            } else if self.moves(Direction::Forward)
                && let Poll::Ready(Err(cause)) = self.forward.poll(context, a, b)
            {
                self.failed(Direction::Forward, cause)?;
            }
        }
        let open = match (
            self.moves(Direction::Forward),
            self.moves(Direction::Backward),
        ) {
            (false, false) => {
                return Poll::Ready(match self.deaf.take() {
                    Some(failure) => Err(failure),
                    None => Ok(()),
                });
            }
            (true, true) => None,
            (true, false) => Some(Direction::Forward),
            (false, true) => Some(Direction::Backward),
        };
        if let Some(open) = open {
            // The one that has ended, or whose bytes nobody takes, is the one that the open direction writes to.
            let listener = match open {
                Direction::Forward => socket_of(b, sockets.second),
                Direction::Backward => socket_of(a, sockets.first),
            };
            if self.poll_hangup(context, listener).is_ready() {
                return Poll::Ready(Err(self.deaf.take().unwrap_or((open, Cause::Gone))));
            }
        }
        let readers = (
            below(Stream::of_reader(a), a, sockets.first),
            below(Stream::of_reader(b), b, sockets.second),
        );
        if let Poll::Ready(direction) = self.poll_stall(context, readers) {
            let reset = Cause::Read(io::ErrorKind::ConnectionReset.into());
            return Poll::Ready(Err(self.deaf.take().unwrap_or((direction, reset))));
        }
        if let Some(clock) = &mut self.clock
            // Who waits for a rate has something to move.
            && !self.forward.is_throttled()
            && !self.backward.is_throttled()
        {
            let progress = progress(&mut self.forward, &mut self.backward);
            if let Poll::Ready(cause) = clock.poll(context, progress, open.is_some()) {
                let direction = open.unwrap_or(Direction::Forward);
                return Poll::Ready(Err(self.deaf.take().unwrap_or((direction, cause))));
            }
        }
        Poll::Pending
    }

    /// Whether bytes still go this way.
    fn moves(&self, direction: Direction) -> bool {
        let is_deaf = self.deaf.as_ref().is_some_and(|(it, _)| *it == direction);
        let flow = match direction {
            Direction::Forward => &self.forward,
            Direction::Backward => &self.backward,
        };
        !is_deaf && !flow.is_over()
    }

    /// A direction has failed. An error is the end of both.
    fn failed(&mut self, direction: Direction, cause: Cause) -> Result<(), Failure> {
        match cause {
            // It may have said something before: the last words are often why it went.
            Cause::Write(error) if self.deaf.is_none() && is_refusal(&error) => {
                let (failed, other) = match direction {
                    Direction::Forward => (&mut self.forward, &mut self.backward),
                    Direction::Backward => (&mut self.backward, &mut self.forward),
                };
                // A broken pipe had ended before. A reset is told once, and was told now.
                if error.kind() != io::ErrorKind::BrokenPipe {
                    other.expect_no_end();
                }
                failed.rest();
                self.deaf = Some((direction, Cause::Write(error)));
                Ok(())
            }
            _ => Err(self.deaf.take().unwrap_or((direction, cause))),
        }
    }

    /// Ends when a direction is stuck, for a while already, whose reader has failed.
    fn poll_stall(
        &mut self,
        context: &mut Context<'_>,
        (a, b): (Option<BorrowedFd<'_>>, Option<BorrowedFd<'_>>),
    ) -> Poll<Direction> {
        let stuck = [
            (self.forward.is_stuck(), a, Direction::Forward),
            (self.backward.is_stuck(), b, Direction::Backward),
        ];
        if !stuck.iter().any(|(is_stuck, ..)| *is_stuck) {
            return Poll::Pending;
        }
        let progress = progress(&mut self.forward, &mut self.backward);
        let stall = self.stall.get_or_insert_with(|| {
            Box::new(Stall {
                sleep: Box::pin(sleep(STALL)),
                progress,
            })
        });
        loop {
            ready!(stall.sleep.as_mut().poll(context));
            stall.sleep.as_mut().reset(Instant::now() + STALL);
            let was = mem::replace(&mut stall.progress, progress);
            if was != progress {
                continue;
            }
            for (is_stuck, reader, direction) in stuck {
                if let Some(reader) = reader.filter(|_| is_stuck)
                    && has_failed(reader).unwrap_or(false)
                {
                    return Poll::Ready(direction);
                }
            }
        }
    }

    fn poll_hangup(
        &mut self,
        context: &mut Context<'_>,
        listener: Option<BorrowedFd<'_>>,
    ) -> Poll<()> {
        if let Watch::NotYet = self.hangup {
            let hangup = listener.and_then(Hangup::watch).map(Box::new);
            self.hangup = Watch::Begun(hangup);
        }
        match &self.hangup {
            Watch::Begun(Some(hangup)) => hangup.poll(context).map(drop),
            _ => Poll::Pending,
        }
    }
}

/// A number that changes when a byte moves, either way.
fn progress(forward: &mut Flow, backward: &mut Flow) -> u64 {
    forward.progress().wrapping_add(backward.progress())
}

/// The descriptor of an end that is read: its own, or that of the socket below it.
fn below<'a, T>(
    stream: Option<Stream<'a>>,
    end: &'a T,
    socket: fn(&T) -> Option<BorrowedFd<'_>>,
) -> Option<BorrowedFd<'a>> {
    match stream {
        Some(stream) => Some(stream.into_fd()),
        None => socket(end),
    }
}

/// The socket of an end that is written to: itself, or the one below it.
fn socket_of<T: 'static>(
    end: &T,
    socket: fn(&T) -> Option<BorrowedFd<'_>>,
) -> Option<BorrowedFd<'_>> {
    match Stream::of_writer(end) {
        Some(stream) if stream.kind() == Kind::Pipe => None,
        Some(stream) => Some(stream.into_fd()),
        None => socket(end),
    }
}

/// Whether the peer takes nothing any more. Whatever else a writer fails with (a host that is not reached, a session that
/// is used up), its reader has nothing to say that could be trusted to be whole.
fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    matches!(
        error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset
    )
}
