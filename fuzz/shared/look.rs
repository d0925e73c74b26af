//! What is done with an image of any format that may be anything: it is refused, or it becomes a disk whose every read
//! ends in order. No panic, no request that is not answered, no more reads than the image is worth.

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, Context, Error, MemoryDevice, Operation, Result,
    testing::FaultyDevice,
};
use blockferry_format::{Format, Image, NoRelatives, OpenOptions, qcow2};
use tokio::runtime::Builder;

/// How many bytes are read at a place of the disk.
const PIECE: u64 = 64 << 10;
/// The largest disk that is opened, unless something else is said.
const MOST: u64 = 1 << 40;
/// How often the file may be read.
const MOST_READS: u64 = 20_000;

/// What images are opened with, unless a target has something else to try.
#[allow(dead_code, reason = "some have")]
pub fn usual() -> OpenOptions {
    let mut options = OpenOptions::default();
    options.max_size = Some(MOST);
    options
}

/// Opens the image in `bytes`, reads it, and asks for all that can be told of it.
pub fn open_and_look(format: Format, bytes: Vec<u8>, options: &OpenOptions) {
    let counted = Arc::new(FaultyDevice::new(Arc::new(MemoryDevice::from_bytes(bytes))));
    let below: Arc<dyn BlockDevice> = Arc::clone(&counted) as _;
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        told(format.details(&below).await);
        if let Some(image) = told(format.open(Arc::clone(&below), &NoRelatives, options).await) {
            look(&*image, options).await;
        }
        if format == Format::Qcow2 {
            told(qcow2::check(&*below).await);
        }
    });
    assert!(counted.calls(Operation::Read) < MOST_READS);
}

/// Makes a snapshot of the qcow2 image in `bytes`, goes back to one, or deletes one, and tells what was said: an image with
/// which nothing is wrong stays so.
#[allow(dead_code, reason = "other formats have none")]
pub fn change_snapshots(bytes: Vec<u8>, choice: u8) {
    let file = Arc::new(MemoryDevice::from_bytes(&bytes).growable());
    let counted = Arc::new(FaultyDevice::new(Arc::clone(&file) as _));
    let below: Arc<dyn BlockDevice> = Arc::clone(&counted) as _;
    let options = qcow2::SnapshotOptions::default();
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let was_clean = is_clean(&bytes).await;
        told(match choice % 3 {
            0 => qcow2::create_snapshot(below, "new", &options).await,
            1 => qcow2::apply_snapshot(below, "1", &options).await,
            _ => qcow2::delete_snapshot(below, "1", &options).await,
        });
        assert!(!was_clean || is_clean(&file.contents()).await);
    });
    assert!(counted.calls(Operation::Read) < MOST_READS);
}

async fn is_clean(bytes: &[u8]) -> bool {
    let report = qcow2::check(&MemoryDevice::from_bytes(bytes)).await;
    told(report).is_some_and(|report| report.is_clean())
}

/// `bytes` in which something was changed: of each three bytes of `changes` two say where, one with what.
#[allow(dead_code, reason = "not all targets have a sound image to begin with")]
pub fn changed(mut bytes: Vec<u8>, changes: &[u8]) -> Vec<u8> {
    for change in changes.chunks_exact(3) {
        let place = usize::from(u16::from_be_bytes([change[0], change[1]]));
        let place = place % bytes.len();
        bytes[place] = change[2];
    }
    bytes
}

async fn look(image: &dyn Image, options: &OpenOptions) {
    let info = image.info().clone();
    assert!(options.max_size.is_none_or(|most| info.size <= most));
    let details = image.details();
    if options.snapshot.is_none() {
        assert_eq!(details.virtual_size(), info.size);
    }
    for context in &info.contexts {
        walk(image, context).await;
    }
    told(image.placed(ByteRange::between(0, info.size)).await);
    let _ = image.mapping(ByteRange::between(0, info.size));
    for start in [0, PIECE - 1, info.size / 2, info.size.saturating_sub(PIECE)] {
        let range = ByteRange::between(start, (start + PIECE).min(info.size));
        let buffer = Buffer::zeroed(range.len() as usize);
        if let Some(read) = told(image.read(range.start(), buffer).await) {
            assert_eq!(read.len() as u64, range.len());
        }
        let _ = image.mapping(range);
    }
}

/// A few answers about what the disk begins with.
async fn walk(image: &dyn Image, context: &Context) {
    let size = image.info().size;
    let mut at = 0;
    for _ in 0..16 {
        let range = ByteRange::between(at, size);
        let Some(extents) = told(image.extents(range, context).await) else {
            return;
        };
        assert_eq!(extents.is_empty(), range.is_empty());
        for extent in extents {
            assert_eq!(extent.range.start(), at);
            assert!(!extent.range.is_empty() && range.contains(extent.range));
            at = extent.range.end();
        }
    }
}

/// What there is, or nothing after a look at the error: it is one line.
fn told<T>(done: Result<T>) -> Option<T> {
    let tell = |error: &Error| {
        assert!(!error.to_string().contains(char::is_control), "{error}");
    };
    done.inspect_err(tell).ok()
}
