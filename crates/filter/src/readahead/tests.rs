use std::time::Duration;

use blockferry_block::{
    Access, ClientFacts, Error, ErrorKind, FileDevice, MemoryDevice, SingleExport,
    testing::{Fault, FaultyDevice, Rule, check_device},
};
use tokio::time::Instant;

use super::*;
use crate::{Chain, NamedFilter};

const MIB: u64 = 1 << 20;
const LATENCY: Duration = Duration::from_millis(10);

fn byte_at(at: u64) -> u8 {
    (at ^ (at >> 9)) as u8
}

fn pattern_of(range: ByteRange) -> Vec<u8> {
    (range.start()..range.end()).map(byte_at).collect()
}

fn pattern(length: u64) -> Vec<u8> {
    pattern_of(ByteRange::between(0, length))
}

/// A source of that many bytes that takes 10 ms for each read.
fn slow(length: u64) -> Arc<FaultyDevice> {
    let memory = Arc::new(MemoryDevice::from_bytes(pattern(length)));
    let delay = Rule::on(Operation::Read).fault(Fault::Delay(LATENCY));
    Arc::new(FaultyDevice::new(memory).with(delay))
}

struct Through {
    chain: Chain,
    device: Arc<dyn BlockDevice>,
}

impl Through {
    async fn new(filter: &str, source: Arc<dyn BlockDevice>) -> Self {
        let filter = NamedFilter::parse(filter.as_ref()).expect("a filter");
        let chain = Chain::new(&[filter], Arc::new(SingleExport::new(source))).expect("a chain");
        let device = Self::open(&chain).await;
        Self { chain, device }
    }

    async fn open(chain: &Chain) -> Arc<dyn BlockDevice> {
        let open = chain.exports().open("", ClientFacts::default()).await;
        open.expect("an export").device
    }

    fn count(&self, name: &str) -> u64 {
        let counters = self.chain.counters();
        let counts = counters.iter().flat_map(|counters| &counters.counts);
        counts
            .filter(|count| count.0 == name)
            .map(|count| count.1)
            .sum()
    }

    async fn read(&self, offset: u64, length: usize) -> Result<Buffer, Error> {
        self.device.read(offset, Buffer::zeroed(length)).await
    }

    /// Reads all of `range` in order and compares it with the pattern.
    async fn read_in_order(&self, range: ByteRange, length: u64) {
        for piece in range.pieces(length) {
            let read = self.read(piece.start(), piece.len() as usize).await;
            assert!(read.expect("read")[..] == pattern_of(piece), "{piece}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_reads_in_order_does_not_wait_for_each_read() {
    let source = slow(16 * MIB + 1000);
    let whole = ByteRange::between(0, 16 * MIB + 1000);
    let plain = SingleExport::new(Arc::clone(&source) as _);
    let plain = plain.open("", ClientFacts::default()).await.expect("open");
    let begin = Instant::now();
    for piece in whole.pieces(65536) {
        let buffer = Buffer::zeroed(piece.len() as usize);
        plain
            .device
            .read(piece.start(), buffer)
            .await
            .expect("read");
    }
    let without = begin.elapsed();

    let through = Through::new("readahead", Arc::clone(&source) as _).await;
    let begin = Instant::now();
    through.read_in_order(whole, 65536).await;
    let with = begin.elapsed();
    assert!(with * 10 < without, "{with:?} against {without:?}");
    assert_eq!(through.count("misses"), 2);
    assert_eq!(through.count("hits"), 257 - 2);
    assert!(through.count("source_calls") < 100);
    assert_eq!(through.count("dropped_bytes"), 0);
}

#[tokio::test(start_paused = true)]
async fn streams_beside_each_other_are_all_recognised() {
    let source = slow(32 * MIB);
    let through = Through::new("readahead", source).await;
    let expected = pattern(32 * MIB);
    let begin = Instant::now();
    for step in 0..64_u64 {
        for stream in 0..8_u64 {
            let at = stream * 4 * MIB + step * 65536;
            let read = through.read(at, 65536).await.expect("read");
            assert!(read[..] == expected[at as usize..][..65536]);
        }
    }
    assert!(through.count("misses") < 24, "{}", through.count("misses"));
    assert!(begin.elapsed() < LATENCY * 512 / 4);
}

#[tokio::test(start_paused = true)]
async fn reads_out_of_order_ask_for_nothing_else() {
    let source = slow(16 * MIB);
    let through = Through::new("readahead", Arc::clone(&source) as _).await;
    for step in 0..200_u64 {
        let at = step * 1583 % 4096 * 4096;
        let read = through.read(at, 4096).await.expect("read");
        assert_eq!(read[0], byte_at(at));
    }
    assert_eq!(source.calls(Operation::Read), 200);
    assert_eq!(through.count("misses"), 200);
}

#[tokio::test(start_paused = true)]
async fn guesses_that_were_wrong_make_it_careful() {
    let source = slow(64 * MIB);
    let through = Through::new("readahead", Arc::clone(&source) as _).await;
    // Two reads in a row, never a third one.
    for step in 0..1000_u64 {
        let at = step * 7919 % 1000 * 65536;
        through.read(at, 4096).await.expect("read");
        through.read(at + 4096, 4096).await.expect("read");
    }
    assert!(through.count("dropped_bytes") > 0);
    let calls = source.calls(Operation::Read);
    assert!(calls < 2300, "{calls}");
}

#[tokio::test(start_paused = true)]
async fn several_reads_of_a_stream_may_be_under_way() {
    let source = slow(32 * MIB);
    let through = Through::new("readahead", Arc::clone(&source) as _).await;
    let pieces: Vec<_> = ByteRange::between(0, 32 * MIB).pieces(65536).collect();
    for group in pieces.chunks(8) {
        // The last comes first.
        let reads = group
            .iter()
            .rev()
            .map(|piece| through.read(piece.start(), 65536));
        for (piece, read) in group
            .iter()
            .rev()
            .zip(try_join_all(reads).await.expect("read"))
        {
            assert_eq!(read[0], byte_at(piece.start()));
        }
    }
    assert!(through.count("misses") < 24, "{}", through.count("misses"));
    assert_eq!(through.count("dropped_bytes"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_read_of_several_pieces_and_of_what_is_missing_is_put_together() {
    let source = slow(8 * MIB);
    let through = Through::new("readahead:request-size=64K", source).await;
    let whole = ByteRange::between(0, 8 * MIB);
    through
        .read_in_order(ByteRange::between(0, 200_000), 50_000)
        .await;
    through.read_in_order(whole, 3 * MIB / 2).await;
    through.read_in_order(whole, 12_345).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_held_and_in_flight_is_bounded() {
    let source = slow(32 * MIB);
    let filter = "readahead:size=512K,request-size=128K,requests=3";
    let through = Through::new(filter, Arc::clone(&source) as _).await;
    for step in 0..100_u64 {
        for stream in 0..20_u64 {
            let at = stream * 3 * MIB / 2 + step * 8192;
            through.read(at, 8192).await.expect("read");
        }
    }
    assert!(source.most_in_flight() <= 4, "{}", source.most_in_flight());
}

#[tokio::test(start_paused = true)]
async fn the_stock_never_holds_more_than_its_size() {
    let source = slow(32 * MIB);
    let options = ReadAhead {
        size: MIB,
        requests: 64,
        request_size: 64 << 10,
    };
    let stock = Arc::new(Stock::new(options, Handle::current()));
    let device = ReadingAhead::new(source, Arc::clone(&stock));
    let mut most = 0;
    for step in 0..2000_u64 {
        // Streams come, go, and skip.
        let stream = step * 7919 % (1 + step / 100);
        let at = stream * MIB + step % 100 * 4096 + (step / 7) % 3 * 8192;
        device.read(at, Buffer::zeroed(4096)).await.expect("read");
        most = most.max(stock.held());
    }
    assert!((MIB / 2..=MIB).contains(&most), "{most}");
    drop(device);
    tokio::time::sleep(LATENCY).await;
    assert_eq!(stock.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_failure_ahead_is_forgotten() {
    let source = slow(8 * MIB);
    let bad = ByteRange::between(MIB, MIB + 1);
    source.heal();
    source.add(
        Rule::on(Operation::Read)
            .within(bad)
            .times(2)
            .fault(Fault::Error(ErrorKind::Io)),
    );
    source.add(Rule::on(Operation::Read).fault(Fault::Delay(LATENCY)));
    let through = Through::new("readahead", Arc::clone(&source) as _).await;
    through
        .read_in_order(ByteRange::between(0, MIB - 65536), 65536)
        .await;
    // One failure was that of the request ahead, which nobody hears of; the other is the client's.
    let failed = through.read(MIB - 65536, 131_072).await;
    let error = failed.expect_err("the source failed");
    assert_eq!(error.kind(), ErrorKind::Io);
    assert_eq!(
        (error.offset(), error.length()),
        (Some(MIB - 65536), Some(131_072))
    );
    through
        .read_in_order(ByteRange::between(MIB - 65536, 8 * MIB), 65536)
        .await;
}

#[tokio::test(start_paused = true)]
async fn nothing_behind_the_end_is_asked_for() {
    let source = slow(MIB + 12_345);
    let end = ByteRange::between(0, MIB + 12_345);
    let through = Through::new("readahead", Arc::clone(&source) as _).await;
    through.read_in_order(end, 65536).await;
    assert_eq!(through.count("dropped_bytes"), 0);
    assert_eq!(through.count("misses"), 2);
    let error = through.read(MIB, 65536).await.expect_err("out of bounds");
    assert_eq!(error.kind(), ErrorKind::OutOfBounds);
    let error = through.read(u64::MAX - 5, 10).await.expect_err("no range");
    assert_eq!(error.kind(), ErrorKind::OutOfBounds);
}

#[tokio::test(start_paused = true)]
async fn the_real_blocks_of_the_source_are_kept_to() {
    let memory = Arc::new(MemoryDevice::from_bytes(pattern(MIB + 100)));
    let source = FaultyDevice::new(memory).with_info(|info| {
        info.limits.minimum = 4096;
        info.limits.maximum = 10_000;
    });
    let through = Through::new("readahead", Arc::new(source)).await;
    let whole = ByteRange::between(0, MIB + 100);
    through.read_in_order(whole, 8192).await;
    assert!(through.count("hits") > 100);
    assert!(through.count("source_calls") >= 128, "8 KiB at a time");
}

/// Something that changes what is about to be read, while it is being asked for.
async fn change(device: &dyn BlockDevice, how: usize, range: ByteRange) -> u8 {
    let none = WriteFlags::empty();
    match how {
        0 => {
            let data = Buffer::from(&vec![0xee; range.len() as usize][..]);
            device
                .write(range.start(), data, none)
                .await
                .expect("written");
            return 0xee;
        }
        1 => device
            .zero(range, ZeroFlags::empty())
            .await
            .expect("zeroed"),
        _ => device.trim(range, none).await.expect("trimmed"),
    }
    0
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_for_before_a_change_is_not_used_after_it() {
    for how in 0..3 {
        for wait in [0, 5, 15] {
            let source = slow(MIB);
            let through = Through::new("readahead", Arc::clone(&source) as _).await;
            through
                .read_in_order(ByteRange::between(0, 65536 * 6), 65536)
                .await;
            tokio::time::sleep(Duration::from_millis(wait)).await;
            // Another client's, on pages so that trimmed ones read as zeroes.
            let other = Through::open(&through.chain).await;
            let range = ByteRange::between(65536 * 7, 65536 * 8);
            let byte = change(&*other, how, range).await;
            let read = through.read(65536 * 6, 3 * 65536).await.expect("read");
            let expected = pattern(MIB);
            assert!(read[..65536] == expected[6 * 65536..7 * 65536]);
            assert!(
                read[65536..131_072].iter().all(|at| *at == byte),
                "{how} {wait}"
            );
            assert!(read[131_072..] == expected[8 * 65536..9 * 65536]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_asked_ahead_while_it_is_changed_nor_after_an_unknown_end() {
    let source = slow(8 * MIB);
    source.add(Rule::on(Operation::Write).times(1).fault(Fault::Hang));
    let through = Through::new("readahead:requests=100", Arc::clone(&source) as _).await;
    let data = Buffer::from(&[0xee; 65536][..]);
    let write = through.device.write(MIB, data, WriteFlags::empty());
    assert!(
        tokio::time::timeout(LATENCY, write).await.is_err(),
        "given up"
    );
    for _ in 0..2 {
        through
            .read_in_order(ByteRange::between(0, MIB), 65536)
            .await;
        let calls = source.calls(Operation::Read);
        // The write may still come: this has to be asked for now.
        through.read(MIB, 65536).await.expect("read");
        assert!(source.calls(Operation::Read) > calls);
    }
    // A failure that was answered is over.
    source.add(Rule::on(Operation::Write).fault(Fault::Error(ErrorKind::NoSpace)));
    let write = through
        .device
        .write(2 * MIB, Buffer::zeroed(65536), WriteFlags::empty());
    assert!(write.await.is_err());
    through
        .read_in_order(ByteRange::between(MIB, 2 * MIB), 65536)
        .await;
    let misses = through.count("misses");
    through.read(2 * MIB, 65536).await.expect("read");
    assert_eq!(through.count("misses"), misses);
}

#[tokio::test(start_paused = true)]
async fn a_new_size_is_respected() {
    let memory = Arc::new(MemoryDevice::from_bytes(pattern(4 * MIB)).growable());
    let delay = Rule::on(Operation::Read).fault(Fault::Delay(LATENCY));
    let source = Arc::new(FaultyDevice::new(memory).with(delay));
    let through = Through::new("readahead", source).await;
    through
        .read_in_order(ByteRange::between(0, MIB), 65536)
        .await;
    through.device.resize(MIB + 65536).await.expect("shrunk");
    through.device.resize(4 * MIB).await.expect("grown");
    through
        .read_in_order(ByteRange::between(MIB, MIB + 65536), 65536)
        .await;
    for at in 17..64 {
        let read = through.read(at * 65536, 65536).await.expect("read");
        assert!(read.iter().all(|byte| *byte == 0));
    }
}

#[tokio::test(start_paused = true)]
async fn it_is_the_same_device() {
    for seed in 0..6 {
        let memory: Arc<dyn BlockDevice> = match seed % 2 {
            0 => Arc::new(MemoryDevice::from_bytes(pattern(700_001))),
            _ => Arc::new(MemoryDevice::new(700_001).growable()),
        };
        let delay = Rule::on_all().fault(Fault::Delay(LATENCY));
        let source = Arc::new(FaultyDevice::new(memory).with(delay));
        let filter = "readahead:size=256K,request-size=32K,requests=4";
        let through = Through::new(filter, source).await;
        check_device(&*through.device, seed, 400).await;
    }
}

/// Each of several clients reads in order and changes a part of its own, and knows what is in it.
#[tokio::test(start_paused = true)]
async fn clients_beside_each_other_never_see_what_was() {
    const PART: u64 = 1 << 20;
    let memory = Arc::new(MemoryDevice::new(6 * PART));
    let source = Arc::new(FaultyDevice::new(memory));
    for (after, milliseconds) in [(0, 3), (1, 11), (2, 5), (5, 17)] {
        let delay = Fault::Delay(Duration::from_millis(milliseconds));
        for operation in [Operation::Read, Operation::Write, Operation::Zero] {
            source.add(Rule::on(operation).after(after * 7).times(400).fault(delay));
        }
    }
    let through = Through::new("readahead:size=4M,request-size=128K", source).await;
    let clients = (0..6_u64).map(|client| {
        let chain = through.chain.clone();
        tokio::spawn(async move {
            let device = Through::open(&chain).await;
            let mut model = vec![0; PART as usize];
            let (mut at, mut random) = (0, client + 1);
            for _ in 0..400_u32 {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let length = 4096 * (1 + (random >> 33) % 12);
                if at + length > PART {
                    at = 0;
                }
                let mut place = client * PART + at;
                match (random >> 50) % 6 {
                    0 => {
                        // Just ahead of the reads, or at once.
                        let skip = (random >> 40) % 8 * 4096;
                        let start = (at + skip).min(PART - length);
                        place = client * PART + start;
                        let data = vec![(random >> 25) as u8; length as usize];
                        model[start as usize..][..data.len()].copy_from_slice(&data);
                        let write =
                            device.write(place, Buffer::from(&data[..]), WriteFlags::empty());
                        write.await.expect("written");
                    }
                    1 => {
                        model[at as usize..][..length as usize].fill(0);
                        let range = ByteRange::between(place, place + length);
                        device
                            .zero(range, ZeroFlags::empty())
                            .await
                            .expect("zeroed");
                    }
                    _ => {
                        let read = device.read(place, Buffer::zeroed(length as usize)).await;
                        let expected = &model[at as usize..][..length as usize];
                        assert!(read.expect("read")[..] == *expected, "{client}: {at}");
                        at += length;
                    }
                }
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.expect("no stale byte");
    }
    assert!(through.count("hits") > 100);
}

#[tokio::test(start_paused = true)]
async fn handles_of_a_source_that_is_not_one_use_their_own() {
    let source = slow(8 * MIB);
    let info = source.info().clone();
    let memory = Arc::new(MemoryDevice::from_bytes(pattern(8 * MIB)));
    let single = FaultyDevice::new(memory).with_info(|own| {
        *own = info;
        own.capabilities -= Capabilities::MULTI_CONN;
    });
    let single = Arc::new(single);
    let through = Through::new("readahead", Arc::clone(&single) as _).await;
    through
        .read_in_order(ByteRange::between(0, MIB), 65536)
        .await;
    tokio::time::sleep(LATENCY).await;
    let other = Through::open(&through.chain).await;
    let calls = single.calls(Operation::Read);
    other.read(MIB, Buffer::zeroed(65536)).await.expect("read");
    assert!(single.calls(Operation::Read) > calls);
}

#[tokio::test(start_paused = true)]
async fn a_handle_that_goes_takes_its_requests_along() {
    let source = slow(8 * MIB);
    let through = Through::new("readahead", Arc::clone(&source) as _).await;
    let other = Through::open(&through.chain).await;
    for at in 0..4 {
        other
            .read(at * 65536, Buffer::zeroed(65536))
            .await
            .expect("read");
    }
    // What it asked for is on its way; this one waits for it and gets it some other way.
    let read = through.read(4 * 65536, 65536);
    let (read, ()) = tokio::join!(read, async { drop(other) });
    assert_eq!(read.expect("read")[..], pattern(MIB)[4 * 65536..5 * 65536]);
    drop(through.device);
    tokio::time::sleep(LATENCY).await;
    assert_eq!(
        Arc::strong_count(&source),
        2,
        "ours, and that of the exports"
    );
}

#[tokio::test]
async fn what_lies_in_a_file_is_passed_through() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), pattern(MIB)).expect("written");
    let device = FileDevice::open(file.path(), Access::ReadWrite).expect("opened");
    let through = Through::new("readahead", Arc::new(device)).await;
    let range = ByteRange::between(4096, MIB);
    assert!(matches!(
        through.device.mapping(range),
        Mapping::File { offset: 4096, .. }
    ));
    through
        .read_in_order(ByteRange::between(0, MIB), 65536)
        .await;
    assert_eq!(through.count("hits") + through.count("misses"), 0);
    check_device(&*through.device, 3, 200).await;
}

#[test]
fn parameters_are_checked() {
    let parse = |text: &str| NamedFilter::parse(text.as_ref());
    assert!(parse("readahead").is_ok());
    assert!(parse("readahead:size=1M,request-size=256K,requests=4").is_ok());
    for wrong in [
        "size=100K",
        "requests=0",
        "request-size=1",
        "request-size=64M",
    ] {
        assert!(parse(&format!("readahead:{wrong}")).is_err(), "{wrong}");
    }
}
