//! VHDX, Hyper-V's format, for reading.
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
mod replay;

pub use details::Details;
pub use image::open;
