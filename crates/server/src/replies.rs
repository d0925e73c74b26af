//! The queue of replies on their way to the client.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    task::{Context, Poll, ready},
};

use blockferry_block::{Buffer, ByteRange};
use blockferry_proto::{Errno, ReplyHeader, ReplyWriter, ServerRequest};

use crate::{requests::Target, stream::Stream};

/// How many pieces go into one system call.
const SLICES: usize = 64;

/// So many bytes are worth a system call: they are sent before the next request is looked at, while
/// they are in the processor's cache.
const SEND_AT: u64 = 256 << 10;

/// Replies that wait to be sent, in order. A header and its payload, and several replies, leave
/// together.
pub(crate) struct Replies<'d> {
    stream: &'d Stream,
    target: &'d Target,
    writer: ReplyWriter,
    queue: VecDeque<Piece>,
    /// How much of the first piece was sent.
    sent: usize,
    /// What is not sent yet and held in memory.
    bytes: u64,
    replies: usize,
    files: usize,
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
    /// What is left to send of a range of the device's file, as the answer to a read.
    File(ServerRequest, ByteRange),
}

impl<'d> Replies<'d> {
    pub(crate) fn new(stream: &'d Stream, target: &'d Target, writer: ReplyWriter) -> Self {
        Self {
            stream,
            target,
            writer,
            queue: VecDeque::new(),
            sent: 0,
            bytes: 0,
            replies: 0,
            files: 0,
        }
    }

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

    /// The reply to a read, sent from the device's file when its turn comes.
    pub(crate) fn push_file(&mut self, request: ServerRequest, range: ByteRange) {
        let length = u32::try_from(range.len()).unwrap_or(u32::MAX);
        // The end of the reply is said when all is sent: until then the file may fail.
        let last = !self.writer.mode().is_chunked();
        let header = self.writer.data(&request, range.start(), length, last);
        self.push(Content::Header(header), false);
        self.push(Content::File(request, range), true);
    }

    /// How many replies are not sent completely.
    pub(crate) fn len(&self) -> usize {
        self.replies
    }

    /// How many bytes are held in memory.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether sending should not wait for more replies to come.
    pub(crate) fn is_worth_sending(&self) -> bool {
        self.files > 0 || self.bytes >= SEND_AT
    }

    /// Forgets everything: nobody is there to read it.
    pub(crate) fn clear(&mut self) {
        *self = Self::new(self.stream, self.target, self.writer);
    }

    /// Sends what there is room for. Ready when that was something; not to be called when empty.
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(Piece {
            content: Content::File(request, range),
            ..
        }) = self.queue.front()
        {
            return self.poll_send_file(cx, *request, *range);
        }
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut count = 0;
        let in_memory = self.queue.iter().map_while(Piece::bytes);
        for (slice, bytes) in slices.iter_mut().zip(in_memory) {
            let skipped = if count == 0 { self.sent } else { 0 };
            *slice = IoSlice::new(&bytes[skipped..]);
            count += 1;
        }
        let sent = ready!(self.stream.poll_send(cx, &slices[..count]))?;
        self.advance(sent);
        Poll::Ready(Ok(()))
    }

    /// Sends from the file that the first piece is about.
    fn poll_send_file(
        &mut self,
        cx: &mut Context<'_>,
        request: ServerRequest,
        range: ByteRange,
    ) -> Poll<io::Result<()>> {
        let sent = match self.target.file(range) {
            Some(file) => {
                let length = usize::try_from(range.len()).unwrap_or(usize::MAX);
                match ready!(self.stream.poll_send_file(cx, file, length)) {
                    Err(error) if is_about_the_socket(&error) => return Poll::Ready(Err(error)),
                    result => result.unwrap_or(0),
                }
            }
            None => 0,
        };
        if sent == 0 {
            return Poll::Ready(self.give_up_file(request, range));
        }
        let (_, rest) = range.split_at(sent as u64);
        if rest.is_empty() {
            self.pop();
            if self.writer.mode().is_chunked() {
                self.push_front(Content::Header(self.writer.finish(&request)), true);
            }
        } else if let Some(piece) = self.queue.front_mut() {
            piece.content = Content::File(request, rest);
        }
        Poll::Ready(Ok(()))
    }

    /// The file failed after its data was announced: the announced length is filled up, and an error
    /// follows. A simple reply has no place for one: the connection has to end.
    fn give_up_file(&mut self, request: ServerRequest, range: ByteRange) -> io::Result<()> {
        if !self.writer.mode().is_chunked() {
            return Err(io::Error::other("the file failed while it was sent"));
        }
        self.pop();
        let message = format!("the file failed at offset {}", range.start());
        let error = self.writer.error(&request, Errno::EIO, &message);
        self.push_front(Content::Bytes(error), true);
        let length = usize::try_from(range.len()).unwrap_or(usize::MAX);
        self.push_front(Content::Payload(Buffer::zeroed(length)), false);
        Ok(())
    }

    fn push(&mut self, content: Content, last: bool) {
        let piece = Piece { content, last };
        self.count(&piece);
        self.queue.push_back(piece);
    }

    fn push_front(&mut self, content: Content, last: bool) {
        let piece = Piece { content, last };
        self.count(&piece);
        self.queue.push_front(piece);
    }

    fn count(&mut self, piece: &Piece) {
        match piece.bytes() {
            Some(bytes) => self.bytes += bytes.len() as u64,
            None => self.files += 1,
        }
        self.replies += usize::from(piece.last);
    }

    /// Drops the first piece, whose bytes are counted down already.
    fn pop(&mut self) {
        if let Some(piece) = self.queue.pop_front() {
            self.replies -= usize::from(piece.last);
            self.files -= usize::from(piece.bytes().is_none());
            self.sent = 0;
        }
    }

    fn advance(&mut self, mut sent: usize) {
        self.bytes -= sent as u64;
        while let Some(bytes) = self.queue.front().and_then(Piece::bytes) {
            let rest = bytes.len() - self.sent;
            if sent < rest {
                self.sent += sent;
                return;
            }
            sent -= rest;
            self.pop();
        }
    }
}

impl Piece {
    /// The bytes, if it is not a file that has them.
    fn bytes(&self) -> Option<&[u8]> {
        match &self.content {
            Content::Header(header) => Some(header.as_bytes()),
            Content::Bytes(bytes) => Some(bytes),
            Content::Payload(buffer) => Some(buffer),
            Content::File(..) => None,
        }
    }
}

/// Whether it was the socket that failed, rather than the file.
fn is_about_the_socket(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected
    )
}
