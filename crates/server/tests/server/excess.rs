//! Clients that ask for too much: too often, too long, too far, not where blocks begin.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::Arc,
};

use blockferry_block::NullDevice;
use blockferry_proto::{Command, CommandFlags, Errno, wire};

use crate::{
    commands::framings,
    hostile::{header, is_closed, simple, simple_reply, still_serves},
    peer::{Host, options},
    probe::{Probe, pattern, probe},
};

const SIZE: usize = 1 << 20;

/// A client behind the greeting, that will do everything as fixed newstyle clients do.
fn greeted(host: &Host) -> UnixStream {
    let mut socket = host.raw();
    socket.read_exact(&mut [0; 18]).expect("a greeting");
    socket.write_all(&[0, 0, 0, 3]).expect("sent");
    socket
}

/// The head of an option.
fn option(code: u32, length: u32) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(code.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

/// The type of the next option reply, whose payload is dropped.
fn option_reply(socket: &mut UnixStream) -> Option<u32> {
    let mut head = [0; 20];
    socket.read_exact(&mut head).ok()?;
    let number =
        |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let mut payload = vec![0; number(16) as usize];
    socket.read_exact(&mut payload).ok()?;
    Some(number(12))
}

const UNSUPPORTED: u32 = (1 << 31) + 1;

#[test]
fn options_that_nobody_knows_are_refused_and_after_a_thousand_the_client_is_too() {
    let host = Host::of(probe(SIZE));
    let mut socket = greeted(&host);
    let mut refused = 0;
    for count in 0..5000u32 {
        let mut bytes = option(1000 + count, 3);
        bytes.extend(b"abc");
        if socket.write_all(&bytes).is_err() {
            break;
        }
        match option_reply(&mut socket) {
            Some(reply) => assert_eq!(reply, UNSUPPORTED),
            None => break,
        }
        refused += 1;
    }
    assert!((1000..2000).contains(&refused), "{refused}");
    host.wait_for_event("Misbehaved");
    still_serves(&host);
}

#[test]
fn options_that_come_all_at_once_are_answered_in_order() {
    let host = Host::of(probe(SIZE));
    let mut socket = greeted(&host);
    let mut bytes = Vec::new();
    for code in 1000..1200 {
        bytes.extend(option(code, 4000));
        bytes.extend([0; 4000]);
    }
    // Nothing is read before everything is sent.
    bytes.extend(option(2, 0));
    let mut writer = socket.try_clone().expect("a descriptor");
    std::thread::spawn(move || writer.write_all(&bytes));
    for _ in 0..200 {
        assert_eq!(option_reply(&mut socket), Some(UNSUPPORTED));
    }
    // The client's own goodbye.
    assert_eq!(option_reply(&mut socket), Some(1));
    assert!(is_closed(&mut socket));
}

#[test]
fn names_of_4_gib_are_not_waited_for() {
    let host = Host::of(probe(SIZE));
    // NBD_OPT_EXPORT_NAME, NBD_OPT_LIST, NBD_OPT_INFO, NBD_OPT_GO, contexts, and one that nobody knows.
    for code in [1, 3, 6, 7, 9, 10, 99] {
        let mut socket = greeted(&host);
        socket.write_all(&option(code, u32::MAX)).expect("sent");
        let _ = socket.write_all(&[0x41; 100_000]);
        assert!(is_closed(&mut socket), "option {code}");
    }
    still_serves(&host);
}

#[test]
fn a_name_that_is_longer_than_its_option_is_refused() {
    let host = Host::of(probe(SIZE));
    let mut socket = greeted(&host);
    for code in [6u32, 7, 9, 10] {
        for name in [5u32, 4097, u32::MAX] {
            let mut bytes = option(code, 8);
            bytes.extend(name.to_be_bytes());
            bytes.extend([0; 4]);
            socket.write_all(&bytes).expect("sent");
            let reply = option_reply(&mut socket).expect("an answer");
            assert!(
                reply >> 31 == 1,
                "option {code} with a name of {name}: {reply}"
            );
        }
    }
    socket.write_all(&option(2, 0)).expect("sent");
    assert_eq!(option_reply(&mut socket), Some(1));
}

#[test]
fn a_block_status_of_4_gib_is_answered() {
    let host = Host::of(Arc::new(NullDevice::new(1 << 40)));
    let [_, (_, structured), (_, extended)] = framings();
    let mut socket = host.connect_with(structured).socket;
    socket
        .write_all(&header(7, 0, 1, 1, u32::MAX))
        .expect("sent");
    // The header of the chunk, the context, and one extent or more.
    let mut reply = [0; 32];
    socket.read_exact(&mut reply).expect("a reply");
    assert_eq!(reply[4..8], [0, 1, 0, 5]);
    let length = u32::from_be_bytes([reply[24], reply[25], reply[26], reply[27]]);
    assert!(length > 0);
    let mut peer = host.connect_with(extended);
    let reply = peer.status(0, 1 << 40, CommandFlags::empty());
    assert_eq!(reply.errno(), None);
    let reported = reply.extents[0].1.iter().map(|extent| extent.length);
    assert!((1..=1 << 40).contains(&reported.sum::<u64>()));
}

/// A request header with 64-bit lengths.
fn long_header(command: u16, flags: u16, cookie: u64, (offset, length): (u64, u64)) -> Vec<u8> {
    let mut bytes = wire::EXTENDED_REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    for number in [cookie, offset, length] {
        bytes.extend(number.to_be_bytes());
    }
    bytes
}

/// The error of the next extended reply, which must be a failure of the request `cookie`.
fn long_error(socket: &mut UnixStream, cookie: u64) -> u32 {
    let mut head = [0; 32];
    socket.read_exact(&mut head).expect("a reply");
    assert_eq!(head[..4], wire::EXTENDED_REPLY_MAGIC.to_be_bytes());
    assert_eq!(head[4..8], [0, 1, 0x80, 0x01]);
    assert_eq!(head[8..16], cookie.to_be_bytes());
    let mut length = [0; 8];
    length.copy_from_slice(&head[24..]);
    let mut payload = vec![0; usize::try_from(u64::from_be_bytes(length)).expect("short")];
    socket.read_exact(&mut payload).expect("an error");
    u32::from_be_bytes([payload[0], payload[1], payload[2], payload[3]])
}

#[test]
fn lengths_of_2_to_the_63_are_refused_and_the_connection_lives_on() {
    let host = Host::of(probe(SIZE));
    let mut peer = host.connect();
    let socket = &mut peer.socket;
    // Read, trim, cache, zero, block status.
    for command in [0, 4, 5, 6, 7] {
        for range in [
            (0, 1 << 63),
            (1 << 63, 1 << 63),
            (u64::MAX, u64::MAX),
            (1, u64::MAX),
        ] {
            socket
                .write_all(&long_header(command, 0, 77, range))
                .expect("sent");
            let errno = long_error(socket, 77);
            let expected = match command {
                6 => Errno::ENOSPC.0,
                _ => Errno::EINVAL.0,
            };
            assert_eq!(errno, expected, "command {command} of {range:?}");
        }
    }
    assert_eq!(peer.read(0, 100).ok(), pattern(100));
}

#[test]
fn a_payload_of_2_to_the_63_ends_the_connection() {
    let host = Host::of(probe(SIZE));
    for command in [0, 1, 7, 99] {
        let mut peer = host.connect();
        // NBD_CMD_FLAG_PAYLOAD_LEN
        let request = long_header(command, 1 << 5, 1, (0, 1 << 63));
        peer.socket.write_all(&request).expect("sent");
        assert!(is_closed(&mut peer.socket), "command {command}");
    }
    host.wait_for_event("Misbehaved");
    still_serves(&host);
}

#[test]
fn payloads_where_none_belongs_are_dropped_and_the_connection_lives_on() {
    let host = Host::of(probe(SIZE));
    let mut peer = host.connect();
    for command in [0, 3, 4, 5, 6, 7, 99] {
        for length in [1u64, 7, 12, 100_000] {
            let mut bytes = long_header(command, 1 << 5, 5, (0, length));
            bytes.resize(bytes.len() + usize::try_from(length).expect("short"), 0xff);
            peer.socket.write_all(&bytes).expect("sent");
            assert_eq!(
                long_error(&mut peer.socket, 5),
                Errno::EINVAL.0,
                "{command} {length}"
            );
        }
    }
    assert_eq!(peer.read(0, 100).ok(), pattern(100));
}

#[test]
fn a_write_of_100_mib_is_refused_after_its_payload_and_the_connection_lives_on() {
    let device = probe(SIZE);
    let host = Host::of(device.clone());
    const LENGTH: u32 = 100 << 20;
    let piece = vec![0x77; 1 << 20];
    let socket = &mut simple(&host).socket;
    socket.write_all(&header(1, 0, 4, 0, LENGTH)).expect("sent");
    for _ in 0..LENGTH >> 20 {
        socket.write_all(&piece).expect("sent");
    }
    assert_eq!(simple_reply(socket, 4), Errno::EINVAL.0);
    socket.write_all(&header(0, 0, 8, 0, 4)).expect("sent");
    assert_eq!(simple_reply(socket, 8), 0);
    let mut peer = host.connect();
    let mut bytes = long_header(1, 1 << 5, 9, (0, LENGTH.into()));
    for _ in 0..LENGTH >> 20 {
        bytes.extend(&piece);
        peer.socket.write_all(&bytes).expect("sent");
        bytes.clear();
    }
    assert_eq!(long_error(&mut peer.socket, 9), Errno::EINVAL.0);
    assert_eq!(peer.read(0, 100).ok(), pattern(100));
    assert_eq!(device.contents(), pattern(SIZE));
}

#[test]
fn requests_that_are_not_aligned_are_refused_where_that_was_asked_for() {
    let device = Arc::new(Probe::new(&pattern(SIZE)).described(|info| {
        info.limits.minimum = 512;
    }));
    let host = Host::of(device.clone());
    let socket = &mut simple(&host).socket;
    for command in [0, 1, 4, 6] {
        for (offset, length) in [(1, 512), (512, 511), (0, 513), (4095, 1)] {
            let mut bytes = header(command, 0, 2, offset, length);
            if command == 1 {
                bytes.resize(bytes.len() + length as usize, 0x33);
            }
            socket.write_all(&bytes).expect("sent");
            assert_eq!(
                simple_reply(socket, 2),
                Errno::EINVAL.0,
                "{command} {offset} {length}"
            );
        }
    }
    socket.write_all(&header(0, 0, 3, 512, 512)).expect("sent");
    assert_eq!(simple_reply(socket, 3), 0);
    let mut data = [0; 512];
    socket.read_exact(&mut data).expect("data");
    assert_eq!(data[..], pattern(1024)[512..]);
    assert_eq!(device.contents(), pattern(SIZE));
}

#[test]
fn a_write_refused_by_a_read_only_export_leaves_every_framing_in_step() {
    let host = Host::with(probe(SIZE), options(|options| options.read_only = true));
    for (_, config) in framings() {
        let mut config = config;
        config.contexts = Vec::new();
        let mut peer = host.connect_with(config);
        let extended = peer.negotiated().mode == blockferry_proto::ReplyMode::Extended;
        if extended {
            let mut bytes = long_header(1, 1 << 5, 6, (0, 300_000));
            bytes.resize(bytes.len() + 300_000, 0x11);
            peer.socket.write_all(&bytes).expect("sent");
            assert_eq!(long_error(&mut peer.socket, 6), Errno::EPERM.0);
        }
        assert_eq!(peer.read(0, 100).ok(), pattern(100));
    }
}

#[test]
fn a_client_that_stops_amid_its_payload_holds_up_nobody() {
    let device = probe(SIZE);
    let host = Host::of(device.clone());
    let mut stopped = Vec::new();
    for _ in 0..20 {
        let mut peer = host.connect();
        peer.submit_partly(Command::Write, (0, 300_000), &[0x44; 100_000]);
        stopped.push(peer);
        let mut socket = greeted(&host);
        socket.write_all(&option(7, 1000)[..10]).expect("sent");
        let mut header_only = simple(&host);
        header_only
            .socket
            .write_all(&header(1, 0, 1, 0, 1000)[..20])
            .expect("sent");
        stopped.push(header_only);
    }
    still_serves(&host);
    // It may go on when it likes.
    let mut first = stopped.swap_remove(0);
    first.socket.write_all(&[0x44; 200_000]).expect("sent");
    assert_eq!(first.read(0, 300_000).ok(), [0x44; 300_000]);
}
