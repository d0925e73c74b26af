//! What fails, on which side, and what is told of it; and copies that are cancelled.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use blockferry_block::{Capabilities, ErrorKind, Operation};
use blockferry_copy::{Control, CopyError, CopyOptions, Event, Side, copy};

use crate::{
    Recorder, copy_device, device,
    disk::{Disk, Mark},
    pattern, to_device,
};

const SIZE: usize = 1 << 20;

fn small_requests() -> CopyOptions {
    let mut options = CopyOptions::default();
    options.request_size = Some(16_384);
    options.requests = Some(4);
    options
}

/// Copies an image whose disks fail `operation` where it begins at `offset` or behind.
async fn failing(operation: Operation, offset: u64, kind: ErrorKind) -> CopyError {
    let fault = move |op: Operation, range: blockferry_block::ByteRange, _: usize| {
        (op == operation && range.start() >= offset).then_some(kind)
    };
    let from = Disk::new(pattern(SIZE, 1))
        .named("from")
        .zero_extents([(500_000, 600_000)]);
    let from = from.slow().failing(fault).into_arc();
    let to = Disk::dirty(SIZE)
        .named("to")
        .slow()
        .failing(fault)
        .into_arc();
    let copied = copy_device(&from, &to, &small_requests()).await;
    assert_eq!(
        to.traffic.flushes.load(Ordering::Relaxed),
        usize::from(operation == Operation::Flush)
    );
    copied.expect_err("something failed")
}

#[tokio::test]
async fn a_failed_read_is_the_sources_fault() {
    let error = failing(Operation::Read, 327_680, ErrorKind::Io).await;
    assert_eq!(
        (error.side, error.error.kind()),
        (Side::Source, ErrorKind::Io)
    );
    let message = error.to_string();
    assert!(
        message.starts_with("from: read of 16384 bytes at offset"),
        "{message}"
    );
    assert!(error.error.offset() >= Some(327_680));
    assert!(error.progress.done > 0 && error.progress.done <= 500_000);
}

#[tokio::test]
async fn a_failed_write_is_the_destinations_fault() {
    let error = failing(Operation::Write, 327_680, ErrorKind::NoSpace).await;
    assert_eq!(
        (error.side, error.error.kind()),
        (Side::Destination, ErrorKind::NoSpace)
    );
    let message = error.to_string();
    assert!(
        message.starts_with("to: write of 16384 bytes at offset"),
        "{message}"
    );
}

#[tokio::test]
async fn a_failed_zero_is_not_taken_for_a_missing_one() {
    let error = failing(Operation::Zero, 0, ErrorKind::Io).await;
    assert_eq!(
        (error.side, error.error.kind()),
        (Side::Destination, ErrorKind::Io)
    );
    assert_eq!(error.error.operation(), Some(Operation::Zero));
}

#[tokio::test]
async fn a_failed_flush_fails_the_copy() {
    let error = failing(Operation::Flush, 0, ErrorKind::Io).await;
    assert_eq!(
        (error.side, error.error.operation()),
        (Side::Destination, Some(Operation::Flush))
    );
    assert_eq!(error.progress.done, SIZE as u64);
}

#[tokio::test]
async fn a_failed_resize_fails_the_copy() {
    let from = Disk::new(pattern(SIZE, 1)).into_arc();
    let to = Disk::growing()
        .failing(|operation, _, _| (operation == Operation::Resize).then_some(ErrorKind::NoSpace));
    let to = to.into_arc();
    let error = copy_device(&from, &to, &CopyOptions::default()).await;
    let error = error.expect_err("no space");
    assert_eq!(
        (error.side, error.error.kind()),
        (Side::Destination, ErrorKind::NoSpace)
    );
    assert_eq!(from.traffic.reads.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn after_a_failure_nothing_new_is_begun() {
    let from = Disk::new(pattern(SIZE, 2)).into_arc();
    let to = Disk::dirty(SIZE).failing(|operation, _, nth| {
        (operation == Operation::Write && nth == 3).then_some(ErrorKind::Io)
    });
    let to = to.into_arc();
    let error = copy_device(&from, &to, &small_requests()).await;
    error.expect_err("a write failed");
    assert!(to.traffic.writes.load(Ordering::Relaxed) <= 3 + 4);
    assert!(from.traffic.reads.load(Ordering::Relaxed) <= 3 + 2 * 4);
}

#[tokio::test]
async fn of_several_failures_the_first_is_told() {
    let from = Disk::new(pattern(SIZE, 2)).into_arc();
    let failures = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&failures);
    let to = Disk::dirty(SIZE).slow().failing(move |operation, _, nth| {
        let fails = operation == Operation::Write && nth >= 3;
        fails.then(|| match counter.fetch_add(1, Ordering::Relaxed) {
            0 => ErrorKind::Io,
            _ => ErrorKind::NoSpace,
        })
    });
    let to = to.into_arc();
    let mut options = small_requests();
    options.requests = Some(16);
    let error = copy_device(&from, &to, &options).await;
    assert_eq!(error.expect_err("failed").error.kind(), ErrorKind::Io);
    // Those that had begun have finished: each but the first three failed.
    let begun = to.traffic.writes.load(Ordering::Relaxed);
    assert!(begun > 5);
    assert_eq!(failures.load(Ordering::Relaxed), begun - 3);
}

#[tokio::test]
async fn zeroes_are_written_where_the_destination_does_not_zero() {
    let holes = [(65_536, 700_000), (800_000, 900_000)];
    for offered in [true, false] {
        let from = Disk::new(pattern(SIZE, 3)).zero_extents(holes).into_arc();
        let to = Disk::dirty(SIZE).slow().failing(|operation, _, _| {
            (operation == Operation::Zero).then_some(ErrorKind::Unsupported)
        });
        let to = if offered {
            to
        } else {
            to.without(Capabilities::ZERO)
        };
        let to = to.counting_with(&from_traffic(&from)).into_arc();
        let events = Recorder::default();
        let (source, target) = (device(&from), to_device(&to));
        let copied = copy(source, target, &small_requests(), &Control::new(), &events).await;
        let report = copied.expect("the copy succeeds");
        assert!(to.bytes() == from.bytes());
        assert!(to.marks().iter().all(|mark| *mark == Mark::Written));
        assert_eq!((report.zero, events.progress().zero), (734_464, 734_464));
        // Several at a time, and asked no oftener than were in flight when the answer came.
        assert!(to.traffic.most_writing.load(Ordering::Relaxed) > 1);
        let asked = to.traffic.zeroes.load(Ordering::Relaxed);
        assert!(
            if offered {
                (1..=4).contains(&asked)
            } else {
                asked == 0
            },
            "{asked}"
        );
    }
}

/// A disk that only counts, with the counters of another.
fn from_traffic(disk: &Arc<Disk>) -> Disk {
    let mut counter = Disk::new(Vec::new());
    counter.traffic = Arc::clone(&disk.traffic);
    counter
}

#[tokio::test]
async fn a_copy_is_cancelled_in_the_middle() {
    let from = Disk::new(pattern(SIZE, 4)).slow().into_arc();
    let to = Disk::dirty(SIZE).slow().into_arc();
    let control = Control::new();
    let seen = AtomicUsize::new(0);
    let observer = |event: Event| {
        if matches!(event, Event::Progress(_)) && seen.fetch_add(1, Ordering::Relaxed) == 10 {
            control.cancel();
        }
    };
    let (source, target) = (device(&from), to_device(&to));
    let copied = copy(source, target, &small_requests(), &control, &observer).await;
    let error = copied.expect_err("cancelled");
    assert_eq!(
        (error.side, error.error.kind()),
        (Side::Cancelled, ErrorKind::Cancelled)
    );
    assert!(error.progress.done >= 11 * 16_384 && error.progress.done <= 15 * 16_384);
    // What had begun has finished: as many bytes are there as were counted.
    let marks = to.marks();
    let written = marks.iter().filter(|mark| **mark == Mark::Written).count();
    assert_eq!(written as u64, error.progress.done);
    // And it is durable.
    assert_eq!(to.traffic.flushes.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_copy_that_was_cancelled_before_moves_nothing() {
    let from = Disk::new(pattern(SIZE, 4)).into_arc();
    let to = Disk::dirty(SIZE).into_arc();
    let control = Control::new();
    control.cancel();
    let (source, target) = (device(&from), to_device(&to));
    let copied = copy(source, target, &CopyOptions::default(), &control, &()).await;
    assert_eq!(copied.expect_err("cancelled").side, Side::Cancelled);
    assert_eq!(to.bytes(), vec![0xd1; SIZE]);
}

#[tokio::test]
async fn someone_else_in_the_same_thread_gets_to_cancel_a_copy_that_never_waits() {
    let from = Disk::new(pattern(SIZE, 5)).into_arc();
    let to = Disk::dirty(SIZE).into_arc();
    let control = Control::new();
    let mut options = CopyOptions::default();
    options.request_size = Some(512);
    let cancel = async { control.cancel() };
    let (source, target) = (device(&from), to_device(&to));
    let observer = ();
    let copying = async {
        let copied = copy(source, target, &options, &control, &observer).await;
        copied.expect_err("cancelled").progress.done
    };
    // In one task the copy is polled first, and hands over before its end.
    let (done, ()) = tokio::join!(copying, cancel);
    assert!(done > 0 && done < SIZE as u64, "{done}");
}

#[test]
fn a_copy_that_is_dropped_halfway_leaves_both_devices_usable() {
    let from = Disk::new(pattern(SIZE, 6)).slow().into_arc();
    let to = Disk::dirty(SIZE).slow().into_arc();
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.expect("a runtime");
    runtime.block_on(async {
        let (options, control) = (small_requests(), Control::new());
        let mut copying = Box::pin(copy(device(&from), to_device(&to), &options, &control, &()));
        for _ in 0..5 {
            let poll = copying
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(poll, Poll::Pending));
        }
        drop(copying);
        let copied = copy_device(&from, &to, &options).await;
        copied.expect("the copy succeeds");
    });
    assert!(to.bytes() == from.bytes());
}

#[test]
fn a_copy_can_move_to_another_thread() {
    fn send<T: Send>(value: T) -> T {
        value
    }
    let from = Disk::new(pattern(1000, 6)).into_arc();
    let to = Disk::dirty(1000).into_arc();
    let (options, control) = (CopyOptions::default(), Control::new());
    drop(send(copy(
        device(&from),
        to_device(&to),
        &options,
        &control,
        &(),
    )));
}
