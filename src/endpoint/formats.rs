//! What the bytes of an endpoint are taken for: just bytes, or an image in a format, whose disk is what is meant.
//!
//! Whoever says nothing gets the bytes. Only a regular local file is ever looked at to find out: what a block device
//! or another server holds was written by somebody's guest, who could make it look like anything.

use std::{fmt, path::PathBuf, str::FromStr, sync::Arc};

use crate::{
    block::{
        Access, BlockDevice, ByteRange, Error, ErrorKind, FileDevice, Mapping, Result,
        read_exact_at,
    },
    format::{Details, Format, Image, PROBE_LENGTH, packed::Packing, probe},
};

use blockferry_sys as sys;

use super::{
    Endpoint, EndpointKind, Layer, OpenDevice, OpenOptions,
    in_use::claim_below,
    open::{open_device, opening},
    related::Relatives,
};

/// What the bytes of an endpoint are taken for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageFormat {
    /// The format.
    pub kind: FormatKind,
    /// The internal snapshot that is meant, by its ID or its name; it can only be read.
    pub snapshot: Option<String>,
}

/// A format, or that it is to be found out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FormatKind {
    /// What a regular local file begins with tells; everything else is [raw](Self::Raw).
    Probe,
    /// The bytes are the disk.
    #[default]
    Raw,
    /// An image in this format.
    Image(Format),
    /// The disk was compressed, all of it as one stream.
    Packed(Packing),
}

impl From<FormatKind> for ImageFormat {
    fn from(kind: FormatKind) -> Self {
        Self {
            kind,
            snapshot: None,
        }
    }
}

impl FromStr for FormatKind {
    type Err = String;

    /// A format under the name that qemu gives it.
    fn from_str(name: &str) -> Result<Self, String> {
        if name == "raw" {
            return Ok(Self::Raw);
        }
        let format = name.parse().map(Self::Image);
        format.or(name.parse().map(Self::Packed)).map_err(|()| {
            let formats = Format::ALL.map(Format::name).join(", ");
            let packings = Packing::ALL.map(Packing::name).join(", ");
            format!("the format {name:?} is not known here: raw, {formats}, {packings} are")
        })
    }
}

impl fmt::Display for FormatKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Probe => "probe",
            Self::Raw => "raw",
            Self::Image(format) => format.name(),
            Self::Packed(packing) => packing.name(),
        })
    }
}

/// Makes the disk of what was opened as bytes: itself, or what is in the image that it is.
pub(super) async fn interpret(
    endpoint: &Endpoint,
    access: Access,
    options: &OpenOptions,
    opened: OpenDevice,
) -> Result<OpenDevice> {
    let OpenDevice {
        device,
        mut connection,
    } = opened;
    let interpreted = async {
        match told(endpoint, &*device).await? {
            FormatKind::Image(format) => {
                let image = open_image(endpoint, format, access, options, &device);
                image.await.map(Some)
            }
            FormatKind::Packed(packing) => {
                let message = format!("-f {packing} is not read yet");
                Err(Error::with_message(ErrorKind::Unsupported, message))
            }
            _ if endpoint.format().snapshot.is_some() => {
                let message = "only a qcow2 image has snapshots, and this is none";
                Err(Error::with_message(ErrorKind::InvalidInput, message))
            }
            _ => Ok(None),
        }
    };
    match interpreted.await {
        Ok(None) => Ok(OpenDevice { device, connection }),
        Ok(Some((image, relatives))) => {
            let first = Layer {
                role: None,
                depth: 0,
                path: shown_path(endpoint),
                bytes: device,
                image: Some(Arc::clone(&image)),
            };
            let device: Arc<dyn BlockDevice> = image.clone();
            connection.image = Some(image);
            (connection.followed, connection.layers) = relatives.into_opened(first);
            Ok(OpenDevice { device, connection })
        }
        Err(error) => {
            drop(device);
            connection.abandon().await;
            Err(opening(endpoint)(error))
        }
    }
}

/// What the image says of itself that an endpoint is, without its filters; `None` where its bytes are the disk.
/// Nothing else that it names is opened, and nothing is changed.
///
/// # Errors
/// As [`open_device`], but those of the files that the image names.
pub async fn image_details(endpoint: &Endpoint, options: &OpenOptions) -> Result<Option<Details>> {
    if endpoint.format().kind == FormatKind::Raw {
        return Ok(None);
    }
    let bytes = endpoint.clone().interpreted(FormatKind::Raw);
    let bytes = bytes.behind(Vec::new());
    let OpenDevice { device, connection } = open_device(&bytes, Access::ReadOnly, options).await?;
    let details = async {
        match told(endpoint, &*device).await? {
            FormatKind::Image(format) => format.details(&device).await.map(Some),
            _ => Ok(None),
        }
    };
    let details = details.await.map_err(opening(endpoint));
    drop(device);
    connection.abandon().await;
    details
}

/// The format of `device`: what was said, or what it begins with.
async fn told(endpoint: &Endpoint, device: &dyn BlockDevice) -> Result<FormatKind> {
    match endpoint.format().kind {
        FormatKind::Probe if may_probe(endpoint, device) => probed(device).await,
        FormatKind::Probe => Ok(FormatKind::Raw),
        kind => Ok(kind),
    }
}

/// Whether it is a regular file of this machine.
fn may_probe(endpoint: &Endpoint, device: &dyn BlockDevice) -> bool {
    match device.mapping(ByteRange::between(0, 1)) {
        Mapping::File { fd, .. } if is_one_file(endpoint) => {
            sys::inspect(fd).is_ok_and(|facts| facts.kind == sys::FileKind::Regular)
        }
        _ => false,
    }
}

/// Whether its bytes are those of one file or block device, all of it.
fn is_one_file(endpoint: &Endpoint) -> bool {
    matches!(
        endpoint.kind(),
        EndpointKind::File(_) | EndpointKind::Descriptor(_) | EndpointKind::Standard
    )
}

/// The format that `device` seems to be in.
///
/// # Errors
/// `Unsupported` for one that is not read here.
pub(super) async fn probed(device: &dyn BlockDevice) -> Result<FormatKind> {
    let length = device.info().size.min(PROBE_LENGTH as u64);
    let start = read_exact_at(device, ByteRange::between(0, length)).await?;
    let Some(name) = probe(&start) else {
        return Ok(FormatKind::Raw);
    };
    match name.parse() {
        Ok(format) => Ok(FormatKind::Image(format)),
        Err(()) => {
            let message = format!(
                "it is an image in the format {name}, which is not read yet; -f raw reads its bytes"
            );
            Err(Error::with_message(ErrorKind::Unsupported, message))
        }
    }
}

async fn open_image(
    endpoint: &Endpoint,
    kind: Format,
    access: Access,
    options: &OpenOptions,
    device: &Arc<dyn BlockDevice>,
) -> Result<(Arc<dyn Image>, Relatives)> {
    let format = endpoint.format();
    if format.snapshot.is_some() && kind != Format::Qcow2 {
        let message = format!("only a qcow2 image has snapshots, and this is {kind}");
        return Err(Error::with_message(ErrorKind::InvalidInput, message));
    }
    let writable = access == Access::ReadWrite && format.snapshot.is_none();
    let below = match writable {
        true => {
            claim_below(&**device)?;
            growable(endpoint, device)?
        }
        false => Arc::clone(device),
    };
    let relatives = Relatives::of(endpoint, device, options);
    let mut opening = relatives.options();
    opening.writable = writable;
    opening.snapshot.clone_from(&format.snapshot);
    let image = kind.open(below, &relatives, &opening).await?;
    Ok((image, relatives))
}

/// Where the endpoint's file is found; its name, where it is none.
fn shown_path(endpoint: &Endpoint) -> PathBuf {
    match endpoint.kind() {
        EndpointKind::File(path) => path.clone(),
        _ => PathBuf::from(&**endpoint.name()),
    }
}

/// The same device; where it is a regular file, one that can grow, as an image does that is written. What begins in a
/// file may go on in another one, or be a part of it, and stays as it is.
fn growable(endpoint: &Endpoint, device: &Arc<dyn BlockDevice>) -> Result<Arc<dyn BlockDevice>> {
    let fd = match device.mapping(ByteRange::between(0, 1)) {
        Mapping::File { fd, .. } if is_one_file(endpoint) => fd,
        _ => return Ok(Arc::clone(device)),
    };
    let file = fd.try_clone_to_owned()?.into();
    let file = FileDevice::from_file(file, Arc::clone(&device.info().name))?;
    Ok(Arc::new(file.growable()))
}

#[cfg(test)]
mod tests;
