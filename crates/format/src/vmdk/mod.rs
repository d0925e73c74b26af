//! VMDK, VMware's format: read in all of its usual kinds, and made as one that is compressed, for transport, or as one
//! file that grows.
//!
//! The specification is VMware's "Virtual Disk Format 5.0"; comments name its sections.
//!
//! ```text
//!  header      the header of a sparse extent, and what follows from it
//!  descriptor  the text that names extents and the parent
//!  contents    what a file is, and the extents and the parent opened
//!  sparse      where the grains of an extent lie: its directory, and the tables that there is room for
//!  read        a range of the disk as a row of places where its bytes come from, and a request from those
//!  unpacked    compressed grains, on the threads of the pool
//!  status      holes, zeroes, and which image of a chain has them
//!  placed      where the bytes of the disk lie
//!  image       all of that, open
//!  new         an image that is made
//! ```

mod contents;
mod descriptor;
mod header;
mod image;
mod new;
mod placed;
mod read;
mod sparse;
mod status;
mod unpacked;

use std::sync::Arc;

use blockferry_block::{BlockDevice, Operation, Result};

use self::contents::Contents;
use crate::{RelatedFile, host::HostFile};

pub use self::{
    image::open,
    new::{create, create_streamed},
};

/// What an image says of itself. Texts are the image's: escape them before printing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Details {
    /// The size of the virtual disk in bytes.
    pub virtual_size: u64,
    /// The size of a grain in bytes; `None` where all extents are flat.
    pub cluster_size: Option<u64>,
    /// The `createType` of the descriptor: `monolithicSparse`, `streamOptimized`, ...
    pub create_type: String,
    /// The content's identity: it changes when the image is written.
    pub cid: u32,
    /// That of the parent's contents: all ones where there is no parent.
    pub parent_cid: u32,
    /// What shows through where it has nothing of its own.
    pub parent: Option<RelatedFile>,
    /// The extents, in the order of the disk.
    pub extents: Vec<ExtentDetails>,
}

/// What an image says of one of its extents.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExtentDetails {
    /// The size of its part of the disk in bytes.
    pub virtual_size: u64,
    /// The file that it is in; `None` where that is the image itself.
    pub file: Option<RelatedFile>,
    /// The size of a grain in bytes; `None` where it is flat.
    pub cluster_size: Option<u64>,
    /// Its grains are compressed.
    pub is_compressed: bool,
    /// What the descriptor calls it: `SPARSE`, `FLAT`, `ZERO`, ...
    pub kind: String,
}

/// What a new image is like.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CreateOptions {
    /// The virtual size in bytes; `None`: [`resize`](BlockDevice::resize) tells.
    pub size: Option<u64>,
    /// How it is laid out.
    pub subformat: Subformat,
    /// How hard it is compressed, 1 to 9; `None`: what pays.
    pub compression_level: Option<u32>,
    /// How many grains are compressed at a time; 0: as many as there are processors.
    pub threads: usize,
    /// The adapter that the descriptor names: `ide`, `buslogic`, `lsilogic` or `legacyESX`; `None`: `ide`.
    pub adapter_type: Option<String>,
    /// The version of the virtual hardware that the descriptor names; `None`: 4.
    pub hardware_version: Option<String>,
}

/// How a new image is laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Subformat {
    /// Compressed, written from front to back: for transport.
    #[default]
    StreamOptimized,
    /// One file that grows.
    MonolithicSparse,
}

impl Details {
    /// Reads them from the image in `below`, without any other file that it may be made of.
    ///
    /// # Errors
    /// As those of opening the image.
    pub async fn read(below: &Arc<dyn BlockDevice>) -> Result<Self> {
        let contents = Contents::read(&HostFile::new(Arc::clone(below))).await;
        let contents = contents.map_err(|error| error.during(Operation::Open))?;
        Ok(contents.details())
    }
}
