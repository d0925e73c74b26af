//! The packed file, read in big pieces to look at its headers.

use blockferry_block::{BlockDevice, Buffer, ByteRange, Result, read_exact_at};

/// How much is read at a time, and can be looked at in one go, in bytes.
pub(super) const PIECE: u64 = 1 << 20;

/// A piece of a device that moves to where it is looked at.
pub(super) struct Window<'a> {
    device: &'a dyn BlockDevice,
    piece: Buffer,
    start: u64,
}

impl<'a> Window<'a> {
    pub(super) fn new(device: &'a dyn BlockDevice) -> Self {
        Self {
            device,
            piece: Buffer::zeroed(0),
            start: 0,
        }
    }

    /// The device, for reading more than a piece.
    pub(super) fn device(&self) -> &'a dyn BlockDevice {
        self.device
    }

    /// The size of the device, in bytes.
    pub(super) fn size(&self) -> u64 {
        self.device.info().size
    }

    /// `length` bytes from `offset` on, [`PIECE`] at most, or `None` where the file ends before. What lies behind
    /// them is read with them.
    pub(super) async fn forward(&mut self, offset: u64, length: u64) -> Result<Option<&[u8]>> {
        let Some(end) = self.end_of(offset, length) else {
            return Ok(None);
        };
        self.show(
            offset,
            end,
            ByteRange::between(offset, self.size().min(offset + PIECE)),
        )
        .await
    }

    /// As [`forward`](Self::forward), but what lies before them is read with them.
    pub(super) async fn backward(&mut self, offset: u64, length: u64) -> Result<Option<&[u8]>> {
        let Some(end) = self.end_of(offset, length) else {
            return Ok(None);
        };
        let start = end.saturating_sub(PIECE);
        self.show(offset, end, ByteRange::between(start, end)).await
    }

    /// As much as there is from `offset` on, up to `length` bytes.
    pub(super) async fn up_to(&mut self, offset: u64, length: u64) -> Result<&[u8]> {
        let length = length.min(self.size().saturating_sub(offset));
        Ok(self.forward(offset, length).await?.unwrap_or(&[]))
    }

    fn end_of(&self, offset: u64, length: u64) -> Option<u64> {
        let end = offset.checked_add(length.min(PIECE))?;
        (length <= PIECE && end <= self.size()).then_some(end)
    }

    async fn show(&mut self, offset: u64, end: u64, around: ByteRange) -> Result<Option<&[u8]>> {
        let known = self.start..self.start + self.piece.len() as u64;
        if offset < known.start || end > known.end {
            // What is cached is read without waiting; a large file would hold up everything else here.
            tokio::task::yield_now().await;
            self.piece = read_exact_at(self.device, around).await?;
            self.start = around.start();
        }
        let from = (offset - self.start) as usize;
        let to = (end - self.start) as usize;
        Ok(self.piece.get(from..to))
    }
}

/// A little-endian number of 2 bytes at `at`.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A little-endian number of 4 bytes at `at`.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
