//! How a job fails.

use std::{error, fmt, io};

use crate::{block::Error, cli::failure::Failure};

/// Why a job did not do what it was asked for, in the words of the command line.
#[derive(Clone, Debug)]
pub struct JobError(Box<Facts>);

#[derive(Clone, Debug)]
struct Facts {
    kind: String,
    message: String,
    operation: Option<String>,
    offset: Option<u64>,
    length: Option<u64>,
    endpoint: Option<String>,
    transient: bool,
    errno: Option<i32>,
    notes: Vec<String>,
    hint: Option<String>,
}

impl JobError {
    /// A word that stays the same: `connection-lost`, `no-space`, ... as an
    /// [`ErrorKind`](crate::block::ErrorKind) is called; `usage` for a request that makes no sense, `interrupted`
    /// after [`Stop::stop`](super::Stop::stop), `failed` for what has no kind.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.0.kind
    }

    /// What happened, where, and why, on one line. It may have control characters in it that came from elsewhere.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What was being done: `read`, `write`, ...
    #[must_use]
    pub fn operation(&self) -> Option<&str> {
        self.0.operation.as_deref()
    }

    /// Where the range begins that it was done to, in bytes.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// The length of that range in bytes.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        self.0.length
    }

    /// The endpoint that failed, as it was written.
    #[must_use]
    pub fn endpoint(&self) -> Option<&str> {
        self.0.endpoint.as_deref()
    }

    /// Whether trying again may help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.0.transient
    }

    /// The number of the system's error behind it, where there is one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.0.errno
    }

    /// What else there is to know: what became of the destination, above all.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.0.notes
    }

    /// Advice.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

impl From<&Failure> for JobError {
    fn from(failure: &Failure) -> Self {
        let details = failure.details();
        Self(Box::new(Facts {
            kind: details.kind,
            message: details.message.to_owned(),
            operation: details.operation,
            offset: details.offset,
            length: details.length,
            endpoint: details.endpoint.map(str::to_owned),
            transient: details.transient,
            errno: failure.cause().and_then(errno),
            notes: details.notes.to_vec(),
            hint: details.hint.map(str::to_owned),
        }))
    }
}

impl From<Failure> for JobError {
    fn from(failure: Failure) -> Self {
        Self::from(&failure)
    }
}

impl From<Error> for JobError {
    fn from(error: Error) -> Self {
        Failure::from(error).into()
    }
}

impl From<crate::endpoint::EndpointError> for JobError {
    fn from(error: crate::endpoint::EndpointError) -> Self {
        Failure::from(error).into()
    }
}

impl From<crate::filter::FilterError> for JobError {
    fn from(error: crate::filter::FilterError) -> Self {
        Failure::from(error).into()
    }
}

/// The number of the first error of the system among the causes.
fn errno(error: &Error) -> Option<i32> {
    let mut cause = error::Error::source(error);
    while let Some(next) = cause {
        let number = next.downcast_ref().and_then(io::Error::raw_os_error);
        if number.is_some() {
            return number;
        }
        cause = next.source();
    }
    None
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

impl error::Error for JobError {}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::block::Operation;

    #[test]
    fn what_is_known_of_an_error_is_kept() {
        let endpoint: Arc<str> = Arc::from("disk.raw");
        let error = Error::from(io::Error::from_raw_os_error(28))
            .during(Operation::Write)
            .at(512, 1024)
            .on(&endpoint);
        let error = JobError::from(error);
        assert_eq!((error.kind(), error.errno()), ("no-space", Some(28)));
        assert_eq!((error.offset(), error.length()), (Some(512), Some(1024)));
        assert_eq!(error.operation(), Some("write"));
        assert_eq!(error.endpoint(), Some("disk.raw"));
        assert!(!error.is_transient() && error.hint().is_some());
        assert!(error.message().contains("No space left"), "{error}");
    }
}
