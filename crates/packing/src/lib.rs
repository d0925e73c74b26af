//! Disks that were compressed as one stream: unpacked and packed from front to back, in one pass.
//!
//! ```text
//!   Packed (a device or a stream) -> reading ahead -> a thread that unpacks -> Unpacked (a ByteSource)
//!   PackSink (a ByteSink) -> threads that compress pieces -> in order -> PackTarget (a device or a stream)
//! ```
//!
//! [`Unpacked`] reads what gzip, xz, zstd and bzip2 make, all members, streams and frames of it, and verifies
//! the checksums. [`pack`] makes gzip and zstd that every reader takes, in pieces that can be unpacked each by itself.
//!
//! What is compressed is hostile until told otherwise: memory is bounded whatever it says, and how much comes out of it
//! can be ([`UnpackOptions::max_size`]).

#![forbid(unsafe_code)]

mod pack;
mod packing;
mod unpack;

pub use pack::{PackOptions, PackSink, PackTarget, UnfinishedPack, pack};
pub use packing::Packing;
pub use unpack::{Packed, UnpackOptions, Unpacked};
