//! The extents of an image, one after the other, however many are told at a time.

use std::ops::ControlFlow;

use crate::block::{BlockDevice, ByteRange, Context, Error, ErrorKind, Extent, Operation, Result};

/// Tells `each` every extent of `range` in order, until it has heard enough. Neighbours may be of one kind.
///
/// # Errors
/// What the device failed with; `Protocol` where its answer tells nothing.
pub async fn each_extent(
    device: &dyn BlockDevice,
    range: ByteRange,
    context: &Context,
    mut each: impl FnMut(Extent) -> ControlFlow<()>,
) -> Result<()> {
    let mut offset = range.start();
    while offset < range.end() {
        let rest = ByteRange::between(offset, range.end());
        for extent in device.extents(rest, context).await? {
            offset = extent.range.end();
            if each(extent).is_break() {
                return Ok(());
            }
        }
        if offset <= rest.start() {
            let message = "the answer has no extents";
            return Err(Error::with_message(ErrorKind::Protocol, message)
                .during(Operation::Extents)
                .at(rest.start(), rest.len())
                .on(&device.info().name));
        }
    }
    Ok(())
}
