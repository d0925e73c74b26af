//! An image that is made.

use std::sync::Arc;

use blockferry_block::{BlockDevice, BoxFuture, Buffer, DeviceInfo, Error, ErrorKind, Result};

use super::CreateOptions;

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
