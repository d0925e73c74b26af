//! Payloads that nobody looks at go through pipes.

use std::{collections::BTreeSet, sync::Arc};

use blockferry_block::testing::FaultyDevice;
use blockferry_block::{Capabilities, ErrorKind, MemoryDevice, Operation};
use blockferry_copy::{Control, CopyOptions, Destination, Event, Side, Warning, copy};

use crate::{
    Recorder, copy_device, device,
    disk::Disk,
    evenly,
    handle::{Call, Fault, Handle, death},
    pattern,
    pipe::Output,
    to_device,
};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// Large enough for three connections.
const SIZE: usize = 9 * MIB + 12_345;

fn blindly() -> CopyOptions {
    // Longer requests, which a slow machine would get, do not fit in pipes.
    let mut options = evenly();
    options.sparse = None;
    options
}

fn none() -> Box<Fault> {
    Box::new(|_, _, _| None)
}

fn image(seed: u64) -> Disk {
    let mut bytes = pattern(SIZE, seed);
    bytes[2 * MIB..2 * MIB + 300_000].fill(0);
    Disk::new(bytes)
        .slow()
        .zero_extents([(5 * MIB as u64 + 777, 7 * MIB as u64 + 1)])
}

fn piped(handle: &Handle, operation: Operation) -> Vec<Call> {
    let mut calls = handle.calls_of(operation);
    calls.retain(|call| call.piped);
    calls
}

#[tokio::test]
async fn what_nobody_looks_at_goes_through_pipes_from_device_to_device() {
    let from = Handle::piping(image(1), none());
    let to = Handle::piping(Disk::dirty(SIZE).slow(), none());
    let report = copy_device(&from, &to, &blindly()).await.expect("copied");
    assert!(to.disk.bytes() == from.disk.bytes());
    assert_eq!(report.data + report.zero, SIZE as u64);
    let reads = piped(&from, Operation::Read);
    let writes = piped(&to, Operation::Write);
    assert_eq!(reads.len(), writes.len());
    let moved: u64 = writes.iter().map(|call| call.range.len()).sum();
    // What is left are the short pieces beside the hole and at the end.
    assert!(moved + (512 << 10) > report.data, "{moved} bytes in pipes");
}

#[tokio::test]
async fn what_nobody_looks_at_goes_through_pipes_into_a_stream() {
    let from = Handle::piping(image(2), none());
    let output = Output::splicing();
    let target = Destination::Stream(Box::new(output.clone()));
    // Nothing is looked for on the way into a stream.
    let mut options = CopyOptions::default();
    options.request_size = Some(256 << 10);
    let copied = copy(device(&from), target, &options, &Control::new(), &()).await;
    copied.expect("copied");
    assert!(output.bytes() == from.disk.bytes());
    assert_eq!(output.piped(), piped(&from, Operation::Read).len());
    assert!(output.piped() >= 20, "{} in pipes", output.piped());
}

#[tokio::test]
async fn memory_that_pipes_are_filled_from_arrives_as_it_was() {
    let mut bytes = pattern(3 * MIB + 5000, 3);
    bytes[MIB..2 * MIB].fill(0);
    let from = FaultyDevice::new(Arc::new(MemoryDevice::from_bytes(&bytes))).piping();
    let memory = Arc::new(MemoryDevice::from_bytes(pattern(bytes.len(), 4)));
    let to = FaultyDevice::new(Arc::clone(&memory) as _).piping();
    let (from, to) = (Arc::new(from), Arc::new(to));
    copy_device(&from, &to, &blindly()).await.expect("copied");
    assert!(memory.contents() == bytes);
}

#[tokio::test]
async fn where_zeroes_are_looked_for_nothing_is_piped() {
    let from = Handle::piping(image(5), none());
    let to = Handle::piping(Disk::dirty(SIZE), none());
    let options = CopyOptions::default();
    copy_device(&from, &to, &options).await.expect("copied");
    assert!(to.disk.bytes() == from.disk.bytes());
    let calls = [from.calls(), to.calls()].concat();
    assert!(calls.iter().all(|call| !call.piped));
}

#[tokio::test]
async fn where_one_side_cannot_splice_nothing_is_piped() {
    for (lacking, side) in [
        (Capabilities::SPLICE_READ, Side::Source),
        (Capabilities::SPLICE_WRITE, Side::Destination),
    ] {
        let mut from = Handle::piping(image(6), none());
        let mut to = Handle::piping(Disk::dirty(SIZE), none());
        let it = match side {
            Side::Source => &mut from,
            _ => &mut to,
        };
        let it = Arc::get_mut(it).expect("not shared yet");
        it.info.capabilities -= lacking;
        copy_device(&from, &to, &blindly()).await.expect("copied");
        assert!(to.disk.bytes() == from.disk.bytes());
        let calls = [from.calls(), to.calls()].concat();
        assert!(calls.iter().all(|call| !call.piped), "{lacking:?}");
    }
}

#[tokio::test]
async fn pieces_too_short_or_too_long_for_a_pipe_come_in_memory() {
    for (length, fits) in [
        (32 * KIB, false),
        (60 * KIB, false),
        (64 * KIB, true),
        (128 * KIB, true),
        (256 * KIB, true),
        (260 * KIB, false),
        (MIB, false),
    ] {
        let size = 6 * length;
        let from = Handle::piping(Disk::new(pattern(size, 7)), none());
        let to = Handle::piping(Disk::dirty(size), none());
        let mut options = blindly();
        options.request_size = Some(length as u32);
        copy_device(&from, &to, &options).await.expect("copied");
        assert!(to.disk.bytes() == from.disk.bytes());
        let reads = from.calls_of(Operation::Read);
        let writes = to.calls_of(Operation::Write);
        assert_eq!((reads.len(), writes.len()), (6, 6), "{length}");
        let calls = [reads, writes].concat();
        assert!(calls.iter().all(|call| call.piped == fits), "{length}");
    }
}

#[tokio::test]
async fn a_payload_that_was_cut_off_is_done_again_through_another_connection() {
    for handle in [0, 2] {
        for (operation, side) in [
            (Operation::Read, Side::Source),
            (Operation::Write, Side::Destination),
        ] {
            let of = |this: Side| match side == this {
                true => death(handle, operation, 2),
                false => none(),
            };
            let from = Handle::piping(image(8), of(Side::Source));
            let to = Handle::piping(Disk::dirty(SIZE).slow(), of(Side::Destination));
            let events = Recorder::default();
            let (source, target) = (device(&from), to_device(&to));
            let copied = copy(source, target, &blindly(), &Control::new(), &events).await;
            copied.expect("copied");
            assert!(
                to.disk.bytes() == from.disk.bytes(),
                "{handle} {operation:?}"
            );
            let it = if side == Side::Source { &from } else { &to };
            let calls = piped(it, operation);
            let cut = calls.iter().filter(|call| call.fault.is_some());
            let cut: Vec<_> = cut.copied().collect();
            assert!(!cut.is_empty(), "{handle} {operation:?}");
            for lost in cut {
                let again = calls.iter().find(|call| {
                    call.fault.is_none() && !call.range.intersection(lost.range).is_empty()
                });
                let again = again.expect("done again");
                assert_ne!(again.handle, handle);
            }
            assert_eq!(events.progress().done, SIZE as u64);
            let lost = |event: &Event| {
                matches!(
                    event,
                    Event::Warning(Warning::ConnectionLost { left: 2, .. })
                )
            };
            assert_eq!(
                events.events().iter().filter(|event| lost(event)).count(),
                1
            );
        }
    }
}

#[tokio::test]
async fn a_payload_that_was_cut_off_on_the_only_connection_fails_the_copy() {
    for (operation, side) in [
        (Operation::Read, Side::Source),
        (Operation::Write, Side::Destination),
    ] {
        let of = |this: Side| match side == this {
            true => death(0, operation, 2),
            false => none(),
        };
        let mut options = blindly();
        options.connections = 1;
        let from = Handle::piping(image(9), of(Side::Source));
        let to = Handle::piping(Disk::dirty(SIZE), of(Side::Destination));
        let copied = copy_device(&from, &to, &options).await;
        let error = copied.expect_err("nothing to go on with");
        assert_eq!(
            (error.side, error.error.operation()),
            (side, Some(operation))
        );
        assert_eq!(error.error.kind(), ErrorKind::ConnectionLost);
        assert!(error.error.length().is_some() && error.error.offset().is_some());
    }
}

#[tokio::test]
async fn pipes_are_given_up_where_payloads_come_in_memory_all_the_same() {
    let from = Handle::spilling(Disk::new(pattern(SIZE, 10)).slow());
    let to = Handle::piping(Disk::dirty(SIZE).slow(), none());
    let mut options = blindly();
    // A slow machine would get more in flight.
    options.queue_size = Some(8 * (256 << 10));
    copy_device(&from, &to, &options).await.expect("copied");
    assert!(to.disk.bytes() == from.disk.bytes());
    let reads = from.calls_of(Operation::Read);
    let tried = reads.iter().filter(|call| call.piped).count();
    // Those that were under way when it was seen come on top.
    assert!((16..16 + 8).contains(&tried), "{tried} of {}", reads.len());
    assert!(piped(&to, Operation::Write).is_empty());
}

#[tokio::test]
async fn a_stream_comes_in_order_through_pipes_from_connections_of_which_one_dies() {
    let from = Handle::piping(image(11), death(1, Operation::Read, 4));
    let output = Output::splicing();
    let target = Destination::Stream(Box::new(output.clone()));
    let copied = copy(device(&from), target, &evenly(), &Control::new(), &()).await;
    copied.expect("copied");
    assert!(output.bytes() == from.disk.bytes());
    assert_eq!(from.users(Operation::Read), BTreeSet::from([0, 1, 2]));
}
