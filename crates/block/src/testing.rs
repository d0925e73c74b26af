//! For the tests of whatever is a device, or sits on top of one: a device that fails on demand, one
//! whose power can be cut, a comparison of any device with a plain row of bytes, and all that a device holds.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! use std::sync::Arc;
//! use blockferry_block::{BlockDevice, Buffer, ErrorKind, MemoryDevice, Operation};
//! use blockferry_block::testing::{Fault, FaultyDevice, Rule};
//!
//! let device = FaultyDevice::new(Arc::new(MemoryDevice::new(1 << 20)))
//!     .with(Rule::on(Operation::Read).after(1).times(1).fault(Fault::Error(ErrorKind::Io)));
//! assert!(device.read(0, Buffer::zeroed(512)).await.is_ok());
//! assert!(device.read(0, Buffer::zeroed(512)).await.is_err());
//! assert!(device.read(0, Buffer::zeroed(512)).await.is_ok());
//! assert_eq!(device.calls(Operation::Read), 3);
//! # });
//! ```

pub mod answers;
mod faulty;
mod forgetful;
mod model;
mod whole;

pub use faulty::{Fault, FaultyDevice, Rule};
pub use forgetful::{ForgetfulDevice, Survival};
pub use model::check_device;
pub use whole::{contents, extents};
