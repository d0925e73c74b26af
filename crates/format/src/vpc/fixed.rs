//! The disk of a fixed image: the beginning of the file.

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, DeviceInfo, Extent, Mapping,
    Payload, PipeBuffer, Result, SliceDevice,
};

use super::footer::SECTOR;
use crate::{
    Contents, Details, Image, Place, PlaceFile, Placed,
    blocks::{BitOrder, Block, BlocksDisk, Parts, Row, Shape, Table},
    placed::by_extents,
};

/// What of a file's abilities is left to who only reads.
const READING: Capabilities = Capabilities::MULTI_CONN
    .union(Capabilities::REOPEN)
    .union(Capabilities::CACHE)
    .union(Capabilities::SPLICE_READ);

/// The first `size` bytes of `below` as the disk of an image that says `details` of itself.
///
/// # Errors
/// `OutOfBounds` where there are fewer.
pub(super) fn open(
    below: Arc<dyn BlockDevice>,
    size: u64,
    details: Details,
) -> Result<Arc<dyn Image>> {
    if size.is_multiple_of(u64::from(below.info().limits.minimum.max(1))) {
        let disk = SliceDevice::new(below, 0, Some(size))?;
        return Ok(Arc::new(Fixed::new(Arc::new(disk), details)));
    }
    // It ends within a block of what is below.
    Ok(Arc::new(BlocksDisk::of(Parts {
        shape: Shape {
            size,
            block: size.next_power_of_two(),
            sector: SECTOR,
            order: BitOrder::HighFirst,
        },
        table: Arc::new(Whole),
        file: below,
        parent: None,
        bitmap_memory: 0,
        is_sparse: false,
        details,
    })))
}

/// The table of a disk that is one block.
struct Whole;

impl Table for Whole {
    fn row(&self, _: u64) -> Result<Option<Row>> {
        Ok(Some(Block::Host(0).into()))
    }
}

/// A part of a file, for reading: everything goes to it as it is.
struct Fixed {
    info: DeviceInfo,
    disk: Arc<dyn BlockDevice>,
    details: Details,
}

impl Fixed {
    fn new(disk: Arc<dyn BlockDevice>, details: Details) -> Self {
        let mut info = disk.info().clone();
        info.capabilities &= READING;
        Self {
            info,
            disk,
            details,
        }
    }
}

impl Image for Fixed {
    fn details(&self) -> Details {
        self.details.clone()
    }

    /// It lies where it lies on the disk, and its holes are those of the file: all of it is allocated.
    fn placed(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Placed>>> {
        Box::pin(async move {
            let mut placed = by_extents(&*self.disk, range).await?;
            for part in &mut placed {
                let (file, offset) = (PlaceFile::Image, part.range.start());
                part.place = Some(Place { file, offset });
                if part.contents == Contents::Zero {
                    part.contents = Contents::Sparse;
                }
            }
            Ok(placed)
        })
    }
}

impl BlockDevice for Fixed {
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
            let again = Self::new(disk, self.details.clone());
            Ok(Arc::new(again) as Arc<dyn BlockDevice>)
        })
    }
}
