//! VDI, VirtualBox's format: a header, a map of blocks, and the blocks. It has no public specification; what is known
//! of it is in VirtualBox's sources (`VDICore.h`) and in a text of its makers in their forum ("VirtualBox VDI image
//! storage").
//!
//! ```text
//!   header   the header: parsed, checked, written
//!   map      which block of the file each block of the disk is
//!   new      an image that is made
//! ```
//!
//! Images on their own are read, dynamic and static. Undo and differencing images are refused: whose parent they need
//! stands in VirtualBox's own registry.

mod header;
mod map;
mod new;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use blockferry_block::{BlockDevice, Operation, Result};

pub use self::new::create;
use self::{header::Header, map::Map};
use crate::{
    OpenOptions,
    blocks::{BitOrder, BlocksDisk, Parts, Shape},
};

/// What an image says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Details {
    /// The size of the virtual disk in bytes.
    pub virtual_size: u64,
    /// The size of a block in bytes.
    pub block_size: u64,
    /// All blocks are allocated.
    pub is_static: bool,
    /// The image's identity.
    pub uuid: [u8; 16],
}

/// What a new image is like.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CreateOptions {
    /// The virtual size in bytes; `None`: [`resize`](BlockDevice::resize) tells.
    pub size: Option<u64>,
    /// All blocks are allocated.
    pub is_static: bool,
}

/// Opens the image in `below`.
///
/// # Errors
/// As [`Format::open`](crate::Format::open).
pub async fn open(
    below: Arc<dyn BlockDevice>,
    options: &OpenOptions,
) -> Result<Arc<dyn crate::Image>> {
    let opened = open_inside(below, options).await;
    opened.map_err(|error| error.during(Operation::Open))
}

async fn open_inside(
    below: Arc<dyn BlockDevice>,
    options: &OpenOptions,
) -> Result<Arc<dyn crate::Image>> {
    options.check_reading("a VDI image")?;
    let header = Header::read(&*below).await?;
    options.check_size(header.size)?;
    let details = Details::of(&header);
    let shape = Shape {
        size: header.size,
        block: header.block,
        sector: header::SECTOR,
        order: BitOrder::LowFirst,
    };
    let map = Map::read(&*below, header, shape).await?;
    Ok(Arc::new(BlocksDisk::of(Parts {
        shape,
        table: Arc::new(map),
        file: below,
        parent: None,
        bitmap_memory: 0,
        is_sparse: details.is_static,
        details: crate::Details::Vdi(details),
    })))
}

impl Details {
    /// Reads them from the image in `below`, without any other file that it may be made of.
    ///
    /// # Errors
    /// As those of opening the image.
    pub async fn read(below: &Arc<dyn BlockDevice>) -> Result<Self> {
        let header = Header::read(&**below).await;
        let header = header.map_err(|error| error.during(Operation::Open))?;
        Ok(Self::of(&header))
    }

    fn of(header: &Header) -> Self {
        Self {
            virtual_size: header.size,
            block_size: header.block,
            is_static: header.is_static,
            uuid: header.uuid,
        }
    }
}
