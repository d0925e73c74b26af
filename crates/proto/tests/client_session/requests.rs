//! Requests that must not be made, and how many may be in flight.

use blockferry_proto::{
    BlockSizes, ClientSession, Command, CommandFlags, Error, Misuse, Negotiated, ReplyMode,
    Request, RequestHeader, TransmissionFlags, limits,
};

use crate::asked::{CHUNKED, DONE, ask, negotiated, simple};

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
