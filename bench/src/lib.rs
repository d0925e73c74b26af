//! What the helper programs of the relay's benchmarks share: addresses, blocking streams, and the loop that accepts
//! connections around the rivals that are libraries.

#![forbid(unsafe_code)]

mod address;
mod rival;
mod stream;

pub use address::Address;
pub use rival::{Pair, serve};
pub use stream::{Listener, Stream};
