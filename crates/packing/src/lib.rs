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
//! ```
//! use std::sync::Arc;
//!
//! use blockferry_block::{Buffer, ByteSink, ByteSource, MemoryDevice};
//! use blockferry_packing::{
//!     PackOptions, PackTarget, Packed, Packing, UnpackOptions, Unpacked, pack,
//! };
//!
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
//! # runtime.block_on(async {
//! let file = Arc::new(MemoryDevice::new(0).growable());
//! let options = PackOptions::new(Packing::Zstd);
//! let (mut sink, unfinished) = pack(PackTarget::Device(file.clone()), &options)?;
//! sink.write(Buffer::from(&[7; 100_000][..])).await?;
//! unfinished.finish().await?;
//!
//! let packed = Packed::Device(Arc::new(MemoryDevice::from_bytes(file.contents())));
//! let options = UnpackOptions::default();
//! let mut unpacked = Unpacked::open(packed, Packing::Zstd, &options).await?;
//! let read = unpacked.read(Buffer::zeroed(1 << 20)).await?;
//! assert!(read[..] == [7; 100_000]);
//! # Ok::<_, blockferry_block::Error>(())
//! # })?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! What is compressed is hostile until told otherwise: memory is bounded whatever it says, and how much comes out of it
//! can be ([`UnpackOptions::max_size`]).

#![forbid(unsafe_code)]

mod pack;
mod packing;
mod unpack;

pub use pack::{PackOptions, PackSink, PackTarget, UnfinishedPack, pack};
pub use packing::{Packing, UnknownPacking};
pub use unpack::{Packed, UnpackOptions, Unpacked};
