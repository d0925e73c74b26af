//! NBD clients.
//!
//! Side by side over the protocol core of `blockferry-proto`; none hides the other:
//!
//! - [`blocking::Client`]: plain calls on plain slices. A long read is cut into pieces that are in flight
//!   together, so that even one call keeps the server busy.
//! - [`Client`]: asynchronous (tokio), cheap to clone, a [`BlockDevice`](blockferry_block::BlockDevice).
//!   Requests are pipelined; dropping a future is safe.
//! - [`Pool`]: several of those to one export as one device, which outlives the loss of some, and where it is
//!   told to that of all.
//!
//! All receive the payload where it belongs: one system call takes the rest of
//! one payload, the next reply's header and the payload that will most probably follow it.
//!
//! What a server is asked for is a [`NbdUri`](blockferry_proto::NbdUri), with its TLS if it is `nbds:`; how it is connected
//! to is in [`ConnectOptions`]. [`blocking::info`] and [`blocking::list`] ask a server for its exports and use none.
//! Offsets and lengths are bytes. Errors are a device's ([`blockferry_block::Error`]): their kind says whether another
//! attempt may help ([`is_transient`](blockferry_block::Error::is_transient)), and they name the endpoint.
//!
//! ```no_run
//! use blockferry_block::{BlockDevice, Buffer, ByteRange, Context};
//! use blockferry_client::{Client, ConnectOptions};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let mut options = ConnectOptions::default();
//! options.request_timeout = Some(std::time::Duration::from_secs(60));
//! let disk = Client::connect(&"nbd://localhost/disk".parse()?, &options).await?;
//! let size = disk.info().size;
//! let sector = disk.read(0, Buffer::zeroed(512)).await?;
//! let extents = disk.extents(ByteRange::between(0, size), &Context::Allocation).await?;
//! println!("{size} bytes, {} extents at the beginning, {:?}", extents.len(), &sector[..4]);
//! disk.disconnect().await;
//! # Ok(())
//! # }
//! ```
//!
//! | file | has |
//! |---|---|
//! | `connect`, `handshake`, `tls` | from a URI to a connection in transmission |
//! | `stream` | the socket, with or without TLS |
//! | `client`, `driver`, `in_flight` | the asynchronous client: its handles, its task, and what they share |
//! | `blocking` | the blocking client |
//! | `receiver` | where replies are received to, for both |
//! | `pool` | several connections as one device |
//! | `watchdog` | servers that fall silent |
//! | `info`, `status`, `errors` | NBD's words as a device's |

#![forbid(unsafe_code)]
#![warn(missing_debug_implementations)]

pub mod blocking;
mod client;
mod connect;
mod driver;
mod errors;
mod handshake;
mod in_flight;
mod info;
mod options;
mod pool;
mod receiver;
mod status;
mod stream;
mod tls;
mod watchdog;

pub use client::Client;
pub use options::{ConnectOptions, Gone};
pub use pool::{Pool, PoolEvent, PoolObserver, PoolOptions};
