//! The receiving half of a connection: bytes become requests, as far as the bounds allow.

use std::{
    io,
    task::{Context as TaskContext, Poll, ready},
    time::Duration,
};

use blockferry_block::Buffer;
use blockferry_proto::{Command, Errno, RequestEvent, ServerRequest};

use super::Connection;
use crate::options::Ending;

/// Where in the stream of requests the input stands.
pub(super) enum Incoming {
    /// Before a request, or in its header.
    Header,
    /// Behind the header of a request for which there is no room yet.
    Held(ServerRequest),
    /// In the payload of a write.
    Payload {
        request: ServerRequest,
        buffer: Buffer,
        filled: usize,
    },
    /// In the payload of a request that was refused; the answer follows it.
    Dropping { left: u64, answer: Vec<u8> },
}

impl Connection<'_> {
    /// Receives requests and starts them while the bounds allow it.
    pub(super) fn receive(&mut self, cx: &mut TaskContext<'_>) -> bool {
        let mut progress = false;
        while self.ending.is_none() {
            let step = match std::mem::replace(&mut self.incoming, Incoming::Header) {
                Incoming::Header => self.receive_header(cx),
                Incoming::Held(request) => self.admit(request, cx),
                Incoming::Payload {
                    request,
                    buffer,
                    filled,
                } => self.receive_payload(request, buffer, filled, cx),
                Incoming::Dropping { left, answer } => self.drop_payload(left, answer, cx),
            };
            if step.is_pending() {
                return progress;
            }
            progress = true;
            if self.replies.is_worth_sending() {
                return progress;
            }
        }
        progress
    }

    /// Takes one request out of the input.
    fn receive_header(&mut self, cx: &mut TaskContext<'_>) -> Poll<()> {
        let in_flight = self.running.len() + self.replies.len();
        if in_flight >= self.shared.options.max_in_flight_requests.max(1) {
            return Poll::Pending;
        }
        if self.input.is_empty() {
            let received = ready!(self.input.poll_fill(cx, self.stream));
            self.received(received);
            return Poll::Ready(());
        }
        match self.session.receive(self.input.bytes()) {
            Ok((used, event)) => {
                self.input.consume(used);
                self.handle(event, cx)
            }
            Err(error) => {
                self.cut(Ending::Misbehaved(error));
                Poll::Ready(())
            }
        }
    }

    fn handle(&mut self, event: RequestEvent, cx: &mut TaskContext<'_>) -> Poll<()> {
        match event {
            RequestEvent::NeedMore => Poll::Ready(()),
            RequestEvent::Disconnect => {
                self.ending = Some(Ending::Disconnected);
                Poll::Ready(())
            }
            RequestEvent::Request(request) if self.refusing => {
                let payload = match request.command {
                    Command::Write => request.length,
                    _ => 0,
                };
                let message = "the server is shutting down";
                let answer = self.writer.error(&request, Errno::ESHUTDOWN, message);
                self.drop_payload(payload, answer, cx)
            }
            RequestEvent::Request(request) => self.admit(request, cx),
            RequestEvent::Refused {
                request,
                errno,
                payload,
                message,
            } => {
                if let (Some(counters), Some(command)) = (&self.counters, request.command()) {
                    counters.count(command, None, Duration::ZERO);
                }
                let answer = self.writer.error(&request, errno, message);
                self.drop_payload(payload, answer, cx)
            }
        }
    }

    /// Starts a request, or goes on to receive its payload, if the bound on bytes allows it.
    fn admit(&mut self, request: ServerRequest, cx: &mut TaskContext<'_>) -> Poll<()> {
        let held = self.running_bytes + self.replies.bytes();
        let more = held.saturating_add(self.payload_of(&request));
        if held > 0 && more > self.shared.options.max_in_flight_bytes {
            self.incoming = Incoming::Held(request);
            return Poll::Pending;
        }
        if request.command == Command::Write {
            let length = usize::try_from(request.length).unwrap_or(usize::MAX);
            let mut buffer = self.target.take_buffer(length);
            let filled = self.input.take(&mut buffer);
            return self.receive_payload(request, buffer, filled, cx);
        }
        self.start(request, None, cx);
        Poll::Ready(())
    }

    /// Receives the payload of a write, and what follows it.
    fn receive_payload(
        &mut self,
        request: ServerRequest,
        mut buffer: Buffer,
        mut filled: usize,
        cx: &mut TaskContext<'_>,
    ) -> Poll<()> {
        let mut progress = Poll::Pending;
        while filled < buffer.len() {
            let rest = &mut buffer[filled..];
            match self.input.poll_fill_payload(cx, self.stream, rest) {
                Poll::Ready(received) => {
                    filled += self.received(received);
                    if self.ending.is_some() {
                        return Poll::Ready(());
                    }
                    progress = Poll::Ready(());
                }
                Poll::Pending => {
                    self.incoming = Incoming::Payload {
                        request,
                        buffer,
                        filled,
                    };
                    return progress;
                }
            }
        }
        self.start(request, Some(buffer), cx);
        Poll::Ready(())
    }

    /// Reads and forgets the payload of a refused request, then answers it.
    fn drop_payload(
        &mut self,
        mut left: u64,
        answer: Vec<u8>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<()> {
        let there = self.input.bytes().len();
        let part = usize::try_from(left).map_or(there, |left| left.min(there));
        self.input.consume(part);
        left -= part as u64;
        if left == 0 {
            self.replies.push_bytes(answer, true);
            return Poll::Ready(());
        }
        match self.input.poll_fill(cx, self.stream) {
            Poll::Ready(received) => {
                self.received(received);
                self.incoming = Incoming::Dropping { left, answer };
                Poll::Ready(())
            }
            Poll::Pending => {
                self.incoming = Incoming::Dropping { left, answer };
                Poll::Pending
            }
        }
    }

    /// Takes note of a receive: its end, its failure, or how many bytes came.
    fn received(&mut self, result: io::Result<usize>) -> usize {
        match result {
            Ok(0) => {
                // The replies to what was asked before may still be wanted.
                self.ending = Some(Ending::Vanished);
                0
            }
            Ok(received) => received,
            Err(error) => {
                self.cut(Ending::from_io(error));
                0
            }
        }
    }
}
