//! What the source says of itself: asked seldom, ahead of the data, and not trusted blindly.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, DeviceInfo, ErrorKind,
    Extent, Operation, Result, Status, WriteFlags, ZeroFlags,
};
use blockferry_copy::{Control, CopyOptions, Destination, Event, Source, Warning, copy};

use crate::{
    Recorder, copy_device, device,
    disk::{Disk, Mark},
    pattern,
    pipe::Output,
    to_device,
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A large disk of nothing, with a little data at every `step` bytes; and what was asked of it, in order.
struct Hollow {
    info: DeviceInfo,
    step: u64,
    log: Mutex<Vec<(Operation, ByteRange)>>,
    reads: AtomicUsize,
}

impl Hollow {
    fn new(size: u64, step: u64) -> Arc<Self> {
        let mut info = DeviceInfo::new("hollow", size);
        info.capabilities = Capabilities::WRITE | Capabilities::ZERO;
        info.contexts = vec![Context::Allocation];
        Arc::new(Self {
            info,
            step,
            log: Mutex::default(),
            reads: AtomicUsize::new(0),
        })
    }

    fn note(&self, operation: Operation, range: ByteRange) {
        let mut log = self.log.lock().expect("not poisoned");
        log.push((operation, range));
    }

    fn log(&self, operation: Operation) -> Vec<ByteRange> {
        let log = self.log.lock().expect("not poisoned");
        let same = log.iter().filter(|entry| entry.0 == operation);
        same.map(|entry| entry.1).collect()
    }
}

impl BlockDevice for Hollow {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, mut buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        let range = ByteRange::between(offset, offset + buffer.len() as u64);
        self.note(Operation::Read, range);
        self.reads.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            tokio::task::yield_now().await;
            buffer[0] = 1;
            Ok(buffer)
        })
    }

    fn write(&self, offset: u64, data: Buffer, _: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        let range = ByteRange::between(offset, offset + data.len() as u64);
        self.note(Operation::Write, range);
        Box::pin(async move { Ok(data) })
    }

    fn zero(&self, range: ByteRange, _: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        self.note(Operation::Zero, range);
        Box::pin(async move { Ok(()) })
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        _: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        self.note(Operation::Extents, range);
        let mut extents = Vec::new();
        for part in range.pieces(self.step) {
            let (data, hole) = part.split_at(64 * KIB);
            for (range, status) in [(data, Status::DATA), (hole, Status::HOLE_ZERO)] {
                if !range.is_empty() {
                    extents.push(Extent { range, status });
                }
            }
        }
        Box::pin(async move {
            tokio::task::yield_now().await;
            Ok(extents)
        })
    }
}

#[tokio::test]
async fn two_gib_take_few_questions_and_only_data_is_read() {
    let from = Hollow::new(2 * GIB, 256 * MIB);
    let to = Hollow::new(2 * GIB, GIB);
    let mut options = CopyOptions::default();
    options.sparse = None;
    let report = copy_device(&from, &to, &options).await;
    let report = report.expect("the copy succeeds");
    assert!(report.extent_requests <= 16, "{report:?}");
    assert_eq!(
        report.extent_requests as usize,
        from.log(Operation::Extents).len()
    );
    assert_eq!(
        (report.data, report.zero),
        (8 * 64 * KIB, 2 * GIB - 8 * 64 * KIB)
    );
    assert_eq!(from.reads.load(Ordering::Relaxed), 8);
    let zeroed = to.log(Operation::Zero);
    assert!(zeroed.len() <= 32, "{} requests for zeroes", zeroed.len());
    assert!(zeroed.iter().all(|range| range.len() <= GIB));
}

#[tokio::test]
async fn the_next_question_is_asked_while_data_is_moving() {
    let from = Hollow::new(3 * GIB, 2 * MIB);
    let to = Hollow::new(3 * GIB, GIB);
    let copied = copy_device(&from, &to, &CopyOptions::default()).await;
    copied.expect("the copy succeeds");
    let log = from.log.lock().expect("not poisoned");
    let second = log
        .iter()
        .position(|entry| *entry == (Operation::Extents, question(1)));
    let last_read = ByteRange::between(GIB - 2 * MIB, GIB - 2 * MIB + 64 * KIB);
    let last_read = log
        .iter()
        .position(|entry| *entry == (Operation::Read, last_read));
    assert!(second.expect("asked") < last_read.expect("read"));
}

fn question(nth: u64) -> ByteRange {
    ByteRange::between(nth * GIB, (nth + 1) * GIB)
}

#[tokio::test]
async fn holes_are_known_on_the_way_into_a_stream_too() {
    let from = Disk::new(pattern(1 << 20, 1)).zero_extents([(0, 900_000)]);
    let from = from.into_arc();
    let output = Output::new(usize::MAX);
    let to = Destination::Stream(Box::new(output.clone()));
    let report = copy(
        device(&from),
        to,
        &CopyOptions::default(),
        &Control::new(),
        &(),
    )
    .await;
    let report = report.expect("the copy succeeds");
    assert_eq!(report.zero, 900_000);
    assert_eq!(output.bytes(), from.bytes());
}

#[tokio::test]
async fn a_source_that_cannot_say_is_not_asked_and_read_as_data() {
    for (extents, ask) in [(true, false), (false, true)] {
        let mut options = CopyOptions::default();
        options.extents = extents;
        let silent = Silent(
            Disk::new(pattern(100_000, 2)).zero_extents([(0, 50_000)]),
            ask,
        );
        let silent = Arc::new(silent);
        let to = Disk::dirty(100_000).into_arc();
        let report = copy_device(&silent, &to, &options).await.expect("copied");
        assert_eq!((report.extent_requests, report.size), (0, 100_000));
        assert_eq!(to.bytes(), silent.0.bytes());
    }
}

/// A disk that may not know of any context.
struct Silent(Disk, bool);

impl BlockDevice for Silent {
    fn info(&self) -> &DeviceInfo {
        static INFO: std::sync::OnceLock<DeviceInfo> = std::sync::OnceLock::new();
        if self.1 {
            return self.0.info();
        }
        INFO.get_or_init(|| {
            let mut info = self.0.info().clone();
            info.contexts.clear();
            info
        })
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        self.0.read(offset, buffer)
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        _: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        panic!("asked for the extents of {range}");
    }
}

#[tokio::test]
async fn extents_that_fail_are_data_and_one_warning() {
    for kind in [ErrorKind::Unsupported, ErrorKind::Io, ErrorKind::TimedOut] {
        let from = Disk::new(pattern(300_000, 3))
            .named("nbd://from")
            .zero_extents([(0, 200_000)])
            .failing(move |operation, _, _| (operation == Operation::Extents).then_some(kind));
        let from = from.into_arc();
        let to = Disk::dirty(300_000).into_arc();
        let events = Recorder::default();
        let options = CopyOptions::default();
        let (source, target) = (device(&from), to_device(&to));
        let copied = copy(source, target, &options, &Control::new(), &events).await;
        copied.expect("the copy succeeds");
        assert_eq!(to.bytes(), from.bytes());
        assert_eq!(events.warnings(), 1);
        let told = events.events().into_iter().find_map(|event| match event {
            Event::Warning(Warning::Extents { endpoint, error }) => Some((endpoint, error)),
            _ => None,
        });
        let (endpoint, error) = told.expect("a warning");
        assert_eq!((&*endpoint, error.kind()), ("nbd://from", kind));
        assert!(
            error
                .to_string()
                .starts_with("nbd://from: block status of 300000 bytes")
        );
    }
}

#[tokio::test]
async fn failed_questions_cost_only_their_own_ranges_and_are_told_once() {
    let from = FailsTwice(Hollow::new(3 * GIB, GIB));
    let from = Arc::new(from);
    let to = Hollow::new(3 * GIB, GIB);
    let events = Recorder::default();
    let source = Source::Device(from.clone());
    let mut options = CopyOptions::default();
    options.request_size = Some(32 << 20);
    options.queue_size = Some(64 << 20);
    options.sparse = None;
    let copied = copy(source, to_device(&to), &options, &Control::new(), &events).await;
    let report = copied.expect("the copy succeeds");
    assert_eq!(report.data, 2 * GIB + 64 * KIB);
    assert_eq!((events.warnings(), report.extent_requests), (1, 3));
}

/// Fails the first two questions.
struct FailsTwice(Arc<Hollow>);

impl BlockDevice for FailsTwice {
    fn info(&self) -> &DeviceInfo {
        self.0.info()
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        self.0.read(offset, buffer)
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        if range.start() < 2 * GIB {
            let error = blockferry_block::Error::new(ErrorKind::Io);
            return Box::pin(async move { Err(error) });
        }
        self.0.extents(range, context)
    }
}

#[tokio::test]
async fn an_answer_that_breaks_the_rules_is_data_and_one_warning() {
    type Twist = fn(ByteRange, &mut Vec<Extent>);
    let twists: [(&str, Twist); 6] = [
        ("empty", |_, answer| answer.clear()),
        ("late", |_, answer| {
            answer.remove(0);
        }),
        ("overlapping", |_, answer| answer.push(answer[0])),
        ("beyond", |range, answer| {
            let end = range.end();
            answer.push(zero(end, end + 512));
        }),
        ("empty extent", |range, answer| {
            answer.insert(0, zero(range.start(), range.start()));
        }),
        ("from before", |_, answer| {
            answer[0] = zero(0, answer[0].range.end() + 1);
        }),
    ];
    for (name, twist) in twists {
        let from = Disk::new(pattern(100_000, 4))
            .zero_extents([(10_000, 60_000)])
            .lying(move |range, mut answer| {
                twist(range, &mut answer);
                answer
            });
        let from = from.into_arc();
        let to = Disk::dirty(100_000).into_arc();
        let events = Recorder::default();
        let options = CopyOptions::default();
        let (source, target) = (device(&from), to_device(&to));
        let copied = copy(source, target, &options, &Control::new(), &events).await;
        copied.expect(name);
        assert!(to.bytes() == from.bytes(), "{name}");
        assert_eq!(events.warnings(), 1, "{name}");
    }
}

fn zero(start: u64, end: u64) -> Extent {
    Extent {
        range: ByteRange::between(start, end),
        status: Status::HOLE_ZERO,
    }
}

#[tokio::test]
async fn short_answers_are_continued() {
    let from = Disk::new(pattern(1 << 20, 5))
        .zero_extents((0..8).map(|n| (n * 131_072, n * 131_072 + 65_536)))
        .lying(|_, mut answer| {
            answer.truncate(1);
            answer
        });
    let from = from.into_arc();
    let to = Disk::dirty(1 << 20).into_arc();
    let events = Recorder::default();
    let options = CopyOptions::default();
    let (source, target) = (device(&from), to_device(&to));
    let copied = copy(source, target, &options, &Control::new(), &events).await;
    let report = copied.expect("the copy succeeds");
    assert_eq!((report.zero, report.extent_requests), (1 << 19, 16));
    assert_eq!((to.bytes() == from.bytes(), events.warnings()), (true, 0));
}

#[tokio::test]
async fn a_hole_that_need_not_be_zero_is_read() {
    let from = Disk::new(pattern(65_536, 6)).lying(|range, _| {
        let status = Status::HOLE;
        vec![Extent { range, status }]
    });
    let from = from.into_arc();
    let to = Disk::dirty(65_536).into_arc();
    let copied = copy_device(&from, &to, &CopyOptions::default()).await;
    copied.expect("the copy succeeds");
    assert_eq!(to.bytes(), from.bytes());
}

#[tokio::test]
async fn an_answer_of_very_many_extents_is_taken_in_parts() {
    let size = 70_000 * 2;
    let holes = (0..size / 2).map(|n| (n * 2, n * 2 + 1));
    let from = Disk::new(pattern(size as usize, 7));
    // Answered as they are, byte by byte.
    let extents: Vec<_> = holes.collect();
    let bytes = from.zero_extents(extents.iter().copied()).bytes();
    let from = Disk::new(bytes).lying(move |range, _| {
        let bytes = (range.start()..range.end()).map(|offset| Extent {
            range: ByteRange::between(offset, offset + 1),
            status: if offset % 2 == 0 {
                Status::HOLE_ZERO
            } else {
                Status::DATA
            },
        });
        bytes.collect()
    });
    let from = from.into_arc();
    let to = Disk::dirty(size as usize).into_arc();
    let report = copy_device(&from, &to, &CopyOptions::default()).await;
    let report = report.expect("the copy succeeds");
    assert!(to.bytes() == from.bytes());
    assert_eq!((report.data, report.zero), (size / 2, size / 2));
    assert!(report.extent_requests > 1);
}

#[tokio::test]
async fn a_hole_on_the_source_is_a_hole_on_the_destination() {
    let from = Disk::new(pattern(100_000, 8))
        .zero_extents([(8192, 81_920)])
        .into_arc();
    let to = Disk::dirty(100_000).into_arc();
    let copied = copy_device(&from, &to, &CopyOptions::default()).await;
    copied.expect("the copy succeeds");
    let marks = to.marks();
    assert!(marks[8192..81_920].iter().all(|mark| *mark == Mark::Hole));
    assert!(marks[..8192].iter().all(|mark| *mark == Mark::Written));
    assert!(marks[81_920..].iter().all(|mark| *mark == Mark::Written));
}
