//! Whatever is in a VMDK image or its descriptor: it is refused, or it becomes a disk whose every read ends in order. No
//! panic, no request that is not answered, no more reads than the image is worth.
#![no_main]

#[allow(dead_code, reason = "the tests take more of it")]
#[path = "../../crates/format/tests/vmdk/samples.rs"]
mod samples;

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, Error, MemoryDevice, Operation, testing::FaultyDevice,
};
use blockferry_format::{Format, Image, NoRelatives, OpenOptions};
use libfuzzer_sys::fuzz_target;
use samples::Sample;
use tokio::runtime::Builder;

/// How many bytes are read at a place of the disk.
const PIECE: u64 = 64 << 10;
/// The largest disk that is opened.
const MOST: u64 = 1 << 40;
/// How often the file may be read.
const MOST_READS: u64 = 20_000;

fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else {
        return;
    };
    let bytes = match choice & 3 {
        0 => data.to_vec(),
        1 => Sample::descriptor(&String::from_utf8_lossy(data)).0,
        2 => changed(Sample::sparse(), data),
        _ => changed(Sample::stream(), data),
    };
    let counted = Arc::new(FaultyDevice::new(Arc::new(MemoryDevice::from_bytes(bytes))));
    let below: Arc<dyn BlockDevice> = Arc::clone(&counted) as _;
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let mut options = OpenOptions::default();
        options.max_size = Some(MOST);
        match Format::Vmdk.open(Arc::clone(&below), &NoRelatives, &options).await {
            Ok(image) => look(&*image).await,
            Err(error) => tell(&error),
        }
        if let Err(error) = Format::Vmdk.details(&below).await {
            tell(&error);
        }
    });
    assert!(counted.calls(Operation::Read) < MOST_READS);
});

/// A sound image in which something was changed: two bytes say where, one with what.
fn changed(sample: Sample, data: &[u8]) -> Vec<u8> {
    let mut bytes = sample.0;
    for change in data.chunks_exact(3) {
        let place = usize::from(u16::from_be_bytes([change[0], change[1]]));
        let place = place % bytes.len();
        bytes[place] = change[2];
    }
    bytes
}

async fn look(image: &dyn Image) {
    let info = image.info().clone();
    assert!(info.size <= MOST);
    let _ = image.details();
    for context in &info.contexts {
        let mut at = 0;
        for _ in 0..16 {
            let range = ByteRange::between(at, info.size);
            let extents = match image.extents(range, context).await {
                Ok(extents) => extents,
                Err(error) => {
                    tell(&error);
                    break;
                }
            };
            assert_eq!(extents.is_empty(), range.is_empty());
            for extent in extents {
                assert_eq!(extent.range.start(), at);
                assert!(!extent.range.is_empty() && range.contains(extent.range));
                at = extent.range.end();
            }
        }
    }
    if let Err(error) = image.placed(ByteRange::between(0, info.size)).await {
        tell(&error);
    }
    for start in [0, PIECE - 1, info.size / 2, info.size.saturating_sub(PIECE)] {
        let range = ByteRange::between(start, (start + PIECE).min(info.size));
        let buffer = Buffer::zeroed(range.len() as usize);
        match image.read(range.start(), buffer).await {
            Ok(read) => assert_eq!(read.len() as u64, range.len()),
            Err(error) => tell(&error),
        }
    }
}

fn tell(error: &Error) {
    assert!(!error.to_string().contains(char::is_control), "{error}");
}
