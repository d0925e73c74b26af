//! Waiting without the interpreter: other threads run meanwhile, and a signal ends the wait.

use std::{
    future::Future,
    sync::{
        Mutex, PoisonError,
        mpsc::{RecvTimeoutError, sync_channel},
    },
    thread,
    time::Duration,
};

use blockferry::{block, job::JobError};
use pyo3::prelude::*;
use tokio::{
    runtime::{Builder, Runtime},
    time::{Instant, interval_at},
};

use crate::errors;

/// How long a signal may wait until its handler runs.
pub(crate) const SIGNAL_PAUSE: Duration = Duration::from_millis(100);

/// A runtime that runs on whichever thread waits for it.
pub(crate) fn new(py: Python<'_>) -> PyResult<Runtime> {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| errors::of_device(py, error.into()))
}

/// Why there is no output.
enum Ended<E> {
    Failed(E),
    /// A signal's handler has raised this: `KeyboardInterrupt`, most of the time.
    Raised(PyErr),
}

/// Runs `future` to its end, without the interpreter. Where the handler of a signal raises, the future is dropped and
/// what was raised is the result.
pub(crate) fn wait<T: Send, E: Send + Into<JobError>>(
    py: Python<'_>,
    runtime: &Runtime,
    future: impl Future<Output = Result<T, E>> + Send,
) -> PyResult<T> {
    let output = py.detach(|| {
        runtime.block_on(async {
            tokio::select! {
                biased;
                output = future => output.map_err(Ended::Failed),
                raised = raised() => Err(Ended::Raised(raised)),
            }
        })
    });
    output.map_err(|ended| match ended {
        Ended::Failed(error) => errors::raised(py, error.into()),
        Ended::Raised(error) => error,
    })
}

/// Does what blocks on a thread of its own, and waits for it without the interpreter. Where the handler of a signal raises,
/// it is left to itself.
pub(crate) fn apart<T: Send + 'static>(
    py: Python<'_>,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> PyResult<T> {
    let (sender, receiver) = sync_channel(1);
    let thread = thread::Builder::new().name("blockferry".to_owned());
    let thread = thread.spawn(move || {
        // Whoever waited may be gone.
        let _ = sender.send(work());
    });
    thread.map_err(|error| errors::of_device(py, error.into()))?;
    let receiver = Mutex::new(receiver);
    loop {
        let output = py.detach(|| {
            let receiver = receiver.lock().unwrap_or_else(PoisonError::into_inner);
            receiver.recv_timeout(SIGNAL_PAUSE)
        });
        match output {
            Ok(output) => return output.map_err(|error| errors::of_device(py, error)),
            Err(RecvTimeoutError::Timeout) => py.check_signals()?,
            Err(RecvTimeoutError::Disconnected) => {
                let error = block::Error::new(block::ErrorKind::Io);
                return Err(errors::of_device(py, error));
            }
        }
    }
}

/// Looks for signals now and then, and ends with what a handler raises. Handlers run on the main thread only; to any
/// other one this is a wait for ever.
async fn raised() -> PyErr {
    let mut ticks = interval_at(Instant::now() + SIGNAL_PAUSE, SIGNAL_PAUSE);
    loop {
        ticks.tick().await;
        if let Err(error) = Python::attach(handle_signals) {
            return error;
        }
    }
}

fn handle_signals(py: Python<'_>) -> PyResult<()> {
    py.check_signals()
}

/// The result of a call of a device.
pub(crate) type Result<T, E = block::Error> = std::result::Result<T, E>;
