//! What the bytes of an endpoint are taken for: just bytes, or an image in a format, whose disk is what is meant.
//!
//! Whoever says nothing gets the bytes. Only a regular local file is ever looked at to find out: what a block device
//! or another server holds was written by somebody's guest, who could make it look like anything.

use std::{
    fmt,
    fs::{self, File, Metadata},
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use crate::{
    block::{
        Access, BlockDevice, ByteRange, Error, ErrorKind, FileDevice, HumanSize, Mapping, Result,
    },
    copy::Source,
    filter::Unpack,
    format::{
        Details, Format, Image,
        packed::{Packed, Packing, UnpackOptions, Unpacked},
        probe,
    },
};

use super::{
    Endpoint, EndpointKind, Layer, OpenDevice, OpenOptions, OpenSource,
    guess::{is_one_file, most_data, told},
    in_use::{claim, claim_below},
    open::{open_device, opening},
    ova,
    related::Relatives,
};

/// What the bytes of an endpoint are taken for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageFormat {
    /// The format.
    pub kind: FormatKind,
    /// The internal snapshot that is meant, by its ID or its name; it can only be read.
    pub snapshot: Option<String>,
    /// Whether the backing file that a qcow2 image names is left alone: what is not in the image reads as zeroes.
    pub without_backing: bool,
}

/// A format, or that it is to be found out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FormatKind {
    /// What a regular local file begins with tells; everything else is [raw](Self::Raw). That it is compressed, or an
    /// archive, is believed only where the name of the file says the same.
    Probe,
    /// The same among the formats of images alone: what is compressed, or an archive, is just bytes, as qemu has it.
    ProbeImage,
    /// The bytes are the disk.
    #[default]
    Raw,
    /// An image in this format.
    Image(Format),
    /// The disk was compressed, all of it as one stream.
    Packed(Packing),
    /// An archive with the disk of a virtual machine in it.
    Ova,
}

impl FormatKind {
    /// The same for a backing file, whose readers know nothing of what is compressed, nor of archives.
    pub(super) fn of_backing(self) -> Self {
        match self {
            Self::Probe => Self::ProbeImage,
            kind => kind,
        }
    }
}

impl From<FormatKind> for ImageFormat {
    fn from(kind: FormatKind) -> Self {
        Self {
            kind,
            ..Self::default()
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
        if name == "ova" {
            return Ok(Self::Ova);
        }
        let format = name.parse().map(Self::Image);
        format.or(name.parse().map(Self::Packed)).map_err(|_| {
            let formats = Format::ALL.map(Format::name).join(", ");
            let packings = Packing::ALL.map(Packing::name).join(", ");
            format!("the format {name:?} is not supported: raw, {formats}, {packings}, ova are")
        })
    }
}

impl fmt::Display for FormatKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Probe | Self::ProbeImage => "probe",
            Self::Raw => "raw",
            Self::Image(format) => format.name(),
            Self::Packed(packing) => packing.name(),
            Self::Ova => "ova",
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
    match told(endpoint, options, &*opened.device).await {
        Ok(kind) => interpret_as(endpoint, kind, access, options, opened).await,
        Err(error) => {
            opened.connection.abandon().await;
            Err(opening(endpoint)(error))
        }
    }
}

/// The same, once it is known what it is.
async fn interpret_as(
    endpoint: &Endpoint,
    kind: FormatKind,
    access: Access,
    options: &OpenOptions,
    opened: OpenDevice,
) -> Result<OpenDevice> {
    let OpenDevice {
        device,
        mut connection,
    } = opened;
    let interpreted = async {
        check_snapshot(endpoint, kind)?;
        match kind {
            FormatKind::Image(format) => {
                let image = open_image(endpoint, format, access, options, &device);
                let (image, relatives) = image.await?;
                let first = first_layer(endpoint, &device, &image);
                connection.image = Some(image.clone());
                (connection.followed, connection.layers) = relatives.into_opened(first);
                let disk: Arc<dyn BlockDevice> = image;
                Ok(disk)
            }
            FormatKind::Packed(packing) => {
                connection.around = Some(kind);
                unpacked(endpoint, packing, options, Arc::clone(&device)).await
            }
            FormatKind::Ova => {
                connection.around = Some(kind);
                let disk = ova::disk(endpoint, options, &device).await?;
                let image = ova::open(&disk, options).await?;
                let Some(image) = image else { return Ok(disk) };
                connection.image = Some(image.clone());
                let disk: Arc<dyn BlockDevice> = image;
                Ok(disk)
            }
            _ => Ok(Arc::clone(&device)),
        }
    };
    match interpreted.await {
        Ok(device) => Ok(OpenDevice { device, connection }),
        Err(error) => {
            drop(device);
            connection.abandon().await;
            Err(opening(endpoint)(error))
        }
    }
}

/// Makes a source of a copy of what was opened as bytes: what is compressed comes as a stream, everything else is a
/// device.
pub(super) async fn interpret_source(
    endpoint: &Endpoint,
    options: &OpenOptions,
    opened: OpenDevice,
) -> Result<OpenSource> {
    let OpenDevice {
        device,
        mut connection,
    } = opened;
    let begun = async {
        let kind = told(endpoint, options, &*device).await?;
        check_snapshot(endpoint, kind)?;
        let FormatKind::Packed(packing) = kind else {
            return Ok((kind, None));
        };
        let packed = Packed::Device(Arc::clone(&device));
        let stream = unpack(endpoint, packed, packing, options).await?;
        Ok((kind, Some(stream)))
    };
    match begun.await {
        Ok((kind, Some(stream))) => {
            connection.around = Some(kind);
            Ok(OpenSource {
                source: Source::Stream(Box::new(stream)),
                connection,
            })
        }
        Ok((kind, None)) => {
            let opened = OpenDevice { device, connection };
            let opened = interpret_as(endpoint, kind, Access::ReadOnly, options, opened).await?;
            Ok(OpenSource {
                source: Source::Device(opened.device),
                connection: opened.connection,
            })
        }
        Err(error) => {
            drop(device);
            connection.abandon().await;
            Err(opening(endpoint)(error))
        }
    }
}

/// Begins to unpack a stream, and says so where an image in a format comes out of it: its bytes are what is meant.
///
/// # Errors
/// As those of [`Unpacked::open`].
pub(super) async fn unpack(
    endpoint: &Endpoint,
    packed: Packed,
    packing: Packing,
    options: &OpenOptions,
) -> Result<Unpacked> {
    let mut unpacking = UnpackOptions::default();
    unpacking.max_size = options.max_size;
    let unpacked = Unpacked::open(packed, packing, &unpacking).await?;
    if let Some(format) = probe(unpacked.begins_with()) {
        options.notice(&format!(
            "{endpoint}: what it holds looks like an image in the format {format}, and is taken for the bytes of a disk"
        ));
    }
    Ok(unpacked)
}

/// The disk in a compressed file, for those who read it anywhere.
pub(super) async fn unpacked(
    endpoint: &Endpoint,
    packing: Packing,
    options: &OpenOptions,
    device: Arc<dyn BlockDevice>,
) -> Result<Arc<dyn BlockDevice>> {
    let mut unpack = Unpack::new(packing);
    unpack.unpack = true;
    unpack.max_size = options.max_size.unwrap_or(unpack.max_size);
    unpack.max_data = most_data(endpoint);
    let opening = unpack.open_telling(device, |why| {
        options.notice(&format!(
            "{endpoint}: it is unpacked into a temporary file first: {why}"
        ));
    });
    let disk = opening.await?;
    // Where it is unpacked by blocks nothing has been held against its size yet.
    match options.max_size {
        Some(most) if disk.info().size > most => {
            let most = HumanSize(most);
            let message = format!("it holds more than the {most} that max-size allows");
            Err(Error::with_message(ErrorKind::Unsupported, message))
        }
        _ => Ok(disk),
    }
}

fn check_snapshot(endpoint: &Endpoint, kind: FormatKind) -> Result<()> {
    if endpoint.format().snapshot.is_none() || matches!(kind, FormatKind::Image(_)) {
        return Ok(());
    }
    let message = "only a qcow2 image has snapshots, and this is none";
    Err(Error::with_message(ErrorKind::InvalidInput, message))
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
        // Whoever opens it is told what it is taken for.
        let quiet = OpenOptions {
            notices: None,
            ..options.clone()
        };
        match told(endpoint, &quiet, &*device).await? {
            FormatKind::Image(format) => format.details(&device).await.map(Some),
            FormatKind::Ova => ova::details(endpoint, options, &device).await,
            _ => Ok(None),
        }
    };
    let details = details.await.map_err(opening(endpoint));
    drop(device);
    connection.abandon().await;
    details
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
    opening.without_backing = format.without_backing;
    let image = kind.open(below, &relatives, &opening).await?;
    Ok((image, relatives))
}

/// The image itself, in front of those behind it.
pub(super) fn first_layer(
    endpoint: &Endpoint,
    bytes: &Arc<dyn BlockDevice>,
    image: &Arc<dyn Image>,
) -> Layer {
    Layer {
        role: None,
        depth: 0,
        path: shown_path(endpoint),
        bytes: Arc::clone(bytes),
        image: Some(Arc::clone(image)),
    }
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
pub(super) fn growable(
    endpoint: &Endpoint,
    device: &Arc<dyn BlockDevice>,
) -> Result<Arc<dyn BlockDevice>> {
    let file = match (device.mapping(ByteRange::between(0, 1)), endpoint.kind()) {
        (Mapping::File { fd, .. }, _) if is_one_file(endpoint) => fd.try_clone_to_owned()?.into(),
        // Where there are no bytes, they lie nowhere.
        (_, EndpointKind::File(path)) if device.info().size == 0 => match empty_file(path)? {
            Some(file) => file,
            None => return Ok(Arc::clone(device)),
        },
        _ => return Ok(Arc::clone(device)),
    };
    let file = FileDevice::from_file(file, Arc::clone(&device.info().name))?;
    Ok(Arc::new(file.growable()))
}

/// The regular file at `path`, to be written by nobody else, where nothing is in it.
fn empty_file(path: &Path) -> Result<Option<File>> {
    let is_empty = |metadata: &Metadata| metadata.is_file() && metadata.len() == 0;
    // Opening something else could wait for its other end.
    if !is_empty(&fs::metadata(path)?) {
        return Ok(None);
    }
    let file = File::options().read(true).write(true).open(path)?;
    if !is_empty(&file.metadata()?) {
        return Ok(None);
    }
    claim(&file)?;
    Ok(Some(file))
}

#[cfg(test)]
mod tests;
