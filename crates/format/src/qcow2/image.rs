//! An image as a device.
//!
//! ```text
//!   read ─ Reader ─ runs ─┬─ zeroes
//!                         ├─ the file below, or the data file  (the caller's buffer goes down as it is)
//!                         ├─ the backing file
//!                         └─ Unpacked: compressed clusters
//!   extents ─ status (and the holes of the file)      mapping ─ the first run, as far as its table is in memory
//! ```

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use blockferry_block::{
    BlockDevice, BlockLimits, BoxFuture, Buffer, ByteRange, Capabilities, Context, DeviceInfo,
    Error, ErrorKind, Extent, Mapping, Operation, Payload, PipeBuffer, Result, WriteFlags,
    ZeroFlags, range_of, request_range,
};

use super::{
    Details, OpenOptions,
    bitmaps::{Bitmap, read_directory},
    check::mend_dirty,
    geometry::Geometry,
    header::Header,
    host::HostFile,
    placed::is_preallocated,
    read::Reader,
    runs::{Run, Source},
    snapshots::SnapshotTable,
    status::MOST_EXTENTS,
    tables::Tables,
    unpacked::Unpacked,
    write::Writer,
};
use crate::{Placed, Related, RelatedFile};

/// The smallest preferred block, in bytes: that of most devices.
const PREFERRED: u64 = 4096;

/// The disk in a qcow2 image, or in one of its snapshots.
///
/// Requests of any size at any place run side by side, from any runtime. Clusters that are stored as they are have a
/// [`mapping`](BlockDevice::mapping) when the file below has one and their table is in memory.
pub struct Image {
    info: DeviceInfo,
    reader: Reader,
    /// The file with the tables.
    file: HostFile,
    state: Arc<State>,
}

/// What all handles share.
struct State {
    details: Details,
    /// Those that are read, by their names.
    bitmaps: Vec<Bitmap>,
    /// Of the disk as it is now, to which bitmaps belong.
    geometry: Geometry,
    /// Where the refcounts are found.
    refcount_table: ByteRange,
    /// Whether the file has less space than clusters, once somebody asked.
    preallocated: OnceLock<bool>,
    /// Of an image that is written.
    writer: Option<Writer>,
}

impl Image {
    /// Opens the image in `below`. Other files that it names are opened by `related`. Where it is to be written and who
    /// wrote it last did not close it, it is mended first, as [`repair`](super::repair) does.
    ///
    /// # Errors
    /// `Corrupt` for what breaks the format's rules; `Unsupported` for an encrypted image; `Incompatible` for
    /// features that are not known here; `NotFound` for a snapshot that is not there; `InvalidInput` for a virtual
    /// size above the bound; `ReadOnly` for an image that cannot be written and is to be; those of `related`; what
    /// reading failed with.
    pub async fn open(
        below: Arc<dyn BlockDevice>,
        related: &dyn Related,
        options: &OpenOptions,
    ) -> Result<Self> {
        let opened = Self::open_inside(below, related, options).await;
        opened.map_err(|error| error.during(Operation::Open))
    }

    async fn open_inside(
        below: Arc<dyn BlockDevice>,
        related: &dyn Related,
        options: &OpenOptions,
    ) -> Result<Self> {
        let mut header = Header::read(&*below).await?;
        let file = HostFile::new(below);
        let below = Arc::clone(file.device());
        if options.writable && options.snapshot.is_none() {
            header = mend_dirty(&file, header).await?;
        }
        let snapshots = SnapshotTable::read(&*below, &header).await?;
        let mut bitmaps = read_directory(&*below, &header).await?;
        let details = Details::new(&header, &snapshots.snapshots, &bitmaps);
        let (mut geometry, mut l1) = (header.geometry, header.l1);
        if let Some(wanted) = &options.snapshot {
            let snapshot = snapshots.find(wanted)?;
            (geometry, l1) = (snapshot.geometry(geometry)?, snapshot.l1);
            bitmaps.clear();
        }
        options.check_size(geometry.size)?;
        let shown = Header {
            geometry,
            l1,
            ..header.clone()
        };
        let reader = open_reader(&file, &shown, related, options).await?;
        let writer = match (options.writable, &options.snapshot) {
            (false, _) => None,
            (true, None) => Some(Writer::open(&file, &reader, &header, &bitmaps).await?),
            (true, Some(_)) => {
                let message = "a snapshot cannot be written";
                return Err(Error::with_message(ErrorKind::ReadOnly, message));
            }
        };
        // What is written is not in those that are to have it.
        let is_kept = |bitmap: &Bitmap| writer.is_none() || bitmap.marked_in_use().is_none();
        bitmaps.retain(|bitmap| bitmap.is_consistent() && is_kept(bitmap));
        let state = State {
            details,
            bitmaps,
            geometry: header.geometry,
            refcount_table: header.refcount_table,
            preallocated: OnceLock::new(),
            writer,
        };
        let image = Self::with(reader, file, Arc::new(state));
        // Whoever asks first whether anything can be mapped asks about the beginning. An error there is for whoever
        // reads there.
        let _ = image.reader.tables.table(0).await;
        Ok(image)
    }

    fn with(reader: Reader, file: HostFile, state: Arc<State>) -> Self {
        let info = info(&reader, &file, &state);
        Self {
            info,
            reader,
            file,
            state,
        }
    }

    /// What the image says of itself.
    #[must_use]
    pub fn details(&self) -> Details {
        self.state.details.clone()
    }

    /// Puts everything in its place. Nothing is to be done for an image that was only read; one that was written and
    /// is not closed has all that was flushed, and may have lost space.
    ///
    /// # Errors
    /// None of an image that was only read; what writing the tables failed with.
    pub async fn close(&self) -> Result<()> {
        match &self.state.writer {
            Some(writer) => writer.close().await.map_err(told_of_tables),
            None => Ok(()),
        }
    }

    /// What writes, after a check that a request lies on the disk.
    fn writer(&self, operation: Operation, range: ByteRange) -> Result<&Writer> {
        self.check(operation, range)?;
        self.state.writer.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::ReadOnly)
                .during(operation)
                .at(range.start(), range.len())
        })
    }

    /// Checks that a request lies on the disk.
    fn check(&self, operation: Operation, range: ByteRange) -> Result<()> {
        self.info.check(operation, range)
    }

    async fn known(&self, range: ByteRange, context: &Context, most: usize) -> Result<Vec<Extent>> {
        self.check(Operation::Extents, range)?;
        let known = match context {
            Context::Allocation | Context::AllocationDepth => {
                self.reader.status(range, context, most).await
            }
            Context::DirtyBitmap(name) => match self.bitmap(name) {
                Some(bitmap) => {
                    let below = &**self.file.device();
                    let geometry = self.state.geometry;
                    bitmap.extents(below, geometry, range, most).await
                }
                None => Err(no_such_context(context)),
            },
            _ => Err(no_such_context(context)),
        };
        known.map_err(told(Operation::Extents, range))
    }

    /// What the image itself has of `range`, and where.
    async fn places(&self, range: ByteRange) -> Result<Vec<Placed>> {
        self.check(Operation::Extents, range)?;
        let placed = async {
            let sparse = match self.state.preallocated.get() {
                Some(known) => *known,
                // As qemu has it: the holes of a data file are not looked for.
                None if self.reader.geometry.data_file => false,
                None => {
                    let (file, geometry) = (self.file.device(), self.state.geometry);
                    let found = is_preallocated(&**file, geometry, self.state.refcount_table);
                    let found = found.await.unwrap_or(false);
                    *self.state.preallocated.get_or_init(|| found)
                }
            };
            self.reader.placed(range, sparse).await
        };
        placed.await.map_err(told(Operation::Extents, range))
    }

    fn bitmap(&self, name: &str) -> Option<&Bitmap> {
        let bitmaps = &self.state.bitmaps;
        bitmaps.iter().find(|bitmap| bitmap.details.name == name)
    }

    /// The first run of `range` as far as that is known, cut at the end of what the data file has.
    fn plain_run(&self, range: ByteRange) -> Option<Run> {
        let run = self.reader.known_run(range).ok()??;
        let Source::Host(host) = run.source else {
            return Some(run);
        };
        let length = self.reader.before_end(host, run.range.len()).len();
        let (range, _) = run.range.split_at(length);
        (!range.is_empty()).then_some(Run { range, ..run })
    }
}

/// What the device says of itself.
fn info(reader: &Reader, file: &HostFile, state: &State) -> DeviceInfo {
    let geometry = reader.geometry;
    let (data, below) = (reader.data.device().info(), file.device().info());
    let mut info = DeviceInfo::new(Arc::clone(&below.name), geometry.size);
    info.limits = BlockLimits {
        preferred: geometry.cluster_size().max(PREFERRED) as u32,
        ..BlockLimits::default()
    };
    info.rotational = data.rotational;
    info.capabilities = Capabilities::MULTI_CONN | (data.capabilities & Capabilities::SPLICE_READ);
    let mut files = [Some(&reader.data), Some(file), reader.backing.as_ref()].into_iter();
    let reopens = |file: &HostFile| file.device().info().can(Capabilities::REOPEN);
    if files.any(|file| file.is_some_and(reopens)) {
        info.capabilities |= Capabilities::REOPEN;
    }
    info.contexts = vec![Context::Allocation, Context::AllocationDepth];
    let bitmaps = state.bitmaps.iter();
    let bitmaps = bitmaps.map(|bitmap| Context::DirtyBitmap(bitmap.details.name.clone()));
    info.contexts.extend(bitmaps);
    if let Some(writer) = &state.writer {
        writer.describe(&mut info);
    }
    info
}

/// What reads the disk in `file` as the header says it, which need not be what the file says.
///
/// # Errors
/// Those of `related`; `Corrupt`, what reading failed with.
pub(crate) async fn open_reader(
    file: &HostFile,
    header: &Header,
    related: &dyn Related,
    options: &OpenOptions,
) -> Result<Reader> {
    let (geometry, l1) = (header.geometry, header.l1);
    let data = match header.external_data() {
        Some(named) => HostFile::new(open_related(related, &named, options.writable).await?),
        None => file.clone(),
    };
    let backing = match header.backing_file() {
        Some(named) => Some(HostFile::new(open_related(related, &named, false).await?)),
        None => None,
    };
    Ok(Reader {
        geometry,
        tables: Tables::open(file.clone(), geometry, l1, options.table_memory).await?,
        data,
        backing,
        unpacked: Arc::new(Unpacked::new(geometry, header.compression)),
        // As qemu has it: the holes of a data file are not looked for.
        holes: (!options.writable && !geometry.data_file).then(Arc::default),
    })
}

async fn open_related(
    related: &dyn Related,
    file: &RelatedFile,
    writable: bool,
) -> Result<Arc<dyn BlockDevice>> {
    Ok(related.open(file, writable).await?.device)
}

fn no_such_context(context: &Context) -> Error {
    Error::with_message(
        ErrorKind::Unsupported,
        format!("there is no {context} here"),
    )
}

/// An error of a file below, told as one of the request.
fn told(operation: Operation, range: ByteRange) -> impl FnOnce(Error) -> Error {
    move |error| {
        let error = error.during(operation);
        error.moved_to(range.start(), range.len())
    }
}

/// An error of a file below, told as one of making things durable: where it was there says nothing to anyone else.
fn told_of_tables(error: Error) -> Error {
    let message = "what was written could not be made durable";
    Error::with_message(error.kind(), message)
        .because(error)
        .during(Operation::Flush)
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("info", &self.info)
            .field("details", &self.state.details)
            .finish_non_exhaustive()
    }
}

impl crate::Image for Image {
    fn details(&self) -> crate::Details {
        crate::Details::Qcow2(Box::new(self.details()))
    }

    fn placed(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Placed>>> {
        Box::pin(self.places(range))
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.close())
    }
}

impl BlockDevice for Image {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Read, offset, &buffer)?;
            self.check(Operation::Read, range)?;
            let _pass = self.state.writer.as_ref().map(Writer::enter);
            let read = self.reader.read(range, buffer).await;
            read.map_err(told(Operation::Read, range))
        })
    }

    fn read_piped(
        &self,
        offset: u64,
        length: usize,
        pipe: PipeBuffer,
    ) -> BoxFuture<'_, Result<Payload>> {
        Box::pin(async move {
            let range = range_of(Operation::Read, offset, length as u64)?;
            self.check(Operation::Read, range)?;
            let _pass = self.state.writer.as_ref().map(Writer::enter);
            let data = &self.reader.data;
            if let Some(run) = self.plain_run(range)
                && run.range == range
                && let Source::Host(host) = run.source
                && data.takes(ByteRange::between(host, host + range.len()))
            {
                let read = data.device().read_piped(host, length, pipe).await;
                return read.map_err(told(Operation::Read, range));
            }
            drop(pipe);
            let buffer = self.read(offset, Buffer::zeroed(length)).await?;
            Ok(Payload::Memory(buffer))
        })
    }

    fn write(&self, offset: u64, data: Buffer, flags: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Write, offset, &data)?;
            let writer = self.writer(Operation::Write, range)?;
            let written = writer.write(range, data, flags).await;
            written.map_err(told(Operation::Write, range))
        })
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let writer = self.writer(Operation::Zero, range)?;
            let zeroed = writer.zero(range, flags).await;
            zeroed.map_err(told(Operation::Zero, range))
        })
    }

    fn trim(&self, range: ByteRange, flags: WriteFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let writer = self.writer(Operation::Trim, range)?;
            let trimmed = writer.trim(range, flags).await;
            trimmed.map_err(told(Operation::Trim, range))
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let Some(writer) = &self.state.writer else {
                return Ok(());
            };
            let flushed = writer.flush().await;
            flushed.map_err(told_of_tables)
        })
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        Box::pin(self.known(range, context, MOST_EXTENTS))
    }

    fn first_extent<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        Box::pin(self.known(range, context, 1))
    }

    fn mapping(&self, range: ByteRange) -> Mapping<'_> {
        let range = range.intersection(ByteRange::between(0, self.info.size));
        let Some(run) = self.plain_run(range) else {
            return Mapping::Opaque;
        };
        let length = run.range.len();
        match (run.source, &self.reader.backing) {
            (Source::Host(host), _) => {
                let place = ByteRange::between(host, host + length);
                self.reader.data.device().mapping(place)
            }
            (Source::Behind, Some(backing)) if run.range.start() < backing.end() => {
                let disk = ByteRange::between(0, backing.end());
                backing.device().mapping(run.range.intersection(disk))
            }
            (Source::Zero | Source::Behind, _) => Mapping::Zero { length },
            (Source::Compressed(_), _) => Mapping::Opaque,
        }
    }

    fn reopen(&self) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        Box::pin(async move {
            if !self.info.can(Capabilities::REOPEN) {
                return Err(Error::new(ErrorKind::Unsupported).during(Operation::Open));
            }
            let file = self.file.again().await?;
            let data = match Arc::ptr_eq(self.file.device(), self.reader.data.device()) {
                true => file.clone(),
                false => self.reader.data.again().await?,
            };
            let backing = match &self.reader.backing {
                Some(backing) => Some(backing.again().await?),
                None => None,
            };
            let reader = Reader {
                tables: self.reader.tables.through(file.clone()),
                data,
                backing,
                ..self.reader.clone()
            };
            let image = Self::with(reader, file, Arc::clone(&self.state));
            Ok(Arc::new(image) as Arc<dyn BlockDevice>)
        })
    }
}

#[cfg(test)]
mod tests;
