//! Answers as they must not be.

use blockferry_proto::{
    ClientSession, Command, CommandFlags, Cookie, Misbehaviour, ReplyMode, Request, RequestHeader,
    limits,
};

use crate::asked::{
    Asked, CHUNKED, DATA, DONE, ERROR, ERROR_OFFSET, HOLE, NONE, STATUS, STATUS_EXT, ask, ask_with,
    error_body, negotiated, simple,
};

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
