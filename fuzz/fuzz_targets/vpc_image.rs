//! Whatever is in a VHD image: it is refused, or it becomes a disk whose every read ends in order. No panic, no
//! request that is not answered, no more reads than the image is worth. Checksums are made right, or nothing would
//! get far.
#![no_main]

#[path = "../shared/look.rs"]
mod look;

use blockferry_format::Format;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut bytes = data.to_vec();
    let end = bytes.len().saturating_sub(512);
    for (start, length, at) in [(0, 512, 64), (512, 1024, 36), (end, 512, 64)] {
        if let Some(part) = bytes.get_mut(start..start + length) {
            put_sum(part, at);
        }
    }
    look::open_and_look(Format::Vpc, bytes, &look::usual());
});

fn put_sum(part: &mut [u8], at: usize) {
    part[at..at + 4].fill(0);
    let sum = part
        .iter()
        .fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    part[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
}
