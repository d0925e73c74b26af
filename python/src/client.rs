//! `Client`: an image that is read and written in place.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use blockferry::block::{
    Access, Capabilities, Context, DeviceInfo, Operation, WriteFlags, ZeroFlags,
};
use pyo3::{
    prelude::*,
    types::{PyBytes, PyFrozenSet, PyTuple, PyType},
};

use crate::{
    errors::{of_device, usage},
    extents::{Extent, extents},
    memory::{Data, View},
    runtime::{self, wait},
    session::{Session, closed, open, open_options},
    transfer::{STRETCH, store},
    words::endpoint,
};

/// An image that is read and written in place.
///
/// `endpoint` is what the command line takes as an image: an NBD URI ("nbd://host/export",
/// "nbd+unix:///export?socket=PATH"), a file, "sample:1G" and the like; or a list with the words of a command that
/// serves NBD on its standard activation socket, such as ["nbdkit", "memory", "1G"]. Such a server ends with the
/// client, or with the thread that opened it.
///
/// All methods may be called from any number of threads at once, and give up the interpreter while they work. A signal
/// whose handler raises (Ctrl-C) ends a call; the client can still be used then, and what a write has written by then
/// is not known. Every failure is a `blockferry.Error`.
///
/// read_only      open it for reading only
/// connections    how many connections an NBD server that offers several is given
/// retries        how many attempts in a row to open a lost connection again may fail before a call does
/// timeout        seconds that an NBD server which owes an answer may move no byte; 0: as long as it takes;
///                None: 300, but a flush may take as long as it takes
/// format         what the bytes are: "raw", "qcow2", "vmdk", "vpc", "vhdx", "vdi", "gzip", ...; None: a local file
///                is looked into, everything else is raw
/// snapshot       the internal snapshot that is read
/// filters        what stands in front of the image, as `blockferry filters` lists it: ["partition:1"]; the first
///                one is nearest to the reader
/// contexts       what `extents` can be asked for; an NBD server is asked for it when it is opened
/// allow_backing  directories, or files, in which other files may be opened that the image names
/// max_size       the largest disk, in bytes, that is opened of an image in a format
///
/// >>> with Client("sample:1M", read_only=True) as disk:
/// ...     disk.size
/// 1048576
#[pyclass(frozen, module = "blockferry", weakref)]
pub(crate) struct Client {
    info: DeviceInfo,
    endpoint: String,
    format: String,
    session: Mutex<Option<Arc<Session>>>,
}

#[pymethods]
impl Client {
    #[new]
    #[pyo3(signature = (endpoint, *, read_only=false, connections=1, retries=0, timeout=None, format=None,
                        snapshot=None, filters=Vec::new(), contexts=None, allow_backing=Vec::new(), max_size=None))]
    #[allow(
        clippy::too_many_arguments,
        reason = "they are named where they are given"
    )]
    fn new(
        py: Python<'_>,
        endpoint: &Bound<'_, PyAny>,
        read_only: bool,
        connections: usize,
        retries: u32,
        timeout: Option<f64>,
        format: Option<&str>,
        snapshot: Option<String>,
        filters: Vec<String>,
        contexts: Option<Vec<String>>,
        allow_backing: Vec<PathBuf>,
        max_size: Option<u64>,
    ) -> PyResult<Self> {
        let endpoint = self::endpoint(endpoint, format, snapshot, &filters)?;
        if !(1..=64).contains(&connections) {
            return Err(usage(py, "connections are from 1 to 64"));
        }
        let mut options = open_options(py, timeout)?;
        options.connections = connections;
        options.retries = retries;
        options.allow_backing = allow_backing;
        options.max_size = max_size;
        if let Some(contexts) = contexts {
            options.contexts = contexts.iter().map(|name| Context::from(&**name)).collect();
        }
        let access = match read_only {
            true => Access::ReadOnly,
            false => Access::ReadWrite,
        };
        let runtime = runtime::new(py)?;
        let opened = wait(py, &runtime, open(&endpoint, access, &options))?;
        let mut info = opened.device.info().clone();
        if read_only {
            info.capabilities.remove(Capabilities::WRITE);
        }
        let format = opened.connection.format().to_string();
        Ok(Self {
            endpoint: endpoint.name().to_string(),
            format,
            session: Mutex::new(Some(Arc::new(Session::new(runtime, opened, info.clone())))),
            info,
        })
    }

    /// The image as it was named.
    #[getter]
    fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The size in bytes.
    #[getter]
    fn size(&self) -> u64 {
        self.info.size
    }

    /// What the bytes were taken for: "raw", "qcow2", ...
    #[getter]
    fn format(&self) -> &str {
        &self.format
    }

    /// Whether it cannot be written.
    #[getter]
    fn read_only(&self) -> bool {
        !self.info.can(Capabilities::WRITE)
    }

    /// Whether it says that it is a spinning disk.
    #[getter]
    fn rotational(&self) -> bool {
        self.info.rotational
    }

    /// What its server says of it.
    #[getter]
    fn description(&self) -> Option<&str> {
        self.info.description.as_deref()
    }

    /// The block sizes in bytes: minimum, preferred, maximum.
    ///
    /// Offsets and lengths are multiples of the minimum, but at the end. Longer requests than the maximum are cut.
    #[getter]
    fn block_sizes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let limits = self.info.limits;
        let class = py.import("blockferry._types")?.getattr("BlockSizes")?;
        class.call1((limits.minimum, limits.preferred, limits.maximum))
    }

    /// What it can do beyond reading: "write", "flush", "fua", "trim", "zero", "fast_zero", "cache", "multi_conn".
    #[getter]
    fn capabilities<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyFrozenSet>> {
        let told = Capabilities::WRITE
            | Capabilities::FLUSH
            | Capabilities::FUA
            | Capabilities::TRIM
            | Capabilities::ZERO
            | Capabilities::FAST_ZERO
            | Capabilities::CACHE
            | Capabilities::MULTI_CONN;
        let has = (self.info.capabilities & told).iter_names();
        PyFrozenSet::new(py, has.map(|(name, _)| name.to_ascii_lowercase()))
    }

    /// The contexts that `extents` can be asked for.
    #[getter]
    fn contexts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.info.contexts.iter().map(ToString::to_string))
    }

    /// Whether `close` was called.
    #[getter]
    fn closed(&self) -> bool {
        self.lock().is_none()
    }

    /// Reads `length` bytes from `offset` on.
    #[pyo3(signature = (length, offset))]
    fn read<'py>(
        &self,
        py: Python<'py>,
        length: usize,
        offset: u64,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let session = self.session(py)?;
        session.range(py, Operation::Read, offset, length as u64)?;
        PyBytes::new_with(py, length, |target| {
            let reading = session.pieces().read(session.device(), offset, target);
            session.wait(py, reading)
        })
    }

    /// Fills `buffer`, any object with a buffer that can be written, from `offset` on.
    #[pyo3(signature = (buffer, offset))]
    fn read_into(&self, py: Python<'_>, buffer: &Bound<'_, PyAny>, offset: u64) -> PyResult<()> {
        let session = self.session(py)?;
        let target = View::writable(buffer)?;
        let mut rest = session.range(py, Operation::Read, offset, target.len() as u64)?;
        let mut start = 0;
        while !rest.is_empty() {
            let (stretch, behind) = rest.split_at(STRETCH as u64);
            let reading = session.pieces().load(session.device(), stretch);
            for buffer in session.wait(py, reading)? {
                target.copy_from(start, &buffer)?;
                start += buffer.len();
            }
            rest = behind;
        }
        Ok(())
    }

    /// Writes `data`, any object with a buffer, at `offset`.
    ///
    /// With `fua` it is durable when the call returns; else `flush` makes it so.
    #[pyo3(signature = (data, offset, *, fua=false))]
    fn write(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        offset: u64,
        fua: bool,
    ) -> PyResult<()> {
        let session = self.session(py)?;
        let (durable, flags) = match fua && self.info.can(Capabilities::FUA) {
            true => (true, WriteFlags::FUA),
            false => (!fua, WriteFlags::empty()),
        };
        match Data::of(data)? {
            Data::Fixed(bytes) => {
                let data = bytes.as_bytes();
                session.range(py, Operation::Write, offset, data.len() as u64)?;
                let writing = session
                    .pieces()
                    .write(session.device(), offset, data, flags);
                session.wait(py, writing)?;
            }
            Data::Shared(data) => {
                let length = data.len() as u64;
                let mut rest = session.range(py, Operation::Write, offset, length)?;
                let mut start = 0;
                while !rest.is_empty() {
                    let (stretch, behind) = rest.split_at(STRETCH as u64);
                    let length = stretch.len() as usize;
                    let buffers = session.pieces().fill(length, |offset, buffer| {
                        data.copy_to(start + offset, buffer)
                    })?;
                    session.wait(py, store(session.device(), stretch.start(), buffers, flags))?;
                    start += length;
                    rest = behind;
                }
            }
        }
        session.flush_unless(py, durable)
    }

    /// Makes `length` bytes from `offset` on read as zeroes.
    ///
    /// They become a hole where that is possible, unless `no_hole` is given. Where there is no command for it zeroes
    /// are written. With `fua` it is durable when the call returns.
    #[pyo3(signature = (length, offset, *, no_hole=false, fua=false))]
    fn zero(
        &self,
        py: Python<'_>,
        length: u64,
        offset: u64,
        no_hole: bool,
        fua: bool,
    ) -> PyResult<()> {
        let session = self.session(py)?;
        let range = session.range(py, Operation::Zero, offset, length)?;
        let mut flags = ZeroFlags::empty();
        flags.set(ZeroFlags::NO_HOLE, no_hole);
        flags.set(ZeroFlags::FUA, fua && self.info.can(Capabilities::FUA));
        session.wait(py, session.pieces().zero(session.device(), range, flags))?;
        session.flush_unless(py, !fua || flags.contains(ZeroFlags::FUA))
    }

    /// Discards `length` bytes from `offset` on: what they read as then is not defined.
    #[pyo3(signature = (length, offset, *, fua=false))]
    fn trim(&self, py: Python<'_>, length: u64, offset: u64, fua: bool) -> PyResult<()> {
        let session = self.session(py)?;
        let range = session.range(py, Operation::Trim, offset, length)?;
        let (durable, flags) = match fua && self.info.can(Capabilities::FUA) {
            true => (true, WriteFlags::FUA),
            false => (!fua, WriteFlags::empty()),
        };
        session.wait(py, session.device().trim(range, flags))?;
        session.flush_unless(py, durable)
    }

    /// Makes everything durable that was written before.
    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        self.session(py)?.flush_unless(py, false)
    }

    /// Asks the image to bring `length` bytes from `offset` on into its cache. A hint: it may do nothing.
    #[pyo3(signature = (length, offset))]
    fn cache(&self, py: Python<'_>, length: u64, offset: u64) -> PyResult<()> {
        let session = self.session(py)?;
        let range = session.range(py, Operation::Cache, offset, length)?;
        session.wait(py, session.device().cache(range))
    }

    /// What is known of `length` bytes from `offset` on, up to the end unless given.
    ///
    /// The extents cover the range, in order; neighbours of which the same is known are one.
    #[pyo3(signature = (length=None, offset=0, context="base:allocation"))]
    fn extents(
        &self,
        py: Python<'_>,
        length: Option<u64>,
        offset: u64,
        context: &str,
    ) -> PyResult<Vec<Extent>> {
        let session = self.session(py)?;
        let length = length.unwrap_or(self.info.size.saturating_sub(offset));
        let range = session.range(py, Operation::Extents, offset, length)?;
        let context = Context::from(context);
        session.wait(py, extents(session.device(), range, &context))
    }

    /// Closes the image: calls of other threads are finished first. What was written is flushed by `flush` alone.
    ///
    /// Further calls do nothing.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let session = self.lock().take();
        match session {
            Some(session) if !session.is_of_another_process() => session.close(py),
            _ => Ok(()),
        }
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
        let closed = if self.closed() { ", closed" } else { "" };
        let (name, size) = (&self.endpoint, self.info.size);
        format!("<blockferry.Client {name:?}, {size} bytes{closed}>")
    }
}

impl Client {
    fn lock(&self) -> MutexGuard<'_, Option<Arc<Session>>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The open image.
    fn session(&self, py: Python<'_>) -> PyResult<Arc<Session>> {
        let session = self.lock().clone();
        match session {
            None => Err(of_device(py, closed())),
            Some(session) if session.is_of_another_process() => Err(usage(
                py,
                "the client was opened by another process, of which this one is a fork: open one here",
            )),
            Some(session) => Ok(session),
        }
    }
}
