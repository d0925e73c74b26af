//! Forwards byte streams: between sockets without copying them (`splice(2)`), and between anything else
//! through memory.
//!
//! [`copy()`] moves one way, [`copy_bidirectional()`] both ways, as their namesakes in tokio do. Between
//! tokio's `TcpStream` and `UnixStream` (and their owned halves), pipes and files, bytes stay in the kernel
//! where that is faster; every other `AsyncRead` and `AsyncWrite` is served through memory. The result says how
//! many bytes went which way, and so does the error when there is one.
//!
//! ```text
//!  bidirectional, one_way   what ends when
//!  flow                     one direction: load, unload, never both at once
//!  policy                   pipe or memory, by what moves and between what
//!  pool, buffers            pipes and memory, lent only while bytes are in them
//!  stream                   what an end is, found out at run time
//!  clock, hangup, rate      when waiting ends, who is gone, how much may move
//!  farewell                 closing a socket without losing what was said last
//! ```
//!
//! ```no_run
//! use blockferry_relay::{Options, copy_bidirectional};
//! use tokio::net::{TcpListener, UnixStream};
//!
//! # async fn run() -> std::io::Result<()> {
//! let listener = TcpListener::bind("127.0.0.1:10809").await?;
//! loop {
//!     let (mut client, _) = listener.accept().await?;
//!     tokio::spawn(async move {
//!         let mut server = UnixStream::connect("/run/nbd.sock").await?;
//!         match copy_bidirectional(&mut client, &mut server, &Options::new()).await {
//!             Ok(totals) => println!("{} bytes back", totals.backward.total()),
//!             Err(error) => println!("{error}"),
//!         }
//!         std::io::Result::Ok(())
//!     });
//! }
//! # }
//! ```
//!
//! [`copy_bidirectional_above()`] is for streams above sockets, such as those of TLS. [`delivered()`] closes a connection
//! without losing what was said last. All counts are bytes.
//!
//! [`proxy_protocol`] has the header that tells a server behind a relay who its client is.
//!
//! Who writes to a socket whose peer is gone gets a signal (SIGPIPE) from splicing. Rust programs ignore it, unless
//! they say otherwise; do not.

#![forbid(unsafe_code)]
#![warn(missing_debug_implementations)]

mod bidirectional;
mod buffers;
mod clock;
mod counters;
mod error;
mod farewell;
mod files;
mod flow;
mod hangup;
mod one_way;
mod options;
mod policy;
mod pool;
pub mod proxy_protocol;
mod rate;
mod stream;

pub use bidirectional::{Sockets, copy_bidirectional, copy_bidirectional_above};
pub use counters::{Counters, Moved, Totals};
pub use error::{Cause, CopyError, Direction, RelayError};
pub use farewell::delivered;
pub use one_way::{copy, copy_with};
pub use options::{Mode, Options};
pub use pool::PipePool;
pub use rate::Rate;
