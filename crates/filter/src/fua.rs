//! `fua`: what is made durable, and when.

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, CopyFlags, DeviceInfo, Error,
    ErrorKind, Exports, FileRange, Parameter, ParameterType, PipeBuffer, Result, WriteFlags,
    ZeroFlags,
};

use crate::{DeviceFilter, Effects, Filter, FilterKind, Filtered, Layer, each_device};

pub(crate) static FUA: FilterKind = FilterKind {
    name: "fua",
    syntax: "fua[:MODE]",
    help: "What is made durable, and when",
    parameters: &[Parameter::new(
        "mode",
        ParameterType::Choice(&["flush", "force", "discard"]),
        "FUA is a flush of the source; all that is written is durable at once; nothing is ever made durable",
    )
    .first()
    .or("flush")],
    effects: Effects {
        flush: "as the mode says; with 'discard' all that was written may be lost",
        ..Effects::NONE
    },
    build: |values| {
        Ok(Arc::new(match values.word("mode").as_deref() {
            Some("force") => Fua::Force,
            Some("discard") => Fua::Discard,
            _ => Fua::Flush,
        }))
    },
};

/// Changes what is made durable, and when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fua {
    /// The source never sees FUA: whoever wants it flushes.
    #[default]
    Flush,
    /// Everything that is written has FUA, and a flush has nothing left to do. A source that has neither FUA nor a
    /// flush does not open.
    Force,
    /// Neither FUA nor flushes reach the source, and clients are not told: what they wrote may be lost.
    Discard,
}

impl Filter for Fua {
    fn kind(&self) -> &'static FilterKind {
        &FUA
    }

    fn layer(&self, below: Arc<dyn Exports>) -> Result<Arc<dyn Layer>> {
        let mode = *self;
        Ok(each_device(FUA.name, below, move |below| {
            Box::pin(async move {
                let durable = Capabilities::FUA | Capabilities::FLUSH;
                let info = below.info();
                if mode == Self::Force
                    && info.can(Capabilities::WRITE)
                    && !info.capabilities.intersects(durable)
                {
                    let message = "the source can make nothing durable";
                    return Err(Error::with_message(ErrorKind::Unsupported, message));
                }
                let device = Filtered::new(Durability { below, mode });
                Ok(Arc::new(device) as Arc<dyn BlockDevice>)
            })
        }))
    }
}

struct Durability {
    below: Arc<dyn BlockDevice>,
    mode: Fua,
}

impl Durability {
    /// Whether the source is told FUA.
    fn tells(&self) -> bool {
        self.mode == Fua::Force && self.below.info().can(Capabilities::FUA)
    }

    /// What is done behind everything that was written.
    async fn finish(&self) -> Result<()> {
        match self.mode == Fua::Force && !self.tells() {
            true => self.below.flush().await,
            false => Ok(()),
        }
    }

    fn write_flags(&self, mut flags: WriteFlags) -> WriteFlags {
        flags.set(WriteFlags::FUA, self.tells());
        flags
    }
}

impl DeviceFilter for Durability {
    const PASSES: Capabilities = Capabilities::all();

    fn below(&self) -> &Arc<dyn BlockDevice> {
        &self.below
    }

    fn info(&self) -> DeviceInfo {
        let mut info = self.below.info().clone();
        match self.mode {
            Fua::Flush => info.capabilities -= Capabilities::FUA,
            Fua::Force if info.can(Capabilities::WRITE) => {
                info.capabilities |= Capabilities::FUA | Capabilities::FLUSH;
            }
            _ => {}
        }
        info
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        let flags = self.write_flags(flags);
        Box::pin(async move {
            let data = self.below.write(offset, data, flags).await?;
            self.finish().await?;
            Ok(data)
        })
    }

    fn write_piped(
        &self,
        offset: u64,
        data: PipeBuffer,
        flags: WriteFlags,
    ) -> BoxFuture<'_, Result<()>> {
        let flags = self.write_flags(flags);
        Box::pin(async move {
            self.below.write_piped(offset, data, flags).await?;
            self.finish().await
        })
    }

    fn copy_from(
        &self,
        offset: u64,
        source: FileRange,
        mut flags: CopyFlags,
    ) -> BoxFuture<'_, Result<()>> {
        flags.set(CopyFlags::FUA, self.tells());
        Box::pin(async move {
            self.below.copy_from(offset, source, flags).await?;
            self.finish().await
        })
    }

    fn zero(&self, range: ByteRange, mut flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        flags.set(ZeroFlags::FUA, self.tells());
        Box::pin(async move {
            self.below.zero(range, flags).await?;
            self.finish().await
        })
    }

    fn trim(&self, range: ByteRange, flags: WriteFlags) -> BoxFuture<'_, Result<()>> {
        let flags = self.write_flags(flags);
        Box::pin(async move {
            self.below.trim(range, flags).await?;
            self.finish().await
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        match self.mode {
            Fua::Flush => self.below.flush(),
            Fua::Force | Fua::Discard => Box::pin(async { Ok(()) }),
        }
    }

    fn over(&self, below: Arc<dyn BlockDevice>) -> Option<Self> {
        let mode = self.mode;
        Some(Self { below, mode })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use blockferry_block::{MemoryDevice, testing::check_device};

    use super::*;
    use crate::testing::{refusal, through};

    /// Counts what it is asked to make durable.
    struct Asked {
        below: Arc<dyn BlockDevice>,
        can: Capabilities,
        flushes: Arc<AtomicUsize>,
        fuas: Arc<AtomicUsize>,
    }

    impl DeviceFilter for Asked {
        const PASSES: Capabilities = Capabilities::empty();

        fn below(&self) -> &Arc<dyn BlockDevice> {
            &self.below
        }

        fn info(&self) -> DeviceInfo {
            let mut info = self.below.info().clone();
            info.capabilities -= Capabilities::FUA | Capabilities::FLUSH;
            info.capabilities |= self.can;
            info
        }

        fn write(&self, at: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
            let fua = flags.contains(WriteFlags::FUA);
            self.fuas.fetch_add(fua.into(), Ordering::Relaxed);
            self.below.write(at, data, WriteFlags::empty())
        }

        fn flush(&self) -> BoxFuture<'_, Result<()>> {
            self.flushes.fetch_add(1, Ordering::Relaxed);
            Box::pin(async { Ok(()) })
        }
    }

    const BOTH: Capabilities = Capabilities::FUA.union(Capabilities::FLUSH);

    fn source(can: Capabilities) -> (Arc<dyn BlockDevice>, [Arc<AtomicUsize>; 2]) {
        let [flushes, fuas] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
        let asked = Asked {
            below: Arc::new(MemoryDevice::new(100_000)),
            can,
            flushes: Arc::clone(&flushes),
            fuas: Arc::clone(&fuas),
        };
        (Arc::new(Filtered::new(asked)), [flushes, fuas])
    }

    /// The flushes and the writes with FUA that a source sees of a write, one with FUA and a flush.
    async fn seen(filter: &str, can: Capabilities) -> [usize; 2] {
        let (source, counts) = source(can);
        let device = through(&[filter], source).await;
        let mut flags = WriteFlags::empty();
        for _ in 0..2 {
            let write = device.write(0, Buffer::zeroed(512), flags).await;
            write.expect("written");
            if device.info().can(Capabilities::FUA) {
                flags = WriteFlags::FUA;
            }
        }
        device.flush().await.expect("flushed");
        counts.map(|count| count.load(Ordering::Relaxed))
    }

    #[tokio::test]
    async fn each_mode_makes_durable_what_it_says() {
        assert_eq!(seen("fua", BOTH).await, [1, 0]);
        assert_eq!(seen("fua:force", BOTH).await, [0, 2]);
        assert_eq!(seen("fua:force", Capabilities::FLUSH).await, [2, 0]);
        assert_eq!(seen("fua:discard", BOTH).await, [0, 0]);
        let (nothing, _) = source(Capabilities::empty());
        let error = refusal(&["fua:force"], nothing).await;
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }

    #[tokio::test]
    async fn it_stays_a_device() {
        for filter in ["fua", "fua:force", "fua:discard"] {
            let device = through(&[filter], Arc::new(MemoryDevice::new(100_000))).await;
            check_device(&*device, 3, 200).await;
        }
    }
}
