//! What is remembered, what is not, and for how long.

use std::{fs::File, sync::Arc};

use blockferry_block::{
    Access, BlockDevice, Buffer, ByteRange, Capabilities, ClientFacts, Context, CopyFlags,
    ErrorKind, Extent, FileDevice, FileRange, Mapping, MemoryDevice, Operation, PipePool,
    SingleExport, Status, WriteFlags, ZeroFlags,
    testing::{Fault, FaultyDevice, Rule, answers, check_device},
};
use blockferry_filter::{CacheExtents, Filter, NamedFilter};

use crate::source::{Cached, Disk, Point, UNIT, contexts};

/// Four blocks of 64 KiB, of four units each.
const SIZE: u64 = 16 * UNIT;

const BLOCK: u64 = 4 * UNIT;

pub(crate) fn all() -> ByteRange {
    ByteRange::between(0, SIZE)
}

pub(crate) fn block(index: u64) -> ByteRange {
    ByteRange::between(index * BLOCK, (index + 1) * BLOCK)
}

/// Fails unless what is told of `range` is true now.
pub(crate) async fn ask(disk: &Disk, handle: &dyn BlockDevice, range: ByteRange) {
    for (number, context) in contexts().iter().enumerate() {
        let ages = disk.ages(number);
        let answer = handle.extents(range, context).await.expect("an answer");
        if let Err(wrong) = disk.check(range, number, &answer, &ages) {
            panic!("{wrong}");
        }
    }
}

async fn write(handle: &dyn BlockDevice, range: ByteRange) -> Result<(), ErrorKind> {
    let data = Buffer::zeroed(range.len() as usize);
    let written = handle.write(range.start(), data, WriteFlags::empty());
    written.await.map(drop).map_err(|error| error.kind())
}

#[tokio::test]
async fn what_was_asked_once_is_known_to_all_connections_and_outlives_them() {
    let disk = Disk::new(SIZE);
    let cached = Cached::new(&CacheExtents::default(), &[&disk]);
    let first = cached.open("a").await;
    ask(&disk, &*first, block(1)).await;
    drop(first);
    for _ in 0..3 {
        let handle = cached.open("a").await;
        for index in 1..4 {
            ask(&disk, &*handle, block(index)).await;
        }
    }
    // From where it began: nobody asked for what lies in front.
    let asked = ByteRange::between(BLOCK, SIZE);
    assert_eq!(disk.asked(), [asked, asked]);
    assert_eq!(
        (cached.count("a", "misses"), cached.count("a", "hits")),
        (2, 18)
    );
    assert_eq!(cached.count("a", "source_calls"), 2);
    assert_eq!(cached.count("a", "entries"), 24);
}

#[tokio::test]
async fn one_export_is_not_told_what_is_true_of_another() {
    let disks = [Disk::new(SIZE), Disk::new(SIZE)];
    // Different from the beginning.
    disks[1].change_now(all());
    let cached = Cached::new(&CacheExtents::default(), &[&disks[0], &disks[1]]);
    let (a, b) = (cached.open("a").await, cached.open("b").await);
    ask(&disks[0], &*a, all()).await;
    ask(&disks[1], &*b, all()).await;
    write(&*a, block(2)).await.expect("written");
    ask(&disks[1], &*b, all()).await;
    assert_eq!(
        disks[1].calls(),
        2,
        "what is written to one is nothing to the other"
    );
    ask(&disks[0], &*a, all()).await;
}

#[tokio::test]
async fn a_question_beside_a_write_brings_back_nothing_old() {
    for point in [Point::Before, Point::After] {
        let disk = Disk::new(SIZE);
        let cached = Cached::new(&CacheExtents::default(), &[&disk]);
        let (writer, reader) = (cached.open("a").await, cached.open("a").await);
        ask(&disk, &*reader, all()).await;
        let gate = disk.stop(Operation::Write, point);
        let writing = write(&*writer, block(1));
        let asking = async {
            gate.reached().await;
            // Neither of these is remembered.
            ask(&disk, &*reader, block(1)).await;
            ask(&disk, &*reader, block(1)).await;
            assert_eq!(disk.calls(), 2 + 4);
            gate.open();
        };
        let (written, ()) = tokio::join!(writing, asking);
        written.expect("written");
        ask(&disk, &*reader, block(1)).await;
        ask(&disk, &*reader, block(1)).await;
        assert_eq!(disk.calls(), 2 + 4 + 2);
    }
}

#[tokio::test]
async fn an_answer_that_was_on_its_way_when_a_write_began_is_not_remembered_there() {
    for point in [Point::Before, Point::After] {
        let disk = Disk::new(SIZE);
        let cached = Cached::new(&CacheExtents::default(), &[&disk]);
        let (writer, reader) = (cached.open("a").await, cached.open("a").await);
        let gate = disk.stop(Operation::Extents, point);
        let asking = ask(&disk, &*reader, all());
        let writing = async {
            gate.reached().await;
            write(&*writer, block(1)).await.expect("written");
            gate.open();
        };
        tokio::join!(asking, writing);
        let asked = disk.calls();
        ask(&disk, &*reader, all()).await;
        for index in [0, 2, 3] {
            ask(&disk, &*reader, block(index)).await;
        }
        assert_eq!(disk.calls(), asked, "the rest is remembered");
        ask(&disk, &*reader, block(1)).await;
        assert_eq!(
            disk.asked().last(),
            Some(&block(1)),
            "only the gap is asked for"
        );
    }
}

#[tokio::test]
async fn a_slow_question_blocks_nobody() {
    let disk = Disk::new(SIZE);
    let filter = CacheExtents {
        window: BLOCK,
        ..CacheExtents::default()
    };
    let cached = Cached::new(&filter, &[&disk]);
    let (one, other) = (cached.open("a").await, cached.open("a").await);
    let gate = disk.stop(Operation::Extents, Point::Before);
    let slow = ask(&disk, &*one, block(0));
    let beside = async {
        gate.reached().await;
        write(&*other, block(0)).await.expect("written");
        ask(&disk, &*other, block(0)).await;
        write(&*other, block(2)).await.expect("written");
        ask(&disk, &*other, block(2)).await;
        gate.open();
    };
    tokio::join!(slow, beside);
}

#[tokio::test]
async fn every_kind_of_change_makes_its_blocks_unknown_in_every_context() {
    let disk = Disk::new(SIZE);
    let cached = Cached::new(&CacheExtents::default(), &[&disk]);
    let (changer, reader) = (cached.open("a").await, cached.open("a").await);
    let file = tempfile::tempfile().expect("a file");
    file.set_len(SIZE).expect("room");
    let pipes = PipePool::new(1 << 16, 1 << 20);
    // Some bytes in the middle of a block.
    let range = ByteRange::between(BLOCK + 100, BLOCK + 1000);
    for kind in 0..5 {
        ask(&disk, &*reader, all()).await;
        let known = disk.calls();
        match kind {
            0 => write(&*changer, range).await.expect("written"),
            1 => changer
                .zero(range, ZeroFlags::empty())
                .await
                .expect("zeroed"),
            2 => changer
                .trim(range, WriteFlags::empty())
                .await
                .expect("trimmed"),
            3 => {
                let mut pipe = pipes.take().expect("a pipe");
                pipe.put(&[1; 900]).expect("room");
                let written = changer.write_piped(range.start(), pipe, WriteFlags::empty());
                written.await.expect("written");
            }
            _ => {
                let from = FileRange::new(
                    Arc::new(file.try_clone().expect("a file").into()),
                    ByteRange::between(0, 900),
                );
                let copied = changer.copy_from(range.start(), from, CopyFlags::empty());
                copied.await.expect("copied");
            }
        }
        ask(&disk, &*reader, block(0)).await;
        ask(&disk, &*reader, block(2)).await;
        assert_eq!(disk.calls(), known, "{kind}: what lies beside it is known");
        let _ = changer.read(range.start(), Buffer::zeroed(1)).await;
        ask(&disk, &*reader, ByteRange::between(BLOCK, BLOCK + 100)).await;
        assert_eq!(
            disk.calls(),
            known + 2,
            "{kind}: its whole block is asked for again"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_change_counts_and_one_that_was_lost_may_still_happen() {
    let disk = Disk::new(SIZE);
    let cached = Cached::new(&CacheExtents::default(), &[&disk]);
    let handle = cached.open("a").await;
    ask(&disk, &*handle, all()).await;
    disk.fail_changes(Some(ErrorKind::Io));
    assert_eq!(write(&*handle, block(0)).await, Err(ErrorKind::Io));
    ask(&disk, &*handle, block(0)).await;
    let known = disk.calls();
    ask(&disk, &*handle, block(0)).await;
    assert_eq!(disk.calls(), known);

    disk.fail_changes(Some(ErrorKind::ConnectionLost));
    assert!(write(&*handle, block(0)).await.is_err());
    for _ in 0..3 {
        ask(&disk, &*handle, block(0)).await;
        disk.change_now(block(0));
    }
    tokio::time::advance(std::time::Duration::from_secs(601)).await;
    ask(&disk, &*handle, block(0)).await;
    let known = disk.calls();
    ask(&disk, &*handle, block(0)).await;
    assert_eq!(disk.calls(), known, "it is not waited for any more");
}

#[tokio::test]
async fn a_change_that_was_given_up_may_still_happen() {
    for point in [Point::Before, Point::After] {
        let disk = Disk::new(SIZE);
        let cached = Cached::new(&CacheExtents::default(), &[&disk]);
        let handle = cached.open("a").await;
        ask(&disk, &*handle, all()).await;
        let gate = disk.stop(Operation::Zero, point);
        tokio::select! {
            _ = handle.zero(block(3), ZeroFlags::empty()) => panic!("it is stopped"),
            () = gate.reached() => {}
        }
        for _ in 0..3 {
            ask(&disk, &*handle, block(3)).await;
            disk.change_now(block(3));
        }
    }
}

#[tokio::test]
async fn of_many_lost_changes_none_is_forgotten() {
    let disk = Disk::new(600 * BLOCK);
    let cached = Cached::new(&CacheExtents::default(), &[&disk]);
    let handle = cached.open("a").await;
    disk.fail_changes(Some(ErrorKind::TimedOut));
    for index in 0..600 {
        assert!(write(&*handle, block(index)).await.is_err());
    }
    for _ in 0..2 {
        for index in 0..600 {
            ask(&disk, &*handle, block(index)).await;
            disk.change_now(block(index));
        }
    }
}

#[tokio::test]
async fn another_size_is_another_device() {
    let disk = Disk::new(SIZE);
    let cached = Cached::new(&CacheExtents::default(), &[&disk]);
    let old = cached.open("a").await;
    ask(&disk, &*old, all()).await;
    let gate = disk.stop(Operation::Extents, Point::After);
    write(&*old, block(1)).await.expect("written");
    let on_its_way = ask(&disk, &*old, block(1));
    let meanwhile = async {
        gate.reached().await;
        disk.become_large(2 * SIZE);
        let new = cached.open("a").await;
        ask(&disk, &*new, block(0)).await;
        gate.open();
        new
    };
    let ((), new) = tokio::join!(on_its_way, meanwhile);
    ask(&disk, &*new, block(1)).await;
    ask(&disk, &*new, ByteRange::between(SIZE, 2 * SIZE)).await;
    let known = disk.calls();
    ask(&disk, &*new, block(2)).await;
    assert_eq!(disk.calls(), known);
    // The old handle knows nothing, and what it is told goes no further.
    ask(&disk, &*old, block(2)).await;
    assert_eq!(disk.calls(), known + 2);
    write(&*old, block(2)).await.expect("written");
    ask(&disk, &*new, block(2)).await;
    assert_eq!(
        disk.calls(),
        known + 4,
        "what it writes is written all the same"
    );
}

#[tokio::test]
async fn a_resize_makes_everything_unknown_until_it_is_opened_again() {
    for point in [Point::Before, Point::After] {
        let disk = Disk::new(SIZE);
        let cached = Cached::new(&CacheExtents::default(), &[&disk]);
        let handle = cached.open("a").await;
        ask(&disk, &*handle, all()).await;
        let gate = disk.stop(Operation::Resize, point);
        let resizing = handle.resize(SIZE);
        let beside = async {
            gate.reached().await;
            ask(&disk, &*handle, block(0)).await;
            let early = cached.open("a").await;
            ask(&disk, &*early, block(0)).await;
            gate.open();
            early
        };
        let (resized, early) = tokio::join!(resizing, beside);
        resized.expect("resized");
        for handle in [&handle, &early] {
            let asked = disk.calls();
            ask(&disk, &**handle, block(0)).await;
            ask(&disk, &**handle, block(0)).await;
            assert_eq!(disk.calls(), asked + 4);
        }
        let new = cached.open("a").await;
        ask(&disk, &*new, all()).await;
        let known = disk.calls();
        ask(&disk, &*new, all()).await;
        assert_eq!(disk.calls(), known);
    }
}

#[tokio::test]
async fn questions_keep_to_the_blocks_of_the_source() {
    let disk = Disk::new(SIZE + 700);
    disk.set_smallest_block(512);
    let filter = CacheExtents {
        window: 1000,
        ..CacheExtents::default()
    };
    let cached = Cached::new(&filter, &[&disk]);
    let handle = cached.open("a").await;
    for (start, end) in [
        (0, 100_000),
        (SIZE, SIZE + 700),
        (512, 1024),
        (5120, 6144),
        // Where a source ended its answer off its blocks.
        (20_000, 20_480),
        (SIZE + 512, SIZE + 700),
    ] {
        ask(&disk, &*handle, ByteRange::between(start, end)).await;
    }
    for asked in disk.asked() {
        assert!(
            asked.start() % 512 == 0 && asked.len() <= 1024 + 512,
            "{asked}"
        );
        assert!(
            asked.end() % 512 == 0 || asked.end() == SIZE + 700,
            "{asked}"
        );
    }
}

#[tokio::test]
async fn an_error_goes_to_who_asked_and_is_not_remembered() {
    let disk = Disk::new(SIZE);
    disk.break_at(ByteRange::between(2 * BLOCK, 2 * BLOCK + 1));
    let cached = Cached::new(&CacheExtents::default(), &[&disk]);
    let handle = cached.open("a").await;
    // A longer question met with the bad place: the client's own does not.
    ask(&disk, &*handle, block(0)).await;
    ask(&disk, &*handle, block(1)).await;
    let wanted = ByteRange::between(2 * BLOCK, SIZE);
    for _ in 0..2 {
        let error = handle.extents(wanted, &Context::Allocation).await;
        let error = error.expect_err("a bad place");
        assert_eq!(error.kind(), ErrorKind::Io);
        assert_eq!(
            (error.offset(), error.length()),
            (Some(wanted.start()), Some(wanted.len()))
        );
    }
    disk.break_at(ByteRange::default());
    ask(&disk, &*handle, wanted).await;
    let known = disk.calls();
    ask(&disk, &*handle, all()).await;
    assert_eq!(disk.calls(), known);
}

#[tokio::test]
async fn where_long_questions_fail_short_ones_are_asked() {
    let disk = Disk::new(SIZE);
    disk.limit(BLOCK);
    let cached = Cached::new(&CacheExtents::default(), &[&disk]);
    let handle = cached.open("a").await;
    for index in 0..4 {
        ask(&disk, &*handle, block(index)).await;
    }
    // One that was too long, in each context, and then no more: the last is not longer than what is wanted.
    assert_eq!(disk.calls(), 2 + 2 * 4);
}

#[tokio::test]
async fn a_question_off_the_blocks_ends_whatever_is_answered() {
    let disk = Disk::new(SIZE);
    disk.set_smallest_block(512);
    let filter = CacheExtents {
        window: 1000,
        ..CacheExtents::default()
    };
    let cached = Cached::new(&filter, &[&disk]);
    let handle = cached.open("a").await;
    let status = Status(1);
    for _ in 0..2 {
        // True, and no word about what is wanted.
        let range = ByteRange::between(0, 100);
        disk.answer(Ok(vec![Extent { range, status }]));
    }
    let wanted = ByteRange::between(100, SIZE);
    let answer = handle.extents(wanted, &Context::Allocation).await;
    assert_eq!(answer.expect_err("nothing").offset(), Some(100));
    assert_eq!(
        disk.asked(),
        [ByteRange::between(0, 1536), ByteRange::between(100, 1536)]
    );
}

#[tokio::test]
async fn unlike_contexts_are_passed_through() {
    let disk = Disk::new(SIZE);
    let strange = Context::from("x:strange");
    disk.add_context(strange.clone());
    let cached = Cached::new(&CacheExtents::default(), &[&disk]);
    let handle = cached.open("a").await;
    for count in 1..4 {
        let answer = handle.extents(block(1), &strange).await.expect("an answer");
        let status = Status(0);
        assert_eq!(
            answer,
            [Extent {
                range: block(1),
                status
            }]
        );
        assert_eq!(disk.asked(), vec![block(1); count]);
    }
    let nothing = handle
        .extents(ByteRange::default(), &Context::Allocation)
        .await;
    assert!(nothing.expect("nothing of nothing").is_empty());

    // One that it does not say that it has may still be answered.
    let device = FaultyDevice::new(Arc::new(MemoryDevice::new(SIZE)));
    let device = Arc::new(device.with_info(|info| info.contexts.clear()));
    let layer = CacheExtents::default().layer(Arc::new(SingleExport::new(device.clone())));
    let open = layer
        .expect("a layer")
        .open("", ClientFacts::default())
        .await;
    let handle = open.expect("an export").device;
    for count in 1..3 {
        let answer = handle.extents(block(0), &Context::Allocation).await;
        answer.expect("an answer");
        assert_eq!(device.calls(Operation::Extents), count);
    }
    let unknown = handle.extents(block(0), &Context::AllocationDepth).await;
    assert_eq!(unknown.expect_err("none").kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn what_lies_far_away_is_forgotten_when_there_is_too_much() {
    let disk = Disk::new(64 * UNIT);
    let filter = CacheExtents {
        entries: 10,
        ..CacheExtents::default()
    };
    let cached = Cached::new(&filter, &[&disk]);
    let handle = cached.open("a").await;
    let unit = |index| ByteRange::between(index * UNIT, (index + 1) * UNIT);
    let asked = async |index| {
        let before = disk.calls();
        let answer = handle.extents(unit(index), &Context::Allocation).await;
        assert_eq!(answer.expect("an answer"), disk.truth(unit(index), 0));
        disk.calls() - before
    };
    assert_eq!(asked(20).await, 1);
    assert_eq!(cached.count("a", "entries"), 10);
    assert_eq!((asked(29).await, asked(20).await), (0, 0));
    assert_eq!(asked(40).await, 1);
    assert_eq!(cached.count("a", "entries"), 10);
    assert_eq!((asked(49).await, asked(20).await), (0, 1));

    // Writes cut one extent into many.
    disk.change_now(ByteRange::between(0, 64 * UNIT));
    let filter = CacheExtents {
        entries: 3,
        ..CacheExtents::default()
    };
    let cached = Cached::new(&filter, &[&disk]);
    let handle = cached.open("a").await;
    handle
        .extents(unit(0), &Context::Allocation)
        .await
        .expect("an answer");
    for index in 0..8 {
        write(&*handle, unit(8 * index)).await.expect("written");
        assert!(cached.count("a", "entries") <= 3);
    }
}

#[tokio::test]
async fn wrong_answers_are_made_good_or_refused() {
    let lies: [fn(ByteRange) -> Vec<Extent>; 9] = [
        answers::short,
        answers::empty,
        answers::of_no_length,
        answers::endless,
        answers::overlapping,
        answers::with_gap,
        answers::backwards,
        answers::outside,
        answers::all_holes,
    ];
    for (number, lie) in lies.into_iter().enumerate() {
        let device = FaultyDevice::new(Arc::new(MemoryDevice::new(SIZE)));
        let device = device.with(Rule::on(Operation::Extents).fault(Fault::Extents(lie)));
        let layer = CacheExtents::default().layer(Arc::new(SingleExport::new(Arc::new(device))));
        let open = layer
            .expect("a layer")
            .open("", ClientFacts::default())
            .await;
        let handle = open.expect("an export").device;
        for range in [
            block(1),
            all(),
            ByteRange::between(7, SIZE - 7),
            block(3),
            all(),
        ] {
            let answer = match handle.extents(range, &Context::Allocation).await {
                Ok(answer) => answer,
                Err(error) => {
                    let place = (error.offset(), error.length());
                    assert_eq!(
                        place,
                        (Some(range.start()), Some(range.len())),
                        "lie {number}"
                    );
                    assert!(matches!(number, 1 | 2 | 6 | 7), "lie {number}: {error}");
                    continue;
                }
            };
            assert!(!answer.is_empty(), "lie {number}");
            let mut next = range.start();
            for extent in answer {
                assert!(
                    !extent.range.is_empty() && range.contains(extent.range),
                    "lie {number}"
                );
                assert_eq!(extent.range.start(), next, "lie {number}");
                next = extent.range.end();
            }
        }
    }
}

#[tokio::test]
async fn it_is_the_device_below_in_everything_else() {
    for seed in 0..8 {
        let device = MemoryDevice::new(300_000);
        let device = if seed % 2 == 0 {
            device
        } else {
            device.growable()
        };
        let filter = CacheExtents {
            window: if seed < 4 { 1 << 30 } else { 10_000 },
            ..CacheExtents::default()
        };
        let layer = filter.layer(Arc::new(SingleExport::new(Arc::new(device))));
        let open = layer
            .expect("a layer")
            .open("", ClientFacts::default())
            .await;
        check_device(&*open.expect("an export").device, seed, 400).await;
    }
}

#[tokio::test]
async fn bytes_stay_where_they_are_and_other_handles_share_what_is_known() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    File::set_len(file.as_file(), SIZE).expect("room");
    let device = FileDevice::open(file.path(), Access::ReadWrite).expect("opened");
    let can = device.info().capabilities;
    let layer = CacheExtents::default().layer(Arc::new(SingleExport::new(Arc::new(device))));
    let open = layer
        .expect("a layer")
        .open("", ClientFacts::default())
        .await;
    let handle = open.expect("an export").device;
    assert_eq!(handle.info().capabilities, can);
    assert!(matches!(handle.mapping(block(1)), Mapping::File { .. }));

    let disk = Disk::new(SIZE);
    let cached = Cached::new(&CacheExtents::default(), &[&disk]);
    let handle = cached.open("a").await;
    assert!(handle.info().can(Capabilities::REOPEN));
    let other = handle.reopen().await.expect("another");
    ask(&disk, &*handle, all()).await;
    ask(&disk, &*other, all()).await;
    assert_eq!(disk.calls(), 2);
    write(&*other, block(1)).await.expect("written");
    ask(&disk, &*handle, block(1)).await;
    assert_eq!(disk.calls(), 4);
}

#[test]
fn parameters_that_make_no_sense_are_refused() {
    for text in [
        "cacheextents",
        "cacheextents:window=64K,entries=1,prefetch=off",
    ] {
        assert!(NamedFilter::parse(text.as_ref()).is_ok(), "{text}");
    }
    for text in [
        "window=0",
        "entries=0",
        "entries=1T",
        "entries=18446744073709551615",
        "prefetch=2",
    ] {
        let text = format!("cacheextents:{text}");
        assert!(NamedFilter::parse(text.as_ref()).is_err(), "{text}");
    }
    let filter = CacheExtents {
        window: 0,
        ..CacheExtents::default()
    };
    let none = filter.layer(Arc::new(SingleExport::new(Arc::new(MemoryDevice::new(1)))));
    assert!(none.is_err());
}
