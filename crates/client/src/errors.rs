//! From the protocol's errors and the sockets' to the one error type of devices.

use std::{io, sync::Arc, time::Duration};

use blockferry_block::{Error, ErrorKind};
use blockferry_proto::{self as proto, Errno, OptionErrorCode, ServerError};

use crate::tls;

/// A protocol error as a device error.
pub(crate) fn from_proto(error: proto::Error) -> Error {
    let kind = match &error {
        proto::Error::Misbehaved(proto::Misbehaviour::HungUp) => ErrorKind::ConnectionLost,
        proto::Error::Misbehaved(_) => ErrorKind::Protocol,
        proto::Error::Incompatible(_) => ErrorKind::Incompatible,
        proto::Error::Misuse(_) => ErrorKind::InvalidInput,
        proto::Error::Refused(refusal) => match refusal.code {
            OptionErrorCode::Unknown => ErrorKind::NotFound,
            OptionErrorCode::Policy => ErrorKind::NotPermitted,
            OptionErrorCode::Shutdown => ErrorKind::ShuttingDown,
            OptionErrorCode::Unsupported => ErrorKind::Unsupported,
            _ => ErrorKind::Refused,
        },
        _ => ErrorKind::Io,
    };
    Error::with_source(kind, error)
}

/// What a server answered to a request, as a device error.
pub(crate) fn from_server(error: &ServerError) -> Error {
    let kind = match error.errno {
        Errno::EPERM => ErrorKind::NotPermitted,
        Errno::ENOMEM => ErrorKind::OutOfMemory,
        Errno::EINVAL => ErrorKind::InvalidInput,
        Errno::ENOSPC => ErrorKind::NoSpace,
        Errno::EOVERFLOW => ErrorKind::InvalidInput,
        Errno::ENOTSUP => ErrorKind::Unsupported,
        Errno::ESHUTDOWN => ErrorKind::ShuttingDown,
        _ => ErrorKind::Io,
    };
    let text = match &error.message {
        Some(message) if !message.is_empty() => {
            format!(
                "the server says {}: {}",
                error.errno,
                message.escape_debug()
            )
        }
        _ => format!("the server says {}", error.errno),
    };
    let text = match error.offset {
        Some(offset) => format!("{text} (at offset {offset})"),
        None => text,
    };
    Error::with_message(kind, text)
}

/// A failed receive or send: whatever broke it, the connection is gone. What TLS found wrong with the peer
/// says more than that.
pub(crate) fn lost(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => return timed_out(),
        _ => {}
    }
    match error.downcast() {
        Ok(error) => tls::from_tls(error),
        Err(error) => Error::with_source(ErrorKind::ConnectionLost, error),
    }
}

/// A connection that could not be made. Whether the server is not there or the way to it, it may come back.
pub(crate) fn not_connected(error: io::Error) -> Error {
    use io::ErrorKind as Io;
    let kind = match error.kind() {
        Io::WouldBlock | Io::TimedOut => return timed_out(),
        Io::HostUnreachable | Io::NetworkUnreachable | Io::NetworkDown | Io::AddrNotAvailable => {
            ErrorKind::Refused
        }
        _ => ErrorKind::from(&error),
    };
    Error::with_source(kind, error)
}

/// The server closed the connection while something was expected of it.
pub(crate) fn closed_by_server() -> Error {
    Error::with_message(
        ErrorKind::ConnectionLost,
        "the server closed the connection",
    )
}

/// The server has moved nothing for `limit` although it owes answers.
pub(crate) fn silent(limit: Duration) -> Error {
    let seconds = limit.as_secs_f64();
    let message = format!("the server has not answered for {seconds} s");
    Error::with_message(ErrorKind::TimedOut, message)
}

/// The server did not answer in time.
pub(crate) fn timed_out() -> Error {
    Error::with_message(ErrorKind::TimedOut, "the server did not answer in time")
}

/// `error`, naming `endpoint`.
pub(crate) fn naming(endpoint: &Arc<str>) -> impl Fn(Error) -> Error + '_ {
    move |error| error.on(endpoint)
}
