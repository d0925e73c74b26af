//! Whatever is in a VHDX image: it is refused, or it becomes a disk whose every read ends in order. No panic, no request
//! that is not answered, no more reads than the image is worth.
#![no_main]

#[allow(dead_code, reason = "the tests take more of it")]
#[path = "../../crates/format/tests/vhdx/images.rs"]
mod images;

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, Context, Error, MemoryDevice, Operation, testing::FaultyDevice,
};
use blockferry_format::{Format, Image, NoRelatives, OpenOptions};
use images::{Content, ImageBuilder, LogEntry, MIB, Write, seal, write_log};
use libfuzzer_sys::fuzz_target;
use tokio::runtime::Builder;

/// How many bytes are read at a place of the disk.
const PIECE: u64 = 64 << 10;
/// How often the file may be read.
const MOST_READS: u64 = 20_000;

fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else {
        return;
    };
    let bytes = match choice & 1 {
        0 => data.to_vec(),
        _ => changed(data, choice),
    };
    let counted = Arc::new(FaultyDevice::new(Arc::new(MemoryDevice::from_bytes(bytes))));
    let below: Arc<dyn BlockDevice> = Arc::clone(&counted) as _;
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let mut options = OpenOptions::default();
        options.table_memory = usize::from(choice & 2);
        match Format::Vhdx.open(Arc::clone(&below), &NoRelatives, &options).await {
            Ok(image) => look(&*image).await,
            Err(error) => tell(&error),
        }
        if let Err(error) = Format::Vhdx.details(&below).await {
            tell(&error);
        }
    });
    assert!(counted.calls(Operation::Read) < MOST_READS);
});

/// A sound image in which something was changed, with checksums that are right again: two bytes say where among the
/// parts that say something, one with what.
fn changed(data: &[u8], choice: u8) -> Vec<u8> {
    let mut image = ImageBuilder::new(4 << 20).with(1, Content::Data(vec![7; MIB]));
    if choice & 4 != 0 {
        image = image.with(2, Content::Partly(vec![9; MIB], |sector| sector % 3 == 0));
        image = image.child_of(images::DATA_WRITE, "parent");
    }
    let mut bytes = image.build();
    let end = bytes.len() as u64;
    if choice & 8 != 0 {
        let writes = vec![
            Write::Page(end - 8192, vec![3; 4096]),
            Write::Zero(end - 65_536, 8192),
        ];
        let entries = [
            LogEntry::new(5, 0, end, writes.clone()),
            LogEntry::new(6, 0, end, writes),
        ];
        write_log(&mut bytes, MIB, 0, &entries);
    }
    let parts = [
        (64 << 10, 80),
        (192 << 10, 96),
        (MIB, 192),
        (MIB + 8192, 192),
        (2 * MIB, 256),
        (2 * MIB + (64 << 10), 256),
        (3 * MIB, 64),
    ];
    for change in data.chunks_exact(3) {
        let (start, length) = parts[usize::from(change[0]) % parts.len()];
        bytes[start + usize::from(change[1]) % length] = change[2];
    }
    seal(&mut bytes[64 << 10..(64 << 10) + 4096]);
    seal(&mut bytes[192 << 10..256 << 10]);
    for start in [MIB, MIB + 8192] {
        seal(&mut bytes[start..start + 8192]);
    }
    bytes
}

async fn look(image: &dyn Image) {
    let info = image.info().clone();
    let _ = image.details();
    for context in &info.contexts {
        walk(image, context).await;
    }
    let _ = image.mapping(ByteRange::between(0, info.size));
    for start in [0, PIECE - 1, info.size / 2, info.size.saturating_sub(PIECE)] {
        let range = ByteRange::between(start, (start + PIECE).min(info.size));
        let buffer = Buffer::zeroed(range.len() as usize);
        match image.read(range.start(), buffer).await {
            Ok(read) => assert_eq!(read.len() as u64, range.len()),
            Err(error) => tell(&error),
        }
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
