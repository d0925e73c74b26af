//! Which requests may wait to be sent.

use blockferry_proto::{
    CommandFlags, ExportInfo, HandshakeFlags, HandshakeStyle, Negotiated, ReplyMode,
    TransmissionFlags,
};

use super::*;

fn shared() -> Shared {
    Shared::new(ClientSession::new(&Negotiated {
        export_name: String::new(),
        export: ExportInfo {
            name: None,
            description: None,
            size: 1 << 20,
            flags: TransmissionFlags::HAS_FLAGS,
            block_sizes: None,
        },
        mode: ReplyMode::Simple,
        contexts: Vec::new(),
        tls: false,
        style: HandshakeStyle::FixedNew,
        handshake_flags: HandshakeFlags::FIXED_NEWSTYLE,
    }))
}

/// Enters `count` requests.
fn enter(shared: &Shared, command: Command, count: usize) {
    for _ in 0..count {
        let request = Request {
            command,
            flags: CommandFlags::empty(),
            offset: 0,
            length: 512,
        };
        let mut context = Context::from_waker(Waker::noop());
        let mut payload = Some(Payload::Memory(Buffer::zeroed(512)));
        let entered = shared.poll_enter(&mut context, request, &mut payload);
        assert!(matches!(entered, Poll::Ready(Ok(_))));
    }
}

/// Whether requests of `command` may wait beside `sent` reads in flight.
fn may_wait(sent: usize, command: Command, waiting: usize, answered: u64) -> bool {
    let shared = shared();
    enter(&shared, Command::Read, sent);
    shared.lock().take_outgoing(&mut VecDeque::new());
    enter(&shared, command, waiting);
    let state = shared.lock();
    state.may_wait_to_send(answered)
}

#[test]
fn less_than_a_quarter_may_wait_in_the_place_of_answered_requests() {
    assert!(may_wait(7, Command::Read, 1, 1));
    assert!(may_wait(13, Command::Read, 3, 3));
    assert!(!may_wait(6, Command::Read, 2, 2), "a quarter");
    assert!(!may_wait(3, Command::Read, 1, 1), "few are in flight");
    assert!(!may_wait(0, Command::Read, 1, 1), "none are in flight");
}

#[test]
fn a_request_that_takes_no_ones_place_never_waits() {
    assert!(!may_wait(7, Command::Read, 1, 0));
    assert!(!may_wait(20, Command::Read, 3, 2));
}

#[test]
fn a_payload_never_waits() {
    assert!(!may_wait(7, Command::Write, 1, 1));
}
