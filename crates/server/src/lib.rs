//! An NBD server for any block device.
//!
//! ```text
//! listener ─▶ handshake ─▶ export name ─▶ device ─▶ connection: request ─▶ device ─▶ reply
//! ```
//!
//! A [`Server`] accepts clients on [`Listener`]s, leads them through the handshake, opens the device
//! that they ask for ([`Exports`]) and carries out their requests on it. Each connection has a thread
//! with a single-threaded runtime; its requests run concurrently, bounded in number and bytes
//! ([`ServerOptions`]). The bytes of the protocol are `blockferry-proto`'s, what a device is, is
//! `blockferry-block`'s.
//!
//! ```no_run
//! use std::{os::unix::net::UnixListener, sync::Arc};
//!
//! use blockferry_block::MemoryDevice;
//! use blockferry_server::{Server, ServerOptions, SingleExport};
//!
//! # async fn run() -> std::io::Result<()> {
//! let exports = SingleExport::new(Arc::new(MemoryDevice::new(1 << 30)));
//! let server = Server::new(Arc::new(exports), ServerOptions::default());
//! let listener = UnixListener::bind("/run/disk.sock")?;
//! // Until `server.shutdown()` is called on a clone of it.
//! server.serve(vec![listener.into()]).await
//! # }
//! ```
//!
//! | file | has |
//! |---|---|
//! | `server` | accepting, threads, shutdown |
//! | `listener`, `stream` | the sockets |
//! | `handshake` | option haggling, what an export offers |
//! | `connection`, `input` | the loop: requests in, replies out; `connection/receiving` is its first half |
//! | `requests` | a request on a device |
//! | `replies` | the output queue |
//! | `errno` | errors on the wire |
//! | `statistics` | counters and latencies |
//! | `idle` | clients that keep silent |
//! | `buffers` | payload, shared by all connections |

#![forbid(unsafe_code)]
#![warn(missing_debug_implementations)]

mod buffers;
mod connection;
mod errno;
mod handshake;
mod idle;
mod input;
mod listener;
mod options;
mod replies;
mod requests;
mod server;
mod statistics;
mod stream;

pub use blockferry_block::{Exports, SingleExport};
pub use blockferry_proto::TlsPolicy;
pub use listener::Listener;
pub use options::{ConnectionId, Ending, ServerEvent, ServerOptions, TlsOptions};
pub use server::Server;
pub use statistics::{CommandStatistics, ExportStatistics, LATENCY_BOUNDS, Statistics};
