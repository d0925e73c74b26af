//! A device that records what it is asked, lacks what a test wants it to lack, and holds reads back.

use std::sync::{Arc, Mutex};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, DeviceInfo, Extent,
    MemoryDevice, Result, WriteFlags, ZeroFlags,
};
use tokio::sync::watch;

/// A memory device behind glass.
pub(crate) struct Probe {
    inner: MemoryDevice,
    info: DeviceInfo,
    calls: Mutex<Vec<String>>,
    /// Reads and writes from this offset on wait until it is raised above them.
    open_below: watch::Sender<u64>,
}

impl Probe {
    /// `bytes` in memory with all that memory can do.
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let inner = MemoryDevice::from_bytes(bytes);
        Self {
            info: inner.info().clone(),
            inner,
            calls: Mutex::default(),
            open_below: watch::Sender::new(u64::MAX),
        }
    }

    /// The same, described in another way.
    pub(crate) fn described(mut self, change: impl FnOnce(&mut DeviceInfo)) -> Self {
        change(&mut self.info);
        self
    }

    /// Reads and writes from `offset` on don't finish until they are let through.
    pub(crate) fn hold_from(&self, offset: u64) {
        self.open_below.send_replace(offset);
    }

    pub(crate) fn contents(&self) -> Vec<u8> {
        self.inner.contents()
    }

    /// What was asked so far, in order: the operation, the range, the flags.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.calls.lock().expect("not poisoned").clone()
    }

    fn note(&self, call: String) {
        self.calls.lock().expect("not poisoned").push(call);
    }

    async fn pass(&self, offset: u64) {
        let mut open = self.open_below.subscribe();
        open.wait_for(|limit| offset < *limit)
            .await
            .expect("the sender is alive");
    }
}

impl BlockDevice for Probe {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            self.note(format!("read {offset}+{}", buffer.len()));
            self.pass(offset).await;
            self.inner.read(offset, buffer).await
        })
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            self.note(format!("write {offset}+{} {flags:?}", data.len()));
            self.pass(offset).await;
            let data = self.inner.write(offset, data, WriteFlags::empty()).await?;
            self.note(format!("wrote {offset}"));
            Ok(data)
        })
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        self.note(format!("zero {range} {flags:?}"));
        if !self.info.can(Capabilities::ZERO) {
            let error = blockferry_block::Error::new(blockferry_block::ErrorKind::Unsupported);
            return Box::pin(async { Err(error) });
        }
        self.inner.zero(range, ZeroFlags::empty())
    }

    fn trim(&self, range: ByteRange, flags: WriteFlags) -> BoxFuture<'_, Result<()>> {
        self.note(format!("trim {range} {flags:?}"));
        self.inner.trim(range, WriteFlags::empty())
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        self.note("flush".to_owned());
        self.inner.flush()
    }

    fn cache(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        self.note(format!("cache {range}"));
        Box::pin(async { Ok(()) })
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        self.note(format!("extents {range} {context}"));
        self.inner.extents(range, context)
    }
}

/// Bytes that differ from their neighbours and from zero.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8 + 1).collect()
}

/// A probe of `length` bytes of [`pattern`].
pub(crate) fn probe(length: usize) -> Arc<Probe> {
    Arc::new(Probe::new(&pattern(length)))
}
