//! Filters: block devices around block devices.
//!
//! A filter stands in front of the exports of a server, or of a copy's source, and changes what is seen through
//! it: it caches, delays, cuts out a part, unpacks. Each is a file of this crate; [`FILTERS`] is the table of them
//! all, with their parameters and with what they do to extents, to zero copy, to flushes and to concurrency.
//!
//! ```text
//!   client -> Layer (first filter) -> Layer (second filter) -> Exports of the source
//!               └─ open -> Filtered device ─> Filtered device ─> device
//! ```
//!
//! - [`Filter`] is a filter with its parameters; it makes a [`Layer`], which is [`Exports`] around other exports.
//! - [`DeviceLayer`] is what most layers are: a device around each device that is opened, and something that all
//!   handles of one export share. [`PerExport`] makes a layer of it.
//! - [`DeviceFilter`] is a device around a device, of which only what it changes must be written down;
//!   [`Filtered`] makes a [`BlockDevice`] of it.
//!
//! A filter is put in front of exports by its text, or as a value:
//!
//! ```
//! use std::{ffi::OsStr, sync::Arc};
//!
//! use blockferry_block::{Buffer, ClientFacts, Exports, PatternDevice, SingleExport};
//! use blockferry_filter::{Chain, NamedFilter, ReadOnly};
//!
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
//! # runtime.block_on(async {
//! let source = Arc::new(SingleExport::new(Arc::new(PatternDevice::new(1 << 20))));
//! let filters = [
//!     NamedFilter::new(ReadOnly),
//!     NamedFilter::parse(OsStr::new("range:4096,length=8192")).expect("a filter"),
//! ];
//! let chain = Chain::new(&filters, source)?;
//! let client = ClientFacts::default();
//! let device = chain.exports().open("", client).await?.device;
//! assert_eq!(device.info().size, 8192);
//! // The pattern says at each place of 8 bytes which it is.
//! let read = device.read(0, Buffer::zeroed(8)).await?;
//! assert_eq!(read[..], 4096_u64.to_be_bytes());
//! chain.exports().close().await;
//! # Ok::<_, blockferry_block::Error>(())
//! # })?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! The runtime that opens a device ends with the connection that it was opened for. What several handles share
//! must not wait for a task of one of them without noticing that it is gone: work in the background belongs to
//! the runtime in which the layer was made ([`Filter::layer`]), or to nobody who would be missed.
//!
//! [`Exports`]: blockferry_block::Exports
//! [`BlockDevice`]: blockferry_block::BlockDevice

#![forbid(unsafe_code)]

mod abilities;
mod aligned;
mod blocksize;
mod cache;
mod cacheextents;
mod chain;
mod cow;
mod delay;
mod device;
mod error;
mod exitlast;
mod extentlist;
mod filter;
mod fua;
mod layer;
mod limit;
mod lines;
mod log;
mod nocache;
mod offset;
mod packed;
mod partition;
mod rate;
mod readahead;
mod retry;
mod rotational;
mod salvage;
mod serialize;
mod stats;
mod store;
mod swab;
mod table;
mod tar;
#[cfg(test)]
mod testing;
mod truncate;
mod watched;
mod window;

#[cfg(test)]
#[path = "../tests/images/mod.rs"]
mod images;

pub use abilities::{MultiConn, NoExtents, NoTrim, NoZero, ReadOnly};
pub use blocksize::BlockSize;
pub use cache::{Cache, CacheMode};
pub use cacheextents::CacheExtents;
pub use chain::Chain;
pub use cow::Cow;
pub use delay::Delay;
pub use device::{DeviceFilter, Filtered};
pub use error::{ErrorRule, InjectErrors};
pub use exitlast::ExitLast;
pub use extentlist::ExtentList;
pub use filter::{Counters, Effects, Filter, FilterError, FilterKind, Layer, NamedFilter};
pub use fua::Fua;
pub use layer::{DeviceLayer, Opened, PerExport, each_device};
pub use limit::Limit;
pub use log::{LogFormat, LogRequests};
pub use nocache::NoCache;
pub use offset::Offset;
pub use packed::{Packing, Unpack};
pub use partition::{Partition, PartitionTable};
pub use rate::{RateLimit, RateUnit, Rates};
pub use readahead::ReadAhead;
pub use retry::Retry;
pub use rotational::Rotational;
pub use salvage::Salvage;
pub use serialize::Serialize;
pub use stats::{Stats, StatsFormat};
pub use store::StorePlace;
pub use swab::Swab;
pub use table::FILTERS;
pub use tar::{Tar, TarFile};
pub use truncate::Truncate;
