//! VHDX, Hyper-V's format.
//!
//! The specification is Microsoft's [MS-VHDX]; comments name its sections.
//!
//! ```text
//!  header     what the file is, the current header, where the regions lie
//!  log        what has to be replayed in an image that was not closed
//!  replay     the file with what its log has over it, as a device
//!  metadata   the size of the disk, of its blocks and its sectors
//!  locator    where the parent of a differencing image is
//!  geometry   the arithmetic of blocks and entries
//!  bat        the block allocation table: where blocks lie
//!  image      all of that, open; the disk is a device of blocks like those of other formats
//!  new        an image that is made
//!  details    what an image says of itself
//!  guid       identifiers
//!  checksum   CRC-32C
//! ```

mod bat;
mod checksum;
mod details;
mod geometry;
mod guid;
mod header;
mod image;
mod locator;
mod log;
mod metadata;
mod new;
mod replay;

pub use details::Details;
pub use image::open;
pub use new::create;

/// What a new image is like.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CreateOptions {
    /// The virtual size in bytes; `None`: [`resize`](blockferry_block::BlockDevice::resize) tells.
    pub size: Option<u64>,
    /// All blocks are allocated.
    pub is_fixed: bool,
    /// The size of a block in bytes, a power of two from 1 MiB to 256 MiB; `None`: 8 MiB to 64 MiB, as the disk is
    /// large.
    pub block_size: Option<u32>,
    /// The length of the log in bytes, in whole MiB; `None`: 1 MiB.
    pub log_size: Option<u32>,
    /// Blocks that are not there are said to be undefined, as Hyper-V has them, and not to be zero.
    pub leaves_undefined: bool,
}
