//! A part of another device as a device.

use std::sync::Arc;

use crate::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, CopyFlags, DeviceInfo, Error,
    ErrorKind, Extent, FileRange, Mapping, Operation, Payload, PipeBuffer, Result, WriteFlags,
    ZeroFlags,
    device::{range_of, request_range},
};

/// A range of a device that looks like a device of its own: what lies around it cannot be reached.
///
/// Everything else is handed on with the offset changed: extents, the place in a file, flushes. The
/// device's limits hold for the part too, so a part that does not begin at a multiple of its smallest
/// block cannot be.
pub struct SliceDevice {
    inner: Arc<dyn BlockDevice>,
    info: DeviceInfo,
    start: u64,
}

impl SliceDevice {
    /// `length` bytes of `device` from `offset` on; `None`: up to its end.
    ///
    /// # Errors
    /// `OutOfBounds` when the device has no such range; `InvalidInput` when it begins inside one of the
    /// device's smallest blocks, or ends in one that is not the last.
    pub fn new(device: Arc<dyn BlockDevice>, offset: u64, length: Option<u64>) -> Result<Self> {
        let whole = device.info().size;
        let length = length.unwrap_or(whole.saturating_sub(offset));
        if offset > whole || length > whole - offset {
            let message = match offset > whole {
                true => format!("there is no offset {offset}: it has {whole} bytes"),
                false => format!("there are no {length} bytes at offset {offset}: it has {whole}"),
            };
            let error = Error::with_message(ErrorKind::OutOfBounds, message);
            return Err(error.during(Operation::Open));
        }
        let minimum = u64::from(device.info().limits.minimum.max(1));
        let end = offset + length;
        let ends_well = end.is_multiple_of(minimum) || end == whole;
        if !offset.is_multiple_of(minimum) || !ends_well {
            let message = format!("a part of it begins and ends at multiples of {minimum} bytes");
            let error = Error::with_message(ErrorKind::InvalidInput, message);
            return Err(error.during(Operation::Open));
        }
        let mut info = device.info().clone();
        info.size = length;
        info.capabilities -= Capabilities::RESIZE;
        Ok(Self {
            inner: device,
            info,
            start: offset,
        })
    }

    /// Where in the whole a request lies, if it lies in the part.
    fn outer(&self, operation: Operation, range: ByteRange) -> Result<ByteRange> {
        self.info.check(operation, range)?;
        range_of(operation, self.start + range.start(), range.len())
    }

    /// What the whole said of `outer`, at its place in the part.
    fn moved(&self, outer: ByteRange, mut extents: Vec<Extent>) -> Vec<Extent> {
        for extent in &mut extents {
            let place = extent.range.intersection(outer);
            let start = place.start() - self.start;
            extent.range = ByteRange::between(start, start + place.len());
        }
        extents
    }

    /// An error of the whole, told with the part's offset.
    fn told(&self, range: ByteRange) -> impl FnOnce(Error) -> Error {
        move |error| error.moved_to(range.start(), range.len())
    }
}

impl BlockDevice for SliceDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Read, offset, &buffer)?;
            let outer = self.outer(Operation::Read, range)?;
            let read = self.inner.read(outer.start(), buffer).await;
            read.map_err(self.told(range))
        })
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Write, offset, &data)?;
            let outer = self.outer(Operation::Write, range)?;
            let written = self.inner.write(outer.start(), data, flags).await;
            written.map_err(self.told(range))
        })
    }

    fn read_piped(
        &self,
        offset: u64,
        length: usize,
        pipe: PipeBuffer,
    ) -> BoxFuture<'_, Result<Payload>> {
        Box::pin(async move {
            let range = range_of(Operation::Read, offset, length as u64)?;
            let outer = self.outer(Operation::Read, range)?;
            let read = self.inner.read_piped(outer.start(), length, pipe).await;
            read.map_err(self.told(range))
        })
    }

    fn write_piped(
        &self,
        offset: u64,
        data: PipeBuffer,
        flags: WriteFlags,
    ) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let range = range_of(Operation::Write, offset, data.len() as u64)?;
            let outer = self.outer(Operation::Write, range)?;
            let written = self.inner.write_piped(outer.start(), data, flags).await;
            written.map_err(self.told(range))
        })
    }

    fn copy_from(
        &self,
        offset: u64,
        source: FileRange,
        flags: CopyFlags,
    ) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let range = range_of(Operation::Copy, offset, source.range().len())?;
            let outer = self.outer(Operation::Copy, range)?;
            let copied = self.inner.copy_from(outer.start(), source, flags).await;
            copied.map_err(self.told(range))
        })
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let outer = self.outer(Operation::Zero, range)?;
            let zeroed = self.inner.zero(outer, flags).await;
            zeroed.map_err(self.told(range))
        })
    }

    fn trim(&self, range: ByteRange, flags: WriteFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let outer = self.outer(Operation::Trim, range)?;
            let trimmed = self.inner.trim(outer, flags).await;
            trimmed.map_err(self.told(range))
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        self.inner.flush()
    }

    fn cache(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let outer = self.outer(Operation::Cache, range)?;
            self.inner.cache(outer).await.map_err(self.told(range))
        })
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        Box::pin(async move {
            let outer = self.outer(Operation::Extents, range)?;
            let extents = self.inner.extents(outer, context).await;
            Ok(self.moved(outer, extents.map_err(self.told(range))?))
        })
    }

    fn first_extent<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        Box::pin(async move {
            let outer = self.outer(Operation::Extents, range)?;
            let extents = self.inner.first_extent(outer, context).await;
            Ok(self.moved(outer, extents.map_err(self.told(range))?))
        })
    }

    fn mapping(&self, range: ByteRange) -> Mapping<'_> {
        let inside = range.intersection(ByteRange::between(0, self.info.size));
        let start = self.start + inside.start();
        self.inner
            .mapping(ByteRange::between(start, start + inside.len()))
    }

    fn reopen(&self) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        Box::pin(async move {
            let again = self.inner.reopen().await?;
            let slice = Self::new(again, self.start, Some(self.info.size))?;
            Ok(Arc::new(slice) as Arc<dyn BlockDevice>)
        })
    }
}
