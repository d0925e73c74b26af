use std::{sync::Arc, time::Duration};

use blockferry_block::{
    Access, BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, DeviceInfo,
    DirectoryExports, ErrorKind, Exports, Mapping, MemoryDevice, Operation, Result, SingleExport,
    Status, WriteFlags,
    testing::{Fault, FaultyDevice, Rule, check_device},
};
use liblzma::stream::Check;
use proptest::prelude::*;

use super::samples;
use crate::{
    Chain, NamedFilter, Packing, Unpack,
    testing::{refusal, through, try_through},
};

const SIZE: usize = 300_001;

fn memory(bytes: &[u8]) -> Arc<dyn BlockDevice> {
    Arc::new(MemoryDevice::from_bytes(bytes))
}

/// What a filter that is written so is called.
fn name(filter: &str) -> &str {
    filter.split(':').next().unwrap_or(filter)
}

async fn read(device: &dyn BlockDevice, start: usize, length: usize) -> Result<Buffer> {
    device.read(start as u64, Buffer::zeroed(length)).await
}

/// Reads pieces of the device and compares each with the image.
async fn compare(device: &dyn BlockDevice, image: &[u8], what: &str) {
    assert_eq!(device.info().size, image.len() as u64, "{what}");
    let mut start = 7;
    for step in 0..60 {
        let length = [1, 600, 4096, 70_000][step % 4].min(image.len() - start);
        let bytes = read(device, start, length).await.expect(what);
        assert!(
            bytes[..] == image[start..start + length],
            "{what}: {start}+{length}"
        );
        start = (start * 31 + 10_007) % image.len();
    }
    let whole = read(device, 0, image.len()).await.expect(what);
    assert!(whole[..] == *image, "{what}");
}

#[tokio::test]
async fn any_part_of_every_kind_of_packed_file_can_be_read() {
    let image = samples::image(SIZE);
    for (filter, what, packed) in samples::all(&image) {
        for parameters in ["", ":cache=0", ":cache=100k", ":max-depth=1"] {
            let filter = format!("{filter}{parameters}");
            let what = format!("{filter}, {what}");
            let device = through(&[&filter], memory(&packed)).await;
            compare(&*device, &image, &what).await;
            check_device(&*device, 1, 50).await;
        }
    }
}

/// A device that wants its requests in blocks.
struct Strict(Arc<dyn BlockDevice>, DeviceInfo);

impl BlockDevice for Strict {
    fn info(&self) -> &DeviceInfo {
        &self.1
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        let end = offset + buffer.len() as u64;
        assert!(offset.is_multiple_of(512) && buffer.len() <= 4096);
        assert!(end.is_multiple_of(512) || end == self.1.size);
        self.0.read(offset, buffer)
    }
}

#[tokio::test]
async fn the_packed_file_is_read_within_its_limits() {
    let image = samples::image(SIZE);
    for (filter, what, packed) in samples::all(&image) {
        let below = memory(&packed);
        let mut info = below.info().clone();
        info.limits.minimum = 512;
        info.limits.maximum = 4100;
        let device = through(&[filter], Arc::new(Strict(below, info))).await;
        compare(&*device, &image, what).await;
    }
}

#[tokio::test]
async fn the_device_says_what_it_is_and_takes_no_writes() {
    let image = samples::image(SIZE);
    let packed = samples::xz(&image, 40_000, Check::Crc64);
    let device = through(&["xz"], memory(&packed)).await;
    let info = device.info();
    assert_eq!(info.capabilities, Capabilities::MULTI_CONN);
    assert_eq!(info.limits.minimum, 1);
    assert_eq!(info.contexts, [Context::Allocation]);
    let range = ByteRange::between(0, 10);
    assert!(matches!(device.mapping(range), Mapping::Opaque));
    let written = device
        .write(0, Buffer::zeroed(1), WriteFlags::empty())
        .await;
    assert_eq!(written.expect_err("read-only").kind(), ErrorKind::ReadOnly);
    for (offset, length) in [(SIZE, 1), (SIZE - 1, 2), (usize::MAX, 1)] {
        let beyond = read(&*device, offset, length).await.expect_err("beyond");
        assert_eq!(beyond.kind(), ErrorKind::OutOfBounds);
        assert_eq!(beyond.length(), Some(length as u64));
    }
    assert!(read(&*device, SIZE, 0).await.expect("nothing").is_empty());
}

/// Every way to say no to a file, word for word.
#[tokio::test]
async fn what_cannot_be_read_anywhere_is_refused_with_a_way_out() {
    let image = samples::image(SIZE);
    let unpack = "; with unpack=on it is unpacked once, into a temporary file";
    let t2sz = "t2sz -r -s 4M, or zeekstd --frame-size 4M, makes one that can be read anywhere";
    let xz = "xz --block-size=16MiB makes one that can be read anywhere";
    let mut two = samples::bgzf(&image, 20_000);
    let second = two.len();
    two.extend(samples::gzip(&image));
    let mut later = samples::zstd(&image[..1000], 1000);
    let piped = later.len();
    later.extend(samples::zstd_stream(&image));
    let big = samples::zstd(&image, SIZE)[13..].to_vec();
    for (filter, packed, message) in [
        (
            "gzip",
            samples::gzip(&image),
            "it can only be read from its beginning, as what gzip and pigz make; bgzip makes one that can \
             be read anywhere"
                .to_owned(),
        ),
        (
            "gzip",
            two,
            format!(
                "its member at offset {second} does not say where it ends; bgzip makes one that can be read \
                 anywhere"
            ),
        ),
        (
            "gzip:max-block=10000",
            samples::bgzf(&image, 20_000),
            "its block 0 is 19.5 KiB long, which is more than max-block; bgzip makes one that can be read \
             anywhere"
                .to_owned(),
        ),
        (
            "xz:max-block=100k",
            samples::xz(&image, SIZE, Check::Crc64),
            format!("it is one block of 293.0 KiB; {xz}"),
        ),
        (
            "xz:max-block=100k",
            samples::xz(&image, 200_000, Check::Crc64),
            format!("its block 0 is 195.3 KiB long, which is more than max-block; {xz}"),
        ),
        (
            "zstd",
            samples::zstd_stream(&image),
            format!(
                "its frame at offset 0 does not say how much it holds, as those of pzstd and of what was \
                 piped into zstd; {t2sz}"
            ),
        ),
        (
            "zstd",
            later,
            format!(
                "its frame at offset {piped} does not say how much it holds, as those of pzstd and of what \
                 was piped into zstd; {t2sz}"
            ),
        ),
        (
            "zstd:max-block=100k",
            big,
            format!("it begins with one frame of 293.0 KiB, which is more than max-block; {t2sz}"),
        ),
        (
            "zstd:max-block=10k",
            samples::seekable(&image, 25_000, true),
            format!("its block 0 is 24.4 KiB long, which is more than max-block; {t2sz}"),
        ),
    ] {
        let error = refusal(&[filter], memory(&packed)).await;
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(error.to_string(), format!("{name}: open: {message}{unpack}", name = name(filter)));
    }
}

#[tokio::test]
async fn what_is_something_else_or_cut_off_is_refused() {
    let image = samples::image(SIZE);
    for filter in ["gzip", "xz", "zstd"] {
        for contents in [&image[..], &[], &[0; 5000], &[0x1f], b"\xfd7zX", b"(\xb5"] {
            let error = refusal(&[filter], memory(contents)).await;
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert_eq!(
                error.to_string(),
                format!("{filter}: open: it is not in the format {filter}")
            );
        }
    }
    let cut = |packed: Vec<u8>, less: usize| packed[..packed.len() - less].to_vec();
    for (filter, packed, message) in [
        (
            "xz",
            cut(samples::xz(&image, 40_000, Check::Crc64), 4),
            "a wrong footer of the stream that ends at offset ",
        ),
        (
            "gzip",
            cut(samples::bgzf(&image, 20_000), 28),
            "the empty block that marks the end is missing",
        ),
        (
            "gzip",
            cut(samples::bgzf(&image, 20_000), 30),
            "the file ends in the middle of the block at offset ",
        ),
        (
            "zstd",
            cut(samples::zstd(&image, 33_000), 1),
            "the file ends in the middle of the frame at offset ",
        ),
    ] {
        let error = refusal(&[filter], memory(&packed)).await;
        assert_eq!(error.kind(), ErrorKind::Io);
        let text = error.to_string();
        assert!(
            text.starts_with(&format!("{filter}: open: {message}")),
            "{text}"
        );
        assert!(text.ends_with(": the file is damaged"), "{text}");
    }
}

#[tokio::test]
async fn a_damaged_block_is_named_and_the_others_can_be_read() {
    let image = samples::image(SIZE);
    for (filter, mut packed, at, message) in [
        (
            "xz",
            samples::xz(&image, 40_000, Check::Crc64),
            100,
            "xz: block 0 at offset 12: wrong contents, or a wrong CRC64: the file is damaged",
        ),
        (
            "gzip",
            samples::bgzf(&vec![7; SIZE], 20_000),
            25,
            "gzip: block 0 at offset 0: it cannot be inflated: the file is damaged",
        ),
        (
            "zstd",
            samples::seekable(&image, 25_000, true),
            1000,
            "zstd: block 0 at offset 0: ",
        ),
    ] {
        packed[at] ^= 0x55;
        let device = through(&[filter], memory(&packed)).await;
        let error = read(&*device, 10, 100).await.expect_err("damaged");
        let text = error.to_string();
        assert!(
            text.starts_with(&format!("read of 100 bytes at offset 10: {message}")),
            "{text}"
        );
        assert_eq!(error.kind(), ErrorKind::Io);
        let far = read(&*device, 200_000, 1000).await.expect("another block");
        assert!(filter == "gzip" || far[..] == image[200_000..201_000]);
    }
}

#[tokio::test]
async fn failures_below_are_told_at_the_request_and_healed() {
    let image = samples::image(SIZE);
    let packed = samples::bgzf(&image, 20_000);
    let below = Arc::new(FaultyDevice::new(memory(&packed)));
    let device = through(&["gzip"], Arc::clone(&below) as Arc<dyn BlockDevice>).await;
    below.add(
        Rule::on(Operation::Read)
            .times(1)
            .fault(Fault::Error(ErrorKind::ConnectionLost)),
    );
    let error = read(&*device, 50_000, 10).await.expect_err("a fault");
    assert_eq!(error.kind(), ErrorKind::ConnectionLost);
    assert_eq!((error.offset(), error.length()), (Some(50_000), Some(10)));
    compare(&*device, &image, "healed").await;
}

#[tokio::test(start_paused = true)]
async fn a_read_that_hangs_can_be_dropped_and_holds_up_nobody_else() {
    let image = samples::image(SIZE);
    let packed = samples::bgzf(&image, 20_000);
    let below = Arc::new(FaultyDevice::new(memory(&packed)));
    // Room for one block at a time: what a dropped request held must be free again.
    let device = through(
        &["gzip:cache=0"],
        Arc::clone(&below) as Arc<dyn BlockDevice>,
    )
    .await;
    below.add(Rule::on(Operation::Read).times(1).fault(Fault::Hang));
    let hanging = read(&*device, 50_000, 10);
    let minute = Duration::from_secs(60);
    assert!(tokio::time::timeout(minute, hanging).await.is_err());
    compare(&*device, &image, "after a hang").await;
}

fn chain(filter: &str, device: Arc<dyn BlockDevice>) -> Chain {
    let filter = NamedFilter::parse(filter.as_ref()).expect(filter);
    Chain::new(&[filter], Arc::new(SingleExport::new(device))).expect("a chain")
}

/// As many clients as there are connections of a server: each has a thread and a runtime.
fn clients(exports: &Arc<dyn Exports>, count: usize, image: &[u8]) {
    std::thread::scope(|scope| {
        for client in 0..count {
            let exports = Arc::clone(exports);
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                runtime.expect("a runtime").block_on(async {
                    let open = exports.open("", Default::default()).await.expect("open");
                    let reads = (0..40).map(|step| {
                        let start = (client * 7919 + step * 12_347) % (SIZE - 70_000);
                        let device = &open.device;
                        async move {
                            let length = [10, 5000, 70_000][step % 3];
                            let bytes = read(&**device, start, length).await.expect("read");
                            assert!(
                                bytes[..] == image[start..start + length],
                                "{start}+{length}"
                            );
                        }
                    });
                    futures_util::future::join_all(reads).await;
                });
            });
        }
    });
}

#[test]
fn many_clients_share_a_tiny_cache() {
    let image = samples::image(SIZE);
    for (filter, _, packed) in samples::all(&image) {
        for parameters in [":cache=0", ":cache=60k", ":max-depth=2"] {
            let chain = chain(&format!("{filter}{parameters}"), memory(&packed));
            clients(&chain.exports(), 6, &image);
        }
    }
}

#[test]
fn each_block_is_unpacked_once_for_all_clients() {
    let image = samples::image(SIZE);
    let packed = samples::xz(&image, 10_000, Check::Crc64);
    let chain = chain("xz", memory(&packed));
    clients(&chain.exports(), 8, &image);
    let counters = chain.counters();
    let count = |name| {
        let mut counts = counters[0].counts.iter();
        counts.find(|(known, _)| *known == name).expect(name).1
    };
    assert!(count("unpacked_blocks") <= 31, "{counters:?}");
    assert!(count("unpacked_bytes") <= SIZE as u64, "{counters:?}");
    assert!(count("hits") > 100, "{counters:?}");
}

#[tokio::test]
async fn a_file_that_grew_is_looked_at_again() {
    let image = samples::image(SIZE);
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("disk.xz");
    let exports = DirectoryExports::open(directory.path(), Access::ReadOnly).expect("exports");
    let filter = NamedFilter::new(Unpack::new(Packing::Xz));
    let chain = Chain::new(&[filter], Arc::new(exports)).expect("a chain");
    for size in [100_000, 200_000] {
        std::fs::write(&path, samples::xz(&image[..size], 40_000, Check::Crc64)).expect("written");
        let open = chain.exports().open("disk.xz", Default::default()).await;
        compare(&*open.expect("open").device, &image[..size], "the new file").await;
    }
}

#[tokio::test]
async fn a_whole_file_is_unpacked_once_and_keeps_its_holes() {
    let mut image = samples::image(SIZE);
    image.resize(SIZE + 500_000, 0);
    let mut members = samples::gzip(&image[..1000]);
    members.extend(samples::gzip(&image[1000..]));
    members.extend_from_slice(&[0; 5000]);
    for (filter, packed) in [
        ("gzip", samples::gzip(&image)),
        ("gzip", members),
        (
            "xz:max-block=1000",
            samples::xz(&image, 1 << 20, Check::Crc64),
        ),
        ("zstd", samples::zstd_stream(&image)),
        ("bzip2", samples::bzip2(&image)),
    ] {
        let directory = tempfile::tempdir().expect("a directory");
        let separator = if filter.contains(':') { ',' } else { ':' };
        let text = format!(
            "{filter}{separator}unpack=on,dir={}",
            directory.path().display()
        );
        let below = Arc::new(FaultyDevice::new(memory(&packed)));
        let chain = chain(&text, Arc::clone(&below) as Arc<dyn BlockDevice>);
        let exports = chain.exports();
        let open = || async {
            let open = exports.open("", Default::default()).await;
            open.expect("open").device
        };
        let (first, second) = futures_util::join!(open(), open());
        let reads = below.calls(Operation::Read);
        assert!(reads < 8, "{text}: unpacked twice, {reads} reads");
        compare(&*first, &image, &text).await;
        compare(&*second, &image, &text).await;
        assert!(!first.info().can(Capabilities::WRITE));
        let end = ByteRange::between(SIZE as u64 + 200_000, image.len() as u64);
        let extents = first
            .extents(end, &Context::Allocation)
            .await
            .expect("extents");
        assert_eq!(extents[0].status, Status::HOLE_ZERO, "{text}");
        let Mapping::File { length, .. } = first.mapping(ByteRange::between(0, 4096)) else {
            panic!("{text}: no file");
        };
        assert_eq!(length, 4096);
        let names = std::fs::read_dir(directory.path()).expect("a directory");
        assert_eq!(names.count(), 0, "the temporary file has no name");
    }
}

#[tokio::test]
async fn what_cannot_be_unpacked_whole_is_refused() {
    let image = samples::image(SIZE);
    let packed = samples::gzip(&image);
    let error = refusal(&["gzip:unpack=on,max-size=100k"], memory(&packed)).await;
    let message = "gzip: open: it holds more than the 100.0 KiB that max-size allows";
    assert_eq!(error.to_string(), message);
    let error = refusal(&["gzip:unpack=on,dir=/does/not/exist"], memory(&packed)).await;
    assert_eq!(
        error.to_string(),
        "gzip: open: no temporary file in /does/not/exist"
    );
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let mut wrong = packed.clone();
    let crc = wrong.len() - 8;
    wrong[crc] ^= 1;
    let mut longer = packed.clone();
    longer.extend_from_slice(b"\0\0behind");
    for (filter, packed) in [
        ("gzip:unpack=on", wrong),
        ("gzip:unpack=on", longer),
        ("gzip:unpack=on", packed[..packed.len() / 2].to_vec()),
        (
            "zstd:unpack=on",
            samples::zstd_stream(&image)[..5000].to_vec(),
        ),
    ] {
        let error = refusal(&[filter], memory(&packed)).await;
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(
            error.to_string().ends_with(": the file is damaged"),
            "{error}"
        );
    }
    let dying = FaultyDevice::new(memory(&packed)).dying_after(packed.len() as u64 + 10);
    let error = refusal(&["gzip:unpack=on"], Arc::new(dying)).await;
    assert_eq!(error.kind(), ErrorKind::ConnectionLost);
}

#[tokio::test]
async fn no_more_data_is_unpacked_whole_than_it_may_take() {
    let image = samples::image(SIZE);
    let packed = samples::gzip(&image);
    let mut unpack = Unpack::new(Packing::Gzip);
    unpack.unpack = true;
    unpack.max_data = Some(64 << 10);
    let error = unpack.open_telling(memory(&packed), |_| {}).await;
    let error = error.err().expect("too much");
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(error.to_string().contains("on a guess"), "{error}");
    // Holes take nothing.
    let zeroes = samples::gzip(&vec![0; SIZE]);
    let device = unpack.open_telling(memory(&zeroes), |_| {}).await;
    assert_eq!(device.expect("a hole").info().size, SIZE as u64);
    unpack.max_data = Some(SIZE as u64);
    let device = unpack.open_telling(memory(&packed), |_| {}).await;
    compare(&*device.expect("room enough"), &image, "just enough").await;
}

#[tokio::test]
async fn whoever_comes_second_unpacks_when_the_first_goes_away() {
    let image = samples::image(SIZE);
    let below = Arc::new(FaultyDevice::new(memory(&samples::gzip(&image))));
    below.add(
        Rule::on(Operation::Read)
            .after(1)
            .times(1)
            .fault(Fault::Hang),
    );
    let chain = chain("gzip:unpack=on", Arc::clone(&below) as Arc<dyn BlockDevice>);
    let exports = chain.exports();
    let hanging = async {
        while below.calls(Operation::Read) < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = exports.open("", Default::default()) => panic!("it opened"),
        () = hanging => {}
    }
    let open = exports.open("", Default::default()).await.expect("open");
    compare(&*open.device, &image, "the second").await;
}

#[tokio::test]
async fn parameters_that_leave_nothing_to_read_are_refused() {
    for (text, message) in [
        ("xz:max-block=0", "max-block=0 leaves nothing to read"),
        ("xz:max-block=3G", "max-block can be 2.0 GiB at most"),
        ("gzip:max-depth=0", "max-depth=0 leaves nothing to read"),
    ] {
        let error = NamedFilter::parse(text.as_ref()).expect_err(text);
        assert_eq!(error.to_string(), format!("{text}: {message}"));
    }
    let wrong = Unpack {
        max_block: 0,
        ..Unpack::new(Packing::Zstd)
    };
    let exports = Arc::new(SingleExport::new(memory(&[])));
    let refused = Chain::new(&[NamedFilter::new(wrong)], exports).map(|_| ());
    assert_eq!(
        refused.expect_err("refused").kind(),
        ErrorKind::InvalidInput
    );
}

/// Reads all of it from the beginning, as a copy does; `None` when that fails somewhere.
async fn read_all(filter: &str, packed: &[u8]) -> Option<Vec<u8>> {
    let device = try_through(&[filter], memory(packed)).await.ok()?;
    let mut whole = Vec::new();
    // A size that nobody unpacks is found out by the first read of its block.
    for piece in ByteRange::between(0, device.info().size.min(4 << 20)).pieces(50_000) {
        let bytes = read(&*device, piece.start() as usize, piece.len() as usize)
            .await
            .ok()?;
        whole.extend_from_slice(&bytes);
    }
    Some(whole)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_damaged_file_gives_the_right_bytes_or_an_error(
        places in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..4),
        from_end in any::<bool>(),
    ) {
        let image = samples::image(60_001);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        for (filter, what, mut packed) in samples::all(&image) {
            // Its chunks have no checksums.
            if what == "dictzip" {
                continue;
            }
            // When the table is lost nothing is left that vouches for its frames.
            let most = if what == "seekable with checksums" { 1 } else { places.len() };
            for (place, flip) in &places[..most] {
                // Half of the cases damage indexes and tables, which are short.
                let range = if from_end { packed.len().min(150) } else { packed.len() };
                let at = packed.len() - 1 - place.index(range);
                packed[at] ^= flip;
            }
            if let Some(whole) = runtime.block_on(read_all(filter, &packed)) {
                prop_assert!(whole == image, "{filter}, {what}: wrong bytes");
            }
        }
    }

    #[test]
    fn a_file_that_is_cut_off_gives_an_error_or_whole_frames(cut in any::<prop::sample::Index>()) {
        let image = samples::image(60_001);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        for (filter, what, packed) in samples::all(&image) {
            let packed = &packed[..cut.index(packed.len())];
            if let Some(whole) = runtime.block_on(read_all(filter, packed)) {
                // Frames without a table are a file also when there are fewer of them.
                prop_assert!(filter == "zstd" && image.starts_with(&whole), "{filter}, {what}");
            }
        }
    }
}
