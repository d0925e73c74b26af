//! `Served`: an image that others reach through a unix socket while it is served.

use std::{
    fs::Permissions,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::{self, JoinHandle},
};

use blockferry::{
    block::{Access, Error, Exports, SingleExport},
    endpoint::{Connection, Endpoint, OpenExports, OpenOptions, open_device, open_exports},
    proto::{NbdUri, Transport},
    server::{Server, ServerOptions},
};
use pyo3::{prelude::*, types::PyType};
use tokio::runtime::Builder;

use crate::{
    errors::{of_device, usage},
    runtime::{Result, apart},
    session::open_options,
    words::endpoint,
};

/// An image that is served over NBD on a unix socket, until it is closed.
///
/// Without `socket` it is one in a directory that only this user can enter, and goes away with it. The parameters are those
/// of `Client`. What clients have written is flushed in the end.
///
/// >>> with serve("memory:1M") as served:
/// ...     with Client(served.uri) as disk:
/// ...         disk.write(b"hello", 0)
/// ...         disk.read(5, 0)
/// b'hello'
#[pyclass(frozen, name = "serve", module = "blockferry")]
pub(crate) struct Served {
    socket: PathBuf,
    uri: String,
    process: u32,
    running: Mutex<Option<Running>>,
}

struct Running {
    server: Server,
    thread: JoinHandle<Result<()>>,
    directory: Option<tempfile::TempDir>,
}

#[pymethods]
impl Served {
    #[new]
    #[pyo3(signature = (endpoint, *, socket=None, read_only=false, connections=1, timeout=None, format=None,
                        snapshot=None, filters=Vec::new(), allow_backing=Vec::new(), max_size=None))]
    #[allow(
        clippy::too_many_arguments,
        reason = "they are named where they are given"
    )]
    fn new(
        py: Python<'_>,
        endpoint: &Bound<'_, PyAny>,
        socket: Option<PathBuf>,
        read_only: bool,
        connections: usize,
        timeout: Option<f64>,
        format: Option<&str>,
        snapshot: Option<String>,
        filters: Vec<String>,
        allow_backing: Vec<PathBuf>,
        max_size: Option<u64>,
    ) -> PyResult<Self> {
        let endpoint = self::endpoint(endpoint, format, snapshot, &filters)?;
        if !(1..=64).contains(&connections) {
            return Err(usage(py, "connections are from 1 to 64"));
        }
        let mut options = open_options(py, timeout)?;
        options.connections = connections;
        options.allow_backing = allow_backing;
        options.max_size = max_size;
        let (directory, socket) = place(socket).map_err(|error| of_device(py, error))?;
        let place = socket.clone();
        let (server, thread) = apart(py, move || start(endpoint, read_only, options, place))?;
        let uri = NbdUri {
            transport: Transport::Unix {
                path: socket.clone(),
            },
            tls: false,
            user: None,
            export: String::new(),
            parameters: Vec::new(),
        };
        Ok(Self {
            uri: format!("{uri:#}"),
            socket,
            process: std::process::id(),
            running: Mutex::new(Some(Running {
                server,
                thread,
                directory,
            })),
        })
    }

    /// Where clients find it.
    #[getter]
    fn uri(&self) -> &str {
        &self.uri
    }

    /// The path of its socket.
    #[getter]
    fn socket(&self) -> &std::ffi::OsStr {
        self.socket.as_os_str()
    }

    /// Ends: what is in flight is finished, and what was written is flushed. Further calls do nothing.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let Some(running) = self.take() else {
            return Ok(());
        };
        let socket = self.socket.clone();
        apart(py, move || {
            running.server.shutdown();
            let ended = running.thread.join().unwrap_or(Ok(()));
            // It is in nobody's way if it cannot be removed.
            let _ = std::fs::remove_file(socket);
            drop(running.directory);
            ended
        })
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (kind, value, traceback, /))]
    fn __exit__(
        &self,
        py: Python<'_>,
        kind: Option<&Bound<'_, PyType>>,
        value: Option<&Bound<'_, PyAny>>,
        traceback: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let _ = (kind, value, traceback);
        self.close(py)
    }

    fn __repr__(&self) -> String {
        format!("<blockferry.serve {:?}>", self.uri)
    }
}

impl Served {
    /// What runs, unless it was closed, or belongs to the process that this one is a fork of.
    fn take(&self) -> Option<Running> {
        let running = self.running.lock();
        let running = running.unwrap_or_else(PoisonError::into_inner).take();
        match self.process == std::process::id() {
            true => running,
            false => {
                std::mem::forget(running);
                None
            }
        }
    }
}

impl Drop for Served {
    /// Whoever forgot to close it does not wait: its thread goes on until the last client is done.
    fn drop(&mut self) {
        if let Some(running) = self.take() {
            running.server.shutdown();
            let _ = std::fs::remove_file(&self.socket);
        }
    }
}

/// Where it listens, and the directory that goes with it.
fn place(socket: Option<PathBuf>) -> Result<(Option<tempfile::TempDir>, PathBuf)> {
    match socket {
        Some(socket) => Ok((None, socket)),
        None => {
            let directory = tempfile::Builder::new()
                .prefix("blockferry-")
                .permissions(Permissions::from_mode(0o700))
                .tempdir()?;
            let socket = directory.path().join("socket");
            Ok((Some(directory), socket))
        }
    }
}

type Started = (Server, JoinHandle<Result<()>>);

/// Opens the image on the thread that serves it, and returns when clients can connect.
fn start(
    endpoint: Endpoint,
    read_only: bool,
    options: OpenOptions,
    socket: PathBuf,
) -> Result<Started> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let thread = thread::Builder::new().name("blockferry serve".to_owned());
    let thread = thread.spawn(move || -> Result<()> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let started = open(&endpoint, read_only, &options).await;
            let started = started.and_then(|(exports, connection)| {
                Ok((exports, connection, UnixListener::bind(&socket)?))
            });
            let (exports, connection, listener) = match started {
                Ok(started) => started,
                Err(error) => {
                    // Whoever waits hears it.
                    let _ = sender.send(Err(error));
                    return Ok(());
                }
            };
            let mut options = ServerOptions::default();
            options.read_only = read_only;
            let server = Server::new(exports, options);
            let _ = sender.send(Ok(server.clone()));
            let served = server.serve(vec![listener.into()]).await;
            connection.close().await?;
            served.map_err(Error::from)
        })
    })?;
    let lost =
        |_| Error::with_message(blockferry::block::ErrorKind::Io, "the server did not start");
    let server = receiver.recv().map_err(lost)??;
    Ok((server, thread))
}

/// An NBD server has as many connections as the options say, unless filters stand in front of it.
async fn open(
    endpoint: &Endpoint,
    read_only: bool,
    options: &OpenOptions,
) -> Result<(Arc<dyn Exports>, Connection)> {
    let access = match read_only {
        true => Access::ReadOnly,
        false => Access::ReadWrite,
    };
    if endpoint.filters().is_empty() {
        let OpenExports {
            exports,
            connection,
        } = open_exports(endpoint, access, options).await?;
        return Ok((exports, connection));
    }
    let opened = open_device(endpoint, access, options).await?;
    Ok((
        Arc::new(SingleExport::new(opened.device)),
        opened.connection,
    ))
}
