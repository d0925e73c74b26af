//! Standard input and output as one end of the only connection; the program ends with it.
//!
//! The end of standard input is passed on to the other end, and the end of the other end closes standard
//! output; it is over when both have ended, or when nobody reads standard output any more.

use std::{
    cell::Cell,
    fs::File as StdFile,
    future::pending,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{fs::FileTypeExt, net::UnixStream as StdUnix},
    },
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use blockferry_sys as sys;
use tokio::{
    fs::File,
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf, split},
    net::{
        TcpStream, UnixStream,
        unix::pipe::{self, Receiver, Sender},
    },
    time::sleep,
};

use crate::{
    block::{Error, ErrorKind},
    relay::{
        Cause, CopyError, Direction, Moved, Options, RelayError, Totals, copy_with, delivered,
    },
};

use super::{
    super::super::failure::Failure,
    Relay, Requests, Room,
    book::Counts,
    connection::{Arrival, Ending, FAREWELL, Side, Visit, welcome},
    crew::Workplace,
    entrance::Entrance,
    introduction::Introduction,
    link::{Client, Link, Stream},
    observe::words,
    reach::{Reached, reach},
};

/// How often a limit of silence is looked at while it lasts.
const LOOKS: u32 = 4;

/// Relays standard input and output to the first target that answers.
pub(super) async fn from(
    relay: &Arc<Relay>,
    room: &Room,
    mut requests: Requests,
) -> Result<(), Failure> {
    let workplace = Workplace::new(relay, room.pipes);
    relay.begin(None, vec![Arc::clone(&workplace)]).await?;
    let standard = Standard::take().map_err(|error| unusable(&error))?;
    let number = relay.observer.connected(&Client::Standard);
    workplace.book.expect();
    let counts = Counts::in_two();
    let mut visit = Visit::new(&workplace, number, Client::Standard, counts.clone(), None);
    let version = relay.job.proxy_protocol;
    let introduction = version.map(|version| Introduction::new(version, None));
    let introduction = introduction.transpose().map_err(|error| unusable(&error))?;
    let relaying = async {
        match reach(relay, number, introduction.as_ref()).await {
            Ok(Reached { link, target }) => {
                visit.target = Some(target);
                carry(standard, link, Side::Client, &mut visit, &counts).await
            }
            Err(error) => {
                let failure = Failure::from(Error::from(io::Error::new(
                    error.kind(),
                    format!("no target answered; the last one: {}", words(&error)),
                )));
                visit.ending = Ending::Unreachable;
                Err(failure.without_hint())
            }
        }
    };
    tokio::select! {
        result = relaying => result,
        interrupt = requests.until_end(&relay.observer) => Err(Failure::interrupted(interrupt)),
    }
}

/// Relays the first client to standard input and output, and refuses all others.
pub(super) async fn to(
    relay: &Arc<Relay>,
    room: &Room,
    mut entrance: Entrance,
    mut requests: Requests,
) -> Result<(), Failure> {
    let workplace = Workplace::new(relay, room.pipes);
    let workplaces = vec![Arc::clone(&workplace)];
    relay.begin(Some(&entrance), workplaces).await?;
    let standard = Standard::take().map_err(|error| unusable(&error))?;
    let Arrival {
        number,
        socket,
        client,
        slot,
    } = tokio::select! {
        arrival = relay.next(&mut entrance) => arrival,
        // Nobody has connected: there is nothing to finish.
        _ = requests.until_end(&relay.observer) => return Ok(()),
    };
    drop(entrance);
    workplace.book.expect();
    let counts = Counts::in_two();
    let mut visit = Visit::new(&workplace, number, client, counts.clone(), slot);
    visit.target = Some(0);
    let relaying = async {
        match welcome(relay, socket).await {
            Ok((link, _)) => carry(standard, link, Side::Target, &mut visit, &counts).await,
            Err(ending) => {
                let failure = unwelcome(&ending);
                visit.ending = ending;
                Err(failure)
            }
        }
    };
    tokio::select! {
        result = relaying => result,
        interrupt = requests.until_end(&relay.observer) => Err(Failure::interrupted(interrupt)),
    }
}

fn unusable(error: &io::Error) -> Failure {
    Failure::system("standard input and output", error)
}

fn unwelcome(ending: &Ending) -> Failure {
    match ending {
        Ending::NoTls(error) => Failure::failed(error.to_string()),
        _ => Failure::failed("the client was gone at once"),
    }
}

/// Relays until both ends have ended, and says so in `visit`. Standard input and output stand for `side`.
async fn carry(
    standard: Standard,
    link: Link,
    side: Side,
    visit: &mut Visit,
    counts: &Counts,
) -> Result<(), Failure> {
    let relay = Arc::clone(visit.relay());
    let mut bridge = Bridge::new(standard, link, side, &visit.options(), counts)
        .map_err(|error| unusable(&error))?;
    let (idle, half_closed) = (relay.job.idle_timeout, relay.job.half_close_timeout);
    let result = bridge.run(counts, idle, half_closed).await;
    bridge.whole = result.is_ok();
    let totals = counts.totals();
    let (way, cause) = match result {
        Ok(moved) => {
            visit.end(Ok(moved.totals(side)));
            return Ok(());
        }
        Err(stop) => stop,
    };
    let failure = match (&cause, way) {
        // Nobody reads our output any more: there is nobody left to disappoint.
        (Cause::Write(error), Way::Out) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        _ => {
            let peer = visit.target.filter(|_| side == Side::Client);
            let peer = peer.and_then(|target| relay.job.targets.get(target));
            let peer = peer.map_or_else(|| visit.client.to_string(), ToString::to_string);
            let at_fault = match (&cause, way) {
                (Cause::Read(_), Way::In) => "standard input",
                (Cause::Write(_), Way::Out) => "standard output",
                _ => &peer,
            };
            Err(failure(&cause).about(at_fault))
        }
    };
    visit.end(Err(RelayError {
        totals,
        direction: way.direction(side),
        cause,
    }));
    let own_fault = visit.fault() == Some(side);
    // Who is gone gets nothing any more.
    let left = match own_fault {
        true => &bridge.link,
        false => &bridge.output,
    };
    if let Some(socket) = left {
        delivered(socket, FAREWELL).await;
    }
    failure
}

fn failure(cause: &Cause) -> Failure {
    let kind = match cause {
        Cause::Idle(_) | Cause::HalfClosed(_) => ErrorKind::TimedOut,
        cause if cause.is_reset() => ErrorKind::ConnectionLost,
        _ => ErrorKind::Io,
    };
    let text = cause.to_string();
    Failure::from(Error::with_message(kind, text)).without_hint()
}

/// One of the two ways that bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// From standard input.
    In,
    /// To standard output.
    Out,
}

impl Way {
    fn direction(self, side: Side) -> Direction {
        match (self, side) {
            (Self::In, Side::Client) | (Self::Out, Side::Target) => Direction::Forward,
            (Self::In, Side::Target) | (Self::Out, Side::Client) => Direction::Backward,
        }
    }
}

/// What was moved.
#[derive(Default)]
struct Carried {
    from_input: Moved,
    to_output: Moved,
}

impl Carried {
    fn totals(&self, side: Side) -> Totals {
        let (forward, backward) = match side {
            Side::Client => (self.from_input, self.to_output),
            Side::Target => (self.to_output, self.from_input),
        };
        Totals { forward, backward }
    }
}

/// Both ways, under way.
struct Bridge {
    from_input: Pumping,
    to_output: Pumping,
    /// Another descriptor of the other end's connection over TCP, to break it off.
    link: Option<TcpStream>,
    /// The same of standard output.
    output: Option<TcpStream>,
    /// Whether all of both ways was relayed.
    whole: bool,
    /// Whether the other end's connection is known to have failed, so that its end is none.
    cut: Rc<Cell<bool>>,
}

impl Bridge {
    fn new(
        standard: Standard,
        link: Link,
        side: Side,
        options: &Options,
        counts: &Counts,
    ) -> io::Result<Self> {
        let Standard { input, output } = standard;
        let socket = link.tcp().map(second_tcp).transpose()?;
        let (reader, writer) = match link {
            Link::Tcp(stream) => (Half::Tcp(second_tcp(&stream)?), Half::Tcp(stream)),
            Link::Unix(stream) => {
                let second = stream.as_fd().try_clone_to_owned()?.into();
                (
                    Half::Unix(UnixStream::from_std(second)?),
                    Half::Unix(stream),
                )
            }
            link @ Link::Tls(_) => {
                let (reader, writer) = split(link);
                (Half::Tls(reader), Half::Tls(writer))
            }
        };
        let standard = match &output {
            Half::Tcp(stream) => Some(second_tcp(stream)?),
            _ => None,
        };
        let one_way = |way: Way| {
            let mut one = options.clone();
            let (forward, backward) = counts.apart();
            let (rate, counters) = match way.direction(side) {
                Direction::Forward => (&options.rate, forward),
                Direction::Backward => (&options.rate_back, backward),
            };
            one.rate = rate.clone();
            one.counters = counters;
            // Silence is that of both ways.
            one.idle_timeout = None;
            one.half_close_timeout = None;
            one
        };
        let cut = Rc::default();
        Ok(Self {
            from_input: pump(input, writer, one_way(Way::In), Rc::default()),
            to_output: pump(reader, output, one_way(Way::Out), Rc::clone(&cut)),
            cut,
            link: socket,
            output: standard,
            whole: false,
        })
    }

    /// Moves both ways until both have ended, or says which one met with what.
    async fn run(
        &mut self,
        counts: &Counts,
        idle: Option<Duration>,
        half_closed: Option<Duration>,
    ) -> Result<Carried, (Way, Cause)> {
        let mut carried = Carried::default();
        // The input that the other end did not take, which may still have something to say.
        let mut untaken = None;
        let (mut input_ended, mut output_ended) = (false, false);
        while !(input_ended && output_ended) {
            let over: fn(Duration) -> Cause;
            let limit = match input_ended || output_ended {
                true => {
                    over = Cause::HalfClosed;
                    half_closed.or(idle)
                }
                false => {
                    over = Cause::Idle;
                    idle
                }
            };
            tokio::select! {
                result = &mut self.from_input, if !input_ended => {
                    input_ended = true;
                    match result {
                        Ok(moved) => carried.from_input = moved,
                        Err(CopyError { cause: Cause::Write(error), .. }) => {
                            // A reset is told once: what looks like the other way's end is none.
                            self.cut.set(error.kind() != io::ErrorKind::BrokenPipe);
                            untaken = Some((Way::In, Cause::Write(error)));
                        }
                        Err(error) => return Err((Way::In, error.cause)),
                    }
                }
                result = &mut self.to_output, if !output_ended => {
                    output_ended = true;
                    carried.to_output = result.map_err(|error| (Way::Out, error.cause))?;
                }
                limit = silence(counts, limit) => {
                    let way = if input_ended { Way::Out } else { Way::In };
                    return Err((way, over(limit)));
                }
            }
        }
        untaken.map_or(Ok(carried), Err)
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        if !self.whole {
            let sockets = self.link.iter().chain(&self.output);
            sockets.for_each(Stream::break_off);
        }
    }
}

/// Waits until nothing has moved for so long, and says how long.
async fn silence(counts: &Counts, limit: Option<Duration>) -> Duration {
    let Some(limit) = limit else {
        return pending().await;
    };
    let (mut seen, mut still) = (counts.totals(), 0);
    while still < LOOKS {
        sleep(limit / LOOKS).await;
        let now = counts.totals();
        still = if now == seen { still + 1 } else { 0 };
        seen = now;
    }
    limit
}

/// Another descriptor of a connection, in the runtime of now.
fn second_tcp(stream: &TcpStream) -> io::Result<TcpStream> {
    TcpStream::from_std(stream.as_fd().try_clone_to_owned()?.into())
}

/// Standard input and output, taken away from the rest of the process.
struct Standard {
    input: Source,
    output: Sink,
}

type Source = Half<Receiver, ReadHalf<Link>>;
type Sink = Half<Sender, WriteHalf<Link>>;

impl Standard {
    fn take() -> io::Result<Self> {
        let pipes = pipe::OpenOptions::new();
        Ok(Self {
            input: Half::of(sys::take_standard(0)?, |path| pipes.open_receiver(path))?,
            output: Half::of(sys::take_standard(1)?, |path| pipes.open_sender(path))?,
        })
    }
}

/// What is read from or written to, by the types that tell a relay how. `P` is an end of a pipe,
/// `T` one way of a connection with TLS.
enum Half<P, T> {
    Pipe(P),
    File(File),
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(T),
    Other(Other),
}

impl<P, T> Half<P, T> {
    fn of(descriptor: OwnedFd, open: impl FnOnce(&str) -> io::Result<P>) -> io::Result<Self> {
        let file = StdFile::from(descriptor);
        let kind = file.metadata()?.file_type();
        if kind.is_socket() {
            let socket = StdUnix::from(OwnedFd::from(file));
            socket.set_nonblocking(true)?;
            if socket.local_addr().is_ok() {
                return UnixStream::from_std(socket).map(Self::Unix);
            }
            return TcpStream::from_std(OwnedFd::from(socket).into()).map(Self::Tcp);
        }
        if kind.is_fifo() {
            // An open file of our own: that it does not block is nobody else's business. That of another
            // user cannot be opened, nor a pipe that nobody reads any more.
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            if let Ok(pipe) = open(&path) {
                return Ok(Self::Pipe(pipe));
            }
        }
        let is_file = kind.is_file();
        let file = File::from_std(file);
        Ok(match is_file {
            true => Self::File(file),
            false => Self::Other(Other(file)),
        })
    }
}

/// Terminals and other devices: their calls block, on a thread of their own.
struct Other(File);

impl AsyncRead for Other {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Other {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// One way, under way.
type Pumping = Pin<Box<dyn Future<Output = Result<Moved, CopyError>>>>;

fn pump(reader: Source, writer: Sink, options: Options, cut: Rc<Cell<bool>>) -> Pumping {
    match reader {
        Half::Pipe(reader) => pump_from(reader, writer, options, cut),
        Half::File(reader) => pump_from(reader, writer, options, cut),
        Half::Tcp(reader) => pump_from(reader, writer, options, cut),
        Half::Unix(reader) => pump_from(reader, writer, options, cut),
        Half::Tls(reader) => pump_from(reader, writer, options, cut),
        Half::Other(reader) => pump_from(reader, writer, options, cut),
    }
}

fn pump_from<R>(reader: R, writer: Sink, options: Options, cut: Rc<Cell<bool>>) -> Pumping
where
    R: AsyncRead + Unpin + 'static,
{
    match writer {
        Half::Pipe(writer) => Box::pin(move_all(reader, writer, options, cut)),
        Half::File(writer) => Box::pin(move_all(reader, writer, options, cut)),
        Half::Tcp(writer) => Box::pin(move_all(reader, writer, options, cut)),
        Half::Unix(writer) => Box::pin(move_all(reader, writer, options, cut)),
        Half::Tls(writer) => Box::pin(move_all(reader, writer, options, cut)),
        Half::Other(writer) => Box::pin(move_all(reader, writer, options, cut)),
    }
}

/// Moves all that comes, and passes the end on, unless it is `cut`.
async fn move_all<R, W>(
    mut reader: R,
    mut writer: W,
    options: Options,
    cut: Rc<Cell<bool>>,
) -> Result<Moved, CopyError>
where
    R: AsyncRead + Unpin + 'static,
    W: AsyncWrite + Unpin + 'static,
{
    let moved = copy_with(&mut reader, &mut writer, None, &options).await?;
    if cut.get() {
        return Err(CopyError {
            moved,
            unwritten: 0,
            cause: Cause::Read(io::ErrorKind::ConnectionReset.into()),
        });
    }
    match writer.shutdown().await {
        // Whoever broke it off is seen to have done so by the other way.
        Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(CopyError {
            moved,
            unwritten: 0,
            cause: Cause::Write(error),
        }),
        _ => Ok(moved),
    }
}
