//! Servers that restart in the middle of a copy, and forget what they did not flush.

use std::{
    future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, DeviceInfo, Error, ErrorKind,
    Extent, Result, Status, WriteFlags, ZeroFlags,
};
use blockferry_copy::{
    Checkpoint, CompareOptions, Comparison, Control, CopyError, CopyOptions, Destination,
    DigestOptions, Done, Event, Order, Report, SaveDone, Side, Source, Warning, compare, copy,
};

use tokio::time::Instant;

use crate::{Recorder, digest::naive_digest, pattern, pipe::Output};

const MIB: usize = 1 << 20;
const SIZE: usize = 24 * MIB + 777;

/// A server whose connections all end when it restarts.
struct Server {
    info: DeviceInfo,
    /// What survives a restart, and what is seen now.
    disks: Mutex<(Vec<u8>, Vec<u8>)>,
    /// How many requests there were.
    requests: AtomicUsize,
    /// It restarts at each of these requests.
    restarts: Mutex<Vec<usize>>,
    /// Which connections are alive: those opened since.
    era: AtomicU64,
    /// How many attempts to connect are refused after a restart.
    refusals: usize,
    refuse: AtomicUsize,
    /// How long it is away when it restarts, and when it is back.
    away: Duration,
    back: Mutex<Option<Instant>>,
    /// Whether it is gone for good at the next restart.
    gone: AtomicBool,
    /// What an attempt to connect gets then.
    farewell: ErrorKind,
    /// Whether it says that it has flushed and has not.
    lies: bool,
    flushes: AtomicUsize,
    /// How long a flush takes, and how many end well.
    flushing: (Duration, usize),
    zero_extents: Vec<ByteRange>,
}

/// One connection.
struct Link {
    server: Arc<Server>,
    era: u64,
}

impl Server {
    fn new(bytes: Vec<u8>, connections: bool) -> Self {
        let mut info = DeviceInfo::new("server", bytes.len() as u64);
        info.capabilities =
            Capabilities::WRITE | Capabilities::ZERO | Capabilities::FLUSH | Capabilities::REOPEN;
        info.capabilities.set(Capabilities::MULTI_CONN, connections);
        info.contexts = vec![Context::Allocation];
        Self {
            info,
            disks: Mutex::new((bytes.clone(), bytes)),
            requests: AtomicUsize::new(0),
            restarts: Mutex::default(),
            era: AtomicU64::new(0),
            refusals: 0,
            refuse: AtomicUsize::new(0),
            away: Duration::ZERO,
            back: Mutex::default(),
            gone: AtomicBool::new(false),
            farewell: ErrorKind::Refused,
            lies: false,
            flushes: AtomicUsize::new(0),
            flushing: (Duration::ZERO, usize::MAX),
            zero_extents: Vec::new(),
        }
    }

    fn restarting_at(self, requests: impl IntoIterator<Item = usize>) -> Self {
        *self.restarts.lock().expect("not poisoned") = requests.into_iter().collect();
        self
    }

    fn refusing(mut self, attempts: usize) -> Self {
        self.refusals = attempts;
        self
    }

    fn link(self) -> Arc<Link> {
        Arc::new(Link {
            server: Arc::new(self),
            era: 0,
        })
    }

    fn restart(&self) {
        let mut disks = self.disks.lock().expect("not poisoned");
        let (durable, seen) = &mut *disks;
        seen.copy_from_slice(durable);
        self.era.fetch_add(1, SeqCst);
        self.refuse.store(self.refusals, SeqCst);
        *self.back.lock().expect("not poisoned") = Some(Instant::now() + self.away);
    }
}

impl Link {
    fn bytes(&self) -> Vec<u8> {
        self.server.disks.lock().expect("not poisoned").0.clone()
    }

    /// A request arrives; the server may restart instead.
    async fn begin(&self) -> Result<()> {
        // Every request takes a turn, so that several are in flight.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let number = self.server.requests.fetch_add(1, SeqCst);
        let restarts = self.server.restarts.lock().expect("not poisoned");
        if restarts.contains(&number) {
            self.server.restart();
        }
        self.alive()
    }

    fn alive(&self) -> Result<()> {
        if self.era != self.server.era.load(SeqCst) {
            return Err(Error::new(ErrorKind::ConnectionLost));
        }
        Ok(())
    }

    fn change(&self, range: ByteRange, change: impl FnOnce(&mut [u8])) {
        let mut disks = self.server.disks.lock().expect("not poisoned");
        change(&mut disks.1[range.start() as usize..range.end() as usize]);
    }
}

impl BlockDevice for Link {
    fn info(&self) -> &DeviceInfo {
        &self.server.info
    }

    fn read(&self, offset: u64, mut buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            self.begin().await?;
            let disks = self.server.disks.lock().expect("not poisoned");
            let start = offset as usize;
            let length = buffer.len();
            buffer.copy_from_slice(&disks.1[start..start + length]);
            Ok(buffer)
        })
    }

    fn write(&self, offset: u64, data: Buffer, _: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            self.begin().await?;
            let range = ByteRange::between(offset, offset + data.len() as u64);
            self.change(range, |bytes| bytes.copy_from_slice(&data));
            Ok(data)
        })
    }

    fn zero(&self, range: ByteRange, _: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.begin().await?;
            self.change(range, |bytes| bytes.fill(0));
            Ok(())
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.begin().await?;
            let number = self.server.flushes.fetch_add(1, SeqCst);
            // What comes while it is under way is not covered.
            let covered = {
                let disks = self.server.disks.lock().expect("not poisoned");
                disks.1.clone()
            };
            let (pause, good) = self.server.flushing;
            tokio::time::sleep(pause).await;
            if number >= good {
                return Err(Error::new(ErrorKind::Io));
            }
            if !self.server.lies {
                let mut disks = self.server.disks.lock().expect("not poisoned");
                disks.0.copy_from_slice(&covered);
            }
            Ok(())
        })
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        _: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        Box::pin(async move {
            self.begin().await?;
            let mut extents = Vec::new();
            let mut at = range.start();
            for zero in &self.server.zero_extents {
                let zero = zero.intersection(range);
                if zero.is_empty() {
                    continue;
                }
                let status = Status::DATA;
                let data = ByteRange::between(at, zero.start());
                if !data.is_empty() {
                    let range = data;
                    extents.push(Extent { range, status });
                }
                let (range, status) = (zero, Status::ZERO);
                extents.push(Extent { range, status });
                at = zero.end();
            }
            if at < range.end() {
                extents.push(Extent {
                    range: ByteRange::between(at, range.end()),
                    status: Status::DATA,
                });
            }
            Ok(extents)
        })
    }

    fn reopen(&self) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        Box::pin(async move {
            if self.server.gone.load(SeqCst) && self.server.era.load(SeqCst) > 0 {
                return Err(Error::new(self.server.farewell));
            }
            let back = *self.server.back.lock().expect("not poisoned");
            if back.is_some_and(|back| Instant::now() < back) {
                return Err(Error::new(ErrorKind::Refused));
            }
            let refuse = self.server.refuse.load(SeqCst);
            if refuse > 0 {
                self.server.refuse.store(refuse - 1, SeqCst);
                return Err(Error::new(ErrorKind::Refused));
            }
            let other = Self {
                server: Arc::clone(&self.server),
                era: self.server.era.load(SeqCst),
            };
            Ok(Arc::new(other) as Arc<dyn BlockDevice>)
        })
    }
}

fn source(connections: bool) -> Server {
    let mut bytes = pattern(SIZE, 3);
    bytes[5 * MIB..9 * MIB].fill(0);
    bytes[12 * MIB..12 * MIB + 70_000].fill(0);
    let mut server = Server::new(bytes, connections);
    server.zero_extents = vec![ByteRange::between(5 << 20, 9 << 20)];
    server
}

fn target(connections: bool) -> Server {
    Server::new(vec![0xd1; SIZE], connections)
}

async fn run(
    from: &Arc<Link>,
    to: &Arc<Link>,
    options: &CopyOptions,
    events: &Recorder,
) -> Result<Report, CopyError> {
    let from = Source::Device(Arc::clone(from) as _);
    let to = Destination::Device(Arc::clone(to) as _);
    copy(from, to, options, &Control::new(), events).await
}

fn reconnections(events: &Recorder) -> usize {
    let again = |event: &&Event| matches!(event, Event::Warning(Warning::Reconnected { .. }));
    events.events().iter().filter(again).count()
}

fn orders() -> impl Iterator<Item = (bool, CopyOptions)> {
    let orders = [Order::Any, Order::Ascending].into_iter();
    orders.flat_map(|order| {
        [false, true].map(|connections| {
            let mut options = CopyOptions::default();
            options.order = order;
            options.request_size = Some(64 << 10);
            options.requests = Some(4);
            (connections, options)
        })
    })
}

#[tokio::test(start_paused = true)]
async fn a_source_that_restarts_four_times_is_read_on() {
    for (connections, options) in orders() {
        let from = source(connections)
            .restarting_at([20, 90, 91, 200])
            .refusing(2)
            .link();
        let to = target(connections).link();
        let events = Recorder::default();
        let report = run(&from, &to, &options, &events).await.expect("copied");
        assert!(to.bytes() == from.bytes(), "{connections} {options:?}");
        assert_eq!(report.data + report.zero, SIZE as u64);
        assert_eq!(events.progress().done, SIZE as u64);
        assert!(report.reconnections >= 3, "{report:?}");
        assert!(reconnections(&events) >= 3);
    }
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_restarts_and_forgets_is_written_again() {
    for (connections, options) in orders() {
        for restarts in [vec![7], vec![50, 120, 250, 300], vec![370], vec![386, 387]] {
            let from = source(connections).link();
            let to = target(connections)
                .restarting_at(restarts.clone())
                .refusing(1)
                .link();
            let events = Recorder::default();
            let report = run(&from, &to, &options, &events).await.expect("copied");
            assert!(
                to.bytes() == from.bytes(),
                "{connections} {restarts:?} {options:?}"
            );
            assert_eq!(report.data + report.zero, SIZE as u64);
            assert_eq!(events.progress().done, SIZE as u64);
            assert!(report.flushed);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_restarts_at_any_request_ends_with_the_right_image() {
    let mut options = CopyOptions::default();
    options.request_size = Some(1 << 20);
    options.requests = Some(2);
    for restart in (0..45).step_by(4) {
        let from = source(true).link();
        let to = target(true).restarting_at([restart]).link();
        let events = Recorder::default();
        run(&from, &to, &options, &events).await.expect("copied");
        assert!(to.bytes() == from.bytes(), "{restart}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_block_of_a_smaller_image_is_written_again_too() {
    for restart in [24, 25, 26, 27, 28, 29, 30] {
        let from = source(false).link();
        let mut to = Server::new(vec![0xd1; SIZE + 5000], false).restarting_at([restart]);
        to.info.limits.minimum = 512;
        let to = to.link();
        let mut options = CopyOptions::default();
        options.request_size = Some(1 << 20);
        let events = Recorder::default();
        let report = run(&from, &to, &options, &events).await.expect("copied");
        let bytes = to.bytes();
        assert!(bytes[..SIZE] == from.bytes(), "{restart}");
        assert!(bytes[SIZE..].iter().all(|byte| *byte == 0xd1), "{restart}");
        assert_eq!(report.data + report.zero, SIZE as u64);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_flushed_is_not_written_again() {
    let from = source(false).link();
    // So slow that it is flushed on the way, every 30 seconds.
    let to = target(false).restarting_at([300]).link();
    let control = Control::new();
    control.set_rate(Some(100 << 10));
    let mut options = CopyOptions::default();
    options.request_size = Some(64 << 10);
    let events = Recorder::default();
    let (source, target) = (
        Source::Device(Arc::clone(&from) as _),
        Destination::Device(Arc::clone(&to) as _),
    );
    let report = copy(source, target, &options, &control, &events).await;
    assert!(report.expect("copied").flushed);
    assert!(to.bytes() == from.bytes());
    assert!(to.server.flushes.load(SeqCst) > 5);
    let again = events.events().into_iter().find_map(|event| match event {
        Event::Warning(Warning::Reconnected { again, .. }) => Some(again),
        _ => None,
    });
    // No more than what 30 seconds move.
    let again = again.expect("it restarted");
    assert!(again > 0 && again < 4 << 20, "{again}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stays_away_ends_the_copy_after_so_many_attempts() {
    for connections in [false, true] {
        for retries in [0, 1, 5] {
            let from = source(connections).restarting_at([30]);
            from.gone.store(true, SeqCst);
            let from = from.link();
            let to = target(connections).link();
            let mut options = CopyOptions::default();
            options.retries = retries;
            let events = Recorder::default();
            let error = run(&from, &to, &options, &events)
                .await
                .expect_err("nobody is there");
            assert_eq!(error.side, Side::Source);
            assert!(error.error.is_transient(), "{error}");
            let attempts = events
                .events()
                .into_iter()
                .filter(|event| matches!(event, Event::Warning(Warning::Reconnecting { .. })));
            assert_eq!(attempts.count(), retries as usize);
            if retries > 0 {
                assert!(error.to_string().contains("could not be opened again"));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn many_connections_wait_as_long_for_a_server_as_one() {
    for connections in [1, 16] {
        for side in [Side::Source, Side::Destination] {
            let (mut from, mut to) = (source(true), target(true));
            let server = match side {
                Side::Source => &mut from,
                _ => &mut to,
            };
            *server.restarts.get_mut().expect("not poisoned") = vec![200];
            server.away = Duration::from_secs(22);
            let (from, to) = (from.link(), to.link());
            let mut options = CopyOptions::default();
            options.connections = connections;
            options.requests = Some(4);
            options.request_size = Some(64 << 10);
            let events = Recorder::default();
            let copied = run(&from, &to, &options, &events).await;
            copied.expect("it was back before the attempts were used up");
            assert!(to.bytes()[..SIZE] == from.bytes());
            let attempts = events
                .events()
                .into_iter()
                .filter(|event| matches!(event, Event::Warning(Warning::Reconnecting { .. })));
            assert_eq!(attempts.count(), 8);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_comes_back_as_another_ends_the_copy_at_once_and_for_good() {
    for connections in [false, true] {
        let mut from = source(connections).restarting_at([30]);
        from.gone.store(true, SeqCst);
        from.farewell = ErrorKind::Incompatible;
        let (from, to) = (from.link(), target(connections).link());
        let events = Recorder::default();
        let copied = run(&from, &to, &CopyOptions::default(), &events).await;
        let error = copied.expect_err("it is another one").error;
        assert_eq!(error.kind(), ErrorKind::Incompatible);
        assert!(!error.is_transient(), "{error}");
        assert!(error.to_string().contains("could not be opened again"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_dies_of_one_request_does_not_keep_the_copy_for_ever() {
    let from = source(true).restarting_at(10..100_000).link();
    let to = target(true).link();
    let events = Recorder::default();
    let copied = run(&from, &to, &CopyOptions::default(), &events).await;
    let error = copied.expect_err("it never answers again");
    assert_eq!(error.side, Side::Source);
}

#[tokio::test(start_paused = true)]
async fn a_pipe_gets_each_byte_once_although_the_source_restarts() {
    for connections in [false, true] {
        let from = source(connections).restarting_at([3, 30, 31, 60]).link();
        let output = Output::new(usize::MAX);
        let mut options = CopyOptions::default();
        options.request_size = Some(256 << 10);
        let to = Destination::Stream(Box::new(output.clone()));
        let from_device = Source::Device(Arc::clone(&from) as _);
        let events = Recorder::default();
        let copied = copy(from_device, to, &options, &Control::new(), &events).await;
        copied.expect("copied");
        assert!(output.bytes() == from.bytes());
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_waits_for_a_server_can_be_cancelled() {
    let from = source(false).restarting_at([10]).refusing(7).link();
    let to = target(false).link();
    let control = Control::new();
    let events = Recorder::default();
    let (source, target) = (
        Source::Device(Arc::clone(&from) as _),
        Destination::Device(Arc::clone(&to) as _),
    );
    let options = CopyOptions::default();
    let copying = copy(source, target, &options, &control, &events);
    let cancel = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        control.cancel();
        future::pending::<()>().await;
    };
    let ended = tokio::select! {
        ended = copying => ended,
        () = cancel => unreachable!("it never ends"),
    };
    assert_eq!(ended.expect_err("cancelled").side, Side::Cancelled);
    // What was written until then is durable.
    assert!(to.server.flushes.load(SeqCst) > 0);
}

/// Keeps what it is given.
#[derive(Default)]
struct Kept(Mutex<Vec<Done>>);

impl SaveDone for Kept {
    fn save(&self, done: &Done) -> BoxFuture<'static, Result<()>> {
        self.0.lock().expect("not poisoned").push(done.clone());
        Box::pin(async { Ok(()) })
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_goes_on_from_any_checkpoint_of_another() {
    let from = source(true).link();
    let kept = Arc::new(Kept::default());
    let with = |done: Done| {
        let mut options = CopyOptions::default();
        options.request_size = Some(64 << 10);
        options.checkpoint = Some(Checkpoint {
            done,
            save: Arc::clone(&kept) as _,
        });
        options
    };
    let to = target(true).link();
    let control = Control::new();
    control.set_rate(Some(2 << 20));
    let options = with(Done::default());
    let (source, target_) = (
        Source::Device(Arc::clone(&from) as _),
        Destination::Device(Arc::clone(&to) as _),
    );
    let report = copy(source, target_, &options, &control, &()).await;
    report.expect("copied");
    let checkpoints = std::mem::take(&mut *kept.0.lock().expect("not poisoned"));
    assert!(checkpoints.len() > 5, "{}", checkpoints.len());
    let image = from.bytes();
    for done in checkpoints {
        assert_eq!(done.data + done.zero, done.ranges.len());
        // What is done is there, and nothing else.
        let mut bytes = vec![0xee; SIZE];
        for range in done.ranges.iter() {
            let part = range.start() as usize..range.end() as usize;
            bytes[part.clone()].copy_from_slice(&image[part]);
        }
        let to = Server::new(bytes, true).link();
        let events = Recorder::default();
        let options = with(done.clone());
        let before = from.server.requests.load(SeqCst);
        let report = run(&from, &to, &options, &events).await.expect("copied");
        assert!(to.bytes() == image);
        assert_eq!(report.resumed, done.ranges.len());
        assert_eq!(report.data + report.zero, SIZE as u64);
        assert_eq!(events.progress().done, SIZE as u64);
        let reads = from.server.requests.load(SeqCst) - before;
        let left = (SIZE as u64 - done.ranges.len()) / (64 << 10);
        assert!(reads as u64 <= left + 20, "{reads} reads for {left}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_fails_notes_what_it_has_done() {
    let from = source(false).restarting_at([200]);
    from.gone.store(true, SeqCst);
    let from = from.link();
    let to = target(false).link();
    let kept = Arc::new(Kept::default());
    let mut options = CopyOptions::default();
    options.request_size = Some(64 << 10);
    options.checkpoint = Some(Checkpoint {
        done: Done::default(),
        save: Arc::clone(&kept) as _,
    });
    let error = run(&from, &to, &options, &Recorder::default()).await;
    error.expect_err("the source is gone");
    let last = kept.0.lock().expect("not poisoned").pop().expect("noted");
    assert!(last.ranges.len() > 8 << 20, "{}", last.ranges.len());
    let (image, bytes) = (from.bytes(), to.bytes());
    for range in last.ranges.iter() {
        let part = range.start() as usize..range.end() as usize;
        assert!(bytes[part.clone()] == image[part]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_within_a_flush_notes_no_more_than_that_flush_covers() {
    let from = source(false).restarting_at([200]);
    from.gone.store(true, SeqCst);
    let from = from.link();
    // The first flush is under way when the source is gone; the next one fails.
    let mut to = target(false);
    to.flushing = (Duration::from_secs(60), 1);
    let to = to.link();
    let kept = Arc::new(Kept::default());
    let mut options = CopyOptions::default();
    options.request_size = Some(64 << 10);
    options.requests = Some(1);
    options.checkpoint = Some(Checkpoint {
        done: Done::default(),
        save: Arc::clone(&kept) as _,
    });
    let error = run(&from, &to, &options, &Recorder::default()).await;
    error.expect_err("the source is gone");
    let last = kept.0.lock().expect("not poisoned").pop().expect("noted");
    assert!(!last.ranges.is_empty());
    let (image, durable) = (from.bytes(), to.bytes());
    for range in last.ranges.iter() {
        let part = range.start() as usize..range.end() as usize;
        assert!(durable[part.clone()] == image[part], "{range:?}");
    }
}

#[tokio::test]
async fn a_checkpoint_that_does_not_fit_is_refused_before_anything_is_written() {
    let from = source(false).link();
    let fits = ByteRange::between(0, 4096);
    for (range, data) in [
        (ByteRange::between(0, SIZE as u64 + 512), SIZE as u64 + 512),
        (ByteRange::between(100, 4096), 3996),
        (fits, 17),
    ] {
        let mut to = target(false);
        to.info.limits.minimum = 512;
        let to = to.link();
        let mut options = CopyOptions::default();
        options.checkpoint = Some(Checkpoint {
            done: Done {
                ranges: [range].into_iter().collect(),
                data,
                zero: 0,
            },
            save: Arc::new(Kept::default()),
        });
        let error = run(&from, &to, &options, &Recorder::default()).await;
        assert_eq!(error.expect_err("refused").side, Side::Plan);
        assert_eq!(to.server.requests.load(SeqCst), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_done_twice_counts_once_in_a_digest_and_is_verified() {
    for (connections, options) in orders() {
        let mut options = options;
        options.digest = Some(DigestOptions::default());
        options.verify = true;
        let from = source(connections).restarting_at([20, 90, 200]).link();
        // Some of these come while it is read back.
        let to = target(connections)
            .restarting_at([50, 300, 420, 500, 600])
            .link();
        let events = Recorder::default();
        let report = run(&from, &to, &options, &events).await.expect("copied");
        let image = from.bytes();
        assert!(to.bytes() == image, "{connections} {options:?}");
        let digest = report.digest.expect("wanted").to_string();
        assert_eq!(digest, naive_digest(&image, DigestOptions::default()));
        assert!(report.verified);
        assert_eq!(events.progress().done, SIZE as u64);
    }
}

#[tokio::test(start_paused = true)]
async fn a_flush_that_was_a_lie_is_found_out_when_the_server_restarts() {
    let from = source(true).link();
    let mut to = target(true);
    to.lies = true;
    // All is written by then, and some of it read back.
    let to = to.restarting_at([420]).link();
    let mut options = CopyOptions::default();
    options.request_size = Some(64 << 10);
    options.requests = Some(4);
    options.verify = true;
    let copied = run(&from, &to, &options, &Recorder::default()).await;
    let error = copied.expect_err("it has forgotten everything");
    assert_eq!(error.side, Side::Destination);
    assert_eq!(error.error.kind(), ErrorKind::Mismatch);
}

#[tokio::test(start_paused = true)]
async fn images_whose_servers_restart_are_compared_to_the_end() {
    for connections in [false, true] {
        let one = source(connections).restarting_at([5, 30, 31]).refusing(2);
        let mut bytes = one.disks.lock().expect("not poisoned").0.clone();
        bytes[SIZE - 1] ^= 1;
        let other = Server::new(bytes, connections).restarting_at([3, 40]);
        let (one, other) = (one.link(), other.link());
        let events = Recorder::default();
        let control = Control::new();
        let options = CompareOptions::default();
        let found = compare(one.clone(), other, &options, &control, &events).await;
        let offset = SIZE as u64 - 1;
        assert_eq!(
            found.expect("connected again"),
            Comparison::Differs { offset }
        );
        assert!(reconnections(&events) > 0);

        let gone = source(connections).restarting_at([20]);
        gone.gone.store(true, SeqCst);
        let found = compare(one, gone.link(), &options, &control, &events).await;
        let error = found.expect_err("gone for good");
        assert_eq!(error.side, Side::Destination);
        assert!(error.error.is_transient());
    }
}
