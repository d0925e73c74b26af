//! Small reads of what describes an image: tables and headers that lie close together.

use blockferry_block::{BlockDevice, Buffer, ByteRange, Error, ErrorKind, Operation, Result};

/// What is read at a time, in bytes: the header and the entries of most partition tables at once.
const STEP: u64 = 32 << 10;

/// A part of a device that was read, and is read anew when something else is looked at.
pub(crate) struct Window<'a> {
    device: &'a dyn BlockDevice,
    /// What of the device is in `bytes`.
    range: ByteRange,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    /// Nothing was read yet.
    pub(crate) fn new(device: &'a dyn BlockDevice) -> Self {
        Self {
            device,
            range: ByteRange::default(),
            bytes: Vec::new(),
        }
    }

    /// The size of the device, in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.device.info().size
    }

    /// The bytes of `range`, all of which are taken into memory: the caller has checked how many there are.
    ///
    /// # Errors
    /// `UnexpectedEnd` where the device has no such range, and what reading fails with.
    pub(crate) async fn bytes(&mut self, range: ByteRange) -> Result<&[u8]> {
        if range.end() > self.size() {
            return Err(Error::new(ErrorKind::UnexpectedEnd)
                .during(Operation::Read)
                .at(range.start(), range.len()));
        }
        if !self.range.contains(range) {
            self.read(range).await?;
        }
        let start = (range.start() - self.range.start()) as usize;
        Ok(&self.bytes[start..start + range.len() as usize])
    }

    /// Reads `range` and what follows it, as the device wants to be read.
    async fn read(&mut self, range: ByteRange) -> Result<()> {
        self.range = ByteRange::default();
        self.bytes.clear();
        let limits = self.device.info().limits;
        let minimum = u64::from(limits.minimum.max(1));
        let start = range.start() - range.start() % minimum;
        let end = range.end().max(start.saturating_add(STEP));
        let end = end.checked_next_multiple_of(minimum).unwrap_or(u64::MAX);
        let whole = ByteRange::between(start, end.min(self.size()));
        let longest = u64::from(limits.maximum).max(minimum);
        for piece in whole.pieces(longest - longest % minimum) {
            let buffer = Buffer::zeroed(piece.len() as usize);
            let read = self.device.read(piece.start(), buffer).await?;
            self.bytes.extend_from_slice(&read);
        }
        self.range = whole;
        Ok(())
    }
}

/// The little-endian number at `offset`; 0 where there are not so many bytes.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let number = bytes.get(offset..).and_then(<[u8]>::first_chunk);
    number.map_or(0, |number| u32::from_le_bytes(*number))
}

/// The little-endian number at `offset`; 0 where there are not so many bytes.
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let number = bytes.get(offset..).and_then(<[u8]>::first_chunk);
    number.map_or(0, |number| u64::from_le_bytes(*number))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use blockferry_block::{MemoryDevice, testing::FaultyDevice};

    use super::*;

    #[tokio::test]
    async fn reads_keep_to_what_the_device_wants_and_are_few() {
        let bytes: Vec<u8> = (0..200_100_u32).map(|at| (at / 7) as u8).collect();
        for (minimum, maximum) in [(1, 32 << 20), (512, 4096), (4096, 4096), (65536, 65536)] {
            let device = FaultyDevice::new(Arc::new(MemoryDevice::from_bytes(&bytes)));
            let device = device.with_info(|info| {
                info.limits.minimum = minimum;
                info.limits.maximum = maximum;
            });
            let mut window = Window::new(&device);
            for (start, length) in [
                (0, 512),
                (512, 92),
                (1024, 16384),
                (199_000, 1100),
                (7, 60_000),
            ] {
                let range = ByteRange::new(start, length).expect("a range");
                let found = window.bytes(range).await.expect("bytes");
                assert_eq!(*found, bytes[start as usize..range.end() as usize]);
            }
            if minimum == 1 {
                assert_eq!(device.calls(Operation::Read), 3);
            }
            let beyond = ByteRange::between(200_000, 200_101);
            let error = window.bytes(beyond).await.expect_err("the end");
            assert_eq!(error.kind(), ErrorKind::UnexpectedEnd);
        }
    }

    #[test]
    fn numbers_that_are_cut_off_are_none() {
        assert_eq!(u32_at(&[1, 2, 0, 0, 9], 0), 0x201);
        assert_eq!(u32_at(&[1, 2, 3], 0), 0);
        assert_eq!(u64_at(&[0; 4], usize::MAX), 0);
    }
}
