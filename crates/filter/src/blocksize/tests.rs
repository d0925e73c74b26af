use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use blockferry_block::{
    Access, Buffer, ByteRange, Capabilities, Context, DeviceInfo, FileDevice, Mapping,
    MemoryDevice, SingleExport, WriteFlags, ZeroFlags,
    testing::{Fault, FaultyDevice, Rule, answers, check_device},
};
use futures_util::future::{join_all, try_join_all};

use super::*;
use crate::{
    Chain, DeviceFilter, NamedFilter,
    testing::{refusal, through},
};

const KIB: u64 = 1 << 10;
const MOMENT: Duration = Duration::from_millis(10);

/// A source that takes whole blocks alone, and no more than so many at a time.
struct Strict {
    below: Arc<dyn BlockDevice>,
    block: u64,
    data: u64,
    length: u64,
    /// Whether all writes have to be durable at once.
    fua: AtomicBool,
}

impl Strict {
    fn new(below: Arc<dyn BlockDevice>, block: u64, data: u64, length: u64) -> Self {
        Self {
            below,
            block,
            data,
            length,
            fua: AtomicBool::new(false),
        }
    }

    fn check(&self, operation: Operation, range: ByteRange) {
        let size = self.below.info().size;
        let ends_well = range.end().is_multiple_of(self.block) || range.end() == size;
        assert!(
            range.start().is_multiple_of(self.block) && ends_well,
            "{operation:?} {range}"
        );
        let longest = match operation {
            Operation::Read | Operation::Write => self.data,
            _ => self.length,
        };
        assert!(range.len() <= longest, "{operation:?} {range}");
    }

    fn check_fua(&self, is: bool) {
        assert!(is || !self.fua.load(Ordering::Relaxed));
    }
}

impl DeviceFilter for Strict {
    const PASSES: Capabilities = Capabilities::empty();

    fn below(&self) -> &Arc<dyn BlockDevice> {
        &self.below
    }

    fn info(&self) -> DeviceInfo {
        let mut info = self.below.info().clone();
        info.limits.minimum = self.block as u32;
        info.limits.maximum = self.data as u32;
        info
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        let range = ByteRange::between(offset, offset + buffer.len() as u64);
        self.check(Operation::Read, range);
        self.below.read(offset, buffer)
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        let range = ByteRange::between(offset, offset + data.len() as u64);
        self.check(Operation::Write, range);
        self.check_fua(flags.contains(WriteFlags::FUA));
        self.below.write(offset, data, flags)
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        self.check(Operation::Zero, range);
        self.check_fua(flags.contains(ZeroFlags::FUA));
        self.below.zero(range, flags)
    }

    fn trim(&self, range: ByteRange, flags: WriteFlags) -> BoxFuture<'_, Result<()>> {
        self.check(Operation::Trim, range);
        self.check_fua(flags.contains(WriteFlags::FUA));
        self.below.trim(range, flags)
    }

    fn cache(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        self.check(Operation::Cache, range);
        self.below.cache(range)
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<blockferry_block::Extent>>> {
        self.check(Operation::Extents, range);
        self.below.extents(range, context)
    }
}

fn pattern(length: u64) -> Vec<u8> {
    (0..length).map(|at| (at ^ (at >> 8)) as u8).collect()
}

fn strict(size: u64, block: u64, data: u64, length: u64) -> Arc<dyn BlockDevice> {
    let memory = Arc::new(MemoryDevice::from_bytes(pattern(size)));
    Arc::new(Filtered::new(Strict::new(memory, block, data, length)))
}

/// A device of 64 KiB blocks of 4 KiB, and the faults of it.
fn faulty(size: u64) -> Arc<FaultyDevice> {
    let memory = Arc::new(MemoryDevice::from_bytes(pattern(size)));
    Arc::new(FaultyDevice::new(memory).with_info(|info| info.limits.minimum = 4096))
}

async fn two_handles(
    filter: &str,
    device: Arc<dyn BlockDevice>,
) -> (Arc<dyn BlockDevice>, Arc<dyn BlockDevice>) {
    let filter = NamedFilter::parse(filter.as_ref()).expect("a filter");
    let chain = Chain::new(&[filter], Arc::new(SingleExport::new(device))).expect("a chain");
    let exports = chain.exports();
    let open = || exports.open("", Default::default());
    let (one, other) = (open().await.expect("open"), open().await.expect("open"));
    (one.device, other.device)
}

async fn write(device: &dyn BlockDevice, offset: u64, bytes: &[u8]) -> Result<Buffer> {
    device
        .write(offset, Buffer::from(bytes), WriteFlags::empty())
        .await
}

#[tokio::test]
async fn it_is_a_device_of_bytes() {
    for (seed, size, block, data, length) in [
        (1, 300_000, 4096, 4096, 4096),
        (2, 300_000, 4096, 16 * KIB, 64 * KIB),
        (3, 65_537, 512, 1024, 2048),
        (4, 262_144, 64 * KIB, 64 * KIB, 128 * KIB),
        (5, 100_001, 1, 1000, 777),
        (6, 3000, 4096, 4096, 4096),
    ] {
        let source = strict(size, block, data, length);
        let device = through(&[&format!("blocksize:maximum-length={length}")], source).await;
        assert_eq!(device.info().limits.minimum, 1);
        assert_eq!(device.info().limits.maximum, 32 << 20);
        check_device(&*device, seed, 300).await;
        device
            .cache(ByteRange::between(1, size - 1))
            .await
            .expect("cached");
    }
    // What the source would take in smaller or longer ones.
    let memory = Arc::new(MemoryDevice::from_bytes(pattern(300_000)));
    let source = Arc::new(Filtered::new(Strict::new(memory, 512, 1 << 20, 1 << 20)));
    let filter = "blocksize:minimum=4K,maximum-data=10000,maximum-length=10000";
    check_device(&*through(&[filter], source).await, 7, 300).await;
}

#[tokio::test]
async fn a_device_that_grows_still_does_unless_blocks_would_be_needed() {
    let growing = || Arc::new(MemoryDevice::from_bytes(pattern(100_000)).growable());
    let device = through(
        &["blocksize:maximum-data=5000,maximum-length=5000"],
        growing(),
    )
    .await;
    check_device(&*device, 8, 300).await;
    let device = through(&["blocksize:minimum=512"], growing()).await;
    assert!(!device.info().can(Capabilities::RESIZE));
    assert!(device.resize(1).await.is_err());
    let beyond = write(&*device, 100_000, b"x")
        .await
        .expect_err("beyond the end");
    assert_eq!(beyond.kind(), ErrorKind::OutOfBounds);
    check_device(&*device, 9, 300).await;
}

#[tokio::test]
async fn requests_that_fit_are_passed_on_as_they_are() {
    let source = faulty(64 * KIB);
    let device = through(&["blocksize"], Arc::clone(&source) as _).await;
    device.read(4096, Buffer::zeroed(8192)).await.expect("read");
    write(&*device, 4096, &[1; 8192]).await.expect("written");
    assert_eq!(
        source.calls(Operation::Read) + source.calls(Operation::Write),
        2
    );
    // A part of one block takes two.
    write(&*device, 4097, &[1; 10]).await.expect("written");
    assert_eq!(
        source.calls(Operation::Read) + source.calls(Operation::Write),
        4
    );
    device.read(5, Buffer::zeroed(0)).await.expect("nothing");
    write(&*device, 5, &[]).await.expect("nothing");
    assert_eq!(
        source.calls(Operation::Read) + source.calls(Operation::Write),
        4
    );
}

#[tokio::test(start_paused = true)]
async fn parts_of_a_request_run_side_by_side_and_are_bounded() {
    let source = faulty(1 << 20);
    source.add(Rule::on_all().fault(Fault::Delay(MOMENT)));
    let device = through(&["blocksize:maximum-data=4K"], Arc::clone(&source) as _).await;
    let begin = tokio::time::Instant::now();
    let read = device
        .read(3, Buffer::zeroed(512 << 10))
        .await
        .expect("read");
    assert_eq!(read[..], pattern(1 << 20)[3..(512 << 10) + 3]);
    assert_eq!(source.most_in_flight(), 8);
    assert!(begin.elapsed() <= MOMENT * 17);
    write(&*device, 3, &read).await.expect("written");
    assert!(
        source.most_in_flight() <= 9,
        "two reads for the two edges of one piece at most"
    );
}

#[tokio::test(start_paused = true)]
async fn writes_to_parts_of_a_block_do_not_undo_each_other() {
    let source = faulty(16 * KIB);
    for (after, milliseconds) in [(0, 5), (1, 1), (2, 9)] {
        let delay = Fault::Delay(Duration::from_millis(milliseconds));
        source.add(Rule::on_all().after(after * 40).times(60).fault(delay));
    }
    let (one, other) = two_handles("blocksize", Arc::clone(&source) as _).await;
    // Each its own bytes, all in the same few blocks.
    let writes = (0..128_u64).map(|index| {
        let device = if index % 2 == 0 { &one } else { &other };
        let bytes = vec![index as u8 + 1; 100];
        async move { write(&**device, 50 + index * 100, &bytes).await }
    });
    try_join_all(writes).await.expect("written");
    let read = one.read(50, Buffer::zeroed(12_800)).await.expect("read");
    for (index, bytes) in read.chunks(100).enumerate() {
        assert!(bytes.iter().all(|byte| *byte == index as u8 + 1), "{index}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_whole_block_is_not_undone_by_a_part_of_it() {
    for how in 0..3 {
        let source = faulty(16 * KIB);
        // What is read of the part's block is old when it is written back.
        source.add(
            Rule::on(Operation::Write)
                .times(1)
                .fault(Fault::Delay(MOMENT)),
        );
        let (one, other) = two_handles("blocksize", source).await;
        let part = write(&*one, 4100, b"x");
        let whole = async {
            tokio::time::sleep(MOMENT / 2).await;
            let range = ByteRange::between(0, 12 * KIB);
            match how {
                0 => write(&*other, 0, &[0; 12 << 10]).await.map(drop),
                1 => other.zero(range, ZeroFlags::empty()).await,
                // Longer than the block, and not whole itself.
                _ => write(&*other, 4090, &[0; 5000]).await.map(drop),
            }
        };
        let (part, whole) = tokio::join!(part, whole);
        part.expect("written");
        whole.expect("written");
        let read = one.read(4096, Buffer::zeroed(4096)).await.expect("read");
        // The byte itself was written twice at the same time.
        let others = read.iter().enumerate().filter(|(at, _)| *at != 4);
        assert_eq!(others.filter(|(_, byte)| **byte != 0).count(), 0, "{how}");
    }
}

/// A source whose writes are carried out although nobody waits for them: the first one late.
struct Stubborn {
    below: Arc<dyn BlockDevice>,
    has_begun: AtomicBool,
}

impl DeviceFilter for Stubborn {
    const PASSES: Capabilities = Capabilities::empty();

    fn below(&self) -> &Arc<dyn BlockDevice> {
        &self.below
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let below = Arc::clone(&self.below);
            let is_late = !self.has_begun.swap(true, Ordering::Relaxed);
            let write = tokio::spawn(async move {
                tokio::time::sleep(if is_late { MOMENT } else { MOMENT / 5 }).await;
                below.write(offset, data, flags).await
            });
            write.await.expect("written")
        })
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_client_left_half_done_does_not_undo_what_comes_later() {
    let source = Arc::new(Filtered::new(Stubborn {
        below: faulty(16 * KIB),
        has_begun: AtomicBool::new(false),
    }));
    let (one, other) = two_handles("blocksize", source).await;
    let gone = write(&*one, 1, b"gone");
    assert!(tokio::time::timeout(MOMENT / 2, gone).await.is_err());
    drop(one);
    write(&*other, 100, b"stays").await.expect("written");
    tokio::time::sleep(MOMENT * 10).await;
    let read = other.read(100, Buffer::zeroed(5)).await.expect("read");
    assert_eq!(read[..], *b"stays");
}

#[tokio::test(start_paused = true)]
async fn a_write_that_was_given_up_while_it_waited_holds_up_nobody() {
    let source = faulty(16 * KIB);
    source.add(
        Rule::on(Operation::Read)
            .times(1)
            .fault(Fault::Delay(MOMENT)),
    );
    let (one, other) = two_handles("blocksize", source).await;
    let first = write(&*one, 1, b"a");
    let waiting = async {
        tokio::time::sleep(MOMENT / 4).await;
        let waiting = write(&*other, 2, b"b");
        assert!(tokio::time::timeout(MOMENT / 4, waiting).await.is_err());
    };
    let third = async {
        tokio::time::sleep(MOMENT / 3).await;
        write(&*other, 3, b"c").await
    };
    let (first, (), third) = tokio::join!(first, waiting, third);
    first.expect("written");
    third.expect("written");
    let read = one.read(0, Buffer::zeroed(4)).await.expect("read");
    assert_eq!(read[..], [0, b'a', 2, b'c']);
}

#[tokio::test(start_paused = true)]
async fn one_failure_is_that_of_the_whole_request() {
    let source = faulty(256 * KIB);
    let bad = ByteRange::between(64 * KIB, 64 * KIB + 1);
    source.add(
        Rule::on_all()
            .within(bad)
            .fault(Fault::Error(ErrorKind::NoSpace)),
    );
    source.add(Rule::on_all().fault(Fault::Delay(MOMENT)));
    let filter = "blocksize:maximum-data=4K,maximum-length=4K";
    let device = through(&[filter], Arc::clone(&source) as _).await;
    let range = ByteRange::between(1001, 200_001);
    let place = (Some(range.start()), Some(range.len()));
    let read = device
        .read(range.start(), Buffer::zeroed(199_000))
        .await
        .map(drop);
    let calls = source.calls(Operation::Write);
    let written = write(&*device, range.start(), &[7; 199_000])
        .await
        .map(drop);
    // What had begun was waited for, and no more was begun.
    assert!(source.calls(Operation::Write) - calls < 30);
    let zeroed = device.zero(range, ZeroFlags::empty()).await;
    let trimmed = device.trim(range, WriteFlags::empty()).await;
    let cached = device.cache(range).await;
    for (result, operation) in [
        (read, Operation::Read),
        (written, Operation::Write),
        (zeroed, Operation::Zero),
        (trimmed, Operation::Trim),
        (cached, Operation::Cache),
    ] {
        let error = result.expect_err("a block is bad");
        assert_eq!((error.offset(), error.length()), place);
        assert_eq!(
            (error.kind(), error.operation()),
            (ErrorKind::NoSpace, Some(operation))
        );
    }
    // Nothing is left locked.
    source.heal();
    write(&*device, 1001, &[7; 199_000]).await.expect("written");
    write(&*device, 1, &[1; 3]).await.expect("written");
}

#[tokio::test]
async fn an_edge_that_cannot_be_read_is_not_written() {
    let source = faulty(64 * KIB);
    source.add(
        Rule::on(Operation::Read)
            .times(1)
            .fault(Fault::Error(ErrorKind::Io)),
    );
    let device = through(&["blocksize"], Arc::clone(&source) as _).await;
    let error = write(&*device, 10, &[1; 10]).await.expect_err("not read");
    assert_eq!(
        (error.operation(), error.offset()),
        (Some(Operation::Read), Some(10))
    );
    assert_eq!(source.calls(Operation::Write), 0);
}

#[tokio::test]
async fn all_parts_of_a_durable_write_are() {
    let memory = Arc::new(MemoryDevice::from_bytes(pattern(100_000)));
    let strict = Strict::new(memory, 4096, 8192, 8192);
    strict.fua.store(true, Ordering::Relaxed);
    let source = Arc::new(Filtered::new(strict));
    let device = through(&["blocksize:maximum-length=8K"], source).await;
    let data = Buffer::from(&[5; 50_000][..]);
    device
        .write(77, data, WriteFlags::FUA)
        .await
        .expect("written");
    let range = ByteRange::between(100, 60_000);
    device.zero(range, ZeroFlags::FUA).await.expect("zeroed");
    device.trim(range, WriteFlags::FUA).await.expect("trimmed");
}

#[tokio::test]
async fn zeroing_fast_never_writes_zeroes_instead() {
    let source = faulty(64 * KIB);
    let device = through(&["blocksize"], Arc::clone(&source) as _).await;
    let part = ByteRange::between(10, 5000);
    let error = device
        .zero(part, ZeroFlags::FAST)
        .await
        .expect_err("two parts of blocks");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(source.calls(Operation::Write), 0);
    let most = ByteRange::between(10, 60_000);
    device.zero(most, ZeroFlags::FAST).await.expect("zeroed");
    let mut expected = pattern(64 * KIB);
    expected[10..60_000].fill(0);
    let read = device
        .read(0, Buffer::zeroed(64 << 10))
        .await
        .expect("read");
    assert_eq!(read[..], expected);
}

#[tokio::test]
async fn a_source_that_stops_to_zero_gets_zeroes_written() {
    let source = faulty(64 * KIB);
    let refusal = Fault::Error(ErrorKind::Unsupported);
    source.add(Rule::on(Operation::Zero).after(2).fault(refusal));
    let filter = "blocksize:maximum-length=8K";
    let device = through(&[filter], Arc::clone(&source) as _).await;
    let range = ByteRange::between(10, 60_000);
    device
        .zero(range, ZeroFlags::empty())
        .await
        .expect("zeroed");
    let mut expected = pattern(64 * KIB);
    expected[10..60_000].fill(0);
    let read = device
        .read(0, Buffer::zeroed(64 << 10))
        .await
        .expect("read");
    assert_eq!(read[..], expected);
}

#[tokio::test]
async fn extents_of_whole_blocks_are_cut_to_what_was_asked() {
    let source = faulty(256 * KIB);
    for answer in [answers::short, answers::empty, answers::all_holes] {
        source.add(
            Rule::on(Operation::Extents)
                .times(1)
                .fault(Fault::Extents(answer)),
        );
    }
    let device = through(&["blocksize"], Arc::clone(&source) as _).await;
    let range = ByteRange::between(1000, 100_001);
    for end in [4096, 4096, 100_001] {
        let extents = device
            .extents(range, &Context::Allocation)
            .await
            .expect("an answer");
        let first = extents.first().expect("not empty");
        assert_eq!(first.range, ByteRange::between(1000, end));
    }
    source.add(Rule::on(Operation::Extents).fault(Fault::Extents(answers::empty)));
    let other = Context::Other("x:y".to_owned());
    device
        .extents(range, &other)
        .await
        .expect_err("nothing can be made up");
    let error = device.extents(ByteRange::between(0, 1 << 40), &other).await;
    assert_eq!(error.expect_err("beyond").kind(), ErrorKind::OutOfBounds);
}

#[tokio::test]
async fn hostile_places_are_refused() {
    let device = through(
        &["blocksize:minimum=64K"],
        Arc::new(MemoryDevice::new(100_000)),
    )
    .await;
    for offset in [u64::MAX, u64::MAX - 1, i64::MAX as u64, 100_001, 99_999] {
        assert!(
            device.read(offset, Buffer::zeroed(2)).await.is_err(),
            "{offset}"
        );
        assert!(write(&*device, offset, &[0; 2]).await.is_err(), "{offset}");
        let range = ByteRange::between(offset.min(1 << 62), u64::MAX);
        assert!(device.zero(range, ZeroFlags::empty()).await.is_err());
        assert!(device.trim(range, WriteFlags::empty()).await.is_err());
        assert!(device.cache(range).await.is_err());
    }
}

#[tokio::test]
async fn places_in_files_are_passed_through() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), pattern(100_000)).expect("written");
    let source = FileDevice::open(file.path(), Access::ReadWrite).expect("opened");
    let device = through(&["blocksize:minimum=4K,maximum-data=8K"], Arc::new(source)).await;
    let Mapping::File { offset, length, .. } = device.mapping(ByteRange::between(77, 90_000))
    else {
        panic!("it lies in a file");
    };
    assert_eq!((offset, length), (77, 90_000 - 77));
    check_device(&*device, 11, 200).await;
}

#[tokio::test]
async fn clients_are_told_what_they_shall_keep_to() {
    let memory = || Arc::new(MemoryDevice::new(100_000));
    let told = "advertise-minimum=512,advertise-preferred=8K,advertise-maximum=64K";
    let device = through(&[&format!("blocksize:{told}")], memory()).await;
    let limits = device.info().limits;
    assert_eq!(
        (limits.minimum, limits.preferred, limits.maximum),
        (512, 8192, 65536)
    );
    device
        .read(1, Buffer::zeroed(70_000))
        .await
        .expect("nobody is forced");

    let device = through(&[&format!("blocksize:{told},enforce=on")], memory()).await;
    for (offset, length) in [(1, 511), (0, 511), (512, 65536 + 512)] {
        let error = device
            .read(offset, Buffer::zeroed(length))
            .await
            .expect_err("not kept to");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    device
        .read(99_840, Buffer::zeroed(160))
        .await
        .expect("the end may be off");
    check_device(&*device, 12, 200).await;
}

#[tokio::test]
async fn clients_are_told_what_the_source_says_where_nothing_else_is_said() {
    let source = || strict(100_000, 512, 10_240, 1 << 20);
    let told = async |minimum, advertise_preferred, maximum| {
        let filter = BlockSize {
            advertise_minimum: minimum,
            advertise_preferred,
            advertise_maximum: maximum,
            enforce: true,
            ..BlockSize::default()
        };
        let exports = Arc::new(SingleExport::new(source()));
        let chain = Chain::new(&[NamedFilter::new(filter)], exports).expect("a chain");
        let open = chain.exports().open("", Default::default()).await;
        open.expect("an export").device
    };
    let own = source().info().limits.preferred;
    for ((minimum, preferred, maximum), expected) in [
        ((None, None, None), (512, own.min(10_240), 10_240)),
        ((Some(1), Some(2048), None), (1, 2048, 10_240)),
        (
            (Some(4096), None, None),
            (4096, own.clamp(4096, 8192), 8192),
        ),
        ((None, None, Some(1 << 20)), (512, own, 1 << 20)),
        ((Some(65536), None, None), (65536, 65536, 65536)),
    ] {
        let limits = told(minimum, preferred, maximum).await.info().limits;
        let limits = (limits.minimum, limits.preferred, limits.maximum);
        assert_eq!(limits, expected, "{minimum:?} {preferred:?} {maximum:?}");
    }
    let device = told(None, None, None).await;
    for (offset, length) in [(256, 512), (0, 768), (0, 10_752)] {
        let read = device.read(offset, Buffer::zeroed(length)).await;
        let error = read.expect_err("not kept to");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    let read = device.read(512, Buffer::zeroed(10_240)).await;
    read.expect("kept to");
}

#[tokio::test]
async fn what_cannot_be_is_refused() {
    for wrong in [
        "minimum=3",
        "minimum=128K",
        "maximum-data=8G",
        "minimum=4K,maximum-data=2K",
        "minimum=4K,maximum-length=2K",
        "advertise-minimum=5",
        "advertise-preferred=3000",
        "advertise-minimum=4K,advertise-preferred=512",
        "advertise-maximum=64M",
        "advertise-minimum=4K,advertise-maximum=10000",
    ] {
        let text = format!("blocksize:{wrong}");
        assert!(NamedFilter::parse(text.as_ref()).is_err(), "{wrong}");
    }
    let source = strict(100_000, 512, 512, 1 << 20);
    let error = refusal(&["blocksize:minimum=4K"], source).await;
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_in_several_threads_keep_their_bytes() {
    let source = strict(64 * KIB, 4096, 8192, 64 * KIB);
    let (one, other) = two_handles("blocksize", source).await;
    let clients = (0..8_u64).map(|client| {
        let device = Arc::clone(if client % 2 == 0 { &one } else { &other });
        tokio::spawn(async move {
            let mut random = client + 1;
            let mut model = pattern(64 * KIB);
            for _ in 0..300 {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                // Each has every eighth run of 1,000 bytes: no block is anyone's alone.
                let run = (random >> 33) % 8;
                let start = (run * 8 + client) * 1000;
                let (skip, length) = ((random >> 20) % 500, 1 + (random >> 50) % 500);
                let range = ByteRange::between(start + skip, start + skip + length);
                let place = range.start() as usize..range.end() as usize;
                if random >> 63 == 0 {
                    let bytes = vec![(random >> 12) as u8; length as usize];
                    model[place].copy_from_slice(&bytes);
                    write(&*device, range.start(), &bytes)
                        .await
                        .expect("written");
                } else {
                    let read = device
                        .read(range.start(), Buffer::zeroed(length as usize))
                        .await;
                    assert_eq!(read.expect("read")[..], model[place], "{client}: {range}");
                }
            }
        })
    });
    for client in join_all(clients).await {
        client.expect("its own bytes");
    }
}
