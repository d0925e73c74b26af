use std::{fs, path::Path};

use blockferry_block::{
    Access, ByteRange, ClientFacts, Context, ErrorKind, FileDevice, Mapping, MemoryDevice,
    Operation, SingleExport, ZeroFlags,
    testing::{Fault, FaultyDevice, Rule, check_device},
};
use futures_util::future::join_all;
use tokio::time::timeout;

use super::*;
use crate::{Chain, NamedFilter, testing::through};

const MIB: u64 = 1 << 20;

fn memory() -> Arc<dyn BlockDevice> {
    Arc::new(MemoryDevice::new(64 * MIB))
}

async fn open(filter: NamedFilter, source: Arc<dyn BlockDevice>) -> [Arc<dyn BlockDevice>; 2] {
    let chain = Chain::new(&[filter], Arc::new(SingleExport::new(source))).expect("a chain");
    let exports = chain.exports();
    let open = || exports.open("", ClientFacts::default());
    let (one, other) = (open().await.expect("open"), open().await.expect("open"));
    [one.device, other.device]
}

async fn read(device: &dyn BlockDevice, length: u64) {
    let buffer = Buffer::zeroed(length as usize);
    device.read(0, buffer).await.expect("read");
}

async fn write(device: &dyn BlockDevice, length: u64) {
    let data = Buffer::zeroed(length as usize);
    device
        .write(0, data, WriteFlags::empty())
        .await
        .expect("written");
}

/// How many seconds it takes to read that much in short pieces.
async fn seconds_to_read(device: &dyn BlockDevice, length: u64) -> f64 {
    let begin = Instant::now();
    for _ in 0..length / 65536 {
        read(device, 65536).await;
    }
    begin.elapsed().as_secs_f64()
}

#[tokio::test(start_paused = true)]
async fn so_many_bytes_go_a_second_each_way() {
    for (filter, reads, writes) in [
        ("rate:1M", 10.0, 10.0),
        ("rate:rate=1M,write=2M", 10.0, 5.0),
        ("rate:read=512K", 20.0, 0.0),
        ("rate:connection-rate=2M", 5.0, 5.0),
        ("rate:0", 0.0, 0.0),
    ] {
        let device = through(&[filter], memory()).await;
        let near =
            |seconds: f64, expected: f64| (expected - 0.5..=expected + 0.01).contains(&seconds);
        let seconds = seconds_to_read(&*device, 10 * MIB).await;
        assert!(near(seconds, reads), "{filter}: {seconds}");
        let begin = Instant::now();
        for _ in 0..160 {
            write(&*device, 65536).await;
        }
        let seconds = begin.elapsed().as_secs_f64();
        assert!(near(seconds, writes), "{filter}: {seconds}");
    }
}

#[tokio::test(start_paused = true)]
async fn connections_share_what_is_the_exports() {
    for (filter, expected) in [("rate:1M", 20.0), ("rate:connection-rate=1M", 10.0)] {
        let filter = NamedFilter::parse(filter.as_ref()).expect("a filter");
        let [one, other] = open(filter, memory()).await;
        let (one, other) = tokio::join!(
            seconds_to_read(&*one, 10 * MIB),
            seconds_to_read(&*other, 10 * MIB)
        );
        // Nobody is kept waiting for the other.
        assert!((one - other).abs() < 0.5, "{one} {other}");
        assert!(
            (expected - 0.5..=expected + 0.01).contains(&one.max(other)),
            "{one}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_request_is_paid_for_by_those_behind_it() {
    let device = through(&["rate:1M"], memory()).await;
    let begin = Instant::now();
    read(&*device, 8 * MIB).await;
    assert_eq!(begin.elapsed(), Duration::ZERO);
    // What moves no data waits for nothing.
    let range = ByteRange::between(0, 32 * MIB);
    device
        .zero(range, ZeroFlags::empty())
        .await
        .expect("zeroed");
    device
        .trim(range, WriteFlags::empty())
        .await
        .expect("trimmed");
    device
        .extents(range, &Context::Allocation)
        .await
        .expect("an answer");
    device.cache(range).await.expect("cached");
    device.flush().await.expect("flushed");
    read(&*device, 0).await;
    write(&*device, 1).await;
    assert_eq!(begin.elapsed(), Duration::ZERO);
    read(&*device, 1).await;
    assert_eq!(begin.elapsed().as_secs(), 8);
}

#[tokio::test(start_paused = true)]
async fn requests_go_in_the_order_in_which_they_came() {
    let device = through(&["rate:1M"], memory()).await;
    read(&*device, MIB).await;
    let order = Mutex::new(Vec::new());
    let reads = (0..20_usize).map(|index| {
        let (device, order) = (&device, &order);
        async move {
            read(&**device, if index % 3 == 0 { MIB } else { 512 }).await;
            order.lock().expect("a lock").push(index);
        }
    });
    join_all(reads).await;
    assert_eq!(
        order.into_inner().expect("a lock"),
        (0..20).collect::<Vec<_>>()
    );
}

#[tokio::test(start_paused = true)]
async fn whoever_gives_up_leaves_the_turn_to_the_next() {
    let device = through(&["rate:1M"], memory()).await;
    read(&*device, 4 * MIB).await;
    let begin = Instant::now();
    let (given_up, ()) = tokio::join!(
        timeout(Duration::from_secs(1), read(&*device, 32 * MIB)),
        read(&*device, 512)
    );
    assert!(given_up.is_err());
    assert_eq!(
        begin.elapsed().as_secs(),
        4,
        "nothing is paid for what was not read"
    );
}

#[tokio::test(start_paused = true)]
async fn a_source_that_hangs_or_fails_holds_up_nobody_else() {
    let source = FaultyDevice::new(memory())
        .with(Rule::on(Operation::Read).times(1).fault(Fault::Hang))
        .with(
            Rule::on(Operation::Read)
                .times(1)
                .fault(Fault::Error(ErrorKind::Io)),
        );
    let device = through(&["rate:1M"], Arc::new(source)).await;
    let hanging = timeout(Duration::from_secs(60), read(&*device, 512));
    let others = async {
        let failed = device
            .read(4096, Buffer::zeroed(512))
            .await
            .expect_err("a fault");
        assert_eq!((failed.offset(), failed.length()), (Some(4096), Some(512)));
        let begin = Instant::now();
        read(&*device, 512).await;
        assert!(begin.elapsed() < Duration::from_secs(1));
    };
    assert!(tokio::join!(hanging, others).0.is_err());
}

fn say(path: &Path, text: &str) {
    fs::write(path, text).expect("written");
}

#[tokio::test(start_paused = true)]
async fn a_file_says_how_fast_while_it_runs() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("rate");
    let filter = format!("rate:1M,file={}", path.display());
    let device = through(&[&filter], memory()).await;
    let near = |seconds: f64, expected: f64| (expected - 1.1..=expected + 1.1).contains(&seconds);
    for (text, expected) in [
        (None, 10.0),
        (Some("5M\n"), 2.0),
        (Some("512K"), 20.0),
        (Some("fast"), 10.0),
        (Some("0"), 0.0),
    ] {
        if let Some(text) = text {
            say(&path, text);
        }
        tokio::time::sleep(LOOK).await;
        let seconds = seconds_to_read(&*device, 10 * MIB).await;
        assert!(near(seconds, expected), "{text:?}: {seconds}");
    }
    // Who waits hears of it, too.
    say(&path, "1K");
    // What is still owed is paid at that rate.
    tokio::time::sleep(LOOK * 100).await;
    let begin = Instant::now();
    read(&*device, MIB).await;
    let change = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        say(&path, "1G");
    };
    tokio::join!(read(&*device, 512), change);
    assert!(
        begin.elapsed() < Duration::from_secs(12),
        "{:?}",
        begin.elapsed()
    );
    fs::remove_file(&path).expect("removed");
    tokio::time::sleep(LOOK).await;
    let seconds = seconds_to_read(&*device, 10 * MIB).await;
    assert!(near(seconds, 10.0), "{seconds}");
}

#[tokio::test(start_paused = true)]
async fn rates_can_be_in_bits_and_pauses_be_made_up_for() {
    let options = RateLimit {
        connection: Rates {
            read: Some(8 * MIB),
            ..Rates::default()
        },
        burst: Duration::from_secs(4),
        unit: RateUnit::Bits,
        ..RateLimit::default()
    };
    let [one, _] = open(NamedFilter::new(options), memory()).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let seconds = seconds_to_read(&*one, 10 * MIB).await;
    assert!((5.5..=6.01).contains(&seconds), "{seconds}");
}

#[tokio::test]
async fn nothing_goes_around_it() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), [1; 200_000]).expect("written");
    let source = FileDevice::open(file.path(), Access::ReadWrite).expect("opened");
    let device = through(&["rate:1G"], Arc::new(source)).await;
    assert!(matches!(
        device.mapping(ByteRange::between(0, 8192)),
        Mapping::Opaque
    ));
    let around = Capabilities::COPY_FROM | Capabilities::SPLICE_READ | Capabilities::SPLICE_WRITE;
    assert!(!device.info().capabilities.intersects(around));
    check_device(&*device, 5, 200).await;
    let error = device
        .read(u64::MAX, Buffer::zeroed(1))
        .await
        .expect_err("no range");
    assert_eq!(error.kind(), ErrorKind::OutOfBounds);
}

#[test]
fn a_rate_must_be_said() {
    for (text, is_right) in [
        ("rate:10M", true),
        ("rate:file=/run/rate", true),
        ("rate", false),
        ("rate:burst=1", false),
        ("rate:quick", false),
    ] {
        assert_eq!(
            NamedFilter::parse(text.as_ref()).is_ok(),
            is_right,
            "{text}"
        );
    }
}
