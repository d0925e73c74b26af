//! Whatever the start and the end of a disk say, its partitions are places on it or refused in one line.
#![no_main]

use std::{future::Future, pin::pin, task};

use blockferry_block::{BlockDevice, Buffer, MemoryDevice, WriteFlags};
use blockferry_filter::PartitionTable;
use libfuzzer_sys::fuzz_target;

/// Larger than any table that is read, so that what lies behind the table has room.
const DISK: u64 = 16 << 20;

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
    let sector_size = match choice & 3 {
        0 => Some(512),
        1 => Some(4096),
        _ => None,
    };
    let size = if choice & 4 == 0 {
        DISK
    } else {
        data.len() as u64
    };
    let mut bytes = data.to_vec();
    if choice & 8 == 0 {
        seal(&mut bytes, if choice & 16 == 0 { 512 } else { 4096 });
    }
    let device = MemoryDevice::new(size);
    let end = bytes.len().min(size as usize);
    now(device.write(0, Buffer::from(&bytes[..end]), WriteFlags::empty())).expect("it fits");
    match now(PartitionTable::read(&device, sector_size)) {
        Err(error) => assert!(!error.to_string().contains('\n')),
        Ok(table) => {
            let numbers: Vec<_> = table.numbers().collect();
            for number in numbers.into_iter().chain([0, u32::MAX]) {
                match table.find(number) {
                    Ok(range) => assert!(!range.is_empty() && range.end() <= device.info().size),
                    Err(error) => {
                        let text = error.to_string();
                        assert!(!text.contains(char::is_control) && text.len() < 20_000);
                    }
                }
            }
        }
    }
});

/// Makes the checksums of a GPT right: no fuzzer finds them.
fn seal(bytes: &mut [u8], block: usize) {
    let number = |bytes: &[u8], at: usize| {
        let number = bytes.get(at..).and_then(|rest| rest.first_chunk());
        number.map_or(0, |number| u32::from_le_bytes(*number) as usize)
    };
    let start = number(bytes, block + 72).saturating_mul(block);
    let count = number(bytes, block + 80).saturating_mul(number(bytes, block + 84));
    if let Some(entries) = bytes.get(start..start.saturating_add(count)) {
        let checksum = crc32fast::hash(entries);
        if let Some(place) = bytes.get_mut(block + 88..block + 92) {
            place.copy_from_slice(&checksum.to_le_bytes());
        }
    }
    let size = number(bytes, block + 12);
    if let Some(header) = bytes.get_mut(block..block.saturating_add(size))
        && header.len() >= 92
    {
        header[16..20].fill(0);
        let checksum = crc32fast::hash(header);
        header[16..20].copy_from_slice(&checksum.to_le_bytes());
    }
}
