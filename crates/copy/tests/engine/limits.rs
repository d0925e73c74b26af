//! Sizes, block sizes, bounds, and how zeroes come about.

use std::sync::{Arc, atomic::Ordering};

use blockferry_block::{Capabilities, ErrorKind};
use blockferry_copy::{Control, CopyOptions, Event, Side, copy};

use crate::{
    Recorder, copy_device, device,
    disk::{Disk, Mark},
    pattern, to_device,
};

#[tokio::test]
async fn a_small_destination_is_refused_before_a_byte_moves() {
    let from = Disk::new(pattern(10_000, 1)).into_arc();
    let to = Disk::dirty(9_999).named("small").into_arc();
    let error = copy_device(&from, &to, &CopyOptions::default()).await;
    let error = error.expect_err("too small");
    assert_eq!(
        (error.side, error.error.kind()),
        (Side::Plan, ErrorKind::OutOfBounds)
    );
    assert_eq!(
        error.to_string(),
        "small: the destination is too small: 9999 bytes, 10000 needed"
    );
    assert_eq!(from.traffic.reads.load(Ordering::Relaxed), 0);
    assert_eq!(to.bytes(), vec![0xd1; 9_999]);
}

#[tokio::test]
async fn a_destination_that_is_not_writable_is_refused() {
    let from = Disk::new(pattern(100, 1)).into_arc();
    let to = Disk::dirty(100).without(Capabilities::WRITE).into_arc();
    let error = copy_device(&from, &to, &CopyOptions::default()).await;
    let error = error.expect_err("read-only");
    assert_eq!(
        (error.side, error.error.kind()),
        (Side::Plan, ErrorKind::ReadOnly)
    );
    assert_eq!(error.error.endpoint(), Some("disk"));
}

#[tokio::test]
async fn block_sizes_that_cannot_meet_are_refused() {
    let from = Disk::new(pattern(65_536, 1)).limits(1, 4096).into_arc();
    let to = Disk::dirty(65_536).limits(8192, 65_536).into_arc();
    let error = copy_device(&from, &to, &CopyOptions::default()).await;
    let error = error.expect_err("nothing suits both");
    assert_eq!(
        (error.side, error.error.kind()),
        (Side::Plan, ErrorKind::Incompatible)
    );
    for (minimum, maximum) in [(0, 4096), (3, 4096), (4096, 512), (1 << 30, u32::MAX)] {
        let from = Disk::new(Vec::new()).limits(minimum, maximum).into_arc();
        let error = copy_device(&from, &to, &CopyOptions::default()).await;
        let error = error.expect_err("impossible limits");
        assert_eq!(
            (error.side, error.error.kind()),
            (Side::Plan, ErrorKind::Incompatible)
        );
    }
}

#[tokio::test]
async fn an_empty_image_is_copied() {
    let from = Disk::new(Vec::new()).into_arc();
    for to in [Disk::dirty(0), Disk::dirty(1000), Disk::growing()] {
        let (to, events) = (to.into_arc(), Recorder::default());
        let before = to.bytes();
        let (source, target) = (device(&from), to_device(&to));
        let options = CopyOptions::default();
        let report = copy(source, target, &options, &Control::new(), &events).await;
        let report = report.expect("the copy succeeds");
        assert_eq!(
            (report.size, report.flushed, report.extent_requests),
            (0, true, 0)
        );
        assert_eq!((to.bytes(), events.progress().done), (before, 0));
    }
}

#[tokio::test]
async fn the_last_incomplete_block_leaves_what_is_behind_it() {
    for zero in [false, true] {
        let bytes = if zero {
            vec![0; 1_000_003]
        } else {
            pattern(1_000_003, 2)
        };
        let from = Disk::new(bytes).limits(512, 1 << 20);
        let from = from.zero_extents(zero.then_some((0, 1_000_003))).into_arc();
        for size in [1_000_003, 1_000_100, 1_003_520, 1_100_000] {
            let before = pattern(size, 0xd1);
            let to = Disk::new(before.clone()).limits(4096, 65_536).into_arc();
            let report = copy_device(&from, &to, &CopyOptions::default()).await;
            let report = report.expect("the copy succeeds");
            let mut expected = from.bytes();
            expected.extend_from_slice(&before[1_000_003..]);
            assert!(to.bytes() == expected, "a destination of {size} bytes");
            assert_eq!(report.data + report.zero, 1_000_003);
        }
    }
}

#[tokio::test]
async fn a_growing_destination_takes_the_sources_size_and_needs_no_zeroes() {
    let from = Disk::new(pattern(1_000_003, 3))
        .zero_extents([(4096, 1_000_003)])
        .into_arc();
    let to = Disk::growing().into_arc();
    let report = copy_device(&from, &to, &CopyOptions::default()).await;
    let report = report.expect("the copy succeeds");
    assert!(to.bytes() == from.bytes());
    assert_eq!((report.data, report.zero), (4096, 995_907));
    assert_eq!(to.traffic.zeroes.load(Ordering::Relaxed), 0);
    assert!(
        to.marks()[4096..]
            .iter()
            .all(|mark| *mark == Mark::Untouched)
    );
}

#[tokio::test]
async fn what_was_in_a_resizable_destination_is_gone() {
    let from = Disk::new(pattern(50_000, 3))
        .zero_extents([(0, 40_000)])
        .into_arc();
    for size in [100, 50_000, 90_000] {
        let to = Disk::dirty(size).with(Capabilities::RESIZE).into_arc();
        let copied = copy_device(&from, &to, &CopyOptions::default()).await;
        copied.expect("the copy succeeds");
        assert!(to.bytes() == from.bytes());
    }
}

#[tokio::test]
async fn zeroes_that_are_found_become_holes() {
    let mut bytes = pattern(1 << 20, 4);
    bytes[100_000..200_000].fill(0);
    bytes[300_000..302_000].fill(0);
    let from = Disk::new(bytes).into_arc();
    let to = Disk::dirty(1 << 20).into_arc();
    let report = copy_device(&from, &to, &CopyOptions::default()).await;
    let report = report.expect("the copy succeeds");
    assert!(to.bytes() == from.bytes());
    // Whole blocks of 4096 bytes; the shorter run is data.
    let (start, end) = (102_400, 196_608);
    assert_eq!(report.zero, (end - start) as u64);
    let marks = to.marks();
    assert!(marks[start..end].iter().all(|mark| *mark == Mark::Hole));
    let written = marks.iter().filter(|mark| **mark == Mark::Written).count();
    assert_eq!(written as u64, report.data);
}

#[tokio::test]
async fn without_detection_only_extents_are_zero() {
    let from = Disk::new(vec![0; 100_000])
        .zero_extents([(0, 30_000)])
        .into_arc();
    let to = Disk::dirty(100_000).into_arc();
    let mut options = CopyOptions::default();
    options.sparse = None;
    let report = copy_device(&from, &to, &options).await.expect("copied");
    assert_eq!((report.data, report.zero), (70_000, 30_000));
    assert_eq!(to.bytes(), from.bytes());
}

#[tokio::test]
async fn an_allocated_destination_has_no_hole() {
    let mut bytes = pattern(300_000, 5);
    bytes[200_000..].fill(0);
    for capabilities in [Capabilities::empty(), Capabilities::BORN_ZERO] {
        let from = Disk::new(bytes.clone())
            .zero_extents([(50_000, 100_000)])
            .into_arc();
        let to = Disk::new(vec![0; 300_000]).with(capabilities).into_arc();
        let mut options = CopyOptions::default();
        options.allocated = true;
        let report = copy_device(&from, &to, &options).await.expect("copied");
        assert_eq!(to.bytes(), from.bytes());
        assert_eq!((report.data, report.zero), (250_000, 50_000));
        let marks = to.marks();
        assert!(
            marks[50_000..100_000]
                .iter()
                .all(|mark| *mark == Mark::Allocated)
        );
        assert!(!marks.contains(&Mark::Hole) && !marks.contains(&Mark::Untouched));
    }
}

#[tokio::test]
async fn a_destination_that_is_zero_already_is_not_zeroed() {
    let mut bytes = pattern(300_000, 6);
    bytes[200_000..].fill(0);
    let from = Disk::new(bytes)
        .zero_extents([(50_000, 100_000)])
        .into_arc();
    for capabilities in [Capabilities::empty(), Capabilities::BORN_ZERO] {
        let to = Disk::new(vec![0; 300_000]).with(capabilities).into_arc();
        let mut options = CopyOptions::default();
        options.destination_is_zero = capabilities.is_empty();
        let report = copy_device(&from, &to, &options).await.expect("copied");
        assert_eq!(to.bytes(), from.bytes());
        assert_eq!(to.traffic.zeroes.load(Ordering::Relaxed), 0);
        assert!(report.zero > 140_000);
        assert!(
            to.marks()[204_800..]
                .iter()
                .all(|mark| *mark == Mark::Untouched)
        );
    }
}

#[tokio::test]
async fn no_more_is_in_flight_than_was_allowed() {
    let cases = [
        (1 << 20, 16, 16_384, 1 << 20),
        (1 << 20, 3, 16_384, 1 << 20),
        (1 << 20, 64, 16_384, 50_000),
        (1000, 4, 65_536, 1),
    ];
    for (size, requests, request_size, queue_size) in cases {
        let from = Disk::new(pattern(size, 7)).slow();
        let to = Disk::dirty(size).slow().counting_with(&from).into_arc();
        let from = Arc::new(from);
        let mut options = CopyOptions::default();
        options.requests = Some(requests);
        options.request_size = Some(request_size);
        options.queue_size = Some(queue_size);
        copy_device(&from, &to, &options).await.expect("copied");
        assert!(to.bytes() == from.bytes());
        let request = u64::from(request_size).min(queue_size);
        let allowed = (requests as u64 * request).min(queue_size);
        let most = to.traffic.most_in_flight.load(Ordering::Relaxed);
        assert!(most <= allowed, "{most} bytes in flight, {allowed} allowed");
        // The bound is used, too.
        assert!(
            most + request > allowed,
            "{most} bytes in flight, {allowed} allowed"
        );
    }
}

#[tokio::test]
async fn a_copy_is_flushed_last_and_tells_it() {
    let from = Disk::new(pattern(100_000, 8)).into_arc();
    for flush in [true, false] {
        let (to, events) = (Disk::dirty(100_000).into_arc(), Recorder::default());
        let mut options = CopyOptions::default();
        options.flush = flush;
        let (source, target) = (device(&from), to_device(&to));
        let report = copy(source, target, &options, &Control::new(), &events).await;
        assert_eq!(report.expect("the copy succeeds").flushed, flush);
        assert_eq!(
            to.traffic.flushes.load(Ordering::Relaxed),
            usize::from(flush)
        );
        let events = events.events();
        assert!(matches!(
            events.first(),
            Some(Event::Planned {
                size: Some(100_000)
            })
        ));
        let last = events.last().expect("events");
        assert_eq!(matches!(last, Event::Flushing), flush);
    }
}
