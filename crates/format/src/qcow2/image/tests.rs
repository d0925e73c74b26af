use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use blockferry_block::{
    BoxFuture, Capabilities, ErrorKind, Mapping, MemoryDevice, Payload, Status,
    testing::{Fault, FaultyDevice, Rule, answers, check_device},
};
use futures_util::future::join_all;
use proptest::prelude::*;

use super::*;
use crate::{
    NoRelatives, Related, RelatedFile, RelatedImage,
    disk::MOST_EXTENTS,
    qcow2::{
        Compression, check,
        entry::{COPIED, Entry},
        qemu,
        testing::{Content, ImageBuilder},
    },
};

const CLUSTER: u64 = 64 << 10;

/// A cluster that looks like text and differs from every other.
fn text(number: u64, size: u64) -> Vec<u8> {
    let words = (0..size / 8).flat_map(|at| (number * 1_000 + at % 100).to_le_bytes());
    words.collect()
}

/// One of everything, some of it in a row.
fn everything(cluster_bits: u32) -> ImageBuilder {
    let size = 1 << cluster_bits;
    let mut image = ImageBuilder::new(cluster_bits, 40 * size + 777);
    for number in [1, 2, 3, 7, 9, 40] {
        image = image.with(number, Content::Data(text(number, size)));
    }
    for number in 12..30 {
        image = image.with(number, Content::Compressed(text(number, size)));
    }
    image
        .with(5, Content::Zero)
        .with(6, Content::ZeroKept)
        .with(35, Content::Compressed(text(35, size)))
}

fn subclusters() -> ImageBuilder {
    let mut image = everything(14);
    image.geometry.extended = true;
    let bytes = text(77, 1 << 14);
    image
        .with(31, Content::Mixed(0x00ff_0f01, 0xff00_0000, bytes.clone()))
        .with(32, Content::Mixed(0, 0x8000_0001, bytes.clone()))
        .with(33, Content::Mixed(0xffff_fffe, 0, bytes))
}

fn zstd() -> ImageBuilder {
    ImageBuilder {
        compression: Compression::Zstd,
        ..everything(16)
    }
}

fn memory(image: &ImageBuilder) -> Arc<dyn BlockDevice> {
    Arc::new(MemoryDevice::from_bytes(image.build()))
}

async fn open(below: Arc<dyn BlockDevice>) -> Image {
    let opened = Image::open(below, &NoRelatives, &OpenOptions::default()).await;
    opened.expect("a sound image")
}

/// An image around a device that goes wrong on demand, and that device.
async fn faulty(image: &ImageBuilder) -> (Image, Arc<FaultyDevice>) {
    let below = Arc::new(FaultyDevice::new(memory(image)));
    (open(below.clone()).await, below)
}

async fn read(device: &dyn BlockDevice, start: u64, length: u64) -> Result<Vec<u8>> {
    let buffer = Buffer::from(&vec![0x77; length as usize][..]);
    Ok(device.read(start, buffer).await?.to_vec())
}

/// One device as what is behind an image.
struct Behind(Arc<dyn BlockDevice>);

impl Related for Behind {
    fn open<'a>(&'a self, _: &'a RelatedFile, _: bool) -> BoxFuture<'a, Result<RelatedImage>> {
        Box::pin(async { Ok(Arc::clone(&self.0).into()) })
    }
}

fn backed(mut image: ImageBuilder) -> ImageBuilder {
    image.backing = Some((b"base".to_vec(), "raw".to_owned()));
    image
}

async fn open_before(image: &ImageBuilder, behind: Arc<dyn BlockDevice>) -> Image {
    let options = OpenOptions::default();
    let opened = Image::open(memory(image), &Behind(behind), &options).await;
    opened.expect("a sound image")
}

#[tokio::test]
async fn images_built_for_tests_are_sound() {
    for image in [everything(12), everything(16), subclusters(), zstd()] {
        let report = check(&*memory(&image)).await.expect("it is checked");
        assert_eq!((report.corruptions, report.leaks), (0, 0), "{image:?}");
        if qemu::is_installed() {
            let directory = tempfile::tempdir().expect("a directory");
            std::fs::write(directory.path().join("image"), image.build()).expect("written");
            let report = qemu::qemu_check(directory.path(), "image");
            assert_eq!(qemu::number(&report, "corruptions"), 0, "{report}");
            assert_eq!(qemu::number(&report, "leaks"), 0, "{report}");
        }
    }
}

#[tokio::test]
async fn any_request_is_answered_as_a_row_of_bytes_would() {
    for (turn, image) in [everything(12), everything(16), subclusters(), zstd()]
        .into_iter()
        .enumerate()
    {
        check_device(&open(memory(&image)).await, turn as u64, 300).await;
        let behind = Arc::new(MemoryDevice::from_bytes(text(5, 20 << 16)));
        let overlay = open_before(&backed(image), behind).await;
        check_device(&overlay, 10 + turn as u64, 300).await;
    }
}

#[tokio::test]
async fn each_cluster_is_where_it_was_put() {
    let image = open(memory(&everything(16))).await;
    for number in [1, 3, 7, 12, 29, 35] {
        let read = read(&image, number * CLUSTER, CLUSTER).await.expect("read");
        assert!(read == text(number, CLUSTER), "cluster {number}");
    }
    let last = read(&image, 40 * CLUSTER, 777).await.expect("read");
    assert!(last == text(40, CLUSTER)[..777]);
    let zeroes = read(&image, 4 * CLUSTER, 3 * CLUSTER).await.expect("read");
    assert!(blockferry_block::is_zero(&zeroes));
}

#[tokio::test]
async fn files_of_any_block_size_serve() {
    for (minimum, maximum) in [(1, 1000), (512, 4096), (4096, 32 << 20)] {
        let limit = |device: Arc<dyn BlockDevice>| {
            let limited = FaultyDevice::new(device).with_info(|info| {
                info.limits.minimum = minimum;
                info.limits.maximum = maximum;
            });
            Arc::new(limited) as Arc<dyn BlockDevice>
        };
        check_device(&open(limit(memory(&everything(12)))).await, 3, 150).await;
        let behind = limit(Arc::new(MemoryDevice::from_bytes(text(5, 70_000))));
        let overlay = open_before(&backed(subclusters()), behind).await;
        check_device(&overlay, 4, 150).await;
    }
}

#[tokio::test]
async fn a_request_takes_as_few_reads_as_it_can() {
    let (image, below) = faulty(&everything(16)).await;
    let mut before = below.calls(Operation::Read);
    for (start, length, expected, what) in [
        (1, 3, 1, "clusters in a row"),
        (4, 3, 0, "zeroes"),
        (12, 4, 1, "compressed clusters together"),
        (1, 9, 3, "three places"),
    ] {
        read(&image, start * CLUSTER, length * CLUSTER)
            .await
            .expect("read");
        let calls = below.calls(Operation::Read);
        assert_eq!(calls - before, expected, "{what}");
        before = calls;
    }
    let small = (0..16).map(|part| read(&image, 20 * CLUSTER + part * 4096, 4096));
    for (part, read) in join_all(small).await.into_iter().enumerate() {
        assert!(read.expect("read") == text(20, CLUSTER)[part * 4096..][..4096]);
    }
    assert_eq!(
        below.calls(Operation::Read) - before,
        1,
        "unpacked once for all"
    );
}

#[tokio::test]
async fn a_failure_below_is_told_at_the_range_that_was_asked_for() {
    for (start, length) in [
        (CLUSTER + 5, 1000),
        (2 * CLUSTER, 6 * CLUSTER),
        (15 * CLUSTER + 9, CLUSTER),
    ] {
        let (image, below) = faulty(&everything(16)).await;
        let expected = read(&image, start, length).await.expect("read");
        // From the cache no failure can come.
        let (image, below_again) = faulty(&everything(16)).await;
        drop(below);
        below_again.add(Rule::on(Operation::Read).fault(Fault::Error(ErrorKind::Io)));
        let error = read(&image, start, length).await.expect_err("a fault");
        assert_eq!(error.kind(), ErrorKind::Io);
        assert_eq!(error.operation(), Some(Operation::Read));
        assert_eq!(
            (error.offset(), error.length()),
            (Some(start), Some(length))
        );
        below_again.heal();
        assert!(read(&image, start, length).await.expect("healed") == expected);
    }
}

#[tokio::test]
async fn tables_that_cannot_be_read_are_read_again() {
    let image = everything(16);
    let below = Arc::new(FaultyDevice::new(memory(&image)));
    // The table that is looked at while opening is no reason to fail.
    below.add(
        Rule::on(Operation::Read)
            .after(3)
            .fault(Fault::Error(ErrorKind::TimedOut)),
    );
    let opened = open(below.clone()).await;
    let error = read(&opened, 0, CLUSTER).await.expect_err("a fault");
    assert_eq!(
        (error.kind(), error.length()),
        (ErrorKind::TimedOut, Some(CLUSTER))
    );
    let whole = ByteRange::between(0, 20 * CLUSTER);
    let error = opened.extents(whole, &Context::Allocation).await;
    let error = error.expect_err("a fault");
    assert_eq!(
        (error.kind(), error.length()),
        (ErrorKind::TimedOut, Some(whole.len()))
    );
    below.heal();
    assert!(read(&opened, CLUSTER, CLUSTER).await.expect("healed") == text(1, CLUSTER));
}

#[tokio::test]
async fn what_is_dropped_or_hangs_holds_nobody_up() {
    let (image, below) = faulty(&everything(16)).await;
    below.add(Rule::on(Operation::Read).times(3).fault(Fault::Hang));
    for start in [12 * CLUSTER, 12 * CLUSTER + 100, CLUSTER] {
        let hanging = read(&image, start, 4096);
        let timeout = tokio::time::timeout(Duration::from_millis(5), hanging).await;
        assert!(timeout.is_err());
    }
    let read = read(&image, 12 * CLUSTER + 100, 4096).await.expect("read");
    assert!(read == text(12, CLUSTER)[100..][..4096]);
}

#[test]
fn many_readers_on_several_runtimes_see_the_same() {
    let runtime = || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().expect("a runtime")
    };
    // Tables of a disk of several, with room for few of them.
    let options = OpenOptions {
        table_memory: 1,
        ..OpenOptions::default()
    };
    let mut image = ImageBuilder::new(12, 12 << 20);
    for number in (0..12 << 8).step_by(100) {
        image = image.with(number, Content::Compressed(text(number, 4096)));
    }
    let opened = Image::open(memory(&image), &NoRelatives, &options);
    let opened = Arc::new(runtime().block_on(opened).expect("sound"));
    std::thread::scope(|scope| {
        for seed in 0..6 {
            let opened = Arc::clone(&opened);
            scope.spawn(move || {
                runtime().block_on(async {
                    join_all((0..3).map(|turn| check_device(&*opened, seed * 3 + turn, 60))).await
                })
            });
        }
    });
}

#[tokio::test]
async fn damaged_entries_are_corrupt_and_name_their_place() {
    let entry = |word: u64| {
        Content::Entry(Entry {
            word,
            subclusters: 0,
        })
    };
    let cases = [
        (entry(COPIED | 0x1_0200), "boundary"),
        (entry(COPIED | 0xff_0000_0000_0000), "past the end"),
        (entry(COPIED | 1 << 40), "past the end"),
        (entry(1 << 62 | 1 << 50), "past the end"),
        // The L1 table is no stream.
        (entry(1 << 62 | 1 << 16), "cannot be decompressed"),
    ];
    for (damage, part) in cases {
        let image = everything(16).with(10, damage);
        let image = open(memory(&image)).await;
        for (start, length) in [
            (10 * CLUSTER, CLUSTER),
            (10 * CLUSTER + 9, 100),
            (9 * CLUSTER, 4 * CLUSTER),
        ] {
            let error = read(&image, start, length).await.expect_err("damage");
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            let said = error.to_string();
            assert!(said.contains(part) && said.contains("0xa00"), "{said}");
        }
        let around = read(&image, 9 * CLUSTER, CLUSTER).await.expect("sound");
        assert!(around == text(9, CLUSTER));
    }
}

#[tokio::test]
async fn a_stream_that_makes_too_little_is_corrupt() {
    let half = Content::Compressed(text(36, 2048));
    let image = everything(12).with(36, half);
    let image = open(memory(&image)).await;
    let error = read(&image, 36 << 12, 4096).await.expect_err("too short");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("too few bytes"), "{error}");
}

#[tokio::test]
async fn damaged_tables_are_corrupt_and_name_their_place() {
    for (word, part) in [
        (COPIED | 0x1_0200, "boundary"),
        (COPIED | 0xff_0000_0000_0000, "past the end"),
    ] {
        let mut built = everything(12);
        built.geometry.size = 3 << 21;
        let mut bytes = built.build();
        // The second entry of the L1 table, which lies behind the header.
        bytes[4096 + 8..][..8].copy_from_slice(&u64::to_be_bytes(word));
        let image = open(Arc::new(MemoryDevice::from_bytes(bytes))).await;
        let error = read(&image, (2 << 20) + 5, 10).await.expect_err("damage");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        let said = error.to_string();
        assert!(
            said.contains(part) && said.contains("table 1 for guest offset 0x200000"),
            "{said}"
        );
        let whole = ByteRange::between(0, 3 << 21);
        let extents = image.extents(whole, &Context::Allocation).await;
        assert_eq!(extents.expect_err("damage").kind(), ErrorKind::Corrupt);
        assert!(matches!(
            image.mapping(ByteRange::between(2 << 20, 3 << 20)),
            Mapping::Opaque
        ));
        // Tables that are other parts of the file are read as what they are.
        assert!(read(&image, 4096, 4096).await.expect("sound") == text(1, 4096));
    }
}

#[tokio::test]
async fn a_file_may_end_inside_its_last_cluster_and_not_before_it() {
    let image = ImageBuilder::new(16, 4 * CLUSTER).with(0, Content::Data(text(0, CLUSTER)));
    let entry = |host: u64| {
        let word = COPIED | host;
        Content::Entry(Entry {
            word,
            subclusters: 0,
        })
    };
    // Entries take no room, so the end stays where it is.
    let end = image.build().len() as u64;
    let image = image.with(2, entry(end)).with(3, entry(end + CLUSTER));
    let mut bytes = image.build();
    bytes.extend(vec![9; 1000]);
    let image = open(Arc::new(MemoryDevice::from_bytes(bytes))).await;
    let read_last = read(&image, 2 * CLUSTER, CLUSTER).await.expect("padded");
    assert!(read_last[..1000] == [9; 1000] && blockferry_block::is_zero(&read_last[1000..]));
    let tail = read(&image, 2 * CLUSTER + 5000, 100).await.expect("padded");
    assert!(blockferry_block::is_zero(&tail));
    let behind = read(&image, 3 * CLUSTER, 100)
        .await
        .expect_err("nothing is there");
    assert_eq!(behind.kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn huge_empty_disks_cost_next_to_nothing() {
    let (image, below) = faulty(&ImageBuilder::new(16, 16 << 40)).await;
    let before = below.calls(Operation::Read);
    let whole = ByteRange::between(0, 16 << 40);
    let extents = image.extents(whole, &Context::Allocation).await;
    let expected = Extent {
        range: whole,
        status: Status::HOLE_ZERO,
    };
    assert_eq!(extents.expect("an answer"), [expected]);
    assert_eq!(below.calls(Operation::Read), before);
    let Mapping::Zero { length } = image.mapping(whole) else {
        panic!("nothing is anywhere");
    };
    assert_eq!(length, whole.len());
}

#[tokio::test]
async fn answers_are_bounded_and_go_on_where_they_ended() {
    // Every other cluster, over many tables.
    let clusters = 3 * MOST_EXTENTS as u64;
    let mut builder = ImageBuilder::new(12, clusters << 12);
    for number in (0..clusters).step_by(2) {
        builder = builder.with(number, Content::Zero);
    }
    let behind = Arc::new(MemoryDevice::from_bytes(vec![1; 1 << 20]));
    let image = open_before(&backed(builder), behind).await;
    let mut at = 0;
    let mut answers = 0;
    while at < image.info().size {
        let rest = ByteRange::between(at, image.info().size);
        let depths = image.extents(rest, &Context::AllocationDepth).await;
        let depths = depths.expect("an answer");
        assert!(depths.len() <= MOST_EXTENTS);
        for extent in depths {
            let (number, odd) = (at >> 12, at >> 12 & 1);
            assert_eq!(
                extent.range,
                ByteRange::between(number << 12, (number + 1) << 12)
            );
            assert_eq!(extent.status, Status(1 + odd));
            at = extent.range.end();
        }
        answers += 1;
    }
    assert_eq!(answers, 3);
}

#[tokio::test]
async fn each_image_of_a_chain_is_asked_once_for_an_answer() {
    let clusters = 2 * MOST_EXTENTS as u64;
    let mut base = ImageBuilder::new(12, clusters << 12);
    for number in (0..clusters).step_by(2) {
        base = base.with(number, Content::Zero);
    }
    let base = Arc::new(FaultyDevice::new(Arc::new(open(memory(&base)).await)));
    let mut top: Arc<dyn BlockDevice> = base.clone();
    for _ in 0..6 {
        let empty = backed(ImageBuilder::new(16, clusters << 12));
        top = Arc::new(open_before(&empty, top).await);
    }
    let whole = ByteRange::between(0, clusters << 12);
    let context = Context::AllocationDepth;
    let list = top.extents(whole, &context).await.expect("an answer");
    assert_eq!(list.len(), MOST_EXTENTS);
    assert_eq!(base.calls(Operation::Extents), 1);
    let list = top.first_extent(whole, &context).await.expect("an answer");
    let first = Extent {
        range: ByteRange::between(0, 4096),
        status: Status(7),
    };
    assert_eq!(list, [first]);
    assert_eq!(base.calls(Operation::Extents), 2);
}

#[tokio::test]
async fn wrong_answers_from_behind_are_taken_for_data() {
    let liars = [
        answers::empty,
        answers::of_no_length,
        answers::with_gap,
        answers::overlapping,
        answers::backwards,
        answers::outside,
    ];
    for liar in liars {
        let behind = FaultyDevice::new(Arc::new(MemoryDevice::new(20 << 16)))
            .with(Rule::on(Operation::Extents).fault(Fault::Extents(liar)));
        let image = open_before(&backed(everything(16)), Arc::new(behind)).await;
        check_device(&image, 1, 50).await;
        let range = ByteRange::between(10 * CLUSTER, 12 * CLUSTER);
        let list = image
            .extents(range, &Context::Allocation)
            .await
            .expect("an answer");
        assert_eq!(
            list,
            [Extent {
                range,
                status: Status::DATA
            }]
        );
    }
}

#[tokio::test]
async fn images_that_may_not_be_opened_are_refused() {
    let refused = async |image: &ImageBuilder, options: OpenOptions| {
        let opened = Image::open(memory(image), &NoRelatives, &options).await;
        opened.expect_err("refused")
    };
    let options = OpenOptions {
        max_size: Some(1 << 20),
        ..OpenOptions::default()
    };
    let error = refused(&everything(16), options).await;
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("bound of 1.0 MiB"), "{error}");
    let error = refused(&backed(everything(16)), OpenOptions::default()).await;
    assert_eq!(error.kind(), ErrorKind::NotPermitted);
    assert!(error.to_string().contains("\"base\""), "{error}");
    let options = OpenOptions {
        snapshot: Some("no".to_owned()),
        ..OpenOptions::default()
    };
    let error = refused(&everything(16), options).await;
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn requests_outside_of_the_disk_are_refused() {
    let image = open(memory(&everything(16))).await;
    let size = image.info().size;
    for (start, length) in [
        (size, 1),
        (size - 1, 2),
        (u64::MAX, 1),
        (i64::MAX as u64, 1),
    ] {
        let error = read(&image, start, length).await.expect_err("outside");
        assert_eq!(error.kind(), ErrorKind::OutOfBounds);
    }
    let beyond = ByteRange::between(size - 5, size + 5);
    let extents = image.extents(beyond, &Context::Allocation).await;
    assert_eq!(extents.expect_err("outside").kind(), ErrorKind::OutOfBounds);
    assert!(read(&image, size, 0).await.expect("nothing").is_empty());
    let nothing = image.extents(ByteRange::between(5, 5), &Context::Allocation);
    assert!(nothing.await.expect("nothing").is_empty());
    let other = Context::from("x:y");
    let other = image.extents(ByteRange::between(0, 5), &other);
    assert_eq!(
        other.await.expect_err("unknown").kind(),
        ErrorKind::Unsupported
    );
}

#[tokio::test]
async fn what_lies_in_one_place_can_be_moved_by_a_pipe() {
    let below = Arc::new(FaultyDevice::new(memory(&everything(16))).piping());
    let image = open(below).await;
    assert!(image.info().can(Capabilities::SPLICE_READ));
    let pipes = blockferry_block::PipePool::new(1 << 20, 4);
    let pipe = || pipes.take().expect("a pipe");
    let payload = image
        .read_piped(CLUSTER + 3, 5000, pipe())
        .await
        .expect("read");
    let Payload::Piped(filled) = payload else {
        panic!("one place");
    };
    let bytes = filled.into_memory().expect("read back");
    assert!(bytes[..] == text(1, CLUSTER)[3..5003]);
    for start in [3 * CLUSTER + 5, 12 * CLUSTER + 5] {
        let payload = image.read_piped(start, CLUSTER as usize, pipe()).await;
        let Payload::Memory(bytes) = payload.expect("read") else {
            panic!("more than one place");
        };
        assert!(bytes[..] == read(&image, start, CLUSTER).await.expect("read")[..]);
    }
}

/// A device of which there are as many handles as anyone wants.
struct Connection {
    below: Arc<dyn BlockDevice>,
    info: DeviceInfo,
    opened: Arc<AtomicUsize>,
    /// How many were opened before it.
    number: usize,
    reads: Arc<[AtomicUsize; 3]>,
}

impl Connection {
    fn new(below: Arc<dyn BlockDevice>) -> Self {
        let mut info = below.info().clone();
        info.capabilities |= Capabilities::REOPEN;
        Self {
            below,
            info,
            opened: Arc::default(),
            number: 0,
            reads: Arc::default(),
        }
    }
}

impl BlockDevice for Connection {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        self.reads[self.number].fetch_add(1, Ordering::Relaxed);
        self.below.read(offset, buffer)
    }

    fn reopen(&self) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        let again = Self {
            below: Arc::clone(&self.below),
            info: self.info.clone(),
            opened: Arc::clone(&self.opened),
            number: self.opened.fetch_add(1, Ordering::Relaxed) + 1,
            reads: Arc::clone(&self.reads),
        };
        Box::pin(async { Ok(Arc::new(again) as Arc<dyn BlockDevice>) })
    }
}

#[tokio::test]
async fn handles_share_tables_and_read_through_their_own_connections() {
    let below = Connection::new(memory(&everything(16)));
    let reads = Arc::clone(&below.reads);
    let reads = |number: usize| reads[number].load(Ordering::Relaxed);
    let first = open(Arc::new(below)).await;
    assert!(
        first
            .info()
            .can(Capabilities::REOPEN | Capabilities::MULTI_CONN)
    );
    let opening = reads(0);
    let second = first.reopen().await.expect("another");
    assert!(read(&*second, CLUSTER, CLUSTER).await.expect("read") == text(1, CLUSTER));
    assert_eq!((reads(0), reads(1)), (opening, 1), "the table is known");
    drop(first);
    let third = second.reopen().await.expect("one more");
    check_device(&*third, 3, 50).await;
    assert!(reads(2) > 0);

    let alone = open(memory(&everything(16))).await;
    assert!(!alone.info().can(Capabilities::REOPEN));
    let refused = alone.reopen().await.err().expect("one is all there is");
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
}

/// What of the disk a byte of `content` shows: `None` is what is behind the image.
fn shown(content: Option<&Content>, at: usize, subcluster: usize) -> Option<u8> {
    match content {
        Some(Content::Data(bytes) | Content::Compressed(bytes)) => Some(bytes[at]),
        Some(Content::Zero | Content::ZeroKept) => Some(0),
        Some(Content::Mixed(allocated, zero, bytes)) => {
            let bit = at / subcluster;
            match (allocated >> bit & 1, zero >> bit & 1) {
                (1, _) => Some(bytes[at]),
                (_, 1) => Some(0),
                _ => None,
            }
        }
        _ => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_image_shows_what_was_put_into_it(
        bits in 9_u32..=16,
        is_extended in any::<bool>(),
        is_zstd in any::<bool>(),
        length in 1_u64..200_000,
        behind in prop::option::of(0_usize..250_000),
        kinds in prop::collection::vec((0_u8..9, any::<u32>(), any::<u32>()), 0..60),
    ) {
        let bits = if is_extended { bits.max(14) } else { bits };
        let size = 1_u64 << bits;
        let mut image = ImageBuilder::new(bits, length);
        image.geometry.extended = is_extended;
        if is_zstd {
            image.compression = Compression::Zstd;
        }
        let last = length.div_ceil(size);
        for ((kind, first, second), number) in kinds.into_iter().zip(0..last) {
            let bytes = text(number + 1, size);
            let content = match kind {
                0..=2 => Content::Data(bytes),
                3..=4 => Content::Compressed(bytes),
                5 => Content::Zero,
                6 => Content::ZeroKept,
                7 if is_extended => Content::Mixed(first & !second, second, bytes),
                _ => continue,
            };
            image = image.with(number, content);
        }
        let behind = behind.map(|length| text(99, length as u64 + 8));
        if behind.is_some() {
            image = backed(image);
        }
        let subcluster = image.geometry.subcluster_size() as usize;
        let expected: Vec<u8> = (0..length)
            .map(|at| {
                let content = image.clusters.get(&(at / size));
                let own = shown(content, (at % size) as usize, subcluster);
                let other = || behind.as_ref().and_then(|bytes| bytes.get(at as usize).copied());
                own.or_else(other).unwrap_or(0)
            })
            .collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let behind = MemoryDevice::from_bytes(behind.unwrap_or_default());
            let image = open_before(&image, Arc::new(behind)).await;
            for step in [length, 3_001] {
                for piece in ByteRange::between(0, length).pieces(step) {
                    let read = read(&image, piece.start(), piece.len()).await.expect("read");
                    let expected = &expected[piece.start() as usize..piece.end() as usize];
                    assert!(read == expected, "{piece}");
                }
            }
            let whole = ByteRange::between(0, length);
            let list = image.extents(whole, &Context::Allocation).await.expect("an answer");
            for Extent { range, status } in list {
                let bytes = &expected[range.start() as usize..range.end() as usize];
                assert!(!status.is_zero() || blockferry_block::is_zero(bytes), "{range}");
                let part = image.mapping(range);
                let is_zero = matches!(part, Mapping::Zero { length } if length <= range.len());
                assert!(!is_zero || status.is_zero(), "{range}");
            }
        });
    }
}

#[tokio::test]
async fn one_table_for_a_whole_disk_is_walked_in_bounded_steps() {
    // Entries of 64 KiB clusters, all of them data, in all tables that a disk of 16 TiB can have: the same table.
    let mut image = ImageBuilder::new(16, 16 << 40);
    for number in 0..8192 {
        let word = COPIED | (number + 9) << 16;
        let entry = Entry {
            word,
            subclusters: 0,
        };
        image = image.with(number, Content::Entry(entry));
    }
    let mut bytes = image.build();
    let (l1, tables) = (1 << 16, 1 << 15);
    let first: [u8; 8] = bytes[l1..l1 + 8].try_into().expect("eight");
    for table in 0..tables {
        bytes[l1 + table * 8..][..8].copy_from_slice(&first);
    }
    let image = open(Arc::new(MemoryDevice::from_bytes(bytes))).await;
    let whole = ByteRange::between(0, 16 << 40);
    let list = image
        .extents(whole, &Context::Allocation)
        .await
        .expect("an answer");
    let [extent] = list[..] else {
        panic!("one kind");
    };
    assert_eq!(extent.range, ByteRange::between(0, 128 << 30));
    assert_eq!(extent.status, Status::DATA);
}
