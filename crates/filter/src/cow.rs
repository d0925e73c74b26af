//! `cow`: writes go to a temporary overlay, and the source is never changed.
//!
//! The overlay belongs to the export: all its clients see what any of them wrote, until the server ends. Nothing of
//! it survives that, so a flush and FUA have nothing to do. What is not in the overlay goes to the source as it was
//! asked for, zero copy included.

mod device;
mod extents;
mod map;
mod overlay;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, BoxFuture, ClientFacts, Error, ErrorKind, ExportEntry, Exports, OpenExport,
    Parameter, ParameterType, Result, Wish,
};

use self::{device::CowDevice, overlay::Overlay};
use crate::{
    DeviceLayer, Effects, Filter, FilterKind, Filtered, Layer, Opened, PerExport, StorePlace,
    store::Store,
};

pub(crate) static COW: FilterKind = FilterKind {
    name: "cow",
    syntax: "cow[:block-size=SIZE][,store=file|memory][,dir=PATH][,on-read=on|off][,on-cache=on|off]",
    help: "Writes go to a temporary overlay, and the source is never changed",
    parameters: &[
        Parameter::new(
            "block-size",
            ParameterType::Size,
            "What is kept as a whole, a power of two: a shorter write copies the rest from the source",
        )
        .or("4K"),
        Parameter::new(
            "store",
            ParameterType::Choice(&["file", "memory"]),
            "Where the overlay is: in a temporary file without a name, or in memory",
        )
        .or("file"),
        Parameter::new(
            "dir",
            ParameterType::Path,
            "The directory of the temporary file; without it $TMPDIR, or /tmp",
        ),
        Parameter::new(
            "on-read",
            ParameterType::Switch,
            "Whether what is read is kept in the overlay, so that it is read from the source once",
        )
        .or("off"),
        Parameter::new(
            "on-cache",
            ParameterType::Switch,
            "Whether what clients ask to be cached is kept in the overlay",
        )
        .or("off"),
    ],
    effects: Effects {
        extents: "the source's, with what was written in front; other contexts are hidden",
        mapping: "passed through where nothing was written; a file of the overlay takes part",
        flush: "does nothing, for nothing survives the server",
        concurrency: "safe for several connections; only writes to the same block wait for each other",
    },
    build: |values| {
        let cow = Cow {
            block_size: values.size("block-size").unwrap_or(4096),
            store: StorePlace::from_values(values)?,
            on_read: values.switch("on-read").unwrap_or(false),
            on_cache: values.switch("on-cache").unwrap_or(false),
        };
        cow.check()?;
        Ok(Arc::new(cow))
    },
};

/// Takes writes in a temporary overlay.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Cow {
    /// The unit of the overlay in bytes: a power of two from 512 to 16 MiB. A write of a part of a block copies the
    /// rest of it from the source. 4 KiB by default: what file systems and virtual machines write is made of
    /// that, so their writes never wait for the source. A block that was written to costs 2 bits of memory.
    pub block_size: u64,
    /// Where the overlay is; a temporary file by default.
    pub store: StorePlace,
    /// Whether blocks that are read are kept in the overlay, so that the source is asked for each once. Off by
    /// default.
    pub on_read: bool,
    /// Whether blocks that clients ask to be cached are kept in the overlay; otherwise the source is told of the
    /// wish. Off by default.
    pub on_cache: bool,
}

impl Default for Cow {
    fn default() -> Self {
        Self {
            block_size: 4096,
            store: StorePlace::File { directory: None },
            on_read: false,
            on_cache: false,
        }
    }
}

impl Cow {
    fn check(&self) -> Result<(), String> {
        let size = self.block_size;
        if size.is_power_of_two() && (512..=16 << 20).contains(&size) {
            return Ok(());
        }
        Err(format!(
            "block-size={size} is not a power of two from 512 to 16M"
        ))
    }
}

impl Filter for Cow {
    fn kind(&self) -> &'static FilterKind {
        &COW
    }

    fn layer(&self, below: Arc<dyn Exports>) -> Result<Arc<dyn Layer>> {
        self.check()
            .map_err(|message| Error::with_message(ErrorKind::InvalidInput, message))?;
        let below = Arc::new(ForReading(below));
        Ok(Arc::new(PerExport::new(CowLayer(self.clone()), below)))
    }
}

struct CowLayer(Cow);

impl DeviceLayer for CowLayer {
    type Shared = Overlay;

    fn name(&self) -> &'static str {
        COW.name
    }

    fn share(&self, _: &str) -> Result<Overlay> {
        let block = self.0.block_size;
        // Pages of memory that are larger than a block would take space for what nobody wrote.
        let store = Store::new(&self.0.store, block.clamp(4096, 64 << 10))?;
        Ok(Overlay::new(block, store))
    }

    fn open(&self, opened: Opened<Overlay>) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        Box::pin(async move {
            let device = CowDevice::new(opened.device, opened.shared, &self.0);
            Ok(Arc::new(Filtered::new(device)) as Arc<dyn BlockDevice>)
        })
    }

    fn counts(&self, shared: &Overlay) -> Vec<(&'static str, u64)> {
        vec![("stored_bytes", shared.map.stored_bytes())]
    }

    fn must_keep(&self, shared: &Overlay) -> bool {
        shared.map.is_touched()
    }
}

/// Exports that are opened for reading, whoever asks.
struct ForReading(Arc<dyn Exports>);

fn reader(client: ClientFacts) -> ClientFacts {
    ClientFacts {
        read_only: true,
        ..client
    }
}

impl Exports for ForReading {
    fn connecting(&self, client: ClientFacts) -> BoxFuture<'_, Result<()>> {
        self.0.connecting(reader(client))
    }

    fn list(&self, client: ClientFacts) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        self.0.list(reader(client))
    }

    fn open<'a>(&'a self, name: &'a str, client: ClientFacts) -> BoxFuture<'a, Result<OpenExport>> {
        self.0.open(name, reader(client))
    }

    fn wish(&self) -> Option<Wish> {
        self.0.wish()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.0.close()
    }
}
