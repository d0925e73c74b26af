//! Several devices, one behind the other, as one.

use std::sync::Arc;

use crate::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, CopyFlags, DeviceInfo, Error,
    ErrorKind, Extent, FileRange, Mapping, Operation, Result, WriteFlags, ZeroFlags,
    device::{range_of, request_range},
    push_merged,
};

/// Devices joined: the first byte of each one follows the last byte of the one before.
///
/// It can do what all of them can. Requests that cross from one to the next are cut there; a flush makes
/// all of them durable. Extents and places in files are those of the part that they lie in.
pub struct SplitDevice {
    info: DeviceInfo,
    parts: Vec<Part>,
}

struct Part {
    device: Arc<dyn BlockDevice>,
    /// Where it lies in the whole.
    place: ByteRange,
}

/// What of a request falls to a part.
#[derive(Clone, Copy)]
struct Share<'a> {
    device: &'a dyn BlockDevice,
    /// In the part.
    inner: ByteRange,
    /// In the whole.
    outer: ByteRange,
}

/// What a joined device can do when all of its parts can.
const SHARED: Capabilities = Capabilities::WRITE
    .union(Capabilities::FLUSH)
    .union(Capabilities::FUA)
    .union(Capabilities::TRIM)
    .union(Capabilities::ZERO)
    .union(Capabilities::FAST_ZERO)
    .union(Capabilities::CACHE)
    .union(Capabilities::MULTI_CONN)
    .union(Capabilities::COPY_FROM)
    .union(Capabilities::BORN_ZERO);

impl SplitDevice {
    /// Joins the devices, one at least, in their order.
    ///
    /// # Errors
    /// `InvalidInput` when there are none, when together they are larger than an image can be, or when
    /// one ends where the smallest block of another would be cut.
    pub fn new(devices: Vec<Arc<dyn BlockDevice>>) -> Result<Self> {
        let refused = |message: String| {
            Error::with_message(ErrorKind::InvalidInput, message).during(Operation::Open)
        };
        let Some(first) = devices.first() else {
            return Err(refused("there is nothing to join".to_owned()));
        };
        let mut info = DeviceInfo::new("split:", 0);
        info.limits = first.info().limits;
        info.capabilities = first.info().capabilities & SHARED;
        info.contexts = first.info().contexts.clone();
        for device in &devices {
            let part = device.info();
            info.limits.minimum = info.limits.minimum.max(part.limits.minimum);
            info.limits.preferred = info.limits.preferred.max(part.limits.preferred);
            info.limits.maximum = info.limits.maximum.min(part.limits.maximum);
            info.capabilities &= part.capabilities;
            info.contexts.retain(|known| part.contexts.contains(known));
            info.rotational |= part.rotational;
        }
        let minimum = info.limits.minimum.max(1);
        let mut parts: Vec<Part> = Vec::with_capacity(devices.len());
        for device in devices {
            let start = parts.last().map_or(0, |part| part.place.end());
            if !start.is_multiple_of(minimum.into()) {
                let before = parts.last().map_or("", |part| &*part.device.info().name);
                return Err(refused(format!(
                    "{before} ends inside a block: only the last part may have a size that is no \
                     multiple of {minimum} bytes"
                )));
            }
            let place = ByteRange::new(start, device.info().size)
                .map_err(|_| refused("together they are larger than an image can be".to_owned()))?;
            parts.push(Part { device, place });
        }
        info.size = parts.last().map_or(0, |part| part.place.end());
        Ok(Self { info, parts })
    }

    /// The same device, called `name` in messages.
    #[must_use]
    pub fn named(mut self, name: impl Into<Arc<str>>) -> Self {
        self.info.name = name.into();
        self
    }

    /// What each part has of `range`, in order.
    fn shares(&self, range: ByteRange) -> impl Iterator<Item = Share<'_>> {
        let first = self
            .parts
            .partition_point(|part| part.place.end() <= range.start());
        let parts = self.parts[first..].iter();
        parts
            .take_while(move |part| part.place.start() < range.end())
            .filter_map(move |part| {
                let outer = part.place.intersection(range);
                let start = outer.start() - part.place.start();
                (!outer.is_empty()).then(|| Share {
                    device: &*part.device,
                    inner: ByteRange::between(start, start + outer.len()),
                    outer,
                })
            })
    }

    /// The one part that has all of `range`, which is not empty.
    fn only_share(&self, range: ByteRange) -> Option<Share<'_>> {
        self.shares(range)
            .next()
            .filter(|share| share.outer == range)
    }

    fn checked(&self, operation: Operation, offset: u64, length: u64) -> Result<ByteRange> {
        let range = range_of(operation, offset, length)?;
        self.info.check(operation, range)?;
        Ok(range)
    }
}

/// An error of a part, told with the offset in the whole.
fn told(share: Share<'_>) -> impl FnOnce(Error) -> Error {
    let outer = share.outer;
    move |error| error.moved_to(outer.start(), outer.len())
}

impl BlockDevice for SplitDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, mut buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Read, offset, &buffer)?;
            self.info.check(Operation::Read, range)?;
            if let Some(share) = self.only_share(range) {
                let read = share.device.read(share.inner.start(), buffer).await;
                return read.map_err(told(share));
            }
            for share in self.shares(range) {
                let start = (share.outer.start() - offset) as usize;
                let part = &mut buffer[start..start + share.outer.len() as usize];
                let read = share
                    .device
                    .read(share.inner.start(), Buffer::zeroed(part.len()));
                part.copy_from_slice(&read.await.map_err(told(share))?);
            }
            Ok(buffer)
        })
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Write, offset, &data)?;
            self.info.check(Operation::Write, range)?;
            if let Some(share) = self.only_share(range) {
                let written = share.device.write(share.inner.start(), data, flags).await;
                return written.map_err(told(share));
            }
            for share in self.shares(range) {
                let start = (share.outer.start() - offset) as usize;
                let part = Buffer::from(&data[start..start + share.outer.len() as usize]);
                let written = share.device.write(share.inner.start(), part, flags).await;
                written.map_err(told(share))?;
            }
            Ok(data)
        })
    }

    fn copy_from(
        &self,
        offset: u64,
        source: FileRange,
        flags: CopyFlags,
    ) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let range = self.checked(Operation::Copy, offset, source.range().len())?;
            for share in self.shares(range) {
                let start = source.range().start() + (share.outer.start() - offset);
                let part = range_of(Operation::Copy, start, share.outer.len())?;
                let part = source.with_range(part);
                let copied = share.device.copy_from(share.inner.start(), part, flags);
                copied.await.map_err(told(share))?;
            }
            Ok(())
        })
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.info.check(Operation::Zero, range)?;
            for share in self.shares(range) {
                let zeroed = share.device.zero(share.inner, flags).await;
                zeroed.map_err(told(share))?;
            }
            Ok(())
        })
    }

    fn trim(&self, range: ByteRange, flags: WriteFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.info.check(Operation::Trim, range)?;
            for share in self.shares(range) {
                let trimmed = share.device.trim(share.inner, flags).await;
                trimmed.map_err(told(share))?;
            }
            Ok(())
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            // One that fails does not keep the others from becoming durable.
            let mut result = Ok(());
            for part in &self.parts {
                let flushed = part.device.flush().await;
                result = result.and(flushed);
            }
            result
        })
    }

    fn cache(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.info.check(Operation::Cache, range)?;
            for share in self.shares(range) {
                share.device.cache(share.inner).await.map_err(told(share))?;
            }
            Ok(())
        })
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        Box::pin(async move {
            self.info.check(Operation::Extents, range)?;
            let mut list = Vec::new();
            for share in self.shares(range) {
                let extents = share.device.extents(share.inner, context).await;
                let shift = share.outer.start() - share.inner.start();
                let mut end = share.inner.start();
                for extent in extents.map_err(told(share))? {
                    let inside = extent.range.intersection(share.inner);
                    end = inside.end();
                    let range = ByteRange::between(inside.start() + shift, end + shift);
                    let status = extent.status;
                    push_merged(&mut list, Extent { range, status });
                }
                if end < share.inner.end() {
                    // It says no more for now; what follows is to be asked for again.
                    break;
                }
            }
            Ok(list)
        })
    }

    fn mapping(&self, range: ByteRange) -> Mapping<'_> {
        match self.shares(range).next() {
            Some(share) if share.outer.start() == range.start() => {
                share.device.mapping(share.inner)
            }
            _ => Mapping::Opaque,
        }
    }
}
