//! Reading any bytes of a device, whatever its blocks are.

use crate::{BlockDevice, Buffer, ByteRange, DeviceInfo, Operation, Result};

/// Reads `range` of `device` in requests that keep to its limits: as few as there can be, one after the other.
/// For headers and tables inside an image; all of it is held in memory, so the caller bounds the length.
///
/// # Errors
/// `OutOfBounds` where the range ends behind the device; what a read failed with, at the range of that read.
pub async fn read_exact_at(device: &dyn BlockDevice, range: ByteRange) -> Result<Buffer> {
    let info = device.info();
    info.check(Operation::Read, range)?;
    let (around, longest) = aligned(info, range);
    if around == range && range.len() <= longest {
        let buffer = Buffer::zeroed(length(range));
        return device.read(range.start(), buffer).await;
    }
    let mut whole = Buffer::zeroed(length(range));
    let mut scratch = Buffer::zeroed(0);
    for piece in around.pieces(longest) {
        if scratch.capacity() < length(piece) {
            scratch = Buffer::zeroed(length(piece));
        }
        scratch.set_len(length(piece));
        scratch = device.read(piece.start(), scratch).await?;
        let wanted = piece.intersection(range);
        let from = (wanted.start() - piece.start()) as usize;
        let to = (wanted.start() - range.start()) as usize;
        whole[to..][..length(wanted)].copy_from_slice(&scratch[from..][..length(wanted)]);
    }
    Ok(whole)
}

/// The whole blocks that `range` lies in, and how long one request can be.
fn aligned(info: &DeviceInfo, range: ByteRange) -> (ByteRange, u64) {
    let minimum = u64::from(info.limits.minimum.max(1));
    let maximum = u64::from(info.limits.maximum);
    let start = range.start() - range.start() % minimum;
    let end = range.end().div_ceil(minimum).saturating_mul(minimum);
    let around = ByteRange::between(start, end.min(info.size));
    (around, (maximum - maximum % minimum).max(minimum))
}

fn length(range: ByteRange) -> usize {
    range.len() as usize
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        ErrorKind, MemoryDevice,
        testing::{Fault, FaultyDevice, Rule},
    };

    fn device(minimum: u32, maximum: u32) -> FaultyDevice {
        let bytes: Vec<u8> = (0..10_001_u32).map(|at| (at % 251) as u8).collect();
        FaultyDevice::new(Arc::new(MemoryDevice::from_bytes(bytes))).with_info(|info| {
            info.limits.minimum = minimum;
            info.limits.maximum = maximum;
        })
    }

    #[tokio::test]
    async fn any_range_is_read_within_the_limits() {
        for (minimum, maximum) in [(1, 1 << 20), (1, 1000), (512, 4096), (4096, 5000), (1, 0)] {
            let device = device(minimum, maximum);
            for (start, end) in [(0, 10_001), (1, 2), (511, 9999), (8192, 10_001), (7, 7)] {
                let range = ByteRange::between(start, end);
                let read = read_exact_at(&device, range).await.expect("in bounds");
                let expected: Vec<u8> = (start..end).map(|at| (at % 251) as u8).collect();
                assert_eq!(read[..], expected, "{range} with {minimum}, {maximum}");
            }
        }
        let one = device(512, 1 << 20);
        let range = ByteRange::between(3, 700);
        read_exact_at(&one, range).await.expect("read");
        assert_eq!(one.calls(Operation::Read), 1);
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_an_error() {
        let device = device(512, 1024);
        let beyond = read_exact_at(&device, ByteRange::between(10_000, 10_002)).await;
        let beyond = beyond.expect_err("there is nothing");
        assert_eq!(beyond.kind(), ErrorKind::OutOfBounds);
        let place = ByteRange::between(2000, 2001);
        device.add(
            Rule::on(Operation::Read)
                .within(place)
                .fault(Fault::Error(ErrorKind::Io)),
        );
        let failed = read_exact_at(&device, ByteRange::between(1, 9000)).await;
        let failed = failed.expect_err("a fault");
        assert_eq!((failed.offset(), failed.length()), (Some(1024), Some(1024)));
    }
}
