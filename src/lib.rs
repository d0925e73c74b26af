//! Moves disk images between NBD servers, files, devices and pipes: in parallel, sparse, durable.
//!
//! This crate is the front door. [`endpoint`] turns the strings that users write (a path, an NBD URI,
//! `sample:4G`, `[ nbdkit ... ]`) into devices; [`inspect`] tells what they are, [`job`] does what the command line does as a whole; the floors below are re-exported under their short
//! names: the device trait in [`block`], the copy engine in [`copy`], NBD's two sides in [`client`]
//! and [`server`], and the protocol itself in [`proto`].
//!
//! ```no_run
//! use blockferry::{copy, endpoint};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let options = endpoint::OpenOptions::default();
//! let source = endpoint::open_source(&"nbd://localhost/disk".parse()?, &options).await?;
//! let target = endpoint::open_destination(&"disk.raw".parse()?, &options).await?;
//! let settings = copy::CopyOptions::default();
//! let control = copy::Control::new();
//! let report = copy::copy(source.source, target.destination, &settings, &control, &()).await?;
//! // The copy is whole: a file that was created for it gets its name.
//! if let Some(file) = target.file {
//!     file.commit_durably()?;
//! }
//! target.connection.close().await?;
//! source.connection.close().await?;
//! println!("{} bytes of data", report.data);
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

pub use blockferry_block as block;
pub use blockferry_client as client;
pub use blockferry_copy as copy;
pub use blockferry_filter as filter;
pub use blockferry_format as format;
pub use blockferry_proto as proto;
pub use blockferry_relay as relay;
pub use blockferry_script as script;
pub use blockferry_server as server;
pub use blockferry_tls as tls;

#[doc(hidden)]
pub mod cli;
mod compat;
pub mod endpoint;
pub mod inspect;
pub mod job;
mod system;

/// Its examples are tested.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
