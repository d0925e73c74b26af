//! Image formats: block devices inside block devices.
//!
//! An image in a format is read and written through a device *below* it, whatever that is: a file, an NBD
//! export, memory, a filter. What is inside is a [`BlockDevice`](blockferry_block::BlockDevice) again, so
//! everything that can be done with a disk can be done with it.
//!
//! Images are hostile until told otherwise. No name in an image is ever opened here: whoever opens an image
//! hands in a [`Related`] that says what may be followed, and the default follows nothing. Tables are bounded
//! by the virtual size, lengths are checked before memory is taken for them, and damage is an
//! [`ErrorKind::Corrupt`](blockferry_block::ErrorKind::Corrupt), never a panic.
//!
//! Each format is a module with the same names: `open` gives an [`Image`], `create` a [`NewImage`] that is a device until
//! it is finished, `Details` are what an image says of itself. [`Format`] has what is common under one roof.
//!
//! ```
//! use std::sync::Arc;
//!
//! use blockferry_block::{BlockDevice, Buffer, MemoryDevice, WriteFlags};
//! use blockferry_format::{Format, NoRelatives, OpenOptions, probe, qcow2};
//!
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
//! # runtime.block_on(async {
//! // A new image of 1 MiB, here in memory.
//! let file = Arc::new(MemoryDevice::new(0).growable());
//! let mut options = qcow2::CreateOptions::default();
//! options.size = Some(1 << 20);
//! let new = qcow2::create(file.clone(), options).await?;
//! let data = Buffer::from(&[7; 65536][..]);
//! new.write(0, data, WriteFlags::empty()).await?;
//! new.finish().await?;
//!
//! // What begins like an image is opened as one, and is a disk.
//! let bytes = file.contents();
//! let format: Format = probe(&bytes).unwrap_or("raw").parse().expect("an image");
//! let file = Arc::new(MemoryDevice::from_bytes(bytes));
//! let image = format.open(file, &NoRelatives, &OpenOptions::default()).await?;
//! assert_eq!(image.info().size, 1 << 20);
//! let read = image.read(512, Buffer::zeroed(512)).await?;
//! assert!(read.iter().all(|byte| *byte == 7));
//! image.close().await?;
//! # Ok::<_, blockferry_block::Error>(())
//! # })?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

// What the formats share, beside `format` (them under one roof), `related`, `options` and `probe`:
//
//   read     disk      an opened image as a device: each format is a layer inside of it
//            gather    a request that is read in several parts
//            answer    an answer about extents, with what is `behind` the image and the `holes` of its file
//            host      the file of an image, read in any pieces
//            placed    where bytes lie, for maps
//            blocks    all of that for images that are one table of blocks
//   unpack   pool      threads; flights, recent: each block once, and kept for a while
//   make     making    a new image as a device: each format is what makes it, inside of it
//            below     the file that it goes into; doubt: what may not be there
//            pipeline  compressing on threads and packing in order, in chunks
//            blocks::making, for images that are one table of blocks
//   parts    be, le, corrupt, uuid, table_cache, parent (those of VHD and VHDX), stop

mod answer;
mod be;
mod behind;
mod below;
mod blocks;
mod chunks;
mod corrupt;
mod disk;
mod doubt;
mod flights;
mod format;
#[doc(hidden)]
pub mod fuzzing;
mod gather;
mod holes;
mod host;
mod le;
mod making;
mod options;
pub mod ova;
mod parent;
mod pipeline;
mod placed;
mod pool;
mod probe;
pub mod qcow2;
#[cfg(test)]
mod qemu;
mod recent;
mod related;
mod stop;
mod table_cache;
#[cfg(test)]
mod testing;
mod uuid;
pub mod vdi;
pub mod vhdx;
pub mod vmdk;
pub mod vpc;

/// Disks that were compressed as one stream.
pub use blockferry_packing as packed;
pub use format::{Details, Format, Image, NewImage, UnknownFormat};
pub use options::OpenOptions;
pub use placed::{Contents, Place, PlaceFile, Placed};
pub use probe::{PROBE_LENGTH, probe, probe_packing};
pub use related::{NoRelatives, Related, RelatedFile, RelatedImage, Role};
pub use stop::Stop;
