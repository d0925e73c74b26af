//! The memory of Python objects.
//!
//! While a request is in flight the interpreter is given up, and other threads may do what they like to their objects. So
//! only memory that cannot change under our hands is used then: that of `bytes`, which nobody can write, and of a `bytes`
//! that nobody else has seen yet. Everything else (`bytearray`, `memoryview`, arrays) is copied while the interpreter is
//! held, a stretch at a time; a reference to it could not be had soundly, because its owner may write it at any time.

use pyo3::{
    buffer::PyBuffer,
    exceptions::PyBufferError,
    intern,
    prelude::*,
    types::{PyBytes, PySlice},
};

/// Data to write.
pub(crate) enum Data<'py> {
    /// That nobody can change.
    Fixed(Bound<'py, PyBytes>),
    /// That its owner may change at any time.
    Shared(View<'py>),
}

impl<'py> Data<'py> {
    /// Of any object with a buffer.
    pub(crate) fn of(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        match object.cast::<PyBytes>() {
            Ok(bytes) => Ok(Self::Fixed(bytes.clone())),
            Err(_) => View::of(object).map(Self::Shared),
        }
    }
}

/// The bytes of an object with a buffer, whatever its items are. The object cannot be resized meanwhile.
pub(crate) struct View<'py> {
    bytes: Bound<'py, PyAny>,
    length: usize,
}

impl<'py> View<'py> {
    /// Of any object with a buffer in one piece.
    pub(crate) fn of(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let py = object.py();
        let view = py.import(intern!(py, "builtins"))?;
        let view = view.call_method1(intern!(py, "memoryview"), (object,))?;
        let is_contiguous = view.getattr(intern!(py, "c_contiguous"))?;
        if !is_contiguous.extract::<bool>()? {
            return Err(PyBufferError::new_err("the buffer is not contiguous"));
        }
        let length = view.getattr(intern!(py, "nbytes"))?.extract()?;
        // Where there is nothing, a shape may have zeroes in it, which are not cast.
        let bytes = match length {
            0 => PyBytes::new(py, &[]).into_any(),
            _ => view.call_method1(intern!(py, "cast"), ("B",))?,
        };
        Ok(Self { bytes, length })
    }

    /// The same, of an object that can be written.
    pub(crate) fn writable(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let view = Self::of(object)?;
        if view.length > 0 && PyBuffer::<u8>::get(&view.bytes)?.readonly() {
            return Err(PyBufferError::new_err("the buffer is read-only"));
        }
        Ok(view)
    }

    /// How many bytes there are.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Copies the bytes from `start` on to `target`.
    pub(crate) fn copy_to(&self, start: usize, target: &mut [u8]) -> PyResult<()> {
        let part = self.part(start, target.len())?;
        part.copy_to_slice(self.bytes.py(), target)
    }

    /// Copies `source` to the bytes from `start` on.
    pub(crate) fn copy_from(&self, start: usize, source: &[u8]) -> PyResult<()> {
        let part = self.part(start, source.len())?;
        part.copy_from_slice(self.bytes.py(), source)
    }

    fn part(&self, start: usize, length: usize) -> PyResult<PyBuffer<u8>> {
        let (start, end) = (start as isize, (start + length) as isize);
        let slice = PySlice::new(self.bytes.py(), start, end, 1);
        PyBuffer::get(&self.bytes.get_item(slice)?)
    }
}
