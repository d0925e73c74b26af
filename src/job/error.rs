//! How a job fails.

use std::{error, fmt, io};

use crate::{block::Error, cli::failure::Failure};

/// Why a job did not do what it was asked for, in the words of the command line.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JobError {
    /// A word that stays the same: `connection-lost`, `no-space`, ... as an
    /// [`ErrorKind`](crate::block::ErrorKind) is called; `usage` for a request that makes no sense, `interrupted`
    /// after [`Stop::stop`](super::Stop::stop), `failed` for what has no kind.
    pub kind: String,
    /// What happened, where, and why, on one line.
    pub message: String,
    /// What was being done: `read`, `write`, ...
    pub operation: Option<String>,
    /// Where the range begins that it was done to, in bytes.
    pub offset: Option<u64>,
    /// The length of that range in bytes.
    pub length: Option<u64>,
    /// The endpoint that failed, as it was written.
    pub endpoint: Option<String>,
    /// Whether trying again may help.
    pub transient: bool,
    /// The number of the system's error behind it, where there is one.
    pub errno: Option<i32>,
    /// What else there is to know: what became of the destination, above all.
    pub notes: Vec<String>,
    /// Advice.
    pub hint: Option<String>,
}

impl From<&Failure> for JobError {
    fn from(failure: &Failure) -> Self {
        let details = failure.details();
        Self {
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
        }
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
        f.write_str(&self.message)
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
        assert_eq!((&*error.kind, error.errno), ("no-space", Some(28)));
        assert_eq!((error.offset, error.length), (Some(512), Some(1024)));
        assert_eq!(error.operation.as_deref(), Some("write"));
        assert_eq!(error.endpoint.as_deref(), Some("disk.raw"));
        assert!(!error.transient && error.hint.is_some());
        assert!(error.message.contains("No space left"), "{error}");
    }
}
