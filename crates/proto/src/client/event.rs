//! What a reply brings, and how a server says no.

use std::fmt;

use super::table::Cookie;
use crate::types::Extent;
use crate::wire::Errno;

#[cfg(doc)]
use super::session::ClientSession;

/// What a reply brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyEvent {
    /// All the bytes were taken, and more are needed.
    NeedMore,
    /// The next `length` bytes on the wire are data. The driver receives them and then hands what
    /// follows to [`ClientSession::receive`].
    Payload {
        /// The read that it belongs to.
        cookie: Cookie,
        /// Bytes from the start of the read's buffer.
        offset: u64,
        /// Bytes, never 0.
        length: u64,
    },
    /// A part of a read that is zeroes: the driver clears it.
    Hole {
        /// The read that it belongs to.
        cookie: Cookie,
        /// Bytes from the start of the read's buffer.
        offset: u64,
        /// Bytes, never 0.
        length: u64,
    },
    /// The status of the blocks from the start of the request on, in one context.
    Extents {
        /// The block status request that it belongs to.
        cookie: Cookie,
        /// The id of a negotiated context.
        context: u32,
        /// At least one and at most 2^20; none is empty, all lie in the request, and together
        /// they may cover less than the request.
        extents: Vec<Extent>,
    },
    /// The reply is complete and the request has left the table. A read that succeeded has had
    /// each of its bytes covered exactly once.
    Done {
        /// The request that is answered.
        cookie: Cookie,
        /// The first error of the reply.
        result: Result<(), ServerError>,
    },
}

/// A server's report that a request failed; the connection is fine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerError {
    /// What went wrong.
    pub errno: Errno,
    /// The server's own words, at most 4096 bytes of what it sent. Hostile: escape before
    /// printing. `Display` does so.
    pub message: Option<String>,
    /// Where it went wrong, in bytes from the start of the export; inside the request.
    pub offset: Option<u64>,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server reported {}", self.errno)?;
        if let Some(offset) = self.offset {
            write!(f, " at offset {offset}")?;
        }
        if let Some(message) = &self.message {
            write!(f, " ({message:?})")?;
        }
        Ok(())
    }
}

impl std::error::Error for ServerError {}
