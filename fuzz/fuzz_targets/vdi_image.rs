//! Whatever is in a VDI image: it is refused, or it becomes a disk whose every read ends in order. No panic, no
//! request that is not answered, no more reads than the image is worth.
#![no_main]

#[path = "../shared/look.rs"]
mod look;

use blockferry_format::Format;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| look::open_and_look(Format::Vdi, data.to_vec(), &look::usual()));
