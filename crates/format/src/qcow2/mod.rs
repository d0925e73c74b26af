//! qcow2, versions 2 and 3: read, made anew, and written in place.
//!
//! The specification is `docs/interop/qcow2.rst` of the QEMU project; comments name its sections.
//!
//! ```text
//!  header     the header and its extensions: parsed, checked, written
//!  geometry   the arithmetic of clusters and tables
//!  entry      one entry of an L2 table
//!  tables     where clusters lie: the L1 table, and the L2 tables that there is room for
//!  runs       a range of the disk as a row of places where its bytes come from
//!  read       a request from its runs
//!  unpacked   compressed clusters, on the threads of the pool
//!  status     holes, zeroes, and which image of a chain has them
//!  placed     where clusters lie
//!  image      all of that, open
//!  codec      one cluster compressed or decompressed
//!  snapshots  internal snapshots: the table of them, and how they are made, gone back to and deleted
//!  bitmaps    the directory of bitmaps, what is dirty, and how they change
//!  details    what an image says of itself
//!  refcounts  how often clusters are used, as it stands in the file
//!  check      whether an image is sound
//!  new        an image that is made, by who knows all of its contents
//!  write      images written in place: clusters allocated, tables committed in their order
//!  pieces     tables, written in parts
//!  resize     another size of the virtual disk
//!  amend      another version
//!  backing    another name of the backing file
//!  rebase     another backing file behind the same disk
//!  empty      nothing of its own any more
//!  allocate   which clusters of the file are free
//!  gate       who is looking at clusters
//!  measure    how long the file of a new image becomes
//!  laid_out   the file of an image, computed in advance and read from front to back
//!  options    how images are made
//! ```

mod allocate;
mod amend;
mod backing;
mod bitmaps;
mod check;
pub(crate) mod codec;
mod details;
mod empty;
mod entries;
mod entry;
mod gate;
mod geometry;
mod header;
mod image;
mod laid_out;
mod measure;
mod new;
mod options;
mod pieces;
mod placed;
mod read;
mod rebase;
mod refcounts;
mod resize;
mod runs;
mod snapshots;
mod status;
mod tables;
#[cfg(test)]
mod testing;
mod unpacked;
mod write;

use crate::OpenOptions;
#[cfg(test)]
use crate::qemu;
use crate::{holes, host};
pub use amend::{AmendOptions, amend};
pub use backing::set_backing;
pub use bitmaps::{BitmapChange, BitmapDetails, change_bitmap};
pub use check::{CheckReport, RepairMode, check, repair};
pub use details::Details;
pub use empty::empty;
pub use header::Compression;
pub(crate) use header::Header;
#[cfg(test)]
pub(crate) use image::Image;
pub use image::open;
pub use laid_out::LaidOut;
pub use measure::{DataClusters, Measured, measure, measure_bitmaps};
pub use new::create;
pub use options::{Backing, CreateOptions, DataFile, Preallocation};
pub use rebase::{Common, RebaseOptions, rebase};
pub use resize::{ResizeOptions, resize};
pub use snapshots::{Snapshot, SnapshotOptions, apply_snapshot, create_snapshot, delete_snapshot};
