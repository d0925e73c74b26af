//! Whatever is unpacked as a stream: bytes come of it, no more than were allowed, and an end or an error. No panic, no
//! thread that waits for ever, and no memory for what the stream only claims.
#![no_main]

use std::sync::Arc;

use blockferry_block::{Buffer, ByteSource, MemoryDevice};
use blockferry_packing::{Packed, Packing, UnpackOptions, Unpacked};
use libfuzzer_sys::fuzz_target;
use tokio::runtime::Builder;

/// Larger than what a few bytes honestly become, smaller than what would take long.
const MOST: u64 = 1 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((choice, packed)) = data.split_first() else {
        return;
    };
    let packing = Packing::ALL[usize::from(choice & 3)];
    let length = [1000, 64 << 10, 2 << 20, 7777][usize::from(choice >> 2 & 3)];
    let mut options = UnpackOptions::default();
    options.max_size = Some(MOST);
    options.memory = 16 << 20;
    options.threads = usize::from(choice >> 4 & 1) + 1;
    let runtime = Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let packed = Packed::Device(Arc::new(MemoryDevice::from_bytes(packed)));
        let mut unpacked = match Unpacked::open(packed, packing, &options).await {
            Ok(unpacked) => unpacked,
            Err(error) => return assert!(!error.to_string().contains(char::is_control)),
        };
        let start = unpacked.begins_with().to_vec();
        let mut size = 0;
        loop {
            match unpacked.read(Buffer::zeroed(length)).await {
                Ok(read) => {
                    if size == 0 {
                        let common = read.len().min(start.len());
                        assert_eq!(read[..common], start[..common]);
                    }
                    size += read.len() as u64;
                    assert!(size <= MOST);
                    if read.len() < length {
                        break;
                    }
                }
                Err(error) => {
                    assert!(!error.to_string().contains(char::is_control));
                    break;
                }
            }
        }
    });
});
