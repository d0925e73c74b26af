//! Both directions of a connection.

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    Cause, Direction, Options, RelayError, Totals,
    clock::Clock,
    flow::{Ending, Flow},
    hangup::Hangup,
    stream::Stream,
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
    let mut relay = Relay::new(a, b, options);
    let ended = poll_fn(|context| relay.poll(context, a, b)).await;
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

/// A connection that is being relayed.
struct Relay {
    forward: Flow,
    backward: Flow,
    /// A direction whose writer takes nothing any more, and why.
    deaf: Option<(Direction, Cause)>,
    clock: Option<Box<Clock>>,
    hangup: Watch,
}

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
    ) -> Poll<Result<(), Failure>>
    where
        A: AsyncRead + AsyncWrite + Unpin + 'static,
        B: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        if self.moves(Direction::Forward)
            && let Poll::Ready(Err(cause)) = self.forward.poll(context, a, b)
        {
            self.failed(Direction::Forward, cause)?;
        }
        if self.moves(Direction::Backward)
            && let Poll::Ready(Err(cause)) = self.backward.poll(context, b, a)
        {
            self.failed(Direction::Backward, cause)?;
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
                Direction::Forward => Stream::of_writer(b),
                Direction::Backward => Stream::of_writer(a),
            };
            if self.poll_hangup(context, listener).is_ready() {
                return Poll::Ready(Err(self.deaf.take().unwrap_or((open, Cause::Gone))));
            }
        }
        if let Some(clock) = &mut self.clock {
            let progress = self.forward.progress() + self.backward.progress();
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
            Cause::Write(error) if self.deaf.is_none() => {
                if error.kind() == io::ErrorKind::ConnectionReset {
                    match direction {
                        Direction::Forward => self.backward.expect_no_end(),
                        Direction::Backward => self.forward.expect_no_end(),
                    }
                }
                self.deaf = Some((direction, Cause::Write(error)));
                Ok(())
            }
            _ => Err(self.deaf.take().unwrap_or((direction, cause))),
        }
    }

    fn poll_hangup(&mut self, context: &mut Context<'_>, listener: Option<Stream<'_>>) -> Poll<()> {
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
