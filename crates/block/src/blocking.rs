//! Where calls that may sleep in the kernel run: beside the async runtime, never on it.

use std::cell::Cell;

use tokio::runtime::Handle;

use crate::{Error, ErrorKind, Result};

thread_local! {
    /// Whether this thread is in such a call.
    static IS_IN_A_CALL: Cell<bool> = const { Cell::new(false) };
}

/// Runs `call` on the runtime's threads for blocking calls, or at once where no runtime is running, and on a thread that
/// is in such a call already: those who wait for another thread there may have taken all of them.
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
    if IS_IN_A_CALL.get() {
        return Ok(call());
    }
    let Ok(runtime) = Handle::try_current() else {
        return Ok(call());
    };
    let called = runtime.spawn_blocking(|| {
        let _in_a_call = InACall::begin();
        call()
    });
    match called.await {
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

/// This thread is in a call for as long as this lives. The thread is used again then, by anybody.
struct InACall;

impl InACall {
    fn begin() -> Self {
        IS_IN_A_CALL.set(true);
        Self
    }
}

impl Drop for InACall {
    fn drop(&mut self) {
        IS_IN_A_CALL.set(false);
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use tokio::{runtime::Builder, time::timeout};

    use super::*;

    /// Long enough for every machine; what hangs, hangs for ever.
    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn calls_in_a_call_need_no_further_thread() {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .max_blocking_threads(1)
            .build()
            .expect("a runtime");
        let threads = runtime.block_on(async {
            let inside = Handle::current();
            let called = run_blocking(move || {
                let inner = inside.block_on(run_blocking(|| thread::current().id()));
                (thread::current().id(), inner.expect("it ran"))
            });
            timeout(PATIENCE, called).await
        });
        // Where one waits for another, dropping it would wait for them.
        runtime.shutdown_background();
        let (outer, inner) = threads.expect("it does not hang").expect("it ran");
        assert_eq!(outer, inner);
        assert_ne!(outer, thread::current().id());
    }

    #[test]
    fn a_thread_that_was_in_a_call_is_like_any_other_again() {
        let runtime = Builder::new_current_thread()
            .max_blocking_threads(1)
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            for _ in 0..2 {
                run_blocking(|| ()).await.expect("it ran");
            }
            let is_in_a_call = tokio::task::spawn_blocking(|| IS_IN_A_CALL.get()).await;
            assert!(!is_in_a_call.expect("it ran"));
        });
    }
}
