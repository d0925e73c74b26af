//! The relay as its users see it: over real sockets, pipes and files, by every way that bytes can take.
#![forbid(unsafe_code)]

mod bytes;
mod chunks;
mod counts;
mod ends;
mod fairness;
mod files;
mod line;
mod list;
mod others;
mod paths;
mod pipes;
mod pool;
mod rate;
mod sockets;
mod timeouts;
