//! The file that tables or data lie in, as one handle sees it: read in any pieces, and its end may move.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, Capabilities, Operation, Result, WriteFlags, range_of,
    read_exact_at, request_range,
};

use crate::corrupt::corrupt;

/// A file of an image. Cloning is cheap; all clones and handles share the end.
#[derive(Clone)]
pub(crate) struct HostFile {
    device: Arc<dyn BlockDevice>,
    end: Arc<AtomicU64>,
}

impl HostFile {
    pub(crate) fn new(device: Arc<dyn BlockDevice>) -> Self {
        let end = Arc::new(AtomicU64::new(device.info().size));
        Self { device, end }
    }

    /// The same file through another handle.
    pub(crate) fn through(&self, device: Arc<dyn BlockDevice>) -> Self {
        Self {
            device,
            end: Arc::clone(&self.end),
        }
    }

    /// The same file through another handle, or the same one where it needs no other.
    ///
    /// # Errors
    /// What opening it again failed with.
    pub(crate) async fn again(&self) -> Result<Self> {
        if !self.device.info().can(Capabilities::REOPEN) {
            return Ok(self.clone());
        }
        Ok(self.through(self.device.reopen().await?))
    }

    pub(crate) fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    /// Where it ends: behind what it was opened with and what was written since.
    pub(crate) fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// Tells that it was made longer.
    pub(crate) fn grown_to(&self, end: u64) {
        self.end.fetch_max(end, Ordering::AcqRel);
    }

    /// Whether a request for `range` can be handed to the device as it is.
    pub(crate) fn takes(&self, range: ByteRange) -> bool {
        let limits = self.device.info().limits;
        let minimum = u64::from(limits.minimum.max(1));
        let is_end = |end: u64| end.is_multiple_of(minimum) || end == self.device.info().size;
        range.end() <= self.end()
            && range.len() <= limits.maximum.into()
            && range.start().is_multiple_of(minimum)
            && is_end(range.end())
    }

    /// Fills `buffer` from `offset` on, which lies before the end as a whole.
    ///
    /// # Errors
    /// `OutOfBounds`, what a read failed with.
    pub(crate) async fn read(&self, offset: u64, buffer: Buffer) -> Result<Buffer> {
        let range = request_range(Operation::Read, offset, &buffer)?;
        if self.takes(range) {
            return self.device.read(offset, buffer).await;
        }
        read_before(&*self.device, self.end(), offset, buffer).await
    }

    /// Fills `buffer` from `offset` on, which lies before the end; what lies behind the end reads as zeroes: qemu
    /// lets a file end inside its last cluster.
    ///
    /// # Errors
    /// `Corrupt` where all of it lies behind the end, with the name that `what` gives; what a read failed with.
    pub(crate) async fn read_padded(
        &self,
        offset: u64,
        mut buffer: Buffer,
        what: impl FnOnce() -> String,
    ) -> Result<Buffer> {
        let length = buffer.len();
        let end = self.end();
        let range = range_of(Operation::Read, offset, length as u64)?;
        if range.end() <= end {
            return self.read(offset, buffer).await;
        }
        if offset >= end {
            return Err(corrupt(format!(
                "{} lies at {offset:#x}, past the end of the file",
                what()
            )));
        }
        let there = (end - offset) as usize;
        buffer.set_len(there);
        let mut buffer = self.read(offset, buffer).await?;
        buffer.set_len(length);
        buffer[there..].fill(0);
        Ok(buffer)
    }

    /// Writes `data` at `offset`, both on the file's blocks, in as few requests as there can be, and gives it back.
    ///
    /// # Errors
    /// What a write failed with: any part of it may have been written.
    pub(crate) async fn write(&self, offset: u64, data: Buffer) -> Result<Buffer> {
        let range = request_range(Operation::Write, offset, &data)?;
        let limits = self.device.info().limits;
        let longest = u64::from(limits.maximum - limits.maximum % limits.minimum.max(1)).max(1);
        if range.len() <= longest {
            let data = self.device.write(offset, data, WriteFlags::empty()).await?;
            self.grown_to(range.end());
            return Ok(data);
        }
        let mut rest = range;
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at(longest);
            let from = (piece.start() - offset) as usize;
            let part = Buffer::from(&data[from..][..piece.len() as usize]);
            let flags = WriteFlags::empty();
            self.device.write(piece.start(), part, flags).await?;
            self.grown_to(piece.end());
            rest = tail;
        }
        Ok(data)
    }

    /// Writes a few bytes anywhere: what else is in the file's blocks there is read before.
    ///
    /// # Errors
    /// What reading or writing failed with.
    pub(crate) async fn patch(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let minimum = u64::from(self.device.info().limits.minimum.max(1));
        let start = offset - offset % minimum;
        let end = (offset + bytes.len() as u64).next_multiple_of(minimum);
        let mut buffer = Buffer::zeroed((end - start) as usize);
        if buffer.len() > bytes.len() {
            let name = || "what is to be changed".to_owned();
            buffer = self.read_padded(start, buffer, name).await?;
        }
        buffer[(offset - start) as usize..][..bytes.len()].copy_from_slice(bytes);
        self.write(start, buffer).await.map(drop)
    }
}

/// Fills `buffer` from `offset` on, before `end`, where `device` ends: it may have grown, which its size does not tell.
///
/// # Errors
/// `OutOfBounds`, what a read failed with.
pub(crate) async fn read_before(
    device: &dyn BlockDevice,
    end: u64,
    offset: u64,
    buffer: Buffer,
) -> Result<Buffer> {
    let range = request_range(Operation::Read, offset, &buffer)?;
    let mut buffer = buffer;
    if range.end() <= device.info().size {
        let read = read_exact_at(device, range).await?;
        buffer.copy_from_slice(&read);
        return Ok(buffer);
    }
    // It has grown, which the device's size does not tell.
    let limits = device.info().limits;
    let minimum = u64::from(limits.minimum.max(1));
    let longest = u64::from(limits.maximum - limits.maximum % limits.minimum.max(1));
    let last = range.end().next_multiple_of(minimum).min(end);
    let around = ByteRange::between(offset - offset % minimum, last.max(range.end()));
    for piece in around.pieces(longest.max(minimum)) {
        let read = Buffer::zeroed(piece.len() as usize);
        let read = device.read(piece.start(), read).await?;
        let own = piece.intersection(range);
        let (from, to) = (own.start() - piece.start(), own.start() - offset);
        let length = own.len() as usize;
        buffer[to as usize..][..length].copy_from_slice(&read[from as usize..][..length]);
    }
    Ok(buffer)
}
