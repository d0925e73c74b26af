//! A disk with what its image says of itself.

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, DeviceInfo, Extent, Mapping,
    Payload, PipeBuffer, Result,
};

use crate::{Details, Image, Placed, placed::by_extents};

/// What of a device's abilities is left to who only reads.
const READING: Capabilities = Capabilities::MULTI_CONN
    .union(Capabilities::REOPEN)
    .union(Capabilities::CACHE)
    .union(Capabilities::SPLICE_READ);

/// A disk that knows where it lies.
pub(crate) trait Placing: BlockDevice {
    /// As [`Image::placed`].
    fn placed(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Placed>>>;
}

/// An image whose disk is a device already, for reading.
pub(crate) struct Interpreted {
    info: DeviceInfo,
    disk: Arc<dyn BlockDevice>,
    /// The same; `None` of another handle, which nobody asks where it lies.
    placing: Option<Arc<dyn Placing>>,
    details: Details,
}

impl Interpreted {
    pub(crate) fn new(disk: Arc<dyn Placing>, details: Details) -> Self {
        let placing = Some(Arc::clone(&disk));
        Self::with(disk, placing, details)
    }

    fn with(
        disk: Arc<dyn BlockDevice>,
        placing: Option<Arc<dyn Placing>>,
        details: Details,
    ) -> Self {
        let mut info = disk.info().clone();
        info.capabilities &= READING;
        Self {
            info,
            disk,
            placing,
            details,
        }
    }
}

impl Image for Interpreted {
    fn details(&self) -> Details {
        self.details.clone()
    }

    fn placed(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Placed>>> {
        match &self.placing {
            Some(disk) => disk.placed(range),
            None => Box::pin(by_extents(self, range)),
        }
    }
}

impl BlockDevice for Interpreted {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        self.disk.read(offset, buffer)
    }

    fn read_piped(
        &self,
        offset: u64,
        length: usize,
        pipe: PipeBuffer,
    ) -> BoxFuture<'_, Result<Payload>> {
        self.disk.read_piped(offset, length, pipe)
    }

    fn cache(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        self.disk.cache(range)
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        self.disk.extents(range, context)
    }

    fn first_extent<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        self.disk.first_extent(range, context)
    }

    fn mapping(&self, range: ByteRange) -> Mapping<'_> {
        self.disk.mapping(range)
    }

    fn reopen(&self) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        Box::pin(async move {
            let disk = self.disk.reopen().await?;
            let again = Self::with(disk, None, self.details.clone());
            Ok(Arc::new(again) as Arc<dyn BlockDevice>)
        })
    }
}
