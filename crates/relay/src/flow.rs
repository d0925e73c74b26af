//! One direction: what is read from one end is written to the other.
//!
//! Nothing is read while bytes wait to be written, which is all the backpressure there is, and which makes the
//! kernel's answers plain: an empty pipe that takes nothing means that the reader has nothing. A pipe that holds bytes
//! may be full after a few of them (each small piece takes a slot), and its "not now" says nothing.

use std::{
    io::{self, IoSliceMut},
    mem,
    os::fd::AsFd,
    pin::Pin,
    task::{Context, Poll, ready},
};

use blockferry_sys::{
    Pipe,
    socket::{is_readable, receive},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    Cause, Direction, Moved, Options, PipePool,
    buffers::{Loaded, SMALL},
    counters::Tally,
    policy::Policy,
    pool::Lent,
    rate::Throttle,
    stream::{Kind, Stream, kind_of_reader, kind_of_writer},
};

/// After so many bytes others of the same thread get their turn.
const TURN: u64 = 4 << 20;

/// One direction of a connection.
#[derive(Debug)]
pub(crate) struct Flow {
    policy: Policy,
    cargo: Cargo,
    stage: Stage,
    ending: Ending,
    /// How many bytes may still be taken from the reader.
    limit: u64,
    tally: Tally,
    /// Whether the reader is known to have been reset.
    is_cut: bool,
    /// Whether the writer may hold back what it was given.
    owes_flush: bool,
    /// Whether the writer says that it has bytes before it knows: tokio's file writes behind.
    writes_behind: bool,
    /// How many bytes such a writer has taken and not confirmed.
    unconfirmed: usize,
    /// Whether the writer stands above a socket, and counts as having got only what has left for it.
    stands_above: bool,
    /// How many bytes such a writer has taken that may not have left.
    held: u64,
    pool: Option<PipePool>,
    throttle: Option<Box<Throttle>>,
}

/// What is on its way.
#[derive(Debug)]
enum Cargo {
    Nothing,
    InMemory(Loaded),
    InPipe(Lent),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Moving,
    /// The reader has ended, or the limit is reached: the writer is told.
    Ending,
    Over,
}

/// What the writer is told in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// That nothing follows.
    Shutdown,
    /// To deliver what it holds back.
    Flush,
}

/// What became of an attempt to fill a pipe.
enum Filled {
    Spliced(usize),
    /// The kernel had nothing for the pipe, but for memory.
    Copied(Loaded),
    Ended,
    /// These two are not spliced.
    Refused,
}

impl Flow {
    pub(crate) fn new<R: 'static, W: 'static>(
        reader: &R,
        writer: &W,
        options: &Options,
        direction: Direction,
        ending: Ending,
    ) -> Self {
        let rate = match direction {
            Direction::Forward => &options.rate,
            Direction::Backward => &options.rate_back,
        };
        let kinds = (kind_of_reader(reader), kind_of_writer(writer));
        if let Some(stream) = Stream::of_writer(writer) {
            stream.set_nodelay();
        }
        Self {
            policy: Policy::new(options.mode, kinds.0, kinds.1),
            cargo: Cargo::Nothing,
            stage: Stage::Moving,
            ending,
            limit: u64::MAX,
            tally: Tally::new(options.counters.clone(), direction),
            is_cut: false,
            owes_flush: false,
            writes_behind: kinds.1 == Kind::File,
            unconfirmed: 0,
            stands_above: false,
            held: 0,
            pool: options.pool.clone(),
            throttle: rate.clone().map(|rate| Box::new(Throttle::new(rate))),
        }
    }

    /// The writer stands above a socket: what it holds back may never reach that.
    pub(crate) fn write_above(&mut self) {
        self.stands_above = true;
    }

    /// The reader's connection was reset, and somebody else was told so: a socket tells it once, and lets what is
    /// cut short look like an end afterwards.
    pub(crate) fn expect_no_end(&mut self) {
        self.is_cut = true;
    }

    pub(crate) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// How many bytes may still be taken.
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// What the writer has got.
    pub(crate) fn moved(&self) -> Moved {
        self.tally.moved()
    }

    /// What was taken from the reader and has not reached the writer.
    pub(crate) fn on_its_way(&mut self) -> u64 {
        let bytes = match &mut self.cargo {
            Cargo::Nothing => 0,
            Cargo::InMemory(loaded) => loaded.len(),
            Cargo::InPipe(lent) => lent.pipe().map_or(0, |pipe| pipe.len()),
        };
        bytes as u64 + self.held
    }

    /// A number that changes with each byte that is taken or delivered.
    pub(crate) fn progress(&mut self) -> u64 {
        // Twice what was delivered: a byte that leaves is progress, too.
        let moved = self.tally.moved().total();
        moved.wrapping_mul(2).wrapping_add(self.on_its_way())
    }

    /// Whether bytes wait for room at the writer.
    pub(crate) fn is_stuck(&mut self) -> bool {
        self.on_its_way() > self.held
    }

    /// Whether the rate lets nothing through now.
    pub(crate) fn is_throttled(&self) -> bool {
        self.throttle
            .as_ref()
            .is_some_and(|throttle| throttle.is_waiting())
    }

    /// Whether the reader has ended, and the writer knows.
    pub(crate) fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// Moves bytes until neither end lets more through, or the reader has ended and the writer knows.
    pub(crate) fn poll<R, W>(
        &mut self,
        context: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
    ) -> Poll<Result<(), Cause>>
    where
        R: AsyncRead + Unpin + 'static,
        W: AsyncWrite + Unpin + 'static,
    {
        let mut turn = 0;
        loop {
            match self.stage {
                Stage::Over => return Poll::Ready(Ok(())),
                Stage::Ending => {
                    ready!(self.poll_end(context, writer)).map_err(Cause::Write)?;
                    self.stage = Stage::Over;
                    return Poll::Ready(Ok(()));
                }
                Stage::Moving => {}
            }
            ready!(self.poll_unload(context, writer)).map_err(Cause::Write)?;
            if turn >= TURN {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            if self.limit == 0 {
                self.end();
                continue;
            }
            match self.poll_load(context, reader) {
                Poll::Ready(Ok(0)) if self.is_cut => {
                    let reset = io::ErrorKind::ConnectionReset;
                    return Poll::Ready(Err(Cause::Read(reset.into())));
                }
                Poll::Ready(Ok(0)) => self.end(),
                Poll::Ready(Ok(count)) => {
                    self.limit -= count;
                    self.policy.moved(count);
                    turn += count;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Cause::Read(error))),
                Poll::Pending => {
                    self.rest();
                    if self.owes_flush {
                        ready!(Pin::new(writer).poll_flush(context)).map_err(Cause::Write)?;
                        self.owes_flush = false;
                        self.note_left();
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// Takes what is in a pipe into memory: the kernel does not splice it to the writer.
    pub(crate) fn unload_by_memory(&mut self) -> io::Result<()> {
        self.policy.refuse();
        if let Cargo::InPipe(lent) = &mut self.cargo
            && let Some(pipe) = lent.pipe()
        {
            let mut loaded = Loaded::of(pipe.len());
            let count = pipe.take(loaded.room())?;
            loaded.filled(count);
            self.cargo = Cargo::InMemory(loaded);
        }
        Ok(())
    }

    /// The pipe that carries what is on its way, to be emptied by somebody else.
    pub(crate) fn unhitch(&mut self) -> Option<Lent> {
        match mem::replace(&mut self.cargo, Cargo::Nothing) {
            Cargo::InPipe(lent) => Some(lent),
            cargo => {
                self.cargo = cargo;
                None
            }
        }
    }

    /// What is in the pipe is on its way now.
    pub(crate) fn carry(&mut self, lent: Lent) {
        self.cargo = Cargo::InPipe(lent);
    }

    /// Takes note that `bytes` were moved, for the choice of the way.
    pub(crate) fn note_moved(&mut self, bytes: u64) {
        self.policy.moved(bytes);
    }

    /// Somebody else has spliced `bytes` to the writer.
    pub(crate) fn delivered(&mut self, bytes: u64) {
        self.tally.spliced(bytes);
        self.policy.moved(bytes);
    }

    /// Nothing is on its way any more, and nobody waits for what could carry it.
    pub(crate) fn rest(&mut self) {
        self.cargo = Cargo::Nothing;
        self.policy.rested();
    }

    /// Takes between 1 and `wanted` bytes of the rate, when they are due.
    pub(crate) fn poll_grant(&mut self, context: &mut Context<'_>, wanted: u64) -> Poll<u64> {
        match &mut self.throttle {
            Some(throttle) => throttle.poll_take(context, wanted),
            None => Poll::Ready(wanted),
        }
    }

    /// Gives back what was granted and not taken.
    pub(crate) fn give_back(&self, bytes: u64) {
        if let Some(throttle) = &self.throttle {
            throttle.give_back(bytes);
        }
    }

    /// A pipe, if there is one.
    pub(crate) fn lend(&self) -> Option<Lent> {
        match &self.pool {
            Some(pool) => pool.lend(),
            None => PipePool::of_thread().lend(),
        }
    }

    fn end(&mut self) {
        self.cargo = Cargo::Nothing;
        self.stage = Stage::Ending;
    }

    fn poll_end<W>(&mut self, context: &mut Context<'_>, writer: &mut W) -> Poll<io::Result<()>>
    where
        W: AsyncWrite + Unpin + 'static,
    {
        match self.ending {
            Ending::Flush => ready!(Pin::new(writer).poll_flush(context))?,
            Ending::Shutdown => match ready!(Pin::new(writer).poll_shutdown(context)) {
                // Its peer was faster.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                result => result?,
            },
        }
        self.note_left();
        Poll::Ready(Ok(()))
    }

    /// All that the writer has taken has left.
    fn note_left(&mut self) {
        let left = mem::take(&mut self.held);
        self.tally.copied(left);
    }

    /// Writes all that is on its way.
    pub(crate) fn poll_unload<W>(
        &mut self,
        context: &mut Context<'_>,
        writer: &mut W,
    ) -> Poll<io::Result<()>>
    where
        W: AsyncWrite + Unpin + 'static,
    {
        loop {
            match &mut self.cargo {
                Cargo::Nothing => return Poll::Ready(Ok(())),
                Cargo::InMemory(loaded) => {
                    while loaded.len() > 0 {
                        let mut writer = Pin::new(&mut *writer);
                        if self.unconfirmed == 0 {
                            let count =
                                ready!(writer.as_mut().poll_write(context, loaded.bytes()))?;
                            if count == 0 {
                                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                            }
                            self.unconfirmed = count;
                        }
                        if self.writes_behind {
                            ready!(writer.as_mut().poll_flush(context))?;
                        } else {
                            self.owes_flush = true;
                        }
                        let count = mem::take(&mut self.unconfirmed);
                        loaded.consume(count);
                        self.held += count as u64;
                        // Nobody waits for what is held back: more may be taken meanwhile.
                        if !self.stands_above || writer.poll_flush(context)?.is_ready() {
                            let left = mem::take(&mut self.held);
                            self.tally.copied(left);
                        }
                    }
                    return Poll::Ready(Ok(()));
                }
                Cargo::InPipe(lent) => {
                    let Some(pipe) = lent.pipe().filter(|pipe| !pipe.is_empty()) else {
                        return Poll::Ready(Ok(()));
                    };
                    match ready!(poll_drain(context, pipe, writer)) {
                        Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                        Ok(count) => {
                            self.tally.spliced(count as u64);
                        }
                        // Files opened for appending, some devices.
                        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                            self.unload_by_memory()?;
                        }
                        Err(error) => return Poll::Ready(Err(error)),
                    }
                }
            }
        }
    }

    /// Takes something from the reader, and says how much. 0 is its end.
    pub(crate) fn poll_load<R>(
        &mut self,
        context: &mut Context<'_>,
        reader: &mut R,
    ) -> Poll<io::Result<u64>>
    where
        R: AsyncRead + Unpin + 'static,
    {
        let stream = Stream::of_reader(reader);
        if let Some(stream) = stream
            && (self.throttle.is_some() || self.policy.splices())
        {
            // A reader that has nothing takes no pipe and no bytes of the rate from the others.
            ready!(stream.poll_read_ready(context))?;
        }
        if self.policy.splices()
            && let Some(stream) = stream
        {
            // Whatever is there is empty: all of it was written.
            if !matches!(self.cargo, Cargo::InPipe(_)) {
                self.cargo = self.lend().map_or(Cargo::Nothing, Cargo::InPipe);
            }
            if let Cargo::InPipe(lent) = &mut self.cargo {
                let wanted = self.limit.min(lent.capacity());
                let granted = ready!(self.poll_grant(context, wanted));
                let filled = match &mut self.cargo {
                    Cargo::InPipe(lent) => poll_fill(context, lent, stream, to_usize(granted)),
                    _ => Poll::Ready(Ok(Filled::Refused)),
                };
                let count = match &filled {
                    Poll::Ready(Ok(Filled::Spliced(count))) => *count as u64,
                    Poll::Ready(Ok(Filled::Copied(loaded))) => loaded.len() as u64,
                    _ => 0,
                };
                self.give_back(granted - count);
                match ready!(filled)? {
                    Filled::Spliced(_) => return Poll::Ready(Ok(count)),
                    Filled::Copied(loaded) => {
                        self.cargo = Cargo::InMemory(loaded);
                        return Poll::Ready(Ok(count));
                    }
                    Filled::Ended => return Poll::Ready(Ok(0)),
                    Filled::Refused => self.policy.refuse(),
                }
            }
        }
        self.poll_load_memory(context, reader)
    }

    fn poll_load_memory<R>(
        &mut self,
        context: &mut Context<'_>,
        reader: &mut R,
    ) -> Poll<io::Result<u64>>
    where
        R: AsyncRead + Unpin + 'static,
    {
        let size = self.policy.buffer_size();
        let wanted = self.limit.min(size as u64);
        let granted = ready!(self.poll_grant(context, wanted));
        let mut loaded = match mem::replace(&mut self.cargo, Cargo::Nothing) {
            Cargo::InMemory(loaded) if loaded.capacity() == size => loaded,
            _ => Loaded::lend(size),
        };
        let length = to_usize(granted).min(loaded.capacity());
        let room = &mut loaded.room()[..length];
        let read = match Stream::of_reader(reader) {
            Some(stream) => poll_receive(context, stream, room),
            None => {
                let mut room = ReadBuf::new(room);
                let read = Pin::new(reader).poll_read(context, &mut room);
                read.map_ok(|()| room.filled().len())
            }
        };
        let count = match &read {
            Poll::Ready(Ok(count)) => *count,
            _ => 0,
        };
        self.give_back(granted - count as u64);
        ready!(read)?;
        loaded.filled(count);
        self.cargo = Cargo::InMemory(loaded);
        Poll::Ready(Ok(count as u64))
    }
}

/// Fills the pipe, which is empty, with up to `length` bytes of `stream`, which was ready.
fn poll_fill(
    context: &mut Context<'_>,
    lent: &mut Lent,
    stream: Stream<'_>,
    length: usize,
) -> Poll<io::Result<Filled>> {
    let Some(pipe) = lent.pipe() else {
        return Poll::Ready(Ok(Filled::Refused));
    };
    loop {
        match stream.try_read(|| fill(pipe, stream, length)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            filled => return Poll::Ready(filled),
        }
        ready!(stream.poll_read_ready(context))?;
    }
}

/// Fails with `WouldBlock` only when the reader has nothing: who waits in vain waits for ever.
fn fill(pipe: &mut Pipe, stream: Stream<'_>, length: usize) -> io::Result<Filled> {
    const ATTEMPTS: usize = 3;
    for _ in 0..ATTEMPTS {
        match pipe.fill_once(stream.as_fd(), length) {
            // Its end, most probably. A splice also stops at urgent data, and for want of memory.
            Ok(0) => break,
            Ok(count) => return Ok(Filled::Spliced(count)),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                return Ok(Filled::Refused);
            }
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            Err(nothing) if !is_readable(stream.as_fd())? => return Err(nothing),
            Err(_) => {}
        }
    }
    // The kernel has something for memory, but not for the pipe, or has come to the end.
    let mut loaded = Loaded::lend(SMALL);
    let length = length.min(SMALL);
    let count = receive(
        stream.as_fd(),
        &mut [IoSliceMut::new(&mut loaded.room()[..length])],
    )?;
    loaded.filled(count);
    match count {
        0 => Ok(Filled::Ended),
        _ => Ok(Filled::Copied(loaded)),
    }
}

/// Receives what is there. tokio's own reading takes a short one for a sign that nothing is left; it is not where
/// urgent data or descriptors lie between.
fn poll_receive(
    context: &mut Context<'_>,
    stream: Stream<'_>,
    room: &mut [u8],
) -> Poll<io::Result<usize>> {
    loop {
        ready!(stream.poll_read_ready(context))?;
        match stream.try_read(|| receive(stream.as_fd(), &mut [IoSliceMut::new(room)])) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            received => return Poll::Ready(received),
        }
    }
}

fn poll_drain<W: 'static>(
    context: &mut Context<'_>,
    pipe: &mut Pipe,
    writer: &W,
) -> Poll<io::Result<usize>> {
    let Some(stream) = Stream::of_writer(writer) else {
        return Poll::Ready(Err(io::ErrorKind::InvalidInput.into()));
    };
    loop {
        ready!(stream.poll_write_ready(context))?;
        match stream.try_write(|| pipe.drain_to(stream.as_fd())) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            drained => return Poll::Ready(drained),
        }
    }
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
