//! `Extent`: a part of an image, and what is known of it.

use std::ops::ControlFlow;

use blockferry::{
    block::{self, BlockDevice, ByteRange, Context, push_merged},
    inspect::each_extent,
};
use pyo3::prelude::*;

use crate::runtime::Result;

/// A part of an image, and what is known of it.
///
/// `flags` is the number that NBD has for it. In the context `base:allocation` bit 0 says that the part is a hole (it
/// takes no space), and bit 1 that it reads as zeroes: `hole`, `zero` and `data` read those. In other contexts only
/// `flags` means something.
#[pyclass(frozen, eq, hash, module = "blockferry")]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Extent {
    /// Where it begins, in bytes.
    #[pyo3(get)]
    offset: u64,
    /// How long it is, in bytes.
    #[pyo3(get)]
    length: u64,
    /// What is known of it, as a number.
    #[pyo3(get)]
    flags: u64,
}

#[pymethods]
impl Extent {
    #[new]
    fn new(offset: u64, length: u64, flags: u64) -> Self {
        Self {
            offset,
            length,
            flags,
        }
    }

    #[classattr]
    fn __match_args__() -> (&'static str, &'static str, &'static str) {
        ("offset", "length", "flags")
    }

    /// The first byte behind it.
    #[getter]
    fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    /// Whether it takes no space.
    #[getter]
    fn hole(&self) -> bool {
        block::Status(self.flags).is_hole()
    }

    /// Whether it reads as zeroes.
    #[getter]
    fn zero(&self) -> bool {
        block::Status(self.flags).is_zero()
    }

    /// Whether it is neither: it has to be read.
    #[getter]
    fn data(&self) -> bool {
        !self.hole() && !self.zero()
    }

    fn __getnewargs__(&self) -> (u64, u64, u64) {
        (self.offset, self.length, self.flags)
    }

    fn __repr__(&self) -> String {
        let (offset, length, flags) = (self.offset, self.length, self.flags);
        format!("Extent(offset={offset}, length={length}, flags={flags})")
    }
}

impl From<block::Extent> for Extent {
    fn from(extent: block::Extent) -> Self {
        let (range, status) = (extent.range, extent.status);
        Self::new(range.start(), range.len(), status.0)
    }
}

/// The extents of `range`; neighbours of which the same is known are one.
pub(crate) async fn extents(
    device: &dyn BlockDevice,
    range: ByteRange,
    context: &Context,
) -> Result<Vec<Extent>> {
    let mut all = Vec::new();
    each_extent(device, range, context, |extent| {
        push_merged(&mut all, extent);
        ControlFlow::Continue(())
    })
    .await?;
    Ok(all.into_iter().map(Extent::from).collect())
}
