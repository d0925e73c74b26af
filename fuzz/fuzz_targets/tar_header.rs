//! Whatever an archive says, a member of it is a place in it, or there is a refusal of one line.
#![no_main]

use std::{future::Future, pin::pin, task};

use blockferry_block::MemoryDevice;
use blockferry_filter::Tar;
use libfuzzer_sys::fuzz_target;

/// Memory answers at once.
fn now<T>(future: impl Future<Output = T>) -> T {
    let mut context = task::Context::from_waker(task::Waker::noop());
    match pin!(future).poll(&mut context) {
        task::Poll::Ready(value) => value,
        task::Poll::Pending => unreachable!("memory does not wait"),
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else {
        return;
    };
    let mut bytes = data.to_vec();
    if choice & 1 == 0 {
        bytes.chunks_exact_mut(512).for_each(seal);
    }
    let size = bytes.len() as u64;
    let tar = Tar {
        limit: 1000,
        ..Tar::new("a")
    };
    match now(tar.find(&MemoryDevice::from_bytes(&bytes))) {
        Ok(range) => assert!(range.start() >= 512 && range.end() <= size),
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains(char::is_control) && text.len() < 20_000);
        }
    }
});

/// Makes the checksum of a header right: a fuzzer seldom finds it.
fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
