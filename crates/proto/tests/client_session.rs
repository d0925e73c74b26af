//! A client's session against servers that answer rightly, wrongly and not at all.

use blockferry_proto::error::{Error, Misbehaviour, Misuse};
use blockferry_proto::{
    BlockSizes, ClientSession, Command, CommandFlags, Cookie, Errno, ExportInfo, Extent,
    HandshakeFlags, HandshakeStyle, MetaContext, Negotiated, ReplyEvent, ReplyMode, Request,
    RequestHeader, ServerError, TransmissionFlags, limits,
};

const DONE: u16 = 1;
const NONE: u16 = 0;
const DATA: u16 = 1;
const HOLE: u16 = 2;
const STATUS: u16 = 5;
const STATUS_EXT: u16 = 6;
const ERROR: u16 = 0x8001;
const ERROR_OFFSET: u16 = 0x8002;

fn negotiated(mode: ReplyMode) -> Negotiated {
    let context = |id, name: &str| MetaContext {
        id,
        name: name.to_owned(),
    };
    Negotiated {
        export_name: "disk".to_owned(),
        export: ExportInfo {
            name: None,
            description: None,
            size: 1 << 40,
            flags: TransmissionFlags::all() - TransmissionFlags::READ_ONLY,
            block_sizes: None,
        },
        mode,
        contexts: vec![context(1, "base:allocation"), context(40, "a:depth")],
        tls: false,
        style: HandshakeStyle::FixedNew,
        handshake_flags: HandshakeFlags::all(),
    }
}

/// A session with one request in flight.
struct Asked {
    session: ClientSession,
    cookie: Cookie,
    request: Request,
}

fn ask_with(mode: ReplyMode, command: Command, flags: CommandFlags) -> Asked {
    let mut session = ClientSession::new(&negotiated(mode));
    let request = Request {
        command,
        flags,
        offset: if command == Command::Flush { 0 } else { 1000 },
        length: if command == Command::Flush { 0 } else { 100 },
    };
    let cookie = session.submit(request, &mut RequestHeader::new()).unwrap();
    Asked {
        session,
        cookie,
        request,
    }
}

fn ask(mode: ReplyMode, command: Command) -> Asked {
    ask_with(mode, command, CommandFlags::empty())
}

impl Asked {
    fn simple(&self, errno: u32) -> Vec<u8> {
        simple(self.cookie, errno)
    }

    fn chunk(&self, kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let length = body.len() as u64;
        let mut bytes = self.head(kind, flags, length);
        bytes.extend(body);
        bytes
    }

    fn head(&self, kind: u16, flags: u16, length: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        let extended = self.session.negotiated().mode == ReplyMode::Extended;
        let magic: u32 = if extended { 0x6e8a_278c } else { 0x668e_33ef };
        bytes.extend(magic.to_be_bytes());
        bytes.extend(flags.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(self.cookie.0.to_be_bytes());
        if extended {
            bytes.extend(self.request.offset.to_be_bytes());
            bytes.extend(length.to_be_bytes());
        } else {
            bytes.extend((length as u32).to_be_bytes());
        }
        bytes
    }

    /// The start of a data chunk, up to its payload.
    fn data(&self, flags: u16, offset: u64, length: u64) -> Vec<u8> {
        let mut bytes = self.head(DATA, flags, length + 8);
        bytes.extend(offset.to_be_bytes());
        bytes
    }

    fn hole(&self, flags: u16, offset: u64, length: u32) -> Vec<u8> {
        let mut body = offset.to_be_bytes().to_vec();
        body.extend(length.to_be_bytes());
        self.chunk(HOLE, flags, &body)
    }

    fn status(&self, flags: u16, context: u32, extents: &[(u64, u64)]) -> Vec<u8> {
        let mut body = context.to_be_bytes().to_vec();
        if self.session.negotiated().mode == ReplyMode::Extended {
            body.extend((extents.len() as u32).to_be_bytes());
            for (length, status) in extents {
                body.extend(length.to_be_bytes());
                body.extend(status.to_be_bytes());
            }
            self.chunk(STATUS_EXT, flags, &body)
        } else {
            for (length, status) in extents {
                body.extend((*length as u32).to_be_bytes());
                body.extend((*status as u32).to_be_bytes());
            }
            self.chunk(STATUS, flags, &body)
        }
    }

    /// What all of these bytes mean, payloads left out.
    fn events(&mut self, bytes: &[u8]) -> Result<Vec<ReplyEvent>, Error> {
        let mut events = Vec::new();
        let mut rest = bytes;
        loop {
            let (taken, event) = self.session.receive(rest)?;
            rest = &rest[taken..];
            if event == ReplyEvent::NeedMore {
                assert!(rest.is_empty());
                return Ok(events);
            }
            events.push(event);
        }
    }

    fn misbehaves(&mut self, bytes: &[u8]) -> Misbehaviour {
        match self.events(bytes) {
            Err(Error::Misbehaved(misbehaviour)) => misbehaviour,
            other => panic!("{other:?}"),
        }
    }

    fn done(&self) -> ReplyEvent {
        ReplyEvent::Done {
            cookie: self.cookie,
            result: Ok(()),
        }
    }

    fn failed(&self, errno: Errno, message: Option<&str>, offset: Option<u64>) -> ReplyEvent {
        ReplyEvent::Done {
            cookie: self.cookie,
            result: Err(ServerError {
                errno,
                message: message.map(str::to_owned),
                offset,
            }),
        }
    }

    fn payload(&self, offset: u64, length: u64) -> ReplyEvent {
        ReplyEvent::Payload {
            cookie: self.cookie,
            offset,
            length,
        }
    }
}

fn simple(cookie: Cookie, errno: u32) -> Vec<u8> {
    let mut bytes = 0x6744_6698_u32.to_be_bytes().to_vec();
    bytes.extend(errno.to_be_bytes());
    bytes.extend(cookie.0.to_be_bytes());
    bytes
}

fn error_body(errno: u32, message: &[u8], offset: Option<u64>) -> Vec<u8> {
    let mut body = errno.to_be_bytes().to_vec();
    body.extend((message.len() as u16).to_be_bytes());
    body.extend(message);
    body.extend(offset.map(u64::to_be_bytes).into_iter().flatten());
    body
}

const CHUNKED: [ReplyMode; 2] = [ReplyMode::Structured, ReplyMode::Extended];

#[test]
fn headers_look_as_the_specification_says() {
    let request = Request {
        command: Command::Write,
        flags: CommandFlags::FUA,
        offset: 0x0102,
        length: 0x0304,
    };
    let mut header = RequestHeader::new();
    let mut session = ClientSession::new(&negotiated(ReplyMode::Simple));
    let cookie = session.submit(request, &mut header).unwrap();
    let mut expected = vec![0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1];
    expected.extend(cookie.0.to_be_bytes());
    expected.extend([0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 3, 4]);
    assert_eq!(header.as_bytes(), expected);

    let mut session = ClientSession::new(&negotiated(ReplyMode::Extended));
    let cookie = session.submit(request, &mut header).unwrap();
    // FUA, and PAYLOAD_LEN because the payload follows.
    let mut expected = vec![0x21, 0xe4, 0x1c, 0x71, 0, 0x21, 0, 1];
    expected.extend(cookie.0.to_be_bytes());
    expected.extend([0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 3, 4]);
    assert_eq!(header.as_bytes(), expected);

    session.disconnect(&mut header);
    assert_eq!(header.as_bytes().len(), 32);
    assert_eq!(header.as_bytes()[4..8], [0, 0, 0, 2]);
    assert_eq!(session.in_flight(), 1);
}

#[test]
fn a_simple_read_is_its_payload_and_then_done() {
    let mut asked = ask(ReplyMode::Simple, Command::Read);
    assert_eq!(asked.session.needed(), 16);
    assert_eq!(asked.session.predicted_header_len(), 16);
    assert_eq!(asked.session.predicted_read(), Some((asked.cookie, 0, 100)));
    let reply = asked.simple(0);
    assert_eq!(
        asked.session.receive(&reply),
        Ok((16, asked.payload(0, 100)))
    );
    assert_eq!(asked.session.predicted_read(), None);
    assert_eq!(asked.session.needed(), 0);
    // What follows the payload is of no interest to the end of this reply.
    assert_eq!(asked.session.receive(b"more"), Ok((0, asked.done())));
    assert_eq!(asked.session.in_flight(), 0);
    assert_eq!(asked.session.needed(), 16);
}

#[test]
fn errors_end_simple_replies_without_payload() {
    for command in [Command::Read, Command::Write, Command::Flush] {
        let mut asked = ask(ReplyMode::Simple, command);
        let reply = asked.simple(28);
        let expected = [asked.failed(Errno::ENOSPC, None, None)];
        assert_eq!(asked.events(&reply).unwrap(), expected);
    }
}

#[test]
fn chunks_may_come_in_any_order() {
    for mode in CHUNKED {
        let mut asked = ask(mode, Command::Read);
        let mut bytes = asked.data(0, 1060, 40);
        bytes.extend(asked.hole(0, 1020, 40));
        bytes.extend(asked.data(DONE, 1000, 20));
        let expected = [
            asked.payload(60, 40),
            ReplyEvent::Hole {
                cookie: asked.cookie,
                offset: 20,
                length: 40,
            },
            asked.payload(0, 20),
            asked.done(),
        ];
        assert_eq!(asked.events(&bytes).unwrap(), expected);
    }
}

#[test]
fn a_reply_may_end_with_an_empty_chunk() {
    for mode in CHUNKED {
        for command in [Command::Read, Command::Write, Command::Trim] {
            let mut asked = ask(mode, command);
            let mut bytes = Vec::new();
            if command == Command::Read {
                bytes.extend(asked.data(0, 1000, 100));
            }
            bytes.extend(asked.chunk(NONE, DONE, b""));
            assert_eq!(asked.events(&bytes).unwrap().last(), Some(&asked.done()));
        }
    }
}

#[test]
fn a_simple_reply_is_fine_under_structured_replies_where_nothing_is_to_be_said() {
    let mut asked = ask(ReplyMode::Structured, Command::Write);
    let reply = asked.simple(0);
    assert_eq!(asked.events(&reply).unwrap(), [asked.done()]);
    let mut asked = ask(ReplyMode::Structured, Command::BlockStatus);
    let reply = asked.simple(5);
    let expected = [asked.failed(Errno::EIO, None, None)];
    assert_eq!(asked.events(&reply).unwrap(), expected);
}

#[test]
fn an_error_in_the_middle_of_a_reply_is_its_result() {
    for mode in CHUNKED {
        let mut asked = ask(mode, Command::Read);
        let mut bytes = asked.data(0, 1000, 20);
        let body = error_body(5, b"bad \xffsector", Some(1030));
        bytes.extend(asked.chunk(ERROR_OFFSET, 0, &body));
        let body = error_body(12, b"", None);
        bytes.extend(asked.chunk(ERROR, DONE, &body));
        let expected = [
            asked.payload(0, 20),
            asked.failed(Errno::EIO, Some("bad \u{fffd}sector"), Some(1030)),
        ];
        assert_eq!(asked.events(&bytes).unwrap(), expected);
    }
}

#[test]
fn an_error_of_an_unknown_type_is_still_an_error() {
    let mut asked = ask(ReplyMode::Structured, Command::Write);
    let mut body = error_body(22, b"odd", None);
    body.extend(b"what a later version adds");
    let reply = asked.chunk(0x8123, DONE, &body);
    let expected = [asked.failed(Errno::EINVAL, Some("odd"), None)];
    assert_eq!(asked.events(&reply).unwrap(), expected);
}

#[test]
fn every_context_reports_once() {
    for mode in CHUNKED {
        let mut asked = ask(mode, Command::BlockStatus);
        let mut bytes = asked.status(0, 40, &[(100, 3)]);
        bytes.extend(asked.status(DONE, 1, &[(60, 0), (30, 1), (500, 3)]));
        let extent = |length, flags| Extent { length, flags };
        let expected = [
            ReplyEvent::Extents {
                cookie: asked.cookie,
                context: 40,
                extents: vec![extent(100, 3)],
            },
            ReplyEvent::Extents {
                cookie: asked.cookie,
                context: 1,
                // What lies behind the request is cut off.
                extents: vec![extent(60, 0), extent(30, 1), extent(10, 3)],
            },
            asked.done(),
        ];
        assert_eq!(asked.events(&bytes).unwrap(), expected);
    }
}

#[test]
fn sixty_four_bits_of_length_and_status_arrive_under_extended_headers() {
    let mut asked = ask(ReplyMode::Extended, Command::BlockStatus);
    let bytes = asked.status(0, 1, &[(u64::MAX, u64::MAX)]);
    let extents = vec![Extent {
        length: 100,
        flags: u64::MAX,
    }];
    let expected = [ReplyEvent::Extents {
        cookie: asked.cookie,
        context: 1,
        extents,
    }];
    assert_eq!(asked.events(&bytes).unwrap(), expected);
}

#[test]
fn the_oldest_read_is_predicted_first() {
    let mut session = ClientSession::new(&negotiated(ReplyMode::Structured));
    let mut header = RequestHeader::new();
    let mut submit = |command, length| {
        let request = Request {
            command,
            flags: CommandFlags::empty(),
            offset: 0,
            length,
        };
        session.submit(request, &mut header).unwrap()
    };
    let first = submit(Command::Read, 512);
    submit(Command::Write, 512);
    let second = submit(Command::Read, 1024);
    assert_eq!(session.predicted_read(), Some((first, 0, 512)));
    assert_eq!(session.nth_predicted_read(1), Some((second, 0, 1024)));
    assert_eq!(session.nth_predicted_read(2), None);

    let mut asked = Asked {
        session,
        cookie: second,
        request: Request {
            command: Command::Read,
            flags: CommandFlags::empty(),
            offset: 0,
            length: 1024,
        },
    };
    // The middle of the second read: what is missing first is its start.
    let bytes = asked.data(0, 256, 256);
    assert_eq!(asked.events(&bytes).unwrap(), [asked.payload(256, 256)]);
    assert_eq!(asked.session.nth_predicted_read(1), Some((second, 0, 256)));
    let mut bytes = asked.data(0, 0, 256);
    bytes.extend(asked.data(DONE, 512, 512));
    assert_eq!(asked.events(&bytes).unwrap().len(), 3);
    assert_eq!(asked.session.predicted_read(), Some((first, 0, 512)));
    assert_eq!(asked.session.nth_predicted_read(1), None);
}

#[test]
fn a_reply_of_another_mode_or_none_is_misbehaviour() {
    for (mode, magics) in [
        (ReplyMode::Simple, [0x668e_33ef, 0x6e8a_278c]),
        (ReplyMode::Structured, [0x6e8a_278c, 0x2560_9513]),
        (ReplyMode::Extended, [0x6744_6698, 0x668e_33ef]),
    ] {
        for magic in magics {
            let mut asked = ask(mode, Command::Read);
            // Four bytes are enough to see it.
            let bytes = u32::to_be_bytes(magic);
            assert_eq!(
                asked.misbehaves(&bytes),
                Misbehaviour::ReplyMagic { magic, mode }
            );
        }
    }
}

#[test]
fn a_cookie_that_is_not_in_flight_is_misbehaviour() {
    let mut asked = ask(ReplyMode::Simple, Command::Write);
    let reply = asked.simple(0);
    assert_eq!(asked.events(&reply).unwrap(), [asked.done()]);
    // The same again: the slot is free, and then it is another request's.
    assert_eq!(
        asked.misbehaves(&reply),
        Misbehaviour::UnknownCookie(asked.cookie.0)
    );
    let mut asked = ask(ReplyMode::Simple, Command::Write);
    for cookie in [
        0,
        1,
        u64::MAX,
        asked.cookie.0 ^ (1 << 32),
        asked.cookie.0 + 1,
    ] {
        assert_eq!(
            asked.misbehaves(&simple(Cookie(cookie), 0)),
            Misbehaviour::UnknownCookie(cookie)
        );
        asked = ask(ReplyMode::Simple, Command::Write);
    }
}

#[test]
fn reads_and_reports_need_chunks_once_those_are_negotiated() {
    for command in [Command::Read, Command::BlockStatus] {
        let mut asked = ask(ReplyMode::Structured, command);
        let reply = asked.simple(0);
        assert_eq!(asked.misbehaves(&reply), Misbehaviour::SimpleReply(command));
    }
    let mut asked = ask(ReplyMode::Structured, Command::Read);
    let reply = asked.simple(5);
    assert_eq!(
        asked.misbehaves(&reply),
        Misbehaviour::SimpleReply(Command::Read)
    );
}

#[test]
fn an_extended_reply_repeats_the_offset_of_its_request() {
    let mut asked = ask(ReplyMode::Extended, Command::Write);
    asked.request.offset = 999;
    let reply = asked.chunk(NONE, DONE, b"");
    assert_eq!(
        asked.misbehaves(&reply),
        Misbehaviour::ReplyOffset {
            expected: 1000,
            actual: 999
        }
    );
}

#[test]
fn chunk_types_must_be_known_and_fit_the_mode_and_the_command() {
    for (mode, command, kind, expected) in [
        (
            ReplyMode::Structured,
            Command::Read,
            7,
            Misbehaviour::ChunkType { kind: 7 },
        ),
        (
            ReplyMode::Structured,
            Command::BlockStatus,
            STATUS_EXT,
            Misbehaviour::ChunkType { kind: STATUS_EXT },
        ),
        (
            ReplyMode::Extended,
            Command::BlockStatus,
            STATUS,
            Misbehaviour::ChunkType { kind: STATUS },
        ),
        (
            ReplyMode::Structured,
            Command::Write,
            DATA,
            Misbehaviour::ChunkForCommand {
                kind: DATA,
                command: Command::Write,
            },
        ),
        (
            ReplyMode::Structured,
            Command::BlockStatus,
            HOLE,
            Misbehaviour::ChunkForCommand {
                kind: HOLE,
                command: Command::BlockStatus,
            },
        ),
        (
            ReplyMode::Extended,
            Command::Read,
            STATUS_EXT,
            Misbehaviour::ChunkForCommand {
                kind: STATUS_EXT,
                command: Command::Read,
            },
        ),
    ] {
        let mut asked = ask(mode, command);
        let reply = asked.chunk(kind, DONE, &[0; 12]);
        assert_eq!(asked.misbehaves(&reply), expected);
    }
}

#[test]
fn chunk_lengths_are_checked_before_anything_is_read() {
    let status = Command::BlockStatus;
    for (mode, command, kind, length) in [
        (ReplyMode::Structured, Command::Write, NONE, 1),
        (ReplyMode::Structured, Command::Read, DATA, 0),
        (ReplyMode::Structured, Command::Read, DATA, 8),
        (ReplyMode::Structured, Command::Read, DATA, 109),
        (ReplyMode::Structured, Command::Read, DATA, 0xffff_ffff),
        (ReplyMode::Extended, Command::Read, DATA, u64::MAX),
        (ReplyMode::Structured, Command::Read, HOLE, 11),
        (ReplyMode::Structured, Command::Read, HOLE, 13),
        (ReplyMode::Structured, status, STATUS, 4),
        (ReplyMode::Structured, status, STATUS, 13),
        (
            ReplyMode::Structured,
            status,
            STATUS,
            4 + 8 * (limits::EXTENTS as u64 + 1),
        ),
        (ReplyMode::Extended, status, STATUS_EXT, 8),
        (ReplyMode::Extended, status, STATUS_EXT, 8 + 17),
        (ReplyMode::Extended, status, STATUS_EXT, u64::MAX - 7),
        (ReplyMode::Structured, Command::Read, ERROR, 5),
        (ReplyMode::Structured, Command::Read, ERROR, 6 + 4097),
        (ReplyMode::Structured, Command::Read, ERROR_OFFSET, 13),
        (ReplyMode::Extended, Command::Read, 0xffff, 1 << 40),
    ] {
        let mut asked = ask(mode, command);
        let head = asked.head(kind, DONE, length);
        assert_eq!(
            asked.misbehaves(&head),
            Misbehaviour::ChunkLength { kind, length },
            "{mode:?} {command}"
        );
    }
}

#[test]
fn the_inside_of_a_chunk_must_fit_its_length() {
    // The message of an error is longer than the chunk, or shorter.
    for body in [&b"\0\0\0\x05\0\x04abc"[..], b"\0\0\0\x05\0\x01abc"] {
        let mut asked = ask(ReplyMode::Structured, Command::Read);
        let reply = asked.chunk(ERROR, DONE, body);
        assert!(matches!(
            asked.misbehaves(&reply),
            Misbehaviour::ChunkLength { kind: ERROR, .. }
        ));
    }
    // The number of extents is not that of the header.
    let mut asked = ask(ReplyMode::Extended, Command::BlockStatus);
    let mut body = vec![0, 0, 0, 1, 0, 0, 0, 2];
    body.extend([1; 16]);
    let reply = asked.chunk(STATUS_EXT, DONE, &body);
    assert!(matches!(
        asked.misbehaves(&reply),
        Misbehaviour::ChunkLength {
            kind: STATUS_EXT,
            ..
        }
    ));
}

#[test]
fn an_empty_chunk_must_be_the_last() {
    let mut asked = ask(ReplyMode::Structured, Command::Write);
    let reply = asked.chunk(NONE, 0, b"");
    assert_eq!(asked.misbehaves(&reply), Misbehaviour::EmptyChunkNotLast);
}

#[test]
fn data_and_holes_must_lie_in_the_request() {
    for (offset, length) in [
        (999, 2),
        (0, 1),
        (1100, 1),
        (1099, 2),
        (u64::MAX, 1),
        (u64::MAX - 1, 100),
    ] {
        let outside = Misbehaviour::ChunkOutside { offset, length };
        let mut asked = ask(ReplyMode::Structured, Command::Read);
        let reply = asked.data(0, offset, length);
        assert_eq!(asked.misbehaves(&reply), outside);
        let mut asked = ask(ReplyMode::Extended, Command::Read);
        let reply = asked.hole(0, offset, length as u32);
        assert_eq!(asked.misbehaves(&reply), outside);
    }
    for length in [0, 101, u32::MAX] {
        let mut asked = ask(ReplyMode::Structured, Command::Read);
        let reply = asked.hole(0, 1000, length);
        assert!(matches!(
            asked.misbehaves(&reply),
            Misbehaviour::ChunkOutside { .. }
        ));
    }
}

#[test]
fn no_byte_may_come_twice() {
    for mode in CHUNKED {
        let mut asked = ask(mode, Command::Read);
        let mut bytes = asked.data(0, 1000, 60);
        bytes.extend(asked.hole(DONE, 1059, 41));
        assert_eq!(
            asked.misbehaves(&bytes),
            Misbehaviour::ChunkOverlap { offset: 1059 }
        );
    }
}

#[test]
fn a_read_that_succeeds_has_all_its_bytes() {
    for mode in CHUNKED {
        let mut asked = ask(mode, Command::Read);
        let mut bytes = asked.data(0, 1000, 40);
        bytes.extend(asked.data(DONE, 1041, 59));
        assert_eq!(
            asked.misbehaves(&bytes),
            Misbehaviour::IncompleteRead {
                length: 100,
                covered: 99
            }
        );
        let mut asked = ask(mode, Command::Read);
        let reply = asked.chunk(NONE, DONE, b"");
        assert_eq!(
            asked.misbehaves(&reply),
            Misbehaviour::IncompleteRead {
                length: 100,
                covered: 0
            }
        );
    }
}

#[test]
fn a_read_in_thousands_of_pieces_is_misbehaviour() {
    let mut session = ClientSession::new(&negotiated(ReplyMode::Structured));
    let request = Request {
        command: Command::Read,
        flags: CommandFlags::empty(),
        offset: 0,
        length: 1 << 20,
    };
    let cookie = session.submit(request, &mut RequestHeader::new()).unwrap();
    let mut asked = Asked {
        session,
        cookie,
        request,
    };
    let pieces = (0..=limits::FRAGMENTS as u64).map(|n| asked.hole(0, 2 * n + 1, 1));
    let bytes = pieces.collect::<Vec<_>>().concat();
    assert_eq!(
        asked.misbehaves(&bytes),
        Misbehaviour::TooManyFragments(limits::FRAGMENTS)
    );
}

#[test]
fn a_read_that_must_not_be_fragmented_comes_in_one_chunk() {
    let mut asked = ask_with(ReplyMode::Structured, Command::Read, CommandFlags::DF);
    let mut bytes = asked.data(0, 1000, 40);
    bytes.extend(asked.data(DONE, 1040, 60));
    assert_eq!(asked.misbehaves(&bytes), Misbehaviour::Fragmented);
}

#[test]
fn errors_have_a_number_and_lie_in_the_request() {
    let mut asked = ask(ReplyMode::Structured, Command::Read);
    let reply = asked.chunk(ERROR, DONE, &error_body(0, b"fine", None));
    assert_eq!(asked.misbehaves(&reply), Misbehaviour::ErrorWithoutNumber);
    for offset in [999, 1100, u64::MAX] {
        let mut asked = ask(ReplyMode::Structured, Command::Read);
        let body = error_body(5, b"", Some(offset));
        let reply = asked.chunk(ERROR_OFFSET, DONE, &body);
        assert_eq!(
            asked.misbehaves(&reply),
            Misbehaviour::ChunkOutside { offset, length: 0 }
        );
    }
}

#[test]
fn block_status_is_of_negotiated_contexts_each_once() {
    for mode in CHUNKED {
        let mut asked = ask(mode, Command::BlockStatus);
        let reply = asked.status(DONE, 2, &[(100, 0)]);
        assert_eq!(asked.misbehaves(&reply), Misbehaviour::UnknownContext(2));

        let mut asked = ask(mode, Command::BlockStatus);
        let mut bytes = asked.status(0, 1, &[(100, 0)]);
        bytes.extend(asked.status(DONE, 1, &[(100, 0)]));
        assert_eq!(asked.misbehaves(&bytes), Misbehaviour::DuplicateStatus(1));

        let mut asked = ask(mode, Command::BlockStatus);
        let reply = asked.status(DONE, 1, &[(100, 0)]);
        assert_eq!(asked.misbehaves(&reply), Misbehaviour::MissingStatus(40));
    }
}

#[test]
fn extents_are_not_empty_and_begin_in_the_request() {
    for mode in CHUNKED {
        let mut asked = ask(mode, Command::BlockStatus);
        let reply = asked.status(0, 1, &[(50, 0), (0, 1)]);
        assert_eq!(asked.misbehaves(&reply), Misbehaviour::EmptyExtent);

        let mut asked = ask(mode, Command::BlockStatus);
        let reply = asked.status(0, 1, &[(100, 0), (1, 1)]);
        assert_eq!(asked.misbehaves(&reply), Misbehaviour::ExtentOutside(100));

        let mut asked = ask_with(mode, Command::BlockStatus, CommandFlags::REQ_ONE);
        let reply = asked.status(0, 1, &[(50, 0), (50, 1)]);
        assert_eq!(asked.misbehaves(&reply), Misbehaviour::TooManyExtents(2));
    }
    let mut asked = ask(ReplyMode::Extended, Command::BlockStatus);
    let reply = asked.status(0, 1, &[(u64::MAX, 0), (u64::MAX, 1)]);
    assert_eq!(asked.misbehaves(&reply), Misbehaviour::ExtentOutside(100));
}

fn misuse(negotiated: &Negotiated, request: Request) -> Misuse {
    let mut session = ClientSession::new(negotiated);
    let result = session.submit(request, &mut RequestHeader::new());
    assert_eq!(session.in_flight(), 0);
    match result {
        Err(Error::Misuse(misuse)) => misuse,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_was_not_offered_is_misuse() {
    let request = |command, flags| Request {
        command,
        flags,
        offset: 0,
        length: 512,
    };
    let mut poor = negotiated(ReplyMode::Simple);
    poor.export.flags = TransmissionFlags::HAS_FLAGS;
    for command in [
        Command::Flush,
        Command::Trim,
        Command::Cache,
        Command::WriteZeroes,
        Command::BlockStatus,
    ] {
        assert_eq!(
            misuse(&poor, request(command, CommandFlags::empty())),
            Misuse::NotOffered(command)
        );
    }
    for (command, flags) in [
        (Command::Write, CommandFlags::FUA),
        (Command::Read, CommandFlags::DF),
        (Command::Write, CommandFlags::PAYLOAD_LEN),
        (Command::Write, CommandFlags::NO_HOLE),
        (Command::Write, CommandFlags::REQ_ONE),
        (Command::Read, CommandFlags::from_bits_retain(0x8000)),
    ] {
        assert_eq!(
            misuse(&poor, request(command, flags)),
            Misuse::Flags { command, flags }
        );
    }
    poor.export.flags |= TransmissionFlags::READ_ONLY;
    assert_eq!(
        misuse(&poor, request(Command::Write, CommandFlags::empty())),
        Misuse::ReadOnly
    );
    assert_eq!(
        misuse(&poor, request(Command::Disconnect, CommandFlags::empty())),
        Misuse::NotARequest(Command::Disconnect)
    );
}

#[test]
fn ranges_are_bounded_aligned_and_not_empty() {
    let mut with_blocks = negotiated(ReplyMode::Structured);
    with_blocks.export.block_sizes = BlockSizes::new(512, 4096, 1 << 20).ok();
    let request = |command, offset, length| Request {
        command,
        flags: CommandFlags::empty(),
        offset,
        length,
    };
    let size = with_blocks.export.size;
    for (offset, length) in [(size, 512), (size - 512, 1024), (u64::MAX - 511, 512)] {
        assert_eq!(
            misuse(&with_blocks, request(Command::Read, offset, length)),
            Misuse::OutOfBounds {
                offset,
                length,
                size
            }
        );
    }
    for (offset, length) in [(1, 512), (512, 100)] {
        assert_eq!(
            misuse(&with_blocks, request(Command::Trim, offset, length)),
            Misuse::Unaligned {
                offset,
                length,
                minimum: 512
            }
        );
    }
    assert_eq!(
        misuse(&with_blocks, request(Command::Read, 0, 0)),
        Misuse::Empty(Command::Read)
    );
    assert_eq!(
        misuse(&with_blocks, request(Command::Flush, 0, 512)),
        Misuse::FlushWithRange
    );
    assert_eq!(
        misuse(&with_blocks, request(Command::Write, 0, (1 << 20) + 512)),
        Misuse::TooLong {
            command: Command::Write,
            length: (1 << 20) + 512,
            limit: 1 << 20
        }
    );
    assert_eq!(
        misuse(&with_blocks, request(Command::Trim, 0, 1 << 32)),
        Misuse::TooLong {
            command: Command::Trim,
            length: 1 << 32,
            limit: 0xffff_fe00
        }
    );
    assert_eq!(
        misuse(&with_blocks, request(Command::Cache, 0, 2 << 20)),
        Misuse::TooLong {
            command: Command::Cache,
            length: 2 << 20,
            limit: 1 << 20
        }
    );
    with_blocks.mode = ReplyMode::Extended;
    let mut session = ClientSession::new(&with_blocks);
    let whole = request(Command::Trim, 0, size);
    assert!(session.submit(whole, &mut RequestHeader::new()).is_ok());
}

#[test]
fn no_advertised_limit_means_thirty_two_mebibytes() {
    let mut unlimited = negotiated(ReplyMode::Simple);
    assert_eq!(ClientSession::new(&unlimited).max_payload(), 32 << 20);
    unlimited.export.block_sizes = BlockSizes::new(1, 4096, u32::MAX).ok();
    assert_eq!(ClientSession::new(&unlimited).max_payload(), 32 << 20);
    unlimited.export.block_sizes = BlockSizes::new(1, 4096, 64 << 20).ok();
    assert_eq!(ClientSession::new(&unlimited).max_payload(), 64 << 20);
}

#[test]
fn the_requests_in_flight_are_bounded_and_known() {
    let mut session = ClientSession::new(&negotiated(ReplyMode::Simple));
    let mut header = RequestHeader::new();
    let request = Request {
        command: Command::Write,
        flags: CommandFlags::empty(),
        offset: 0,
        length: 1,
    };
    for _ in 0..limits::IN_FLIGHT {
        session.submit(request, &mut header).unwrap();
    }
    assert_eq!(
        session.submit(request, &mut header),
        Err(Misuse::TooManyInFlight(limits::IN_FLIGHT).into())
    );
    assert_eq!(session.requests().count(), limits::IN_FLIGHT);
    let (cookie, _) = session.requests().next().unwrap();
    assert_eq!(session.request(cookie), Some(&request));
    session.receive(&simple(cookie, 0)).unwrap();
    assert_eq!(session.request(cookie), None);
    assert!(session.submit(request, &mut header).is_ok());
}

#[test]
fn a_read_buffer_of_one_connection_is_never_confused_by_cut_headers() {
    for mode in CHUNKED {
        let mut asked = ask(mode, Command::BlockStatus);
        let mut bytes = asked.status(0, 40, &[(50, 3), (50, 0)]);
        bytes.extend(asked.status(DONE, 1, &[(100, 0)]));
        let whole = asked.events(&bytes).unwrap();
        let mut asked = ask(mode, Command::BlockStatus);
        let mut events = Vec::new();
        for byte in bytes {
            assert!(asked.session.needed() > 0);
            events.extend(asked.events(&[byte]).unwrap());
        }
        assert_eq!(events, whole);
    }
}
