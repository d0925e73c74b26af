//! VHDX, Hyper-V's format.

use std::sync::Arc;

use blockferry_block::{BlockDevice, BoxFuture, Buffer, DeviceInfo, Error, ErrorKind, Result};

use crate::{OpenOptions, Related, RelatedFile};

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
    /// The content's identity.
    pub data_uuid: [u8; 16],
    /// What shows through where it has nothing of its own.
    pub parent: Option<RelatedFile>,
}

/// The disk in a VHDX image.
pub struct Image {
    info: DeviceInfo,
    details: Details,
}

impl Image {
    /// Opens the image in `below`. Other files that it names are opened by `related`.
    ///
    /// # Errors
    /// As [`Format::open`](crate::Format::open).
    pub async fn open(
        below: Arc<dyn BlockDevice>,
        related: &dyn Related,
        options: &OpenOptions,
    ) -> Result<Self> {
        let _ = (related, options);
        let details = Details::read(&below).await?;
        let info = DeviceInfo::new(Arc::clone(&below.info().name), details.virtual_size);
        Ok(Self { info, details })
    }
}

impl crate::Image for Image {
    fn details(&self) -> crate::Details {
        crate::Details::Vhdx(self.details.clone())
    }
}

impl BlockDevice for Image {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        let error = Error::new(ErrorKind::Unsupported).at(offset, buffer.len() as u64);
        Box::pin(async move { Err(error) })
    }
}

impl Details {
    /// Reads them from the image in `below`, without any other file that it may be made of.
    ///
    /// # Errors
    /// As those of opening the image.
    pub async fn read(below: &Arc<dyn BlockDevice>) -> Result<Self> {
        let _ = below;
        let message = "vhdx is not read yet; -f raw reads its bytes";
        Err(Error::with_message(ErrorKind::Unsupported, message))
    }
}
