//! Failures become exceptions of `blockferry._errors`, which knows the classes.

use blockferry::{block, job::JobError};
use pyo3::{prelude::*, sync::PyOnceLock, types::IntoPyDict};

/// The function that makes an exception of what is known of a failure.
fn maker(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static MAKER: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let maker = MAKER.get_or_try_init(py, || {
        let module = py.import("blockferry._errors")?;
        PyResult::Ok(module.getattr("of_failure")?.unbind())
    })?;
    Ok(maker.bind(py))
}

/// The exception that a failed job is raised as.
pub(crate) fn raised(py: Python<'_>, error: JobError) -> PyErr {
    let made = || {
        let facts = [
            ("kind", error.kind().into_pyobject(py)?.into_any()),
            ("operation", error.operation().into_pyobject(py)?.into_any()),
            ("offset", error.offset().into_pyobject(py)?.into_any()),
            ("length", error.length().into_pyobject(py)?.into_any()),
            ("endpoint", error.endpoint().into_pyobject(py)?.into_any()),
            (
                "transient",
                error
                    .is_transient()
                    .into_pyobject(py)?
                    .to_owned()
                    .into_any(),
            ),
            ("errno", error.errno().into_pyobject(py)?.into_any()),
            ("notes", error.notes().into_pyobject(py)?.into_any()),
            ("hint", error.hint().into_pyobject(py)?.into_any()),
        ];
        maker(py)?.call((error.message(),), Some(&facts.into_py_dict(py)?))
    };
    match made() {
        Ok(exception) => PyErr::from_value(exception),
        Err(failure) => failure,
    }
}

/// The exception for a failed request of a device.
pub(crate) fn of_device(py: Python<'_>, error: block::Error) -> PyErr {
    raised(py, error.into())
}

/// The exception for an argument that makes no sense.
pub(crate) fn usage(py: Python<'_>, message: &str) -> PyErr {
    of_device(
        py,
        block::Error::with_message(block::ErrorKind::InvalidInput, message),
    )
}
