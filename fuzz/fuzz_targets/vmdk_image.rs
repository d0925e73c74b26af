//! Whatever is in a VMDK image or its descriptor: it is refused, or it becomes a disk whose every read ends in order. No
//! panic, no request that is not answered, no more reads than the image is worth.
#![no_main]

#[path = "../shared/look.rs"]
mod look;
#[allow(dead_code, reason = "the tests take more of it")]
#[path = "../../crates/format/tests/vmdk/samples.rs"]
mod samples;

use blockferry_format::Format;
use libfuzzer_sys::fuzz_target;
use samples::Sample;

fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else {
        return;
    };
    let bytes = match choice & 3 {
        0 => data.to_vec(),
        1 => Sample::descriptor(&String::from_utf8_lossy(data)).0,
        2 => look::changed(Sample::sparse().0, data),
        _ => look::changed(Sample::stream().0, data),
    };
    look::open_and_look(Format::Vmdk, bytes, &look::usual());
});
