//! `nocache`: what becomes of clients' wishes to have ranges read ahead.

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, BoxFuture, ByteRange, Capabilities, DeviceInfo, Error, ErrorKind, Exports,
    Operation, Parameter, ParameterType, Result, read_exact_at,
};

use crate::{DeviceFilter, Effects, Filter, FilterKind, Filtered, Layer, each_device};

/// What is read at a time to have it read, in bytes.
const PIECE: u64 = 1 << 20;

pub(crate) static NO_CACHE: FilterKind = FilterKind {
    name: "nocache",
    syntax: "nocache[:MODE]",
    help: "Nobody can have ranges cached ahead",
    parameters: &[Parameter::new(
        "mode",
        ParameterType::Choice(&["none", "read", "ignore"]),
        "It cannot be asked for; the range is read from the source; it is acknowledged, and nothing is done",
    )
    .first()
    .or("none")],
    effects: Effects::NONE,
    build: |values| {
        Ok(Arc::new(match values.word("mode").as_deref() {
            Some("read") => NoCache::Read,
            Some("ignore") => NoCache::Ignore,
            _ => NoCache::None,
        }))
    },
};

/// Hides that ranges can be cached ahead, or does something else instead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoCache {
    /// It cannot be asked for.
    #[default]
    None,
    /// The range is read, and what was read is forgotten.
    Read,
    /// It is acknowledged, and nothing is done.
    Ignore,
}

impl Filter for NoCache {
    fn kind(&self) -> &'static FilterKind {
        &NO_CACHE
    }

    fn layer(&self, below: Arc<dyn Exports>) -> Result<Arc<dyn Layer>> {
        let mode = *self;
        Ok(each_device(NO_CACHE.name, below, move |below| {
            let device = Filtered::new(Uncached { below, mode });
            Box::pin(async move { Ok(Arc::new(device) as Arc<dyn BlockDevice>) })
        }))
    }
}

struct Uncached {
    below: Arc<dyn BlockDevice>,
    mode: NoCache,
}

impl DeviceFilter for Uncached {
    const PASSES: Capabilities = Capabilities::all();

    fn below(&self) -> &Arc<dyn BlockDevice> {
        &self.below
    }

    fn info(&self) -> DeviceInfo {
        let mut info = self.below.info().clone();
        let can = self.mode != NoCache::None;
        info.capabilities.set(Capabilities::CACHE, can);
        info
    }

    fn cache(&self, range: ByteRange) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            match self.mode {
                NoCache::None => {
                    let error = Error::new(ErrorKind::Unsupported).during(Operation::Cache);
                    Err(error.at(range.start(), range.len()))
                }
                NoCache::Read => {
                    for piece in range.pieces(PIECE) {
                        read_exact_at(&*self.below, piece).await?;
                    }
                    Ok(())
                }
                NoCache::Ignore => Ok(()),
            }
        })
    }

    fn over(&self, below: Arc<dyn BlockDevice>) -> Option<Self> {
        let mode = self.mode;
        Some(Self { below, mode })
    }
}

#[cfg(test)]
mod tests {
    use blockferry_block::{
        MemoryDevice,
        testing::{Fault, FaultyDevice, Rule},
    };

    use super::*;
    use crate::testing::through;

    #[tokio::test]
    async fn each_mode_does_what_it_says_with_a_source_that_cannot_be_read() {
        for (filter, offered, done) in [
            ("nocache", false, false),
            ("nocache:read", true, false),
            ("nocache:ignore", true, true),
        ] {
            let source = FaultyDevice::new(Arc::new(MemoryDevice::new(100_000)));
            let broken = Rule::on(Operation::Read).fault(Fault::Error(ErrorKind::Io));
            let source = source.with(broken);
            let device = through(&[filter], Arc::new(source)).await;
            assert_eq!(device.info().can(Capabilities::CACHE), offered, "{filter}");
            let cached = device.cache(ByteRange::between(0, 100_000)).await;
            assert_eq!(cached.is_ok(), done, "{filter}");
        }
    }
}
