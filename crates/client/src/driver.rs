//! The task that moves the bytes of one asynchronous connection.
//!
//! It sends what was entered, several requests in one system call, and receives by the receiver's plan.
//! After an answer it lets the tasks that waited for it run before it goes on, so that their next
//! requests leave together and the server never runs dry. Single requests wait for company while the end
//! of a payload is on its way.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io::{self, IoSlice, IoSliceMut},
    mem,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use blockferry_block::{Buffer, Error, FillStop, Result};
use blockferry_proto::RequestHeader;

use crate::{
    errors,
    in_flight::{Outgoing, Shared, State, Table, disconnected},
    receiver::{Receiver, Requests, Target},
    stream::Stream,
    watchdog::{Patience, Watchdog},
};

/// How many requests leave in one system call at most.
const BURST: usize = 32;

/// One connection. Dropping it, also before it ran, ends the connection for its handles.
pub(crate) struct Driver {
    stream: Stream,
    shared: Arc<Shared>,
    patience: Patience,
    /// From the first round on, where there is a limit to patience.
    watchdog: Option<Watchdog>,
    receiver: Receiver,
    /// What is being sent.
    queue: VecDeque<Outgoing>,
    /// How many bytes of the queue's first element were sent.
    sent: usize,
    /// How many requests had been answered when new ones were taken to be sent.
    answered_at_send: u64,
}

impl Driver {
    pub(crate) fn new(stream: Stream, shared: Arc<Shared>, patience: Patience) -> Self {
        Self {
            stream,
            shared,
            patience,
            watchdog: None,
            receiver: Receiver::new(),
            queue: VecDeque::new(),
            sent: 0,
            answered_at_send: 0,
        }
    }

    /// Drives the connection until it ends.
    pub(crate) async fn drive(mut self) {
        self.watchdog = Watchdog::new(self.patience);
        let end = loop {
            match poll_fn(|context| self.poll_round(context)).await {
                Round::Yield => tokio::task::yield_now().await,
                Round::Over(end) => break end,
            }
        };
        self.say_goodbye();
        self.shared.end(end, mem::take(&mut self.queue));
    }

    /// Sends what waits. Ready when nothing is left, pending when the socket is full.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        loop {
            let mut state = self.shared.lock();
            if !self.holds_back(&state) {
                self.answered_at_send = state.table.answered();
                state.take_outgoing(&mut self.queue);
            }
            drop(state);
            if self.queue.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if self.is_at_pipe() {
                ready!(self.poll_send_pipe(context))?;
                continue;
            }
            let mut slices = [IoSlice::new(&[]); 2 * BURST];
            let mut count = 0;
            let mut skip = self.sent;
            for outgoing in self.queue.iter().take(BURST) {
                for part in [
                    outgoing.header.as_bytes(),
                    outgoing.payload.as_deref().unwrap_or_default(),
                ] {
                    let skipped = skip.min(part.len());
                    skip -= skipped;
                    if skipped < part.len() {
                        slices[count] = IoSlice::new(&part[skipped..]);
                        count += 1;
                    }
                }
                if outgoing.pipe.is_some() {
                    break;
                }
            }
            let sent = ready!(self.stream.poll_send(context, &slices[..count]));
            self.note_sent(sent.map_err(errors::lost)?);
        }
    }

    /// Whether what waits to be sent waits for company. The end of the payload that is arriving is on its
    /// way, and more requests will follow its answer; the server has enough to do meanwhile.
    fn holds_back(&self, state: &State) -> bool {
        let answered = state.table.answered() - self.answered_at_send;
        self.receiver.is_inside_payload() && state.may_wait_to_send(answered)
    }

    /// Whether the next bytes to send are in a pipe: the header in front of them was sent.
    fn is_at_pipe(&self) -> bool {
        let first = self.queue.front();
        first.is_some_and(|it| it.pipe.is_some() && self.sent >= it.header.as_bytes().len())
    }

    /// Sends what is in the pipe of the queue's first element, as far as there is room.
    fn poll_send_pipe(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        let Some(first) = self.queue.front_mut() else {
            return Poll::Ready(Ok(()));
        };
        let Some(pipe) = &mut first.pipe else {
            return Poll::Ready(Ok(()));
        };
        match ready!(self.stream.poll_drain(context, pipe)) {
            Ok(0) => {
                let error = io::Error::from(io::ErrorKind::WriteZero);
                return Poll::Ready(Err(errors::lost(error)));
            }
            Ok(count) => self.note_sent(count),
            // The bytes keep their places in the payload, as those that were sent count.
            Err(error) if refuses_splice(&error) => {
                let mut payload = Buffer::zeroed(first.length);
                let start = first.length.saturating_sub(pipe.len());
                pipe.take(&mut payload[start..])?;
                (first.payload, first.pipe) = (Some(payload), None);
            }
            Err(error) => return Poll::Ready(Err(errors::lost(error))),
        }
        Poll::Ready(Ok(()))
    }

    /// `count` more bytes of the queue have left.
    fn note_sent(&mut self, count: usize) {
        self.sent += count;
        while let Some(first) = self.queue.front() {
            let length = first.header.as_bytes().len() + first.length;
            if self.sent < length {
                return;
            }
            self.sent -= length;
            if let Some(Outgoing {
                ticket,
                cookie,
                payload: Some(payload),
                ..
            }) = self.queue.pop_front()
            {
                self.shared
                    .lock()
                    .table
                    .payload_sent(ticket, cookie, payload);
            }
        }
    }

    /// Receives once. Ready when something came, pending when nothing is there.
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        let mut state = self.shared.lock();
        let plan = self.receiver.plan(&state.session, &state.table);
        if plan.piped
            && let Some(target) = plan.current
        {
            drop(state);
            return self.poll_receive_into_pipe(context, &target);
        }
        let mut current = Loan::take(&mut state.table, plan.current.as_ref());
        let mut predicted = Loan::take(&mut state.table, plan.predicted.as_ref());
        drop(state);
        let header = &mut self.receiver.header_room()[..plan.header];
        let mut slices = [
            IoSliceMut::new(current.part()),
            IoSliceMut::new(header),
            IoSliceMut::new(predicted.part()),
        ];
        let received = self.stream.poll_receive(context, &mut slices);
        let mut state = self.shared.lock();
        current.give_back(&mut state.table);
        predicted.give_back(&mut state.table);
        let count = ready!(received).map_err(errors::lost)?;
        if count == 0 {
            return Poll::Ready(Err(errors::closed_by_server()));
        }
        let State { session, table, .. } = &mut *state;
        let result = self.receiver.received(session, &plan, count, table);
        Poll::Ready(result.map_err(errors::from_proto))
    }

    /// Moves the payload that is arriving into the pipe of its read.
    fn poll_receive_into_pipe(
        &mut self,
        context: &mut Context<'_>,
        target: &Target,
    ) -> Poll<Result<()>> {
        let Some(mut pipe) = self.shared.lock().table.lend_pipe(target.cookie) else {
            self.receiver.leave_pipe();
            return Poll::Ready(Ok(()));
        };
        let filled = self
            .stream
            .poll_fill(context, &mut pipe, target.range.len());
        let mut state = self.shared.lock();
        state.table.return_pipe(target.cookie, pipe);
        let (count, stop) = match ready!(filled) {
            Ok(filled) => filled,
            Err(error) if refuses_splice(&error) => (0, FillStop::PipeFull),
            Err(error) => return Poll::Ready(Err(errors::lost(error))),
        };
        if count == 0 && stop == FillStop::SourceEnded {
            return Poll::Ready(Err(errors::closed_by_server()));
        }
        if stop == FillStop::PipeFull {
            // The pipe takes no more although bytes are missing: the read goes on in memory.
            state.table.buffer(target.cookie);
            self.receiver.leave_pipe();
        }
        let State { session, table, .. } = &mut *state;
        let result = self.receiver.received_in_pipe(session, count, table);
        Poll::Ready(result.map_err(errors::from_proto))
    }

    /// Sends and receives as long as there is something to.
    fn poll_round(&mut self, context: &mut Context<'_>) -> Poll<Round> {
        let before = self.shared.lock().table.answered();
        loop {
            if let Poll::Ready(Err(error)) = self.poll_send(context) {
                return Poll::Ready(Round::Over(error));
            }
            match self.poll_receive(context) {
                Poll::Ready(Ok(())) => {
                    let state = self.shared.lock();
                    let answered = state.table.answered() - before;
                    // At half of what was in flight, the tasks that wait for answers get their turn.
                    if answered > 0 && answered >= state.session.in_flight() as u64 {
                        return Poll::Ready(Round::Yield);
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Round::Over(error)),
                Poll::Pending => {
                    let mut state = self.shared.lock();
                    if state.is_finished() && self.queue.is_empty() {
                        return Poll::Ready(Round::Over(disconnected()));
                    }
                    if !state.has_outgoing() || self.holds_back(&state) {
                        state.set_driver(context.waker());
                        let (all, flushes) = (state.session.in_flight(), state.table.flushes());
                        drop(state);
                        return self.poll_watch(context, all, flushes);
                    }
                }
            }
        }
    }

    /// Ready when the server has been silent for too long, with so many requests in flight.
    fn poll_watch(
        &mut self,
        context: &mut Context<'_>,
        requests: usize,
        flushes: usize,
    ) -> Poll<Round> {
        let moved = self.stream.take_progress();
        let Some(watchdog) = &mut self.watchdog else {
            return Poll::Pending;
        };
        if moved {
            watchdog.note_progress();
        }
        let limit = ready!(watchdog.poll(context, requests, flushes));
        Poll::Ready(Round::Over(errors::silent(limit)))
    }

    /// Says goodbye, as far as the socket takes it at once: the connection closes anyway.
    fn say_goodbye(&mut self) {
        let mut header = RequestHeader::new();
        self.shared.lock().session.disconnect(&mut header);
        let mut context = Context::from_waker(Waker::noop());
        let _ = self
            .stream
            .poll_send(&mut context, &[IoSlice::new(header.as_bytes())]);
        self.stream.close();
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Nobody waits for ever, also when the runtime is gone before the connection.
        self.shared.end(disconnected(), mem::take(&mut self.queue));
    }
}

/// Whether a splice failed because the socket knows none, with nothing lost.
fn refuses_splice(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    matches!(error.kind(), InvalidInput | PermissionDenied | Unsupported)
}

/// Why a round ended.
enum Round {
    /// There is more to do, after others had their turn.
    Yield,
    /// The connection is over.
    Over(Error),
}

/// A buffer that is out of its entry while it is received into.
struct Loan<'a> {
    target: Option<&'a Target>,
    buffer: Option<Buffer>,
}

impl<'a> Loan<'a> {
    fn take(table: &mut Table, target: Option<&'a Target>) -> Self {
        let buffer = target.and_then(|target| table.lend_buffer(target.cookie));
        Self { target, buffer }
    }

    fn part(&mut self) -> &mut [u8] {
        match (&mut self.buffer, self.target) {
            (Some(buffer), Some(target)) => &mut buffer[target.range.clone()],
            _ => &mut [],
        }
    }

    fn give_back(self, table: &mut Table) {
        if let (Some(buffer), Some(target)) = (self.buffer, self.target) {
            table.return_buffer(target.cookie, buffer);
        }
    }
}
