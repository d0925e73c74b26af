//! Several who ask at once, and what is asked before anybody wants it.

use std::{
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, ClientFacts, Context, DeviceInfo, Error, ErrorKind,
    Extent, Operation, Result, SingleExport, Status, WriteFlags,
    testing::{Fault, FaultyDevice, Rule},
};
use blockferry_filter::{CacheExtents, Filter, Layer};
use futures_util::future::join_all;
use tokio::{runtime::Builder, task::yield_now, time::timeout};

use crate::{
    rules::{all, block},
    source::{Cached, Disk, Point, contexts},
};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

async fn settle() {
    for _ in 0..10 {
        yield_now().await;
    }
}

fn allocation(
    handle: &Arc<dyn BlockDevice>,
    range: ByteRange,
) -> impl Future<Output = Result<Vec<Extent>>> + 'static {
    let handle = Arc::clone(handle);
    async move { handle.extents(range, &Context::Allocation).await }
}

#[tokio::test]
async fn of_many_who_ask_the_same_one_asks_the_source() {
    let disk = Disk::new(all().end());
    let cached = Cached::new(&CacheExtents::default(), &[&disk]);
    let gate = disk.stop(Operation::Extents, Point::After);
    let mut askers = Vec::new();
    for number in 0..20 {
        let handle = cached.open("a").await;
        askers.push(tokio::spawn(allocation(&handle, block(number % 4))));
        if number == 0 {
            gate.reached().await;
        }
    }
    settle().await;
    assert_eq!(disk.calls(), 1);
    gate.open();
    for (number, asker) in (0..).zip(askers) {
        let answer = asker.await.expect("no panic").expect("an answer");
        assert_eq!(answer, disk.truth(block(number % 4), 0));
    }
    assert_eq!(disk.calls(), 1);
    assert_eq!(
        (cached.count("a", "misses"), cached.count("a", "hits")),
        (1, 19)
    );
}

#[tokio::test]
async fn who_asks_something_else_does_not_wait() {
    let disk = Disk::new(all().end());
    let cached = Cached::new(&CacheExtents::default(), &[&disk]);
    let handle = cached.open("a").await;
    let gate = disk.stop(Operation::Extents, Point::Before);
    let first = tokio::spawn(allocation(&handle, all()));
    gate.reached().await;
    let other = Arc::clone(&handle);
    let other = tokio::spawn(async move { other.extents(all(), &contexts()[1]).await });
    settle().await;
    assert!(other.is_finished());
    let answer = other.await.expect("no panic").expect("an answer");
    assert_eq!(answer, disk.truth(all(), 1));
    gate.open();
    first.await.expect("no panic").expect("an answer");
}

#[tokio::test]
async fn when_the_one_who_asks_goes_away_another_one_asks() {
    let disk = Disk::new(all().end());
    let cached = Cached::new(&CacheExtents::default(), &[&disk]);
    let handle = cached.open("a").await;
    let gate = disk.stop(Operation::Extents, Point::Before);
    let first = tokio::spawn(allocation(&handle, all()));
    gate.reached().await;
    let waiting = join_all((0..10).map(|_| allocation(&handle, all())));
    let waiting = tokio::spawn(waiting);
    settle().await;
    first.abort();
    settle().await;
    assert!(waiting.is_finished());
    for answer in waiting.await.expect("no panic") {
        assert_eq!(answer.expect("an answer"), disk.truth(all(), 0));
    }
    assert_eq!(disk.calls(), 2);
}

#[test]
fn when_the_runtime_of_the_one_who_asks_ends_another_one_asks() {
    let disk = Disk::new(all().end());
    let cached = Cached::new(&CacheExtents::default(), &[&disk]);
    let runtime = || {
        let runtime = Builder::new_current_thread().enable_time().build();
        runtime.expect("a runtime")
    };
    let dying = runtime();
    let gate = disk.stop(Operation::Extents, Point::Before);
    dying.block_on(async {
        let handle = cached.open("a").await;
        tokio::spawn(allocation(&handle, all()));
        gate.reached().await;
    });
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            runtime().block_on(async {
                let handle = cached.open("a").await;
                let answer = allocation(&handle, all());
                // It waits for the first, or comes when that is gone.
                let answer = timeout(Duration::from_secs(60), answer).await;
                answer.expect("an answer in time").expect("an answer")
            })
        });
        drop(dying);
        assert_eq!(waiter.join().expect("no panic"), disk.truth(all(), 0));
    });
    assert_eq!(disk.calls(), 2);
}

#[tokio::test]
async fn when_one_fails_those_who_waited_ask_all_at_once() {
    let disk = Disk::new(all().end());
    let cached = Cached::new(&CacheExtents::default(), &[&disk]);
    let handle = cached.open("a").await;
    let gate = disk.stop(Operation::Extents, Point::Before);
    disk.answer(Err(Error::new(ErrorKind::ShuttingDown)));
    let first = tokio::spawn(allocation(&handle, block(0)));
    gate.reached().await;
    let second = disk.stop(Operation::Extents, Point::Before);
    let third = disk.stop(Operation::Extents, Point::Before);
    let waiting = tokio::spawn(join_all((0..2).map(|_| allocation(&handle, block(0)))));
    settle().await;
    assert_eq!(disk.calls(), 1);
    gate.open();
    let error = first.await.expect("no panic").expect_err("it failed");
    assert_eq!(error.kind(), ErrorKind::ShuttingDown);
    settle().await;
    assert_eq!(disk.calls(), 3);
    second.open();
    third.open();
    for answer in waiting.await.expect("no panic") {
        assert_eq!(answer.expect("an answer"), disk.truth(block(0), 0));
    }
}

#[tokio::test(start_paused = true)]
async fn one_who_asked_and_stopped_is_not_waited_for_for_ever() {
    let disk = Disk::new(all().end());
    let cached = Cached::new(&CacheExtents::default(), &[&disk]);
    let handle = cached.open("a").await;
    let gate = disk.stop(Operation::Extents, Point::Before);
    let mut stopped = Box::pin(allocation(&handle, all()));
    tokio::select! {
        _ = &mut stopped => panic!("it is stopped"),
        () = gate.reached() => {}
    }
    let other = timeout(Duration::from_secs(3600), allocation(&handle, block(2)));
    let answer = other.await.expect("in time").expect("an answer");
    assert_eq!(answer, disk.truth(block(2), 0));
}

#[tokio::test]
async fn who_waited_is_not_told_what_was_true_before_it_asked() {
    let disk = Disk::new(all().end());
    let cached = Cached::new(&CacheExtents::default(), &[&disk]);
    let handle = cached.open("a").await;
    let gate = disk.stop(Operation::Extents, Point::After);
    let first = tokio::spawn(allocation(&handle, all()));
    gate.reached().await;
    let data = Buffer::zeroed(block(1).len() as usize);
    let written = handle.write(block(1).start(), data, WriteFlags::empty());
    written.await.expect("written");
    // What has changed is not waited for: the answer is known to be of no use.
    let beside = tokio::spawn(allocation(&handle, block(1)));
    settle().await;
    assert!(beside.is_finished());
    let answer = beside.await.expect("no panic").expect("an answer");
    assert_eq!(answer, disk.truth(block(1), 0));
    assert_eq!(disk.calls(), 2);
    let before_it = tokio::spawn(allocation(&handle, all()));
    settle().await;
    assert_eq!(disk.calls(), 2, "what has not changed is waited for");
    gate.open();
    first.await.expect("no panic").expect("an answer");
    let answer = before_it.await.expect("no panic").expect("an answer");
    assert_eq!(answer, disk.truth(all(), 0));
}

/// A device that is as large as one likes, with an extent in each `piece` bytes.
struct Vast {
    info: DeviceInfo,
    piece: u64,
    asked: Mutex<Vec<ByteRange>>,
}

impl Vast {
    fn new(size: u64, piece: u64) -> Arc<Self> {
        let mut info = DeviceInfo::new("vast", size);
        info.contexts = vec![Context::Allocation];
        let asked = Mutex::default();
        Arc::new(Self { info, piece, asked })
    }

    /// What was asked for since the last time.
    fn asked(&self) -> Vec<ByteRange> {
        std::mem::take(&mut *self.asked.lock().expect("not poisoned"))
    }
}

impl BlockDevice for Vast {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, _: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move { Ok(buffer) })
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        _: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        self.asked.lock().expect("not poisoned").push(range);
        let status = |piece: ByteRange| Status(piece.start() / self.piece % 4);
        let extents = range.pieces(self.piece).map(|range| Extent {
            range,
            status: status(range),
        });
        let extents = extents.collect();
        Box::pin(async move { Ok(extents) })
    }
}

struct Walk {
    device: Arc<dyn BlockDevice>,
    layer: Arc<dyn Layer>,
}

impl Walk {
    async fn over(source: Arc<dyn BlockDevice>, filter: CacheExtents) -> Self {
        let layer = filter.layer(Arc::new(SingleExport::new(source)));
        let layer = layer.expect("a layer");
        let open = layer.open("", ClientFacts::default()).await;
        let device = open.expect("an export").device;
        Self { device, layer }
    }

    /// One extent after the other, as a client that asks for one at a time; nothing is left to be done then.
    async fn walk(&self, range: ByteRange) -> usize {
        let mut rest = range;
        let mut count = 0;
        while !rest.is_empty() {
            let wanted = rest.split_at(2 * GIB).0;
            let answer = self.device.extents(wanted, &Context::Allocation).await;
            let answer = answer.expect("an answer");
            let first = answer[0];
            assert_eq!(first.range.start(), rest.start());
            (_, rest) = rest.split_at(first.range.len());
            count += 1;
            settle().await;
        }
        count
    }

    fn prefetches(&self) -> u64 {
        let counters = self.layer.counters();
        let counts = counters[0].counts.iter();
        let mut counts = counts.filter(|(name, _)| *name == "prefetches");
        counts.next().expect("it is counted").1
    }
}

#[tokio::test]
async fn three_questions_tell_all_of_a_gibibyte_in_4096_extents() {
    let source = Vast::new(GIB, GIB / 4096);
    let walk = Walk::over(source.clone(), CacheExtents::default()).await;
    // A client that asks for one extent at a time in short questions, and one that has the whole in view.
    let mut at = 0;
    while at < GIB {
        let wanted = ByteRange::between(at, (at + MIB).min(GIB));
        let answer = walk.device.extents(wanted, &Context::Allocation).await;
        at = answer.expect("an answer")[0].range.end();
    }
    let asked = source.asked();
    assert!(asked.len() <= 3, "{asked:?}");
    assert_eq!(walk.walk(ByteRange::between(0, GIB)).await, 4096);
    assert_eq!(source.asked(), []);
    let whole = Walk::over(source.clone(), CacheExtents::default()).await;
    assert_eq!(whole.walk(ByteRange::between(0, GIB)).await, 4096);
    assert_eq!(source.asked().len(), 1);
}

#[tokio::test]
async fn questions_grow_with_what_is_known_and_no_further_than_the_window() {
    let source = Vast::new(100 << 40, 64 * MIB);
    let filter = CacheExtents {
        window: 4 * GIB,
        prefetch: false,
        ..CacheExtents::default()
    };
    let walk = Walk::over(source.clone(), filter).await;
    let at = |start| ByteRange::between(start, start + MIB);
    let mut next = 50 << 40;
    for length in [
        256 * MIB,
        256 * MIB,
        512 * MIB,
        GIB,
        2 * GIB,
        4 * GIB,
        4 * GIB,
    ] {
        walk.walk(at(next)).await;
        assert_eq!(source.asked(), [ByteRange::between(next, next + length)]);
        next += length;
    }
    // Elsewhere it begins anew, and all there is is never asked for.
    walk.walk(at(0)).await;
    assert_eq!(source.asked(), [ByteRange::between(0, 256 * MIB)]);
    let all = ByteRange::between(0, 100 << 40);
    let (_, rest) = all.split_at(10 << 40);
    let answer = walk.device.extents(rest, &Context::Allocation).await;
    assert!(answer.expect("an answer").len() <= 4096);
    assert_eq!(source.asked()[0].len(), 4 * GIB);
    assert_eq!(walk.prefetches(), 0);
}

#[tokio::test]
async fn more_is_asked_for_ahead_of_who_goes_in_order_and_of_nobody_else() {
    let source = Vast::new(64 * GIB, 64 * MIB);
    let filter = CacheExtents {
        window: GIB,
        ..CacheExtents::default()
    };
    let walk = Walk::over(source.clone(), filter).await;
    let piece = |start| ByteRange::between(start, start + MIB);
    // Here and there.
    for start in [10 * GIB, 40 * GIB, 30 * GIB, 30 * GIB + 100 * MIB] {
        walk.walk(piece(start)).await;
    }
    assert_eq!(walk.prefetches(), 0);
    source.asked();
    // In order, in front of what is known from 10 GiB on.
    for start in 0..(9 * GIB / MIB) {
        walk.walk(piece(start * MIB)).await;
        if start == 256 {
            let asked = [256, 512].map(|at| at * MIB);
            let asked = asked.map(|at| ByteRange::between(at, at + at));
            assert_eq!(source.asked(), asked);
            continue;
        }
        let asked = source.asked();
        let ahead = asked.iter().map(|range| range.end() - start * MIB).max();
        assert!(ahead.unwrap_or(0) <= 3 * GIB, "not far ahead");
        assert!(asked.len() <= 1, "one at a time");
    }
    let before = walk.prefetches();
    assert!(before >= 7, "{before}");
    assert_eq!(
        walk.layer.counters()[0].counts[1],
        ("misses", 3 + 2),
        "it never waited again"
    );
}

#[tokio::test]
async fn nothing_is_asked_for_when_all_is_known() {
    let source = Vast::new(2 * GIB, MIB);
    let walk = Walk::over(source.clone(), CacheExtents::default()).await;
    let piece = |start| ByteRange::between(start * MIB, (start + 1) * MIB);
    for _ in 0..2 {
        for start in 0..2048 {
            walk.walk(piece(start)).await;
        }
    }
    let mut asked = source.asked();
    asked.sort_unstable();
    let total: u64 = asked.iter().map(|range| range.len()).sum();
    assert_eq!(total, 2 * GIB, "nothing twice: {asked:?}");
    assert_eq!(walk.prefetches(), 2);
}

#[tokio::test]
async fn prefetching_can_be_off_and_failing_at_it_is_no_failure() {
    let source = Vast::new(4 * GIB, 64 * MIB);
    let off = CacheExtents {
        prefetch: false,
        ..CacheExtents::default()
    };
    let walk = Walk::over(source.clone(), off).await;
    let piece = |start| ByteRange::between(start * MIB, (start + 64) * MIB);
    for start in 0..64 {
        walk.walk(piece(start * 64)).await;
    }
    assert_eq!((walk.prefetches(), source.asked().len()), (0, 5));

    let faulty = Arc::new(FaultyDevice::new(source.clone()));
    let rule = Rule::on(Operation::Extents).after(2).times(1);
    faulty.add(rule.fault(Fault::Error(ErrorKind::Io)));
    let walk = Walk::over(faulty.clone(), CacheExtents::default()).await;
    for start in 0..64 {
        walk.walk(piece(start * 64)).await;
    }
    assert!(walk.prefetches() > 0);
}

#[tokio::test]
async fn one_question_at_a_time_is_asked_ahead() {
    let source = Vast::new(4 * GIB, 64 * MIB);
    let faulty = FaultyDevice::new(source);
    let faulty = faulty.with_info(|info| info.contexts = contexts().to_vec());
    faulty.add(
        Rule::on(Operation::Extents)
            .after(2)
            .times(1)
            .fault(Fault::Hang),
    );
    let walk = Walk::over(Arc::new(faulty), CacheExtents::default()).await;
    for context in &contexts() {
        for start in [0, 256 * MIB] {
            let range = ByteRange::between(start, start + MIB);
            let answer = walk.device.extents(range, context).await;
            answer.expect("an answer");
            settle().await;
        }
        assert_eq!(walk.prefetches(), 1);
    }
}

#[tokio::test]
async fn who_catches_up_waits_for_what_was_asked_ahead_and_closing_gives_it_up() {
    let source = Vast::new(4 * GIB, 64 * MIB);
    let faulty = Arc::new(FaultyDevice::new(source.clone()));
    let hang = Rule::on(Operation::Extents).after(2).times(1);
    faulty.add(hang.fault(Fault::Hang));
    let walk = Walk::over(faulty.clone(), CacheExtents::default()).await;
    walk.walk(ByteRange::between(0, 64 * MIB)).await;
    // The next is in order, and what is asked for ahead of it never comes.
    let second = ByteRange::between(256 * MIB, 257 * MIB);
    walk.walk(second).await;
    assert_eq!(faulty.calls(Operation::Extents), 3);
    let other = walk.layer.open("", ClientFacts::default()).await;
    let other = other.expect("an export").device;
    let waiting = allocation(&other, ByteRange::between(GIB - MIB, GIB));
    let waiting = tokio::spawn(waiting);
    settle().await;
    assert_eq!(faulty.calls(Operation::Extents), 3, "it waits");
    drop(walk.device);
    let answer = waiting.await.expect("no panic").expect("an answer");
    assert_eq!(answer[0].range.start(), GIB - MIB);
    drop((other, walk.layer));
    settle().await;
    assert_eq!(Arc::strong_count(&faulty), 1, "nothing keeps it open");
}
