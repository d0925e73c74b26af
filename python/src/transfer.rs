//! Long reads and writes: in pieces that a device takes, some of which are in flight together.

use std::mem;

use blockferry::block::{
    BlockDevice, Buffer, BufferPool, ByteRange, Capabilities, DeviceInfo, Operation, WriteFlags,
    ZeroFlags, range_of,
};
use futures_util::{
    StreamExt, TryStreamExt,
    stream::{self, FuturesUnordered},
};

use crate::runtime::Result;

/// The length of a piece in bytes, where the device likes no other.
const PIECE: u32 = 256 << 10;

/// How many pieces are in flight together. More of them keep the cache busy and nobody else.
const IN_FLIGHT: usize = 16;

/// How much of a long request is done at a time where its memory can only be touched with the interpreter, in bytes.
pub(crate) const STRETCH: usize = 4 << 20;

/// The pieces of one device, and the buffers that they travel in.
#[derive(Debug)]
pub(crate) struct Pieces {
    size: usize,
    buffers: BufferPool,
}

impl Pieces {
    /// As `info` likes them.
    pub(crate) fn of(info: &DeviceInfo) -> Self {
        let size = PIECE.max(info.limits.preferred).min(info.limits.maximum);
        // No device allows less than its smallest block, and none is that large; a divisor must not be zero.
        let size = size.max(info.limits.minimum).max(1) as usize;
        Self {
            size,
            buffers: BufferPool::new(size, IN_FLIGHT),
        }
    }

    /// Fills `target` from `offset` on.
    pub(crate) async fn read(
        &self,
        device: &dyn BlockDevice,
        offset: u64,
        target: &mut [u8],
    ) -> Result<()> {
        let (mut start, mut rest) = (offset, target);
        let mut in_flight = FuturesUnordered::new();
        loop {
            while in_flight.len() < IN_FLIGHT && !rest.is_empty() {
                let length = self.size.min(rest.len());
                let (part, behind) = mem::take(&mut rest).split_at_mut(length);
                in_flight.push(self.read_piece(device, start, part));
                start += length as u64;
                rest = behind;
            }
            match in_flight.next().await {
                Some(read) => read?,
                None => return Ok(()),
            }
        }
    }

    async fn read_piece(
        &self,
        device: &dyn BlockDevice,
        offset: u64,
        target: &mut [u8],
    ) -> Result<()> {
        let buffer = self.buffers.take(target.len());
        target.copy_from_slice(&device.read(offset, buffer).await?);
        Ok(())
    }

    /// Reads `range` into buffers, in their order: for memory that cannot be touched meanwhile.
    pub(crate) async fn load(
        &self,
        device: &dyn BlockDevice,
        range: ByteRange,
    ) -> Result<Vec<Buffer>> {
        let pieces = range.pieces(self.size as u64);
        let moving = pieces.map(|piece| {
            // A piece is no longer than a buffer.
            let buffer = self.buffers.take(piece.len() as usize);
            device.read(piece.start(), buffer)
        });
        let moving = stream::iter(moving).buffered(IN_FLIGHT);
        moving.try_collect().await
    }

    /// So many bytes in buffers, which `fill` fills, given where each begins.
    pub(crate) fn fill<E>(
        &self,
        length: usize,
        mut fill: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
    ) -> Result<Vec<Buffer>, E> {
        let starts = (0..length).step_by(self.size);
        let filled = starts.map(|start| {
            let mut buffer = self.buffers.take(self.size.min(length - start));
            fill(start, &mut buffer)?;
            Ok(buffer)
        });
        filled.collect()
    }

    /// Writes `data` at `offset`.
    pub(crate) async fn write(
        &self,
        device: &dyn BlockDevice,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
    ) -> Result<()> {
        let buffers = Copies { pieces: self, data };
        store(device, offset, buffers, flags).await
    }

    /// Makes `range` read as zeroes. Where the device has no such command they are written.
    pub(crate) async fn zero(
        &self,
        device: &dyn BlockDevice,
        range: ByteRange,
        flags: ZeroFlags,
    ) -> Result<()> {
        if device.info().can(Capabilities::ZERO) {
            return device.zero(range, flags).await;
        }
        let buffers = range.pieces(self.size as u64).map(|piece| {
            let mut buffer = self.buffers.take(piece.len() as usize);
            buffer.fill(0);
            buffer
        });
        let flags = match flags.contains(ZeroFlags::FUA) {
            true => WriteFlags::FUA,
            false => WriteFlags::empty(),
        };
        store(device, range.start(), buffers, flags).await
    }
}

/// Data in buffers, which are filled when their turn comes.
struct Copies<'a> {
    pieces: &'a Pieces,
    data: &'a [u8],
}

impl Iterator for Copies<'_> {
    type Item = Buffer;

    fn next(&mut self) -> Option<Buffer> {
        if self.data.is_empty() {
            return None;
        }
        let (part, rest) = self.data.split_at(self.pieces.size.min(self.data.len()));
        self.data = rest;
        let mut buffer = self.pieces.buffers.take(part.len());
        buffer.copy_from_slice(part);
        Some(buffer)
    }
}

/// Writes buffers, each behind the one before.
pub(crate) async fn store(
    device: &dyn BlockDevice,
    offset: u64,
    buffers: impl IntoIterator<Item = Buffer>,
    flags: WriteFlags,
) -> Result<()> {
    let mut next = offset;
    let moving = buffers.into_iter().map(|buffer| {
        let start = next;
        next += buffer.len() as u64;
        device.write(start, buffer, flags)
    });
    let moving = stream::iter(moving).buffer_unordered(IN_FLIGHT);
    moving.try_for_each(|_| async { Ok(()) }).await
}

/// The range of a request, once it is sure that it lies on the device, and may be changed if it is to be.
pub(crate) fn range(
    info: &DeviceInfo,
    operation: Operation,
    offset: u64,
    length: u64,
) -> Result<ByteRange> {
    range_of(operation, offset, length)
        .and_then(|range| info.check(operation, range).map(|()| range))
        .map_err(|error| error.on(&info.name))
}
