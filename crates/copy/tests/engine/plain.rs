//! The engine between the plain devices, and with a device in front of them that fails on demand.

use std::{
    io::{Read, pipe},
    sync::Arc,
    time::Duration,
};

use blockferry_block::{
    Access, BlockDevice, ByteRange, Capabilities, ErrorKind, FdSink, FdSource, FileDevice,
    MemoryDevice, NullDevice, Operation,
    testing::{Fault, FaultyDevice, Rule, answers},
};
use blockferry_copy::{Control, CopyOptions, Destination, Event, Side, Source, copy};

use crate::{Recorder, copy_device, device, pattern, to_device};

const SIZE: usize = 3 << 20;

/// Three MiB, the second of which is a hole, and a few zeroes that no extent tells of.
fn image() -> Vec<u8> {
    let mut bytes = pattern(SIZE + 777, 1);
    bytes[1 << 20..2 << 20].fill(0);
    bytes[8192..24_576].fill(0);
    bytes
}

fn faulty(bytes: &[u8], rules: impl IntoIterator<Item = Rule>) -> Arc<FaultyDevice> {
    let device = FaultyDevice::new(Arc::new(MemoryDevice::from_bytes(bytes)));
    Arc::new(rules.into_iter().fold(device, FaultyDevice::with))
}

#[tokio::test]
async fn a_file_is_created_sparse_and_read_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("image");
    let memory = Arc::new(MemoryDevice::from_bytes(image()));
    let file = Arc::new(FileDevice::create(&path).expect("a file"));
    let report = copy_device(&memory, &file, &CopyOptions::default()).await;
    let report = report.expect("copied");
    assert_eq!(report.zero, (1 << 20) + 16_384);
    assert!(report.flushed);
    assert!(std::fs::read(&path).expect("readable") == image());

    let file = FileDevice::open(&path, Access::ReadOnly).expect("a file");
    let back = Arc::new(MemoryDevice::new(0).growable());
    let copied = copy_device(&Arc::new(file), &back, &CopyOptions::default()).await;
    copied.expect("copied");
    assert!(back.contents() == image());
    assert!(back.allocated() <= (2 << 20) + (64 << 10));
}

#[tokio::test]
async fn what_was_in_a_file_is_overwritten() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("image");
    for allocated in [false, true] {
        std::fs::write(&path, vec![0xd1; SIZE + 5000]).expect("a file");
        let memory = Arc::new(MemoryDevice::from_bytes(image()));
        let file = FileDevice::open(&path, Access::ReadWrite).expect("a file");
        let mut options = CopyOptions::default();
        options.allocated = allocated;
        let copied = copy_device(&memory, &Arc::new(file), &options).await;
        copied.expect("copied");
        let mut expected = image();
        expected.resize(SIZE + 5000, 0xd1);
        assert!(std::fs::read(&path).expect("readable") == expected);
    }
}

#[tokio::test]
async fn an_image_goes_through_a_pipe() {
    let (reader, writer) = pipe().expect("a pipe");
    let memory = Arc::new(MemoryDevice::from_bytes(image()));
    let back = Arc::new(MemoryDevice::new(0).growable());
    let to_pipe = Destination::Stream(Box::new(FdSink::new(writer, "out")));
    let from_pipe = Source::Stream(Box::new(FdSource::new(reader, "in")));
    let (options, control) = (CopyOptions::default(), Control::new());
    // The sink is closed when its copy ends: that is the end of the other's input.
    let (sent, received) = tokio::join!(
        copy(device(&memory), to_pipe, &options, &control, &()),
        copy(from_pipe, to_device(&back), &options, &control, &()),
    );
    assert_eq!(sent.expect("sent").size, (SIZE + 777) as u64);
    assert_eq!(received.expect("received").zero, (1 << 20) + 16_384);
    assert!(back.contents() == image());
}

#[tokio::test]
async fn anything_fits_into_nothing() {
    let memory = Arc::new(MemoryDevice::from_bytes(image()));
    let null = Arc::new(NullDevice::new(0));
    let report = copy_device(&memory, &null, &CopyOptions::default()).await;
    assert_eq!(report.expect("copied").size, (SIZE + 777) as u64);
}

#[tokio::test]
async fn every_operation_that_fails_ends_the_copy_with_its_error() {
    let cases = [
        (Operation::Read, Side::Source, 3),
        (Operation::Write, Side::Destination, 3),
        (Operation::Zero, Side::Destination, 1),
        (Operation::Flush, Side::Destination, 0),
    ];
    for (operation, side, after) in cases {
        for kind in [ErrorKind::Io, ErrorKind::NoSpace, ErrorKind::ConnectionLost] {
            let rule = Rule::on(operation).after(after).fault(Fault::Error(kind));
            let from = faulty(&image(), [rule.clone()]);
            let to = faulty(&vec![0xd1; SIZE + 777], [rule]);
            let mut options = CopyOptions::default();
            options.request_size = Some(65_536);
            options.requests = Some(4);
            let error = copy_device(&from, &to, &options).await.expect_err("failed");
            assert_eq!(
                (error.side, error.error.kind()),
                (side, kind),
                "{operation:?}"
            );
            assert_eq!(error.error.operation(), Some(operation));
            assert_eq!(error.error.endpoint(), Some("memory:"));
            // Those in flight, and the one that failed.
            let calls = if side == Side::Source {
                from.calls(operation)
            } else {
                to.calls(operation)
            };
            assert!(
                (after + 1..=after + 8).contains(&calls),
                "{operation:?}: {calls}"
            );
        }
    }
}

#[tokio::test]
async fn a_device_that_dies_on_either_side_ends_the_copy() {
    for source_dies in [true, false] {
        let dying = |bytes: &[u8], dies: bool| {
            let device = FaultyDevice::new(Arc::new(MemoryDevice::from_bytes(bytes)));
            Arc::new(if dies {
                device.dying_after(1_000_000)
            } else {
                device
            })
        };
        let from = dying(&image(), source_dies);
        let to = dying(&vec![0xd1; SIZE + 777], !source_dies);
        let error = copy_device(&from, &to, &CopyOptions::default()).await;
        let error = error.expect_err("one of them died");
        let side = if source_dies {
            Side::Source
        } else {
            Side::Destination
        };
        assert_eq!(
            (error.side, error.error.kind()),
            (side, ErrorKind::ConnectionLost)
        );
        assert!(error.progress.data <= 1_000_000);
    }
}

#[tokio::test]
async fn a_destination_that_stops_zeroing_halfway_is_written_to() {
    let refuse = Rule::on(Operation::Zero)
        .after(1)
        .fault(Fault::Error(ErrorKind::Unsupported));
    let from = faulty(&image(), []);
    let to = faulty(&vec![0xd1; SIZE + 777], [refuse]);
    let report = copy_device(&from, &to, &CopyOptions::default()).await;
    let report = report.expect("copied");
    assert_eq!(contents(&to).await, image());
    assert_eq!(report.data + report.zero, report.size);
}

#[tokio::test]
async fn answers_about_extents_that_make_no_sense_are_survived() {
    let wrong = [
        answers::empty,
        answers::of_no_length,
        answers::overlapping,
        answers::with_gap,
        answers::backwards,
        answers::outside,
    ];
    for answer in wrong {
        let from = faulty(
            &image(),
            [Rule::on(Operation::Extents).fault(Fault::Extents(answer))],
        );
        let to = faulty(&vec![0xd1; SIZE + 777], []);
        let events = Recorder::default();
        let (source, target) = (device(&from), to_device(&to));
        let options = CopyOptions::default();
        let copied = copy(source, target, &options, &Control::new(), &events).await;
        copied.expect("copied");
        assert!(contents(&to).await == image());
        assert_eq!((events.warnings(), from.calls(Operation::Extents)), (1, 1));
    }
}

#[tokio::test]
async fn answers_about_extents_that_are_tiresome_are_taken() {
    let bytes = vec![0; 50_000];
    for answer in [answers::short, answers::endless] {
        let from = faulty(
            &bytes,
            [Rule::on(Operation::Extents).fault(Fault::Extents(answer))],
        );
        let to = faulty(&vec![0xd1; 50_000], []);
        let events = Recorder::default();
        let (source, target) = (device(&from), to_device(&to));
        let options = CopyOptions::default();
        let copied = copy(source, target, &options, &Control::new(), &events).await;
        copied.expect("copied");
        assert_eq!((contents(&to).await, events.warnings()), (bytes.clone(), 0));
    }
}

#[tokio::test]
async fn reads_that_come_late_are_waited_for() {
    let late = Rule::on(Operation::Read)
        .times(2)
        .fault(Fault::Delay(Duration::from_millis(20)));
    let from = faulty(&image(), [late]);
    let (reader, writer) = pipe().expect("a pipe");
    let to = Destination::Stream(Box::new(FdSink::new(writer, "out")));
    let (options, control) = (CopyOptions::default(), Control::new());
    let reading = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        (&reader).read_to_end(&mut bytes).expect("readable");
        bytes
    });
    let copied = copy(device(&from), to, &options, &control, &()).await;
    copied.expect("copied");
    assert!(reading.await.expect("read") == image());
}

#[tokio::test]
async fn a_read_that_hangs_does_not_keep_a_copy_from_being_cancelled() {
    let hang = Rule::on(Operation::Read).after(5).fault(Fault::Hang);
    let from = faulty(&image(), [hang]);
    let to = faulty(&vec![0xd1; SIZE + 777], []);
    let control = Control::new();
    let observer = |event: Event| {
        if matches!(event, Event::Progress(_)) {
            control.cancel();
        }
    };
    let (source, target) = (device(&from), to_device(&to));
    let copied = copy(source, target, &CopyOptions::default(), &control, &observer).await;
    assert_eq!(copied.expect_err("cancelled").side, Side::Cancelled);
}

#[tokio::test]
async fn what_a_device_says_of_itself_is_checked() {
    let from = faulty(&image(), []);
    let change = |change: fn(&mut blockferry_block::DeviceInfo)| {
        let memory = Arc::new(MemoryDevice::new(u64::MAX));
        Arc::new(FaultyDevice::new(memory).with_info(change))
    };
    let huge = change(|info| info.size = u64::MAX);
    let error = copy_device(&huge, &from, &CopyOptions::default()).await;
    assert_eq!(
        error.expect_err("too large").error.kind(),
        ErrorKind::Incompatible
    );
    let read_only = change(|info| info.capabilities -= Capabilities::WRITE);
    let error = copy_device(&from, &read_only, &CopyOptions::default()).await;
    assert_eq!(
        error.expect_err("read-only").error.kind(),
        ErrorKind::ReadOnly
    );
}

async fn contents(device: &Arc<FaultyDevice>) -> Vec<u8> {
    let back = Arc::new(MemoryDevice::new(device.info().size));
    let copied = copy_device(device, &back, &CopyOptions::default()).await;
    copied.expect("copied");
    back.contents()
}

#[tokio::test]
async fn only_the_range_of_a_failed_read_is_named() {
    let bad = Rule::on(Operation::Read)
        .within(ByteRange::between(700_000, 700_001))
        .fault(Fault::Error(ErrorKind::Io));
    let from = faulty(&image(), [bad]);
    let to = faulty(&vec![0xd1; SIZE + 777], []);
    let error = copy_device(&from, &to, &CopyOptions::default()).await;
    let error = error.expect_err("a bad block");
    let range = (error.error.offset(), error.error.length());
    assert_eq!(range, (Some(524_288), Some(262_144)));
}

#[tokio::test]
async fn short_holes_cost_no_requests_and_stay_holes() {
    use std::os::unix::fs::{FileExt, MetadataExt};
    let directory = tempfile::tempdir().expect("a directory");
    let (from, to) = (directory.path().join("from"), directory.path().join("to"));
    let file = std::fs::File::create(&from).expect("a file");
    file.set_len(SIZE as u64).expect("room for holes");
    for offset in (0..SIZE as u64).step_by(8192) {
        file.write_all_at(&pattern(4096, 1), offset).expect("room");
    }

    let source = FileDevice::open(&from, Access::ReadOnly).expect("a file");
    let source = Arc::new(FaultyDevice::new(Arc::new(source)));
    let target = Arc::new(FileDevice::create(&to).expect("a file"));
    let report = copy_device(&source, &target, &CopyOptions::default())
        .await
        .expect("copied");
    assert_eq!(report.data, SIZE as u64 / 2);
    assert_eq!(source.calls(Operation::Read), SIZE as u64 / (256 << 10));
    assert!(std::fs::read(&to).expect("readable") == std::fs::read(&from).expect("readable"));
    let allocated = to.metadata().expect("a file").blocks() * 512;
    assert!(allocated < SIZE as u64 * 3 / 4, "{allocated} bytes on disk");

    // Where nobody looks for zeroes, a hole that is known is all there is to make one from.
    let mut blind = CopyOptions::default();
    blind.sparse = None;
    let target = Arc::new(FileDevice::create(&to).expect("a file"));
    let report = copy_device(&source, &target, &blind).await.expect("copied");
    assert_eq!(report.zero, SIZE as u64 / 2);
}
