//! Answers as they should be.

use blockferry_proto::{
    ClientSession, Command, CommandFlags, Errno, Extent, ReplyEvent, ReplyMode, Request,
    RequestHeader,
};

use crate::asked::{Asked, CHUNKED, DONE, ERROR, ERROR_OFFSET, NONE, ask, error_body, negotiated};

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
