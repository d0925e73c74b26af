//! Another size for an image that is there.

use std::sync::Arc;

use crate::{
    block::{Access, BlockDevice, ByteRange, Capabilities, Error, ErrorKind, Operation, Result},
    format::{
        Format,
        qcow2::{self, Preallocation, ResizeOptions},
    },
};

use super::{
    Endpoint, FormatKind, OpenDevice, OpenOptions,
    create::allocate,
    formats::growable,
    guess::told,
    in_use::claim_below,
    open::{open_device, opening},
    related::Relatives,
};

/// The size that an image gets, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewSize {
    /// This one.
    Exactly(u64),
    /// So many bytes more than it has.
    Larger(u64),
    /// So many bytes less.
    Smaller(u64),
}

impl NewSize {
    /// The size that an image gets which has `old` bytes; `None` for one that no image has.
    #[must_use]
    pub fn after(self, old: u64) -> Option<u64> {
        let size = match self {
            Self::Exactly(size) => Some(size),
            Self::Larger(bytes) => old.checked_add(bytes),
            Self::Smaller(bytes) => old.checked_sub(bytes),
        };
        size.filter(|size| i64::try_from(*size).is_ok())
    }
}

/// Gives the image that `endpoint` is another size, durably: a raw or qcow2 image in a file. Returns the size of its
/// disk before and after. What is new reads as zeroes.
///
/// # Errors
/// `InvalidInput` for a size that it cannot have, and for one that is smaller and not allowed to be;
/// `Unsupported` for other formats and for what is no file; as those of opening an image to be written; `NoSpace`,
/// and what writing failed with: a raw image keeps its old size then, and of a qcow2 image nothing is lost.
pub async fn resize_image(
    endpoint: &Endpoint,
    size: NewSize,
    resizing: &ResizeOptions,
    options: &OpenOptions,
) -> Result<(u64, u64)> {
    let bytes = endpoint.clone().interpreted(FormatKind::Raw);
    let OpenDevice { device, connection } = open_device(&bytes, Access::ReadWrite, options).await?;
    let resized = async {
        let below = growable(endpoint, &device)?;
        if !below.info().can(Capabilities::RESIZE) {
            let message = "only an image in a file can be resized: this has the size that it was given elsewhere";
            return Err(Error::with_message(ErrorKind::Unsupported, message));
        }
        claim_below(&*device)?;
        let wanted = |old: u64| {
            size.after(old).ok_or_else(|| {
                let message = format!("an image of {old} bytes cannot get that size");
                Error::with_message(ErrorKind::InvalidInput, message)
            })
        };
        match told(endpoint, options, &*device).await? {
            FormatKind::Raw => {
                let old = below.info().size;
                let new = wanted(old)?;
                resize_raw(&*below, new, resizing).await?;
                Ok((old, new))
            }
            FormatKind::Image(Format::Qcow2) => {
                let details = Format::Qcow2.details(&below).await?;
                let old = details.virtual_size();
                let new = wanted(old)?;
                let relatives = Relatives::of(endpoint, &device, options);
                qcow2::resize(Arc::clone(&below), &relatives, new, resizing).await?;
                // Whole sectors.
                Ok((old, new.next_multiple_of(512)))
            }
            kind => {
                let message = format!("images in the format {kind} are not resized");
                Err(Error::with_message(ErrorKind::Unsupported, message))
            }
        }
    };
    let resized = resized.await;
    let resized = resized.map_err(|error: Error| {
        let error = error.during(Operation::Resize);
        opening(endpoint)(error)
    });
    drop(device);
    connection.close().await?;
    resized
}

async fn resize_raw(device: &dyn BlockDevice, new: u64, resizing: &ResizeOptions) -> Result<()> {
    let old = device.info().size;
    let refuse = |message: &str| Err(Error::with_message(ErrorKind::InvalidInput, message));
    if new < old && !resizing.shrink {
        return refuse("it would become smaller, and what lies past its new end would be lost");
    }
    let allocates = match resizing.preallocation {
        Preallocation::Off => false,
        _ if new < old => {
            return refuse("nothing is allocated in advance of an image that becomes smaller");
        }
        Preallocation::Metadata => return refuse("a raw image has no metadata to be allocated"),
        _ => true,
    };
    device.resize(new).await?;
    if allocates && new > old {
        let allocated = allocate(device, ByteRange::between(old, new), &resizing.stop).await;
        if let Err(error) = allocated {
            // What failed first is told.
            let _ = device.resize(old).await;
            return Err(error);
        }
    }
    device.flush().await
}
