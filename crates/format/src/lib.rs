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

#![forbid(unsafe_code)]

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
mod uuid;
pub mod vdi;
pub mod vhdx;
pub mod vmdk;
pub mod vpc;

/// Disks that were compressed as one stream.
pub use blockferry_packing as packed;
pub use format::{Details, Format, Image, NewImage};
pub use options::OpenOptions;
pub use placed::{Contents, Place, PlaceFile, Placed};
pub use probe::{PROBE_LENGTH, probe, probe_packing};
pub use related::{NoRelatives, Related, RelatedFile, RelatedImage, Role};
pub use stop::Stop;
