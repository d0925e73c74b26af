//! What a device's error is called on the wire.

use blockferry_block::{Error, ErrorKind};
use blockferry_proto::{Command, CommandFlags, Errno, OptionErrorCode, OptionRefusal};

/// The error number of a reply to a failed `command` with `flags` (section "Error values": two numbers are
/// for clients that asked for them).
pub(crate) fn errno(command: Command, flags: CommandFlags, error: &Error) -> Errno {
    let is_fast = command == Command::WriteZeroes && flags.contains(CommandFlags::FAST_ZERO);
    let is_whole = command == Command::Read && flags.contains(CommandFlags::DF);
    match error.kind() {
        ErrorKind::ReadOnly | ErrorKind::NotPermitted => Errno::EPERM,
        ErrorKind::OutOfMemory => Errno::ENOMEM,
        ErrorKind::InvalidInput => Errno::EINVAL,
        ErrorKind::NoSpace => Errno::ENOSPC,
        ErrorKind::OutOfBounds if command.is_write() => Errno::ENOSPC,
        ErrorKind::OutOfBounds => Errno::EINVAL,
        ErrorKind::Unsupported if is_fast => Errno::ENOTSUP,
        ErrorKind::Overflow if is_whole => Errno::EOVERFLOW,
        ErrorKind::Unsupported | ErrorKind::Overflow => Errno::EINVAL,
        ErrorKind::ShuttingDown => Errno::ESHUTDOWN,
        // The specification has no other: what failed says the message.
        _ => Errno::EIO,
    }
}

/// What a client is told whose export could not be opened.
pub(crate) fn refusal(error: &Error) -> OptionRefusal {
    let code = match error.kind() {
        ErrorKind::NotPermitted | ErrorKind::Refused => OptionErrorCode::Policy,
        ErrorKind::ShuttingDown => OptionErrorCode::Shutdown,
        // Whatever the reason: "the requested export is not available".
        _ => OptionErrorCode::Unknown,
    };
    OptionRefusal::new(code, error.to_string())
}
