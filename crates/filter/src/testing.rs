//! For this crate's tests: filters, as they are written, in front of one device.

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, Capabilities, DeviceInfo, Error, Result, SingleExport,
    WriteFlags,
};

use crate::{Chain, NamedFilter};

/// The device as it is seen through the filters, the first one nearest the client.
pub(crate) async fn try_through(
    filters: &[&str],
    device: Arc<dyn BlockDevice>,
) -> Result<Arc<dyn BlockDevice>> {
    let parse = |text: &&str| NamedFilter::parse(text.as_ref()).expect(text);
    let filters: Vec<_> = filters.iter().map(parse).collect();
    let chain = Chain::new(&filters, Arc::new(SingleExport::new(device)))?;
    let open = chain.exports().open("", Default::default()).await?;
    Ok(open.device)
}

/// The same, where it has to work.
pub(crate) async fn through(
    filters: &[&str],
    device: Arc<dyn BlockDevice>,
) -> Arc<dyn BlockDevice> {
    let device = try_through(filters, device).await;
    device.unwrap_or_else(|error| panic!("{filters:?}: {error}"))
}

/// Why the device cannot be seen through the filters.
pub(crate) async fn refusal(filters: &[&str], device: Arc<dyn BlockDevice>) -> Error {
    let device = try_through(filters, device).await;
    let Err(error) = device else {
        panic!("{filters:?}: it opened");
    };
    error
}

/// A device that can be opened again, as what is reached through a connection.
pub(crate) struct Reopening {
    inner: Arc<dyn BlockDevice>,
    info: DeviceInfo,
}

impl Reopening {
    pub(crate) fn new(inner: Arc<dyn BlockDevice>) -> Self {
        let mut info = inner.info().clone();
        info.capabilities |= Capabilities::REOPEN;
        Self { inner, info }
    }
}

impl BlockDevice for Reopening {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        self.inner.read(offset, buffer)
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        self.inner.write(offset, data, flags)
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        self.inner.flush()
    }

    fn reopen(&self) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        let again = Self::new(Arc::clone(&self.inner));
        Box::pin(async move { Ok(Arc::new(again) as Arc<dyn BlockDevice>) })
    }
}
