//! An image that is made: the header, the block map, and blocks from a multiple of 1 MiB on.

use std::sync::Arc;

use blockferry_block::{BlockDevice, Error, ErrorKind, Operation, Result};

use super::{
    CreateOptions,
    header::{Header, LENGTH, SECTOR},
    map::FREE,
};
use crate::{
    NewImage,
    blocks::making::{Complete, Ending, Layout, Making},
    uuid,
};

/// The size of a block in bytes: VirtualBox's, and the only one that qemu reads.
const BLOCK: u64 = 1 << 20;

/// How much is kept for the block map where nobody knows how large the disk becomes, in bytes: that of 1 TiB.
const UNKNOWN_MAP: u64 = 4 << 20;

/// The most blocks that an image can have which qemu reads: about 512 TiB.
const MOST_BLOCKS: u64 = 0x1fff_ffff;

/// Begins an image in `below`, which can grow or is large enough. There is no valid image in it before it is
/// [finished](NewImage::finish). Its disk is rounded up to whole sectors of 512 bytes.
///
/// # Errors
/// `InvalidInput` for options that make no sense; what writing failed with.
pub async fn create(
    below: Arc<dyn BlockDevice>,
    options: CreateOptions,
) -> Result<Arc<dyn NewImage>> {
    let blocks = match options.size {
        Some(size) => size.div_ceil(BLOCK),
        None => UNKNOWN_MAP / 4,
    };
    let failed = |error: Error| error.during(Operation::Open);
    let ending = NewHeader {
        is_static: options.is_static,
        room: blocks,
        data: (LENGTH + blocks.min(MOST_BLOCKS) * 4).next_multiple_of(BLOCK),
        uuid: uuid::random().map_err(failed)?,
        modified: uuid::random().map_err(failed)?,
    };
    let layout = Layout {
        first: ending.data,
        block: (!options.is_static).then_some(BLOCK),
        bitmap: 0,
        has_footer: false,
    };
    let making = Making::begin(below, options.size, layout, Box::new(ending)).await?;
    Ok(Arc::new(making))
}

/// The header to be.
struct NewHeader {
    is_static: bool,
    /// How many blocks the map has room for.
    room: u64,
    data: u64,
    uuid: [u8; 16],
    modified: [u8; 16],
}

impl Ending for NewHeader {
    fn check(&self, size: u64) -> Result<()> {
        let most = self.room.min(MOST_BLOCKS);
        if size.div_ceil(BLOCK) <= most {
            return Ok(());
        }
        let message = match self.room > most {
            true => format!("a VDI image has {} bytes at most, not {size}", most * BLOCK),
            false => format!(
                "the block map has room for {} bytes: write the image from a source whose size is known",
                most * BLOCK
            ),
        };
        Err(Error::with_message(ErrorKind::InvalidInput, message))
    }

    fn complete(&self, size: u64, places: &[Option<u32>]) -> Result<Complete> {
        self.check(size)?;
        let blocks = size.div_ceil(BLOCK);
        let mut map = Vec::with_capacity(blocks as usize * 4);
        let (mut allocated, mut end) = (0, 0);
        for index in 0..blocks {
            let place = match self.is_static {
                true => Some(index as u32),
                false => places.get(index as usize).copied().flatten(),
            };
            if let Some(place) = place {
                allocated += 1;
                end = end.max(u64::from(place) + 1);
            }
            map.extend(place.unwrap_or(FREE).to_le_bytes());
        }
        let header = Header {
            is_static: self.is_static,
            map: LENGTH,
            data: self.data,
            size: size.next_multiple_of(SECTOR),
            block: BLOCK,
            extra: 0,
            blocks,
            allocated,
            uuid: self.uuid,
            modified: self.modified,
        };
        Ok(Complete {
            tables: vec![(LENGTH, map)],
            header: (0, header.encode().to_vec()),
            disk: header.size,
            end: self.data + end * BLOCK,
        })
    }
}
