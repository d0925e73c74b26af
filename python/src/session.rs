//! An image while it is open: its device, the runtime that it lives in, and how both end.

use std::{
    future::Future,
    mem, process,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use blockferry::{
    block::{
        Access, BlockDevice, ByteRange, ClientFacts, DeviceInfo, Error, ErrorKind, Exports,
        Operation,
    },
    endpoint::{
        Connection, Endpoint, EndpointKind, OpenDevice, OpenExports, OpenOptions, open_device,
        open_exports,
    },
};
use pyo3::prelude::*;
use tokio::{runtime::Runtime, sync::RwLock, time::timeout};

use crate::{
    errors::{of_device, usage},
    runtime::{Result, wait},
    transfer::{self, Pieces},
};

/// How long an image that nobody has closed may take to be closed when it is collected.
const GOODBYE: Duration = Duration::from_secs(5);

/// How long the threads of its blocking calls may take to end: those that have nothing to do need no time.
const LEAVE: Duration = Duration::from_millis(100);

/// What was opened.
pub(crate) struct Opened {
    pub(crate) device: Arc<dyn BlockDevice>,
    exports: Option<Arc<dyn Exports>>,
    pub(crate) connection: Connection,
}

/// Opens an endpoint: an NBD server with as many connections as the options say, unless filters stand in front of it.
pub(crate) async fn open(
    endpoint: &Endpoint,
    access: Access,
    options: &OpenOptions,
) -> Result<Opened> {
    let is_server = matches!(
        endpoint.kind(),
        EndpointKind::Nbd(_) | EndpointKind::Command(_)
    );
    if !is_server || !endpoint.filters().is_empty() {
        let OpenDevice { device, connection } = open_device(endpoint, access, options).await?;
        return Ok(Opened {
            device,
            exports: None,
            connection,
        });
    }
    let OpenExports {
        exports,
        connection,
    } = open_exports(endpoint, access, options).await?;
    let client = ClientFacts {
        read_only: access == Access::ReadOnly,
        tls: false,
    };
    let opened = exports.open("", client).await?;
    Ok(Opened {
        device: opened.device,
        exports: Some(exports),
        connection,
    })
}

/// How endpoints are opened, and how long servers are waited for: as `--timeout` says it on the command line.
pub(crate) fn open_options(py: Python<'_>, limit: Option<f64>) -> PyResult<OpenOptions> {
    let mut options = OpenOptions::default();
    match limit {
        None => options.request_timeout = Some(Duration::from_secs(300)),
        Some(0.0) => {}
        Some(seconds) => {
            let limit = Duration::try_from_secs_f64(seconds);
            let limit = limit.map_err(|error| usage(py, &format!("timeout: {error}")))?;
            options.connect_timeout = options.connect_timeout.min(limit);
            options.request_timeout = Some(limit);
            options.flush_timeout = Some(limit);
        }
    }
    Ok(options)
}

/// An image while it is open.
pub(crate) struct Session(Option<State>);

/// What ends with an image: exports are closed before the connection.
type Ending = (Option<Arc<dyn Exports>>, Connection);

struct State {
    runtime: Runtime,
    device: Arc<dyn BlockDevice>,
    info: DeviceInfo,
    pieces: Pieces,
    /// What ends with it; `None` once it is closed.
    opened: Mutex<Option<Ending>>,
    is_closed: AtomicBool,
    /// Held by every call while it works, and alone by the end.
    calls: RwLock<()>,
    /// The process that opened it: in a child that was forked it cannot be used.
    process: u32,
}

impl Session {
    /// Of what was opened in `runtime`. `info` is what may be done with it.
    pub(crate) fn new(runtime: Runtime, opened: Opened, info: DeviceInfo) -> Self {
        let Opened {
            device,
            exports,
            connection,
        } = opened;
        Self(Some(State {
            runtime,
            pieces: Pieces::of(&info),
            device,
            info,
            opened: Mutex::new(Some((exports, connection))),
            is_closed: AtomicBool::new(false),
            calls: RwLock::new(()),
            process: process::id(),
        }))
    }

    fn state(&self) -> &State {
        self.0
            .as_ref()
            .expect("it is only taken when this is dropped")
    }

    /// Its device.
    pub(crate) fn device(&self) -> &dyn BlockDevice {
        &*self.state().device
    }

    /// How its requests are cut.
    pub(crate) fn pieces(&self) -> &Pieces {
        &self.state().pieces
    }

    /// Whether this process is another one than that which opened it.
    pub(crate) fn is_of_another_process(&self) -> bool {
        self.state().process != process::id()
    }

    /// The range of a request, if it can be made.
    pub(crate) fn range(
        &self,
        py: Python<'_>,
        operation: Operation,
        offset: u64,
        length: u64,
    ) -> PyResult<ByteRange> {
        let range = transfer::range(&self.state().info, operation, offset, length);
        range.map_err(|error| of_device(py, error))
    }

    /// Runs a request to its end, without the interpreter.
    pub(crate) fn wait<T: Send>(
        &self,
        py: Python<'_>,
        request: impl Future<Output = Result<T>> + Send,
    ) -> PyResult<T> {
        let state = self.state();
        wait(py, &state.runtime, async {
            let _call = state.calls.read().await;
            if state.is_closed.load(Ordering::Acquire) {
                return Err(closed());
            }
            request.await
        })
    }

    /// Makes everything durable, unless it is already.
    pub(crate) fn flush_unless(&self, py: Python<'_>, durable: bool) -> PyResult<()> {
        match durable {
            true => Ok(()),
            false => self.wait(py, self.device().flush()),
        }
    }

    /// Closes it, after every call that works at present.
    pub(crate) fn close(&self, py: Python<'_>) -> PyResult<()> {
        let state = self.state();
        wait(py, &state.runtime, async {
            let _alone = state.calls.write().await;
            state.close().await
        })
    }
}

/// What is said to those who come too late.
pub(crate) fn closed() -> Error {
    Error::with_message(ErrorKind::InvalidInput, "the client is closed")
}

impl State {
    async fn close(&self) -> Result<()> {
        self.is_closed.store(true, Ordering::Release);
        let opened = self
            .opened
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some((exports, connection)) = opened else {
            return Ok(());
        };
        if let Some(exports) = exports {
            exports.close().await;
        }
        connection.close().await
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let Some(state) = self.0.take() else {
            return;
        };
        if state.process != process::id() {
            // Sockets, and what waits for them, are shared with the process that goes on with them.
            mem::forget(state);
            return;
        }
        if !state.is_closed.load(Ordering::Acquire) {
            // Nobody would hear an error.
            let closing = async { timeout(GOODBYE, state.close()).await };
            let _ = state.runtime.block_on(closing);
        }
        let State { runtime, .. } = state;
        // Its threads hold descriptors until they end.
        runtime.shutdown_timeout(LEAVE);
    }
}
