//! The disk of an image as a device.

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, BufferPool, ByteRange, Capabilities, Context, DeviceInfo,
    Error, ErrorKind, Extent, Mapping, Operation, Payload, PipeBuffer, Result, range_of,
    request_range,
};

use super::{
    Shape, Table,
    bitmaps::Bitmaps,
    read::{Reader, SCRATCH},
    runs::{Run, Source},
    status::MOST_EXTENTS,
};
use crate::{Placed, holes::Holes, host::HostFile, interpreted::Placing, placed::with_holes};

/// How much memory bitmaps take where nobody says, in bytes.
const BITMAP_MEMORY: usize = 16 << 20;

/// The largest block that is preferred for requests, in bytes.
const PREFERRED: u64 = 64 << 10;

/// The disk in an image that is a table of blocks, for reading.
///
/// Requests of any size at any place run side by side, from any runtime. What lies in the file has a
/// [`mapping`](BlockDevice::mapping) when the file has one.
pub(crate) struct Disk {
    info: DeviceInfo,
    reader: Reader,
    /// Its blocks were allocated in advance, so the holes of the file tell where it has data.
    is_sparse: bool,
}

/// What a disk is made of.
pub(crate) struct Parts {
    pub(crate) shape: Shape,
    pub(crate) table: Arc<dyn Table>,
    /// The file that blocks lie in.
    pub(crate) file: Arc<dyn BlockDevice>,
    /// What shows where the image has nothing.
    pub(crate) parent: Option<Arc<dyn BlockDevice>>,
    /// How much memory bitmaps may take, in bytes: 0 stands for 16 MiB.
    pub(crate) bitmap_memory: usize,
}

impl Disk {
    pub(crate) fn new(parts: Parts) -> Self {
        let shape = parts.shape;
        let memory = match parts.bitmap_memory {
            0 => BITMAP_MEMORY,
            memory => memory,
        };
        let bitmaps = Bitmaps::new(shape.bitmap_length(), shape.order, memory);
        Self::with(Reader {
            shape,
            table: parts.table,
            file: HostFile::new(parts.file),
            parent: parts.parent.map(HostFile::new),
            bitmaps: Arc::new(bitmaps),
            holes: Arc::new(Holes::default()),
            scratch: BufferPool::new(SCRATCH, 16),
        })
    }

    fn with(reader: Reader) -> Self {
        let file = reader.file.device().info();
        let mut info = DeviceInfo::new(Arc::clone(&file.name), reader.shape.size);
        info.limits.preferred = reader.shape.block.clamp(4096, PREFERRED) as u32;
        info.rotational = file.rotational;
        info.capabilities =
            Capabilities::MULTI_CONN | (file.capabilities & Capabilities::SPLICE_READ);
        let files = [Some(&reader.file), reader.parent.as_ref()];
        let reopens = |file: &HostFile| file.device().info().can(Capabilities::REOPEN);
        if files.iter().any(|file| file.is_some_and(reopens)) {
            info.capabilities |= Capabilities::REOPEN;
        }
        info.contexts = vec![Context::Allocation, Context::AllocationDepth];
        let is_sparse = false;
        Self {
            info,
            reader,
            is_sparse,
        }
    }

    /// The same, whose blocks were allocated in advance, if so: a map looks for holes of the file.
    pub(crate) fn sparse(self, is_sparse: bool) -> Self {
        Self { is_sparse, ..self }
    }

    async fn known(&self, range: ByteRange, context: &Context, most: usize) -> Result<Vec<Extent>> {
        self.info.check(Operation::Extents, range)?;
        let known = match context {
            Context::Allocation | Context::AllocationDepth => {
                self.reader.status(range, context, most).await
            }
            _ => {
                let message = format!("there is no {context} here");
                Err(Error::with_message(ErrorKind::Unsupported, message))
            }
        };
        known.map_err(told(Operation::Extents, range))
    }

    fn known_run(&self, range: ByteRange) -> Option<Run> {
        self.reader.known_run(range).ok()?
    }
}

/// An error of a file below, told as one of the request.
fn told(operation: Operation, range: ByteRange) -> impl FnOnce(Error) -> Error {
    move |error| {
        let error = error.during(operation);
        error.moved_to(range.start(), range.len())
    }
}

impl Placing for Disk {
    fn placed(&self, range: ByteRange) -> BoxFuture<'_, Result<Vec<Placed>>> {
        Box::pin(async move {
            self.info.check(Operation::Extents, range)?;
            let placed = async {
                let placed = self.reader.placed(range).await?;
                if !self.is_sparse {
                    return Ok(placed);
                }
                let mut refined = Vec::with_capacity(placed.len());
                for part in placed {
                    let file = &**self.reader.file.device();
                    with_holes(part, file, &mut refined).await?;
                }
                Ok(refined)
            };
            placed.await.map_err(told(Operation::Extents, range))
        })
    }
}

impl BlockDevice for Disk {
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
            let file = &self.reader.file;
            if let Some(run) = self.known_run(range)
                && run.range == range
                && let Source::Host(host) = run.source
                && file.takes(ByteRange::between(host, host + range.len()))
            {
                let read = file.device().read_piped(host, length, pipe).await;
                return read.map_err(told(Operation::Read, range));
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
        let Some(run) = self.known_run(range) else {
            return Mapping::Opaque;
        };
        let length = run.range.len();
        match (run.source, &self.reader.parent) {
            (Source::Host(host), _) => {
                let place = ByteRange::between(host, host + length);
                self.reader.file.device().mapping(place)
            }
            (Source::Behind, Some(parent)) if run.range.start() < parent.end() => {
                let disk = ByteRange::between(0, parent.end());
                parent.device().mapping(run.range.intersection(disk))
            }
            (Source::Zero | Source::Behind, _) => Mapping::Zero { length },
        }
    }

    fn reopen(&self) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        Box::pin(async move {
            if !self.info.can(Capabilities::REOPEN) {
                return Err(Error::new(ErrorKind::Unsupported).during(Operation::Open));
            }
            let parent = match &self.reader.parent {
                Some(parent) => Some(parent.again().await?),
                None => None,
            };
            let reader = Reader {
                file: self.reader.file.again().await?,
                parent,
                ..self.reader.clone()
            };
            Ok(Arc::new(Self::with(reader)) as Arc<dyn BlockDevice>)
        })
    }
}
