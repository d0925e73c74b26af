//! Long chains of images on short stacks.
//!
//! Each image of a chain polls the one behind it, on the stack of whoever asks: a connection's thread has half a
//! megabyte. So every few images there is one whose requests are tasks of their own, with a stack that begins anew.

use std::{future::Future, sync::Arc};

use tokio::{runtime::Handle, task::JoinSet};

use crate::block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Context, DeviceInfo, Error, ErrorKind, Extent,
    Mapping, Result,
};

/// How many images poll each other on one stack.
const IN_A_ROW: usize = 8;

/// Runs `future` as a task of the runtime that this is called in; at once where there is none. Who gives it up ends
/// it.
pub(super) async fn on_its_own_stack<T: Send + 'static>(
    future: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    if Handle::try_current().is_err() {
        return future.await;
    }
    let mut task = JoinSet::new();
    task.spawn(future);
    match task.join_next().await {
        Some(Ok(result)) => result,
        Some(Err(error)) => Err(Error::with_source(ErrorKind::Io, error)),
        None => Err(Error::new(ErrorKind::Cancelled)),
    }
}

/// The image at that place of a chain, to be read by the one before it.
pub(super) fn link(depth: usize, image: Arc<dyn BlockDevice>) -> Arc<dyn BlockDevice> {
    match depth.is_multiple_of(IN_A_ROW) {
        true => Arc::new(FreshStack(image)),
        false => image,
    }
}

/// An image that is only read, by requests on stacks of their own.
struct FreshStack(Arc<dyn BlockDevice>);

impl BlockDevice for FreshStack {
    fn info(&self) -> &DeviceInfo {
        self.0.info()
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        let image = Arc::clone(&self.0);
        let reading = async move { image.read(offset, buffer).await };
        Box::pin(on_its_own_stack(reading))
    }

    fn cache(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        let image = Arc::clone(&self.0);
        Box::pin(on_its_own_stack(async move { image.cache(range).await }))
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        let (image, context) = (Arc::clone(&self.0), context.clone());
        let asking = async move { image.extents(range, &context).await };
        Box::pin(on_its_own_stack(asking))
    }

    fn first_extent<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        let (image, context) = (Arc::clone(&self.0), context.clone());
        let asking = async move { image.first_extent(range, &context).await };
        Box::pin(on_its_own_stack(asking))
    }

    fn mapping(&self, range: ByteRange) -> Mapping<'_> {
        self.0.mapping(range)
    }
}
