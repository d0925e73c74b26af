//! `info`, `map` and `map_offsets`: what is known of an image without reading it.

use std::path::PathBuf;

use blockferry::{
    block::{Access, ByteRange, Context, Error, ErrorKind},
    endpoint::{Endpoint, OpenDevice, OpenOptions, open_device},
    inspect::{InspectOptions, MapEntry, Places, View, inspect},
};
use pyo3::prelude::*;

use crate::{
    extents::{Extent, extents},
    runtime::{self, Result, apart, wait},
    session::open_options,
    words::endpoint,
};

/// What `blockferry info --json` prints.
#[pyfunction]
#[pyo3(signature = (endpoint, *, format, list, backing_chain, allow_backing, max_size, timeout))]
#[allow(
    clippy::too_many_arguments,
    reason = "they are named where they are given"
)]
pub(crate) fn info(
    py: Python<'_>,
    endpoint: &Bound<'_, PyAny>,
    format: Option<&str>,
    list: bool,
    backing_chain: bool,
    allow_backing: Vec<PathBuf>,
    max_size: Option<u64>,
    timeout: Option<f64>,
) -> PyResult<String> {
    let endpoint = self::endpoint(endpoint, format, None, &[])?;
    let mut options = InspectOptions::default();
    options.list = list;
    options.backing_chain = backing_chain;
    options.open = trusting(py, timeout, allow_backing, max_size)?;
    apart(py, move || {
        let facts = inspect(&endpoint, &options)?;
        serde_json::to_string(&facts).map_err(|error| Error::with_source(ErrorKind::Io, error))
    })
}

/// The extents of an image.
#[pyfunction]
#[pyo3(signature = (endpoint, *, context, format, filters, allow_backing, max_size, timeout))]
#[allow(
    clippy::too_many_arguments,
    reason = "they are named where they are given"
)]
pub(crate) fn map(
    py: Python<'_>,
    endpoint: &Bound<'_, PyAny>,
    context: &str,
    format: Option<&str>,
    filters: Vec<String>,
    allow_backing: Vec<PathBuf>,
    max_size: Option<u64>,
    timeout: Option<f64>,
) -> PyResult<Vec<Extent>> {
    let endpoint = self::endpoint(endpoint, format, None, &filters)?;
    let context = Context::from(context);
    let mut options = trusting(py, timeout, allow_backing, max_size)?;
    options.contexts = vec![context.clone()];
    let runtime = runtime::new(py)?;
    wait(py, &runtime, async {
        let opened = open_device(&endpoint, Access::ReadOnly, &options).await?;
        let OpenDevice { device, connection } = opened;
        let info = device.info();
        let whole = ByteRange::between(0, info.size);
        let mapped = match info.contexts.contains(&context) {
            true => extents(&*device, whole, &context).await,
            false => Err(unknown(&endpoint, &context)),
        };
        connection.close().await?;
        mapped
    })
}

/// Where the bytes of an image lie: the fields of `MapEntry`.
#[pyfunction]
#[pyo3(signature = (endpoint, *, format, allow_backing, max_size, timeout))]
pub(crate) fn map_offsets<'py>(
    py: Python<'py>,
    endpoint: &Bound<'py, PyAny>,
    format: Option<&str>,
    allow_backing: Vec<PathBuf>,
    max_size: Option<u64>,
    timeout: Option<f64>,
) -> PyResult<Vec<Bound<'py, PyAny>>> {
    let endpoint = self::endpoint(endpoint, format, None, &[])?;
    let options = trusting(py, timeout, allow_backing, max_size)?;
    let runtime = runtime::new(py)?;
    let entries = wait(py, &runtime, entries(&endpoint, &options))?;
    let class = py.import("blockferry._types")?.getattr("MapEntry")?;
    let entries = entries.into_iter().map(|entry| {
        let range = entry.range;
        class.call1((
            range.start(),
            range.len(),
            entry.depth,
            entry.present,
            entry.zero,
            entry.data,
            entry.compressed,
            entry.offset,
            entry.file.as_ref().map(|file| file.as_os_str()),
        ))
    });
    entries.collect()
}

async fn entries(endpoint: &Endpoint, options: &OpenOptions) -> Result<Vec<MapEntry>> {
    let opened = open_device(endpoint, Access::ReadOnly, options).await?;
    let mut places = Places::of(endpoint, &opened, View::Whole);
    let whole = ByteRange::between(0, places.size());
    let mut entries = Vec::new();
    let told = places.each(whole, |entry| {
        entries.push(entry);
        Ok::<(), Error>(())
    });
    told.await??;
    drop(places);
    opened.connection.close().await?;
    Ok(entries)
}

fn unknown(endpoint: &Endpoint, context: &Context) -> Error {
    let message = format!("it does not know the context {context}");
    Error::with_message(ErrorKind::Unsupported, message).on(endpoint.name())
}

/// How endpoints are opened whose images are trusted so far.
fn trusting(
    py: Python<'_>,
    timeout: Option<f64>,
    allow_backing: Vec<PathBuf>,
    max_size: Option<u64>,
) -> PyResult<OpenOptions> {
    let mut options = open_options(py, timeout)?;
    options.allow_backing = allow_backing;
    options.max_size = max_size;
    Ok(options)
}
