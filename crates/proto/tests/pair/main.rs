//! A client and a server joined in memory: what one writes the other must understand, however
//! the bytes are cut on their way.

mod handshake;
mod link;
mod sides;
mod transmission;
