//! Whatever is in a qcow2 image: it is refused, or it becomes a disk whose every read ends in order. No panic, no request
//! that is not answered, no more reads than the image is worth. Its snapshots are changed, too.
#![no_main]

#[allow(dead_code, reason = "the tests take more of it")]
#[path = "../../crates/format/tests/hostile/images.rs"]
mod images;
#[path = "../shared/look.rs"]
mod look;

use blockferry_format::Format;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else {
        return;
    };
    let bytes = match choice & 1 {
        0 => data.to_vec(),
        _ => look::changed(images::Builder::sound().rich().build(), data),
    };
    if choice & 4 != 0 {
        return look::change_snapshots(bytes, choice >> 3);
    }
    let mut options = look::usual();
    options.snapshot = (choice & 2 != 0).then(|| "1".to_owned());
    look::open_and_look(Format::Qcow2, bytes, &options);
});
