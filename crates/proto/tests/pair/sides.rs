//! The two ends of a transmission: a client with its buffers and a server with its disk, each
//! reading from a stream that is cut anywhere.

use std::collections::{HashMap, VecDeque};

use blockferry_proto::{
    ClientSession, Command, CommandFlags, Cookie, Errno, Extent, Negotiated, ReplyEvent, ReplyMode,
    ReplyWriter, Request, RequestEvent, RequestHeader, RequestLimits, ServerError, ServerRequest,
    ServerSession,
};

/// The unit in which the disk reports holes, in bytes.
pub(crate) const BLOCK: usize = 512;

/// Decisions, drawn from a list of random numbers; when it is used up, always the first choice.
pub(crate) struct Tape {
    pub(crate) draws: VecDeque<u16>,
}

impl Tape {
    /// A number below `count`.
    pub(crate) fn choose(&mut self, count: usize) -> usize {
        let draw = self.draws.pop_front().unwrap_or(0);
        usize::from(draw) % count.max(1)
    }
}

/// What a client got for one request.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Answer {
    pub(crate) data: Vec<u8>,
    pub(crate) extents: HashMap<u32, Vec<Extent>>,
    pub(crate) result: Option<Result<(), ServerError>>,
}

pub(crate) struct Client {
    pub(crate) session: ClientSession,
    pub(crate) answers: HashMap<Cookie, Answer>,
    pub(crate) inbox: VecDeque<u8>,
    /// The payload that is next in the inbox: where it belongs, and how much of it is missing.
    payload: Option<(Cookie, usize, usize)>,
}

impl Client {
    pub(crate) fn new(negotiated: &Negotiated) -> Self {
        Self {
            session: ClientSession::new(negotiated),
            answers: HashMap::new(),
            inbox: VecDeque::new(),
            payload: None,
        }
    }

    /// Submits a request and returns its bytes.
    pub(crate) fn submit(&mut self, request: Request, payload: &[u8]) -> (Cookie, Vec<u8>) {
        let mut header = RequestHeader::new();
        let cookie = self.session.submit(request, &mut header).unwrap();
        let mut answer = Answer::default();
        if request.command == Command::Read {
            // Not zeroes: a byte that was never received must not pass for one that was.
            answer.data = vec![0xee; request.length as usize];
        }
        self.answers.insert(cookie, answer);
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend(payload);
        (cookie, bytes)
    }

    /// Takes up to `count` bytes from the inbox.
    pub(crate) fn advance(&mut self, count: usize) {
        let count = count.min(self.inbox.len());
        let bytes: Vec<u8> = self.inbox.drain(..count).collect();
        let mut rest = &bytes[..];
        loop {
            if let Some((cookie, at, missing)) = self.payload.take() {
                let (now, later) = rest.split_at(missing.min(rest.len()));
                let answer = self.answers.get_mut(&cookie).unwrap();
                answer.data[at..at + now.len()].copy_from_slice(now);
                rest = later;
                if now.len() < missing {
                    self.payload = Some((cookie, at + now.len(), missing - now.len()));
                    return;
                }
            }
            self.check_prediction();
            let ready = self.session.needed() == 0;
            let (taken, event) = self.session.receive(rest).unwrap();
            assert!(!ready || taken == 0, "an event that was ready took bytes");
            rest = &rest[taken..];
            if event == ReplyEvent::NeedMore {
                assert!(!ready, "an event that was ready was none");
                assert!(rest.is_empty(), "bytes were left although more are needed");
                assert!(self.session.needed() > 0);
                return;
            }
            self.on_event(event);
        }
    }

    fn on_event(&mut self, event: ReplyEvent) {
        match event {
            ReplyEvent::NeedMore => {}
            ReplyEvent::Payload {
                cookie,
                offset,
                length,
            } => self.payload = Some((cookie, offset as usize, length as usize)),
            ReplyEvent::Hole {
                cookie,
                offset,
                length,
            } => {
                let data = &mut self.answers.get_mut(&cookie).unwrap().data;
                data[offset as usize..][..length as usize].fill(0);
            }
            ReplyEvent::Extents {
                cookie,
                context,
                extents,
            } => {
                let answer = self.answers.get_mut(&cookie).unwrap();
                assert_eq!(answer.extents.insert(context, extents), None);
            }
            ReplyEvent::Done { cookie, result } => {
                let answer = self.answers.get_mut(&cookie).unwrap();
                assert_eq!(answer.result.replace(result), None);
            }
        }
    }

    /// Predictions are in the order of submission and point into reads that are in flight.
    fn check_prediction(&self) {
        let mut last = 0;
        for n in 0.. {
            let Some((cookie, offset, length)) = self.session.nth_predicted_read(n) else {
                break;
            };
            let request = self.session.request(cookie).unwrap();
            assert_eq!(request.command, Command::Read);
            assert!(length > 0 && offset + length <= request.length);
            // The generation counts submissions.
            assert!(cookie.0 >> 32 > last);
            last = cookie.0 >> 32;
        }
    }
}

pub(crate) struct Server {
    session: ServerSession,
    writer: ReplyWriter,
    contexts: Vec<u32>,
    pub(crate) disk: Vec<u8>,
    pub(crate) inbox: VecDeque<u8>,
    /// A write whose payload is next in the inbox, with what has come of it.
    writing: Option<(ServerRequest, Vec<u8>)>,
    /// Bytes to drop from the inbox, then the answer.
    dropping: Option<(usize, Vec<u8>)>,
    /// What is still to be sent, by request; the messages of one request keep their order.
    pub(crate) replies: Vec<VecDeque<Vec<u8>>>,
    /// The requests that were answered with an error on purpose.
    pub(crate) failed: Vec<u64>,
}

impl Server {
    pub(crate) fn new(negotiated: &Negotiated) -> Self {
        Self {
            session: ServerSession::new(negotiated, RequestLimits::default()),
            writer: ReplyWriter::new(negotiated.mode),
            contexts: negotiated
                .contexts
                .iter()
                .map(|context| context.id)
                .collect(),
            disk: vec![0; negotiated.export.size as usize],
            inbox: VecDeque::new(),
            writing: None,
            dropping: None,
            replies: Vec::new(),
            failed: Vec::new(),
        }
    }

    /// Takes up to `count` bytes from the inbox.
    pub(crate) fn advance(&mut self, count: usize, tape: &mut Tape) {
        let count = count.min(self.inbox.len());
        let bytes: Vec<u8> = self.inbox.drain(..count).collect();
        let mut rest = &bytes[..];
        loop {
            if let Some((request, mut payload)) = self.writing.take() {
                let missing = request.length as usize - payload.len();
                let (now, later) = rest.split_at(missing.min(rest.len()));
                payload.extend(now);
                rest = later;
                if now.len() < missing {
                    self.writing = Some((request, payload));
                    return;
                }
                self.carry_out(request, &payload, tape);
            }
            if let Some((missing, answer)) = self.dropping.take() {
                let now = missing.min(rest.len());
                rest = &rest[now..];
                if now < missing {
                    self.dropping = Some((missing - now, answer));
                    return;
                }
                self.replies.push(VecDeque::from([answer]));
            }
            let (taken, event) = self.session.receive(rest).unwrap();
            rest = &rest[taken..];
            match event {
                RequestEvent::NeedMore => {
                    assert!(rest.is_empty(), "bytes were left although more are needed");
                    assert!(self.session.needed() > 0);
                    return;
                }
                RequestEvent::Request(request) if request.command == Command::Write => {
                    self.writing = Some((request, Vec::new()));
                }
                RequestEvent::Request(request) => self.carry_out(request, &[], tape),
                RequestEvent::Refused {
                    request,
                    errno,
                    payload,
                    message,
                } => {
                    let answer = self.writer.error(&request, errno, message);
                    self.dropping = Some((payload as usize, answer));
                }
                RequestEvent::Disconnect => panic!("nobody said goodbye"),
            }
        }
    }

    fn carry_out(&mut self, request: ServerRequest, payload: &[u8], tape: &mut Tape) {
        let range = request.offset as usize..(request.offset + request.length) as usize;
        let failing = tape.choose(8) == 7;
        if failing {
            self.failed.push(request.cookie);
        }
        let messages = match request.command {
            Command::Read => self.read(&request, failing, tape),
            _ if failing => vec![self.writer.error(&request, Errno::EIO, "on purpose")],
            Command::BlockStatus => self.status(&request, tape),
            command => {
                match command {
                    Command::Write => self.disk[range].copy_from_slice(payload),
                    Command::WriteZeroes => self.disk[range].fill(0),
                    _ => {}
                }
                vec![self.writer.done(&request).as_bytes().to_vec()]
            }
        };
        self.replies.push(messages.into());
    }

    fn read(&self, request: &ServerRequest, failing: bool, tape: &mut Tape) -> Vec<Vec<u8>> {
        let start = request.offset as usize;
        let end = start + request.length as usize;
        if !self.writer.mode().is_chunked() {
            if failing {
                return vec![self.writer.error(request, Errno::EIO, "on purpose")];
            }
            let header = self
                .writer
                .data(request, request.offset, request.length as u32, true);
            let mut message = header.as_bytes().to_vec();
            message.extend(&self.disk[start..end]);
            return vec![message];
        }
        let mut cuts = vec![start, end];
        if !request.flags.contains(CommandFlags::DF) {
            cuts.extend((0..tape.choose(6)).map(|_| start + tape.choose(end - start)));
        }
        cuts.sort_unstable();
        cuts.dedup();
        let mut pieces: Vec<(usize, usize)> = cuts.windows(2).map(|cut| (cut[0], cut[1])).collect();
        for index in (1..pieces.len()).rev() {
            pieces.swap(index, tape.choose(index + 1));
        }
        if failing {
            pieces.truncate(tape.choose(pieces.len() + 1));
        }
        let marked = !failing && tape.choose(2) == 0;
        let last = pieces.len().saturating_sub(1);
        let mut messages = Vec::new();
        for (index, (from, to)) in pieces.into_iter().enumerate() {
            let done = marked && index == last;
            let (offset, length) = (from as u64, (to - from) as u32);
            let data = &self.disk[from..to];
            let is_zero = data.iter().all(|&byte| byte == 0);
            messages.push(if is_zero && tape.choose(2) == 0 {
                let hole = self.writer.hole(request, offset, length, done);
                hole.as_bytes().to_vec()
            } else {
                let header = self.writer.data(request, offset, length, done);
                [header.as_bytes(), data].concat()
            });
        }
        if failing {
            messages.push(self.writer.error(request, Errno::EIO, "on purpose"));
        } else if !marked {
            messages.push(self.writer.finish(request).as_bytes().to_vec());
        }
        messages
    }

    fn status(&self, request: &ServerRequest, tape: &mut Tape) -> Vec<Vec<u8>> {
        assert!(request.contexts.ids().eq(self.contexts.iter().copied()));
        let extents = extents(&self.disk, request.offset, request.length);
        let marked = tape.choose(2) == 0;
        let last = self.contexts.len() - 1;
        let mut messages: Vec<Vec<u8>> = self
            .contexts
            .iter()
            .enumerate()
            .map(|(index, &id)| {
                let done = marked && index == last;
                self.writer.block_status(request, id, &extents, done)
            })
            .collect();
        if !marked {
            messages.push(self.writer.finish(request).as_bytes().to_vec());
        }
        messages
    }
}

/// What is zero in a disk from `offset` on, to the end of the block in which the range ends.
pub(crate) fn extents(disk: &[u8], offset: u64, length: u64) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut at = offset as usize;
    let end = (offset + length) as usize;
    while at < end {
        let next = (at / BLOCK + 1) * BLOCK;
        let is_zero = disk[next - BLOCK..next].iter().all(|&byte| byte == 0);
        let flags = if is_zero {
            Extent::HOLE | Extent::ZERO
        } else {
            0
        };
        let length = (next - at) as u64;
        match extents.last_mut() {
            Some(last) if last.flags == flags => last.length += length,
            _ => extents.push(Extent { length, flags }),
        }
        at = next;
    }
    extents
}

/// The modes of a transmission.
pub(crate) const MODES: [ReplyMode; 3] = [
    ReplyMode::Simple,
    ReplyMode::Structured,
    ReplyMode::Extended,
];
