//! A text that describes a disk makes a disk or an error: never a panic, never more memory than is allowed.
//! Files, scripts and the environment are out of its reach.

#![no_main]

use blockferry_block::{BlockDevice, Buffer, DataContents, DataOptions};
use libfuzzer_sys::fuzz_target;

/// The size that disks are cut to: laying out data is not what is looked at.
const MOST: u64 = 1 << 20;

fuzz_target!(|input: &[u8]| {
    let mut texts = input.split(|byte| *byte == 0).map(<[u8]>::to_vec);
    let options = DataOptions {
        contents: DataContents::Expression(texts.next().unwrap_or_default()),
        size: Some(MOST),
        variables: ('a'..='z').map(String::from).zip(texts).collect(),
    };
    let is_sound = options.check().is_ok();
    let Ok(device) = options.open_inside() else {
        return;
    };
    assert!(is_sound, "it was made of what breaks the rules");
    assert!(device.allocated() <= MOST + (64 << 10));
    let read = device.read(MOST - 100, Buffer::zeroed(100));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let read = std::pin::pin!(read).as_mut().poll(&mut context);
    assert!(matches!(read, std::task::Poll::Ready(Ok(_))));
});
