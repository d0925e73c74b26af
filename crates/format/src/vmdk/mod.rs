//! VMDK, VMware's format.

use std::sync::Arc;

use blockferry_block::{BlockDevice, BoxFuture, Buffer, DeviceInfo, Error, ErrorKind, Result};

use crate::{OpenOptions, Related, RelatedFile};

/// What an image says of itself. Texts are the image's: escape them before printing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Details {
    /// The size of the virtual disk in bytes.
    pub virtual_size: u64,
    /// The size of a grain in bytes; `None` where all extents are flat.
    pub cluster_size: Option<u64>,
    /// The `createType` of the descriptor: `monolithicSparse`, `streamOptimized`, ...
    pub create_type: String,
    /// The content's identity: it changes when the image is written.
    pub cid: u32,
    /// That of the parent's contents: all ones where there is no parent.
    pub parent_cid: u32,
    /// What shows through where it has nothing of its own.
    pub parent: Option<RelatedFile>,
    /// The extents, in the order of the disk.
    pub extents: Vec<ExtentDetails>,
}

/// What an image says of one of its extents.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExtentDetails {
    /// The size of its part of the disk in bytes.
    pub virtual_size: u64,
    /// The file that it is in; `None` where that is the image itself.
    pub file: Option<RelatedFile>,
    /// The size of a grain in bytes; `None` where it is flat.
    pub cluster_size: Option<u64>,
    /// Its grains are compressed.
    pub is_compressed: bool,
    /// What the descriptor calls it: `SPARSE`, `FLAT`, `ZERO`, ...
    pub kind: String,
}

/// What a new image is like.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CreateOptions {
    /// The virtual size in bytes; `None`: [`resize`](BlockDevice::resize) tells.
    pub size: Option<u64>,
    /// How it is laid out.
    pub subformat: Subformat,
    /// How hard it is compressed, 1 to 9; `None`: what pays.
    pub compression_level: Option<u32>,
    /// How many grains are compressed at a time; 0: as many as there are processors.
    pub threads: usize,
    /// The adapter that the descriptor names: `ide`, `buslogic`, `lsilogic` or `legacyESX`; `None`: `ide`.
    pub adapter_type: Option<String>,
    /// The version of the virtual hardware that the descriptor names; `None`: 4.
    pub hardware_version: Option<String>,
}

/// How a new image is laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Subformat {
    /// Compressed, written from front to back: for transport.
    #[default]
    StreamOptimized,
    /// One file that grows.
    MonolithicSparse,
}

/// The disk in a VMDK image.
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
        crate::Details::Vmdk(self.details.clone())
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
        let message = "vmdk is not read yet; -f raw reads its bytes";
        Err(Error::with_message(ErrorKind::Unsupported, message))
    }
}

/// A VMDK image that is being made.
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
        let message = "vmdk is not made yet";
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
