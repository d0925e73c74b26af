//! Parsed endpoints become devices and streams.

use std::{fmt, fs, io, os::fd::AsFd, path::PathBuf, sync::Arc, time::Duration};

use crate::{
    block::{
        Access, BlockDevice, ByteSink, Context, Error, ErrorKind, FdSink, FileDevice, MemoryDevice,
        NullDevice, Operation, PatternDevice, Result, SampleDevice, SliceDevice, SplitDevice,
    },
    client::PoolObserver,
    copy::{Destination, Source},
    format::packed::Packed,
};

use blockferry_sys as sys;

use super::{
    Connection, DestinationFile, Endpoint, EndpointKind, FormatKind, UnfinishedImage,
    filtered::Filters,
    formats::{interpret, interpret_source, unpack},
    servers::{connect, script, start},
    streams::{is_pipe, is_stream, open_waiting, source_stream, standard_input, standard_output},
};

/// How endpoints are opened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OpenOptions {
    /// The `blockferry` program, which a command that is just `serve` stands for; `None`: look for a
    /// program of that name as for any other.
    pub own_program: Option<PathBuf>,
    /// The metadata contexts that an NBD server is asked for; `base:allocation` unless set.
    pub contexts: Vec<Context>,
    /// Whether an NBD server is asked for all others that it has as well.
    pub all_contexts: bool,
    /// How many connections [`open_exports`](super::open_exports) opens to an NBD server that has several;
    /// 1 unless set.
    pub connections: usize,
    /// How many attempts in a row to open those again when they were lost may fail there; 0 unless set.
    pub retries: u32,
    /// Told what happens to them.
    pub pool_observer: Option<PoolObserver>,
    /// How long connecting and negotiating may take together; 30 seconds unless set.
    pub connect_timeout: Duration,
    /// How long an NBD server that owes an answer may move no byte; for ever unless set.
    pub request_timeout: Option<Duration>,
    /// The same while only a flush is in flight, and how long a call of a script may take; for ever unless set.
    pub flush_timeout: Option<Duration>,
    /// A destination file that is not whole is kept as `NAME.partial`, and gone on with where one is
    /// found; nor is a file emptied that was there before. For copies that are resumed.
    pub keep_partial: bool,
    /// A destination that is there is written as it is, and nothing of it is emptied; a file that is not there is
    /// not made.
    pub in_place: bool,
    /// The directories in which files are opened that an image names (its backing file, its data file), or the very
    /// files; none unless set. For an image that is no local file relative names are looked for in them, in order.
    pub allow_backing: Vec<PathBuf>,
    /// The largest disk that is opened of an image in a format, in bytes; any unless set.
    pub max_size: Option<u64>,
    /// Told what somebody should know who waits, or relies on what was opened; nobody unless set.
    pub notices: Option<Notices>,
}

/// Somebody who is told, in sentences for people, without the name of the program.
#[derive(Clone)]
pub struct Notices(Arc<dyn Fn(&str) + Send + Sync>);

impl Notices {
    /// Calls `tell` with each.
    pub fn new(tell: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }
}

impl fmt::Debug for Notices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Notices")
    }
}

impl OpenOptions {
    pub(super) fn notice(&self, text: &str) {
        if let Some(notices) = &self.notices {
            (notices.0)(text);
        }
    }
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            own_program: None,
            contexts: vec![Context::Allocation],
            all_contexts: false,
            connections: 1,
            retries: 0,
            pool_observer: None,
            connect_timeout: Duration::from_secs(30),
            request_timeout: None,
            flush_timeout: None,
            keep_partial: false,
            in_place: false,
            allow_backing: Vec::new(),
            max_size: None,
            notices: None,
        }
    }
}
/// An opened device.
pub struct OpenDevice {
    /// The device.
    pub device: Arc<dyn BlockDevice>,
    /// What keeps it alive.
    pub connection: Connection,
}

/// An opened source of a copy.
pub struct OpenSource {
    /// What the engine reads.
    pub source: Source,
    /// What keeps it alive.
    pub connection: Connection,
}

/// An opened destination of a copy.
pub struct OpenDestination {
    /// What the engine writes.
    pub destination: Destination,
    /// What keeps it alive.
    pub connection: Connection,
    /// The file, where it is one: to be committed once the copy is whole.
    pub file: Option<DestinationFile>,
    /// The image in a format that is being made of it: to be finished before that.
    pub image: Option<UnfinishedImage>,
}

/// Opens an endpoint that can be read and written anywhere, through its filters: no stream.
///
/// # Errors
/// What opening, starting or connecting failed with; `InvalidInput` for a stream; what a filter has against the
/// device.
pub async fn open_device(
    endpoint: &Endpoint,
    access: Access,
    options: &OpenOptions,
) -> Result<OpenDevice> {
    match endpoint.filters() {
        [] => open_unfiltered(endpoint, access, options).await,
        _ => Filters::open(endpoint, access, options)
            .await
            .map_err(opening(endpoint)),
    }
}

/// The size in bytes of what is at an endpoint: of the disk, if it is an image in a format.
///
/// # Errors
/// As [`open_device`].
pub async fn open_size(endpoint: &Endpoint, options: &OpenOptions) -> Result<u64> {
    let OpenDevice { device, connection } =
        open_device(endpoint, Access::ReadOnly, options).await?;
    let size = device.info().size;
    drop(device);
    connection.close().await?;
    Ok(size)
}

/// Opens what is behind the filters of an endpoint: the disk, if it is an image in a format.
pub(super) async fn open_unfiltered(
    endpoint: &Endpoint,
    access: Access,
    options: &OpenOptions,
) -> Result<OpenDevice> {
    let opened = open_bytes_of(endpoint, access, options).await?;
    interpret(endpoint, access, options, opened).await
}

/// Opens the bytes that an endpoint is, to be interpreted.
async fn open_bytes_of(
    endpoint: &Endpoint,
    access: Access,
    options: &OpenOptions,
) -> Result<OpenDevice> {
    if endpoint.is_bytes() {
        return open_bytes(endpoint, access, options).await;
    }
    // The contexts that were asked for are those of what is in them.
    let below = OpenOptions {
        contexts: vec![Context::Allocation],
        ..options.clone()
    };
    open_bytes(endpoint, access, &below).await
}

/// Opens the bytes that an endpoint is.
async fn open_bytes(
    endpoint: &Endpoint,
    access: Access,
    options: &OpenOptions,
) -> Result<OpenDevice> {
    if matches!(endpoint.kind(), EndpointKind::Standard)
        && !endpoint.filters().is_empty()
        && let Some(opened) = standard_input()
    {
        return Ok(opened);
    }
    let device: Arc<dyn BlockDevice> = match endpoint.kind() {
        EndpointKind::Nbd(uri) => return connect(uri, endpoint.name(), None, options).await,
        EndpointKind::Command(command) => return start(command, options).await,
        EndpointKind::Sample(sample) => Arc::new(SampleDevice::new(*sample)),
        EndpointKind::CheckingSample(sample) => Arc::new(SampleDevice::new(*sample).checking()),
        EndpointKind::File(path) => {
            Arc::new(FileDevice::open(path, access).map_err(opening(endpoint))?)
        }
        EndpointKind::Null(Some(size)) => Arc::new(NullDevice::new(*size)),
        EndpointKind::Memory { size } => {
            Arc::new(MemoryDevice::new(*size).named(Arc::clone(endpoint.name())))
        }
        EndpointKind::Pattern { size } => Arc::new(PatternDevice::new(*size)),
        EndpointKind::Data(data) => {
            // It may read files and run scripts first.
            let data = data.clone();
            let device = away(endpoint, move || data.open()).await?;
            Arc::new(device.named(Arc::clone(endpoint.name())))
        }
        EndpointKind::Split(paths) => {
            let parts = paths.iter().map(|path| {
                let part = FileDevice::open(path, access)?;
                Ok(Arc::new(part) as Arc<dyn BlockDevice>)
            });
            let parts = parts.collect::<Result<_>>();
            let joined = parts.and_then(SplitDevice::new);
            let joined = joined.map_err(opening(endpoint))?;
            Arc::new(joined.named(Arc::clone(endpoint.name())))
        }
        EndpointKind::Joined(parts) => return join(endpoint, parts, access, options).await,
        EndpointKind::Part { of, offset, length } => {
            let OpenDevice { device, connection } =
                Box::pin(open_device(of, access, options)).await?;
            let part = SliceDevice::new(device, *offset, *length);
            let device = Arc::new(part.map_err(opening(endpoint))?);
            return Ok(OpenDevice { device, connection });
        }
        EndpointKind::Descriptor(number) => {
            let file = fs::File::from(
                sys::duplicate_inherited(*number)
                    .map_err(|error| opening(endpoint)(error.into()))?,
            );
            Arc::new(FileDevice::from_file(file, Arc::clone(endpoint.name()))?)
        }
        EndpointKind::Script(it) => return script(endpoint, it, access, options).await,
        EndpointKind::Directory(_) => {
            return Err(refused(endpoint, "it has several images"));
        }
        EndpointKind::Standard => return Err(refused(endpoint, "a stream has no offsets")),
        EndpointKind::Null(None) => return Err(refused(endpoint, "it holds no image")),
    };
    Ok(local(device))
}

/// Opens several as one.
async fn join(
    endpoint: &Endpoint,
    parts: &[Endpoint],
    access: Access,
    options: &OpenOptions,
) -> Result<OpenDevice> {
    let mut connection = Connection::default();
    let mut devices = Vec::with_capacity(parts.len());
    for part in parts {
        match Box::pin(open_device(part, access, options)).await {
            Ok(opened) => {
                connection.parts.push(opened.connection);
                devices.push(opened.device);
            }
            Err(error) => {
                connection.abandon().await;
                return Err(error);
            }
        }
    }
    let joined = SplitDevice::new(devices).map_err(opening(endpoint))?;
    let device = Arc::new(joined.named(Arc::clone(endpoint.name())));
    Ok(OpenDevice { device, connection })
}

/// Opens an endpoint to copy from.
///
/// # Errors
/// As [`open_device`], but streams are welcome; `null:` has nothing to give.
pub async fn open_source(endpoint: &Endpoint, options: &OpenOptions) -> Result<OpenSource> {
    if !endpoint.filters().is_empty() {
        let is_stream = match endpoint.kind() {
            EndpointKind::Standard => standard_input().is_none(),
            EndpointKind::File(path) => is_stream(path),
            _ => false,
        };
        if is_stream {
            let message = "a filter needs an image with offsets, and this is a stream";
            return Err(refused(endpoint, message));
        }
        let OpenDevice { device, connection } =
            open_device(endpoint, Access::ReadOnly, options).await?;
        return Ok(OpenSource {
            source: Source::Device(device),
            connection,
        });
    }
    if matches!(endpoint.kind(), EndpointKind::Standard)
        && let Some(opened) = standard_input()
    {
        return interpret_source(endpoint, options, opened).await;
    }
    if let Some(stream) = source_stream(endpoint).await? {
        let source = match endpoint.format().kind {
            FormatKind::Packed(packing) if endpoint.format().snapshot.is_none() => {
                let packed = Packed::Stream(stream);
                let unpacked = unpack(endpoint, packed, packing, options).await;
                let unpacked = unpacked.map_err(opening(endpoint))?;
                Source::Stream(Box::new(unpacked))
            }
            _ if endpoint.is_bytes() => Source::Stream(stream),
            _ => {
                let message = "an image in a format is read at many offsets, and this is a stream";
                return Err(refused(endpoint, message));
            }
        };
        return Ok(OpenSource {
            source,
            connection: Connection::default(),
        });
    }
    let opened = open_bytes_of(endpoint, Access::ReadOnly, options).await?;
    interpret_source(endpoint, options, opened).await
}

/// Opens an endpoint to copy to. Where there is no file one is begun, which appears when it is
/// [committed](DestinationFile::commit); one that is there is emptied when it is first written to. A
/// block device is written in place.
///
/// # Errors
/// As [`open_device`], but streams are welcome; a `sample:` cannot be written.
pub async fn open_destination(
    endpoint: &Endpoint,
    options: &OpenOptions,
) -> Result<OpenDestination> {
    let from_stream = |stream: Box<dyn ByteSink>| OpenDestination {
        destination: Destination::Stream(stream),
        connection: Connection::default(),
        file: None,
        image: None,
    };
    let from_device = |OpenDevice { device, connection }, file| OpenDestination {
        destination: Destination::Device(device),
        connection,
        file,
        image: None,
    };
    match endpoint.kind() {
        kind if !kind.roles().destination => Err(refused(endpoint, "it cannot be written")),
        EndpointKind::Null(size) => {
            let device = NullDevice::new(size.unwrap_or(0));
            Ok(from_device(local(Arc::new(device)), None))
        }
        EndpointKind::Standard => match standard_output() {
            Some(device) => Ok(from_device(device, None)),
            None => {
                let fd = io::stdout().as_fd().try_clone_to_owned()?;
                Ok(from_stream(Box::new(FdSink::new(fd, "standard output"))))
            }
        },
        kind if options.in_place && is_pipe(kind) => {
            let message = "a stream has nothing in its place: -n needs an image that is there";
            Err(refused(endpoint, message))
        }
        EndpointKind::File(path) if is_stream(path) => {
            let writing = fs::OpenOptions::new().write(true).clone();
            let file = open_waiting(writing, path, endpoint).await?;
            let sink = FdSink::new(file, Arc::clone(endpoint.name()));
            Ok(from_stream(Box::new(sink)))
        }
        EndpointKind::File(path) if options.in_place => {
            let opened = DestinationFile::open_in_place(path, endpoint.name());
            let (device, file) = opened.map_err(opening(endpoint))?;
            let opened = local(Arc::new(device));
            let opened = interpret(endpoint, Access::ReadWrite, options, opened).await?;
            Ok(from_device(opened, Some(file)))
        }
        EndpointKind::File(path) => {
            let (device, file) = DestinationFile::open(path, endpoint.name(), options.keep_partial)
                .map_err(opening(endpoint))?;
            Ok(from_device(local(Arc::new(device)), Some(file)))
        }
        _ => {
            let device = open_device(endpoint, Access::ReadWrite, options).await?;
            Ok(from_device(device, None))
        }
    }
}

/// Runs what may take long away from this thread.
pub(super) async fn away<T: Send + 'static>(
    endpoint: &Endpoint,
    call: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let called = tokio::task::spawn_blocking(call).await;
    called
        .map_err(|error| Error::with_source(ErrorKind::Io, error))
        .and_then(|result| result)
        .map_err(opening(endpoint))
}

pub(super) fn local(device: Arc<dyn BlockDevice>) -> OpenDevice {
    OpenDevice {
        device,
        connection: Connection::default(),
    }
}

pub(super) fn opening(endpoint: &Endpoint) -> impl FnOnce(Error) -> Error {
    |error| error.during(Operation::Open).on(endpoint.name())
}

pub(super) fn refused(endpoint: &Endpoint, message: &str) -> Error {
    Error::with_message(ErrorKind::InvalidInput, message)
        .during(Operation::Open)
        .on(endpoint.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_destination_in_a_missing_directory_is_refused_by_the_directorys_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let endpoint = Endpoint::from(directory.path().join("missing/disk.raw"));
        let error = open_destination(&endpoint, &OpenOptions::default())
            .await
            .err()
            .expect("no such directory");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(
            error.to_string().contains("missing does not exist"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn what_can_only_be_one_side_is_refused_as_the_other() {
        let options = OpenOptions::default();
        let null = "null:".parse().expect("an endpoint");
        assert!(open_source(&null, &options).await.is_err());
        let sample = "sample:1M".parse().expect("an endpoint");
        assert!(open_destination(&sample, &options).await.is_err());
    }
}
