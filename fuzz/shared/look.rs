//! What is done with an image of any format that may be anything.

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, Context, Error, MemoryDevice, Operation, testing::FaultyDevice,
};
use blockferry_format::{Format, Image, NoRelatives, OpenOptions};
use tokio::runtime::Builder;

/// How many bytes are read at a place of the disk.
const PIECE: u64 = 64 << 10;
/// The largest disk that is opened.
const MOST: u64 = 1 << 40;
/// How often the file may be read.
const MOST_READS: u64 = 20_000;

/// Opens the image in `bytes`, reads it, and asks for all that can be told of it.
pub fn open_and_look(format: Format, bytes: &[u8]) {
    let memory = Arc::new(MemoryDevice::from_bytes(bytes.to_vec()));
    let counted = Arc::new(FaultyDevice::new(memory));
    let below: Arc<dyn BlockDevice> = Arc::clone(&counted) as _;
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let mut options = OpenOptions::default();
        options.max_size = Some(MOST);
        if let Err(error) = format.details(&below).await {
            tell(&error);
        }
        match format.open(below, &NoRelatives, &options).await {
            Ok(image) => look(&*image).await,
            Err(error) => tell(&error),
        }
    });
    assert!(counted.calls(Operation::Read) < MOST_READS);
}

async fn look(image: &dyn Image) {
    let info = image.info().clone();
    assert!(info.size <= MOST);
    let details = image.details();
    assert_eq!(details.virtual_size(), info.size);
    for context in &info.contexts {
        walk(image, context).await;
    }
    for start in [0, PIECE - 1, info.size / 2, info.size.saturating_sub(PIECE)] {
        let range = ByteRange::between(start, (start + PIECE).min(info.size));
        let buffer = Buffer::zeroed(range.len() as usize);
        match image.read(range.start(), buffer).await {
            Ok(read) => assert_eq!(read.len() as u64, range.len()),
            Err(error) => tell(&error),
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
        let extents = match image.extents(range, context).await {
            Ok(extents) => extents,
            Err(error) => return tell(&error),
        };
        assert_eq!(extents.is_empty(), range.is_empty());
        for extent in extents {
            assert_eq!(extent.range.start(), at);
            assert!(!extent.range.is_empty() && range.contains(extent.range));
            at = extent.range.end();
        }
    }
}

fn tell(error: &Error) {
    assert!(!error.to_string().contains(char::is_control), "{error}");
}
