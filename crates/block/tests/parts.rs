//! Devices that are joined, and parts cut out of devices.

use std::{fs, os::fd::AsRawFd, sync::Arc};

use blockferry_block::{
    Access, BlockDevice, Buffer, ByteRange, Capabilities, Context, ErrorKind, Extent, FileDevice,
    Mapping, MemoryDevice, NullDevice, Operation, PatternDevice, SampleDevice, SliceDevice,
    SplitDevice, Status, WriteFlags, ZeroFlags,
    testing::{Fault, FaultyDevice, Rule, answers, check_device},
};

fn memory(size: u64) -> Arc<dyn BlockDevice> {
    Arc::new(MemoryDevice::new(size))
}

#[tokio::test]
async fn joined_devices_hold_what_was_written() {
    for seed in 0..6 {
        let parts = vec![memory(100_001), memory(0), memory(1), memory(300_000)];
        let joined = SplitDevice::new(parts).expect("joined");
        assert_eq!(joined.info().size, 400_002);
        check_device(&joined, seed, 200).await;
    }
}

#[tokio::test]
async fn a_part_holds_what_was_written_and_nothing_around_it_changes() {
    for seed in 0..6 {
        let whole = Arc::new(MemoryDevice::from_bytes(vec![7; 400_000]));
        let part = SliceDevice::new(whole.clone(), 70_001, Some(200_000)).expect("a part");
        check_device(&part, seed, 200).await;
        let bytes = whole.contents();
        assert!(bytes[..70_001].iter().all(|byte| *byte == 7));
        assert!(bytes[270_001..].iter().all(|byte| *byte == 7));
        let other = SliceDevice::new(whole, 270_001, None).expect("a part");
        assert_eq!(other.info().size, 129_999);
        // And both ways round: parts joined again.
        let joined = SplitDevice::new(vec![Arc::new(other), Arc::new(part)]).expect("joined");
        check_device(&joined, seed, 200).await;
    }
}

#[tokio::test]
async fn joined_files_and_parts_of_files_hold_what_was_written() {
    let directory = tempfile::tempdir().expect("a directory");
    let open = |name: &str, size: u64| -> Arc<dyn BlockDevice> {
        let path = directory.path().join(name);
        let file = fs::File::create(&path).expect("made");
        file.set_len(size).expect("sized");
        Arc::new(FileDevice::open(&path, Access::ReadWrite).expect("opened"))
    };
    for seed in 0..3 {
        let joined = SplitDevice::new(vec![open("a", 123_457), open("b", 200_000)]);
        check_device(&joined.expect("joined"), seed, 200).await;
        let part = SliceDevice::new(open("c", 500_000), 1000, Some(300_000)).expect("a part");
        check_device(&part, seed, 200).await;
    }
}

#[tokio::test]
async fn extents_and_places_are_those_of_the_parts() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("file");
    fs::write(&path, vec![1; 1 << 20]).expect("written");
    let file = FileDevice::open(&path, Access::ReadWrite).expect("opened");
    let joined = SplitDevice::new(vec![
        memory(1 << 20),
        Arc::new(file),
        Arc::new(NullDevice::new(1 << 20)),
    ])
    .expect("joined");
    let part = SliceDevice::new(Arc::new(joined), 1 << 19, Some(2 << 20)).expect("a part");
    let extents = part
        .extents(ByteRange::between(10, 2 << 20), &Context::Allocation)
        .await;
    let extent = |start, end, status| Extent {
        range: ByteRange::between(start, end),
        status,
    };
    assert_eq!(
        extents.expect("an answer"),
        [
            extent(10, 1 << 19, Status::HOLE_ZERO),
            extent(1 << 19, 3 << 19, Status::DATA),
            extent(3 << 19, 2 << 20, Status::HOLE_ZERO),
        ]
    );
    match part.mapping(ByteRange::between((1 << 19) + 100, 2 << 20)) {
        Mapping::File { fd, offset, length } => {
            assert!(fd.as_raw_fd() >= 0);
            assert_eq!((offset, length), (100, (1 << 20) - 100));
        }
        other => panic!("not in a file: {other:?}"),
    }
    match part.mapping(ByteRange::between(3 << 19, u64::MAX)) {
        Mapping::Zero { length } => assert_eq!(length, 1 << 19),
        other => panic!("not zeroes: {other:?}"),
    }
    let depth = part.extents(ByteRange::between(0, 10), &Context::AllocationDepth);
    assert_eq!(
        depth.await.expect_err("unknown").kind(),
        ErrorKind::Unsupported
    );
}

#[tokio::test]
async fn what_one_part_cannot_do_the_whole_cannot() {
    let pattern: Arc<dyn BlockDevice> = Arc::new(PatternDevice::new(4096));
    let joined = SplitDevice::new(vec![memory(4096), pattern]).expect("joined");
    assert!(!joined.info().can(Capabilities::WRITE));
    let write = joined.write(0, Buffer::zeroed(1), WriteFlags::empty());
    assert_eq!(write.await.expect_err("fixed").kind(), ErrorKind::ReadOnly);
    let read = joined
        .read(4090, Buffer::from(&[1; 20][..]))
        .await
        .expect("read");
    assert_eq!(read[..], [[0; 13].as_slice(), &[0; 7]].concat());
    let read = joined.read(4100, Buffer::zeroed(12)).await.expect("read");
    assert_eq!(read[..], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8]);
    assert!(SplitDevice::new(Vec::new()).is_err());
    let large = || memory(1 << 62);
    let error = SplitDevice::new(vec![large(), large()])
        .err()
        .expect("too large");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn what_lies_outside_of_a_part_is_never_reached() {
    let sample = SampleDevice::new("1M".parse().expect("a sample"));
    let whole: Arc<dyn BlockDevice> = Arc::new(sample);
    for (offset, length) in [
        (0, Some((1 << 20) + 1)),
        (1, Some(1 << 20)),
        ((1 << 20) + 1, None),
        (u64::MAX, None),
        (u64::MAX, Some(u64::MAX)),
        (0, Some(u64::MAX)),
    ] {
        let part = SliceDevice::new(Arc::clone(&whole), offset, length);
        assert_eq!(
            part.err().map(|error| error.kind()),
            Some(ErrorKind::OutOfBounds)
        );
    }
    let part = SliceDevice::new(Arc::clone(&whole), 1000, Some(1000)).expect("a part");
    for (offset, length) in [(1000, 1), (999, 2), (u64::MAX, 1), (u64::MAX - 999, 1)] {
        let error = part
            .read(offset, Buffer::zeroed(length))
            .await
            .expect_err("outside");
        assert_eq!(error.kind(), ErrorKind::OutOfBounds);
    }
    assert!(matches!(
        part.mapping(ByteRange::between(1000, 2000)),
        Mapping::Opaque | Mapping::Zero { length: 0 }
    ));
    let empty = SliceDevice::new(whole, 1 << 20, None).expect("an empty part");
    assert_eq!(empty.info().size, 0);
}

#[tokio::test]
async fn a_failure_is_told_where_it_is_in_the_whole() {
    let faulty = FaultyDevice::new(memory(4096))
        .with(Rule::on(Operation::Read).fault(Fault::Error(ErrorKind::Io)));
    let joined = SplitDevice::new(vec![memory(1000), Arc::new(faulty)]).expect("joined");
    let part = SliceDevice::new(Arc::new(joined), 900, None).expect("a part");
    for (offset, length, told) in [(200, 10, (200, 10)), (90, 20, (90, 20))] {
        let error = part
            .read(offset, Buffer::zeroed(length))
            .await
            .expect_err("faulty");
        assert_eq!(
            (error.offset(), error.length()),
            (Some(told.0), Some(told.1))
        );
        assert_eq!(error.operation(), Some(Operation::Read));
    }
    part.read(0, Buffer::zeroed(100))
        .await
        .expect("all in the first");
}

#[tokio::test]
async fn blocks_are_not_cut() {
    let sectors = |size| -> Arc<dyn BlockDevice> {
        let device = FaultyDevice::new(memory(size));
        Arc::new(device.with_info(|info| info.limits.minimum = 512))
    };
    let joined = SplitDevice::new(vec![memory(1024), sectors(1024), memory(100)]);
    assert_eq!(joined.expect("joined").info().limits.minimum, 512);
    let cut = SplitDevice::new(vec![memory(1000), sectors(1024)]);
    assert_eq!(
        cut.err().map(|error| error.kind()),
        Some(ErrorKind::InvalidInput)
    );
    for (offset, length, fits) in [
        (512, Some(512), true),
        (512, None, true),
        (1, Some(512), false),
        (512, Some(1), false),
    ] {
        let part = SliceDevice::new(sectors(1300), offset, length);
        assert_eq!(part.is_ok(), fits, "{length:?} at {offset}");
    }
}

#[tokio::test]
async fn false_answers_of_a_part_reach_nothing_outside_of_it() {
    for answer in [
        answers::short,
        answers::empty,
        answers::of_no_length,
        answers::endless,
        answers::overlapping,
        answers::with_gap,
        answers::backwards,
        answers::outside,
    ] {
        let rule = Rule::on(Operation::Extents).fault(Fault::Extents(answer));
        let liar = Arc::new(FaultyDevice::new(memory(4096)).with(rule));
        let joined = SplitDevice::new(vec![memory(1000), liar, memory(1000)]).expect("joined");
        let part = SliceDevice::new(Arc::new(joined), 500, Some(5000)).expect("a part");
        let range = ByteRange::between(100, 5000);
        let extents = part
            .extents(range, &Context::Allocation)
            .await
            .expect("an answer");
        assert!(extents.iter().all(|extent| range.contains(extent.range)));
    }
}

#[tokio::test]
async fn a_flush_reaches_all_parts_even_when_one_fails() {
    let rule = || Rule::on(Operation::Flush).fault(Fault::Error(ErrorKind::Io));
    let failing = Arc::new(FaultyDevice::new(memory(10)).with(rule()));
    let sound = Arc::new(FaultyDevice::new(memory(10)));
    let joined = SplitDevice::new(vec![failing, sound.clone()]).expect("joined");
    joined.flush().await.expect_err("one fails");
    assert_eq!(sound.calls(Operation::Flush), 1);
    let zero = joined.zero(ByteRange::between(5, 15), ZeroFlags::empty());
    zero.await.expect("zeroed");
    assert_eq!(sound.calls(Operation::Zero), 1);
}
