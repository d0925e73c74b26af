//! The one error type of every device: a small stable kind, the operation, where, whose, and why.

use std::{error, fmt, io, sync::Arc};

/// What every operation of a device returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed operation on a device. It names what failed ([`operation`](Self::operation)), where
/// ([`offset`](Self::offset), [`length`](Self::length)), on which endpoint, and why.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    operation: Option<Operation>,
    offset: Option<u64>,
    length: Option<u64>,
    endpoint: Option<Arc<str>>,
    message: Option<String>,
    source: Option<Arc<dyn error::Error + Send + Sync>>,
}

/// The stable kinds of failure. New kinds may be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The medium or the system failed (`EIO`, and whatever has no kind of its own).
    Io,
    /// The connection to the endpoint broke.
    ConnectionLost,
    /// The endpoint did not answer in time.
    TimedOut,
    /// The endpoint is shutting down (`ESHUTDOWN`).
    ShuttingDown,
    /// Nothing is there: no such file, export, host.
    NotFound,
    /// The endpoint said no to the connection, or nobody listens there.
    Refused,
    /// The permissions do not allow it (`EPERM`, `EACCES`).
    NotPermitted,
    /// The device cannot be written.
    ReadOnly,
    /// The request breaks the device's rules (`EINVAL`): alignment, size, state.
    InvalidInput,
    /// The range lies outside the device.
    OutOfBounds,
    /// The destination is full (`ENOSPC`, `EDQUOT`, `EFBIG`).
    NoSpace,
    /// Memory ran out (`ENOMEM`).
    OutOfMemory,
    /// The answer is longer than the request allows (`EOVERFLOW`).
    Overflow,
    /// The device cannot do this at all (`ENOTSUP`).
    Unsupported,
    /// The peer broke the protocol.
    Protocol,
    /// The peer speaks something else, or lacks what is needed.
    Incompatible,
    /// The data came to an end too early: a source that shrank, a truncated image.
    UnexpectedEnd,
    /// The data is not what it should be: what was read back differs from what was written.
    Mismatch,
    /// What an image consists of contradicts itself or the rules of its format.
    Corrupt,
    /// The reader of the output went away (`EPIPE`).
    BrokenPipe,
    /// The caller cancelled the operation.
    Cancelled,
}

/// What was being done when an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// Opening or connecting.
    Open,
    /// Reading data.
    Read,
    /// Writing data.
    Write,
    /// Zeroing a range.
    Zero,
    /// Discarding a range.
    Trim,
    /// Making what was written durable.
    Flush,
    /// Asking for extents (block status).
    Extents,
    /// Filling a cache.
    Cache,
    /// Changing the size.
    Resize,
    /// Taking over bytes of a file.
    Copy,
}

impl Error {
    /// An error of `kind` with nothing else known of it.
    #[must_use]
    pub fn new(kind: ErrorKind) -> Self {
        Self(Box::new(Inner {
            kind,
            operation: None,
            offset: None,
            length: None,
            endpoint: None,
            message: None,
            source: None,
        }))
    }

    /// An error of `kind` that says `message`. Text that came from a peer or an image must have been
    /// escaped by the caller.
    #[must_use]
    pub fn with_message(kind: ErrorKind, message: impl Into<String>) -> Self {
        let mut error = Self::new(kind);
        error.0.message = Some(message.into());
        error
    }

    /// An error of `kind` with the error that caused it.
    #[must_use]
    pub fn with_source(
        kind: ErrorKind,
        source: impl Into<Box<dyn error::Error + Send + Sync>>,
    ) -> Self {
        let mut error = Self::new(kind);
        error.0.source = Some(Arc::from(source.into()));
        error
    }

    /// The same error, with the error that caused it.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(Arc::from(cause.into()));
        self
    }

    /// The same error, saying what was being done. What was said before stays.
    #[must_use]
    pub fn during(mut self, operation: Operation) -> Self {
        self.0.operation.get_or_insert(operation);
        self
    }

    /// The same error, saying at which range of the device. What was said before stays.
    #[must_use]
    pub fn at(mut self, offset: u64, length: u64) -> Self {
        self.0.offset.get_or_insert(offset);
        self.0.length.get_or_insert(length);
        self
    }

    /// The same error at another range: that of the device around the one that failed.
    #[must_use]
    pub fn moved_to(mut self, offset: u64, length: u64) -> Self {
        self.0.offset = Some(offset);
        self.0.length = Some(length);
        self
    }

    /// The same error, saying at which offset of the device. What was said before stays.
    #[must_use]
    pub fn at_offset(mut self, offset: u64) -> Self {
        self.0.offset.get_or_insert(offset);
        self
    }

    /// The same error, naming the endpoint as the user wrote it. What was said before stays.
    #[must_use]
    pub fn on(mut self, endpoint: &Arc<str>) -> Self {
        self.0.endpoint.get_or_insert_with(|| Arc::clone(endpoint));
        self
    }

    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What was being done.
    #[must_use]
    pub fn operation(&self) -> Option<Operation> {
        self.0.operation
    }

    /// The offset of the failed request, in bytes.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// The length of the failed request, in bytes.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        self.0.length
    }

    /// The endpoint, as the user wrote it.
    #[must_use]
    pub fn endpoint(&self) -> Option<&str> {
        self.0.endpoint.as_deref()
    }

    /// The message that it was made with, if it was.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.0.message.as_deref()
    }

    /// Whether trying again (after reconnecting, where a connection was lost) can succeed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(
            self.0.kind,
            ErrorKind::ConnectionLost | ErrorKind::TimedOut | ErrorKind::ShuttingDown
        )
    }
}

impl ErrorKind {
    /// The kind as a short phrase for a message.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Io => "input/output error",
            Self::ConnectionLost => "the connection was lost",
            Self::TimedOut => "timed out",
            Self::ShuttingDown => "the server is shutting down",
            Self::NotFound => "not found",
            Self::Refused => "refused",
            Self::NotPermitted => "not permitted",
            Self::ReadOnly => "read-only",
            Self::InvalidInput => "invalid request",
            Self::OutOfBounds => "out of bounds",
            Self::NoSpace => "no space left",
            Self::OutOfMemory => "out of memory",
            Self::Overflow => "the answer is too long",
            Self::Unsupported => "not supported",
            Self::Protocol => "the peer broke the protocol",
            Self::Incompatible => "incompatible peer",
            Self::UnexpectedEnd => "unexpected end of data",
            Self::Mismatch => "the contents differ",
            Self::Corrupt => "the image is corrupt",
            Self::BrokenPipe => "broken pipe",
            Self::Cancelled => "cancelled",
        }
    }
}

impl Operation {
    /// The operation as a verb: "read", "write", ...
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Read => "read",
            Self::Write => "write",
            Self::Zero => "zero",
            Self::Trim => "trim",
            Self::Flush => "flush",
            Self::Extents => "block status",
            Self::Cache => "cache",
            Self::Resize => "resize",
            Self::Copy => "copy",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        if let Some(endpoint) = &inner.endpoint {
            write!(f, "{endpoint}: ")?;
        }
        if let Some(operation) = inner.operation {
            f.write_str(operation.as_str())?;
            match (inner.offset, inner.length) {
                (Some(offset), Some(length)) => write!(f, " of {length} bytes at offset {offset}")?,
                (Some(offset), None) => write!(f, " at offset {offset}")?,
                _ => {}
            }
            f.write_str(": ")?;
        }
        match (&inner.message, &inner.source) {
            (Some(message), _) => f.write_str(message),
            // The source's own text follows when a chain is printed; the kind would only repeat it.
            (None, _) => f.write_str(inner.kind.as_str()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self}", self.0.kind)?;
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        f.write_str(")")
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.0
            .source
            .as_deref()
            .map(|source| source as &(dyn error::Error + 'static))
    }
}

impl From<io::Error> for Error {
    fn from(source: io::Error) -> Self {
        Self::with_source(ErrorKind::from(&source), source)
    }
}

impl From<&io::Error> for ErrorKind {
    fn from(error: &io::Error) -> Self {
        use io::ErrorKind as Io;
        match error.kind() {
            Io::NotFound => Self::NotFound,
            Io::PermissionDenied => Self::NotPermitted,
            Io::ConnectionRefused => Self::Refused,
            Io::ConnectionReset | Io::ConnectionAborted | Io::NotConnected => Self::ConnectionLost,
            Io::BrokenPipe => Self::BrokenPipe,
            Io::TimedOut => Self::TimedOut,
            Io::UnexpectedEof => Self::UnexpectedEnd,
            Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => Self::NoSpace,
            Io::ReadOnlyFilesystem => Self::ReadOnly,
            Io::InvalidInput => Self::InvalidInput,
            Io::Unsupported => Self::Unsupported,
            Io::OutOfMemory => Self::OutOfMemory,
            _ => Self::Io,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_endpoint_operation_offset_and_cause() {
        let endpoint: Arc<str> = Arc::from("nbd://host/disk");
        let error = Error::from(io::Error::from(io::ErrorKind::StorageFull))
            .during(Operation::Write)
            .at(4096, 512)
            .on(&endpoint);
        assert_eq!(
            error.to_string(),
            "nbd://host/disk: write of 512 bytes at offset 4096: no space left"
        );
        assert!(error::Error::source(&error).is_some());
    }

    #[test]
    fn the_innermost_context_wins() {
        let error = Error::new(ErrorKind::Io).during(Operation::Read).at(1, 2);
        let error = error.during(Operation::Flush).at(3, 4);
        assert_eq!(
            (error.operation(), error.offset()),
            (Some(Operation::Read), Some(1))
        );
    }

    #[test]
    fn only_what_a_retry_can_heal_is_transient() {
        assert!(Error::new(ErrorKind::ConnectionLost).is_transient());
        assert!(!Error::new(ErrorKind::NoSpace).is_transient());
        assert!(Error::from(io::Error::from(io::ErrorKind::ConnectionReset)).is_transient());
    }
}
