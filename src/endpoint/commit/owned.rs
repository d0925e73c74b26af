//! A base that takes only what an overlay has.

use std::sync::Arc;

use crate::{
    block::{
        BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, DeviceInfo, Error,
        ErrorKind, Operation, Result, WriteFlags, ZeroFlags, request_range,
    },
    format::Image,
};

/// A device whose writes go to another one, as far as an image has something of its own there: what else is written
/// is what a copy has read along.
pub(super) struct Owned {
    base: Arc<dyn BlockDevice>,
    info: DeviceInfo,
    /// Opened without what is behind it.
    overlay: Arc<dyn Image>,
}

impl Owned {
    pub(super) fn new(base: Arc<dyn BlockDevice>, overlay: Arc<dyn Image>) -> Self {
        let mut info = base.info().clone();
        info.capabilities &= Capabilities::WRITE
            | Capabilities::FLUSH
            | Capabilities::FUA
            | Capabilities::ZERO
            | Capabilities::FAST_ZERO;
        Self {
            base,
            info,
            overlay,
        }
    }

    /// The parts of `range` that the overlay has.
    async fn own(&self, range: ByteRange) -> Result<Vec<ByteRange>> {
        let disk = ByteRange::between(0, self.overlay.info().size);
        let mut rest = range.intersection(disk);
        let mut list: Vec<ByteRange> = Vec::new();
        while !rest.is_empty() {
            let extents = self
                .overlay
                .extents(rest, &Context::AllocationDepth)
                .await?;
            let before = rest;
            for extent in extents {
                if extent.range.start() != rest.start() {
                    break;
                }
                let (part, behind) = rest.split_at(extent.range.len());
                rest = behind;
                match list.last_mut() {
                    _ if extent.status.0 == 0 => {}
                    Some(last) if last.end() == part.start() => {
                        *last = ByteRange::between(last.start(), part.end());
                    }
                    _ => list.push(part),
                }
            }
            if rest == before {
                let message = "the image does not say what it has";
                return Err(Error::with_message(ErrorKind::Corrupt, message));
            }
        }
        Ok(list)
    }
}

impl BlockDevice for Owned {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        self.base.read(offset, buffer)
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Write, offset, &data)?;
            let own = self.own(range).await?;
            if own == [range] {
                return self.base.write(offset, data, flags).await;
            }
            for part in own {
                let start = (part.start() - offset) as usize;
                let bytes = Buffer::from(&data[start..start + part.len() as usize]);
                self.base.write(part.start(), bytes, flags).await?;
            }
            Ok(data)
        })
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            for part in self.own(range).await? {
                self.base.zero(part, flags).await?;
            }
            Ok(())
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        self.base.flush()
    }
}
