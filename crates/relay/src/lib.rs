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
//! [`proxy_protocol`] has the header that tells a server behind a relay who its client is.
//!
//! Who writes to a socket whose peer is gone gets a signal (SIGPIPE) from splicing. Rust programs ignore it, unless
//! they say otherwise; do not.

#![forbid(unsafe_code)]

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
