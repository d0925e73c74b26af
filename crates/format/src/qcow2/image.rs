//! An image, open: a layer of a chain, whose disk is a [`Disk`].

use std::{
    slice,
    sync::{Arc, OnceLock},
};

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, Context, DeviceInfo, Error, ErrorKind, Extent, Operation,
    Result, WriteFlags, ZeroFlags,
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
    runs::Source,
    snapshots::SnapshotTable,
    tables::Tables,
    unpacked::Unpacked,
    write::Writer,
};
use crate::{
    Placed, Related, RelatedFile,
    disk::{Disk, Layer, Origin, again, describe},
};

/// The disk in a qcow2 image, or in one of its snapshots.
pub(crate) type Image = Disk<Opened>;

/// An image, or one of its snapshots.
pub(crate) struct Opened {
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

/// Opens the image in `below`, as `options` say: its disk, or that of a snapshot. Other files that it names are opened
/// by `related`. Where it is to be written and who wrote it last did not close it, it is mended first, as [`repair`]
/// does.
///
/// Clusters that are stored as they are have a [`mapping`](BlockDevice::mapping) when the file below has one and their
/// table is in memory. An image that was written is to be [closed](crate::Image::close): otherwise it has all that was
/// flushed, and may have lost space.
///
/// # Errors
/// `Corrupt` for what breaks the format's rules; `Unsupported` for an encrypted image; `Incompatible` for
/// features that are not known here; `NotFound` for a snapshot that is not there; `InvalidInput` for a virtual
/// size above the bound; `ReadOnly` for an image that cannot be written and is to be; those of `related`; what
/// reading failed with.
///
/// [`repair`]: super::repair
pub async fn open(
    below: Arc<dyn BlockDevice>,
    related: &dyn Related,
    options: &OpenOptions,
) -> Result<Arc<dyn crate::Image>> {
    Ok(Arc::new(Image::open(below, related, options).await?))
}

impl Image {
    /// As [`open`].
    pub(crate) async fn open(
        below: Arc<dyn BlockDevice>,
        related: &dyn Related,
        options: &OpenOptions,
    ) -> Result<Self> {
        let opened = Opened::open(below, related, options).await;
        Ok(Self::new(
            opened.map_err(|error| error.during(Operation::Open))?,
        ))
    }
}

impl Opened {
    async fn open(
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
        // Whoever asks first whether anything can be mapped asks about the beginning. An error there is for whoever
        // reads there.
        let _ = reader.tables.table(0).await;
        Ok(Self {
            reader,
            file,
            state: Arc::new(state),
        })
    }

    fn bitmap(&self, name: &str) -> Option<&Bitmap> {
        let bitmaps = &self.state.bitmaps;
        bitmaps.iter().find(|bitmap| bitmap.details.name == name)
    }

    /// Whether the file has less space than clusters, so that its holes count, too.
    async fn is_preallocated(&self) -> bool {
        // As qemu has it: the holes of a data file are not looked for.
        if self.reader.geometry.data_file {
            return false;
        }
        if let Some(known) = self.state.preallocated.get() {
            return *known;
        }
        let (file, geometry) = (self.file.device(), self.state.geometry);
        let found = is_preallocated(&**file, geometry, self.state.refcount_table);
        let found = found.await.unwrap_or(false);
        *self.state.preallocated.get_or_init(|| found)
    }
}

impl Layer for Opened {
    type Writer = Writer;

    fn info(&self) -> DeviceInfo {
        let (reader, state) = (&self.reader, &self.state);
        let geometry = reader.geometry;
        let data = slice::from_ref(&reader.data);
        let unit = geometry.cluster_size();
        let mut info = describe(&self.file, geometry.size, unit, data, self.behind());
        let bitmaps = state.bitmaps.iter();
        let bitmaps = bitmaps.map(|bitmap| Context::DirtyBitmap(bitmap.details.name.clone()));
        info.contexts.extend(bitmaps);
        if let Some(writer) = &state.writer {
            writer.describe(&mut info);
        }
        info
    }

    fn details(&self) -> crate::Details {
        crate::Details::Qcow2(Box::new(self.state.details.clone()))
    }

    fn behind(&self) -> Option<&HostFile> {
        self.reader.backing.as_ref()
    }

    fn known(&self, range: ByteRange) -> Option<(ByteRange, Origin<'_>)> {
        let run = self.reader.known_run(range).ok()??;
        let origin = match run.source {
            Source::Behind => Origin::Behind,
            Source::Zero => Origin::Zero,
            Source::Compressed(_) => Origin::Packed,
            Source::Host(host) => {
                // The file may end within its last cluster.
                let there = self.reader.before_end(host, run.range.len());
                let (range, _) = run.range.split_at(there.len());
                let origin = Origin::File(&self.reader.data, host);
                return (!range.is_empty()).then_some((range, origin));
            }
        };
        Some((run.range, origin))
    }

    async fn read(&self, range: ByteRange, buffer: Buffer) -> Result<Buffer> {
        self.reader.read(range, buffer).await
    }

    async fn status(
        &self,
        range: ByteRange,
        context: &Context,
        most: usize,
    ) -> Result<Vec<Extent>> {
        let Context::DirtyBitmap(name) = context else {
            return self.reader.status(range, context, most).await;
        };
        let Some(bitmap) = self.bitmap(name) else {
            return Err(Error::new(ErrorKind::Unsupported));
        };
        let below = &**self.file.device();
        let geometry = self.state.geometry;
        bitmap.extents(below, geometry, range, most).await
    }

    async fn placed(&self, range: ByteRange) -> Result<Vec<Placed>> {
        let sparse = self.is_preallocated().await;
        self.reader.placed(range, sparse).await
    }

    async fn again(&self) -> Result<Self> {
        let file = self.file.again().await?;
        let data = match Arc::ptr_eq(self.file.device(), self.reader.data.device()) {
            true => file.clone(),
            false => self.reader.data.again().await?,
        };
        let reader = Reader {
            tables: self.reader.tables.through(file.clone()),
            data,
            backing: again(self.behind()).await?,
            ..self.reader.clone()
        };
        let state = Arc::clone(&self.state);
        Ok(Self {
            reader,
            file,
            state,
        })
    }

    fn writer(&self) -> Option<&Writer> {
        self.state.writer.as_ref()
    }

    fn enter(&self) -> impl Send {
        self.writer().map(Writer::enter)
    }
}

impl crate::disk::Writer for Writer {
    async fn write(&self, range: ByteRange, data: Buffer, flags: WriteFlags) -> Result<Buffer> {
        self.write(range, data, flags).await
    }

    async fn zero(&self, range: ByteRange, flags: ZeroFlags) -> Result<()> {
        self.zero(range, flags).await
    }

    async fn trim(&self, range: ByteRange, flags: WriteFlags) -> Result<()> {
        self.trim(range, flags).await
    }

    async fn flush(&self) -> Result<()> {
        self.flush().await.map_err(told_of_tables)
    }

    async fn close(&self) -> Result<()> {
        self.close().await.map_err(told_of_tables)
    }
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
    let named = header.backing_file().filter(|_| !options.without_backing);
    let backing = match named {
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

/// An error of a file below, told as one of making things durable: where it was there says nothing to anyone else.
fn told_of_tables(error: Error) -> Error {
    let message = "what was written could not be made durable";
    Error::with_message(error.kind(), message)
        .because(error)
        .during(Operation::Flush)
}

#[cfg(test)]
mod tests;
