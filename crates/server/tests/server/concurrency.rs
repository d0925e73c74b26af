//! Requests side by side, their bounds, and clients that don't read.

use std::{io::Write, sync::Arc, thread};

use blockferry_block::MemoryDevice;
use blockferry_proto::{Command, CommandFlags, Cookie, Request, RequestHeader};

use crate::{
    peer::{Host, Peer, options, wait_until},
    probe::{pattern, probe},
};

const SIZE: usize = 1 << 20;

fn submit_read(peer: &mut Peer, offset: u64, length: u64) -> Cookie {
    peer.submit(Command::Read, CommandFlags::empty(), (offset, length), &[])
}

#[test]
fn a_slow_request_does_not_hold_up_the_others() {
    let device = probe(SIZE);
    let host = Host::of(device.clone());
    let mut peer = host.connect();
    device.hold_from(4096);
    let slow = submit_read(&mut peer, 4096, 4096);
    let fast = submit_read(&mut peer, 0, 100);
    assert_eq!(peer.wait(fast).ok(), pattern(100));
    device.hold_from(u64::MAX);
    assert_eq!(peer.wait(slow).ok(), pattern(SIZE)[4096..8192]);
    assert_eq!(peer.order(), [fast, slow]);
}

#[test]
fn no_more_requests_run_at_a_time_than_the_bound_allows() {
    let device = probe(SIZE);
    let options = options(|options| options.max_in_flight_requests = 3);
    let host = Host::with(device.clone(), options);
    let mut peer = host.connect();
    device.hold_from(0);
    let reads: Vec<_> = (0..10)
        .map(|index| submit_read(&mut peer, index * 512, 512))
        .collect();
    wait_until(|| device.calls().len() == 3);
    // Whatever is going to happen beyond the bound would have happened by now.
    thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(device.calls().len(), 3);
    device.hold_from(u64::MAX);
    for (index, read) in reads.into_iter().enumerate() {
        assert_eq!(peer.wait(read).ok(), pattern(SIZE)[index * 512..][..512]);
    }
}

#[test]
fn bytes_in_flight_are_bounded_but_one_large_request_passes() {
    let device = probe(SIZE);
    let options = options(|options| options.max_in_flight_bytes = 10_000);
    let host = Host::with(device.clone(), options);
    let mut peer = host.connect();
    device.hold_from(0);
    let reads: Vec<_> = (0..5)
        .map(|index| submit_read(&mut peer, index, 4000))
        .collect();
    wait_until(|| device.calls().len() == 2);
    thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(device.calls().len(), 2);
    device.hold_from(u64::MAX);
    for (index, read) in reads.into_iter().enumerate() {
        assert_eq!(peer.wait(read).ok(), pattern(SIZE)[index..][..4000]);
    }
    let data: Vec<u8> = pattern(500_000).into_iter().rev().collect();
    peer.write(7, &data).ok();
    assert!(peer.read(7, 500_000).ok() == data);
}

#[test]
fn a_client_may_send_everything_before_it_reads_anything() {
    let device = Arc::new(MemoryDevice::new(SIZE as u64));
    let host = Host::of(device);
    let mut peer = host.connect();
    // More replies than the socket holds, and more requests than run at a time.
    let reads: Vec<_> = (0..200)
        .map(|index| submit_read(&mut peer, index, 16_384))
        .collect();
    for read in reads {
        assert_eq!(peer.wait(read).ok().len(), 16_384);
    }
}

#[test]
fn writes_and_reads_of_all_sizes_keep_in_step_when_pipelined() {
    let device = Arc::new(MemoryDevice::new(4 << 20));
    let host = Host::of(device);
    let mut peer = host.connect();
    let sizes = [1, 511, 4096, 40_000, 16_384, 100_000, 3, 300_000, 65_536];
    let mut offset = 0;
    let mut writes = Vec::new();
    for (index, size) in sizes.into_iter().cycle().take(45).enumerate() {
        let data = vec![index as u8 + 1; size];
        let cookie = peer.submit(
            Command::Write,
            CommandFlags::empty(),
            (offset, size as u64),
            &data,
        );
        writes.push((cookie, offset, data));
        offset += size as u64 / 3 + 1;
        if index % 10 == 9 {
            // Overlapping writes in flight have no defined result: only neighbours are compared.
            for (cookie, ..) in writes.drain(..) {
                peer.wait(cookie).ok();
            }
        }
    }
    let last = vec![0xAB; 12_345];
    peer.write(77, &last).ok();
    assert_eq!(peer.read(77, 12_345).ok(), last);
}

#[test]
fn requests_that_arrive_byte_by_byte_are_understood() {
    let device = probe(SIZE);
    let host = Host::of(device.clone());
    let mut peer = host.connect();
    for round in 0..3u8 {
        let mut header = RequestHeader::new();
        let request = Request {
            command: Command::Write,
            flags: CommandFlags::empty(),
            offset: 10,
            length: 5,
        };
        peer.session.submit(request, &mut header).expect("valid");
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(&[round; 5]);
        for byte in bytes {
            peer.socket.write_all(&[byte]).expect("sent");
            thread::yield_now();
        }
        wait_until(|| device.contents()[10..15] == [round; 5]);
    }
}

#[test]
fn many_connections_work_at_the_same_time() {
    let device = Arc::new(MemoryDevice::new(64 * 4096));
    let host = Host::of(device.clone());
    thread::scope(|scope| {
        for index in 0..64u64 {
            let mut peer = host.connect();
            scope.spawn(move || {
                let data = vec![index as u8 + 1; 4096];
                for _ in 0..20 {
                    peer.write(index * 4096, &data).ok();
                    assert_eq!(peer.read(index * 4096, 4096).ok(), data);
                }
                peer.disconnect();
            });
        }
    });
    for (index, block) in device.contents().chunks(4096).enumerate() {
        assert!(block.iter().all(|byte| *byte == index as u8 + 1));
    }
}

#[test]
fn connections_beyond_the_limit_wait_for_a_place() {
    let options = options(|options| options.max_connections = 2);
    let host = Host::with(probe(4096), options);
    let (one, two) = (host.connect(), host.connect());
    thread::scope(|scope| {
        let third = scope.spawn(|| host.connect().read(0, 10).ok());
        thread::sleep(std::time::Duration::from_millis(50));
        assert!(!third.is_finished());
        one.disconnect();
        assert_eq!(third.join().expect("no panic"), pattern(10));
    });
    two.disconnect();
}
