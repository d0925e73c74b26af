//! A server that restarts in the middle of a copy, and forgets what it did not flush.

use std::{
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
    Control, CopyError, CopyOptions, Destination, Event, Order, Report, Source, Warning, copy,
};
use tokio::time::Instant;

use crate::{Recorder, pattern};

pub(crate) const MIB: usize = 1 << 20;
pub(crate) const SIZE: usize = 24 * MIB + 777;

/// A server whose connections all end when it restarts.
pub(crate) struct Server {
    pub(crate) info: DeviceInfo,
    /// What survives a restart, and what is seen now.
    pub(crate) disks: Mutex<(Vec<u8>, Vec<u8>)>,
    /// How many requests there were.
    pub(crate) requests: AtomicUsize,
    /// It restarts at each of these requests.
    pub(crate) restarts: Mutex<Vec<usize>>,
    /// Which connections are alive: those opened since.
    pub(crate) era: AtomicU64,
    /// How many attempts to connect are refused after a restart.
    pub(crate) refusals: usize,
    pub(crate) refuse: AtomicUsize,
    /// How long it is away when it restarts, and when it is back.
    pub(crate) away: Duration,
    pub(crate) back: Mutex<Option<Instant>>,
    /// Whether it is gone for good at the next restart.
    pub(crate) gone: AtomicBool,
    /// What an attempt to connect gets then.
    pub(crate) farewell: ErrorKind,
    /// Whether it says that it has flushed and has not.
    pub(crate) lies: bool,
    pub(crate) flushes: AtomicUsize,
    /// How long a flush takes, and how many end well.
    pub(crate) flushing: (Duration, usize),
    pub(crate) zero_extents: Vec<ByteRange>,
}

/// One connection.
pub(crate) struct Link {
    pub(crate) server: Arc<Server>,
    pub(crate) era: u64,
}

impl Server {
    pub(crate) fn new(bytes: Vec<u8>, connections: bool) -> Self {
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

    pub(crate) fn restarting_at(self, requests: impl IntoIterator<Item = usize>) -> Self {
        *self.restarts.lock().expect("not poisoned") = requests.into_iter().collect();
        self
    }

    pub(crate) fn refusing(mut self, attempts: usize) -> Self {
        self.refusals = attempts;
        self
    }

    pub(crate) fn link(self) -> Arc<Link> {
        Arc::new(Link {
            server: Arc::new(self),
            era: 0,
        })
    }

    pub(crate) fn restart(&self) {
        let mut disks = self.disks.lock().expect("not poisoned");
        let (durable, seen) = &mut *disks;
        seen.copy_from_slice(durable);
        self.era.fetch_add(1, SeqCst);
        self.refuse.store(self.refusals, SeqCst);
        *self.back.lock().expect("not poisoned") = Some(Instant::now() + self.away);
    }
}

impl Link {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.server.disks.lock().expect("not poisoned").0.clone()
    }

    /// A request arrives; the server may restart instead.
    pub(crate) async fn begin(&self) -> Result<()> {
        // Every request takes a turn, so that several are in flight.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let number = self.server.requests.fetch_add(1, SeqCst);
        let restarts = self.server.restarts.lock().expect("not poisoned");
        if restarts.contains(&number) {
            self.server.restart();
        }
        self.alive()
    }

    pub(crate) fn alive(&self) -> Result<()> {
        if self.era != self.server.era.load(SeqCst) {
            return Err(Error::new(ErrorKind::ConnectionLost));
        }
        Ok(())
    }

    pub(crate) fn change(&self, range: ByteRange, change: impl FnOnce(&mut [u8])) {
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

pub(crate) fn source(connections: bool) -> Server {
    let mut bytes = pattern(SIZE, 3);
    bytes[5 * MIB..9 * MIB].fill(0);
    bytes[12 * MIB..12 * MIB + 70_000].fill(0);
    let mut server = Server::new(bytes, connections);
    server.zero_extents = vec![ByteRange::between(5 << 20, 9 << 20)];
    server
}

pub(crate) fn target(connections: bool) -> Server {
    Server::new(vec![0xd1; SIZE], connections)
}

pub(crate) async fn run(
    from: &Arc<Link>,
    to: &Arc<Link>,
    options: &CopyOptions,
    events: &Recorder,
) -> Result<Report, CopyError> {
    let from = Source::Device(Arc::clone(from) as _);
    let to = Destination::Device(Arc::clone(to) as _);
    copy(from, to, options, &Control::new(), events).await
}

pub(crate) fn reconnections(events: &Recorder) -> usize {
    let again = |event: &&Event| matches!(event, Event::Warning(Warning::Reconnected { .. }));
    events.events().iter().filter(again).count()
}

pub(crate) fn orders() -> impl Iterator<Item = (bool, CopyOptions)> {
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
