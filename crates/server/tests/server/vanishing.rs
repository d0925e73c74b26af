//! Clients that are gone, wherever they had come to.

use std::io::{Read, Write};

use crate::{
    hostile::{header, still_serves},
    peer::{Host, wait_until},
    probe::{pattern, probe},
};

const SIZE: usize = 64 << 10;

/// All that a client sends from its first byte to its goodbye, and how many bytes it gets for that.
fn conversation() -> (Vec<u8>, usize) {
    let mut bytes = vec![0, 0, 0, 3];
    let option = |code: u32, payload: &[u8]| {
        let mut option = b"IHAVEOPT".to_vec();
        option.extend(code.to_be_bytes());
        option.extend((payload.len() as u32).to_be_bytes());
        option.extend(payload);
        option
    };
    // A list, something unknown, the default export without its zeroes.
    bytes.extend(option(3, &[]));
    bytes.extend(option(0x1234, b"what"));
    bytes.extend(option(1, &[]));
    bytes.extend(header(0, 0, 1, 0, 300));
    bytes.extend(header(1, 0, 2, 4096, 100));
    bytes.extend(pattern(4196).split_off(4096));
    bytes.extend(header(6, 0, 3, 8192, 64));
    bytes.extend(header(3, 0, 4, 0, 0));
    bytes.extend(header(2, 0, 5, 0, 0));
    // Greeting, list (one and the end), refusal, size and flags, replies.
    let replies = 18 + (20 + 4) + 20 + 20 + 10 + (16 + 300) + 3 * 16;
    (bytes, replies)
}

#[test]
fn the_conversation_is_understood_to_its_end() {
    let host = Host::of(probe(SIZE));
    let (bytes, replies) = conversation();
    let mut socket = host.raw();
    socket.write_all(&bytes).expect("sent");
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).expect("the end");
    assert!(answer.len() >= replies, "{} of {replies}", answer.len());
    host.wait_for_event("Disconnected");
}

#[test]
fn a_client_may_vanish_behind_every_byte() {
    let device = probe(SIZE);
    let host = Host::of(device.clone());
    let (bytes, _) = conversation();
    let closed = |host: &Host| {
        let events = host.events();
        events
            .iter()
            .filter(|event| event.starts_with("Closed"))
            .count()
    };
    for length in 0..bytes.len() {
        let mut socket = host.raw();
        socket.write_all(&bytes[..length]).expect("sent");
        if length % 2 == 0 {
            // Without having heard a word.
            drop(socket);
            continue;
        }
        socket.shutdown(std::net::Shutdown::Write).expect("closed");
        let _ = socket.read_to_end(&mut Vec::new());
    }
    wait_until(|| closed(&host) == bytes.len());
    // What was asked for completely was done, and nothing else.
    let mut expected = pattern(SIZE);
    expected[8192..8256].fill(0);
    assert_eq!(device.contents(), expected);
    still_serves(&host);
    assert!(
        !host
            .events()
            .iter()
            .any(|event| event.contains("Misbehaved"))
    );
}
