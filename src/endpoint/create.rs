//! New images with nothing in them.

use std::{os::unix::ffi::OsStrExt, sync::Arc};

use crate::{
    block::{
        BlockDevice, Buffer, ByteRange, Capabilities, Error, ErrorKind, NullDevice, Operation,
        Result, WriteFlags, ZeroFlags,
    },
    copy::{Destination, Source},
    format::{Stop, qcow2::Backing},
};

use super::{
    DestinationFormat, Endpoint, FormatKind, NewQcow2, OpenDestination, OpenOptions,
    destination_format::{check_name, directory_of},
    image_details, is_same_image,
    open::{open_destination, opening},
    open_size,
};

/// How many zeroes are written at a time, in bytes.
const WRITTEN: u64 = 1 << 20;

/// What is allocated without writing it is allocated in pieces of so many bytes.
const ZEROED: u64 = 1 << 30;

/// An image that is to be made.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NewImage {
    /// The size of its disk in bytes; `None`: that of its backing file.
    pub size: Option<u64>,
    /// Its format.
    pub format: DestinationFormat,
    /// Whether all of a raw image is allocated.
    pub allocated: bool,
    /// Whether its backing file is looked at: that it is there, and is an image.
    pub checks_backing: bool,
}

impl NewImage {
    /// A raw image of a size, to be changed.
    #[must_use]
    pub fn new(size: Option<u64>) -> Self {
        Self {
            size,
            format: DestinationFormat::Raw,
            allocated: false,
            checks_backing: true,
        }
    }

    /// Looks at what the image is to be made of, and returns the size that its disk gets.
    ///
    /// # Errors
    /// `InvalidInput` where neither the image nor a backing file says a size; what looking at the backing file failed
    /// with. Nothing that the backing file names is opened.
    pub async fn settle_size(&mut self, endpoint: &Endpoint, options: &OpenOptions) -> Result<u64> {
        let behind = match &self.format {
            DestinationFormat::Qcow2(new) if self.checks_backing => {
                size_behind(new, endpoint, options).await?
            }
            _ => None,
        };
        let size = self.size.or(behind).ok_or_else(|| {
            let message = "the image needs a size: there is no backing file to take it from";
            opening(endpoint)(Error::with_message(ErrorKind::InvalidInput, message))
        })?;
        self.size = Some(size);
        Ok(size)
    }

    /// Makes the image where `endpoint` is. A file appears when it is whole; one that is there is written over. A
    /// place that has its own size, as a block device, must be large enough, and a raw image leaves it as it is.
    ///
    /// # Errors
    /// As [`settle_size`](Self::settle_size), [`open_destination`] and
    /// [`DestinationFormat::begin`]; `NoSpace` for a place that is too small; what writing failed with.
    pub async fn create(mut self, endpoint: &Endpoint, options: &OpenOptions) -> Result<()> {
        let size = self.settle_size(endpoint, options).await?;
        let format = match self.format {
            DestinationFormat::Qcow2(new) => DestinationFormat::Qcow2(Arc::new(named_only(&new))),
            format => format,
        };
        let opened = open_destination(endpoint, options).await?;
        let nothing: Arc<dyn BlockDevice> = Arc::new(NullDevice::new(size));
        let source = (Source::Device(nothing), endpoint);
        let (_, opened) = format.begin(endpoint, source, opened, options).await?;
        let OpenDestination {
            destination,
            connection,
            file,
            image,
        } = opened;
        match (image, &destination) {
            (Some(image), _) => image.finish().await,
            (None, Destination::Device(device)) => raw(&**device, size, self.allocated).await,
            (None, Destination::Stream(_)) => {
                let message = "an empty image is not streamed: write it to a file";
                Err(Error::with_message(ErrorKind::InvalidInput, message))
            }
        }
        .map_err(|error| error.on(endpoint.name()))?;
        drop(destination);
        connection.close().await?;
        match file {
            Some(file) => file.commit_durably(),
            None => Ok(()),
        }
    }
}

/// Makes an empty raw image of what was opened.
async fn raw(device: &dyn BlockDevice, size: u64, allocated: bool) -> Result<()> {
    if !device.info().can(Capabilities::RESIZE) {
        let room = device.info().size;
        return match room >= size {
            true => Ok(()),
            false => {
                let message = format!("it has {room} bytes, and {size} are needed");
                Err(Error::with_message(ErrorKind::NoSpace, message).during(Operation::Open))
            }
        };
    }
    // What was in a file before goes, also where it had that size.
    device.resize(0).await?;
    device.resize(size).await?;
    if allocated && size > 0 {
        allocate(device, ByteRange::between(0, size), &Stop::default()).await?;
    }
    device.flush().await
}

/// Allocates a range of zeroes: by writing them, where the file system cannot do it otherwise.
pub(super) async fn allocate(
    device: &dyn BlockDevice,
    range: ByteRange,
    stop: &Stop,
) -> Result<()> {
    let mut left = range;
    while !left.is_empty() {
        stop.check()?;
        let (piece, behind) = left.split_at(ZEROED);
        match device.zero(piece, ZeroFlags::NO_HOLE).await {
            Err(error) if error.kind() == ErrorKind::Unsupported => break,
            done => done?,
        }
        left = behind;
    }
    for piece in left.pieces(WRITTEN) {
        stop.check()?;
        let length = usize::try_from(piece.len()).unwrap_or(usize::MAX);
        let zeroes = Buffer::zeroed(length);
        device
            .write(piece.start(), zeroes, WriteFlags::empty())
            .await?;
    }
    Ok(())
}

/// The size of the disk in the backing file that the image is to have.
async fn size_behind(
    new: &NewQcow2,
    endpoint: &Endpoint,
    options: &OpenOptions,
) -> Result<Option<u64>> {
    let Some(backing) = &new.backing else {
        return Ok(None);
    };
    check_name("backing file", &backing.name)?;
    let directory = directory_of(endpoint);
    let behind = Endpoint::from(directory.join(&backing.name));
    let behind = behind.interpreted(backing.format.of_backing());
    if is_same_image(&behind, endpoint) {
        let message = "an image cannot be its own backing file";
        return Err(opening(endpoint)(Error::with_message(
            ErrorKind::InvalidInput,
            message,
        )));
    }
    let size = match image_details(&behind, options).await? {
        Some(details) => details.virtual_size(),
        None => open_size(&behind.interpreted(FormatKind::Raw), options).await?,
    };
    Ok(Some(size))
}

/// The same image, whose backing file is named in it and not opened: nothing of it is needed.
fn named_only(new: &NewQcow2) -> NewQcow2 {
    let mut new = new.clone();
    if let Some(backing) = new.backing.take() {
        new.create.backing = Some(Backing {
            name: backing.name.as_bytes().to_vec(),
            format: match backing.format {
                FormatKind::Probe => None,
                format => Some(format.to_string()),
            },
            device: None,
        });
    }
    new
}
