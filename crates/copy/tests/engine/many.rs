//! Several handles to one side: who uses which, and what becomes of a copy when some are lost.

use std::{
    collections::BTreeSet,
    future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, DeviceInfo, Error, ErrorKind,
    Extent, Operation, Result, WriteFlags, ZeroFlags,
};
use blockferry_copy::{
    Control, CopyError, CopyOptions, Destination, Event, Order, Report, Side, Source, Warning, copy,
};
use proptest::prelude::*;

use crate::{Recorder, disk::Disk, pattern, pipe::Output};

const MIB: usize = 1 << 20;
/// Large enough for four connections, and for several segments of each.
const SIZE: usize = 17 * MIB;

type Fault = dyn Fn(usize, Operation, ByteRange) -> Option<ErrorKind> + Send + Sync;

/// One of the handles to a disk.
struct Handle {
    id: usize,
    disk: Arc<Disk>,
    info: DeviceInfo,
    board: Arc<Board>,
}

/// What all handles to one disk have in common.
struct Board {
    opened: AtomicUsize,
    /// What the opening of another handle is answered with.
    opening: Opening,
    fault: Box<Fault>,
    log: Mutex<Vec<(usize, Operation, ByteRange)>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Opening {
    Granted,
    Refused,
    Silent,
}

impl Handle {
    fn new(disk: Disk, opening: Opening, fault: Box<Fault>) -> Arc<Self> {
        let mut info = disk.info().clone();
        info.capabilities |= Capabilities::MULTI_CONN;
        Arc::new(Self {
            id: 0,
            info,
            disk: disk.into_arc(),
            board: Arc::new(Board {
                opened: AtomicUsize::new(1),
                opening,
                fault,
                log: Mutex::default(),
            }),
        })
    }

    fn sound(disk: Disk) -> Arc<Self> {
        Self::new(disk, Opening::Granted, Box::new(|_, _, _| None))
    }

    fn begin(&self, operation: Operation, range: ByteRange) -> Result<()> {
        let mut log = self.board.log.lock().expect("not poisoned");
        log.push((self.id, operation, range));
        match (self.board.fault)(self.id, operation, range) {
            Some(kind) => Err(Error::new(kind).during(operation)),
            None => Ok(()),
        }
    }

    /// The handles that did `operation`.
    fn users(&self, operation: Operation) -> BTreeSet<usize> {
        let log = self.board.log.lock().expect("not poisoned");
        let users = log.iter().filter(|(_, op, _)| *op == operation);
        users.map(|(id, ..)| *id).collect()
    }

    fn ranges(&self, operation: Operation) -> Vec<(usize, ByteRange)> {
        let log = self.board.log.lock().expect("not poisoned");
        let entries = log.iter().filter(|(_, op, _)| *op == operation);
        entries.map(|(id, _, range)| (*id, *range)).collect()
    }
}

fn at(offset: u64, bytes: &[u8]) -> ByteRange {
    ByteRange::between(offset, offset + bytes.len() as u64)
}

impl BlockDevice for Handle {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let buffer = self.disk.read(offset, buffer).await?;
            self.begin(Operation::Read, at(offset, &buffer))?;
            Ok(buffer)
        })
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            self.begin(Operation::Write, at(offset, &data))?;
            self.disk.write(offset, data, flags).await
        })
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.begin(Operation::Zero, range)?;
            self.disk.zero(range, flags).await
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.begin(Operation::Flush, ByteRange::between(0, 0))?;
            self.disk.flush().await
        })
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        self.disk.extents(range, context)
    }

    fn reopen(&self) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        Box::pin(async move {
            let id = self.board.opened.fetch_add(1, Relaxed);
            match self.board.opening {
                Opening::Refused => return Err(Error::new(ErrorKind::Refused)),
                Opening::Silent => future::pending().await,
                Opening::Granted => {}
            }
            let other = Self {
                id,
                disk: Arc::clone(&self.disk),
                info: self.info.clone(),
                board: Arc::clone(&self.board),
            };
            Ok(Arc::new(other) as Arc<dyn BlockDevice>)
        })
    }
}

/// A disk with data, holes, and zeroes in the data.
fn image(seed: u64) -> Disk {
    let mut bytes = pattern(SIZE, seed);
    bytes[12 * MIB..13 * MIB].fill(0);
    Disk::new(bytes).slow().zero_extents([
        (3 * MIB as u64, 6 * MIB as u64),
        (15 * MIB as u64, 15 * MIB as u64 + 40_960),
    ])
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

/// A fault that makes every call of `handle` fail from its `after`th `operation` on.
fn death(handle: usize, operation: Operation, after: usize) -> Box<Fault> {
    let count = AtomicUsize::new(0);
    Box::new(move |id, op, _| {
        if id != handle {
            return None;
        }
        let dead = match op == operation {
            true => count.fetch_add(1, Relaxed) >= after,
            false => count.load(Relaxed) > after,
        };
        dead.then_some(ErrorKind::ConnectionLost)
    })
}

fn losses(events: &Recorder) -> usize {
    let lost = |event: &&Event| matches!(event, Event::Warning(Warning::ConnectionLost { .. }));
    events.events().iter().filter(lost).count()
}

#[tokio::test]
async fn four_connections_share_the_work_and_each_is_flushed() {
    let from = Handle::sound(image(1));
    let to = Handle::sound(Disk::dirty(SIZE).slow());
    let report = run(&from, &to, &CopyOptions::default(), &Recorder::default()).await;
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
        let report = run(&from, &to, &CopyOptions::default(), &Recorder::default()).await;
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
    let report = run(&from, &to, &CopyOptions::default(), &Recorder::default()).await;
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
    let options = CopyOptions {
        connections: 8,
        ..CopyOptions::default()
    };
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
    for handle in 0..4 {
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
            let report = run(&from, &to, &CopyOptions::default(), &events).await;
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
    let report = run(&from, &to, &CopyOptions::default(), &Recorder::default()).await;
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
    let copied = run(&from, &to, &CopyOptions::default(), &events).await;
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
    let copied = run(&from, &to, &CopyOptions::default(), &events).await;
    let error = copied.expect_err("no space");
    assert_eq!(error.error.kind(), ErrorKind::NoSpace);
    assert_eq!(events.warnings(), 0);
}

#[tokio::test]
async fn a_stream_comes_in_order_from_four_connections_of_which_one_dies() {
    let from = Handle::new(image(10), Opening::Granted, death(1, Operation::Read, 5));
    let output = Output::new(usize::MAX);
    let events = Recorder::default();
    let source = Source::Device(Arc::clone(&from) as _);
    let target = Destination::Stream(Box::new(output.clone()));
    let options = CopyOptions::default();
    let copied = copy(source, target, &options, &Control::new(), &events).await;
    copied.expect("copied");
    assert!(output.bytes() == from.disk.bytes());
    assert_eq!(from.users(Operation::Read), BTreeSet::from([0, 1, 2, 3]));
    assert_eq!(losses(&events), 1);
}

#[tokio::test]
async fn in_order_means_one_write_after_the_other_from_front_to_back() {
    let options = CopyOptions {
        order: Order::Ascending,
        ..CopyOptions::default()
    };
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

/// When a handle dies: in its so-manieth call.
type Deaths = Vec<Option<usize>>;

fn deaths() -> impl Strategy<Value = Deaths> {
    proptest::collection::vec(proptest::option::of(0..40_usize), 4)
}

fn dying(deaths: Deaths) -> Box<Fault> {
    let calls: Vec<_> = deaths.iter().map(|_| AtomicUsize::new(0)).collect();
    Box::new(move |id, _, _| {
        let (Some(Some(after)), Some(calls)) = (deaths.get(id), calls.get(id)) else {
            return None;
        };
        (calls.fetch_add(1, Relaxed) >= *after).then_some(ErrorKind::ConnectionLost)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn however_connections_die_a_copy_is_right_or_fails(
        source_deaths in deaths(),
        target_deaths in deaths(),
        seed in any::<u64>(),
        size in (6 * MIB)..(10 * MIB),
        limits in prop_oneof![Just((1, 32 << 20)), Just((4096, 65_536)), Just((512, 1 << 20))],
        connections in 1..5_usize,
        order in prop_oneof![3 => Just(Order::Any), 1 => Just(Order::Ascending)],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let mut bytes = pattern(size, seed);
        bytes[4 * MIB..5 * MIB + 100].fill(0);
        let disk = Disk::new(bytes).zero_extents([(MIB as u64, 2 * MIB as u64 + seed % 9000)]);
        // The first one may die before the others are there.
        let source_lives = source_deaths[0].is_none();
        let target_lives = target_deaths[0].is_none();
        let from = Handle::new(disk.slow(), Opening::Granted, dying(source_deaths));
        let to = Disk::dirty(size).limits(limits.0, limits.1).slow();
        let to = Handle::new(to, Opening::Granted, dying(target_deaths));
        let options = CopyOptions { connections, order, ..CopyOptions::default() };
        let events = Recorder::default();
        let copied = runtime.block_on(run(&from, &to, &options, &events));
        match copied {
            Ok(report) => {
                prop_assert!(to.disk.bytes() == from.disk.bytes());
                prop_assert_eq!(report.data + report.zero, size as u64);
                prop_assert!(!to.users(Operation::Flush).is_empty());
            }
            Err(error) => {
                prop_assert!(error.error.is_transient(), "{}", error);
                prop_assert!(!source_lives || !target_lives, "{}", error);
            }
        }
    }
}
