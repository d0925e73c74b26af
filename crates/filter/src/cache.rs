//! `cache`: blocks of the source, kept near.
//!
//! All clients of an export share its cache. A block that is there is answered from it at once; one that is not is
//! read from the source as a whole, once for all who wait for it, and neighbours in one read. The number of blocks
//! is bounded; what was not used for long goes first.
//!
//! With `mode=writethrough` the source has what was written before it is acknowledged, as without the cache. With
//! `mode=writeback` it has it when a flush is acknowledged, or FUA: what a flush could not write is kept, told of, and
//! tried again at the next one. `mode=unsafe` promises nothing.

mod blocks;
mod device;
mod engine;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, BoxFuture, ClientFacts, Error, ErrorKind, Exports, Parameter, ParameterType,
    Result,
};

use self::{blocks::Blocks, device::CacheDevice, engine::Engine};
use crate::{
    DeviceLayer, Effects, Filter, FilterKind, Filtered, Layer, Opened, PerExport, StorePlace,
    store::Store,
};

pub(crate) static CACHE: FilterKind = FilterKind {
    name: "cache",
    syntax: "cache[:block-size=SIZE][,size=SIZE][,mode=writethrough|writeback|unsafe][,on-read=on|off]\
             [,store=memory|file][,dir=PATH]",
    help: "Blocks are kept near, up to a number of bytes",
    parameters: &[
        Parameter::new(
            "block-size",
            ParameterType::Size,
            "What is read and kept as a whole, a power of two from 4K to 16M",
        )
        .or("64K"),
        Parameter::new(
            "size",
            ParameterType::Size,
            "How much is kept of each export: by default 256M in memory, 1G in a file",
        ),
        Parameter::new(
            "mode",
            ParameterType::Choice(&["writethrough", "writeback", "unsafe"]),
            "When the source gets what is written: at once; at a flush; when there is no more room, or at the end",
        )
        .or("writethrough"),
        Parameter::new(
            "on-read",
            ParameterType::Switch,
            "Whether what is read is kept; otherwise only what is written, and what clients ask to be cached",
        )
        .or("on"),
        Parameter::new(
            "store",
            ParameterType::Choice(&["memory", "file"]),
            "Where blocks are kept: in memory, or in a temporary file without a name",
        )
        .or("memory"),
        Parameter::new(
            "dir",
            ParameterType::Path,
            "The directory of the temporary file; without it $TMPDIR, or /tmp",
        ),
    ],
    effects: Effects {
        extents: "the source's; what was not written back is data",
        mapping: "none: bytes come from the cache",
        flush: "writes back everything that is dirty, then flushes the source; FUA goes through",
        concurrency: "a hit waits for nobody; a block that many miss is read once",
    },
    build: |values| {
        let store = StorePlace::from_values(values)?;
        let cache = Cache {
            block_size: values.size("block-size").unwrap_or(64 << 10),
            size: values.size("size").unwrap_or_else(|| Cache::usual_size(&store)),
            mode: match values.word("mode").as_deref() {
                Some("writeback") => CacheMode::WriteBack,
                Some("unsafe") => CacheMode::Unsafe,
                _ => CacheMode::WriteThrough,
            },
            on_read: values.switch("on-read").unwrap_or(true),
            store,
        };
        cache.check()?;
        Ok(Arc::new(cache))
    },
};

/// Keeps blocks of each export.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Cache {
    /// What is read and kept as a whole, in bytes: a power of two from 4 KiB to 16 MiB, and no less than the
    /// source's smallest block. 64 KiB by default.
    pub block_size: u64,
    /// How many bytes are kept of each export: two blocks at least. 256 MiB by default.
    pub size: u64,
    /// When the source gets what is written. [`CacheMode::WriteThrough`] by default.
    pub mode: CacheMode,
    /// Whether what is read is kept; otherwise only what is written as a whole block, and what clients ask to be
    /// cached. On by default.
    pub on_read: bool,
    /// Where blocks are kept. Memory by default.
    pub store: StorePlace,
}

/// When the source gets what is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum CacheMode {
    /// Before a write is acknowledged. The default: nothing that was acknowledged can be lost by the cache.
    #[default]
    WriteThrough,
    /// Before a flush is acknowledged, or a write with FUA.
    WriteBack,
    /// When there is no more room, or at the end of the server. Flushes and FUA do nothing.
    Unsafe,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            block_size: 64 << 10,
            size: Self::usual_size(&StorePlace::Memory),
            mode: CacheMode::WriteThrough,
            on_read: true,
            store: StorePlace::Memory,
        }
    }
}

impl Cache {
    /// How many bytes are kept of an export unless something else is said.
    #[must_use]
    pub fn usual_size(store: &StorePlace) -> u64 {
        match store {
            StorePlace::Memory => 256 << 20,
            StorePlace::File { .. } => 1 << 30,
        }
    }

    fn check(&self) -> Result<(), String> {
        let (block, size) = (self.block_size, self.size);
        if !block.is_power_of_two() || !(4096..=16 << 20).contains(&block) {
            return Err(format!(
                "block-size={block} is not a power of two from 4K to 16M"
            ));
        }
        if size / block < 2 {
            return Err(format!(
                "size={size} has no room for two blocks of {block} bytes"
            ));
        }
        // Beside each block there are some bytes of memory, also where the blocks are in a file.
        if size / block > 1 << 26 {
            return Err(format!(
                "size={size} is more than 64Mi blocks of {block} bytes"
            ));
        }
        Ok(())
    }
}

impl Filter for Cache {
    fn kind(&self) -> &'static FilterKind {
        &CACHE
    }

    fn layer(&self, below: Arc<dyn Exports>) -> Result<Arc<dyn Layer>> {
        self.check()
            .map_err(|message| Error::with_message(ErrorKind::InvalidInput, message))?;
        let layer = CacheLayer {
            options: self.clone(),
            below: Arc::clone(&below),
        };
        Ok(Arc::new(PerExport::new(layer, below)))
    }
}

struct CacheLayer {
    options: Cache,
    below: Arc<dyn Exports>,
}

impl DeviceLayer for CacheLayer {
    type Shared = Engine;

    fn name(&self) -> &'static str {
        CACHE.name
    }

    fn share(&self, _: &str) -> Result<Engine> {
        let options = &self.options;
        let block = options.block_size;
        let capacity = usize::try_from(options.size / block).unwrap_or(usize::MAX);
        let blocks = Blocks::new(block, capacity, Store::new(&options.store, block)?);
        let (mode, on_read) = (options.mode, options.on_read);
        Ok(Engine::new(block, capacity, mode, on_read, blocks))
    }

    fn open(&self, opened: Opened<Engine>) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        Box::pin(async move {
            let Cache {
                block_size, mode, ..
            } = self.options;
            let device = CacheDevice::new(opened.device, opened.shared, block_size, mode)?;
            Ok(Arc::new(Filtered::new(device)) as Arc<dyn BlockDevice>)
        })
    }

    fn counts(&self, shared: &Engine) -> Vec<(&'static str, u64)> {
        shared.counts()
    }

    fn must_keep(&self, shared: &Engine) -> bool {
        shared.blocks.dirty() > 0
    }

    /// What is left dirty, by flushes that failed or where they do nothing, is written through another handle: the
    /// ones that clients had are gone.
    fn close<'a>(&'a self, export: &'a str, shared: Arc<Engine>) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if shared.blocks.dirty() == 0 {
                return;
            }
            let client = ClientFacts::default();
            if let Ok(open) = self.below.open(export, client).await
                && shared.adopt(open.device.info().size).is_ok()
                && shared.write_all_back(&*open.device).await.is_ok()
            {
                // There is nobody left who could be told.
                let _ = open.device.flush().await;
            }
        })
    }
}
