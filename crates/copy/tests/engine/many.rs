//! Several handles to one side: who uses which, and what becomes of a copy when some are lost.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use blockferry_block::{ByteRange, Capabilities, ErrorKind, Extent, Operation, testing::answers};
use blockferry_copy::{
    Control, CopyError, CopyOptions, Destination, Event, Order, Report, Side, Source, Warning, copy,
};

use crate::{
    Recorder,
    disk::Disk,
    evenly,
    handle::{Fault, Handle, Opening, death},
    pattern,
    pipe::Output,
};

const MIB: usize = 1 << 20;
/// Large enough for four connections, and for several segments of each.
const SIZE: usize = 17 * MIB;

/// A disk with data, holes, and zeroes in the data.
fn image(seed: u64) -> Disk {
    let mut bytes = pattern(SIZE, seed);
    bytes[12 * MIB..13 * MIB].fill(0);
    Disk::new(bytes).slow().zero_extents([
        (3 * MIB as u64, 6 * MIB as u64),
        (15 * MIB as u64, 15 * MIB as u64 + 40_960),
    ])
}

/// A disk that is just worth three connections.
fn small_image(seed: u64) -> Disk {
    let disk = Disk::new(pattern(9 * MIB, seed)).slow();
    disk.zero_extents([(3 * MIB as u64, 6 * MIB as u64 + 999)])
}

async fn run(
    from: &Arc<Handle>,
    to: &Arc<Handle>,
    options: &CopyOptions,
    events: &Recorder,
) -> Result<Report, CopyError> {
    let source = Source::Device(Arc::clone(from) as _);
    let target = Destination::Device(Arc::clone(to) as _);
    copy(source, target, options, &Control::new(), events).await
}

fn losses(events: &Recorder) -> usize {
    let lost = |event: &&Event| matches!(event, Event::Warning(Warning::ConnectionLost { .. }));
    events.events().iter().filter(lost).count()
}

#[tokio::test]
async fn four_connections_share_the_work_and_each_is_flushed() {
    let from = Handle::sound(image(1));
    let to = Handle::sound(Disk::dirty(SIZE).slow());
    let report = run(&from, &to, &evenly(), &Recorder::default()).await;
    let report = report.expect("copied");
    assert!(to.disk.bytes() == from.disk.bytes());
    let all = BTreeSet::from([0, 1, 2, 3]);
    assert_eq!(from.users(Operation::Read), all);
    assert_eq!(to.users(Operation::Write), all);
    assert_eq!(to.users(Operation::Flush), all);
    assert_eq!(
        (report.source_connections, report.destination_connections),
        (4, 4)
    );
}

#[tokio::test]
async fn a_segment_is_written_through_one_connection_only() {
    let from = Handle::sound(image(2));
    let to = Handle::sound(Disk::dirty(SIZE).slow());
    let copied = run(&from, &to, &CopyOptions::default(), &Recorder::default()).await;
    copied.expect("copied");
    let mut writes = to.ranges(Operation::Write);
    writes.extend(to.ranges(Operation::Zero));
    for segment in 0..SIZE as u64 / (4 << 20) {
        let whole = ByteRange::between(segment << 22, (segment + 1) << 22);
        let inside = writes
            .iter()
            .filter(|(_, range)| !range.intersection(whole).is_empty());
        let owners: BTreeSet<_> = inside.map(|(id, _)| *id).collect();
        assert!(owners.len() <= 1, "{whole:?} was written by {owners:?}");
    }
}

#[tokio::test]
async fn one_side_may_have_more_connections_than_the_other() {
    for (several, one) in [(true, false), (false, true)] {
        let opening = |several| match several {
            true => Opening::Granted,
            false => Opening::Refused,
        };
        let sound = || Box::new(|_: usize, _: Operation, _: ByteRange| None);
        let from = Handle::new(image(3), opening(several), sound());
        let to = Handle::new(Disk::dirty(SIZE).slow(), opening(one), sound());
        let report = run(&from, &to, &evenly(), &Recorder::default()).await;
        let report = report.expect("copied");
        assert!(to.disk.bytes() == from.disk.bytes());
        let connections = (report.source_connections, report.destination_connections);
        assert_eq!(connections, if several { (4, 1) } else { (1, 4) });
    }
}

#[tokio::test]
async fn a_server_that_never_answers_a_second_connection_holds_nothing_up() {
    let from = Handle::new(image(4), Opening::Silent, Box::new(|_, _, _| None));
    let to = Handle::new(Disk::dirty(SIZE), Opening::Silent, Box::new(|_, _, _| None));
    let report = run(&from, &to, &evenly(), &Recorder::default()).await;
    assert_eq!(report.expect("copied").source_connections, 1);
    assert!(to.disk.bytes() == from.disk.bytes());
}

#[tokio::test]
async fn a_device_that_does_not_say_that_several_are_right_gets_one() {
    let disk = Disk::new(pattern(SIZE, 5)).slow();
    let mut from = Handle::sound(disk);
    let single = Arc::get_mut(&mut from).expect("not shared yet");
    single.info.capabilities -= Capabilities::MULTI_CONN;
    let to = Handle::sound(Disk::dirty(SIZE).slow());
    let mut options = evenly();
    options.connections = 8;
    let report = run(&from, &to, &options, &Recorder::default()).await;
    let report = report.expect("copied");
    assert_eq!(
        (report.source_connections, report.destination_connections),
        (1, 5)
    );
    assert_eq!(from.board.opened.load(Relaxed), 1);
}

#[tokio::test]
async fn what_a_lost_connection_had_in_flight_is_done_by_the_others() {
    for handle in [0, 3] {
        for (operation, side) in [
            (Operation::Read, Side::Source),
            (Operation::Write, Side::Destination),
        ] {
            let of = |this: Side| match side == this {
                true => death(handle, operation, 3),
                false => Box::new(|_: usize, _: Operation, _: ByteRange| None) as Box<Fault>,
            };
            let from = Handle::new(image(6), Opening::Granted, of(Side::Source));
            let to = Disk::dirty(SIZE).slow();
            let to = Handle::new(to, Opening::Granted, of(Side::Destination));
            let events = Recorder::default();
            let report = run(&from, &to, &evenly(), &events).await;
            let report = report.expect("copied");
            assert!(
                to.disk.bytes() == from.disk.bytes(),
                "{handle} {operation:?}"
            );
            assert_eq!(report.data + report.zero, SIZE as u64);
            assert_eq!(losses(&events), 1);
            let mut flushed = to.users(Operation::Flush);
            flushed.remove(&handle);
            assert!(flushed.len() == 3, "{flushed:?}");
            assert_eq!(events.progress().done, SIZE as u64);
        }
    }
}

#[tokio::test]
async fn a_connection_that_is_lost_at_the_flush_is_covered_by_the_others() {
    let from = Handle::sound(image(7));
    let dies = death(2, Operation::Flush, 0);
    let to = Handle::new(Disk::dirty(SIZE).slow(), Opening::Granted, dies);
    let report = run(&from, &to, &evenly(), &Recorder::default()).await;
    assert!(report.expect("copied").flushed);
    assert_eq!(to.users(Operation::Flush), BTreeSet::from([0, 1, 2, 3]));
}

#[tokio::test]
async fn when_every_connection_is_lost_the_copy_fails_and_may_be_tried_again() {
    let from = Handle::new(
        image(8),
        Opening::Granted,
        Box::new(|_, op, range| {
            let lost = op == Operation::Read && range.start() > 9 * MIB as u64;
            lost.then_some(ErrorKind::ConnectionLost)
        }),
    );
    let to = Handle::sound(Disk::dirty(SIZE).slow());
    let events = Recorder::default();
    let copied = run(&from, &to, &evenly(), &events).await;
    let error = copied.expect_err("nothing to read through");
    assert_eq!(error.side, Side::Source);
    assert!(error.error.is_transient());
    assert_eq!(events.warnings(), 3);
}

#[tokio::test]
async fn what_no_other_connection_can_heal_fails_at_once() {
    let fault = |id: usize, operation: Operation, _: ByteRange| {
        (id == 1 && operation == Operation::Write).then_some(ErrorKind::NoSpace)
    };
    let from = Handle::sound(image(9));
    let to = Disk::dirty(SIZE).slow();
    let to = Handle::new(to, Opening::Granted, Box::new(fault));
    let events = Recorder::default();
    let copied = run(&from, &to, &evenly(), &events).await;
    let error = copied.expect_err("no space");
    assert_eq!(error.error.kind(), ErrorKind::NoSpace);
    assert_eq!(events.warnings(), 0);
}

#[tokio::test]
async fn a_stream_comes_in_order_from_four_connections_of_which_one_dies() {
    let from = Handle::new(image(10), Opening::Granted, death(1, Operation::Read, 0));
    let output = Output::new(usize::MAX);
    let events = Recorder::default();
    let source = Source::Device(Arc::clone(&from) as _);
    let target = Destination::Stream(Box::new(output.clone()));
    let options = evenly();
    let copied = copy(source, target, &options, &Control::new(), &events).await;
    copied.expect("copied");
    assert!(output.bytes() == from.disk.bytes());
    assert_eq!(from.users(Operation::Read), BTreeSet::from([0, 1, 2, 3]));
    assert_eq!(losses(&events), 1);
}

#[tokio::test]
async fn in_order_means_one_write_after_the_other_from_front_to_back() {
    let mut options = evenly();
    options.order = Order::Ascending;
    for zeroes in [true, false] {
        let from = Handle::sound(image(11));
        let to = Disk::dirty(SIZE).slow();
        let to = match zeroes {
            true => to,
            false => to.failing(|operation, _, _| {
                (operation == Operation::Zero).then_some(ErrorKind::Unsupported)
            }),
        };
        let to = Handle::sound(to);
        let copied = run(&from, &to, &options, &Recorder::default()).await;
        copied.expect("copied");
        assert!(to.disk.bytes() == from.disk.bytes());
        let starts: Vec<_> = to.ranges(Operation::Write);
        assert!(
            starts.is_sorted_by_key(|(_, range)| range.start()),
            "{starts:?}"
        );
        assert_eq!(to.users(Operation::Write), BTreeSet::from([0]));
        assert_eq!(from.users(Operation::Read), BTreeSet::from([0, 1, 2, 3]));
    }
}

#[tokio::test]
async fn zeroes_of_a_lost_connection_are_written_in_requests_where_zeroing_is_refused() {
    let holes = [(4 * MIB as u64, SIZE as u64)];
    let from = Disk::new(pattern(SIZE, 12)).zero_extents(holes).slow();
    // The answer to the third question takes a moment: all connections are there before it.
    from.traffic.questions.store(2, Relaxed);
    let from = Handle::sound(from);
    // Connections say no while another that was asked too is about to be lost.
    let to = Disk::dirty(SIZE).slow().limits(512, 256 << 10);
    let to = to.failing(|operation, range, _| match operation {
        Operation::Zero if range.start() == 8 * MIB as u64 => Some(ErrorKind::ConnectionLost),
        Operation::Zero => Some(ErrorKind::Unsupported),
        _ => None,
    });
    let to = Handle::sound(to);
    let events = Recorder::default();
    let copied = run(&from, &to, &evenly(), &events).await;
    copied.expect("copied");
    assert!(to.disk.bytes() == from.disk.bytes());
    assert_eq!(losses(&events), 1);
}

#[tokio::test]
async fn the_end_within_a_block_is_read_through_a_connection_that_is_left() {
    let disk = Disk::new(pattern(SIZE - 100, 13)).slow();
    let from = Handle::new(disk, Opening::Granted, death(0, Operation::Read, 3));
    let to = Disk::dirty(SIZE).slow().limits(4096, 1 << 20);
    let to = Handle::sound(to);
    let events = Recorder::default();
    let copied = run(&from, &to, &evenly(), &events).await;
    copied.expect("copied");
    let after = to.disk.bytes();
    assert!(after[..SIZE - 100] == from.disk.bytes());
    assert!(after[SIZE - 100..].iter().all(|byte| *byte == 0xd1));
    assert_eq!(losses(&events), 1);
}

#[tokio::test]
async fn answers_that_break_the_rules_cost_several_connections_nothing_but_the_holes() {
    type Answer = fn(ByteRange) -> Vec<Extent>;
    let broken: [(&str, Answer); 6] = [
        ("empty", answers::empty),
        ("of no length", answers::of_no_length),
        ("overlapping", answers::overlapping),
        ("with a gap", answers::with_gap),
        ("backwards", answers::backwards),
        ("outside", answers::outside),
    ];
    for (name, answer) in broken {
        let disk = small_image(14).lying(move |range, _| answer(range));
        let from = Handle::sound(disk);
        let to = Handle::sound(Disk::dirty(9 * MIB).slow());
        let events = Recorder::default();
        let options = evenly();
        let report = run(&from, &to, &options, &events).await;
        assert_eq!(report.expect(name).source_connections, 3, "{name}");
        assert!(to.disk.bytes() == from.disk.bytes(), "{name}");
        assert_eq!(events.warnings(), 1, "{name}");
    }
}

/// What is true, in extents of at most 512 bytes.
fn crumbs(answer: &[Extent]) -> Vec<Extent> {
    let pieces = answer.iter().flat_map(|extent| {
        let status = extent.status;
        extent
            .range
            .pieces(512)
            .map(move |range| Extent { range, status })
    });
    pieces.collect()
}

#[tokio::test]
async fn true_answers_that_are_short_or_long_winded_do_several_connections_no_harm() {
    type Twist = fn(ByteRange, Vec<Extent>) -> Vec<Extent>;
    let twists: [(&str, Twist); 3] = [
        ("short", |range, _| answers::short(range)),
        ("long-winded", |_, answer| crumbs(&answer)),
        ("long-winded and short", |_, answer| {
            let mut answer = crumbs(&answer);
            answer.truncate(100);
            answer
        }),
    ];
    for (name, twist) in twists {
        let from = Handle::sound(small_image(15).lying(twist));
        let to = Handle::sound(Disk::dirty(9 * MIB).slow());
        let events = Recorder::default();
        let copied = run(&from, &to, &evenly(), &events).await;
        copied.expect(name);
        assert!(to.disk.bytes() == from.disk.bytes(), "{name}");
        assert_eq!(events.warnings(), 0, "{name}");
    }
}

#[tokio::test]
async fn in_order_what_was_lost_is_read_again_although_what_follows_takes_all_the_room() {
    for requests in [1, 2] {
        let mut options = evenly();
        options.requests = Some(requests);
        let from = Handle::new(
            small_image(16),
            Opening::Granted,
            death(0, Operation::Read, 2),
        );
        let output = Output::new(usize::MAX);
        let source = Source::Device(Arc::clone(&from) as _);
        let target = Destination::Stream(Box::new(output.clone()));
        let events = Recorder::default();
        let control = Control::new();
        let copied = copy(source, target, &options, &control, &events);
        let copied = tokio::time::timeout(Duration::from_secs(20), copied).await;
        copied.expect("the copy ends").expect("copied");
        assert!(output.bytes() == from.disk.bytes());
        assert_eq!(losses(&events), 1);
    }
}
