//! Whatever is in a VHDX image: it is refused, or it becomes a disk whose every read ends in order. No panic, no request
//! that is not answered, no more reads than the image is worth.
#![no_main]

#[allow(dead_code, reason = "the tests take more of it")]
#[path = "../../crates/format/tests/vhdx/images.rs"]
mod images;
#[path = "../shared/look.rs"]
mod look;

use blockferry_format::{Format, OpenOptions};
use images::{Content, ImageBuilder, LogEntry, MIB, Write, seal, write_log};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else {
        return;
    };
    let bytes = match choice & 1 {
        0 => data.to_vec(),
        _ => changed(data, choice),
    };
    let mut options = OpenOptions::default();
    options.table_memory = usize::from(choice & 2);
    look::open_and_look(Format::Vhdx, bytes, &options);
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
