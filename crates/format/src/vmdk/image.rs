//! An image as a device.
//!
//! ```text
//!   read ─ Reader ─ runs ─┬─ zeroes
//!                         ├─ the file of an extent  (the caller's buffer goes down as it is)
//!                         ├─ the parent
//!                         └─ Unpacked: compressed grains
//!   extents ─ status      mapping ─ the first run, as far as its table is in memory
//! ```

use std::{fmt, sync::Arc};

use blockferry_block::{
    BlockDevice, BlockLimits, BoxFuture, Buffer, ByteRange, Capabilities, Context, DeviceInfo,
    Error, ErrorKind, Extent, Mapping, Operation, Payload, PipeBuffer, Result, range_of,
    request_range,
};

use super::{
    Details,
    contents::Contents,
    read::{PartKind, Reader, Run, Source},
    status::MOST_EXTENTS,
    unpacked::Unpacked,
};
use crate::{OpenOptions, Placed, Related, host::HostFile};

/// The smallest preferred block, in bytes: that of most devices.
const PREFERRED: u64 = 4096;

/// The disk in a VMDK image.
///
/// Requests of any size at any place run side by side, from any runtime. Grains that are stored as they are have a
/// [`mapping`](BlockDevice::mapping) when the file below has one and their table is in memory. Compressed ones are
/// unpacked on threads, several at a time.
pub struct Image {
    pub(super) info: DeviceInfo,
    pub(super) reader: Reader,
    /// The file that was opened.
    file: HostFile,
    pub(super) details: Arc<Details>,
}

impl Image {
    /// Opens the image in `below`. Other files that it names, extents and parents, are opened by `related`.
    ///
    /// # Errors
    /// `Corrupt` for what breaks the format's rules, a stream that was cut short, and a parent that was changed;
    /// `Unsupported` for kinds of extents that are not read; `Incompatible` for versions and compressions that are not
    /// known; `InvalidInput` for a virtual size above the bound; `ReadOnly` where it is to be written; those of
    /// `related`; what reading failed with.
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
        let refuse = |kind, message| Err(Error::with_message(kind, message));
        if options.writable {
            return refuse(ErrorKind::ReadOnly, "vmdk images are not written in place");
        }
        if options.snapshot.is_some() {
            return refuse(ErrorKind::NotFound, "vmdk images have no snapshots inside");
        }
        let file = HostFile::new(below);
        let contents = Contents::read(&file).await?;
        contents.check_size(options.max_size)?;
        let mut details = contents.details();
        let opened = contents.open_parts(&file, related, options, &mut details);
        let (parts, files) = opened.await?;
        let grains = parts.iter().filter_map(|part| match &part.kind {
            PartKind::Sparse(sparse) => sparse.layout.packed.map(|_| sparse.layout.grain_size()),
            _ => None,
        });
        let reader = Reader {
            unpacked: Arc::new(Unpacked::new(grains.max().unwrap_or(PREFERRED))),
            parts: parts.into(),
            files: files.into(),
            parent: contents.open_parent(related).await?,
        };
        let image = Self::with(reader, file, Arc::new(details));
        // Whoever asks first whether anything can be mapped asks about the beginning. An error there is for whoever
        // reads there.
        image.reader.bring_first().await;
        Ok(image)
    }

    fn with(reader: Reader, file: HostFile, details: Arc<Details>) -> Self {
        let info = info(&reader, &file, &details);
        Self {
            info,
            reader,
            file,
            details,
        }
    }

    /// What the image says of itself.
    #[must_use]
    pub fn details(&self) -> Details {
        (*self.details).clone()
    }

    async fn known(&self, range: ByteRange, context: &Context, most: usize) -> Result<Vec<Extent>> {
        self.info.check(Operation::Extents, range)?;
        if !self.info.contexts.contains(context) {
            let message = format!("there is no {context} here");
            let error = Error::with_message(ErrorKind::Unsupported, message);
            return Err(told(Operation::Extents, range)(error));
        }
        let known = self.reader.status(range, context, most).await;
        known.map_err(told(Operation::Extents, range))
    }

    /// The first run of `range` as far as that is known, cut at the end of what its file has.
    fn plain_run(&self, range: ByteRange) -> Option<Run> {
        let run = self.reader.known_run(range)?;
        let Source::File(part, host) = run.source else {
            return Some(run);
        };
        let there = self.reader.before_end(part, host, run.range.len());
        let (range, _) = run.range.split_at(there.len());
        (!range.is_empty()).then_some(Run { range, ..run })
    }
}

/// What the device says of itself.
fn info(reader: &Reader, file: &HostFile, details: &Details) -> DeviceInfo {
    let mut info = DeviceInfo::new(Arc::clone(&file.device().info().name), details.virtual_size);
    let grain = details.cluster_size.unwrap_or(PREFERRED).max(PREFERRED);
    info.limits = BlockLimits {
        preferred: u32::try_from(grain).unwrap_or(u32::MAX >> 1),
        ..BlockLimits::default()
    };
    let files = || reader.files.iter().chain(&reader.parent).chain([file]);
    info.rotational = files().any(|file| file.device().info().rotational);
    info.capabilities = Capabilities::MULTI_CONN;
    let is_plain = details.extents.iter().all(|extent| !extent.is_compressed);
    let splices = |file: &HostFile| file.device().info().can(Capabilities::SPLICE_READ);
    if is_plain && reader.files.iter().all(splices) {
        info.capabilities |= Capabilities::SPLICE_READ;
    }
    if files().any(|file| file.device().info().can(Capabilities::REOPEN)) {
        info.capabilities |= Capabilities::REOPEN;
    }
    info.contexts = vec![Context::Allocation, Context::AllocationDepth];
    info
}

/// An error of a file below, told as one of the request.
pub(super) fn told(operation: Operation, range: ByteRange) -> impl FnOnce(Error) -> Error {
    move |error| {
        let error = error.during(operation);
        error.moved_to(range.start(), range.len())
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("info", &self.info)
            .field("details", &self.details)
            .finish_non_exhaustive()
    }
}

impl crate::Image for Image {
    fn details(&self) -> crate::Details {
        crate::Details::Vmdk(self.details())
    }

    fn placed(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Placed>>> {
        Box::pin(self.find_places(range))
    }
}

impl BlockDevice for Image {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Read, offset, &buffer)?;
            self.info.check(Operation::Read, range)?;
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
            self.info.check(Operation::Read, range)?;
            if let Some(run) = self.plain_run(range)
                && run.range == range
                && let Source::File(part, host) = run.source
            {
                let file = &self.reader.files[part];
                if file.takes(ByteRange::between(host, host + range.len())) {
                    let read = file.device().read_piped(host, length, pipe).await;
                    return read.map_err(told(Operation::Read, range));
                }
            }
            drop(pipe);
            let buffer = self.read(offset, Buffer::zeroed(length)).await?;
            Ok(Payload::Memory(buffer))
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
        match (run.source, &self.reader.parent) {
            (Source::File(part, host), _) => {
                let place = ByteRange::between(host, host + length);
                self.reader.files[part].device().mapping(place)
            }
            (Source::Behind, Some(parent)) if run.range.start() < parent.end() => {
                let disk = ByteRange::between(0, parent.end());
                parent.device().mapping(run.range.intersection(disk))
            }
            (Source::Zero | Source::Behind, _) => Mapping::Zero { length },
            (Source::Packed(..), _) => Mapping::Opaque,
        }
    }

    fn reopen(&self) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        Box::pin(async move {
            if !self.info.can(Capabilities::REOPEN) {
                return Err(Error::new(ErrorKind::Unsupported).during(Operation::Open));
            }
            let file = again(&self.file).await?;
            let mut files = Vec::new();
            for own in self.reader.files.iter() {
                files.push(match Arc::ptr_eq(own.device(), self.file.device()) {
                    true => file.clone(),
                    false => again(own).await?,
                });
            }
            let parent = match &self.reader.parent {
                Some(parent) => Some(again(parent).await?),
                None => None,
            };
            let reader = Reader {
                files: files.into(),
                parent,
                ..self.reader.clone()
            };
            let image = Self::with(reader, file, Arc::clone(&self.details));
            Ok(Arc::new(image) as Arc<dyn BlockDevice>)
        })
    }
}

/// Another handle to a file, or the same for what needs no other.
async fn again(file: &HostFile) -> Result<HostFile> {
    let device = file.device();
    if !device.info().can(Capabilities::REOPEN) {
        return Ok(file.clone());
    }
    Ok(file.through(device.reopen().await?))
}
