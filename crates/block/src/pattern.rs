//! A disk that says of each of its bytes where it is.

use crate::{
    BlockDevice, BoxFuture, Buffer, Capabilities, Context, DeviceInfo, Operation, Result,
    device::request_range,
};

/// A read-only disk of which each 8 bytes, from offset 0 on, hold their own offset as a big-endian number:
/// what nbdkit's pattern plugin serves. A size that is no multiple of 8 cuts the last number.
#[derive(Debug)]
pub struct PatternDevice {
    info: DeviceInfo,
}

impl PatternDevice {
    /// A disk of `size` bytes, `i64::MAX` at most.
    #[must_use]
    pub fn new(size: u64) -> Self {
        let mut info = DeviceInfo::new("pattern:", size.min(i64::MAX.unsigned_abs()));
        info.capabilities = Capabilities::MULTI_CONN;
        info.contexts = vec![Context::Allocation];
        Self { info }
    }
}

fn fill(offset: u64, bytes: &mut [u8]) {
    let inside = (offset % 8) as usize;
    let first = offset - offset % 8;
    let (head, rest) = bytes.split_at_mut(((8 - inside) % 8).min(bytes.len()));
    head.copy_from_slice(&first.to_be_bytes()[inside..][..head.len()]);
    let mut at = first + if inside > 0 { 8 } else { 0 };
    let (words, tail) = rest.as_chunks_mut();
    for word in words {
        *word = at.to_be_bytes();
        // The last word of the largest disk ends below 2^63.
        at += 8;
    }
    tail.copy_from_slice(&at.to_be_bytes()[..tail.len()]);
}

impl BlockDevice for PatternDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, mut buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Read, offset, &buffer)?;
            self.info.check(Operation::Read, range)?;
            fill(offset, &mut buffer);
            Ok(buffer)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn byte_at(offset: u64) -> u8 {
        (offset / 8 * 8).to_be_bytes()[(offset % 8) as usize]
    }

    #[tokio::test]
    async fn every_byte_belongs_to_the_offset_of_its_word() {
        let last = i64::MAX as u64;
        let device = PatternDevice::new(u64::MAX);
        assert_eq!(device.info().size, last);
        for start in [0, 1, 7, 8, 255, 1 << 40, (1 << 62) - 3, last - 40] {
            for length in 0..40 {
                let read = device.read(start, Buffer::zeroed(length)).await;
                let expected: Vec<_> = (start..start + length as u64).map(byte_at).collect();
                assert_eq!(
                    read.expect("in bounds")[..],
                    expected,
                    "{length} at {start}"
                );
            }
        }
    }

    #[tokio::test]
    async fn it_ends_where_its_size_is_and_is_never_written() {
        let device = PatternDevice::new(20);
        let error = device
            .read(16, Buffer::zeroed(5))
            .await
            .expect_err("too far");
        assert_eq!(error.kind(), ErrorKind::OutOfBounds);
        let write = device.write(0, Buffer::zeroed(8), crate::WriteFlags::empty());
        assert_eq!(write.await.expect_err("fixed").kind(), ErrorKind::ReadOnly);
    }
}
