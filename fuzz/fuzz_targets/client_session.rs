//! Whatever a server answers, a client never lets data land outside a buffer, never shows a byte
//! that did not come, and notices what does not belong.
//!
//! The input is a program: requests to submit, and pieces of replies, some of them with the cookie
//! of a request in flight patched in, so that the interesting states are reached.
#![no_main]

use blockferry_proto::{
    ClientSession, Command, CommandFlags, Cookie, ExportInfo, HandshakeFlags, HandshakeStyle,
    MetaContext, Negotiated, ReplyEvent, ReplyMode, Request, RequestHeader, TransmissionFlags,
};
use libfuzzer_sys::fuzz_target;

const SIZE: u64 = 4096;

fn negotiated(mode: ReplyMode) -> Negotiated {
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
        contexts: vec![MetaContext {
            id: 1,
            name: "base:allocation".to_owned(),
        }],
        tls: false,
        style: HandshakeStyle::FixedNew,
        handshake_flags: HandshakeFlags::all(),
    }
}

/// What a driver would keep for a request: which bytes of its buffer were written.
struct Buffer {
    cookie: Cookie,
    written: Vec<bool>,
}

fn take<'a>(input: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (head, tail) = input.split_at_checked(count)?;
    *input = tail;
    Some(head)
}

fn run(mut input: &[u8]) -> Option<()> {
    let mode = match take(&mut input, 1)?[0] % 3 {
        0 => ReplyMode::Simple,
        1 => ReplyMode::Structured,
        _ => ReplyMode::Extended,
    };
    let mut session = ClientSession::new(&negotiated(mode));
    let mut header = RequestHeader::new();
    let mut buffers: Vec<Buffer> = Vec::new();
    loop {
        let op = take(&mut input, 1)?[0];
        if op & 3 == 0 {
            let fields = take(&mut input, 5)?;
            let request = Request {
                command: Command::from_wire((fields[0] % 8).into()).expect("below 8"),
                flags: CommandFlags::from_bits_retain(fields[0] as u16 >> 3),
                offset: u16::from_be_bytes([fields[1], fields[2]]).into(),
                length: u16::from_be_bytes([fields[3], fields[4]]).into(),
            };
            if let Ok(cookie) = session.submit(request, &mut header) {
                let length = match request.command {
                    Command::Read => request.length as usize,
                    _ => 0,
                };
                let written = vec![false; length];
                buffers.push(Buffer { cookie, written });
            }
            continue;
        }
        let count = take(&mut input, 1)?[0].into();
        let mut bytes = take(&mut input, count)?.to_vec();
        if op & 3 != 1
            && let Some(buffer) = buffers.get(usize::from(op >> 2) % buffers.len().max(1))
        {
            patch(&mut bytes, mode, &session, buffer.cookie);
        }
        receive(&mut session, &mut buffers, &bytes)?;
    }
}

/// Makes a piece of input look like a reply to a request.
fn patch(bytes: &mut [u8], mode: ReplyMode, session: &ClientSession, cookie: Cookie) {
    let magic: u32 = match mode {
        ReplyMode::Simple => 0x6744_6698,
        ReplyMode::Structured => 0x668e_33ef,
        ReplyMode::Extended => 0x6e8a_278c,
    };
    let Some(head) = bytes.get_mut(..16) else {
        return;
    };
    head[..4].copy_from_slice(&magic.to_be_bytes());
    head[8..].copy_from_slice(&cookie.0.to_be_bytes());
    if mode == ReplyMode::Extended
        && let Some(offset) = bytes.get_mut(16..24)
        && let Some(request) = session.request(cookie)
    {
        offset.copy_from_slice(&request.offset.to_be_bytes());
    }
}

fn receive(session: &mut ClientSession, buffers: &mut Vec<Buffer>, bytes: &[u8]) -> Option<()> {
    let mut rest = bytes;
    loop {
        let ready = session.needed() == 0;
        // An error ends the connection.
        let (taken, event) = session.receive(rest).ok()?;
        assert!(taken <= rest.len() && !(ready && taken > 0));
        rest = &rest[taken..];
        match event {
            ReplyEvent::NeedMore => {
                assert!(rest.is_empty() && session.needed() > 0);
                return Some(());
            }
            ReplyEvent::Payload {
                cookie,
                offset,
                length,
            } => {
                write(buffers, cookie, offset, length);
                // The payload is not worth spelling out in the input.
            }
            ReplyEvent::Hole {
                cookie,
                offset,
                length,
            } => write(buffers, cookie, offset, length),
            ReplyEvent::Extents {
                cookie, extents, ..
            } => {
                let request = session.request(cookie).expect("in flight");
                assert!(extents.iter().all(|extent| extent.length > 0));
                let sum: u64 = extents.iter().map(|extent| extent.length).sum();
                assert!(0 < sum && sum <= request.length);
            }
            ReplyEvent::Done { cookie, result } => {
                let index = buffers.iter().position(|buffer| buffer.cookie == cookie);
                let buffer = buffers.swap_remove(index.expect("known"));
                assert!(result.is_err() || buffer.written.iter().all(|&written| written));
            }
        }
        assert_eq!(session.in_flight(), buffers.len());
        if let Some((cookie, offset, length)) = session.predicted_read() {
            let request = session.request(cookie).expect("in flight");
            assert!(length > 0 && offset + length <= request.length);
        }
    }
}

fn write(buffers: &mut [Buffer], cookie: Cookie, offset: u64, length: u64) {
    let buffer = buffers.iter_mut().find(|buffer| buffer.cookie == cookie);
    let part = &mut buffer.expect("known").written[offset as usize..][..length as usize];
    assert!(!part.is_empty() && part.iter().all(|&written| !written));
    part.fill(true);
}

fuzz_target!(|data: &[u8]| {
    run(data);
});
