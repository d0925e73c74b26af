//! How much is in flight, over links whose latency and speed are simulated in virtual time. (Its clock
//! knows milliseconds only; fast links are simulated beside the pacer.)

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, DeviceInfo, Extent,
    NullDevice, Result, Status,
};
use blockferry_copy::{Control, CopyOptions, Destination, Report, Source, copy};
use tokio::time::{Instant, sleep, sleep_until};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A device of `size` bytes behind a link: a read takes its turn on the line, and then the way back.
struct Link {
    info: DeviceInfo,
    latency: Duration,
    /// Bytes a second.
    rate: f64,
    /// How many requests the server works on at a time.
    servers: Mutex<Vec<Instant>>,
    /// When the line is free.
    free: Mutex<Instant>,
    in_flight: AtomicU64,
    most_in_flight: AtomicU64,
    longest: AtomicUsize,
    /// How many bytes were read in all.
    read: AtomicU64,
    extents: Option<Answers>,
}

/// How a link answers questions about extents.
struct Answers {
    /// How long each takes.
    time: Duration,
    answer: fn(ByteRange) -> Vec<Extent>,
}

impl Link {
    fn new(size: u64, latency: Duration, rate: f64) -> Arc<Self> {
        Arc::new(Self::silent(size, latency, rate))
    }

    /// One that knows its holes, each answer after `time`.
    fn knowing(
        size: u64,
        latency: Duration,
        rate: f64,
        time: Duration,
        answer: fn(ByteRange) -> Vec<Extent>,
    ) -> Arc<Self> {
        let mut link = Self::silent(size, latency, rate);
        link.info.contexts = vec![Context::Allocation];
        link.extents = Some(Answers { time, answer });
        Arc::new(link)
    }

    fn silent(size: u64, latency: Duration, rate: f64) -> Self {
        let mut info = DeviceInfo::new("a link", size);
        info.capabilities = Capabilities::empty();
        Self {
            info,
            latency,
            rate,
            servers: Mutex::new(vec![Instant::now(); 64]),
            free: Mutex::new(Instant::now()),
            in_flight: AtomicU64::new(0),
            most_in_flight: AtomicU64::new(0),
            longest: AtomicUsize::new(0),
            read: AtomicU64::new(0),
            extents: None,
        }
    }

    /// When a request of `length` bytes that begins now is answered.
    fn answered(&self, length: usize) -> Instant {
        let now = Instant::now();
        let mut servers = self.servers.lock().expect("not poisoned");
        let server = servers.iter_mut().min().expect("some");
        let ready = now.max(*server) + self.latency;
        *server = ready;
        let mut free = self.free.lock().expect("not poisoned");
        let sent = ready.max(*free) + Duration::from_secs_f64(length as f64 / self.rate);
        *free = sent;
        sent
    }
}

impl BlockDevice for Link {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, _: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        let length = buffer.len();
        self.longest.fetch_max(length, Relaxed);
        self.read.fetch_add(length as u64, Relaxed);
        let in_flight = self.in_flight.fetch_add(length as u64, Relaxed) + length as u64;
        self.most_in_flight.fetch_max(in_flight, Relaxed);
        let answered = self.answered(length);
        Box::pin(async move {
            sleep_until(answered).await;
            self.in_flight.fetch_sub(length as u64, Relaxed);
            Ok(buffer)
        })
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        _: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        let extents = self.extents.as_ref().expect("nobody asks what is not said");
        Box::pin(async move {
            sleep(extents.time).await;
            Ok((extents.answer)(range))
        })
    }
}

/// Copies all of it, and returns how many seconds that took.
async fn drain(link: &Arc<Link>, options: &CopyOptions) -> f64 {
    drain_and_report(link, options).await.0
}

async fn drain_and_report(link: &Arc<Link>, options: &CopyOptions) -> (f64, Report) {
    let begun = Instant::now();
    let source = Source::Device(Arc::clone(link) as _);
    let target = Destination::Device(Arc::new(NullDevice::new(0)));
    let copied = copy(source, target, options, &Control::new(), &()).await;
    let report = copied.expect("copied");
    (begun.elapsed().as_secs_f64(), report)
}

#[tokio::test(start_paused = true)]
async fn a_long_link_is_filled_by_more_and_larger_requests() {
    let link = Link::new(1024 * MIB, Duration::from_millis(10), 1e9);
    drain(&link, &CopyOptions::default()).await;
    let most = link.most_in_flight.load(Relaxed);
    assert!((16 * MIB..=64 * MIB).contains(&most), "{most} in flight");
    assert!(link.longest.load(Relaxed) >= 1 << 20);
}

#[tokio::test(start_paused = true)]
async fn the_defaults_reach_on_a_long_link_what_tuning_by_hand_reaches() {
    for (latency, rate) in [(10, 1e9), (50, 1e8)] {
        let latency = Duration::from_millis(latency);
        let adapted = drain(
            &Link::new(1024 * MIB, latency, rate),
            &CopyOptions::default(),
        )
        .await;
        let mut best = f64::MAX;
        for (requests, request_size) in [
            (16, 256 << 10),
            (64, 256 << 10),
            (16, 2 << 20),
            (64, 1 << 20),
        ] {
            let mut options = CopyOptions::default();
            options.requests = Some(requests);
            options.request_size = Some(request_size);
            options.queue_size = Some(64 * MIB);
            best = best.min(drain(&Link::new(1024 * MIB, latency, rate), &options).await);
        }
        // The beginning is slower, for nothing is known then.
        assert!(adapted < 1.2 * best, "{adapted} and {best} virtual seconds");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_pinned_is_kept() {
    let link = Link::new(1024 * MIB, Duration::from_millis(10), 1e9);
    let mut options = CopyOptions::default();
    options.requests = Some(3);
    options.request_size = Some(128 << 10);
    drain(&link, &options).await;
    assert_eq!(link.longest.load(Relaxed), 128 << 10);
    assert_eq!(link.most_in_flight.load(Relaxed), 3 * (128 << 10));

    let link = Link::new(1024 * MIB, Duration::from_millis(10), 1e9);
    let mut options = CopyOptions::default();
    options.queue_size = Some(5 * MIB);
    drain(&link, &options).await;
    let most = link.most_in_flight.load(Relaxed);
    assert!(
        (4 * MIB..=5 * MIB).contains(&most),
        "{most} bytes in flight"
    );
}

/// One extent of 64 KiB, whatever was asked: data and holes by turns.
fn one_of_many(range: ByteRange) -> Vec<Extent> {
    let status = match range.start() / (64 * KIB) % 2 {
        0 => Status::DATA,
        _ => Status::HOLE_ZERO,
    };
    let (range, _) = range.split_at(64 * KIB);
    vec![Extent { range, status }]
}

#[tokio::test(start_paused = true)]
async fn extents_that_come_one_by_one_and_slowly_hardly_hold_up_a_copy() {
    for (latency, rate) in [(1, 1e9), (10, 1e9), (20, 1e8)] {
        let latency = Duration::from_millis(latency);
        let link = || Link::knowing(GIB, latency, rate, Duration::from_millis(10), one_of_many);
        let mut without = CopyOptions::default();
        without.extents = false;
        let plain = drain(&link(), &without).await;
        let asked = link();
        let (seconds, report) = drain_and_report(&asked, &CopyOptions::default()).await;
        assert!(
            seconds <= 1.3 * plain,
            "{latency:?}: {seconds} and {plain} virtual seconds, {report:?}"
        );
        assert_eq!(asked.read.load(Relaxed), report.data);
    }
}

/// All that was asked for: a MiB of data at every 8 GiB, and holes.
fn few_and_huge(range: ByteRange) -> Vec<Extent> {
    let mut extents = Vec::new();
    for part in range.pieces(8 * GIB) {
        let data = MIB.saturating_sub(part.start() % (8 * GIB));
        let (data, hole) = part.split_at(data);
        for (range, status) in [(data, Status::DATA), (hole, Status::HOLE_ZERO)] {
            if !range.is_empty() {
                extents.push(Extent { range, status });
            }
        }
    }
    extents
}

#[tokio::test(start_paused = true)]
async fn huge_holes_are_waited_for_and_never_read() {
    for (size, time) in [(64 * GIB, 10), (1 << 40, 10), (GIB, 2000), (8 * GIB, 100)] {
        let (latency, time) = (Duration::from_millis(1), Duration::from_millis(time));
        let link = Link::knowing(size, latency, 1e9, time, few_and_huge);
        let (_, report) = drain_and_report(&link, &CopyOptions::default()).await;
        let data = size.div_ceil(8 * GIB) * MIB;
        assert_eq!(link.read.load(Relaxed), data, "{size} bytes, {time:?}");
        assert_eq!((report.data, report.zero), (data, size - data));
        assert!(report.extent_requests <= 16, "{report:?}");
    }
}
