//! `gzip`, `xz`, `zstd`, `bzip2`: what was compressed, as the disk that it was.
//!
//! The first three formats can hold blocks that were compressed each by itself. Where they do, and an index or their own
//! headers say where each one lies, any byte can be read by unpacking one block:
//!
//! ```text
//!   read -> Device -> Blocks (a bounded cache, shared by all handles) -> Index -> packed bytes below
//! ```
//!
//! [`gzip`], [`xz`] and [`zstd`] know where blocks lie and how one is unpacked; [`index`] is what they find,
//! [`blocks`] keeps what was unpacked, [`device`] is the disk. A file without such blocks can only be read from
//! its beginning, as all that bzip2 makes: it is refused, with a word about how to make a better one, or unpacked once ([`whole`]).
//!
//! A packed image is hostile until told otherwise: sizes that it claims are checked against the file's own size and
//! against bounds before anything is allocated, and a decoder stops where the claimed size is exceeded.

mod blocks;
mod device;
mod gzip;
mod index;
mod whole;
mod window;
mod xz;
mod zstd;

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc};

use blockferry_block::{
    BlockDevice, BoxFuture, Error, ErrorKind, Exports, HumanSize, Parameter, ParameterType, Result,
    Values,
};
pub use blockferry_packing::Packing;
use tokio::sync::Mutex;

use self::{
    blocks::{Blocks, Tally},
    device::Unpacked,
    index::Finding,
    window::Window,
};
use crate::{DeviceLayer, Effects, Filter, FilterKind, Layer, Opened, PerExport};

/// The largest block that can be allowed, in bytes.
const LARGEST_BLOCK: u64 = 2 << 30;

static PARAMETERS: [Parameter; 6] = [
    Parameter::new(
        "max-block",
        ParameterType::Size,
        "The largest block that is unpacked in memory, 2G at most; a file with larger ones is refused",
    )
    .or("512M"),
    Parameter::new(
        "cache",
        ParameterType::Size,
        "How many bytes of unpacked blocks are kept, of an export, those being unpacked included; at least one block",
    )
    .or("256M"),
    Parameter::new(
        "max-depth",
        ParameterType::Number,
        "How many unpacked blocks are kept at most, however small they are",
    ),
    Parameter::new(
        "unpack",
        ParameterType::Switch,
        "Whether a file that can only be read from its beginning is unpacked once, into a temporary file, when it \
         is first opened",
    )
    .or("off"),
    Parameter::new(
        "dir",
        ParameterType::Path,
        "The directory of that temporary file; without it, that of the system",
    ),
    Parameter::new(
        "max-size",
        ParameterType::Size,
        "How many bytes that temporary file may hold, holes included",
    )
    .or("1T"),
];

const EFFECTS: Effects = Effects {
    extents: "all of it is data, for what is zero shows only when it is unpacked; with unpack=on, the temporary file's",
    mapping: "none; with unpack=on, the temporary file's",
    flush: "nothing can be written, so there is nothing to flush",
    concurrency: "several blocks are unpacked side by side, each once for all connections, which share a cache",
};

pub(crate) static GZIP: FilterKind = FilterKind {
    name: "gzip",
    syntax: "gzip[:max-block=SIZE,cache=SIZE,max-depth=N,unpack=on|off,dir=PATH,max-size=SIZE]",
    help: "The disk in a gzip file: anywhere in one that bgzip or dictzip made, others when they are unpacked first",
    parameters: &PARAMETERS,
    effects: EFFECTS,
    build: |values| Unpack::from_values(Packing::Gzip, values),
};

pub(crate) static BZIP2: FilterKind = FilterKind {
    name: "bzip2",
    syntax: "bzip2[:max-block=SIZE,cache=SIZE,max-depth=N,unpack=on|off,dir=PATH,max-size=SIZE]",
    help: "The disk in a bzip2 file, when it is unpacked first",
    parameters: &PARAMETERS,
    effects: EFFECTS,
    build: |values| Unpack::from_values(Packing::Bzip2, values),
};

pub(crate) static XZ: FilterKind = FilterKind {
    name: "xz",
    syntax: "xz[:max-block=SIZE,cache=SIZE,max-depth=N,unpack=on|off,dir=PATH,max-size=SIZE]",
    help: "The disk in an xz file, anywhere in it, a block at a time",
    parameters: &PARAMETERS,
    effects: EFFECTS,
    build: |values| Unpack::from_values(Packing::Xz, values),
};

pub(crate) static ZSTD: FilterKind = FilterKind {
    name: "zstd",
    syntax: "zstd[:max-block=SIZE,cache=SIZE,max-depth=N,unpack=on|off,dir=PATH,max-size=SIZE]",
    help: "The disk in a zstd file: anywhere in a seekable one, and in one of several frames that tell their size",
    parameters: &PARAMETERS,
    effects: EFFECTS,
    build: |values| Unpack::from_values(Packing::Zstd, values),
};

/// Shows what lies packed in the file below. Nothing can be written.
///
/// Checksums are verified when a block is unpacked; a chunk of dictzip has none.
#[derive(Clone, Debug)]
pub struct Unpack {
    /// How it is packed. Nothing is guessed.
    pub packing: Packing,
    /// The largest block that is unpacked in memory, in bytes, 2 GiB at most. Default: 512 MiB.
    pub max_block: u64,
    /// How many bytes of unpacked blocks are kept for each export, together with those that are being unpacked
    /// and their packed form. One block at a time is always unpacked, however large. Default: 256 MiB.
    pub cache: u64,
    /// How many unpacked blocks are kept at most. Default: as many as the cache has room for.
    pub max_depth: Option<usize>,
    /// Whether a file that can only be read from its beginning is unpacked once into a temporary file, which the
    /// first client waits for. Default: it is refused.
    pub unpack: bool,
    /// The directory of that file, which has no name there. Default: the system's for temporary files.
    pub dir: Option<PathBuf>,
    /// How many bytes that file may hold, holes included. Default: 1 TiB.
    pub max_size: u64,
    /// How many bytes that file may take, without its holes. Default: as many as there is room for.
    pub max_data: Option<u64>,
}

impl Unpack {
    /// `packing` with the defaults.
    #[must_use]
    pub fn new(packing: Packing) -> Self {
        Self {
            packing,
            max_block: 512 << 20,
            cache: 256 << 20,
            max_depth: None,
            unpack: false,
            dir: None,
            max_size: 1 << 40,
            max_data: None,
        }
    }

    fn from_values(packing: Packing, values: &Values) -> Result<Arc<dyn Filter>, String> {
        let default = Self::new(packing);
        let filter = Self {
            packing,
            max_block: values.size("max-block").unwrap_or(default.max_block),
            cache: values.size("cache").unwrap_or(default.cache),
            max_depth: values.number("max-depth"),
            unpack: values.switch("unpack").unwrap_or(default.unpack),
            dir: values.path("dir"),
            max_size: values.size("max-size").unwrap_or(default.max_size),
            max_data: default.max_data,
        };
        filter.check()?;
        Ok(Arc::new(filter))
    }

    /// The disk that is packed in `device`, for whoever needs no filter. Before it is unpacked whole `tell` is called
    /// with why that has to be.
    ///
    /// # Errors
    /// As those of opening it through the filter.
    pub async fn open_telling(
        &self,
        device: Arc<dyn BlockDevice>,
        tell: impl FnOnce(&str) + Send,
    ) -> Result<Arc<dyn BlockDevice>> {
        self.check()
            .map_err(|message| Error::with_message(ErrorKind::InvalidInput, message))?;
        let contents = self.find(&device, &Arc::default(), tell).await?;
        Ok(contents.over(device))
    }

    fn check(&self) -> Result<(), String> {
        match () {
            () if self.max_block == 0 => Err("max-block=0 leaves nothing to read".to_owned()),
            () if self.max_block > LARGEST_BLOCK => Err(format!(
                "max-block can be {} at most",
                HumanSize(LARGEST_BLOCK)
            )),
            () if self.max_depth == Some(0) => Err("max-depth=0 leaves nothing to read".to_owned()),
            () => Ok(()),
        }
    }
}

impl Filter for Unpack {
    fn kind(&self) -> &'static FilterKind {
        match self.packing {
            Packing::Gzip => &GZIP,
            Packing::Xz => &XZ,
            Packing::Zstd => &ZSTD,
            _ => &BZIP2,
        }
    }

    fn unwraps(&self) -> bool {
        true
    }

    fn layer(&self, below: Arc<dyn Exports>) -> Result<Arc<dyn Layer>> {
        self.check()
            .map_err(|message| Error::with_message(ErrorKind::InvalidInput, message))?;
        let layer = UnpackLayer {
            options: self.clone(),
        };
        Ok(Arc::new(PerExport::new(layer, below)))
    }
}

struct UnpackLayer {
    options: Unpack,
}

/// What the handles of one export share.
#[derive(Default)]
struct Shared {
    /// Found by the first handle; the others wait for it, and try themselves when it fails or goes away.
    contents: Mutex<Option<Found>>,
    tally: Arc<Tally>,
}

#[derive(Clone)]
struct Found {
    /// The size of the packed file that this was found in.
    packed: u64,
    contents: Contents,
}

#[derive(Clone)]
enum Contents {
    Blocks(Arc<Blocks>),
    Whole(Arc<dyn BlockDevice>),
}

impl Contents {
    /// The disk, for one handle of the packed file.
    fn over(self, device: Arc<dyn BlockDevice>) -> Arc<dyn BlockDevice> {
        match self {
            Self::Blocks(blocks) => Arc::new(Unpacked::new(device, blocks)),
            Self::Whole(whole) => whole,
        }
    }
}

impl Unpack {
    async fn find(
        &self,
        device: &Arc<dyn BlockDevice>,
        tally: &Arc<Tally>,
        tell: impl FnOnce(&str) + Send,
    ) -> Result<Contents> {
        let options = self;
        let mut window = Window::new(&**device);
        let finding = match options.packing {
            Packing::Gzip => gzip::find(&mut window, options.max_block).await?,
            Packing::Xz => xz::find(&mut window, options.max_block).await?,
            Packing::Zstd => zstd::find(&mut window, options.max_block).await?,
            _ => Finding::Whole("it can only be read from its beginning".to_owned()),
        };
        match finding {
            Finding::Blocks(index) => Ok(Contents::Blocks(Blocks::new(
                index,
                options.cache,
                options.max_depth,
                Arc::clone(tally),
            ))),
            Finding::Whole(why) if options.unpack => {
                tell(&why);
                let whole = whole::unpack(device, options).await?;
                Ok(Contents::Whole(whole))
            }
            Finding::Whole(why) => {
                let message =
                    format!("{why}; with unpack=on it is unpacked once, into a temporary file");
                Err(Error::with_message(ErrorKind::Unsupported, message))
            }
        }
    }
}

impl DeviceLayer for UnpackLayer {
    type Shared = Shared;

    fn name(&self) -> &'static str {
        self.options.kind().name
    }

    fn share(&self, _: &str) -> Result<Shared> {
        Ok(Shared::default())
    }

    fn open(&self, opened: Opened<Shared>) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        Box::pin(async move {
            let Opened { device, shared, .. } = opened;
            let packed = device.info().size;
            let mut known = shared.contents.lock().await;
            let contents = match &*known {
                // A file of another size is another file.
                Some(found) if found.packed == packed => found.contents.clone(),
                _ => {
                    let contents = self.options.find(&device, &shared.tally, |_| {}).await?;
                    let found = Found { packed, contents };
                    known.insert(found).contents.clone()
                }
            };
            Ok(contents.over(device))
        })
    }

    fn counts(&self, shared: &Shared) -> Vec<(&'static str, u64)> {
        shared.tally.counts()
    }
}
