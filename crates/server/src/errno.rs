//! What a device's error is called on the wire.

use blockferry_block::{Error, ErrorKind};
use blockferry_proto::{Command, Errno, OptionErrorCode, OptionRefusal};

/// The error number of a reply to a failed `command` (section "Error values").
pub(crate) fn errno(command: Command, error: &Error) -> Errno {
    match error.kind() {
        ErrorKind::ReadOnly | ErrorKind::NotPermitted => Errno::EPERM,
        ErrorKind::OutOfMemory => Errno::ENOMEM,
        ErrorKind::InvalidInput => Errno::EINVAL,
        ErrorKind::NoSpace => Errno::ENOSPC,
        ErrorKind::OutOfBounds if command.is_write() => Errno::ENOSPC,
        ErrorKind::OutOfBounds => Errno::EINVAL,
        ErrorKind::Unsupported => Errno::ENOTSUP,
        ErrorKind::ShuttingDown => Errno::ESHUTDOWN,
        // The specification has no other: what failed says the message.
        _ => Errno::EIO,
    }
}

/// What a client is told whose export could not be opened.
pub(crate) fn refusal(error: &Error) -> OptionRefusal {
    let code = match error.kind() {
        ErrorKind::NotFound => OptionErrorCode::Unknown,
        ErrorKind::NotPermitted | ErrorKind::Refused => OptionErrorCode::Policy,
        ErrorKind::ShuttingDown => OptionErrorCode::Shutdown,
        _ => OptionErrorCode::Platform,
    };
    OptionRefusal::new(code, error.to_string())
}
