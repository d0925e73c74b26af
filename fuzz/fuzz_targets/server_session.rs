//! Whatever a client asks, what a server is told to carry out lies in the export and was offered,
//! and what it answers is understood. The same bytes mean the same however they are cut.
#![no_main]

use blockferry_proto::{
    BlockSizes, Command, CommandFlags, ExportInfo, HandshakeFlags, HandshakeStyle, MetaContext,
    Negotiated, ReplyMode, RequestEvent, RequestLimits, ServerRequest, ServerSession,
    TransmissionFlags,
};
use libfuzzer_sys::fuzz_target;

const SIZE: u64 = 1 << 33;
const MAX_PAYLOAD: u32 = 1 << 20;

fn negotiated(choice: u8) -> Negotiated {
    let context = |id| MetaContext {
        id,
        name: format!("x:{id}"),
    };
    Negotiated {
        export_name: String::new(),
        export: ExportInfo {
            name: None,
            description: None,
            size: SIZE,
            flags: if choice & 8 == 0 {
                TransmissionFlags::all() - TransmissionFlags::READ_ONLY
            } else {
                TransmissionFlags::HAS_FLAGS | TransmissionFlags::READ_ONLY
            },
            block_sizes: match choice & 4 {
                0 => None,
                _ => BlockSizes::new(512, 4096, MAX_PAYLOAD).ok(),
            },
        },
        mode: match choice & 3 {
            0 => ReplyMode::Simple,
            1 => ReplyMode::Structured,
            _ => ReplyMode::Extended,
        },
        contexts: vec![context(1), context(2)],
        tls: false,
        style: HandshakeStyle::FixedNew,
        handshake_flags: HandshakeFlags::all(),
    }
}

/// The events of an input, given in pieces of `piece` bytes; payload is skipped.
fn events(negotiated: &Negotiated, input: &[u8], piece: usize) -> (Vec<RequestEvent>, bool) {
    let limits = RequestLimits {
        max_payload: MAX_PAYLOAD,
    };
    let mut session = ServerSession::new(negotiated, limits);
    let mut events = Vec::new();
    let mut skip = 0;
    for chunk in input.chunks(piece) {
        let mut rest = chunk;
        loop {
            let skipped = rest.len().min(skip);
            skip -= skipped;
            rest = &rest[skipped..];
            if skip > 0 {
                break;
            }
            let Ok((taken, event)) = session.receive(rest) else {
                return (events, true);
            };
            rest = &rest[taken..];
            match event {
                RequestEvent::NeedMore => {
                    assert!(rest.is_empty() && session.needed() > 0);
                    break;
                }
                RequestEvent::Disconnect => {
                    events.push(event);
                    return (events, false);
                }
                RequestEvent::Request(request) if request.command == Command::Write => {
                    skip = request.length as usize;
                }
                RequestEvent::Request(_) => {}
                RequestEvent::Refused { payload, errno, .. } => {
                    assert!(payload <= u32::MAX.into() && errno.0 != 0);
                    skip = payload as usize;
                }
            }
            events.push(event);
        }
    }
    (events, false)
}

fn check(negotiated: &Negotiated, request: &ServerRequest) {
    let export = &negotiated.export;
    assert!(
        request
            .offset
            .checked_add(request.length)
            .is_some_and(|end| end <= SIZE)
    );
    assert!(!request.flags.contains(CommandFlags::PAYLOAD_LEN));
    let minimum = u64::from(export.block_sizes.unwrap_or_default().minimum());
    assert_eq!((request.offset | request.length) % minimum, 0);
    match request.command {
        Command::Read => assert!(request.length <= MAX_PAYLOAD.into()),
        Command::Write => {
            assert!(request.length <= MAX_PAYLOAD.into());
            assert!(!export.flags.contains(TransmissionFlags::READ_ONLY));
        }
        Command::BlockStatus => assert!(!request.contexts.is_empty() && request.length > 0),
        Command::Disconnect => panic!("not a request"),
        command => assert!(export.flags.contains(command.requires())),
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&choice, input)) = data.split_first() else {
        return;
    };
    let negotiated = negotiated(choice);
    let whole = events(&negotiated, input, input.len().max(1));
    for event in &whole.0 {
        if let RequestEvent::Request(request) = event {
            check(&negotiated, request);
        }
    }
    let piece = usize::from(choice >> 4) + 1;
    assert_eq!(events(&negotiated, input, piece), whole);
});
