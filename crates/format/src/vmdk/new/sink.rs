//! A stream that an image is written to from front to back, as a device.

use std::sync::atomic::{AtomicU64, Ordering};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteSink, Capabilities, DeviceInfo, Error, ErrorKind,
    Operation, Result, WriteFlags, request_range,
};
use tokio::sync::{Mutex, Notify};

/// Takes writes that lie side by side; those that come too early wait for those before them.
pub(super) struct SinkDevice {
    info: DeviceInfo,
    sink: Mutex<Box<dyn ByteSink>>,
    position: AtomicU64,
    moved: Notify,
}

impl SinkDevice {
    pub(super) fn new(sink: Box<dyn ByteSink>) -> Self {
        let mut info = DeviceInfo::new(std::sync::Arc::clone(sink.name()), 0);
        info.capabilities = Capabilities::WRITE
            | Capabilities::FLUSH
            | Capabilities::RESIZE
            | Capabilities::BORN_ZERO;
        Self {
            info,
            sink: Mutex::new(sink),
            position: AtomicU64::new(0),
            moved: Notify::new(),
        }
    }
}

impl BlockDevice for SinkDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        let message = "what was written to a stream cannot be read again";
        let error = Error::with_message(ErrorKind::Unsupported, message).during(Operation::Read);
        let error = error.at(offset, buffer.len() as u64);
        Box::pin(async move { Err(error) })
    }

    fn write(&self, offset: u64, data: Buffer, _: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Write, offset, &data)?;
            loop {
                let mut moved = std::pin::pin!(self.moved.notified());
                moved.as_mut().enable();
                let mut sink = self.sink.lock().await;
                let position = self.position.load(Ordering::Acquire);
                if position == range.start() {
                    let written = sink.write(data).await;
                    // Whatever became of it: nobody waits for a place that comes no more.
                    let next = if written.is_ok() {
                        range.end()
                    } else {
                        u64::MAX
                    };
                    self.position.store(next, Ordering::Release);
                    self.moved.notify_waiters();
                    return written;
                }
                drop(sink);
                if position > range.start() {
                    let message = "a stream is written from front to back, and once";
                    let error = Error::with_message(ErrorKind::Unsupported, message);
                    return Err(error.during(Operation::Write).at(offset, range.len()));
                }
                moved.await;
            }
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.sink.lock().await.flush().await })
    }

    /// It ends where it was written to.
    fn resize(&self, _: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}
