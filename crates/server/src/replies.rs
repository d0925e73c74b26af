//! The queue of replies on their way to the client.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    task::{Context, Poll, ready},
};

use blockferry_block::Buffer;
use blockferry_proto::ReplyHeader;

use crate::stream::Stream;

/// How many pieces go into one system call.
const SLICES: usize = 64;

/// Replies that wait to be sent, in order. A header and its payload, and several replies, leave
/// together.
#[derive(Default)]
pub(crate) struct Replies {
    queue: VecDeque<Piece>,
    /// How much of the first piece was sent.
    sent: usize,
    /// What is not sent yet.
    bytes: u64,
    replies: usize,
}

struct Piece {
    content: Content,
    /// Whether a reply ends with it.
    last: bool,
}

enum Content {
    Header(ReplyHeader),
    Bytes(Vec<u8>),
    Payload(Buffer),
}

impl Replies {
    /// A reply that is nothing but a header.
    pub(crate) fn push_header(&mut self, header: ReplyHeader) {
        self.push(Content::Header(header), true);
    }

    /// A whole reply of encoded bytes, or with `last` false the beginning of one.
    pub(crate) fn push_bytes(&mut self, bytes: Vec<u8>, last: bool) {
        self.push(Content::Bytes(bytes), last);
    }

    /// A reply of a header and payload, of which there is at least one buffer.
    pub(crate) fn push_data(
        &mut self,
        header: ReplyHeader,
        payload: impl IntoIterator<Item = Buffer>,
    ) {
        self.push(Content::Header(header), false);
        for buffer in payload {
            self.push(Content::Payload(buffer), false);
        }
        if let Some(piece) = self.queue.back_mut() {
            piece.last = true;
            self.replies += 1;
        }
    }

    /// How many replies are not sent completely.
    pub(crate) fn len(&self) -> usize {
        self.replies
    }

    /// How many bytes are not sent.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Forgets everything: nobody is there to read it.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Sends what there is room for. Ready when that was something; not to be called when empty.
    pub(crate) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        stream: &Stream,
    ) -> Poll<io::Result<()>> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.queue) {
            let skipped = if count == 0 { self.sent } else { 0 };
            *slice = IoSlice::new(&piece.bytes()[skipped..]);
            count += 1;
        }
        let sent = ready!(stream.poll_send(cx, &slices[..count]))?;
        self.advance(sent);
        Poll::Ready(Ok(()))
    }

    fn push(&mut self, content: Content, last: bool) {
        let piece = Piece { content, last };
        self.bytes += piece.bytes().len() as u64;
        self.replies += usize::from(last);
        self.queue.push_back(piece);
    }

    fn advance(&mut self, mut sent: usize) {
        self.bytes -= sent as u64;
        while let Some(piece) = self.queue.front() {
            let rest = piece.bytes().len() - self.sent;
            if sent < rest {
                self.sent += sent;
                return;
            }
            sent -= rest;
            self.sent = 0;
            self.replies -= usize::from(piece.last);
            self.queue.pop_front();
        }
    }
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match &self.content {
            Content::Header(header) => header.as_bytes(),
            Content::Bytes(bytes) => bytes,
            Content::Payload(buffer) => buffer,
        }
    }
}
