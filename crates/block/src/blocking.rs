//! Where calls that may sleep in the kernel run: beside the async runtime, never on it.

use tokio::runtime::Handle;

use crate::{Error, ErrorKind, Result};

/// Runs `call` on the runtime's threads for blocking calls, or at once where no runtime is running.
/// The call goes to its end even when the future is dropped.
///
/// # Errors
/// `Cancelled` when the runtime ends before the call has begun.
///
/// # Panics
/// When the call does.
pub async fn run_blocking<T, F>(call: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let Ok(runtime) = Handle::try_current() else {
        return Ok(call());
    };
    match runtime.spawn_blocking(call).await {
        Ok(value) => Ok(value),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Error::with_message(
                ErrorKind::Cancelled,
                "the runtime is shutting down",
            )),
        },
    }
}
