//! A connection after the handshake: requests in, replies out, in one task.

mod receiving;

use std::{
    future::poll_fn,
    os::fd::BorrowedFd,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context as TaskContext, Poll, ready},
    time::{Duration, Instant},
};

use blockferry_block::{Buffer, ByteRange, Context, Error, ErrorKind, Operation, Wish, Wishes};
use blockferry_proto::{
    Command, CommandFlags, Negotiated, ReplyWriter, RequestLimits, ServerRequest, ServerSession,
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Sleep, sleep};

use self::receiving::Incoming;
use crate::{
    errno,
    idle::Idle,
    input::Input,
    options::{ConnectionId, Ending, MAX_PAYLOAD, ServerEvent},
    replies::Replies,
    requests::{Answer, Target, Task, Work},
    server::Shared,
    statistics::Counters,
    stream::Stream,
};

/// Reads of so many bytes are answered from the page cache where that is possible: for shorter ones a
/// copy is cheaper.
const FILE_READ: u64 = 64 << 10;

/// After so many rounds without a wait, the runtime gets a turn for its timers and other tasks.
const ROUNDS: usize = 64;

/// A connection in transmission.
///
/// The task alternates between three things until none makes progress: collecting what the device has
/// finished, sending replies, and receiving requests. Receiving pauses while the bounds on requests and
/// bytes are reached, sending while the client doesn't read; neither stops the other, nor the device.
pub(crate) struct Connection<'d> {
    id: ConnectionId,
    stream: &'d Stream,
    target: &'d Target,
    shared: &'d Shared,
    session: ServerSession,
    writer: ReplyWriter,
    contexts: Vec<(u32, Context)>,
    input: Input,
    incoming: Incoming,
    running: FuturesUnordered<Running<'d>>,
    /// Bytes of payload that running requests hold.
    running_bytes: u64,
    replies: Replies<'d>,
    idle: Idle,
    /// What requests are counted in, where they are.
    counters: Option<Arc<Counters>>,
    /// What the export may wish for.
    wishes: Option<Arc<Wishes>>,
    /// Set when nothing more is received: how the connection will end.
    ending: Option<Ending>,
    /// Set when the server shuts down: what arrives now is refused.
    refusing: bool,
    /// Set when the client is given up: there is nobody to reply to.
    is_cut: bool,
    /// Whether something was written since the last flush.
    unflushed: bool,
}

/// What is left when a connection is over.
pub(crate) struct Outcome {
    pub(crate) ending: Ending,
    /// Whether something was written and not flushed.
    pub(crate) unflushed: bool,
}

/// A request that the device works on.
struct Running<'d> {
    request: Option<ServerRequest>,
    work: Work<'d>,
    /// Bytes of payload that it holds.
    bytes: u64,
    /// When it was received, where that is measured.
    began: Option<Instant>,
}

struct Finished {
    request: ServerRequest,
    bytes: u64,
    began: Option<Instant>,
    result: blockferry_block::Result<Answer>,
}

impl<'d> Connection<'d> {
    pub(crate) fn new(
        id: ConnectionId,
        stream: &'d Stream,
        target: &'d Target,
        shared: &'d Shared,
        negotiated: &Negotiated,
    ) -> Self {
        let limits = RequestLimits {
            max_payload: MAX_PAYLOAD,
        };
        let contexts = negotiated.contexts.iter();
        let writer = ReplyWriter::new(negotiated.mode);
        Self {
            id,
            stream,
            target,
            shared,
            session: ServerSession::new(negotiated, limits),
            writer,
            contexts: contexts
                .map(|context| (context.id, Context::from(context.name.as_str())))
                .collect(),
            input: Input::new(),
            incoming: Incoming::Header,
            running: FuturesUnordered::new(),
            running_bytes: 0,
            replies: Replies::new(stream, writer),
            idle: Idle::new(shared.options.idle_timeout),
            counters: None,
            wishes: None,
            ending: None,
            refusing: false,
            is_cut: false,
            unflushed: false,
        }
    }

    /// Counts the requests.
    pub(crate) fn counted(mut self, counters: Option<Arc<Counters>>) -> Self {
        self.counters = counters;
        self
    }

    /// Heeds what the export wishes for.
    pub(crate) fn heeding(mut self, wishes: Option<Arc<Wishes>>) -> Self {
        self.wishes = wishes;
        self
    }

    /// Serves the client until it is gone or the server shuts down.
    pub(crate) async fn run(mut self) -> Outcome {
        let shared = self.shared;
        let mut shutdown = pin!(shared.shutting_down());
        let mut abort = pin!(shared.aborting());
        let mut is_aborted = false;
        // The time starts to run with the first poll.
        let mut grace = pin!(async { sleep(shared.options.shutdown_grace).await });
        let mut patience: Option<Pin<Box<Sleep>>> = None;
        let ending = poll_fn(|cx| {
            if !self.refusing && shutdown.as_mut().poll(cx).is_ready() {
                self.refusing = true;
            }
            if self.refusing && !self.is_cut && grace.as_mut().poll(cx).is_ready() {
                self.cut(Ending::ShutDown);
            }
            if self.refusing && !is_aborted && abort.as_mut().poll(cx).is_ready() {
                is_aborted = true;
                self.cut(Ending::ShutDown);
                self.abandon();
            }
            let busy = !self.running.is_empty();
            if !self.is_cut && self.idle.poll_is_over(cx, busy) {
                self.cut(Ending::Idle);
            }
            let polled = self.poll(cx);
            if polled.is_pending() && self.is_deserted() {
                let patience =
                    patience.get_or_insert_with(|| Box::pin(sleep(shared.options.device_patience)));
                if patience.as_mut().poll(cx).is_ready() {
                    self.abandon();
                    return self.poll(cx);
                }
            }
            polled
        })
        .await;
        Outcome {
            ending,
            unflushed: self.unflushed,
        }
    }

    fn poll(&mut self, cx: &mut TaskContext<'_>) -> Poll<Ending> {
        for _ in 0..ROUNDS {
            let collected = self.collect(cx);
            let sent = self.send(cx);
            let received = self.receive(cx);
            if self.is_quiet() {
                if let Some(ending) = self.ending.take() {
                    return Poll::Ready(ending);
                }
                if self.refusing && !received && !self.is_amid_write() {
                    return Poll::Ready(Ending::ShutDown);
                }
            }
            if !(collected || sent || received) {
                return Poll::Pending;
            }
            self.idle.moved();
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Turns what the device has finished into replies.
    fn collect(&mut self, cx: &mut TaskContext<'_>) -> bool {
        let mut progress = false;
        while !self.running.is_empty()
            && let Poll::Ready(Some(finished)) = self.running.poll_next_unpin(cx)
        {
            self.running_bytes -= finished.bytes;
            self.finish(finished);
            progress = true;
        }
        progress
    }

    /// Sends replies while there is room for them.
    fn send(&mut self, cx: &mut TaskContext<'_>) -> bool {
        let mut progress = false;
        while !self.replies.is_empty() {
            match self.replies.poll_send(cx) {
                Poll::Ready(Ok(())) => progress = true,
                Poll::Ready(Err(error)) => {
                    self.note_sent_files();
                    self.cut(Ending::from_io(error));
                    return true;
                }
                Poll::Pending => break,
            }
        }
        self.note_sent_files();
        progress
    }

    /// Counts the reads that were answered from a file, and tells of those that failed.
    fn note_sent_files(&mut self) {
        for sent in self.replies.take_sent_files() {
            let request = &sent.request;
            if let Some(failure) = &sent.failure {
                let error = Error::with_message(ErrorKind::Io, failure.clone())
                    .during(Operation::Read)
                    .at(request.offset, request.length);
                self.tell_failure(request.command, &error);
            }
            self.note(request, sent.began, sent.failure.as_deref());
        }
    }

    /// Hands a request to the device, and its answer to the replies if that is there at once.
    fn start(&mut self, request: ServerRequest, payload: Option<Buffer>, cx: &mut TaskContext<'_>) {
        if request.length == 0 && request.command != Command::Flush {
            // Nothing of anything: no device is bothered, and a chunk of no data must not be sent.
            self.replies.push_header(self.writer.done(&request));
            return;
        }
        if request.command == Command::Flush {
            // What is written while the flush runs is not covered by it.
            self.unflushed = false;
        }
        let range = range_of(&request);
        let began = self.shared.options.has_clock().then(Instant::now);
        if let Some(place) = self.file_to_send(&request, range) {
            self.replies.push_file(request, range, place, began);
            return;
        }
        let bytes = self.payload_of(&request);
        let task = Task {
            command: request.command,
            flags: request.flags,
            range,
            payload,
            contexts: self.contexts_of(&request),
        };
        let mut running = Running {
            request: Some(request),
            work: self.target.start(task),
            bytes,
            began,
        };
        match Pin::new(&mut running).poll(cx) {
            Poll::Ready(finished) => self.finish(finished),
            Poll::Pending => {
                self.running_bytes += bytes;
                self.running.push(running);
            }
        }
    }

    /// The place in a file whose pages answer a read, instead of a copy of them.
    fn file_to_send(
        &self,
        request: &ServerRequest,
        range: ByteRange,
    ) -> Option<(BorrowedFd<'d>, u64)> {
        let may_be = request.command == Command::Read
            && request.length >= FILE_READ
            && self.shared.options.zero_copy
            && self.stream.takes_files();
        let target = self.target;
        may_be.then(|| target.cached_file(range)).flatten()
    }

    fn finish(&mut self, finished: Finished) {
        let Finished {
            request,
            result,
            began,
            ..
        } = finished;
        self.note_write(&request, result.is_ok());
        if self.is_cut {
            return;
        }
        let wish = self.wishes.as_ref().and_then(|wishes| wishes.current());
        if wish == Some(Wish::Drop) {
            self.cut(Ending::Dismissed);
            return;
        }
        match result {
            Ok(Answer::Done) => self.replies.push_header(self.writer.done(&request)),
            Ok(Answer::Data(buffer)) => self.replies.push_read(&request, buffer),
            Ok(Answer::Pieces(pieces)) => self.push_data(&request, pieces),
            Ok(Answer::Extents(contexts)) => {
                let count = contexts.len();
                for (index, (id, extents)) in contexts.iter().enumerate() {
                    let last = index + 1 == count;
                    let chunk = self.writer.block_status(&request, *id, extents, last);
                    self.replies.push_bytes(chunk, last);
                }
            }
            Err(error) => {
                self.tell_failure(request.command, &error);
                let message = error.to_string();
                self.note(&request, began, Some(&message));
                let number = errno::errno(request.command, request.flags, &error);
                let answer = self.writer.error(&request, number, &message);
                self.replies.push_bytes(answer, true);
                self.heed(wish);
                return;
            }
        }
        self.note(&request, began, None);
        self.heed(wish);
    }

    /// Does what the export wished for beside its answer.
    fn heed(&mut self, wish: Option<Wish>) {
        if wish == Some(Wish::ShutDown) {
            self.shared.shut_down();
        }
        if wish.is_some() && self.ending.is_none() {
            self.ending = Some(Ending::Dismissed);
        }
    }

    fn tell_failure(&self, command: Command, error: &Error) {
        self.shared.observe(&ServerEvent::RequestFailed {
            connection: self.id,
            command,
            error,
        });
    }

    /// Counts a request that was answered, and tells of it, where that is wanted.
    fn note(&self, request: &ServerRequest, began: Option<Instant>, failure: Option<&str>) {
        let time = began.map_or(Duration::ZERO, |began| began.elapsed());
        if let Some(counters) = &self.counters {
            let bytes = failure.is_none().then_some(request.length);
            counters.count(request.command, bytes, time);
        }
        if self.shared.options.tells_requests {
            self.shared.observe(&ServerEvent::RequestDone {
                connection: self.id,
                command: request.command,
                range: range_of(request),
                flags: request.flags,
                time,
                failure,
            });
        }
    }

    fn push_data(&mut self, request: &ServerRequest, data: impl IntoIterator<Item = Buffer>) {
        // The session lets no read of 4 GiB through.
        let length = u32::try_from(request.length).unwrap_or(u32::MAX);
        let header = self.writer.data(request, request.offset, length, true);
        self.replies.push_data(header, data);
    }

    fn note_write(&mut self, request: &ServerRequest, done: bool) {
        let durable = request.flags.contains(CommandFlags::FUA);
        match request.command {
            command if command.is_write() && !durable => self.unflushed = true,
            Command::Flush if !done => self.unflushed = true,
            _ => {}
        }
    }

    /// Bytes of payload that a request holds until its reply is sent.
    fn payload_of(&self, request: &ServerRequest) -> u64 {
        match request.command {
            Command::Read | Command::Write => request.length,
            // An extent for each 4 KiB and 16 bytes for each extent, up to the bound on extents.
            Command::BlockStatus => {
                (request.length / 256).min(1 << 20) * self.contexts.len().max(1) as u64
            }
            _ => 0,
        }
    }

    fn contexts_of(&self, request: &ServerRequest) -> Vec<(u32, Context)> {
        if request.command != Command::BlockStatus {
            return Vec::new();
        }
        let selected = self.contexts.iter();
        selected
            .filter(|(id, _)| request.contexts.contains(*id))
            .cloned()
            .collect()
    }

    /// Gives the client up: nothing is received or sent any more. What the device is doing goes on.
    fn cut(&mut self, ending: Ending) {
        self.is_cut = true;
        self.replies.clear();
        self.incoming = Incoming::Header;
        self.ending = Some(ending);
    }

    /// Whether the device works for nobody any more.
    fn is_deserted(&self) -> bool {
        let is_gone = self.is_cut || matches!(self.ending, Some(Ending::Vanished));
        is_gone && !self.running.is_empty()
    }

    /// Gives up what the device has not finished: it may never do so.
    fn abandon(&mut self) {
        let changes = |request: &ServerRequest| request.command.is_write();
        let mut running = self.running.iter();
        self.unflushed |= running.any(|running| running.request.as_ref().is_some_and(changes));
        self.running.clear();
        self.running_bytes = 0;
    }

    fn is_quiet(&self) -> bool {
        self.running.is_empty() && self.replies.is_empty()
    }

    /// Whether a write was received in part, or waits for room.
    fn is_amid_write(&self) -> bool {
        matches!(self.incoming, Incoming::Payload { .. } | Incoming::Held(_))
    }
}

/// The session has checked that it lies in the device.
fn range_of(request: &ServerRequest) -> ByteRange {
    let end = request.offset.saturating_add(request.length);
    ByteRange::between(request.offset, end)
}

impl Future for Running<'_> {
    type Output = Finished;

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Finished> {
        let result = ready!(Pin::new(&mut self.work).poll(cx));
        let Some(request) = self.request.take() else {
            // It has ended before.
            return Poll::Pending;
        };
        Poll::Ready(Finished {
            request,
            bytes: self.bytes,
            began: self.began,
            result,
        })
    }
}
