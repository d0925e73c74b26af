//! Clients that break the rules, in every way that must not hurt the others.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::Arc,
    time::Duration,
};

use blockferry_block::MemoryDevice;
use blockferry_proto::{ClientConfig, CommandFlags, Errno, wire};

use crate::{
    peer::{Host, Peer, options},
    probe::{pattern, probe},
};

const SIZE: usize = 1 << 20;

/// A client of the default export with simple replies: its requests are written by hand.
pub(crate) fn simple(host: &Host) -> Peer {
    let mut config = ClientConfig::default();
    config.structured = false;
    config.extended = false;
    host.connect_with(config)
}

/// A compact request header.
pub(crate) fn header(command: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = wire::REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

/// The error number of the next simple reply, which must be to `cookie`.
pub(crate) fn simple_reply(socket: &mut UnixStream, cookie: u64) -> u32 {
    let mut reply = [0; 16];
    socket.read_exact(&mut reply).expect("a reply");
    assert_eq!(reply[..4], wire::SIMPLE_REPLY_MAGIC.to_be_bytes());
    assert_eq!(reply[8..], cookie.to_be_bytes());
    u32::from_be_bytes([reply[4], reply[5], reply[6], reply[7]])
}

pub(crate) fn is_closed(socket: &mut UnixStream) -> bool {
    let mut rest = Vec::new();
    // What the server had said already does not matter.
    match socket.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

pub(crate) fn still_serves(host: &Host) {
    assert_eq!(host.connect().read(0, 100).ok(), pattern(100));
}

#[test]
fn garbage_instead_of_a_handshake_ends_the_connection() {
    let host = Host::of(probe(SIZE));
    for garbage in [
        vec![0; 64],
        vec![0xFF; 100_000],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ] {
        let mut socket = host.raw();
        let _ = socket.write_all(&garbage);
        assert!(is_closed(&mut socket));
    }
    still_serves(&host);
}

#[test]
fn a_handshake_that_never_ends_is_cut_off() {
    let options = options(|options| options.handshake_timeout = Duration::from_millis(50));
    let host = Host::with(probe(SIZE), options);
    let mut silent = host.raw();
    let mut slow = host.raw();
    slow.write_all(&[0, 0, 0]).expect("sent");
    assert!(is_closed(&mut silent) && is_closed(&mut slow));
    host.wait_for_event("HandshakeTimedOut");
}

#[test]
fn a_client_that_finished_the_handshake_may_be_silent() {
    let options = options(|options| options.handshake_timeout = Duration::from_millis(100));
    let host = Host::with(probe(SIZE), options);
    let mut peer = host.connect();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(peer.read(0, 10).ok(), pattern(10));
}

#[test]
fn a_request_with_a_wrong_magic_ends_the_connection() {
    let host = Host::of(probe(SIZE));
    let mut peer = simple(&host);
    let mut request = header(0, 0, 1, 0, 16);
    request[0] ^= 0xFF;
    peer.socket.write_all(&request).expect("sent");
    assert!(is_closed(&mut peer.socket));
    host.wait_for_event("Misbehaved");
    still_serves(&host);
}

#[test]
fn a_write_past_the_end_is_refused_and_its_payload_dropped() {
    let device = probe(SIZE);
    let host = Host::of(device.clone());
    let socket = &mut simple(&host).socket;
    let length = 300_000u32;
    socket
        .write_all(&header(1, 0, 7, SIZE as u64 - 1000, length))
        .expect("sent");
    socket
        .write_all(&vec![0x25; length as usize])
        .expect("sent");
    assert_eq!(simple_reply(socket, 7), Errno::ENOSPC.0);
    socket.write_all(&header(0, 0, 8, 0, 4)).expect("sent");
    assert_eq!(simple_reply(socket, 8), 0);
    let mut data = [0; 4];
    socket.read_exact(&mut data).expect("data");
    assert_eq!(data[..], pattern(4));
    assert_eq!(device.contents(), pattern(SIZE));
}

#[test]
fn a_write_to_a_read_only_export_is_refused_and_its_payload_dropped() {
    let options = options(|options| options.read_only = true);
    let device = probe(SIZE);
    let host = Host::with(device.clone(), options);
    let socket = &mut simple(&host).socket;
    for command in [1u16, 4, 6] {
        socket
            .write_all(&header(command, 0, 9, 0, 5))
            .expect("sent");
        if command == 1 {
            socket.write_all(b"hello").expect("sent");
        }
        assert_eq!(simple_reply(socket, 9), Errno::EPERM.0);
    }
    socket.write_all(&header(0, 0, 10, 0, 1)).expect("sent");
    assert_eq!(simple_reply(socket, 10), 0);
    assert_eq!(device.contents(), pattern(SIZE));
}

#[test]
fn reads_past_the_end_and_unknown_commands_are_refused() {
    let host = Host::of(probe(SIZE));
    let socket = &mut simple(&host).socket;
    for (command, flags, offset, length) in [
        (0, 0, SIZE as u64, 1),
        (0, 0, u64::MAX - 5, 10),
        (0, 0, 0, u32::MAX),
        (0, 0x8000, 0, 1),
        (99, 0, 0, 0),
        (6, 0, u64::MAX, u32::MAX),
        (7, 0, 0, 100),
    ] {
        socket
            .write_all(&header(command, flags, 3, offset, length))
            .expect("sent");
        let errno = simple_reply(socket, 3);
        assert!(
            errno == Errno::EINVAL.0 || (command == 6 && errno == Errno::ENOSPC.0),
            "command {command} was answered with {errno}"
        );
    }
}

#[test]
fn a_client_that_vanishes_amid_a_payload_changes_nothing() {
    let device = probe(SIZE);
    let host = Host::of(device.clone());
    let mut peer = simple(&host);
    peer.socket
        .write_all(&header(1, 0, 1, 0, 100_000))
        .expect("sent");
    peer.socket.write_all(&[0; 50_000]).expect("sent");
    drop(peer);
    host.wait_for_event("Vanished");
    assert_eq!(device.contents(), pattern(SIZE));
    assert!(device.calls().is_empty());
    still_serves(&host);
}

#[test]
fn what_a_vanished_client_had_asked_for_is_finished() {
    let device = probe(SIZE);
    let host = Host::of(device.clone());
    let mut peer = host.connect();
    device.hold_from(0);
    peer.submit(
        blockferry_proto::Command::Write,
        CommandFlags::empty(),
        (0, 4),
        b"done",
    );
    crate::peer::wait_until(|| !device.calls().is_empty());
    drop(peer);
    device.hold_from(u64::MAX);
    host.wait_for_event("Vanished");
    assert_eq!(device.contents()[..4], *b"done");
}

#[test]
fn a_client_that_never_reads_holds_up_nobody() {
    let host = Host::of(Arc::new(MemoryDevice::from_bytes(pattern(SIZE))));
    let mut greedy = simple(&host);
    greedy.socket.set_nonblocking(true).expect("an option");
    // Requests until neither the server nor the sockets take any more.
    let request = header(0, 0, 1, 0, SIZE as u32);
    let mut sent = 0;
    for _ in 0..10_000 {
        match greedy.socket.write(&request[sent..]) {
            Ok(count) => sent = (sent + count) % request.len(),
            Err(_) => break,
        }
    }
    still_serves(&host);
    greedy.socket.set_nonblocking(false).expect("an option");
    assert_eq!(simple_reply(&mut greedy.socket, 1), 0);
}

#[test]
fn an_option_with_a_huge_length_does_not_hurt() {
    let host = Host::of(probe(SIZE));
    let mut socket = host.raw();
    socket.write_all(&[0, 0, 0, 3]).expect("sent");
    socket.write_all(b"IHAVEOPT").expect("sent");
    socket.write_all(&7u32.to_be_bytes()).expect("sent");
    socket.write_all(&u32::MAX.to_be_bytes()).expect("sent");
    socket.shutdown(std::net::Shutdown::Write).expect("closed");
    assert!(is_closed(&mut socket));
    still_serves(&host);
}

/// The oldest way to choose an export: no way to refuse, no negotiation of replies.
fn export_name(host: &Host, name: &[u8]) -> UnixStream {
    let mut socket = host.raw();
    let mut greeting = [0; 18];
    socket.read_exact(&mut greeting).expect("a greeting");
    socket.write_all(&[0, 0, 0, 3]).expect("sent");
    let mut option = b"IHAVEOPT".to_vec();
    option.extend(1u32.to_be_bytes());
    option.extend((name.len() as u32).to_be_bytes());
    option.extend(name);
    socket.write_all(&option).expect("sent");
    socket
}

#[test]
fn a_client_that_only_knows_the_export_name_is_served() {
    let host = Host::of(probe(SIZE));
    let mut socket = export_name(&host, b"");
    let mut size_and_flags = [0; 10];
    socket.read_exact(&mut size_and_flags).expect("an export");
    assert_eq!(size_and_flags[..8], (SIZE as u64).to_be_bytes());
    socket.write_all(&header(0, 0, 5, 0, 3)).expect("sent");
    assert_eq!(simple_reply(&mut socket, 5), 0);
    let mut data = [0; 3];
    socket.read_exact(&mut data).expect("data");
    assert_eq!(data[..], pattern(3));
}

#[test]
fn an_export_name_that_cannot_be_refused_ends_the_connection() {
    let host = Host::of(probe(SIZE));
    assert!(is_closed(&mut export_name(&host, b"other")));
    assert!(is_closed(&mut export_name(&host, &[0xFF, 0xFE])));
    host.wait_for_event("Refused");
    still_serves(&host);
}
