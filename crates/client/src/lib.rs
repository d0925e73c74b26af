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

#![forbid(unsafe_code)]

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
