//! Images that break the rules of their format.

use blockferry_block::{Error, ErrorKind};

/// An image that breaks the format's rules. What is quoted from it must have been escaped.
pub(crate) fn corrupt(message: impl Into<String>) -> Error {
    Error::with_message(ErrorKind::Corrupt, message)
}
