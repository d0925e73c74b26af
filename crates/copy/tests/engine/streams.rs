//! Streams on either side: lengths that are not known, order that must be kept.

use std::sync::atomic::Ordering;

use blockferry_block::{Capabilities, ErrorKind};
use blockferry_copy::{
    Control, CopyError, CopyOptions, Destination, Event, Report, Side, Source, copy,
};

use crate::{
    Recorder, device,
    disk::Disk,
    pattern,
    pipe::{End, Input, Output},
    to_device,
};

const REQUEST: usize = 4096;

fn options() -> CopyOptions {
    let mut options = CopyOptions::default();
    options.request_size = Some(REQUEST as u32);
    options.requests = Some(6);
    options
}

fn input(bytes: &[u8], end: End) -> Source {
    Source::Stream(Box::new(Input::new(bytes.to_vec(), end)))
}

fn output(output: &Output) -> Destination {
    Destination::Stream(Box::new(output.clone()))
}

async fn run(from: Source, to: Destination) -> Result<Report, CopyError> {
    copy(from, to, &options(), &Control::new(), &()).await
}

#[tokio::test]
async fn a_stream_of_any_length_is_copied() {
    let lengths = [
        0,
        1,
        REQUEST - 1,
        REQUEST,
        REQUEST + 1,
        10 * REQUEST,
        10 * REQUEST + 17,
    ];
    for length in lengths {
        let bytes = pattern(length, 1);
        let growing = Disk::growing().slow().into_arc();
        let report = run(input(&bytes, End::Ends), to_device(&growing)).await;
        assert_eq!(report.expect("copied").size, length as u64);
        assert!(growing.bytes() == bytes);

        let fixed = Disk::dirty(50_000).limits(512, 65_536).slow().into_arc();
        let report = run(input(&bytes, End::Ends), to_device(&fixed)).await;
        assert_eq!(report.expect("copied").data, length as u64);
        let mut expected = bytes.clone();
        expected.resize(50_000, 0xd1);
        assert!(fixed.bytes() == expected);

        let out = Output::new(usize::MAX);
        let report = run(input(&bytes, End::Ends), output(&out)).await;
        assert_eq!(report.expect("copied").size, length as u64);
        assert!(out.bytes() == bytes && out.is_flushed());
    }
}

#[tokio::test]
async fn zeroes_at_the_end_of_a_stream_count() {
    for length in [10 * REQUEST, 10 * REQUEST + 100] {
        let mut bytes = pattern(length, 2);
        bytes[REQUEST..].fill(0);
        let to = Disk::growing().limits(512, 65_536).into_arc();
        let report = run(input(&bytes, End::Ends), to_device(&to)).await;
        let report = report.expect("copied");
        assert_eq!(
            (report.data, report.zero),
            (REQUEST as u64, (length - REQUEST) as u64)
        );
        assert!(to.bytes() == bytes);
        assert_eq!(to.traffic.zeroes.load(Ordering::Relaxed), 0);
    }
}

#[tokio::test]
async fn a_stream_makes_a_resizable_destination_shorter() {
    let bytes = pattern(10_000, 3);
    let to = Disk::dirty(60_000).with(Capabilities::RESIZE).into_arc();
    run(input(&bytes, End::Ends), to_device(&to))
        .await
        .expect("copied");
    assert_eq!(to.bytes(), bytes);
}

#[tokio::test]
async fn a_stream_that_goes_on_behind_the_destination_fails() {
    for (room, length) in [(8192, 8193), (8192, 100_000), (8000, 8192), (0, 1)] {
        let to = Disk::dirty(room).into_arc();
        let error = run(input(&pattern(length, 4), End::Ends), to_device(&to)).await;
        let error = error.expect_err("too long");
        assert_eq!(
            (error.side, error.error.kind()),
            (Side::Destination, ErrorKind::OutOfBounds)
        );
        let expected =
            format!("the destination is too small: its size is {room} and the input goes on");
        assert!(error.to_string().ends_with(&expected), "{error}");
        assert_eq!(error.error.endpoint(), Some("disk"));
    }
}

#[tokio::test]
async fn a_stream_that_fills_the_destination_fits() {
    let bytes = pattern(8192, 5);
    let to = Disk::dirty(8192).into_arc();
    run(input(&bytes, End::Ends), to_device(&to))
        .await
        .expect("copied");
    assert_eq!(to.bytes(), bytes);
}

#[tokio::test]
async fn a_slow_source_comes_out_in_order() {
    let from = Disk::new(pattern(1 << 20, 6))
        .slow()
        .zero_extents([(300_000, 400_000)]);
    let from = from.into_arc();
    let (out, events) = (Output::new(usize::MAX), Recorder::default());
    let copied = copy(
        device(&from),
        output(&out),
        &options(),
        &Control::new(),
        &events,
    )
    .await;
    let report = copied.expect("copied");
    assert!(out.bytes() == from.bytes() && out.is_flushed() && report.flushed);
    assert_eq!(events.progress().done, 1 << 20);
    // Read ahead, but no further than was allowed.
    let most = from.traffic.most_in_flight.load(Ordering::Relaxed);
    assert!(most > REQUEST as u64, "{most}");
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_the_copy() {
    let from = Disk::new(pattern(1 << 20, 7)).slow().into_arc();
    let error = run(device(&from), output(&Output::new(100_000))).await;
    let error = error.expect_err("the reader is gone");
    assert_eq!(
        (error.side, error.error.kind()),
        (Side::Destination, ErrorKind::BrokenPipe)
    );
    assert_eq!(error.error.endpoint(), Some("output"));
    assert_eq!(error.progress.done, 98_304);
    let endless = run(
        input(&pattern(200_000, 7), End::Hangs),
        output(&Output::new(100_000)),
    )
    .await;
    assert_eq!(
        endless.expect_err("gone").error.kind(),
        ErrorKind::BrokenPipe
    );
}

#[tokio::test]
async fn a_failed_read_in_the_middle_ends_what_waits_for_its_turn() {
    let from = Disk::new(pattern(1 << 20, 8))
        .named("from")
        .slow()
        .failing(|_, range, _| (range.start() == 40 * REQUEST as u64).then_some(ErrorKind::Io));
    let (from, out) = (from.into_arc(), Output::new(usize::MAX));
    let error = run(device(&from), output(&out))
        .await
        .expect_err("a read failed");
    assert_eq!(
        (error.side, error.error.endpoint()),
        (Side::Source, Some("from"))
    );
    assert!(from.bytes().starts_with(&out.bytes()) && out.bytes().len() <= 40 * REQUEST);
}

#[tokio::test]
async fn a_stream_that_fails_is_the_sources_fault() {
    let to = Disk::growing().into_arc();
    let error = run(
        input(&pattern(10_000, 9), End::Fails(ErrorKind::Io)),
        to_device(&to),
    )
    .await;
    let error = error.expect_err("the stream failed");
    assert_eq!(
        (error.side, error.error.offset()),
        (Side::Source, Some(8192))
    );
    assert!(
        error.to_string().starts_with("input: read at offset 8192"),
        "{error}"
    );
}

#[tokio::test]
async fn a_stream_that_never_delivers_does_not_keep_a_copy_from_ending() {
    let to = Disk::dirty(1 << 20)
        .failing(|_, range, _| (range.start() == REQUEST as u64).then_some(ErrorKind::NoSpace));
    let to = to.into_arc();
    let full = run(input(&pattern(10_000, 9), End::Hangs), to_device(&to)).await;
    assert_eq!(full.expect_err("full").error.kind(), ErrorKind::NoSpace);

    let (to, control) = (Disk::growing().into_arc(), Control::new());
    let observer = |event: Event| {
        if matches!(event, Event::Progress(progress) if progress.done == 8192) {
            control.cancel();
        }
    };
    let from = input(&pattern(10_000, 9), End::Hangs);
    let cancelled = copy(from, to_device(&to), &options(), &control, &observer).await;
    let error = cancelled.expect_err("cancelled");
    assert_eq!((error.side, error.progress.done), (Side::Cancelled, 8192));
}

#[tokio::test]
async fn the_size_of_a_stream_is_not_known_ahead() {
    let (out, events) = (Output::new(usize::MAX), Recorder::default());
    let from = input(&pattern(10, 1), End::Ends);
    let copied = copy(from, output(&out), &options(), &Control::new(), &events).await;
    copied.expect("copied");
    assert!(matches!(events.events()[0], Event::Planned { size: None }));
}
