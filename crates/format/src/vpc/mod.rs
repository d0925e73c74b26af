//! VHD, the format of Virtual PC, Hyper-V and Azure.

use std::sync::Arc;

use blockferry_block::{BlockDevice, BoxFuture, Buffer, DeviceInfo, Error, ErrorKind, Result};

use crate::{OpenOptions, Related, RelatedFile};

/// What an image says of itself. Texts are the image's: escape them before printing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Details {
    /// The size of the virtual disk in bytes.
    pub virtual_size: u64,
    /// The size of a block in bytes; `None` of a fixed image.
    pub block_size: Option<u64>,
    /// What kind of image it is.
    pub kind: Kind,
    /// The image's identity.
    pub uuid: [u8; 16],
    /// The program that made it, four characters.
    pub creator: String,
    /// What shows through where it has nothing of its own.
    pub parent: Option<RelatedFile>,
}

/// The kinds of images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The disk, and a footer behind it.
    Fixed,
    /// Blocks that are allocated as they are written.
    #[default]
    Dynamic,
    /// The same, on top of a parent.
    Differencing,
}

/// What a new image is like.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CreateOptions {
    /// The virtual size in bytes; `None`: [`resize`](BlockDevice::resize) tells.
    pub size: Option<u64>,
    /// [`Kind::Fixed`] or [`Kind::Dynamic`].
    pub kind: Kind,
    /// The disk has exactly the size that was asked for, not that of a geometry: as Azure and Hyper-V have it.
    pub force_size: bool,
}

/// The disk in a VHD image.
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
        crate::Details::Vpc(self.details.clone())
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
        let message = "vpc is not read yet; -f raw reads its bytes";
        Err(Error::with_message(ErrorKind::Unsupported, message))
    }
}

/// A VHD image that is being made.
pub struct NewImage {
    info: DeviceInfo,
}

impl NewImage {
    /// Begins an image in `below`, which can grow or is large enough. There is no valid image in it before
    /// [`finish`](crate::NewImage::finish).
    ///
    /// # Errors
    /// `InvalidInput` for options that make no sense; what writing failed with.
    pub async fn create(below: Arc<dyn BlockDevice>, options: CreateOptions) -> Result<Self> {
        let _ = (&below, options);
        let info = DeviceInfo::new(Arc::clone(&below.info().name), 0);
        let _ = Self { info };
        let message = "vpc is not made yet";
        Err(Error::with_message(ErrorKind::Unsupported, message))
    }
}

impl crate::NewImage for NewImage {
    fn finish(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Err(Error::new(ErrorKind::Unsupported)) })
    }
}

impl BlockDevice for NewImage {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        let error = Error::new(ErrorKind::Unsupported).at(offset, buffer.len() as u64);
        Box::pin(async move { Err(error) })
    }
}
