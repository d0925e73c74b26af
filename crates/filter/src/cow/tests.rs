use std::{sync::Arc, time::Duration};

use blockferry_block::{
    Access, Buffer, ByteRange, Capabilities, Context, FileDevice, Mapping, MemoryDevice, Operation,
    Payload, PipePool, SingleExport, Status, WriteFlags, ZeroFlags,
    testing::{Fault, FaultyDevice, Rule, check_device},
};

use super::*;
use crate::{
    Chain, NamedFilter,
    testing::{Reopening, through},
};

const SIZE: u64 = 300_001;

fn bytes() -> Vec<u8> {
    (0..SIZE).map(|at| (at % 251) as u8).collect()
}

fn source() -> Arc<FaultyDevice> {
    Arc::new(FaultyDevice::new(Arc::new(MemoryDevice::from_bytes(
        bytes(),
    ))))
}

/// A source that only takes blocks of 4 KiB, and no more than so many bytes at once.
fn narrow_source(maximum: u32) -> Arc<FaultyDevice> {
    let device = FaultyDevice::new(Arc::new(MemoryDevice::from_bytes(bytes())));
    Arc::new(device.with_info(|info| {
        info.limits.minimum = 4096;
        info.limits.maximum = maximum;
    }))
}

async fn chain(filter: &str, source: Arc<dyn BlockDevice>) -> Chain {
    let filter = NamedFilter::parse(filter.as_ref()).expect(filter);
    Chain::new(&[filter], Arc::new(SingleExport::new(source))).expect("a chain")
}

async fn open(chain: &Chain) -> Arc<dyn BlockDevice> {
    let open = chain.exports().open("", ClientFacts::default()).await;
    open.expect("an export").device
}

async fn write(device: &dyn BlockDevice, offset: u64, bytes: &[u8]) -> Result<()> {
    let write = device.write(offset, Buffer::from(bytes), WriteFlags::empty());
    write.await.map(drop)
}

async fn read(device: &dyn BlockDevice, offset: u64, length: usize) -> Result<Buffer> {
    device.read(offset, Buffer::zeroed(length)).await
}

fn assert_unchanged(source: &FaultyDevice) {
    for operation in [
        Operation::Write,
        Operation::Zero,
        Operation::Trim,
        Operation::Flush,
        Operation::Resize,
        Operation::Copy,
    ] {
        assert_eq!(source.calls(operation), 0, "{operation:?}");
    }
}

#[tokio::test]
async fn whatever_is_done_through_it_the_source_stays_as_it_is() {
    for filter in [
        "cow",
        "cow:store=memory",
        "cow:block-size=512",
        "cow:block-size=64K,store=memory",
        "cow:block-size=1M",
        "cow:on-read=on",
        "cow:block-size=16K,on-read=on,store=memory",
    ] {
        for seed in 0..2 {
            for source in [source(), narrow_source(8192), narrow_source(32 << 20)] {
                let chain = chain(filter, source.clone()).await;
                let device = open(&chain).await;
                check_device(&*device, seed, 120).await;
                check_device(&*open(&chain).await, seed + 100, 120).await;
                assert_unchanged(&source);
                let all = source.read(0, Buffer::zeroed(SIZE as usize)).await;
                assert_eq!(all.expect("read")[..], bytes()[..], "{filter}");
            }
        }
    }
}

#[tokio::test]
async fn all_clients_share_what_was_written_and_it_outlives_them() {
    let chain = chain("cow", source()).await;
    let (one, other) = (open(&chain).await, open(&chain).await);
    assert!(
        one.info()
            .can(Capabilities::MULTI_CONN | Capabilities::WRITE | Capabilities::FUA)
    );
    write(&*one, 5000, b"hello").await.expect("written");
    assert_eq!(read(&*other, 5000, 5).await.expect("read")[..], *b"hello");
    drop((one, other));
    let later = open(&chain).await;
    assert_eq!(read(&*later, 4999, 7).await.expect("read")[1..6], *b"hello");
    let counted = vec![("stored_bytes", 4096)];
    assert_eq!(chain.counters()[0].counts, counted);
}

#[tokio::test]
async fn what_nobody_wrote_to_goes_to_the_source_as_it_is() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), bytes()).expect("written");
    let source = FileDevice::open(file.path(), Access::ReadOnly).expect("opened");
    let device = through(&["cow:block-size=4K"], Arc::new(source)).await;
    let place = |start, end| match device.mapping(ByteRange::between(start, end)) {
        Mapping::File { offset, length, .. } => Some((offset, length)),
        _ => None,
    };
    assert_eq!(place(0, SIZE), Some((0, SIZE)));
    write(&*device, 8192, &[9; 4096]).await.expect("written");
    assert_eq!(place(0, SIZE), Some((0, 8192)));
    assert_eq!(place(20_000, 30_000), Some((20_000, 10_000)));
    let stored = device.mapping(ByteRange::between(8200, 20_000)).to_file();
    let stored = stored.expect("a handle").expect("a file of the overlay");
    assert_eq!(stored.range().len(), 12_288 - 8200);
    let whole = ByteRange::between(0, SIZE);
    let zeroed = ByteRange::between(12_288, 16_384);
    device.zero(zeroed, ZeroFlags::FAST).await.expect("zeroed");
    let Mapping::Zero { length: 4096 } = device.mapping(zeroed) else {
        panic!("it is zero");
    };
    let extents = device.extents(whole, &Context::Allocation).await;
    let extents: Vec<_> = extents.expect("an answer");
    let found = extents.iter().map(|it| (it.range.start(), it.status));
    let expected = [
        (0, Status::DATA),
        (12_288, Status::HOLE_ZERO),
        (16_384, Status::DATA),
    ];
    assert_eq!(found.collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn pipes_are_passed_through_until_something_was_written() {
    let source = FaultyDevice::new(Arc::new(MemoryDevice::from_bytes(bytes()))).piping();
    let device = through(&["cow"], Arc::new(source)).await;
    assert!(device.info().can(Capabilities::SPLICE_READ));
    assert!(!device.info().can(Capabilities::SPLICE_WRITE));
    let pipes = PipePool::new(1 << 16, 2);
    let pipe = || pipes.take().expect("a pipe");
    let payload = device.read_piped(0, 5000, pipe()).await.expect("read");
    let Payload::Piped(buffer) = payload else {
        panic!("nothing was written");
    };
    assert_eq!(buffer.into_memory().expect("read")[..], bytes()[..5000]);
    let mut data = pipe();
    data.put(b"hello").expect("room");
    let written = device.write_piped(4998, data, WriteFlags::empty());
    written.await.expect("written");
    let payload = device.read_piped(0, 5000, pipe()).await.expect("read");
    let Payload::Memory(buffer) = payload else {
        panic!("it comes from two places");
    };
    assert_eq!(buffer[4997..], [bytes()[4997], b'h', b'e']);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_of_parts_of_the_same_blocks_lose_nothing() {
    const WRITERS: u64 = 8;
    for filter in ["cow:block-size=64K", "cow:block-size=4K,store=memory"] {
        let delay = Fault::Delay(Duration::from_millis(1));
        let source = source();
        source.add(Rule::on(Operation::Read).fault(delay));
        let chain = Arc::new(chain(filter, source.clone()).await);
        let mut tasks = Vec::new();
        for writer in 0..WRITERS {
            let chain = Arc::clone(&chain);
            tasks.push(tokio::spawn(async move {
                let device = open(&chain).await;
                // Each has its own bytes, a few in every block.
                for place in (writer..SIZE / 500).step_by(WRITERS as usize) {
                    let at = place * 500;
                    let mine = [writer as u8; 500];
                    if place % 16 == writer {
                        let range = ByteRange::between(at, at + 500);
                        let zeroed = device.zero(range, ZeroFlags::empty());
                        zeroed.await.expect("zeroed");
                    }
                    write(&*device, at, &mine).await.expect("written");
                    let found = read(&*device, at, 500).await.expect("read");
                    assert_eq!(found[..], mine);
                }
            }));
        }
        for task in tasks {
            task.await.expect("no panic");
        }
        let device = open(&chain).await;
        let all = read(&*device, 0, SIZE as usize).await.expect("read");
        for (at, byte) in (0..).zip(&all[..]) {
            let writer = at / 500 % WRITERS;
            let is_written = at < SIZE / 500 * 500;
            let expected = if is_written { writer } else { at % 251 };
            assert_eq!(u64::from(*byte), expected, "{at}");
        }
        assert_unchanged(&source);
    }
}

#[tokio::test]
async fn a_source_that_fails_leaves_blocks_as_they_were() {
    let source = source();
    let device = through(&["cow:block-size=4K"], source.clone()).await;
    let rule = Rule::on(Operation::Read).within(ByteRange::between(8192, 12_288));
    source.add(rule.fault(Fault::Error(ErrorKind::Io)));
    let error = write(&*device, 5000, &[1; 5000]).await;
    let error = error.expect_err("the end of the last block is missing");
    assert_eq!((error.offset(), error.length()), (Some(5000), Some(5000)));
    assert_eq!(
        error.operation(),
        Some(Operation::Read),
        "that is what failed"
    );
    let error = read(&*device, 0, 20_000).await.expect_err("a fault");
    assert_eq!((error.offset(), error.length()), (Some(0), Some(20_000)));
    write(&*device, 8192, &[2; 4096])
        .await
        .expect("a whole block");
    let mut expected = bytes();
    expected[8192..12_288].fill(2);
    let found = read(&*device, 0, 20_000).await.expect("read");
    assert_eq!(found[..], expected[..20_000]);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_given_up_stops_nobody() {
    let source = source();
    source.add(Rule::on(Operation::Read).times(1).fault(Fault::Hang));
    let device = through(&["cow"], source.clone()).await;
    let given_up = write(&*device, 100, b"never");
    let given_up = tokio::time::timeout(Duration::from_secs(1), given_up).await;
    assert!(given_up.is_err());
    write(&*device, 200, b"hello").await.expect("written");
    let mut expected = bytes();
    expected[200..205].copy_from_slice(b"hello");
    let found = read(&*device, 0, 5000).await.expect("read");
    assert_eq!(found[..], expected[..5000]);
}

#[tokio::test]
async fn an_overlay_without_room_fails_the_write_and_nothing_else() {
    let source = source();
    let overlay = Arc::new(Overlay::new(4096, Store::full()));
    let device = CowDevice::new(source.clone(), overlay, &Cow::default());
    let device = Filtered::new(device);
    for (offset, length) in [(100, 10), (0, 4096), (4000, 10_000)] {
        let error = write(&device, offset, &vec![1; length]).await;
        let error = error.expect_err("there is no room");
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!(error.operation(), Some(Operation::Write));
        assert_eq!(error.length(), Some(length as u64));
    }
    let zeroed = ByteRange::between(8192, 12_288);
    device
        .zero(zeroed, ZeroFlags::empty())
        .await
        .expect("no room needed");
    write(&device, 8192, &[1; 10]).await.expect_err("no room");
    let mut expected = bytes();
    expected[8192..12_288].fill(0);
    let found = read(&device, 0, SIZE as usize).await.expect("read");
    assert_eq!(found[..], expected[..]);
    // What cannot be kept is read all the same.
    let keeping = Cow {
        on_read: true,
        ..Cow::default()
    };
    let overlay = Arc::new(Overlay::new(4096, Store::full()));
    let device = Filtered::new(CowDevice::new(source, overlay, &keeping));
    let found = read(&device, 0, SIZE as usize).await.expect("read");
    assert_eq!(found[..], bytes()[..]);
}

#[tokio::test]
async fn what_is_read_or_cached_can_be_kept() {
    for (filter, caches) in [("cow:on-read=on", false), ("cow:on-cache=on", true)] {
        let source = source();
        let device = through(&[filter], source.clone()).await;
        let range = ByteRange::between(5000, 70_000);
        if caches {
            device.cache(range).await.expect("cached");
        } else {
            read(&*device, 5000, 65_000).await.expect("read");
        }
        assert_eq!(source.calls(Operation::Read), 1);
        source.add(Rule::on(Operation::Read).fault(Fault::Error(ErrorKind::Io)));
        let found = read(&*device, 5000, 65_000).await.expect("read");
        assert_eq!(found[..], bytes()[5000..70_000]);
    }
    let source = source();
    let device = through(&["cow"], source.clone()).await;
    device
        .cache(ByteRange::between(0, SIZE))
        .await
        .expect("a hint");
    read(&*device, 0, 10).await.expect("read");
    read(&*device, 0, 10).await.expect("read");
    assert_eq!(source.calls(Operation::Read), 2);
}

#[tokio::test]
async fn a_read_of_many_places_takes_few_calls() {
    let source = source();
    let device = through(&["cow:block-size=4K"], source.clone()).await;
    for block in (0..32).step_by(2) {
        write(&*device, block * 4096, &[1; 4096])
            .await
            .expect("written");
    }
    assert_eq!(
        source.calls(Operation::Read),
        0,
        "whole blocks need no source"
    );
    let found = read(&*device, 0, 200_000).await.expect("read");
    assert_eq!(source.calls(Operation::Read), 1);
    for (at, byte) in found.iter().enumerate() {
        let is_written = at < 32 * 4096 && at / 4096 % 2 == 0;
        assert_eq!(*byte, if is_written { 1 } else { (at % 251) as u8 });
    }
}

#[tokio::test]
async fn the_largest_disk_takes_what_comes() {
    let source = Arc::new(MemoryDevice::new(i64::MAX as u64));
    let device = through(&["cow:store=memory"], source).await;
    let size = device.info().size;
    let whole = ByteRange::between(0, u64::MAX);
    write(&*device, size - 5, b"hello").await.expect("written");
    assert_eq!(
        read(&*device, size - 5, 5).await.expect("read")[..],
        *b"hello"
    );
    device
        .trim(whole, WriteFlags::empty())
        .await
        .expect("trimmed");
    assert_eq!(read(&*device, size - 5, 5).await.expect("read")[..], [0; 5]);
    device.zero(whole, ZeroFlags::FAST).await.expect("zeroed");
    let extents = device.extents(whole, &Context::Allocation).await;
    assert_eq!(extents.expect("an answer").len(), 1);
    for (offset, length) in [(size, 1), (size - 1, 2), (u64::MAX, 1)] {
        let error = read(&*device, offset, length).await.expect_err("outside");
        assert_eq!(error.kind(), ErrorKind::OutOfBounds);
        let error = write(&*device, offset, &vec![0; length]).await;
        assert_eq!(error.expect_err("outside").kind(), ErrorKind::OutOfBounds);
    }
    let allocated = device.zero(whole, ZeroFlags::NO_HOLE).await;
    assert_eq!(
        allocated.expect_err("too much").kind(),
        ErrorKind::Unsupported
    );
    assert!(device.resize(1).await.is_err());
}

#[test]
fn parameters_that_make_no_sense_are_refused() {
    for (text, word) in [
        ("cow:block-size=5000", "power of two"),
        ("cow:block-size=64M", "16M"),
        ("cow:store=memory,dir=/tmp", "store=file"),
        ("cow:store=tape", "file, memory"),
    ] {
        let error = NamedFilter::parse(text.as_ref()).expect_err(text);
        assert!(error.to_string().contains(word), "{error}");
    }
    let no_directory = NamedFilter::parse("cow:dir=/nothing/here".as_ref());
    assert!(no_directory.is_ok(), "it is looked for when it is needed");
}

#[tokio::test]
async fn a_handle_that_is_opened_again_has_the_same_overlay() {
    let source = source();
    let device = through(&["cow"], Arc::new(Reopening::new(source.clone()))).await;
    assert!(device.info().can(Capabilities::REOPEN));
    write(&*device, 5000, b"hello").await.expect("written");
    let again = device.reopen().await.expect("another handle");
    assert_eq!(read(&*again, 5000, 5).await.expect("read")[..], *b"hello");
    write(&*again, 5000, b"world").await.expect("written");
    assert_eq!(read(&*device, 5000, 5).await.expect("read")[..], *b"world");
    assert_unchanged(&source);
    let fixed = through(&["cow"], source).await;
    assert!(!fixed.info().can(Capabilities::REOPEN));
    assert!(fixed.reopen().await.is_err());
}
