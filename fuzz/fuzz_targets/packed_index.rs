//! Whatever lies in a file that is said to be packed: it is refused, or it becomes a disk whose every read ends in
//! order. No panic, and no memory for what the file only claims.
#![no_main]

use std::sync::Arc;

use blockferry_block::{Buffer, ByteRange, MemoryDevice, SingleExport};
use blockferry_filter::{Chain, NamedFilter, Packing, Unpack};
use libfuzzer_sys::fuzz_target;
use tokio::runtime::Builder;

/// Larger than what a few bytes honestly become, smaller than what would take long.
const MOST: u64 = 1 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((choice, packed)) = data.split_first() else {
        return;
    };
    let packing = match choice & 3 {
        0 => Packing::Gzip,
        1 => Packing::Xz,
        _ => Packing::Zstd,
    };
    let filter = Unpack {
        max_block: MOST,
        cache: MOST,
        max_size: MOST,
        unpack: choice & 0xf0 == 0xf0,
        ..Unpack::new(packing)
    };
    let runtime = Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let exports = SingleExport::new(Arc::new(MemoryDevice::from_bytes(packed)));
        let chain = Chain::new(&[NamedFilter::new(filter)], Arc::new(exports)).expect("a chain");
        let Ok(open) = chain.exports().open("", Default::default()).await else {
            return;
        };
        let device = open.device;
        let size = device.info().size;
        assert!(i64::try_from(size).is_ok());
        let ends = [
            ByteRange::between(0, size.min(MOST)),
            ByteRange::between(size - size.min(10), size),
        ];
        for range in ends {
            let buffer = Buffer::zeroed(range.len() as usize);
            if let Ok(read) = device.read(range.start(), buffer).await {
                assert_eq!(read.len() as u64, range.len());
            }
        }
    });
});
