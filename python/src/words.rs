//! Arguments that become endpoints, or words of the command line.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::PathBuf,
};

use blockferry::{
    endpoint::{Endpoint, FormatKind, ImageFormat, collapse_groups},
    filter::NamedFilter,
    job::JobError,
};
use pyo3::{
    exceptions::PyTypeError,
    prelude::*,
    types::{PyList, PyString, PyTuple},
};

use crate::errors::{raised, usage};

/// An endpoint as it stands in an argument list: a text, a path, or the words of a command in a list.
pub(crate) fn endpoint_word(endpoint: &Bound<'_, PyAny>) -> PyResult<OsString> {
    let py = endpoint.py();
    if endpoint.is_instance_of::<PyList>() || endpoint.is_instance_of::<PyTuple>() {
        let words: Vec<OsString> = endpoint.extract()?;
        let words = [vec!["[".into()], words, vec!["]".into()]].concat();
        let group = collapse_groups(words).map_err(|error| raised(py, error.into()))?;
        let [group] = <[OsString; 1]>::try_from(group)
            .map_err(|_| usage(py, "the brackets in the command do not match"))?;
        return Ok(group);
    }
    let is_text = endpoint.is_instance_of::<PyString>();
    let word: PathBuf = endpoint.extract().map_err(|_| {
        let kind = endpoint.get_type();
        PyTypeError::new_err(format!(
            "an endpoint is a str, a path, or the words of a command in a list, not {kind}"
        ))
    })?;
    // A path is one, whatever it looks like.
    let is_plain = is_text || word.is_absolute() || word.starts_with(".") || word.starts_with("..");
    let word = match is_plain {
        true => word,
        false => PathBuf::from(".").join(word),
    };
    match word.as_os_str().as_bytes().contains(&0) && is_text {
        true => Err(usage(py, "an endpoint cannot have a NUL in it")),
        false => Ok(word.into_os_string()),
    }
}

/// What an endpoint is taken for, and what stands in front of it.
pub(crate) fn endpoint(
    endpoint: &Bound<'_, PyAny>,
    format: Option<&str>,
    snapshot: Option<String>,
    filters: &[String],
) -> PyResult<Endpoint> {
    let py = endpoint.py();
    let word = endpoint_word(endpoint)?;
    let parsed = Endpoint::parse(&word).map_err(|error| raised(py, error.into()))?;
    let kind = match format {
        None => FormatKind::Probe,
        Some(name) => name.parse().map_err(|why: String| usage(py, &why))?,
    };
    let filters = filters.iter().map(|text| {
        let filter = NamedFilter::parse(OsStr::new(text));
        filter.map_err(|error| raised(py, JobError::from(error)))
    });
    let filters = filters.collect::<PyResult<_>>()?;
    Ok(parsed
        .interpreted(ImageFormat {
            kind,
            snapshot,
            ..ImageFormat::default()
        })
        .behind(filters))
}
