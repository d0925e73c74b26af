use blockferry_block::{
    Access, FileDevice, MemoryDevice, PipePool,
    testing::{Fault, FaultyDevice, Rule, answers, check_device},
};

use super::*;
use crate::testing::{refusal, through};

fn memory(size: usize) -> Arc<MemoryDevice> {
    let bytes: Vec<u8> = (1..=size).map(|at| (at % 251 + 1) as u8).collect();
    Arc::new(MemoryDevice::from_bytes(bytes))
}

/// All of the device.
async fn contents(device: &dyn BlockDevice) -> Buffer {
    let unread = vec![0x5a; device.info().size as usize];
    device
        .read(0, Buffer::from(&unread[..]))
        .await
        .expect("all")
}

#[tokio::test]
async fn the_size_is_set_then_rounded_up_then_down() {
    for (filter, source, size) in [
        ("truncate", 1000, 1000),
        ("truncate:500", 1000, 500),
        ("truncate:size=2000", 1000, 2000),
        ("truncate:0", 1000, 0),
        ("truncate:round-up=512", 1000, 1024),
        ("truncate:round-up=512", 1024, 1024),
        ("truncate:round-up=512", 0, 0),
        ("truncate:round-down=512", 1000, 512),
        ("truncate:round-down=1K", 1000, 0),
        ("truncate:700,round-up=512,round-down=4K", 9000, 0),
        ("truncate:5000,round-up=4K,round-down=512", 9000, 8192),
        ("truncate:round-up=1,round-down=1", 77, 77),
    ] {
        let device = through(&[filter], memory(source)).await;
        assert_eq!(device.info().size, size, "{filter} of {source}");
        let read = contents(&*device).await;
        let head = memory(source).contents();
        let head = &head[..head.len().min(read.len())];
        assert!(
            read.starts_with(head) && is_zero(&read[head.len()..]),
            "{filter}"
        );
    }
    for text in [
        "round-up=0",
        "round-down=0",
        "round-up=3",
        "round-down=1536",
        "-1",
        "8E",
    ] {
        let text = format!("truncate:{text}");
        assert!(crate::NamedFilter::parse(text.as_ref()).is_err(), "{text}");
    }
    let largest = ["truncate:9223372036854775807,round-up=512"];
    let error = refusal(&largest, memory(10)).await;
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let filter = Truncate {
        size: Some(u64::MAX),
        ..Truncate::default()
    };
    assert!(filter.wrap(memory(10)).is_err());
}

#[tokio::test]
async fn what_is_cut_off_is_never_touched() {
    for seed in 0..4 {
        let whole = memory(100_000);
        let before = whole.contents();
        let device = through(&["truncate:60001"], whole.clone()).await;
        check_device(&*device, seed, 300).await;
        assert!(whole.contents()[60_001..] == before[60_001..]);
        for (offset, length) in [(60_000, 2), (60_001, 1), (u64::MAX, 1)] {
            let write = device.write(offset, Buffer::zeroed(length), WriteFlags::empty());
            let error = write.await.expect_err("behind the end");
            assert_eq!(error.kind(), ErrorKind::OutOfBounds);
        }
    }
}

/// Requests of every kind, everywhere, against what has to come of them.
#[tokio::test]
async fn an_image_with_zeroes_behind_it_is_an_image() {
    for (seed, minimum, source, size) in [
        (1, 1, 50_001, 120_000),
        (2, 512, 40_000, 100_000),
        (3, 512, 40_960, 81_920),
        (4, 4096, 10_000, 20_000),
        (5, 1, 0, 1000),
        (6, 1, 1, 1_000_000),
    ] {
        let whole = memory(source);
        let below = FaultyDevice::new(whole.clone()).piping();
        let below = below.with_info(|info| info.limits.minimum = minimum);
        let filter = format!("truncate:{size}");
        let device = through(&[&filter], Arc::new(Strict(below))).await;
        let mut expected = whole.contents();
        expected.resize(size, 0);
        let mut random = Random(seed);
        let pipes = PipePool::new(1 << 20, 1);
        for step in 0..600 {
            let place = format!("seed {seed}, step {step}");
            let range = random.range(size as u64, minimum.into());
            let (start, length) = (range.start(), range.len() as usize);
            let indices = start as usize..range.end() as usize;
            match random.below(7) {
                0 => {
                    let read = device.read(start, Buffer::from(&vec![9; length][..])).await;
                    assert!(read.expect(&place)[..] == expected[indices], "{place}");
                }
                1 => {
                    let pipe = pipes.take().expect("a pipe");
                    let read = device.read_piped(start, length, pipe).await;
                    let read = match read.expect(&place) {
                        Payload::Piped(pipe) => pipe.into_memory().expect("memory"),
                        Payload::Memory(buffer) => buffer,
                    };
                    assert!(read[..] == expected[indices], "{place}");
                }
                2 => {
                    let extents = device.extents(range, &Context::Allocation).await;
                    let mut at = start;
                    for extent in extents.expect(&place) {
                        assert_eq!(extent.range.start(), at, "{place}");
                        at = extent.range.end();
                        let bytes = &expected[extent.range.start() as usize..at as usize];
                        assert!(!extent.status.is_zero() || is_zero(bytes), "{place}");
                    }
                    assert_eq!(at, range.end(), "{place}");
                }
                3 => {
                    let zeroed = device.zero(range, ZeroFlags::empty()).await;
                    zeroed.expect(&place);
                    expected[indices].fill(0);
                }
                4 => {
                    device.cache(range).await.expect(&place);
                    device.flush().await.expect(&place);
                }
                _ => {
                    let mut data = Buffer::from(&vec![step as u8 | 1; length][..]);
                    let head = source.saturating_sub(start as usize).min(length);
                    let is_allowed = head == length || random.below(2) == 0;
                    if is_allowed {
                        data[head..].fill(0);
                    }
                    let copy = data.to_vec();
                    match device.write(start, data, WriteFlags::FUA).await {
                        Ok(data) => {
                            assert!(is_allowed, "{place}: {range} was lost");
                            assert_eq!(data[..], copy[..], "{place}");
                            expected[indices].copy_from_slice(&copy);
                        }
                        Err(error) => {
                            assert!(!is_allowed, "{place}: {error}");
                            assert_eq!(error.kind(), ErrorKind::NoSpace, "{place}");
                            assert_eq!(error.offset(), Some(start));
                        }
                    }
                }
            }
        }
        assert!(contents(&*device).await[..] == expected);
        assert_eq!(whole.contents(), expected[..source]);
    }
}

#[tokio::test]
async fn piped_writes_cross_the_border() {
    let whole = memory(100_000);
    let below = FaultyDevice::new(whole.clone()).piping();
    let device = through(&["truncate:150000"], Arc::new(below)).await;
    let pipes = PipePool::new(1 << 20, 1);
    for (start, data, zeroes) in [
        (500, 70_000, 0),
        (90_000, 10_000, 40_000),
        (110_000, 0, 40_000),
    ] {
        let mut pipe = pipes.take().expect("a pipe");
        assert_eq!(pipe.put(&vec![3; data]).expect("room"), data);
        assert_eq!(pipe.fill_with_zeroes(zeroes).expect("room"), zeroes);
        let written = device.write_piped(start, pipe, WriteFlags::empty());
        written.await.expect("only zeroes behind the source");
        let end = start as usize + data;
        assert!(
            data == 0
                || whole.contents()[start as usize..end]
                    .iter()
                    .all(|byte| *byte == 3)
        );
    }
    let mut pipe = pipes.take().expect("a pipe");
    pipe.put(&[3; 5]).expect("room");
    let written = device.write_piped(99_996, pipe, WriteFlags::empty()).await;
    assert_eq!(written.expect_err("no room").kind(), ErrorKind::NoSpace);
}

/// Does not take what does not keep to its blocks, or is nothing.
struct Strict(FaultyDevice);

impl Strict {
    fn check(&self, range: ByteRange) {
        let info = self.0.info();
        let minimum = u64::from(info.limits.minimum);
        let ends_well = range.end().is_multiple_of(minimum) || range.end() == info.size;
        assert!(!range.is_empty() && range.end() <= info.size, "{range}");
        assert!(
            range.start().is_multiple_of(minimum) && ends_well,
            "{range}"
        );
    }
}

impl BlockDevice for Strict {
    fn info(&self) -> &DeviceInfo {
        self.0.info()
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        self.check(ByteRange::between(offset, offset + buffer.len() as u64));
        self.0.read(offset, buffer)
    }

    fn read_piped(
        &self,
        offset: u64,
        length: usize,
        pipe: PipeBuffer,
    ) -> BoxFuture<'_, Result<Payload>> {
        self.check(ByteRange::between(offset, offset + length as u64));
        self.0.read_piped(offset, length, pipe)
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        self.check(ByteRange::between(offset, offset + data.len() as u64));
        self.0.write(offset, data, flags)
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        self.check(range);
        self.0.zero(range, flags)
    }

    fn cache(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        self.check(range);
        self.0.cache(range)
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        self.check(range);
        self.0.extents(range, context)
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % bound
    }

    /// A range that is not empty, on blocks of `minimum` bytes.
    fn range(&mut self, size: u64, minimum: u64) -> ByteRange {
        let blocks = size.div_ceil(minimum);
        let first = self.below(blocks);
        let length = match self.below(3) {
            0 => 1,
            1 => 1 + self.below(blocks),
            _ => blocks,
        };
        ByteRange::between(first * minimum, size.min((first + length) * minimum))
    }
}

#[tokio::test]
async fn errors_are_told_of_the_whole_request() {
    let fault = Rule::on_all().fault(Fault::Error(ErrorKind::Io));
    let faulty = Arc::new(FaultyDevice::new(memory(1000)).with(fault));
    let device = through(&["truncate:5000"], faulty.clone()).await;
    let range = ByteRange::between(900, 1900);
    let write = device.write(900, Buffer::zeroed(1000), WriteFlags::empty());
    let errors = [
        device.read(900, Buffer::zeroed(1000)).await.map(drop),
        write.await.map(drop),
        device.zero(range, ZeroFlags::empty()).await,
        device.trim(range, WriteFlags::empty()).await,
        device.cache(range).await,
        device.extents(range, &Context::Allocation).await.map(drop),
    ];
    for error in errors {
        let error = error.expect_err("a fault");
        assert_eq!((error.offset(), error.length()), (Some(900), Some(1000)));
    }
    // What lies behind the source needs no source.
    let behind = ByteRange::between(1000, 5000);
    let calls = faulty.calls(Operation::Read);
    let read = device.read(1000, Buffer::zeroed(4000)).await;
    assert!(read.is_ok() && faulty.calls(Operation::Read) == calls);
    assert!(device.trim(behind, WriteFlags::empty()).await.is_ok());
    assert!(device.flush().await.is_err());
}

#[tokio::test]
async fn a_read_only_source_stays_read_only() {
    let device = through(&["truncate:5000", "readonly"], memory(1000)).await;
    assert!(!device.info().can(Capabilities::WRITE));
    let write = device
        .write(2000, Buffer::zeroed(10), WriteFlags::empty())
        .await;
    assert_eq!(write.expect_err("refused").kind(), ErrorKind::ReadOnly);
    let behind = ByteRange::between(2000, 3000);
    let zero = device.zero(behind, ZeroFlags::empty()).await;
    assert_eq!(zero.expect_err("refused").kind(), ErrorKind::ReadOnly);
    check_device(&*device, 1, 300).await;
}

/// Where each extent ends, and what it is.
fn ends(list: Result<Vec<Extent>>) -> Vec<(u64, Status)> {
    let list = list.expect("extents").into_iter();
    list.map(|extent| (extent.range.end(), extent.status))
        .collect()
}

#[tokio::test]
async fn extents_say_no_more_than_is_known() {
    let all = ByteRange::between(0, 5000);
    let device = through(&["truncate:5000", "noextents"], memory(1000)).await;
    assert!(device.info().knows_allocation());
    let whole = device.extents(all, &Context::Allocation).await;
    assert_eq!(
        ends(whole),
        [(1000, Status::DATA), (5000, Status::HOLE_ZERO)]
    );
    let head = ByteRange::between(10, 20);
    let inside = device.extents(head, &Context::Allocation).await;
    assert_eq!(ends(inside), [(20, Status::DATA)]);

    let depths = |range: ByteRange| {
        let status = Status(2);
        vec![Extent { range, status }]
    };
    let below = FaultyDevice::new(memory(1000))
        .with(Rule::on(Operation::Extents).fault(Fault::Extents(depths)))
        .with_info(|info| {
            let other = Context::Other("x:y".to_owned());
            info.contexts = vec![Context::AllocationDepth, other];
        });
    let device = through(&["truncate:5000"], Arc::new(below)).await;
    let contexts = [Context::AllocationDepth, Context::Allocation];
    assert_eq!(device.info().contexts, contexts);
    let found = device.extents(all, &Context::AllocationDepth).await;
    assert_eq!(ends(found), [(1000, Status(2)), (5000, Status(0))]);
    let behind = ByteRange::between(2000, 2001);
    let other = Context::Other("x:y".to_owned());
    let error = device.extents(behind, &other).await.expect_err("unknown");
    assert_eq!(error.kind(), ErrorKind::Unsupported);

    // An answer that stops early is not followed by what lies further on.
    let short = Rule::on(Operation::Extents).fault(Fault::Extents(answers::short));
    let below = FaultyDevice::new(memory(1000)).with(short);
    let device = through(&["truncate:5000"], Arc::new(below)).await;
    let short = device.extents(all, &Context::Allocation).await;
    assert_eq!(ends(short), [(512, Status::DATA)]);
}

#[tokio::test]
async fn bytes_are_found_in_their_file_up_to_the_border() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(10_000).expect("room");
    let open = || FileDevice::open(file.path(), Access::ReadWrite).expect("a device");
    let device = through(&["truncate:50000"], Arc::new(open())).await;
    let place = |start, end| match device.mapping(ByteRange::between(start, end)) {
        Mapping::File { offset, length, .. } => Some((Some(offset), length)),
        Mapping::Zero { length } => Some((None, length)),
        _ => None,
    };
    assert_eq!(place(100, 200), Some((Some(100), 100)));
    assert_eq!(place(9000, 20_000), Some((Some(9000), 1000)));
    assert_eq!(place(10_000, 20_000), Some((None, 10_000)));
    assert_eq!(place(40_000, u64::MAX), Some((None, 10_000)));
    let device = through(&["truncate:5000"], Arc::new(open())).await;
    let Mapping::File { length, .. } = device.mapping(ByteRange::between(4000, 9000)) else {
        panic!("it lies in a file");
    };
    assert_eq!(length, 1000);
    assert!(device.resize(1).await.is_err());
}

#[tokio::test]
async fn an_image_is_not_cut_inside_a_block() {
    let blocks = || {
        let device = FaultyDevice::new(memory(10_000));
        Arc::new(device.with_info(|info| info.limits.minimum = 4096))
    };
    let error = refusal(&["truncate:5000"], blocks()).await;
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("blocksize"), "{error}");
    let device = through(&["truncate:round-down=4K"], blocks()).await;
    assert_eq!(device.info().size, 8192);
    let device = through(&["truncate:10001"], blocks()).await;
    assert_eq!(device.info().size, 10_001);
}
