use std::{
    collections::VecDeque,
    sync::{Mutex, Weak, atomic::AtomicUsize},
};

use blockferry_block::{
    Buffer, ByteRange, Capabilities, Context, Mapping, MemoryDevice, Operation, Wishes, WriteFlags,
    ZeroFlags,
    testing::{Fault, FaultyDevice, Rule, check_device},
};
use futures_util::future::{join_all, try_join_all};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::*;
use crate::{Chain, DeviceFilter, Filtered, NamedFilter};

/// An export that is opened as a new handle to the same bytes each time.
struct Source {
    memory: Arc<dyn BlockDevice>,
    /// How the next attempts to open it fail.
    refusals: Mutex<VecDeque<ErrorKind>>,
    opened: AtomicUsize,
    clients: Mutex<Vec<ClientFacts>>,
    handles: Mutex<Vec<Weak<FaultyDevice>>>,
    /// What goes wrong with the handle of that number, counted from 0.
    faults: fn(usize, FaultyDevice) -> FaultyDevice,
    /// Where each handle makes its wishes.
    wishes: Mutex<Vec<Arc<Wishes>>>,
    /// Whether a handle may be opened while there is another.
    alone: bool,
}

impl Source {
    fn new(faults: fn(usize, FaultyDevice) -> FaultyDevice) -> Self {
        Self {
            memory: Arc::new(MemoryDevice::new(1 << 20)),
            refusals: Mutex::default(),
            opened: AtomicUsize::new(0),
            clients: Mutex::default(),
            handles: Mutex::default(),
            faults,
            wishes: Mutex::default(),
            alone: false,
        }
    }

    fn refuse(&self, kind: ErrorKind, times: usize) {
        let mut refusals = self.refusals.lock().expect("a lock");
        refusals.extend(std::iter::repeat_n(kind, times));
    }

    fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }

    /// The newest handle.
    fn newest(&self) -> Arc<FaultyDevice> {
        let handles = self.handles.lock().expect("a lock");
        handles.last().and_then(Weak::upgrade).expect("a handle")
    }
}

impl Exports for Source {
    fn list(&self, _: ClientFacts) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        Box::pin(async { Ok(vec![ExportEntry::default()]) })
    }

    fn open<'a>(&'a self, _: &'a str, client: ClientFacts) -> BoxFuture<'a, Result<OpenExport>> {
        Box::pin(async move {
            self.clients.lock().expect("a lock").push(client);
            if let Some(kind) = self.refusals.lock().expect("a lock").pop_front() {
                return Err(Error::new(kind).during(Operation::Open));
            }
            let number = self.opened.fetch_add(1, Ordering::Relaxed);
            let device = FaultyDevice::new(Arc::clone(&self.memory));
            let device = Arc::new((self.faults)(number, device));
            let mut handles = self.handles.lock().expect("a lock");
            let others = handles.iter().filter(|other| other.strong_count() > 0);
            assert!(
                !self.alone || others.count() == 0,
                "the old handle is still there"
            );
            handles.push(Arc::downgrade(&device));
            let mut open = OpenExport::new(device);
            let wishes = Arc::new(Wishes::default());
            open.wishes = Some(Arc::clone(&wishes));
            self.wishes.lock().expect("a lock").push(wishes);
            Ok(open)
        })
    }
}

struct Through {
    chain: Chain,
    device: Arc<dyn BlockDevice>,
}

impl Through {
    async fn new(filter: &str, source: &Arc<Source>) -> Self {
        let filter = NamedFilter::parse(filter.as_ref()).expect("a filter");
        let chain = Chain::new(&[filter], Arc::clone(source) as _).expect("a chain");
        let device = Self::open(&chain).await.expect("an export");
        Self { chain, device }
    }

    async fn open(chain: &Chain) -> Result<Arc<dyn BlockDevice>> {
        let open = chain.exports().open("disk", ClientFacts::default()).await;
        open.map(|open| open.device)
    }

    async fn read(&self, offset: u64, length: usize) -> Result<Buffer> {
        self.device.read(offset, Buffer::zeroed(length)).await
    }

    async fn write(&self, offset: u64, bytes: &[u8], flags: WriteFlags) -> Result<()> {
        let write = self.device.write(offset, Buffer::from(bytes), flags).await;
        assert!(write.as_ref().is_ok_and(|data| data[..] == *bytes) || write.is_err());
        write.map(drop)
    }

    fn count(&self, name: &str) -> u64 {
        let counters = self.chain.counters();
        let counts = counters.iter().flat_map(|counters| &counters.counts);
        counts
            .filter(|count| count.0 == name)
            .map(|count| count.1)
            .sum()
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn failing(operation: Operation, kind: ErrorKind) -> Rule {
    Rule::on(operation).fault(Fault::Error(kind))
}

const NONE: WriteFlags = WriteFlags::empty();

#[tokio::test(start_paused = true)]
async fn a_request_is_repeated_with_growing_pauses() {
    let mut source = Source::new(|number, device| match number {
        0..3 => device.with(failing(Operation::Read, ErrorKind::Io)),
        _ => device,
    });
    source.alone = true;
    let source = Arc::new(source);
    let through = Through::new("retry", &source).await;
    through.write(512, b"here", NONE).await.expect("written");
    let begin = Instant::now();
    assert_eq!(through.read(512, 4).await.expect("read")[..], *b"here");
    assert_eq!(begin.elapsed().as_secs(), 2 + 4 + 8);
    assert_eq!(source.opened(), 4);
    assert_eq!(
        (through.count("reopened"), through.count("repeated")),
        (3, 3)
    );
    assert_eq!(through.count("gave_up"), 0);
    // From now on it is that device.
    through.read(512, 4).await.expect("read");
    assert_eq!(begin.elapsed().as_secs(), 14);
}

#[tokio::test(start_paused = true)]
async fn pauses_can_stay_as_they_are_and_have_a_bound() {
    for (filter, expected) in [
        ("retry:exponential=off,delay=3", 3 * 5),
        ("retry:delay=3,max-delay=5", 3 + 4 * 5),
        ("retry:delay=0,retries=100", 0),
        ("retry:retries=0", 0),
    ] {
        let source = Arc::new(Source::new(|_, device| {
            device.with(failing(Operation::Read, ErrorKind::TimedOut))
        }));
        let through = Through::new(filter, &source).await;
        let begin = Instant::now();
        let error = through.read(4096, 512).await.expect_err("never");
        assert_eq!(
            (error.kind(), error.operation()),
            (ErrorKind::TimedOut, Some(Operation::Read))
        );
        assert_eq!((error.offset(), error.length()), (Some(4096), Some(512)));
        assert_eq!(begin.elapsed().as_secs(), expected, "{filter}");
        assert_eq!(through.count("gave_up"), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn what_breaks_a_rule_is_not_repeated() {
    for kind in [
        ErrorKind::NotPermitted,
        ErrorKind::ReadOnly,
        ErrorKind::InvalidInput,
        ErrorKind::OutOfBounds,
        ErrorKind::NoSpace,
        ErrorKind::Unsupported,
        ErrorKind::Incompatible,
        ErrorKind::Overflow,
    ] {
        let source = Arc::new(Source::new(|_, device| device));
        let through = Through::new("retry", &source).await;
        source
            .newest()
            .add(Rule::on_all().fault(Fault::Error(kind)));
        let begin = Instant::now();
        assert_eq!(
            through
                .write(0, &[1], NONE)
                .await
                .expect_err("refused")
                .kind(),
            kind
        );
        assert_eq!(through.read(0, 1).await.expect_err("refused").kind(), kind);
        let error = through.device.flush().await.expect_err("refused");
        assert_eq!(error.kind(), kind);
        assert_eq!((begin.elapsed(), source.opened()), (Duration::ZERO, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn every_request_is_repeated() {
    let source = Arc::new(Source::new(|number, device| {
        let operations = [
            Operation::Read,
            Operation::Write,
            Operation::Zero,
            Operation::Trim,
            Operation::Extents,
            Operation::Cache,
            Operation::Flush,
        ];
        match operations.get(number) {
            Some(operation) => device.with(failing(*operation, ErrorKind::Io)),
            None => device,
        }
    }));
    let through = Through::new("retry", &source).await;
    let (device, range) = (&through.device, ByteRange::between(0, 65536));
    through.read(0, 10).await.expect("read");
    through
        .write(0, &[7; 65536], WriteFlags::FUA)
        .await
        .expect("written");
    device.zero(range, ZeroFlags::FUA).await.expect("zeroed");
    device.trim(range, WriteFlags::FUA).await.expect("trimmed");
    device
        .extents(range, &Context::Allocation)
        .await
        .expect("an answer");
    device.cache(range).await.expect("cached");
    device.flush().await.expect("nothing is at stake");
    assert_eq!(source.opened(), 8);
    assert_eq!(through.count("repeated"), 7);
}

#[tokio::test(start_paused = true)]
async fn requests_that_fail_together_wait_for_one_of_them() {
    let source = Arc::new(Source::new(|number, device| match number {
        0 => device.with(Rule::on_all().fault(Fault::Die)),
        _ => device,
    }));
    let through = Through::new("retry", &source).await;
    let begin = Instant::now();
    let reads = (0..50).map(|at| through.read(at * 512, 512));
    try_join_all(reads).await.expect("all of them");
    assert_eq!((source.opened(), begin.elapsed()), (2, seconds(2)));

    // And they give up together, too.
    source.newest().add(Rule::on_all().fault(Fault::Die));
    source.refuse(ErrorKind::Refused, 5);
    let begin = Instant::now();
    let reads = join_all((0..50).map(|at| through.read(at * 512, 512))).await;
    assert!(reads.iter().all(|read| {
        let error = read.as_ref().expect_err("nobody is there");
        error.kind() == ErrorKind::Refused && error.operation() == Some(Operation::Read)
    }));
    assert_eq!(begin.elapsed(), seconds(2 + 4 + 8 + 16 + 32));
    // Whoever comes later tries at once.
    through.read(0, 512).await.expect("it is back");
    assert_eq!(begin.elapsed(), seconds(62));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_given_up_leaves_the_turn_to_others() {
    let source = Arc::new(Source::new(|number, device| match number {
        0 => device.with(Rule::on_all().fault(Fault::Die)),
        _ => device,
    }));
    source.refuse(ErrorKind::ConnectionLost, 0);
    let through = Through::new("retry", &source).await;
    source.refuse(ErrorKind::ConnectionLost, 1);
    let (given_up, read) = tokio::join!(
        // In its second pause, when the old device is gone and there is no new one.
        timeout(seconds(3), through.read(0, 512)),
        through.read(512, 512)
    );
    assert!(given_up.is_err());
    read.expect("read");
    assert!(timeout(seconds(1), through.read(0, 512)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn lost_writes_are_told_by_a_flush_of_each_handle_once() {
    let source = Arc::new(Source::new(|_, device| device));
    let through = Through::new("retry", &source).await;
    through.write(0, &[1; 512], NONE).await.expect("written");
    source.newest().add(Rule::on_all().fault(Fault::Die));
    let other = Through::open(&through.chain).await.expect("an export");
    through.read(0, 512).await.expect("read");
    let error = through.device.flush().await.expect_err("it may be lost");
    assert_eq!(error.kind(), ErrorKind::Io);
    through.device.flush().await.expect("told once");
    other.flush().await.expect_err("others may count on it");
    other.flush().await.expect("told once");
    let third = Through::open(&through.chain).await.expect("an export");
    third.flush().await.expect("it was told before it came");
    // Every way to change something counts.
    for how in 0..3 {
        let range = ByteRange::between(0, 4096);
        match how {
            0 => through.device.zero(range, ZeroFlags::empty()).await,
            1 => through.device.trim(range, NONE).await,
            _ => through.write(0, &[3], NONE).await,
        }
        .expect("done");
        for handle in source
            .handles
            .lock()
            .expect("a lock")
            .iter()
            .filter_map(Weak::upgrade)
        {
            handle.add(Rule::on_all().fault(Fault::Die));
        }
        through.read(0, 512).await.expect("read");
        through.device.flush().await.expect_err("it may be lost");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_told_where_nothing_was_at_stake() {
    let source = Arc::new(Source::new(|_, device| device));
    let through = Through::new("retry", &source).await;
    // What was durable, and what was flushed.
    through
        .write(0, &[1; 512], WriteFlags::FUA)
        .await
        .expect("written");
    through.write(0, &[1; 512], NONE).await.expect("written");
    through.device.flush().await.expect("flushed");
    source.newest().add(Rule::on_all().fault(Fault::Die));
    through.read(0, 512).await.expect("read");
    through.device.flush().await.expect("nothing was lost");
    // A source that still answers is flushed before it is left.
    through.write(0, &[2; 512], NONE).await.expect("written");
    source.newest().add(failing(Operation::Read, ErrorKind::Io));
    through.read(0, 512).await.expect("read");
    through.device.flush().await.expect("nothing was lost");
    // Unless it does not any more.
    through.write(0, &[3; 512], NONE).await.expect("written");
    source.newest().add(failing(Operation::Read, ErrorKind::Io));
    source
        .newest()
        .add(Rule::on(Operation::Flush).fault(Fault::Hang));
    through.read(0, 512).await.expect("read");
    through.device.flush().await.expect_err("it may be lost");
}

#[tokio::test(start_paused = true)]
async fn a_flush_that_fails_is_not_repeated_while_something_is_at_stake() {
    for kind in [ErrorKind::Io, ErrorKind::ConnectionLost] {
        let source = Arc::new(Source::new(|_, device| device));
        let through = Through::new("retry", &source).await;
        through.write(0, &[1; 512], NONE).await.expect("written");
        source
            .newest()
            .add(failing(Operation::Flush, kind).times(1));
        let begin = Instant::now();
        let error = through.device.flush().await.expect_err("not durable");
        assert_eq!((error.kind(), begin.elapsed()), (kind, Duration::ZERO));
        // That was the word; what comes now is new.
        through.device.flush().await.expect("nothing is at stake");
        source.newest().add(Rule::on_all().fault(Fault::Die));
        through.device.flush().await.expect("nothing was at stake");
    }
}

#[tokio::test(start_paused = true)]
async fn flushes_that_are_under_way_together_all_tell_of_what_may_be_lost() {
    // Without and with a read that has the source opened again before the flushes fail.
    for reads in [false, true] {
        let source = Arc::new(Source::new(|number, device| match number {
            0 => {
                let device = device
                    .with(failing(Operation::Flush, ErrorKind::ConnectionLost))
                    .with(failing(Operation::Read, ErrorKind::ConnectionLost));
                let late = Rule::on(Operation::Flush).fault(Fault::Delay(seconds(30)));
                FaultyDevice::new(Arc::new(device)).with(late)
            }
            _ => device,
        }));
        let through = Through::new("retry", &source).await;
        let written = through.write(0, &[1; 10], WriteFlags::empty()).await;
        written.expect("written");
        let flushes = join_all([through.device.flush(), through.device.flush()]);
        let read = async {
            if reads {
                through.read(0, 10).await.expect("read");
            }
        };
        for flushed in futures_util::join!(flushes, read).0 {
            flushed.expect_err("it may be lost");
        }
        through.device.flush().await.expect("told before it began");
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_acknowledged_by_a_device_that_was_left_may_be_lost() {
    let source = Arc::new(Source::new(|number, device| match number {
        0 => device
            .with(failing(Operation::Read, ErrorKind::ConnectionLost))
            .with(Rule::on(Operation::Write).fault(Fault::Delay(seconds(3)))),
        _ => device,
    }));
    let through = Through::new("retry", &source).await;
    let write = through.write(0, &[1; 512], NONE);
    let (written, read) = tokio::join!(write, through.read(0, 512));
    written.expect("written");
    read.expect("read");
    through.device.flush().await.expect_err("it may be lost");
    through.device.flush().await.expect("told once");
}

#[tokio::test(start_paused = true)]
async fn it_is_the_same_device_while_the_source_fails_now_and_then() {
    for seed in 0..4 {
        let mut source = Source::new(|number, device| {
            let after = 3 + (number as u64 * 7) % 11;
            let operation = [Operation::Read, Operation::Write, Operation::Zero][number % 3];
            device
                .with(failing(operation, ErrorKind::Io).after(after).times(1))
                .with(
                    failing(Operation::Extents, ErrorKind::TimedOut)
                        .after(9)
                        .times(1),
                )
        });
        source.memory = Arc::new(MemoryDevice::new(300_001));
        source.alone = true;
        let source = Arc::new(source);
        let through = Through::new("retry", &source).await;
        // Some flushes tell of losses, which the model does not know.
        let device = Arc::clone(&through.device);
        let calm = crate::Filtered::new(Calm(device));
        check_device(&calm, seed, 300).await;
        assert!(source.opened() > 5, "{}", source.opened());
    }
}

/// A device whose flushes never fail.
struct Calm(Arc<dyn BlockDevice>);

impl crate::DeviceFilter for Calm {
    const PASSES: Capabilities = Capabilities::empty();

    fn below(&self) -> &Arc<dyn BlockDevice> {
        &self.0
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            if let Err(error) = self.0.flush().await {
                assert_eq!(error.kind(), ErrorKind::Io);
            }
            Ok(())
        })
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_back_as_something_else_is_refused() {
    let changes: [fn(usize, FaultyDevice) -> FaultyDevice; 2] = [
        |number, device| {
            device
                .with(failing(Operation::Read, ErrorKind::Io))
                .with_info(|info| info.size -= number as u64)
        },
        |number, device| {
            let device = device.with(failing(Operation::Read, ErrorKind::Io));
            match number {
                0 => device,
                _ => device.with_info(|info| info.capabilities -= Capabilities::WRITE),
            }
        },
    ];
    for faults in changes {
        let source = Arc::new(Source::new(faults));
        let through = Through::new("retry", &source).await;
        let error = through.read(5, 10).await.expect_err("it is another");
        assert_eq!(error.kind(), ErrorKind::Incompatible);
        assert_eq!(error.offset(), Some(5));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_another_for_a_while_is_waited_for() {
    let source = Arc::new(Source::new(|number, device| match number {
        0 => device.with(failing(Operation::Read, ErrorKind::Io)),
        1 => device.with_info(|info| info.size /= 2),
        2 => device.with_info(|info| info.capabilities -= Capabilities::WRITE),
        _ => device,
    }));
    let through = Through::new("retry", &source).await;
    let begin = Instant::now();
    through.read(5, 10).await.expect("it is what it was");
    assert_eq!(begin.elapsed(), seconds(2 + 4 + 8));
    assert_eq!(through.count("reopened"), 1);
}

#[tokio::test(start_paused = true)]
async fn it_can_be_opened_again_for_reading_only() {
    let source = Arc::new(Source::new(|number, device| match number {
        0 => device.with(failing(Operation::Read, ErrorKind::Io)),
        _ => device.with_info(|info| info.capabilities = Capabilities::MULTI_CONN),
    }));
    let through = Through::new("retry:readonly=on", &source).await;
    through.read(0, 10).await.expect("read");
    let asked: Vec<_> = source
        .clients
        .lock()
        .expect("a lock")
        .iter()
        .map(|it| it.read_only)
        .collect();
    assert_eq!(asked, [false, true]);
}

#[tokio::test(start_paused = true)]
async fn opening_is_tried_again_unless_there_is_no_such_export() {
    let source = Arc::new(Source::new(|_, device| device));
    let filter = NamedFilter::parse("retry:retries=3,delay=1".as_ref()).expect("a filter");
    let chain = Chain::new(&[filter], Arc::clone(&source) as _).expect("a chain");
    for (kind, times, took, opens) in [
        (ErrorKind::Refused, 3, 1 + 2 + 4, true),
        (ErrorKind::Io, 4, 1 + 2 + 4, false),
        (ErrorKind::NotFound, 1, 0, false),
        (ErrorKind::NotPermitted, 1, 0, false),
    ] {
        source.refuse(kind, times);
        let begin = Instant::now();
        let opened = Through::open(&chain).await;
        assert_eq!(
            (opened.is_ok(), begin.elapsed()),
            (opens, seconds(took)),
            "{kind:?}"
        );
    }
    source.refuse(ErrorKind::Refused, 4);
    assert!(
        timeout(seconds(2), Through::open(&chain)).await.is_err(),
        "it can be given up"
    );
}

#[tokio::test(start_paused = true)]
async fn wishes_of_what_was_opened_again_are_made() {
    let source = Arc::new(Source::new(|_, device| {
        device.with(failing(Operation::Read, ErrorKind::Io).after(1))
    }));
    let through = Through::new("retry", &source).await;
    for _ in 0..3 {
        through.read(0, 1).await.expect("read");
    }
    assert_eq!(source.opened(), 3);
    let wishes = source.wishes.lock().expect("a lock").clone();
    wishes[2].wish(Wish::Disconnect);
    let begin = Instant::now();
    through.read(0, 1).await.expect_err("failed");
    assert_eq!(wishes[0].current(), Some(Wish::Disconnect));
    // Whoever wants to end the connection does not want to be asked again.
    assert_eq!((begin.elapsed(), source.opened()), (Duration::ZERO, 3));
}

#[tokio::test]
async fn nothing_goes_around_it() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), [1; 8192]).expect("written");
    let access = blockferry_block::Access::ReadWrite;
    let device = blockferry_block::FileDevice::open(file.path(), access).expect("opened");
    let device = crate::testing::through(&["retry"], Arc::new(device)).await;
    assert!(matches!(
        device.mapping(ByteRange::between(0, 8192)),
        Mapping::Opaque
    ));
    let around = Capabilities::COPY_FROM | Capabilities::SPLICE_READ | Capabilities::RESIZE;
    assert!(!device.info().capabilities.intersects(around));
    check_device(&*device, 5, 200).await;
}

/// A source whose requests, openings and closings take turns, as those of some scripts do.
struct TakingTurns {
    turn: Arc<Semaphore>,
    /// As many as handles were asked for after the first.
    opening: Arc<Semaphore>,
    opened: AtomicUsize,
    /// Handles that waited for their turn to be closed in vain.
    stuck: Arc<AtomicUsize>,
}

/// A handle to it. All reads of the first fail, all but one of them once it is being opened again.
struct InTurn {
    source: Arc<TakingTurns>,
    memory: Arc<dyn BlockDevice>,
    is_first: bool,
}

impl DeviceFilter for InTurn {
    const PASSES: Capabilities = Capabilities::empty();

    fn below(&self) -> &Arc<dyn BlockDevice> {
        &self.memory
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let _turn = self.source.turn.acquire().await.expect("it is open");
            if !self.is_first {
                return self.memory.read(offset, buffer).await;
            }
            if offset > 0 {
                let _opening = self.source.opening.acquire().await.expect("it is open");
            }
            Err(Error::new(ErrorKind::Io))
        })
    }
}

impl Drop for InTurn {
    fn drop(&mut self) {
        let begun = std::time::Instant::now();
        while self.source.turn.try_acquire().is_err() {
            if begun.elapsed() > seconds(10) {
                self.source.stuck.fetch_add(1, Ordering::Relaxed);
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

struct InTurns(Arc<TakingTurns>);

impl Exports for InTurns {
    fn list(&self, _: ClientFacts) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        Box::pin(async { Ok(vec![ExportEntry::default()]) })
    }

    fn open<'a>(&'a self, _: &'a str, _: ClientFacts) -> BoxFuture<'a, Result<OpenExport>> {
        Box::pin(async move {
            let number = self.0.opened.fetch_add(1, Ordering::Relaxed);
            self.0.opening.add_permits(number);
            let _turn = self.0.turn.acquire().await.expect("it is open");
            Ok(OpenExport::new(Arc::new(Filtered::new(InTurn {
                source: Arc::clone(&self.0),
                memory: Arc::new(MemoryDevice::new(1 << 20)),
                is_first: number == 0,
            }))))
        })
    }
}

#[tokio::test]
async fn a_handle_that_waits_to_be_closed_holds_up_nobody_who_opens_it_again() {
    let source = Arc::new(TakingTurns {
        turn: Arc::new(Semaphore::new(1)),
        opening: Arc::new(Semaphore::new(0)),
        opened: AtomicUsize::new(0),
        stuck: Arc::default(),
    });
    let filter = NamedFilter::parse("retry:delay=1ms".as_ref()).expect("a filter");
    let exports = Arc::new(InTurns(Arc::clone(&source)));
    let chain = Chain::new(&[filter], exports).expect("a chain");
    let device = Through::open(&chain).await.expect("an export");
    let reads = (0..4).map(|block| device.read(block * 512, Buffer::zeroed(512)));
    try_join_all(reads).await.expect("all are repeated");
    assert_eq!(source.opened.load(Ordering::Relaxed), 2);
    assert_eq!(source.stuck.load(Ordering::Relaxed), 0);
}
