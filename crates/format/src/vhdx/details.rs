//! What an image says of itself.

use std::sync::Arc;

use blockferry_block::{BlockDevice, Operation, Result};

use super::image::Opened;
use crate::RelatedFile;

/// What an image says of itself. Texts are the image's: escape them before printing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Details {
    /// The size of the virtual disk in bytes.
    pub virtual_size: u64,
    /// The size of a block in bytes.
    pub block_size: u64,
    /// The size of a sector that a guest sees, in bytes.
    pub logical_sector_size: u32,
    /// The size of a sector of the medium, as a guest sees it, in bytes.
    pub physical_sector_size: u32,
    /// All blocks are allocated and stay so.
    pub is_fixed: bool,
    /// It was not closed: its log has writes that have to be replayed.
    pub is_dirty: bool,
    /// The disk's identity, which a guest sees (SCSI's page 83): a GUID in binary form.
    pub disk_uuid: [u8; 16],
    /// The content's identity, by which children know it: a GUID in binary form.
    pub data_uuid: [u8; 16],
    /// What shows through where it has nothing of its own, under the first name that it has.
    pub parent: Option<RelatedFile>,
}

impl Details {
    /// Reads them from the image in `below`, without any other file that it may be made of.
    ///
    /// # Errors
    /// As those of opening the image.
    pub async fn read(below: &Arc<dyn BlockDevice>) -> Result<Self> {
        let opened = Opened::read(Arc::clone(below)).await;
        let opened = opened.map_err(|error| error.during(Operation::Open))?;
        Ok(opened.details())
    }
}
