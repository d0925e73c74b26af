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
    BlockDevice, BoxFuture, Buffer, Capabilities, DeviceInfo, NullDevice, Result,
};
use blockferry_copy::{Control, CopyOptions, Destination, Source, copy};
use tokio::time::{Instant, sleep_until};

const MIB: u64 = 1 << 20;

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
}

impl Link {
    fn new(size: u64, latency: Duration, rate: f64) -> Arc<Self> {
        let mut info = DeviceInfo::new("a link", size);
        info.capabilities = Capabilities::empty();
        Arc::new(Self {
            info,
            latency,
            rate,
            servers: Mutex::new(vec![Instant::now(); 64]),
            free: Mutex::new(Instant::now()),
            in_flight: AtomicU64::new(0),
            most_in_flight: AtomicU64::new(0),
            longest: AtomicUsize::new(0),
        })
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
        let in_flight = self.in_flight.fetch_add(length as u64, Relaxed) + length as u64;
        self.most_in_flight.fetch_max(in_flight, Relaxed);
        let answered = self.answered(length);
        Box::pin(async move {
            sleep_until(answered).await;
            self.in_flight.fetch_sub(length as u64, Relaxed);
            Ok(buffer)
        })
    }
}

/// Copies all of it, and returns how many seconds that took.
async fn drain(link: &Arc<Link>, options: &CopyOptions) -> f64 {
    let begun = Instant::now();
    let source = Source::Device(Arc::clone(link) as _);
    let target = Destination::Device(Arc::new(NullDevice::new(0)));
    let copied = copy(source, target, options, &Control::new(), &()).await;
    copied.expect("copied");
    begun.elapsed().as_secs_f64()
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
            let options = CopyOptions {
                requests: Some(requests),
                request_size: Some(request_size),
                queue_size: Some(64 * MIB),
                ..CopyOptions::default()
            };
            best = best.min(drain(&Link::new(1024 * MIB, latency, rate), &options).await);
        }
        // The beginning is slower, for nothing is known then.
        assert!(adapted < 1.2 * best, "{adapted} and {best} virtual seconds");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_pinned_is_kept() {
    let link = Link::new(1024 * MIB, Duration::from_millis(10), 1e9);
    let options = CopyOptions {
        requests: Some(3),
        request_size: Some(128 << 10),
        ..CopyOptions::default()
    };
    drain(&link, &options).await;
    assert_eq!(link.longest.load(Relaxed), 128 << 10);
    assert_eq!(link.most_in_flight.load(Relaxed), 3 * (128 << 10));

    let link = Link::new(1024 * MIB, Duration::from_millis(10), 1e9);
    let options = CopyOptions {
        queue_size: Some(5 * MIB),
        ..CopyOptions::default()
    };
    drain(&link, &options).await;
    let most = link.most_in_flight.load(Relaxed);
    assert!(
        (4 * MIB..=5 * MIB).contains(&most),
        "{most} bytes in flight"
    );
}
