//! An image that is a table of blocks, open: a layer of a chain, whose disk is a [`Disk`].

use std::{convert::Infallible, slice, sync::Arc};

use blockferry_block::{
    BlockDevice, Buffer, BufferPool, ByteRange, Context, DeviceInfo, Extent, Result,
};

use super::{
    Shape, Table,
    bitmaps::Bitmaps,
    read::{Reader, SCRATCH},
    runs::Source,
};
use crate::{
    Details, Placed,
    disk::{Disk, Layer, Origin, again, describe},
    holes::Holes,
    host::HostFile,
    placed::with_holes,
};

/// How much memory bitmaps take where nobody says, in bytes.
const BITMAP_MEMORY: usize = 16 << 20;

/// The largest block that is preferred for requests, in bytes.
const PREFERRED: u64 = 64 << 10;

/// The disk in an image that is a table of blocks, for reading.
pub(crate) type BlocksDisk = Disk<Opened>;

/// An image that is a table of blocks.
pub(crate) struct Opened {
    reader: Reader,
    /// Its blocks were allocated in advance, so the holes of the file tell where it has data.
    is_sparse: bool,
    details: Details,
}

/// What an image is made of.
pub(crate) struct Parts {
    pub(crate) shape: Shape,
    pub(crate) table: Arc<dyn Table>,
    /// The file that blocks lie in.
    pub(crate) file: Arc<dyn BlockDevice>,
    /// What shows where the image has nothing.
    pub(crate) parent: Option<Arc<dyn BlockDevice>>,
    /// How much memory bitmaps may take, in bytes: 0 stands for 16 MiB.
    pub(crate) bitmap_memory: usize,
    /// Its blocks were allocated in advance: a map looks for holes of the file.
    pub(crate) is_sparse: bool,
    pub(crate) details: Details,
}

impl BlocksDisk {
    /// The disk of an image that is made of `parts`.
    pub(crate) fn of(parts: Parts) -> Self {
        let shape = parts.shape;
        let memory = match parts.bitmap_memory {
            0 => BITMAP_MEMORY,
            memory => memory,
        };
        let bitmaps = Bitmaps::new(shape.bitmap_length(), shape.order, memory);
        Self::new(Opened {
            reader: Reader {
                shape,
                table: parts.table,
                file: HostFile::new(parts.file),
                parent: parts.parent.map(HostFile::new),
                bitmaps: Arc::new(bitmaps),
                holes: Arc::new(Holes::default()),
                scratch: BufferPool::new(SCRATCH, 16),
            },
            is_sparse: parts.is_sparse,
            details: parts.details,
        })
    }
}

impl Layer for Opened {
    type Writer = Infallible;

    fn info(&self) -> DeviceInfo {
        let (file, shape) = (&self.reader.file, self.reader.shape);
        let unit = shape.block.min(PREFERRED);
        describe(file, shape.size, unit, slice::from_ref(file), self.behind())
    }

    fn details(&self) -> Details {
        self.details.clone()
    }

    fn behind(&self) -> Option<&HostFile> {
        self.reader.parent.as_ref()
    }

    fn known(&self, range: ByteRange) -> Option<(ByteRange, Origin<'_>)> {
        let run = self.reader.known_run(range).ok()??;
        let origin = match run.source {
            Source::Behind => Origin::Behind,
            Source::Zero => Origin::Zero,
            Source::Host(host) => Origin::File(&self.reader.file, host),
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
        self.reader.status(range, context, most).await
    }

    async fn placed(&self, range: ByteRange) -> Result<Vec<Placed>> {
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
    }

    async fn again(&self) -> Result<Self> {
        let reader = Reader {
            file: self.reader.file.again().await?,
            parent: again(self.behind()).await?,
            ..self.reader.clone()
        };
        Ok(Self {
            reader,
            is_sparse: self.is_sparse,
            details: self.details.clone(),
        })
    }
}
