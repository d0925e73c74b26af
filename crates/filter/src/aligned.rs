//! Ranges and blocks: what a device takes as it is, and what lies around a range.

use blockferry_block::{BlockDevice, Buffer, ByteRange, Error, Result, read_exact_at};

/// Whether `device` takes a read of `range`, which lies on it, as it is.
pub(crate) fn takes(device: &dyn BlockDevice, range: ByteRange) -> bool {
    let info = device.info();
    let minimum = u64::from(info.limits.minimum.max(1));
    range.start().is_multiple_of(minimum)
        && (range.end().is_multiple_of(minimum) || range.end() == info.size)
        && range.len() <= u64::from(info.limits.maximum)
}

/// The blocks of `size` bytes that `range` lies in, of a device that ends at `end`.
pub(crate) fn around(range: ByteRange, size: u64, end: u64) -> ByteRange {
    let start = range.start() - range.start() % size;
    let until = range.end().checked_next_multiple_of(size).unwrap_or(end);
    ByteRange::between(start, until.min(end.max(range.end())))
}

/// The blocks of `size` bytes that lie wholly in `range`; the last one of a device that ends at `end` may be
/// shorter.
pub(crate) fn inside(range: ByteRange, size: u64, end: u64) -> ByteRange {
    let aligned = range.aligned_within(size);
    match range.end() == end {
        true => ByteRange::between(aligned.start().min(end), end),
        false => aligned,
    }
}

/// Where `part` lies in a buffer that begins with `whole`, in which it lies.
pub(crate) fn within(part: ByteRange, whole: ByteRange) -> std::ops::Range<usize> {
    // What a buffer holds is no longer than an address.
    let start = (part.start() - whole.start()) as usize;
    start..start + part.len() as usize
}

/// Fills `buffer`, which has the length of `range`, from `range` of `device`, whatever the device's limits are.
///
/// # Errors
/// As the device's.
pub(crate) async fn read(
    device: &dyn BlockDevice,
    range: ByteRange,
    mut buffer: Buffer,
) -> Result<Buffer> {
    let moved = |error: Error| error.moved_to(range.start(), range.len());
    if takes(device, range) {
        return device.read(range.start(), buffer).await;
    }
    let read = read_exact_at(device, range).await.map_err(moved)?;
    buffer.copy_from_slice(&read);
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_around_and_inside_end_with_the_device() {
        let range = ByteRange::between(5000, 20_000);
        assert_eq!(
            around(range, 4096, 20_000),
            ByteRange::between(4096, 20_000)
        );
        assert_eq!(
            inside(range, 4096, 20_000),
            ByteRange::between(8192, 20_000)
        );
        assert_eq!(
            inside(range, 4096, 30_000),
            ByteRange::between(8192, 16_384)
        );
        let last = ByteRange::between(16_384, 20_000);
        assert_eq!(inside(last, 4096, 20_000), last);
        let part = ByteRange::between(16_385, 20_000);
        assert!(inside(part, 4096, 20_000).is_empty());
        let far = ByteRange::between(i64::MAX as u64 - 1, i64::MAX as u64);
        assert_eq!(around(far, 4096, far.end()).end(), far.end());
        assert!(inside(far, 4096, far.end()).is_empty());
    }
}
