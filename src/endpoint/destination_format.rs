//! What becomes of a destination: bytes as they are, or an image in a format.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    block::{Access, BlockDevice, Capabilities, Error, ErrorKind, Operation, Result},
    copy::{Destination, Source},
    format::{
        NewImage,
        packed::{PackOptions, PackTarget, UnfinishedPack, pack},
        qcow2::{self, Backing, CreateOptions, DataFile, LaidOut},
        vdi, vhdx, vmdk, vpc,
    },
};

use super::{
    BackingName, Connection, DataFileName, DestinationFile, Endpoint, EndpointKind, NewQcow2,
    OpenDestination, OpenDevice, OpenOptions, is_same_image,
    open::{open_device, opening},
    printable,
};

/// What a copy makes of its destination.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum DestinationFormat {
    /// It becomes the image, byte for byte.
    #[default]
    Raw,
    /// It is there already, and the image is written into it, byte for byte.
    RawInPlace,
    /// It becomes a qcow2 image.
    Qcow2(Arc<NewQcow2>),
    /// It becomes a VMDK image.
    Vmdk(vmdk::CreateOptions),
    /// It becomes a VHD image.
    Vpc(vpc::CreateOptions),
    /// It becomes a VHDX image.
    Vhdx(vhdx::CreateOptions),
    /// It becomes a VDI image.
    Vdi(vdi::CreateOptions),
    /// It becomes the image's bytes, compressed.
    Packed(PackOptions),
    /// It is a qcow2 image already, which is written.
    Qcow2InPlace,
}

impl DestinationFormat {
    /// The data file that is made beside `destination`, if there is to be one.
    #[must_use]
    pub fn data_file(&self, destination: &Endpoint) -> Option<Endpoint> {
        let Self::Qcow2(new) = self else {
            return None;
        };
        let data_file = new.data_file.as_ref()?;
        let directory = directory_of(destination);
        Some(Endpoint::from(directory.join(&data_file.name)))
    }

    /// Whether the destination is there and keeps what is not written.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        matches!(self, Self::RawInPlace | Self::Qcow2InPlace)
    }

    /// Whether it is an image whose readers want its parts in the order of the disk.
    #[must_use]
    pub fn is_packed_in_order(&self) -> bool {
        match self {
            Self::Vmdk(create) => create.subformat == vmdk::Subformat::StreamOptimized,
            _ => false,
        }
    }
}

/// An image that is being made: no valid one before it is [finished](Self::finish).
pub struct UnfinishedImage {
    unfinished: Unfinished,
    /// The same, where it is a qcow2 image.
    qcow2: Option<Arc<dyn NewImage>>,
    data_file: Option<DestinationFile>,
    /// What keeps the backing file open.
    backing: Option<Connection>,
}

/// What has an end that is still to be written.
enum Unfinished {
    Image(Arc<dyn NewImage>),
    Packed(UnfinishedPack),
}

impl From<Unfinished> for UnfinishedImage {
    fn from(unfinished: Unfinished) -> Self {
        Self {
            unfinished,
            qcow2: None,
            data_file: None,
            backing: None,
        }
    }
}

impl UnfinishedImage {
    /// Completes the image, durably, and gives its data file its name. The image's own file is left to be committed.
    ///
    /// # Errors
    /// What writing failed with, and what [`DestinationFile::commit_durably`] did.
    pub async fn finish(self) -> Result<()> {
        match self.unfinished {
            Unfinished::Image(image) => image.finish().await?,
            Unfinished::Packed(packed) => packed.finish().await?,
        }
        if let Some(backing) = self.backing {
            // It was only read. Before anything has its name: this may take long, and be given up.
            let _ = backing.close().await;
        }
        match self.data_file {
            Some(file) => file.commit_durably(),
            None => Ok(()),
        }
    }

    /// The qcow2 image, where it is one, for who has more to put into it.
    #[must_use]
    pub fn as_qcow2(&self) -> Option<&Arc<dyn NewImage>> {
        self.qcow2.as_ref()
    }
}

impl DestinationFormat {
    /// Begins an image in a destination that was opened as bytes, if it is to become one. What is copied then may be
    /// another source than `source`: the file that has the image in it. What was there before is no image any more.
    ///
    /// # Errors
    /// `InvalidInput` for what cannot be in this destination, what opening other files failed with, and what
    /// writing did.
    pub async fn begin(
        &self,
        endpoint: &Endpoint,
        (source, source_endpoint): (Source, &Endpoint),
        opened: OpenDestination,
        options: &OpenOptions,
    ) -> Result<(Source, OpenDestination)> {
        match (self, &opened.destination) {
            (Self::Raw | Self::RawInPlace | Self::Qcow2InPlace, _) => Ok((source, opened)),
            (Self::Qcow2(new), _) => {
                let source = (source, source_endpoint);
                new.begin(endpoint, source, opened, options).await
            }
            (Self::Packed(options), _) => {
                let packed = begin_packed(opened, options);
                Ok((source, packed.map_err(opening(endpoint))?))
            }
            (Self::Vmdk(_), Destination::Stream(_)) => {
                self.begin_streamed_vmdk(endpoint, source, opened).await
            }
            (_, Destination::Stream(_)) => {
                let error = refused("this format cannot be streamed: write it to a file");
                Err(opening(endpoint)(error))
            }
            (_, Destination::Device(below)) => {
                let image = self.make(Arc::clone(below), &source).await;
                let image = image.map_err(opening(endpoint))?;
                let opened = OpenDestination {
                    destination: Destination::Device(image.clone()),
                    image: Some(Unfinished::Image(image).into()),
                    ..opened
                };
                Ok((source, opened))
            }
        }
    }

    /// Begins a VMDK image in a stream, which has its tables at its end.
    async fn begin_streamed_vmdk(
        &self,
        endpoint: &Endpoint,
        source: Source,
        opened: OpenDestination,
    ) -> Result<(Source, OpenDestination)> {
        let (Self::Vmdk(create), Destination::Stream(sink)) = (self, opened.destination) else {
            return Err(opening(endpoint)(Error::new(ErrorKind::InvalidInput)));
        };
        let mut create = create.clone();
        create.size = size_of(&source);
        let image = vmdk::create_streamed(sink, create).await;
        let image = image.map_err(opening(endpoint))?;
        let opened = OpenDestination {
            destination: Destination::Device(image.clone()),
            connection: opened.connection,
            file: opened.file,
            image: Some(Unfinished::Image(image).into()),
        };
        Ok((source, opened))
    }

    /// Begins an image of a format whose images need nothing but a file.
    async fn make(
        &self,
        below: Arc<dyn BlockDevice>,
        source: &Source,
    ) -> Result<Arc<dyn NewImage>> {
        let size = size_of(source);
        Ok(match self {
            Self::Vmdk(create) => {
                let mut create = create.clone();
                create.size = size;
                vmdk::create(below, create).await?
            }
            Self::Vpc(create) => {
                let mut create = create.clone();
                create.size = size;
                vpc::create(below, create).await?
            }
            Self::Vhdx(create) => {
                let mut create = create.clone();
                create.size = size;
                vhdx::create(below, create).await?
            }
            Self::Vdi(create) => {
                let mut create = create.clone();
                create.size = size;
                vdi::create(below, create).await?
            }
            _ => return Err(Error::new(ErrorKind::InvalidInput)),
        })
    }
}

impl NewQcow2 {
    /// Begins an image in a destination that was opened as bytes, or lays one out for a stream, which is what is
    /// copied then in the place of `source`. What was there before is no image any more.
    ///
    /// # Errors
    /// `InvalidInput` for what cannot be in this destination, what opening other files failed with, and what
    /// writing did.
    pub async fn begin(
        &self,
        endpoint: &Endpoint,
        (source, source_endpoint): (Source, &Endpoint),
        opened: OpenDestination,
        options: &OpenOptions,
    ) -> Result<(Source, OpenDestination)> {
        let named = opening(endpoint);
        let (others, create) = self
            .open_others(endpoint, source_endpoint, &source, options)
            .await
            .map_err(opening(endpoint))?;
        let OpenDestination {
            destination,
            connection,
            file,
            ..
        } = opened;
        match destination {
            Destination::Device(below) => {
                let image = qcow2::create(below, create).await.map_err(named)?;
                let opened = OpenDestination {
                    destination: Destination::Device(image.clone()),
                    connection,
                    file,
                    image: Some(UnfinishedImage {
                        unfinished: Unfinished::Image(image.clone()),
                        qcow2: Some(image),
                        data_file: others.data_file,
                        backing: others.backing,
                    }),
                };
                Ok((source, opened))
            }
            Destination::Stream(sink) => {
                let source = self.lay_out(source, &create).await.map_err(named)?;
                let opened = OpenDestination {
                    destination: Destination::Stream(sink),
                    connection,
                    file,
                    image: None,
                };
                Ok((source, opened))
            }
        }
    }

    /// The bytes of the image that holds `source`, for a destination that cannot seek.
    async fn lay_out(&self, source: Source, create: &CreateOptions) -> Result<Source> {
        let refuse = |message: &str| Err(Error::with_message(ErrorKind::InvalidInput, message));
        if create.compress {
            return refuse(
                "a compressed image cannot be streamed: how long it becomes is known at its end; write it to a file",
            );
        }
        if create.data_file.is_some() {
            return refuse("an image with a data file cannot be streamed: write it to a file");
        }
        let Source::Device(device) = source else {
            return refuse(
                "a stream cannot be streamed on as an image, whose tables come first: write it to a file",
            );
        };
        if create.backing.is_some() {
            return refuse(
                "an overlay cannot be streamed: what differs is known at its end; write it to a file",
            );
        }
        let laid_out = LaidOut::new(device, create).await?;
        Ok(Source::Device(Arc::new(laid_out)))
    }

    /// Opens the other files that the image is to have.
    async fn open_others(
        &self,
        endpoint: &Endpoint,
        source_endpoint: &Endpoint,
        source: &Source,
        options: &OpenOptions,
    ) -> Result<(Others, CreateOptions)> {
        let mut create = self.create.clone();
        if let Source::Device(device) = source {
            create.size = Some(device.info().size);
        }
        let directory = directory_of(endpoint);
        let mut others = Others::default();
        if let Some(backing) = &self.backing {
            let opened = open_backing(backing, &directory, endpoint, options).await?;
            create.backing = Some(Backing {
                name: backing.name.as_bytes().to_vec(),
                format: Some(opened.connection.format().to_string()),
                device: Some(opened.device),
            });
            others.backing = Some(opened.connection);
        }
        if let Some(data_file) = &self.data_file {
            let behind = create.backing.as_ref();
            let behind = behind.map(|backing| OsStr::from_bytes(&backing.name));
            let behind = behind.map(|name| Endpoint::from(directory.join(name)));
            let is_behind = |file: &Endpoint| {
                let backing = others.backing.as_ref();
                backing.is_some_and(|backing| backing.follows(file))
            };
            let others_files = [Some(endpoint), Some(source_endpoint), behind.as_ref()];
            let others_files = others_files.into_iter().flatten();
            let (device, file) = open_data_file(data_file, &directory, others_files, is_behind)?;
            create.data_file = Some(DataFile {
                name: data_file.name.as_bytes().to_vec(),
                raw: data_file.raw,
                device,
            });
            others.data_file = Some(file);
        }
        Ok((others, create))
    }
}

/// Begins a compressed stream, to which the image is written as to a pipe.
fn begin_packed(opened: OpenDestination, options: &PackOptions) -> Result<OpenDestination> {
    let target = match opened.destination {
        Destination::Device(device) if !device.info().can(Capabilities::RESIZE) => {
            return Err(refused(
                "what is compressed has a length of its own, and this has a fixed size: write it to a file",
            ));
        }
        Destination::Device(device) => PackTarget::Device(device),
        Destination::Stream(sink) => PackTarget::Stream(sink),
    };
    let (sink, unfinished) = pack(target, options)?;
    Ok(OpenDestination {
        destination: Destination::Stream(Box::new(sink)),
        image: Some(Unfinished::Packed(unfinished).into()),
        ..opened
    })
}

/// The size of what is copied, where that is known before its end.
fn size_of(source: &Source) -> Option<u64> {
    match source {
        Source::Device(device) => Some(device.info().size),
        Source::Stream(_) => None,
    }
}

/// The other files of an image, open.
#[derive(Default)]
struct Others {
    backing: Option<Connection>,
    data_file: Option<DestinationFile>,
}

/// Opens the backing file that somebody named. That allows this file, and none that it names itself.
pub(super) async fn open_backing(
    backing: &BackingName,
    directory: &Path,
    destination: &Endpoint,
    options: &OpenOptions,
) -> Result<OpenDevice> {
    check_name("backing file", &backing.name)?;
    let path = Endpoint::from(directory.join(&backing.name));
    let path = path.interpreted(backing.format.of_backing());
    if is_same_image(&path, destination) {
        return Err(refused("an image cannot be its own backing file"));
    }
    let opened = open_device(&path, Access::ReadOnly, options).await?;
    if opened.connection.follows(destination) {
        let message = format!("{path} has this image behind it, and cannot be its backing file");
        opened.connection.abandon().await;
        return Err(refused(&message));
    }
    Ok(opened)
}

/// Where relative names in the image begin that `endpoint` is or becomes.
pub(super) fn directory_of(endpoint: &Endpoint) -> PathBuf {
    match endpoint.kind() {
        EndpointKind::File(path) => path.parent().map(Path::to_owned).unwrap_or_default(),
        _ => PathBuf::new(),
    }
}

/// Begins the data file.
fn open_data_file<'a>(
    data_file: &DataFileName,
    directory: &Path,
    mut others: impl Iterator<Item = &'a Endpoint>,
    is_behind: impl Fn(&Endpoint) -> bool,
) -> Result<(Arc<dyn BlockDevice>, DestinationFile)> {
    check_name("data file", &data_file.name)?;
    let path = directory.join(&data_file.name);
    let endpoint = Endpoint::from(path.clone());
    if let Some(other) =
        others.find(|other| is_same_image(&endpoint, other) || is_same_path(&path, other))
    {
        return Err(refused(&format!(
            "the data file {endpoint} is {other} itself: it needs a file of its own"
        )));
    }
    if is_behind(&endpoint) {
        return Err(refused(&format!(
            "the data file {endpoint} is behind the backing file: it needs a file of its own"
        )));
    }
    let (device, file) = DestinationFile::open(&path, endpoint.name(), false)
        .map_err(|error| error.during(Operation::Open).on(endpoint.name()))?;
    Ok((Arc::new(device), file))
}

/// Whether the endpoint is a file of this very path, which may not be there yet.
fn is_same_path(path: &Path, endpoint: &Endpoint) -> bool {
    match endpoint.kind() {
        EndpointKind::File(other) => {
            std::path::absolute(path).ok() == std::path::absolute(other).ok()
        }
        _ => false,
    }
}

/// Refuses names that those who read the image would not take for a file's.
pub(super) fn check_name(what: &str, name: &OsStr) -> Result<()> {
    let bytes = name.as_bytes();
    let end = bytes.iter().position(|byte| matches!(byte, b':' | b'/'));
    if end.is_some_and(|end| bytes[end] == b':') {
        let name = printable(name);
        return Err(refused(&format!(
            "{name} as a {what}: an image's readers would take it for a protocol; write ./{name}"
        )));
    }
    Ok(())
}

fn refused(message: &str) -> Error {
    Error::with_message(ErrorKind::InvalidInput, message).during(Operation::Open)
}
