//! For this crate's tests: filters, as they are written, in front of one device.

use std::sync::Arc;

use blockferry_block::{BlockDevice, Error, Result, SingleExport};

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
