//! What the handles of a connection and its driver share: the requests in flight.
//!
//! A request has an entry, with its buffer, until its future has taken the answer; the entry owns the
//! buffer all that time, so a dropped future leaves nothing dangling. A read into a pipe has the pipe in
//! its place. The lock is held for a few assignments, never over a system call (but for a read that has to
//! leave its pipe): the driver takes the buffers out of their entries while it receives into them.

use std::{
    collections::VecDeque,
    mem,
    ops::Range,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use blockferry_block::{Buffer, Error, ErrorKind, Payload, PipeBuffer, Result};
use blockferry_proto::{
    ClientSession, Command, Cookie, Extent, Request, RequestHeader, ServerError,
};

use slab::Slab;

use crate::{errors, receiver::Requests};

/// How many requests one connection has in flight at most; more wait for their turn.
const CAPACITY: usize = 1024;

/// The entry of a request: valid until its answer was taken or it was abandoned.
pub(crate) type Ticket = usize;

/// What a request was answered with.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    /// The request's buffer, filled when it was a read.
    pub(crate) buffer: Option<Buffer>,
    /// The pipe of a read that is to end in one, until something came in the way; `buffer` is there then.
    pub(crate) pipe: Option<PipeBuffer>,
    /// Block status answers: the context's id and its extents.
    pub(crate) extents: Vec<(u32, Vec<Extent>)>,
}

/// A request that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    /// The request's buffer, unless the driver still holds it; what it holds is undefined.
    pub(crate) buffer: Option<Buffer>,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

/// A request whose header, and payload if it is a write, wait to be sent.
pub(crate) struct Outgoing {
    pub(crate) ticket: Ticket,
    pub(crate) cookie: Cookie,
    pub(crate) header: RequestHeader,
    /// The payload of a write, out of its slot until it is sent.
    pub(crate) payload: Option<Buffer>,
    /// The payload of a write that is in a pipe: what is left of it.
    pub(crate) pipe: Option<PipeBuffer>,
    /// How many bytes the payload has, wherever it is.
    pub(crate) length: usize,
}

/// The state of a connection.
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Whether the connection is over, for those who would rather not wait for the lock.
    over: AtomicBool,
}

pub(crate) struct State {
    pub(crate) session: ClientSession,
    pub(crate) table: Table,
    outgoing: VecDeque<Outgoing>,
    driver: Option<Waker>,
    ending: Ending,
    /// Who waits for the end of the driver.
    mourners: Vec<Waker>,
}

/// The requests whose answers were not yet taken.
#[derive(Default)]
pub(crate) struct Table {
    entries: Slab<Entry>,
    /// The ticket of each request in flight, by the slot of its cookie.
    tickets: Vec<Ticket>,
    /// Who waits for a free place among the requests in flight.
    crowd: Vec<Waker>,
    /// How many requests wait for their answer.
    waiting: usize,
    /// How many requests were answered so far.
    answered: u64,
    /// How many of those that wait read into pipes.
    pipes: usize,
    /// How many of those that wait are flushes.
    flushes: usize,
}

/// How far the connection is on the way to its end.
enum Ending {
    /// It is in use.
    Open,
    /// No new requests; goodbye follows the last answer.
    Closing,
    /// The driver is gone, or about to: why requests fail.
    Over(Error),
}

struct Entry {
    cookie: Cookie,
    /// How many bytes a read asked for.
    length: usize,
    is_flush: bool,
    /// It was entered as a read into a pipe.
    reads_into_pipe: bool,
    /// What went wrong with its pipe.
    broken: Option<Error>,
    reply: Reply,
    progress: Progress,
}

enum Progress {
    Waiting(Waker),
    /// The future was dropped before the answer came.
    Abandoned,
    /// The future has not yet looked.
    Answered(Result<()>),
}

impl Shared {
    pub(crate) fn new(session: ClientSession) -> Self {
        Self {
            state: Mutex::new(State {
                session,
                table: Table::default(),
                outgoing: VecDeque::new(),
                driver: None,
                ending: Ending::Open,
                mourners: Vec::new(),
            }),
            over: AtomicBool::new(false),
        }
    }

    /// Whether the connection has not ended yet.
    pub(crate) fn is_alive(&self) -> bool {
        !self.over.load(Ordering::Acquire)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn max_length(&self, command: Command) -> u64 {
        self.lock().session.max_length(command)
    }

    /// Enters a request with its buffer, or waits until there is room for it.
    pub(crate) fn poll_enter(
        &self,
        context: &mut Context<'_>,
        request: Request,
        load: &mut Option<Payload>,
    ) -> Poll<Result<Ticket>> {
        let mut state = self.lock();
        match &state.ending {
            Ending::Open => {}
            Ending::Closing => return Poll::Ready(Err(disconnected())),
            Ending::Over(error) => return Poll::Ready(Err(error.clone())),
        }
        if state.session.in_flight() >= CAPACITY {
            state.table.crowd.push(context.waker().clone());
            return Poll::Pending;
        }
        let mut header = RequestHeader::new();
        let cookie = state
            .session
            .submit(request, &mut header)
            .map_err(errors::from_proto)?;
        let mut reply = Reply::default();
        let (mut payload, mut pipe) = match load.take() {
            None => (None, None),
            Some(Payload::Memory(buffer)) => (Some(buffer), None),
            Some(Payload::Piped(pipe)) => (None, Some(pipe)),
        };
        let length = usize::try_from(request.length).unwrap_or(usize::MAX);
        if request.command != Command::Write {
            (reply.buffer, reply.pipe) = (payload.take(), pipe.take());
        }
        let progress = Progress::Waiting(context.waker().clone());
        let ticket = state.table.insert(Entry {
            cookie,
            length,
            is_flush: request.command == Command::Flush,
            reads_into_pipe: reply.pipe.is_some(),
            broken: None,
            reply,
            progress,
        });
        state.outgoing.push_back(Outgoing {
            ticket,
            cookie,
            header,
            length: match (&payload, &pipe) {
                (None, None) => 0,
                _ => length,
            },
            payload,
            pipe,
        });
        let driver = state.driver.take();
        drop(state);
        if let Some(driver) = driver {
            driver.wake();
        }
        Poll::Ready(Ok(ticket))
    }

    /// The answer to `ticket`, once it is there; the ticket is used up then.
    pub(crate) fn poll_reply(
        &self,
        context: &mut Context<'_>,
        ticket: Ticket,
    ) -> Poll<Result<Reply, Failure>> {
        let mut state = self.lock();
        let failed = |error, buffer| Poll::Ready(Err(Failure { error, buffer }));
        let Some(entry) = state.table.entries.get_mut(ticket) else {
            return failed(disconnected(), None);
        };
        if let Progress::Waiting(waker) = &mut entry.progress {
            waker.clone_from(context.waker());
            return Poll::Pending;
        }
        let entry = state.table.entries.remove(ticket);
        match entry.progress {
            Progress::Answered(Ok(())) => Poll::Ready(Ok(entry.reply)),
            Progress::Answered(Err(error)) => failed(error, entry.reply.buffer),
            Progress::Waiting(_) | Progress::Abandoned => {
                failed(disconnected(), entry.reply.buffer)
            }
        }
    }

    /// The future of `ticket` is gone; the request goes on without it.
    pub(crate) fn abandon(&self, ticket: Ticket) {
        let mut state = self.lock();
        let Some(entry) = state.table.entries.get_mut(ticket) else {
            return;
        };
        match entry.progress {
            Progress::Waiting(_) => entry.progress = Progress::Abandoned,
            Progress::Answered(_) => drop(state.table.entries.remove(ticket)),
            Progress::Abandoned => {}
        }
    }

    /// Lets no new request in; the driver says goodbye after the last answer.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        if matches!(state.ending, Ending::Open) {
            state.ending = Ending::Closing;
        }
        let driver = state.driver.take();
        drop(state);
        if let Some(driver) = driver {
            driver.wake();
        }
    }

    /// Ready when the driver is gone.
    pub(crate) fn poll_closed(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if matches!(state.ending, Ending::Over(_)) {
            return Poll::Ready(());
        }
        state.mourners.push(context.waker().clone());
        Poll::Pending
    }

    /// Why the connection ended, once it has.
    pub(crate) fn end_reason(&self) -> Error {
        match &self.lock().ending {
            Ending::Over(error) => error.clone(),
            Ending::Open | Ending::Closing => disconnected(),
        }
    }

    /// The connection is over: every request in flight fails with `error`, and every later one. The
    /// payloads of `unsent`, and of what was not even taken to be sent, go back with their failures.
    pub(crate) fn end(&self, error: Error, unsent: VecDeque<Outgoing>) {
        let mut state = self.lock();
        if matches!(state.ending, Ending::Over(_)) {
            return;
        }
        self.over.store(true, Ordering::Release);
        for outgoing in unsent.into_iter().chain(mem::take(&mut state.outgoing)) {
            if let Some(payload) = outgoing.payload {
                let (ticket, cookie) = (outgoing.ticket, outgoing.cookie);
                state.table.payload_sent(ticket, cookie, payload);
            }
        }
        let mut wakers = mem::take(&mut state.mourners);
        wakers.extend(mem::take(&mut state.table.crowd));
        state.table.entries.retain(|_, entry| {
            let answer = Progress::Answered(Err(error.clone()));
            match mem::replace(&mut entry.progress, answer) {
                Progress::Waiting(waker) => wakers.push(waker),
                Progress::Abandoned => return false,
                earlier @ Progress::Answered(_) => entry.progress = earlier,
            }
            true
        });
        state.ending = Ending::Over(error);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl State {
    /// Moves what waits to be sent to `queue`.
    pub(crate) fn take_outgoing(&mut self, queue: &mut VecDeque<Outgoing>) {
        queue.append(&mut self.outgoing);
    }

    /// Whether what waits to be sent only takes the places of `answered` requests, and is less than a
    /// quarter of what is in flight: the server does not miss it.
    pub(crate) fn may_wait_to_send(&self, answered: u64) -> bool {
        let waiting = self.outgoing.len();
        let small = self.outgoing.iter().all(|it| it.length == 0);
        small && waiting as u64 <= answered && 4 * waiting < self.session.in_flight()
    }

    /// Whether something waits to be sent.
    pub(crate) fn has_outgoing(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Remembers whom to wake when there is something to send or to end.
    pub(crate) fn set_driver(&mut self, waker: &Waker) {
        match &mut self.driver {
            Some(driver) => driver.clone_from(waker),
            None => self.driver = Some(waker.clone()),
        }
    }

    /// Whether the driver is to say goodbye: closing, and nothing waits for an answer.
    pub(crate) fn is_finished(&self) -> bool {
        matches!(self.ending, Ending::Closing)
            && self.session.in_flight() == 0
            && self.outgoing.is_empty()
    }
}

impl Table {
    /// How many requests were answered since the connection began.
    pub(crate) fn answered(&self) -> u64 {
        self.answered
    }

    /// How many requests in flight are flushes.
    pub(crate) fn flushes(&self) -> usize {
        self.flushes
    }

    /// Takes the buffer of a read out of its entry, to receive into it without the lock.
    pub(crate) fn lend_buffer(&mut self, cookie: Cookie) -> Option<Buffer> {
        self.in_flight(cookie)
            .and_then(|entry| entry.reply.buffer.take())
    }

    /// Puts back what was lent.
    pub(crate) fn return_buffer(&mut self, cookie: Cookie, buffer: Buffer) {
        if let Some(entry) = self.in_flight(cookie) {
            entry.reply.buffer = Some(buffer);
        }
    }

    /// Takes the pipe of a read out of its entry, to receive into it without the lock.
    pub(crate) fn lend_pipe(&mut self, cookie: Cookie) -> Option<PipeBuffer> {
        self.in_flight(cookie)
            .and_then(|entry| entry.reply.pipe.take())
    }

    /// Puts back what was lent.
    pub(crate) fn return_pipe(&mut self, cookie: Cookie, pipe: PipeBuffer) {
        if let Some(entry) = self.in_flight(cookie) {
            entry.reply.pipe = Some(pipe);
        }
    }

    /// Gives the payload of a write that was sent, or never will be, to its entry, which may have been
    /// answered early.
    pub(crate) fn payload_sent(&mut self, ticket: Ticket, cookie: Cookie, payload: Buffer) {
        if let Some(entry) = self
            .entries
            .get_mut(ticket)
            .filter(|entry| entry.cookie == cookie)
        {
            entry.reply.buffer = Some(payload);
        }
    }

    fn insert(&mut self, entry: Entry) -> Ticket {
        let slot = entry.cookie.slot();
        let ticket = self.entries.insert(entry);
        self.waiting += 1;
        self.pipes += usize::from(self.entries[ticket].reads_into_pipe);
        self.flushes += usize::from(self.entries[ticket].is_flush);
        if self.tickets.len() <= slot {
            self.tickets.resize(slot + 1, 0);
        }
        self.tickets[slot] = ticket;
        ticket
    }

    fn in_flight(&mut self, cookie: Cookie) -> Option<&mut Entry> {
        let ticket = *self.tickets.get(cookie.slot())?;
        self.entries
            .get_mut(ticket)
            .filter(|entry| entry.cookie == cookie)
    }
}

impl Requests for Table {
    fn buffer(&mut self, cookie: Cookie) -> &mut [u8] {
        let Some(entry) = self.in_flight(cookie) else {
            return &mut [];
        };
        if let Some(mut pipe) = entry.reply.pipe.take() {
            let mut buffer = Buffer::zeroed(entry.length);
            entry.broken = pipe.take(&mut buffer).err();
            entry.reply.buffer = Some(buffer);
        }
        entry.reply.buffer.as_deref_mut().unwrap_or_default()
    }

    fn length(&mut self, cookie: Cookie) -> usize {
        self.in_flight(cookie).map_or(0, |entry| entry.length)
    }

    fn has_pipes(&self) -> bool {
        self.pipes > 0
    }

    fn is_piped(&mut self, cookie: Cookie, offset: usize) -> bool {
        let pipe = self
            .in_flight(cookie)
            .and_then(|entry| entry.reply.pipe.as_ref());
        pipe.is_some_and(|pipe| pipe.len() == offset)
    }

    fn clear(&mut self, cookie: Cookie, range: Range<usize>) {
        if self.is_piped(cookie, range.start)
            && let Some(entry) = self.in_flight(cookie)
            && let Some(pipe) = &mut entry.reply.pipe
        {
            let filled = pipe.fill_with_zeroes(range.len());
            if filled.is_ok_and(|count| count == range.len()) {
                return;
            }
        }
        self.buffer(cookie)[range].fill(0);
    }

    /// One pooled buffer is as good as the other.
    fn exchange(&mut self, one: Cookie, other: Cookie) -> bool {
        let ticket = |cookie: Cookie| self.tickets.get(cookie.slot()).copied();
        let (Some(first), Some(second)) = (ticket(one), ticket(other)) else {
            return false;
        };
        let Some((first, second)) = self.entries.get2_mut(first, second) else {
            return false;
        };
        let length = |entry: &Entry| entry.reply.buffer.as_ref().map(|buffer| buffer.len());
        if length(first).is_none() || length(first) != length(second) {
            return false;
        }
        mem::swap(&mut first.reply.buffer, &mut second.reply.buffer);
        true
    }

    fn extents(&mut self, cookie: Cookie, context: u32, extents: Vec<Extent>) {
        if let Some(entry) = self.in_flight(cookie) {
            entry.reply.extents.push((context, extents));
        }
    }

    fn done(&mut self, cookie: Cookie, result: Result<(), ServerError>) {
        self.answered += 1;
        self.waiting = self.waiting.saturating_sub(1);
        // All of them at half: one whose future was dropped would use up the turn of another.
        if self.waiting <= CAPACITY / 2 {
            self.crowd.drain(..).for_each(Waker::wake);
        }
        let Some(entry) = self.in_flight(cookie) else {
            return;
        };
        let result = result.map_err(|error| errors::from_server(&error));
        let result = result.and_then(|()| entry.broken.take().map_or(Ok(()), Err));
        let (reads_into_pipe, is_flush) = (entry.reads_into_pipe, entry.is_flush);
        let answer = Progress::Answered(result);
        match mem::replace(&mut entry.progress, answer) {
            Progress::Waiting(waker) => waker.wake(),
            _ => {
                let ticket = self.tickets[cookie.slot()];
                self.entries.remove(ticket);
            }
        }
        self.pipes -= usize::from(reads_into_pipe);
        self.flushes -= usize::from(is_flush);
    }
}

/// The error of requests that come after the goodbye.
pub(crate) fn disconnected() -> Error {
    Error::with_message(ErrorKind::ConnectionLost, "the connection was closed")
}

#[cfg(test)]
mod tests;
