//! An image, open: a layer of a chain, whose disk is a [`Disk`].

use std::{convert::Infallible, sync::Arc};

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, Capabilities, Context, DeviceInfo, Error, ErrorKind, Extent,
    Operation, Result,
};

use super::{
    Details,
    contents::Contents,
    read::{PartKind, Reader, Source},
    unpacked::Unpacked,
};
use crate::{
    OpenOptions, Placed, Related,
    disk::{Disk, Layer, Origin, PREFERRED, again, describe},
    host::HostFile,
};

/// An image with its extents.
struct Opened {
    reader: Reader,
    /// The file that was opened.
    file: HostFile,
    details: Arc<Details>,
}

/// Opens the image in `below`: its disk. Other files that it names, extents and parents, are opened by `related`.
///
/// Grains that are stored as they are have a [`mapping`](BlockDevice::mapping) when the file below has one and their
/// table is in memory. Compressed ones are unpacked on threads, several at a time.
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
) -> Result<Arc<dyn crate::Image>> {
    let opened = Opened::open(below, related, options).await;
    let opened = opened.map_err(|error| error.during(Operation::Open))?;
    Ok(Arc::new(Disk::new(opened)))
}

impl Opened {
    async fn open(
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
        // Whoever asks first whether anything can be mapped asks about the beginning. An error there is for whoever
        // reads there.
        reader.bring_first().await;
        let details = Arc::new(details);
        Ok(Self {
            reader,
            file,
            details,
        })
    }

    /// Whether its extents are files of their own.
    fn has_extents(&self) -> bool {
        let mut extents = self.details.extents.iter();
        extents.any(|extent| extent.file.is_some())
    }
}

impl Layer for Opened {
    type Writer = Infallible;

    fn info(&self) -> DeviceInfo {
        let (details, files) = (&self.details, &self.reader.files);
        let grain = details.cluster_size.unwrap_or(PREFERRED);
        let mut info = describe(
            &self.file,
            details.virtual_size,
            grain,
            files,
            self.behind(),
        );
        let mut others = [&self.file].into_iter().chain(self.behind());
        info.rotational |= others.any(|file| file.device().info().rotational);
        if details.extents.iter().any(|extent| extent.is_compressed) {
            info.capabilities -= Capabilities::SPLICE_READ;
        }
        info
    }

    fn details(&self) -> crate::Details {
        crate::Details::Vmdk((*self.details).clone())
    }

    fn behind(&self) -> Option<&HostFile> {
        self.reader.parent.as_ref()
    }

    fn known(&self, range: ByteRange) -> Option<(ByteRange, Origin<'_>)> {
        let run = self.reader.known_run(range)?;
        let origin = match run.source {
            Source::Behind => Origin::Behind,
            Source::Zero => Origin::Zero,
            Source::Packed(..) => Origin::Packed,
            Source::File(part, host) => {
                // The file may end within its last grain.
                let there = self.reader.before_end(part, host, run.range.len());
                let (range, _) = run.range.split_at(there.len());
                let origin = Origin::File(&self.reader.files[part], host);
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
        self.reader.status(range, context, most).await
    }

    async fn placed(&self, range: ByteRange) -> Result<Vec<Placed>> {
        self.reader.placed(range, self.has_extents()).await
    }

    async fn again(&self) -> Result<Self> {
        let file = self.file.again().await?;
        let mut files = Vec::new();
        for own in self.reader.files.iter() {
            files.push(match Arc::ptr_eq(own.device(), self.file.device()) {
                true => file.clone(),
                false => own.again().await?,
            });
        }
        let reader = Reader {
            files: files.into(),
            parent: again(self.behind()).await?,
            ..self.reader.clone()
        };
        let details = Arc::clone(&self.details);
        Ok(Self {
            reader,
            file,
            details,
        })
    }
}
