//! The block device trait, and everything a device is described with.
//!
//! Whatever holds an image is a [`BlockDevice`]: a local file, an NBD export, a generated sample, an
//! image format inside another device, a filter around one. This crate has the trait, the types of
//! its vocabulary ([`ByteRange`], [`Extent`], [`Buffer`], [`Error`], [`DeviceInfo`]), and the plain
//! devices that need nothing but the operating system. It knows nothing of NBD or of any format.
//!
//! ```text
//!             BlockDevice
//!   ┌────────┬────┴────┬────────┬─────────┐
//!  file    memory    null    sample    pattern     (here)
//!  slice   split                                   (here: parts of devices, and devices joined)
//!  nbd     scripts   formats filters               (crates above)
//! ```
//!
//! Buffers go in owned and come back, offsets and lengths are in bytes, and errors name the operation and the range:
//!
//! ```
//! use blockferry_block::{
//!     BlockDevice, Buffer, ByteRange, Context, ErrorKind, MemoryDevice, Status, WriteFlags,
//! };
//!
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
//! # runtime.block_on(async {
//! let disk = MemoryDevice::new(1 << 20);
//! let data = Buffer::from(&b"hello"[..]);
//! disk.write(1 << 19, data, WriteFlags::empty()).await?;
//! let read = disk.read(1 << 19, Buffer::zeroed(5)).await?;
//! assert_eq!(&read[..], b"hello");
//!
//! // An answer may end before the range does; what follows is asked for again.
//! let all = ByteRange::between(0, disk.info().size);
//! let extents = disk.extents(all, &Context::Allocation).await?;
//! assert_eq!(extents[0].status, Status::HOLE_ZERO);
//!
//! let error = disk.read(1 << 20, Buffer::zeroed(1)).await.unwrap_err();
//! assert_eq!((error.kind(), error.offset()), (ErrorKind::OutOfBounds, Some(1 << 20)));
//! # Ok::<_, blockferry_block::Error>(())
//! # })?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! | looking for | it is |
//! |---|---|
//! | what holds bytes | [`FileDevice`], [`MemoryDevice`], [`NullDevice`], [`SampleDevice`], [`PatternDevice`] |
//! | a part of a device, devices in a row | [`SliceDevice`], [`SplitDevice`] |
//! | bytes without offsets: pipes, standard output | [`ByteSource`], [`ByteSink`], [`FdSource`], [`FdSink`] |
//! | devices by name, for a server | [`Exports`], [`SingleExport`], [`DirectoryExports`] |
//! | sets of ranges, and turns on them | [`RangeSet`], [`RangeLock`] |
//! | zeroes in what was read | [`is_zero`], [`zero_runs`] |
//! | `NAME:KEY=VALUE,...` as people write it | [`Grammar`], [`Values`], [`parse_size`] |
//! | a model and a faulty device for tests | [`testing`] |

#![forbid(unsafe_code)]

mod blocking;
mod buffer;
pub mod data;
mod device;
mod directory;
mod error;
mod exports;
mod extent;
mod fd_stream;
mod file;
mod fit;
mod info;
mod memory;
mod null;
mod parameters;
mod pattern;
mod pipe;
mod printable;
mod range;
mod range_lock;
mod range_set;
mod read_exact;
pub mod reopening;
pub mod sample;
mod size;
mod slice;
mod split;
mod stream;
pub mod testing;
mod throttle;
mod zeroes;

pub use blockferry_sys::FillStop;
pub use blocking::run_blocking;
pub use buffer::{Buffer, BufferPool};
pub use data::{DataContents, DataError, DataOptions, decode_base64};
pub use device::{
    BlockDevice, BoxFuture, CopyFlags, FileRange, Mapping, WriteFlags, ZeroFlags, check_allocation,
    range_of, request_range,
};
pub use directory::DirectoryExports;
pub use error::{Error, ErrorKind, Operation, Result};
pub use exports::{
    ClientFacts, ExportEntry, Exports, OpenExport, SingleExport, Wish, Wishes, no_such_export,
};
pub use extent::{Context, Extent, Status, push_merged};
pub use fd_stream::{FdSink, FdSource};
pub use file::{Access, FileDevice};
pub use fit::check_fit;
pub use info::{BlockLimits, Capabilities, DeviceInfo};
pub use memory::MemoryDevice;
pub use null::NullDevice;
pub use parameters::{Grammar, Parameter, ParameterPlace, ParameterType, Values, escape_commas};
pub use pattern::PatternDevice;
pub use pipe::{Payload, PipeBuffer, PipePool};
pub use printable::printable;
pub use range::{ByteRange, RangeError};
pub use range_lock::{RangeLock, RangeTurn, RangeWaiting};
pub use range_set::RangeSet;
pub use read_exact::read_exact_at;
pub use sample::{SampleDevice, SampleError, SampleOptions};
pub use size::{HumanSize, SizeError, parse_size};
pub use slice::SliceDevice;
pub use split::SplitDevice;
pub use stream::{ByteSink, ByteSource};
pub use throttle::{Throttle, read_rate};
pub use zeroes::{ZeroRun, is_zero, zero_runs};
