//! The queue of replies on their way to the client.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    mem,
    ops::Range,
    os::fd::BorrowedFd,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use blockferry_block::{Buffer, ByteRange, ZeroRun, zero_runs};
use blockferry_proto::{CommandFlags, Errno, ReplyHeader, ReplyWriter, ServerRequest};

use crate::stream::Stream;

/// How many pieces go into one system call.
const SLICES: usize = 64;

/// So many bytes are worth a system call: they are sent before the next request is looked at, while
/// they are in the processor's cache.
const SEND_AT: u64 = 256 << 10;

/// Runs of so many zero bytes in what was read are sent as holes, which takes no payload. Each costs the
/// client a chunk, so shorter ones are not worth it.
const HOLE: usize = 16 << 10;

/// Replies that wait to be sent, in order. A header and its payload, and several replies, leave
/// together.
pub(crate) struct Replies<'d> {
    stream: &'d Stream,
    writer: ReplyWriter,
    queue: VecDeque<Piece<'d>>,
    /// How much of the first piece was sent.
    sent: usize,
    /// What is not sent yet and held in memory.
    bytes: u64,
    /// What is held in memory beside it, because other parts of the same buffer are not sent yet.
    idle_bytes: u64,
    replies: usize,
    files: usize,
    /// Reads that were sent from a file, or failed so, since somebody asked.
    sent_files: Vec<SentFile>,
}

/// A read whose reply was sent from a file.
pub(crate) struct SentFile {
    pub(crate) request: ServerRequest,
    /// When it was received, where that is measured.
    pub(crate) began: Option<Instant>,
    pub(crate) failure: Option<String>,
}

struct Piece<'d> {
    content: Content<'d>,
    /// Whether a reply ends with it.
    last: bool,
}

enum Content<'d> {
    Header(ReplyHeader),
    Bytes(Vec<u8>),
    Payload(Buffer),
    Part(Arc<CutRead>, Range<usize>),
    File(FileRead<'d>),
}

/// The data of a read of which only parts are sent.
struct CutRead {
    data: Buffer,
    /// Bytes that are not sent.
    holes: u64,
}

/// What is left to send of a range of a file, as the answer to a read.
#[derive(Clone, Copy)]
struct FileRead<'d> {
    request: ServerRequest,
    /// Where the bytes were when the read came, and the offset there of the first byte that is left. Who writes
    /// before they are sent may move them elsewhere, and then these are what they were before the write.
    place: (BorrowedFd<'d>, u64),
    rest: ByteRange,
    began: Option<Instant>,
}

impl<'d> Replies<'d> {
    pub(crate) fn new(stream: &'d Stream, writer: ReplyWriter) -> Self {
        Self {
            stream,
            writer,
            queue: VecDeque::new(),
            sent: 0,
            bytes: 0,
            idle_bytes: 0,
            replies: 0,
            files: 0,
            sent_files: Vec::new(),
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

    /// The reply to a read that has its data. Where the client takes chunks, long runs of zeroes leave as
    /// holes.
    pub(crate) fn push_read(&mut self, request: &ServerRequest, data: Buffer) {
        // The session lets no read of 4 GiB through.
        let length = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let may_cut = self.writer.mode().is_chunked()
            && !request.flags.contains(CommandFlags::DF)
            && data.len() >= HOLE;
        let mut runs = Vec::new();
        if may_cut {
            runs.extend(zero_runs(&data, HOLE));
        }
        if !runs.iter().any(|run| run.is_zero) {
            let header = self
                .writer
                .data(request, request.offset, length(data.len()), true);
            self.push_data(header, [data]);
            return;
        }
        let zero = runs.iter().filter(|run| run.is_zero);
        let holes = zero.map(|run| run.range.len() as u64).sum();
        let count = runs.len();
        let is_kept = runs.iter().any(|run| !run.is_zero);
        self.idle_bytes += if is_kept { holes } else { 0 };
        let data = Arc::new(CutRead { data, holes });
        for (index, ZeroRun { range, is_zero }) in runs.into_iter().enumerate() {
            let last = index + 1 == count;
            let (offset, size) = (request.offset + range.start as u64, length(range.len()));
            if is_zero {
                let header = self.writer.hole(request, offset, size, last);
                self.push(Content::Header(header), last);
            } else {
                let header = self.writer.data(request, offset, size, last);
                self.push(Content::Header(header), false);
                self.push(Content::Part(Arc::clone(&data), range), last);
            }
        }
    }

    /// The reply to a read, sent from the file that `range` lies in at `place`, when its turn comes.
    pub(crate) fn push_file(
        &mut self,
        request: ServerRequest,
        range: ByteRange,
        place: (BorrowedFd<'d>, u64),
        began: Option<Instant>,
    ) {
        let length = u32::try_from(range.len()).unwrap_or(u32::MAX);
        // The end of the reply is said when all is sent: until then the file may fail.
        let last = !self.writer.mode().is_chunked();
        let header = self.writer.data(&request, range.start(), length, last);
        self.push(Content::Header(header), false);
        let rest = range;
        let read = FileRead {
            request,
            place,
            rest,
            began,
        };
        self.push(Content::File(read), true);
    }

    /// The reads whose replies left a file since this was asked.
    pub(crate) fn take_sent_files(&mut self) -> Vec<SentFile> {
        mem::take(&mut self.sent_files)
    }

    /// How many replies are not sent completely.
    pub(crate) fn len(&self) -> usize {
        self.replies
    }

    /// How many bytes are held in memory.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes + self.idle_bytes
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
        *self = Self::new(self.stream, self.writer);
    }

    /// Sends what there is room for. Ready when that was something; not to be called when empty.
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(Piece {
            content: Content::File(read),
            ..
        }) = self.queue.front()
        {
            return self.poll_send_file(cx, *read);
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
    fn poll_send_file(&mut self, cx: &mut Context<'_>, read: FileRead<'d>) -> Poll<io::Result<()>> {
        let length = usize::try_from(read.rest.len()).unwrap_or(usize::MAX);
        let sent = match ready!(self.stream.poll_send_file(cx, read.place, length)) {
            Err(error) if is_about_the_socket(&error) => return Poll::Ready(Err(error)),
            result => result,
        };
        let sent = match sent {
            Ok(0) => return Poll::Ready(self.give_up_file(read, "it is shorter than it was")),
            Ok(sent) => sent,
            Err(error) => return Poll::Ready(self.give_up_file(read, &error.to_string())),
        };
        let (_, rest) = read.rest.split_at(sent as u64);
        let (file, offset) = read.place;
        let place = (file, offset + sent as u64);
        if rest.is_empty() {
            self.pop();
            if self.writer.mode().is_chunked() {
                self.push_front(Content::Header(self.writer.finish(&read.request)), true);
            }
            self.note_file(read, None);
        } else if let Some(piece) = self.queue.front_mut() {
            piece.content = Content::File(FileRead {
                place,
                rest,
                ..read
            });
        }
        Poll::Ready(Ok(()))
    }

    /// The file failed after its data was announced: the announced length is filled up, and an error
    /// follows. A simple reply has no place for one: the connection has to end.
    fn give_up_file(&mut self, read: FileRead<'_>, why: &str) -> io::Result<()> {
        let offset = read.rest.start();
        let message = format!("the file failed at offset {offset}: {why}");
        self.note_file(read, Some(message.clone()));
        if !self.writer.mode().is_chunked() {
            return Err(io::Error::other(message));
        }
        self.pop();
        let error = self.writer.error(&read.request, Errno::EIO, &message);
        self.push_front(Content::Bytes(error), true);
        let length = usize::try_from(read.rest.len()).unwrap_or(usize::MAX);
        self.push_front(Content::Payload(Buffer::zeroed(length)), false);
        Ok(())
    }

    fn note_file(&mut self, read: FileRead<'_>, failure: Option<String>) {
        let FileRead { request, began, .. } = read;
        if began.is_some() || failure.is_some() {
            self.sent_files.push(SentFile {
                request,
                began,
                failure,
            });
        }
    }

    fn push(&mut self, content: Content<'d>, last: bool) {
        let piece = Piece { content, last };
        self.count(&piece);
        self.queue.push_back(piece);
    }

    fn push_front(&mut self, content: Content<'d>, last: bool) {
        let piece = Piece { content, last };
        self.count(&piece);
        self.queue.push_front(piece);
    }

    fn count(&mut self, piece: &Piece<'_>) {
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
            if let Content::Part(read, _) = &piece.content
                && Arc::strong_count(read) == 1
            {
                self.idle_bytes -= read.holes;
            }
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

impl Piece<'_> {
    /// The bytes, if it is not a file that has them.
    fn bytes(&self) -> Option<&[u8]> {
        match &self.content {
            Content::Header(header) => Some(header.as_bytes()),
            Content::Bytes(bytes) => Some(bytes),
            Content::Payload(buffer) => Some(buffer),
            Content::Part(read, range) => Some(&read.data[range.clone()]),
            Content::File(_) => None,
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

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, io::Read, os::unix::net::UnixStream, thread};

    use blockferry_proto::{Command, ContextSelection, ReplyMode};

    use super::*;
    use crate::listener::Socket;

    #[tokio::test]
    async fn a_buffer_that_is_sent_in_part_counts_as_a_whole_until_it_is_gone() {
        const LENGTH: usize = 1 << 20;
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        ours.set_nonblocking(true).expect("an option");
        let stream = Stream::new(Socket::Unix(ours)).expect("a stream");
        let writer = ReplyWriter::new(ReplyMode::Structured);
        let mut replies = Replies::new(&stream, writer);
        let request = ServerRequest {
            cookie: 1,
            command: Command::Read,
            flags: CommandFlags::empty(),
            offset: 0,
            length: LENGTH as u64,
            contexts: ContextSelection::default(),
        };
        let mut data = Buffer::zeroed(LENGTH);
        (data[0], data[LENGTH / 2]) = (1, 1);
        replies.push_read(&request, data);
        assert!(replies.bytes() >= LENGTH as u64, "{}", replies.bytes());
        replies.push_read(&request, Buffer::zeroed(LENGTH));
        let all = replies.bytes();
        assert!(
            all < LENGTH as u64 + 4096,
            "nothing but a hole is held: {all}"
        );
        let reader = thread::spawn(move || {
            let mut sent = Vec::new();
            theirs.read_to_end(&mut sent).map(|_| sent.len())
        });
        while !replies.is_empty() {
            poll_fn(|cx| replies.poll_send(cx)).await.expect("sent");
        }
        assert_eq!(replies.bytes(), 0);
        drop(stream);
        let sent = reader.join().expect("no panic").expect("received");
        assert!(sent < 2 * HOLE + 4096, "{sent}");
    }
}
