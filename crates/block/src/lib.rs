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
pub use buffer::{BUFFER_ALIGNMENT, Buffer, BufferPool};
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
pub use parameters::{
    Grammar, Parameter, ParameterPlace, ParameterType, Values, escape_commas, parse_duration,
};
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
