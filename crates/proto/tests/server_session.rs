//! A server's session against requests that are fine, wrong and nonsense.

use blockferry_proto::{
    BlockSizes, Command, CommandFlags, Errno, ExportInfo, HandshakeFlags, HandshakeStyle,
    MetaContext, Negotiated, ReplyMode, RequestEvent, RequestLimits, ServerSession,
    TransmissionFlags,
};
use blockferry_proto::{Error, Misbehaviour};

const SIZE: u64 = 1 << 40;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const ZEROES: u16 = 6;
const STATUS: u16 = 7;
const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const REQ_ONE: u16 = 8;
const FAST_ZERO: u16 = 16;
const PAYLOAD_LEN: u16 = 32;

fn negotiated(mode: ReplyMode) -> Negotiated {
    let context = |id, name: &str| MetaContext {
        id,
        name: name.to_owned(),
    };
    Negotiated {
        export_name: String::new(),
        export: ExportInfo {
            name: None,
            description: None,
            size: SIZE,
            flags: TransmissionFlags::all() - TransmissionFlags::READ_ONLY,
            block_sizes: None,
        },
        mode,
        contexts: vec![context(1, "base:allocation"), context(2, "a:depth")],
        tls: false,
        style: HandshakeStyle::FixedNew,
        handshake_flags: HandshakeFlags::all(),
    }
}

fn request(mode: ReplyMode, flags: u16, code: u16, offset: u64, length: u64) -> Vec<u8> {
    let extended = mode == ReplyMode::Extended;
    let magic: u32 = if extended { 0x21e4_1c71 } else { 0x2560_9513 };
    let mut bytes = magic.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(code.to_be_bytes());
    bytes.extend(0x1122_3344_5566_7788_u64.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    if extended {
        bytes.extend(length.to_be_bytes());
    } else {
        bytes.extend((length as u32).to_be_bytes());
    }
    bytes
}

/// What a whole message means, and that it means the same byte by byte.
fn receive(negotiated: &Negotiated, bytes: &[u8]) -> Result<RequestEvent, Error> {
    let mut session = ServerSession::new(negotiated, RequestLimits::default());
    let (taken, event) = session.receive(bytes)?;
    assert_eq!(taken, bytes.len());
    let mut session = ServerSession::new(negotiated, RequestLimits::default());
    let (last, before) = bytes.split_last().unwrap();
    for byte in before {
        assert!(session.needed() > 0);
        assert_eq!(session.receive(&[*byte]), Ok((1, RequestEvent::NeedMore)));
    }
    assert_eq!(session.receive(&[*last]), Ok((1, event)));
    Ok(event)
}

fn ask(mode: ReplyMode, flags: u16, code: u16, offset: u64, length: u64) -> RequestEvent {
    let bytes = request(mode, flags, code, offset, length);
    receive(&negotiated(mode), &bytes).unwrap()
}

fn is_served(event: &RequestEvent) -> bool {
    matches!(event, RequestEvent::Request(_))
}

/// Error and payload of a refusal.
fn refused(event: &RequestEvent) -> Option<(Errno, u64)> {
    match event {
        RequestEvent::Refused { errno, payload, .. } => Some((*errno, *payload)),
        _ => None,
    }
}

const MODES: [ReplyMode; 3] = [
    ReplyMode::Simple,
    ReplyMode::Structured,
    ReplyMode::Extended,
];

/// The flag that a write needs in this mode.
fn framing(mode: ReplyMode) -> u16 {
    if mode == ReplyMode::Extended {
        PAYLOAD_LEN
    } else {
        0
    }
}

#[test]
fn a_request_arrives_as_it_was_sent() {
    for mode in MODES {
        let RequestEvent::Request(request) = ask(mode, framing(mode) | FUA, WRITE, 512, 1024)
        else {
            panic!();
        };
        assert_eq!(request.cookie, 0x1122_3344_5566_7788);
        assert_eq!(request.command, Command::Write);
        assert_eq!(request.flags, CommandFlags::FUA);
        assert_eq!((request.offset, request.length), (512, 1024));
        assert!(request.contexts.is_empty());
    }
}

#[test]
fn only_the_header_is_taken() {
    for mode in MODES {
        let mut session = ServerSession::new(&negotiated(mode), RequestLimits::default());
        let mut bytes = request(mode, framing(mode), WRITE, 0, 4);
        let header = bytes.len();
        assert_eq!(session.needed(), header);
        bytes.extend(b"datamore");
        let (taken, event) = session.receive(&bytes).unwrap();
        assert_eq!(taken, header);
        assert!(is_served(&event));
    }
}

#[test]
fn another_magic_is_misbehaviour() {
    for (mode, other) in [
        (ReplyMode::Simple, ReplyMode::Extended),
        (ReplyMode::Structured, ReplyMode::Extended),
        (ReplyMode::Extended, ReplyMode::Simple),
    ] {
        let bytes = request(other, 0, READ, 0, 512);
        let magic = u32::from_be_bytes(bytes[..4].try_into().unwrap());
        let mut session = ServerSession::new(&negotiated(mode), RequestLimits::default());
        // Four bytes are enough to see it.
        assert_eq!(
            session.receive(&bytes[..4]),
            Err(Misbehaviour::RequestMagic(magic).into())
        );
    }
}

#[test]
fn disconnect_is_what_it_says() {
    for mode in MODES {
        assert_eq!(ask(mode, 0, DISC, 0, 0), RequestEvent::Disconnect);
        assert_eq!(ask(mode, FUA, DISC, 7, 9), RequestEvent::Disconnect);
    }
}

#[test]
fn unknown_commands_and_flags_are_invalid() {
    for mode in MODES {
        for code in [8, 9, 0xffff] {
            let event = ask(mode, 0, code, 0, 512);
            assert_eq!(refused(&event), Some((Errno::EINVAL, 0)));
        }
        for (code, flags) in [
            (READ, 0x40),
            (READ, 0x8000),
            (READ, NO_HOLE),
            (READ, REQ_ONE),
            (TRIM, DF),
            (TRIM, FAST_ZERO),
            (STATUS, NO_HOLE),
        ] {
            let event = ask(mode, flags, code, 0, 512);
            assert_eq!(refused(&event), Some((Errno::EINVAL, 0)), "{code} {flags}");
        }
        for (code, flags) in [
            (READ, FUA | DF),
            (TRIM, FUA),
            (CACHE, FUA),
            (ZEROES, FUA | NO_HOLE | FAST_ZERO),
            (STATUS, FUA | REQ_ONE),
        ] {
            assert!(is_served(&ask(mode, flags, code, 0, 512)), "{code} {flags}");
        }
        assert!(is_served(&ask(mode, FUA, FLUSH, 0, 0)));
    }
}

#[test]
fn what_was_not_offered_is_invalid() {
    for mode in MODES {
        let mut poor = negotiated(mode);
        poor.export.flags = TransmissionFlags::HAS_FLAGS;
        poor.contexts.clear();
        for (code, flags, length) in [
            (READ, FUA, 512),
            (READ, DF, 512),
            (FLUSH, 0, 0),
            (TRIM, 0, 512),
            (CACHE, 0, 512),
            (ZEROES, 0, 512),
            (STATUS, 0, 512),
        ] {
            let bytes = request(mode, flags, code, 0, length);
            let event = receive(&poor, &bytes).unwrap();
            assert_eq!(refused(&event), Some((Errno::EINVAL, 0)), "{code}");
        }
        let bytes = request(mode, framing(mode) | FUA, WRITE, 0, 512);
        let event = receive(&poor, &bytes).unwrap();
        assert_eq!(refused(&event), Some((Errno::EINVAL, 512)));
    }
}

#[test]
fn a_read_only_export_permits_no_writes() {
    for mode in MODES {
        let mut read_only = negotiated(mode);
        read_only.export.flags |= TransmissionFlags::READ_ONLY;
        for (code, payload) in [(WRITE, 512), (TRIM, 0), (ZEROES, 0)] {
            let flags = if code == WRITE { framing(mode) } else { 0 };
            let event = receive(&read_only, &request(mode, flags, code, 0, 512)).unwrap();
            assert_eq!(refused(&event), Some((Errno::EPERM, payload)));
        }
        let event = receive(&read_only, &request(mode, 0, READ, 0, 512)).unwrap();
        assert!(is_served(&event));
    }
}

#[test]
fn past_the_end_a_write_has_no_space_and_the_rest_is_invalid() {
    for mode in MODES {
        for offset in [SIZE - 511, SIZE, u64::MAX - 511, u64::MAX] {
            for (code, errno) in [
                (READ, Errno::EINVAL),
                (WRITE, Errno::ENOSPC),
                (ZEROES, Errno::ENOSPC),
                (TRIM, Errno::EINVAL),
                (CACHE, Errno::EINVAL),
                (STATUS, Errno::EINVAL),
            ] {
                let flags = if code == WRITE { framing(mode) } else { 0 };
                let payload = if code == WRITE { 512 } else { 0 };
                let event = ask(mode, flags, code, offset, 512);
                assert_eq!(refused(&event), Some((errno, payload)), "{code} {offset}");
            }
        }
        assert!(is_served(&ask(mode, 0, READ, SIZE - 512, 512)));
    }
}

#[test]
fn payload_has_a_limit_and_what_is_beyond_is_dropped() {
    for mode in MODES {
        let limit = 64 << 20;
        assert!(is_served(&ask(mode, 0, READ, 0, limit)));
        assert!(is_served(&ask(mode, framing(mode), WRITE, 0, limit)));
        let event = ask(mode, 0, READ, 0, limit + 1);
        assert_eq!(refused(&event), Some((Errno::EINVAL, 0)));
        for length in [limit + 1, 0xffff_ffff] {
            let event = ask(mode, framing(mode), WRITE, 0, length);
            assert_eq!(refused(&event), Some((Errno::EINVAL, length)));
        }
        // What carries no payload has no such limit.
        assert!(is_served(&ask(mode, 0, TRIM, 0, 0xffff_ffff)));
        assert!(is_served(&ask(mode, 0, STATUS, 0, 0xffff_ffff)));
    }
    assert!(is_served(&ask(ReplyMode::Extended, 0, ZEROES, 0, SIZE)));
}

#[test]
fn a_payload_of_more_than_four_gibibytes_is_not_worth_reading() {
    for code in [READ, WRITE, 99] {
        let mode = ReplyMode::Extended;
        for length in [1 << 32, u64::MAX] {
            let bytes = request(mode, PAYLOAD_LEN, code, 0, length);
            let mut session = ServerSession::new(&negotiated(mode), RequestLimits::default());
            assert_eq!(
                session.receive(&bytes),
                Err(Misbehaviour::PayloadTooLong(length).into())
            );
        }
    }
}

#[test]
fn payload_where_none_belongs_is_dropped() {
    for code in [READ, TRIM, ZEROES, CACHE, FLUSH, 99] {
        let event = ask(ReplyMode::Extended, PAYLOAD_LEN, code, 0, 512);
        assert_eq!(refused(&event), Some((Errno::EINVAL, 512)), "{code}");
        // Compact headers know no such flag, and no such payload.
        let event = ask(ReplyMode::Structured, PAYLOAD_LEN, code, 0, 512);
        assert_eq!(refused(&event), Some((Errno::EINVAL, 0)), "{code}");
    }
    let event = ask(ReplyMode::Simple, PAYLOAD_LEN, WRITE, 0, 512);
    assert_eq!(refused(&event), Some((Errno::EINVAL, 512)));
}

#[test]
fn an_extended_write_that_does_not_announce_its_payload_has_one_all_the_same() {
    let mode = ReplyMode::Extended;
    let mut session = ServerSession::new(&negotiated(mode), RequestLimits::default());
    let (_, event) = session.receive(&request(mode, 0, WRITE, 0, 512)).unwrap();
    let RequestEvent::Request(write) = event else {
        panic!("{event:?}")
    };
    assert_eq!((write.command, write.length), (Command::Write, 512));
}

#[test]
fn requests_keep_to_the_minimum_block_size() {
    for mode in MODES {
        let mut with_blocks = negotiated(mode);
        with_blocks.export.block_sizes = BlockSizes::new(4096, 4096, 32 << 20).ok();
        for (offset, length) in [(512, 4096), (0, 512), (1, 4095)] {
            let event = receive(&with_blocks, &request(mode, 0, READ, offset, length)).unwrap();
            assert_eq!(refused(&event), Some((Errno::EINVAL, 0)));
            let bytes = request(mode, framing(mode), WRITE, offset, length);
            let event = receive(&with_blocks, &bytes).unwrap();
            assert_eq!(refused(&event), Some((Errno::EINVAL, length)));
        }
        let event = receive(&with_blocks, &request(mode, 0, READ, 4096, 8192)).unwrap();
        assert!(is_served(&event));
    }
}

#[test]
fn nothing_to_do_is_harmless_except_for_block_status() {
    for mode in MODES {
        for code in [READ, TRIM, ZEROES, CACHE] {
            assert!(is_served(&ask(mode, 0, code, 0, 0)));
        }
        assert!(is_served(&ask(mode, framing(mode), WRITE, SIZE, 0)));
        let event = ask(mode, 0, STATUS, 0, 0);
        assert_eq!(refused(&event), Some((Errno::EINVAL, 0)));
        for (offset, length) in [(512, 0), (0, 512)] {
            let event = ask(mode, 0, FLUSH, offset, length);
            assert_eq!(refused(&event), Some((Errno::EINVAL, 0)));
        }
    }
}

#[test]
fn block_status_reports_every_context_unless_some_are_selected() {
    let mode = ReplyMode::Extended;
    let RequestEvent::Request(all) = ask(mode, 0, STATUS, 0, 1 << 33) else {
        panic!();
    };
    assert!(all.contexts.ids().eq([1, 2]));
    assert_eq!(all.contexts.len(), 2);

    let mut bytes = request(mode, PAYLOAD_LEN | REQ_ONE, STATUS, 4096, 12);
    bytes.extend((1u64 << 33).to_be_bytes());
    bytes.extend(2u32.to_be_bytes());
    let event = receive(&negotiated(mode), &bytes).unwrap();
    let RequestEvent::Request(some) = event else {
        panic!("{event:?}");
    };
    assert_eq!(some.length, 1 << 33);
    assert_eq!(some.flags, CommandFlags::REQ_ONE);
    assert!(some.contexts.ids().eq([2]));
    assert!(!some.contexts.contains(1));
}

#[test]
fn a_selection_of_unknown_or_repeated_contexts_is_refused_once_it_was_read() {
    let mode = ReplyMode::Extended;
    for ids in [&[0][..], &[3], &[1, 1], &[u32::MAX], &[1, 2, 65]] {
        let length = 8 + 4 * ids.len() as u64;
        let mut bytes = request(mode, PAYLOAD_LEN, STATUS, 0, length);
        bytes.extend(4096u64.to_be_bytes());
        bytes.extend(ids.iter().flat_map(|id: &u32| id.to_be_bytes()));
        let event = receive(&negotiated(mode), &bytes).unwrap();
        assert_eq!(refused(&event), Some((Errno::EINVAL, 0)), "{ids:?}");
    }
    // A trailing piece of an id, and a range past the end.
    let mut bytes = request(mode, PAYLOAD_LEN, STATUS, 0, 13);
    bytes.extend([0; 13]);
    let event = receive(&negotiated(mode), &bytes).unwrap();
    assert_eq!(refused(&event), Some((Errno::EINVAL, 0)));
    let mut bytes = request(mode, PAYLOAD_LEN, STATUS, 0, 12);
    bytes.extend((SIZE + 1).to_be_bytes());
    bytes.extend(1u32.to_be_bytes());
    let event = receive(&negotiated(mode), &bytes).unwrap();
    assert_eq!(refused(&event), Some((Errno::EINVAL, 0)));
}

#[test]
fn a_selection_of_an_impossible_length_or_not_offered_is_dropped() {
    let mode = ReplyMode::Extended;
    for length in [0, 8, 11, 265, 1 << 20] {
        let event = ask(mode, PAYLOAD_LEN, STATUS, 0, length);
        assert_eq!(refused(&event), Some((Errno::EINVAL, length)));
    }
    let mut without = negotiated(mode);
    without.export.flags -= TransmissionFlags::BLOCK_STATUS_PAYLOAD;
    let event = receive(&without, &request(mode, PAYLOAD_LEN, STATUS, 0, 12)).unwrap();
    assert_eq!(refused(&event), Some((Errno::EINVAL, 12)));
}
