//! Filters stacked at random: what holds for each of them must hold for all of them together.
//!
//! Below is a device that insists on its limits, takes its time, answers block status with as little as it may, and
//! fails when it is told to. In front are several handles at once, whose bytes lie side by side in the same blocks.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use blockferry_block::{
    BlockDevice, BlockLimits, BoxFuture, Buffer, ByteRange, Capabilities, ClientFacts, Context,
    DeviceInfo, Error, ErrorKind, ExportEntry, Exports, Extent, MemoryDevice, OpenExport,
    Operation, Result, WriteFlags, ZeroFlags, no_such_export,
    testing::{self, check_device},
};
use blockferry_filter::{Chain, NamedFilter};
use futures_util::future::join_all;

/// How many stacks each test makes; more with `BLOCKFERRY_STACKS=NUMBER`.
const STACKS: u64 = 40;

/// The seeds of a test; what they make is the same each time.
fn seeds(test: u64) -> std::ops::Range<u64> {
    let asked = std::env::var("BLOCKFERRY_STACKS").ok();
    let count = asked.and_then(|text| text.parse().ok()).unwrap_or(STACKS);
    let first = test * 1_000_000;
    first..first + count
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let state = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^ (state >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// The device below: a handle of one image.
#[derive(Clone)]
struct Below {
    image: Arc<MemoryDevice>,
    info: DeviceInfo,
    random: Arc<Mutex<Random>>,
    /// How many calls of a thousand fail.
    failing: Arc<AtomicU64>,
}

impl Below {
    fn new(seed: u64, size: u64, limits: BlockLimits) -> Self {
        let bytes: Vec<u8> = (0..size)
            .map(|at| {
                if at / 20_000 % 3 == 0 {
                    0
                } else {
                    at as u8 | 1
                }
            })
            .collect();
        let image = Arc::new(MemoryDevice::from_bytes(bytes));
        let mut info = image.info().clone();
        info.limits = limits;
        info.capabilities |= Capabilities::REOPEN;
        Self {
            image,
            info,
            random: Arc::new(Mutex::new(Random(!seed))),
            failing: Arc::default(),
        }
    }

    fn draw(&self, bound: u64) -> u64 {
        let random = self.random.lock();
        random.unwrap_or_else(PoisonError::into_inner).below(bound)
    }

    async fn enter(&self, operation: Operation, range: ByteRange) -> Result<()> {
        let BlockLimits {
            minimum, maximum, ..
        } = self.info.limits;
        let is_whole = |at: u64| at.is_multiple_of(minimum.into()) || at == self.info.size;
        let moves = matches!(operation, Operation::Read | Operation::Write);
        let keeps_to_it = range.end() <= self.info.size
            && is_whole(range.start())
            && is_whole(range.end())
            && (!moves || range.len() <= maximum.into());
        assert!(keeps_to_it, "{}: {operation:?} of {range}", self.info.name);
        for _ in 0..self.draw(4) {
            tokio::task::yield_now().await;
        }
        if self.draw(1000) < self.failing.load(Ordering::Relaxed) {
            let kind = [ErrorKind::Io, ErrorKind::ConnectionLost][self.draw(2) as usize];
            let error = Error::with_message(kind, "a fault").during(operation);
            return Err(error.at(range.start(), range.len()));
        }
        Ok(())
    }
}

fn range(offset: u64, bytes: &[u8]) -> ByteRange {
    ByteRange::new(offset, bytes.len() as u64).expect("a range")
}

impl BlockDevice for Below {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            self.enter(Operation::Read, range(offset, &buffer)).await?;
            self.image.read(offset, buffer).await
        })
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            self.enter(Operation::Write, range(offset, &data)).await?;
            self.image.write(offset, data, flags).await
        })
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.enter(Operation::Zero, range).await?;
            self.image.zero(range, flags).await
        })
    }

    fn trim(&self, range: ByteRange, flags: WriteFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.enter(Operation::Trim, range).await?;
            self.image.trim(range, flags).await
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.enter(Operation::Flush, ByteRange::default()).await?;
            self.image.flush().await
        })
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        Box::pin(async move {
            self.enter(Operation::Extents, range).await?;
            let mut list = self.image.extents(range, context).await?;
            if self.draw(2) == 0 {
                list.truncate(1);
            }
            Ok(list)
        })
    }

    fn reopen(&self) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        let again: Arc<dyn BlockDevice> = Arc::new(self.clone());
        Box::pin(async move { Ok(again) })
    }
}

/// Each opening is another handle.
impl Exports for Below {
    fn list(&self, _: ClientFacts) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        Box::pin(async { Ok(vec![ExportEntry::default()]) })
    }

    fn open<'a>(&'a self, name: &'a str, _: ClientFacts) -> BoxFuture<'a, Result<OpenExport>> {
        Box::pin(async move {
            if !name.is_empty() {
                return Err(no_such_export());
            }
            Ok(OpenExport::new(Arc::new(self.clone())))
        })
    }
}

/// Filters at random, in front of a device at random.
struct Stack {
    random: Random,
    below: Below,
    chain: Chain,
    /// Where the first byte that clients see lies below.
    start: u64,
    /// Whether the source never gets to see what is written.
    is_overlaid: bool,
    _room: tempfile::TempDir,
}

impl Stack {
    fn new(seed: u64, most: u64) -> Self {
        let mut random = Random(seed);
        let room = tempfile::tempdir().expect("a directory");
        let minimum = random.of(&[1, 1, 512, 4096]);
        let limits = BlockLimits {
            minimum,
            preferred: 4096,
            maximum: random.of(&[32 << 20, 64 << 10]),
        };
        let size = 150_000 + random.below(100_000);
        let mut below = Below::new(seed, size, limits);
        let unit = if minimum == 1 { 1 } else { 4096 };
        let mut stack = (size, 0, false);
        let mut filters = Vec::new();
        for _ in 0..=random.below(most) {
            let new = filter(&mut random, &mut stack, unit, room.path());
            // They are chosen from the source's side.
            filters.splice(0..0, new);
        }
        // Whatever goes wrong is told with what it went wrong in.
        let shown = filters.join(" --filter ");
        below.info.name = format!("seed {seed}: --filter {shown}: {limits:?}").into();
        let parse = |text: &String| NamedFilter::parse(text.as_ref()).expect(text);
        let named: Vec<_> = filters.iter().map(parse).collect();
        let chain = Chain::new(&named, Arc::new(below.clone())).expect("a chain");
        Self {
            random,
            below,
            chain,
            start: stack.1,
            is_overlaid: stack.2,
            _room: room,
        }
    }

    async fn open(&self) -> Arc<dyn BlockDevice> {
        let open = self.chain.exports().open("", Default::default()).await;
        let open = open.unwrap_or_else(|error| panic!("{}: {error}", self.name()));
        open.device
    }

    fn name(&self) -> &str {
        &self.below.info.name
    }
}

/// One more filter, or several that belong together. Keeps count of the size, of where it begins below, and of
/// whether the source is never written to.
fn filter(
    random: &mut Random,
    (size, start, is_overlaid): &mut (u64, u64, bool),
    unit: u64,
    room: &std::path::Path,
) -> Vec<String> {
    let room = room.display();
    let number = random.below(1 << 32);
    let cow = |random: &mut Random| {
        let block = random.of(&["4K", "16K", "64K"]);
        let place = random.of(&["memory", "file"]);
        let on_read = random.of(&["on", "off"]);
        format!("cow:block-size={block},store={place},on-read={on_read}")
    };
    let text = match random.below(17) {
        0 | 1 => {
            *is_overlaid = true;
            cow(random)
        }
        2 => {
            *is_overlaid = true;
            let overlay = cow(random);
            let longer = size.next_multiple_of(32 << 10);
            *size = longer;
            return vec![
                overlay,
                "truncate:round-up=32K".to_owned(),
                "readonly".to_owned(),
            ];
        }
        3..=5 => {
            let block = random.of(&["4K", "16K", "64K"]);
            let kept = random.of(&["128K", "256K", "4M"]);
            let mode = random.of(&["writethrough", "writeback", "unsafe"]);
            let place = random.of(&["memory", "file"]);
            format!("cache:block-size={block},size={kept},mode={mode},store={place}")
        }
        6 => "cacheextents".to_owned(),
        7 => format!("blocksize:minimum={}", random.of(&["512", "4K", "64K"])),
        8 => format!(
            "blocksize:maximum-data={0},maximum-length={0}",
            random.of(&["64K", "128K"])
        ),
        9 => "readahead:request-size=16K,size=128K".to_owned(),
        10 => "retry:retries=3,delay=1ms".to_owned(),
        11 => random
            .of(&["delay:0ms", "error:rate=0", "rate:1G"])
            .to_owned(),
        12 => random
            .of(&["noextents", "nozero", "nozero:mode=nohole", "notrim"])
            .to_owned(),
        13 => format!("log:{room}/log-{number}"),
        14 => format!("stats:{room}/stats-{number}"),
        15 => {
            let offset = random.below(*size / 4) / unit * unit;
            *start += offset;
            *size -= offset;
            if random.below(2) == 0 {
                return vec![format!("offset:{offset}")];
            }
            *size -= random.below(*size / 4) / unit * unit;
            if unit > 1 {
                *size = *size / unit * unit;
            }
            format!("range:{offset},length={size}")
        }
        _ => {
            *size -= random.below(*size / 4);
            *size = *size / unit * unit;
            format!("truncate:{size}")
        }
    };
    vec![text]
}

#[tokio::test(start_paused = true)]
async fn any_stack_is_a_device() {
    for seed in seeds(0) {
        let stack = Stack::new(seed, 6);
        let device = stack.open().await;
        check_device(&*device, seed, 120).await;
        drop(device);
        stack.chain.exports().close().await;
    }
}

/// Who uses a handle: only bytes that nobody else does, in the same blocks.
struct Actor {
    device: Arc<dyn BlockDevice>,
    random: Random,
    own: Vec<ByteRange>,
    /// The bytes of the whole device, as far as they are this actor's and known.
    expected: Vec<Option<u8>>,
    is_failing: bool,
    name: String,
}

impl Actor {
    async fn act(&mut self, steps: usize) {
        for step in 0..steps {
            let place = format!("{}, step {step}", self.name);
            self.step(&place).await;
        }
    }

    fn range(&mut self) -> ByteRange {
        let own = self.random.of(&self.own);
        let minimum = u64::from(self.device.info().limits.minimum);
        let blocks = own.len().div_ceil(minimum);
        let first = self.random.below(blocks);
        let count = 1 + self.random.below(blocks - first);
        let start = own.start() + first * minimum;
        ByteRange::between(start, own.end().min(start + count * minimum))
    }

    async fn step(&mut self, place: &str) {
        let range = self.range();
        let indices = range.start() as usize..range.end() as usize;
        let info = self.device.info().clone();
        match self.random.below(9) {
            0 | 1 => {
                let buffer = Buffer::from(&vec![0x5a; range.len() as usize][..]);
                match self.device.read(range.start(), buffer).await {
                    Ok(read) => self.compare(range, &read, place),
                    Err(error) => self.forgive(range, &error, place),
                }
            }
            2 | 3 => {
                let byte = self.random.below(256) as u8;
                let data = vec![byte; range.len() as usize];
                let flags = match info.can(Capabilities::FUA) && byte.is_multiple_of(4) {
                    true => WriteFlags::FUA,
                    false => WriteFlags::empty(),
                };
                let data = Buffer::from(&data[..]);
                let written = self.device.write(range.start(), data, flags).await;
                self.expected[indices].fill(written.is_ok().then_some(byte));
                if let Err(error) = written {
                    self.forgive(range, &error, place);
                }
            }
            4 | 5 if info.can(Capabilities::ZERO) => {
                let flags = self.random.of(&[ZeroFlags::empty(), ZeroFlags::NO_HOLE]);
                match self.device.zero(range, flags).await {
                    Ok(()) => self.expected[indices].fill(Some(0)),
                    Err(error) if error.kind() == ErrorKind::Unsupported => {}
                    Err(error) => {
                        self.expected[indices].fill(None);
                        self.forgive(range, &error, place);
                    }
                }
            }
            6 if info.can(Capabilities::TRIM) => {
                self.expected[indices].fill(None);
                if let Err(error) = self.device.trim(range, WriteFlags::empty()).await {
                    self.forgive(range, &error, place);
                }
            }
            7 if info.knows_allocation() => {
                match self.device.extents(range, &Context::Allocation).await {
                    Ok(list) => self.check_extents(range, &list, place),
                    Err(error) => self.forgive(range, &error, place),
                }
            }
            _ => {
                let flushed = self.device.flush().await;
                assert!(flushed.is_ok() || self.is_failing, "{place}: {flushed:?}");
            }
        }
    }

    fn compare(&self, range: ByteRange, read: &[u8], place: &str) {
        let expected = &self.expected[range.start() as usize..range.end() as usize];
        for (at, (found, expected)) in (range.start()..).zip(read.iter().zip(expected)) {
            let is_right = expected.is_none_or(|expected| expected == *found);
            assert!(
                is_right,
                "{place}: byte {at} of {range} is {found}, not {expected:?}"
            );
        }
    }

    fn check_extents(&self, range: ByteRange, list: &[Extent], place: &str) {
        let mut at = range.start();
        assert!(!list.is_empty(), "{place}: no extents of {range}");
        for extent in list {
            assert_eq!(extent.range.start(), at, "{place}: {list:?}");
            assert!(
                !extent.range.is_empty() && range.contains(extent.range),
                "{place}: {list:?}"
            );
            at = extent.range.end();
            let bytes = &self.expected[extent.range.start() as usize..at as usize];
            let may_be_zero = bytes.iter().flatten().all(|byte| *byte == 0);
            assert!(!extent.status.is_zero() || may_be_zero, "{place}: {list:?}");
        }
    }

    /// What may fail, and is told of the request as it was made.
    fn forgive(&self, range: ByteRange, error: &Error, place: &str) {
        assert!(self.is_failing, "{place}: {error:?}");
        let told = (error.offset(), error.length());
        let expected = (Some(range.start()), Some(range.len()));
        assert_eq!(told, expected, "{place}: {error:?}");
    }
}

/// All bytes of the device.
async fn contents(device: &dyn BlockDevice) -> Vec<u8> {
    testing::contents(device, 64 << 10).await.expect("readable")
}

/// Several handles at once, whose bytes lie in each other's blocks; `failing` calls of a thousand fail below.
async fn side_by_side(seed: u64, failing: u64) {
    let mut stack = Stack::new(seed, 5);
    let first = stack.open().await;
    let size = first.info().size;
    let before = contents(&*first).await;
    let before: Vec<_> = before.into_iter().map(Some).collect();
    let minimum = u64::from(first.info().limits.minimum);
    let stripe = stack
        .random
        .of(&[700_u64, 5000, 30_000])
        .next_multiple_of(minimum);
    let stripes: Vec<_> = ByteRange::between(0, size).pieces(stripe).collect();
    let handles = 1 + stack.random.below(3) as usize;
    stack.below.failing.store(failing, Ordering::Relaxed);
    let mut actors = Vec::new();
    for index in 0..handles {
        actors.push(Actor {
            device: match index {
                0 => Arc::clone(&first),
                _ => stack.open().await,
            },
            random: Random(seed ^ (index as u64) << 40),
            own: stripes
                .iter()
                .copied()
                .skip(index)
                .step_by(handles)
                .collect(),
            expected: before.clone(),
            is_failing: failing > 0,
            name: format!("handle {index} of {}", stack.name()),
        });
    }
    join_all(actors.iter_mut().map(|actor| actor.act(200))).await;
    stack.below.failing.store(0, Ordering::Relaxed);
    let mut expected = vec![None; size as usize];
    for actor in &actors {
        // A failure of the past may be told of once more.
        let flushed = actor.device.flush().await;
        let flushed = flushed.or(actor.device.flush().await);
        flushed.unwrap_or_else(|error| panic!("{}: {error:?}", actor.name));
        for own in &actor.own {
            let indices = own.start() as usize..own.end() as usize;
            expected[indices.clone()].copy_from_slice(&actor.expected[indices]);
        }
    }
    let differs = |bytes: &[u8]| {
        let pairs = bytes.iter().zip(&expected);
        let wrong = |(found, expected): (&u8, &Option<u8>)| expected.is_some_and(|e| e != *found);
        pairs.map(wrong).position(|is_wrong| is_wrong)
    };
    let last = stack.open().await;
    let after = contents(&*last).await;
    assert_eq!(differs(&after), None, "{}", stack.name());
    drop((last, first, actors));
    stack.chain.exports().close().await;
    if !stack.is_overlaid {
        let below = stack.below.image.contents();
        let part = &below[stack.start as usize..(stack.start + size) as usize];
        assert_eq!(differs(part), None, "below, {}", stack.name());
    }
}

#[tokio::test(start_paused = true)]
async fn handles_of_any_stack_do_not_disturb_each_other() {
    for seed in seeds(1) {
        side_by_side(seed, 0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_any_stack_has_acknowledged_holds_when_other_requests_fail() {
    for seed in seeds(2) {
        side_by_side(seed, 40).await;
    }
}
