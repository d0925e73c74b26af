use std::{sync::Arc, time::Duration};

use blockferry_block::{
    Buffer, ByteRange, Capabilities, Context, MemoryDevice, Operation, SingleExport, Status,
    WriteFlags, ZeroFlags,
    testing::{Fault, FaultyDevice, Rule, check_device},
};
use futures_util::{FutureExt, future::join_all};

use super::*;
use crate::{
    Chain, NamedFilter,
    testing::{Reopening, refusal, through},
};

const SIZE: u64 = 300_001;
const BLOCK: u64 = 4096;

fn bytes() -> Vec<u8> {
    (0..SIZE).map(|at| (at % 251) as u8).collect()
}

fn source_of(bytes: &[u8]) -> Arc<FaultyDevice> {
    Arc::new(FaultyDevice::new(Arc::new(MemoryDevice::from_bytes(bytes))))
}

fn source() -> Arc<FaultyDevice> {
    source_of(&bytes())
}

/// A source that only takes blocks of 4 KiB, and no more than 8 KiB at once.
fn narrow_source() -> Arc<FaultyDevice> {
    let device = FaultyDevice::new(Arc::new(MemoryDevice::from_bytes(bytes())));
    Arc::new(device.with_info(|info| {
        info.limits.minimum = 4096;
        info.limits.maximum = 8192;
        info.capabilities -= Capabilities::MULTI_CONN | Capabilities::FUA;
    }))
}

fn chain(filter: &str, source: Arc<dyn BlockDevice>) -> Chain {
    let filter = NamedFilter::parse(filter.as_ref()).expect(filter);
    Chain::new(&[filter], Arc::new(SingleExport::new(source))).expect("a chain")
}

async fn open(chain: &Chain) -> Arc<dyn BlockDevice> {
    let open = chain.exports().open("", ClientFacts::default()).await;
    open.expect("an export").device
}

fn count(chain: &Chain, name: &str) -> u64 {
    let counters = chain.counters();
    let counted = counters[0].counts.iter().find(|(known, _)| *known == name);
    counted.expect(name).1
}

async fn write(device: &dyn BlockDevice, offset: u64, bytes: &[u8]) -> Result<()> {
    let write = device.write(offset, Buffer::from(bytes), WriteFlags::empty());
    write.await.map(drop)
}

async fn read(device: &dyn BlockDevice, offset: u64, length: usize) -> Result<Buffer> {
    device.read(offset, Buffer::zeroed(length)).await
}

async fn all(device: &dyn BlockDevice) -> Buffer {
    let minimum = device.info().limits.minimum.max(1);
    let mut all = Buffer::zeroed(SIZE as usize);
    for piece in ByteRange::between(0, SIZE).pieces(8192.max(minimum.into())) {
        let read = read(device, piece.start(), piece.len() as usize).await;
        let place = piece.start() as usize..piece.end() as usize;
        all[place].copy_from_slice(&read.expect("read"));
    }
    all
}

const MODES: [&str; 3] = ["writethrough", "writeback", "unsafe"];

#[tokio::test]
async fn a_cache_of_any_kind_shows_what_was_written() {
    for mode in MODES {
        for (store, on_read, size) in [
            ("memory", "on", "8K"),
            ("memory", "off", "16K"),
            ("file", "on", "16K"),
            ("file", "off", "12K"),
            ("memory", "on", "2M"),
        ] {
            let filter = format!(
                "cache:block-size=4K,size={size},mode={mode},on-read={on_read},store={store}"
            );
            for seed in 0..2 {
                for source in [source(), narrow_source()] {
                    let chain = chain(&filter, source.clone());
                    let device = open(&chain).await;
                    check_device(&*device, seed, 80).await;
                    drop(device);
                    let device = open(&chain).await;
                    check_device(&*device, seed + 100, 40).await;
                    let seen = all(&*device).await;
                    drop(device);
                    chain.exports().close().await;
                    assert!(all(&*source).await[..] == seen[..], "{filter}");
                }
            }
        }
    }
}

#[tokio::test]
async fn large_blocks_at_the_end_of_a_device_are_as_long_as_it_is() {
    for mode in MODES {
        let filter = format!("cache:block-size=128K,size=256K,mode={mode}");
        for seed in 0..3 {
            check_device(&*through(&[&filter], source()).await, seed, 300).await;
        }
    }
}

#[tokio::test]
async fn zeroing_or_trimming_the_end_of_a_device_keeps_the_rest_of_its_last_block() {
    let last = (SIZE - 1) / 16384 * 16384;
    let end = ByteRange::between(last + 100, SIZE);
    assert!(end.len() > 100, "the last block has an end");
    for mode in MODES {
        let filter = format!("cache:block-size=16K,size=256K,mode={mode}");
        let device = through(&[&filter], source()).await;
        let written = write(&*device, last, &vec![7; (SIZE - last) as usize]).await;
        written.expect("written");
        device.zero(end, ZeroFlags::empty()).await.expect("zeroed");
        device
            .trim(end, WriteFlags::empty())
            .await
            .expect("trimmed");
        let kept = read(&*device, last, 100).await.expect("read");
        assert!(kept.iter().all(|byte| *byte == 7), "{mode}");
    }
}

/// SplitMix64, for threads that do something different each.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let state = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (state ^ (state >> 31)) % bound
    }
}

/// One client with its own runtime: it owns every eighth piece of 500 bytes, and writes over anything in the last
/// part of the disk, as everyone does.
async fn client(device: &dyn BlockDevice, number: u64) -> Vec<(u64, u8)> {
    let mut random = Random(number);
    let mut mine: Vec<_> = (number..400)
        .step_by(8)
        .map(|place| (place * 500, None))
        .collect();
    for step in 0..150_u64 {
        let which = random.below(mine.len() as u64) as usize;
        let (at, value) = mine[which];
        match random.below(9) {
            0..=2 => {
                let value = (step % 255) as u8 + 1;
                write(device, at, &[value; 500]).await.expect("written");
                mine[which].1 = Some(value);
            }
            3 => {
                let range = ByteRange::between(at, at + 500);
                device
                    .zero(range, ZeroFlags::empty())
                    .await
                    .expect("zeroed");
                mine[which].1 = Some(0);
            }
            4 => {
                let start = 200_000 + random.below(60_000);
                let data = vec![number as u8; random.below(20_000) as usize];
                write(device, start, &data).await.expect("written");
            }
            5 => {
                let start = 200_000 + random.below(60_000);
                let range = ByteRange::between(start, start + random.below(20_000));
                device
                    .trim(range, WriteFlags::empty())
                    .await
                    .expect("trimmed");
            }
            6 => device.flush().await.expect("flushed"),
            7 => {
                let start = random.below(250_000);
                let read = read(device, start, random.below(50_000) as usize);
                // Given up in the middle, sometimes.
                let _ = tokio::time::timeout(Duration::from_micros(random.below(500)), read).await;
            }
            _ => {
                let read = read(device, at, 500).await.expect("read");
                let value = value.map(|value| vec![value; 500]);
                let fresh = bytes()[at as usize..][..500].to_vec();
                assert!(
                    read[..] == value.unwrap_or(fresh),
                    "client {number}, step {step}, {at}"
                );
            }
        }
    }
    mine.into_iter()
        .filter_map(|(at, value)| Some((at, value?)))
        .collect()
}

#[test]
fn clients_in_threads_of_their_own_see_what_they_wrote_and_the_source_gets_it() {
    let settings = [
        "mode=writeback,size=16K",
        "mode=writeback,size=40K,store=file",
        "mode=writeback,size=8K,on-read=off",
        "mode=writethrough,size=16K",
        "mode=writethrough,size=2M,store=file",
        "mode=unsafe,size=32K",
    ];
    for settings in settings {
        let source = source();
        for operation in [Operation::Read, Operation::Write] {
            let delay = Fault::Delay(Duration::from_micros(100));
            source.add(Rule::on(operation).fault(delay));
        }
        let chain = Arc::new(chain(
            &format!("cache:block-size=4K,{settings}"),
            source.clone(),
        ));
        let runtime = || {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            builder.enable_time().build().expect("a runtime")
        };
        let threads: Vec<_> = (0..8)
            .map(|number| {
                let chain = Arc::clone(&chain);
                std::thread::spawn(move || {
                    runtime().block_on(async { client(&*open(&chain).await, number).await })
                })
            })
            .collect();
        let written: Vec<_> = threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("no panic"))
            .collect();
        runtime().block_on(async {
            let device = open(&chain).await;
            let seen = all(&*device).await;
            drop(device);
            chain.exports().close().await;
            let device = open(&chain).await;
            device.flush().await.expect("flushed");
            let stored = all(&*source).await;
            assert!(stored[..] == seen[..], "{settings}");
            for (at, value) in written {
                assert_eq!(
                    stored[at as usize..][..500],
                    [value; 500],
                    "{settings}, {at}"
                );
            }
        });
    }
}

#[tokio::test]
async fn what_a_flush_could_not_write_is_kept_and_written_by_the_next() {
    let source = source();
    let device = through(
        &["cache:block-size=4K,size=64K,mode=writeback"],
        source.clone(),
    )
    .await;
    let failing = || Rule::on(Operation::Write).fault(Fault::Error(ErrorKind::Io));
    let mut expected = bytes();
    for at in [5000, 9000, 20_000] {
        write(&*device, at, b"hello").await.expect("written");
        expected[at as usize..][..5].copy_from_slice(b"hello");
    }
    assert_eq!(source.calls(Operation::Write), 0);
    source.add(failing().within(ByteRange::between(8192, 12_288)));
    device.flush().await.expect_err("a block fails");
    assert!(all(&*device).await[..] == expected[..]);
    assert_eq!(
        all(&*source).await[20_000..20_005],
        *b"hello",
        "others were written"
    );
    source.heal();
    source.add(
        Rule::on(Operation::Flush)
            .times(1)
            .fault(Fault::Error(ErrorKind::Io)),
    );
    device.flush().await.expect_err("the source's flush");
    device.flush().await.expect("all is well");
    assert!(all(&*source).await[..] == expected[..]);
    let writes = source.calls(Operation::Write);
    device.flush().await.expect("nothing to do");
    assert_eq!(source.calls(Operation::Write), writes);
}

#[tokio::test]
async fn what_was_there_at_a_flush_that_succeeded_is_with_the_source() {
    for seed in 0..16 {
        let source = source();
        let filter = "cache:block-size=4K,size=20K,mode=writeback";
        let device = through(&[filter], source.clone()).await;
        let (mut random, mut model) = (Random(seed), bytes());
        // Where a write failed, nobody knows what is there.
        let mut unknown = vec![false; SIZE as usize];
        for step in 0..150_u64 {
            source.heal();
            if random.below(3) == 0 {
                let rule = Rule::on(Operation::Write).after(random.below(3));
                source.add(
                    rule.times(1 + random.below(4))
                        .fault(Fault::Error(ErrorKind::Io)),
                );
            }
            let start = random.below(60_000);
            let data = vec![step as u8; 1 + random.below(9000) as usize];
            let place = start as usize..start as usize + data.len();
            let is_written = write(&*device, start, &data).await.is_ok();
            model[place.clone()].copy_from_slice(&data);
            unknown[place].fill(!is_written);
            if random.below(5) == 0 && device.flush().await.is_ok() {
                let stored = all(&*source).await;
                for at in 0..SIZE as usize {
                    assert!(
                        stored[at] == model[at] || unknown[at],
                        "seed {seed}, step {step}, {at}"
                    );
                }
            }
        }
        source.heal();
        device.flush().await.expect("healed");
        assert!(all(&*source).await[..] == all(&*device).await[..]);
    }
}

#[tokio::test(start_paused = true)]
async fn many_that_miss_a_block_cause_one_read_and_neighbours_are_read_at_once() {
    let source = source_of(&[7; 2 << 20]);
    source.add(Rule::on(Operation::Read).fault(Fault::Delay(Duration::from_millis(10))));
    let chain = chain("cache:size=4M", source.clone());
    let devices = join_all((0..8).map(|_| open(&chain))).await;
    let reads = devices
        .iter()
        .enumerate()
        .map(|(at, device)| read(&**device, at as u64 * 4096, 4096));
    for read in join_all(reads).await {
        assert_eq!(read.expect("read")[..], [7; 4096]);
    }
    assert_eq!(source.calls(Operation::Read), 1);
    read(&*devices[0], 1 << 20, 1 << 20).await.expect("read");
    assert_eq!(source.calls(Operation::Read), 2, "16 blocks are one read");
    assert_eq!(
        (count(&chain, "source_reads"), count(&chain, "misses")),
        (2, 8 + 16)
    );
    // From here on nothing is waited for, not even for a turn.
    source.add(Rule::on_all().fault(Fault::Hang));
    let hit = read(&*devices[1], (1 << 20) + 5000, 100_000).now_or_never();
    assert_eq!(
        hit.expect("at the first poll").expect("read").len(),
        100_000
    );
    assert_eq!(count(&chain, "hits"), 2);
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_a_read_leaves_it_to_the_next() {
    let source = source();
    source.add(Rule::on(Operation::Read).times(1).fault(Fault::Hang));
    let device = through(&["cache:block-size=4K,size=8K"], source.clone()).await;
    let soon = Duration::from_secs(1);
    let (given_up, next) = tokio::join!(
        tokio::time::timeout(soon, read(&*device, 0, 10)),
        tokio::time::timeout(3 * soon, read(&*device, 5, 10)),
    );
    assert!(given_up.is_err());
    assert_eq!(next.expect("in time").expect("read")[..], bytes()[5..15]);
    for at in 0..20 {
        let found = read(&*device, at * BLOCK, 4096)
            .await
            .expect("no slot was lost");
        assert_eq!(found[..], bytes()[(at * BLOCK) as usize..][..4096]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_given_up_leaves_nothing_old() {
    let source = source();
    let filter = "cache:block-size=4K,size=64K";
    let device = through(&[filter], source.clone()).await;
    read(&*device, 0, 8192).await.expect("read");
    source.add(Rule::on(Operation::Write).times(1).fault(Fault::Hang));
    let given_up = tokio::time::timeout(Duration::from_secs(1), write(&*device, 100, b"late"));
    assert!(given_up.await.is_err());
    // It comes after all.
    source
        .write(100, Buffer::from(&b"late"[..]), WriteFlags::empty())
        .await
        .expect("written");
    assert_eq!(read(&*device, 100, 4).await.expect("read")[..], *b"late");
    source.add(
        Rule::on(Operation::Write)
            .times(1)
            .fault(Fault::Error(ErrorKind::NoSpace)),
    );
    let error = write(&*device, 50, &[1; 5000]).await.expect_err("a fault");
    assert_eq!((error.offset(), error.length()), (Some(50), Some(5000)));
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    let reads = source.calls(Operation::Read);
    read(&*device, 50, 5000).await.expect("read");
    assert_eq!(
        source.calls(Operation::Read),
        reads + 1,
        "what may be wrong is not kept"
    );
}

#[tokio::test(start_paused = true)]
async fn a_write_that_fails_in_one_block_gives_up_no_write_to_the_source() {
    let source = source();
    let device = through(
        &["cache:block-size=4K,size=16K,mode=writeback"],
        source.clone(),
    )
    .await;
    // Of another megabyte than what is written next, so that room has to be made of them.
    for block in 0..4 {
        let written = write(&*device, (40 + block) * BLOCK, &[1; 4096]).await;
        written.expect("written");
    }
    let unreadable = ByteRange::between(BLOCK, 2 * BLOCK);
    source.add(
        Rule::on(Operation::Read)
            .within(unreadable)
            .fault(Fault::Error(ErrorKind::Io)),
    );
    let slow = Fault::Delay(Duration::from_secs(1));
    source.add(Rule::on(Operation::Write).fault(slow));
    // The rest of block 1 cannot be read, and block 0 needs room.
    let failed = write(&*device, 0, &[2; 5000]).await;
    assert_eq!(failed.expect_err("a fault").kind(), ErrorKind::Io);
    let written = read(&*source, 40 * BLOCK, 4096).await.expect("read");
    assert!(
        written.iter().all(|byte| *byte == 1),
        "what was begun was not given up"
    );
}

#[tokio::test]
async fn a_fault_in_the_rest_of_a_block_fails_no_read_beside_it() {
    let source = source();
    let bad = ByteRange::between(70_000, 70_512);
    source.add(
        Rule::on(Operation::Read)
            .within(bad)
            .fault(Fault::Error(ErrorKind::Io)),
    );
    let device = through(&["cache:block-size=64K,size=256K"], source.clone()).await;
    let found = read(&*device, 65_536, 4096).await.expect("readable");
    assert_eq!(found[..], bytes()[65_536..69_632]);
    let found = read(&*device, 60_000, 10_000).await.expect("readable");
    assert_eq!(found[..], bytes()[60_000..70_000]);
    let error = read(&*device, 69_999, 10).await.expect_err("a fault");
    assert_eq!((error.offset(), error.length()), (Some(69_999), Some(10)));
}

#[tokio::test]
async fn a_read_that_fails_keeps_nothing() {
    let source = source();
    let device = through(&["cache:block-size=4K,size=64K"], source.clone()).await;
    source.add(
        Rule::on(Operation::Read)
            .times(2)
            .fault(Fault::Error(ErrorKind::Io)),
    );
    let error = read(&*device, 1000, 20_000).await.expect_err("a fault");
    assert_eq!((error.offset(), error.length()), (Some(1000), Some(20_000)));
    assert_eq!(
        read(&*device, 1000, 20_000).await.expect("read")[..],
        bytes()[1000..21_000]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn there_are_never_more_blocks_than_allowed() {
    for dirty in [false, true] {
        let source = source();
        let delay = Fault::Delay(Duration::from_micros(200));
        source.add(Rule::on(Operation::Read).fault(delay));
        let store = Store::new(&StorePlace::Memory, BLOCK).expect("a store");
        let blocks = Blocks::new(BLOCK, 3, store);
        let engine = Arc::new(Engine::new(BLOCK, 3, CacheMode::WriteBack, true, blocks));
        let device = CacheDevice::new(source, Arc::clone(&engine), BLOCK, CacheMode::WriteBack);
        let device = Arc::new(Filtered::new(device.expect("a device")));
        let tasks = (0..32).map(|task: u64| {
            let (device, engine) = (Arc::clone(&device), Arc::clone(&engine));
            tokio::spawn(async move {
                for step in 0..8 {
                    let at = (task * 37 + step * 11) % 60 * BLOCK;
                    if dirty && step % 3 == 0 {
                        write(&*device, at, &bytes()[at as usize..][..4096])
                            .await
                            .expect("written");
                    }
                    let found = read(&*device, at, 9000).await.expect("read");
                    assert_eq!(found[..], bytes()[at as usize..][..9000]);
                    assert!(engine.blocks.count() <= 3);
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.expect("no panic");
        }
    }
}

#[tokio::test]
async fn extents_of_what_is_only_here_are_data() {
    let source = Arc::new(MemoryDevice::new(1 << 20));
    let filter = "cache:block-size=4K,size=64K,mode=writeback";
    let device = through(&[filter], source.clone()).await;
    write(&*device, 4096, &[1; 8192]).await.expect("written");
    write(&*device, 40_960, &[1; 4096]).await.expect("written");
    for (start, end) in [(0, 1 << 20), (5000, 6000), (8000, 41_000), (45_056, 50_000)] {
        let asked = ByteRange::between(start, end);
        let extents = device.extents(asked, &Context::Allocation).await;
        let mut at = start;
        for extent in extents.expect("an answer") {
            assert_eq!(extent.range.start(), at);
            at = extent.range.end();
            let middle = extent.range.start();
            let is_written = (4096..12_288).contains(&middle) || (40_960..45_056).contains(&middle);
            assert_eq!(
                extent.status == Status::DATA,
                is_written,
                "{asked}: {extent:?}"
            );
        }
        assert_eq!(at, end);
    }
    let other = device
        .extents(ByteRange::between(0, 1), &Context::AllocationDepth)
        .await;
    assert_eq!(
        other.expect_err("the source has none").kind(),
        ErrorKind::Unsupported
    );
}

#[tokio::test]
async fn only_what_clients_ask_for_is_kept_unless_reads_are() {
    let source = source();
    let chain = chain("cache:block-size=4K,size=64K,on-read=off", source.clone());
    let device = open(&chain).await;
    for _ in 0..2 {
        read(&*device, 0, 8192).await.expect("read");
    }
    assert_eq!(source.calls(Operation::Read), 2);
    assert!(device.info().can(Capabilities::CACHE));
    device
        .cache(ByteRange::between(5000, 10_000))
        .await
        .expect("cached");
    let reads = source.calls(Operation::Read);
    read(&*device, 4096, 8192).await.expect("read");
    assert_eq!(source.calls(Operation::Read), reads);
    // A wish for more than there is room for pushes out no more than half.
    device
        .cache(ByteRange::between(0, SIZE))
        .await
        .expect("cached");
    assert_eq!(count(&chain, "source_reads"), source.calls(Operation::Read));
    assert!(count(&chain, "source_reads") <= reads + 2);
}

#[tokio::test]
async fn a_durable_write_goes_through_and_a_flush_only_promises_what_it_keeps() {
    let source = source();
    let device = through(
        &["cache:mode=writeback,block-size=4K,size=64K"],
        source.clone(),
    )
    .await;
    write(&*device, 0, b"kept").await.expect("written");
    let durable = device.write(4, Buffer::from(&b"through"[..]), WriteFlags::FUA);
    durable.await.expect("written");
    assert_eq!(read(&*source, 0, 11).await.expect("read")[4..], *b"through");
    assert_eq!(
        read(&*device, 0, 11).await.expect("read")[..],
        *b"keptthrough"
    );
    device.flush().await.expect("flushed");
    assert_eq!(
        read(&*source, 0, 11).await.expect("read")[..],
        *b"keptthrough"
    );

    let chain = chain("cache:mode=unsafe,block-size=4K,size=64K", source.clone());
    let device = open(&chain).await;
    let durable = device.write(0, Buffer::from(&b"late"[..]), WriteFlags::FUA);
    durable.await.expect("written");
    device.flush().await.expect("a lie");
    assert_eq!(read(&*source, 0, 4).await.expect("read")[..], *b"kept");
    drop(device);
    assert_eq!(
        read(&*open(&chain).await, 0, 4).await.expect("read")[..],
        *b"late"
    );
    chain.exports().close().await;
    assert_eq!(read(&*source, 0, 4).await.expect("read")[..], *b"late");
}

#[tokio::test]
async fn a_store_without_room_makes_everything_go_to_the_source() {
    let source = source();
    let blocks = Blocks::new(BLOCK, 16, Store::full());
    let engine = Arc::new(Engine::new(BLOCK, 16, CacheMode::WriteBack, true, blocks));
    let device = CacheDevice::new(source.clone(), engine, BLOCK, CacheMode::WriteBack);
    let device = Filtered::new(device.expect("a device"));
    check_device(&device, 1, 300).await;
    assert!(all(&device).await[..] == all(&*source).await[..]);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    for (text, word) in [
        ("cache:block-size=5000", "power of two"),
        ("cache:block-size=2K", "4K"),
        ("cache:size=100K", "two blocks"),
        ("cache:size=7E", "64Mi"),
        ("cache:dir=/tmp", "store=file"),
        ("cache:mode=fast", "writethrough"),
    ] {
        let error = NamedFilter::parse(text.as_ref()).expect_err(text);
        assert!(error.to_string().contains(word), "{error}");
    }
    let coarse = FaultyDevice::new(Arc::new(MemoryDevice::new(1 << 20)));
    let coarse = coarse.with_info(|info| info.limits.minimum = 8192);
    let error = refusal(&["cache:block-size=4K"], Arc::new(coarse)).await;
    assert!(error.to_string().contains("8192"), "{error}");
    let device = through(&["cache"], source()).await;
    for (offset, length) in [(SIZE, 1), (SIZE - 1, 2), (u64::MAX, 1)] {
        let error = read(&*device, offset, length).await.expect_err("outside");
        assert_eq!(
            (error.kind(), error.offset()),
            (ErrorKind::OutOfBounds, Some(offset))
        );
        let error = write(&*device, offset, &vec![0; length])
            .await
            .expect_err("outside");
        assert_eq!(
            (error.kind(), error.offset()),
            (ErrorKind::OutOfBounds, Some(offset))
        );
    }
    assert!(device.resize(1).await.is_err());
}

#[tokio::test]
async fn the_largest_disk_can_be_zeroed_and_read_at_its_end() {
    let source = Arc::new(MemoryDevice::new(i64::MAX as u64));
    let device = through(&["cache:mode=writeback"], source).await;
    let size = device.info().size;
    write(&*device, size - 5, b"hello").await.expect("written");
    assert_eq!(
        read(&*device, size - 5, 5).await.expect("read")[..],
        *b"hello"
    );
    device.flush().await.expect("flushed");
    let whole = ByteRange::between(0, u64::MAX);
    device.zero(whole, ZeroFlags::FAST).await.expect("zeroed");
    assert_eq!(read(&*device, size - 5, 5).await.expect("read")[..], [0; 5]);
    device
        .trim(whole, WriteFlags::empty())
        .await
        .expect("trimmed");
    device.cache(whole).await.expect("a hint");
}

#[tokio::test]
async fn a_handle_that_is_opened_again_has_the_same_cache() {
    let source = source();
    let below = Arc::new(Reopening::new(source.clone()));
    let device = through(&["cache:mode=writeback,block-size=4K,size=64K"], below).await;
    write(&*device, 5000, b"hello").await.expect("written");
    let again = device.reopen().await.expect("another handle");
    assert_eq!(read(&*again, 5000, 5).await.expect("read")[..], *b"hello");
    drop(device);
    again.flush().await.expect("flushed");
    assert_eq!(read(&*source, 5000, 5).await.expect("read")[..], *b"hello");
}

#[tokio::test]
async fn where_connections_know_nothing_of_each_other_what_goes_for_others_is_durable() {
    let source = narrow_source();
    let chain = chain("cache:mode=writeback,block-size=4K,size=8K", source.clone());
    let (writer, reader) = (open(&chain).await, open(&chain).await);
    assert!(!writer.info().can(Capabilities::MULTI_CONN));
    for at in [0, 8192] {
        write(&*writer, at, &[9; 4096]).await.expect("written");
    }
    assert_eq!(source.calls(Operation::Write), 0);
    read(&*reader, 16_384, 4096).await.expect("read");
    assert!(source.calls(Operation::Write) > 0, "there was no room");
    assert!(
        source.calls(Operation::Flush) > 0,
        "nobody else could make it durable"
    );
}
