//! Persistent bitmaps of a new image (specification, "Bitmaps"): what another device says is dirty, under the same
//! name.

use std::sync::{Arc, MutexGuard, PoisonError};

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, Context, Error, ErrorKind, Operation, Result,
};

use super::{NewImage, finish::stored_size, refcounts::Counting};
use crate::qcow2::{
    BitmapDetails,
    bitmaps::{BitCluster, Bitmap, Bits, Dirty, MOST_ENTRIES, encode_directory},
    header::{BitmapsExtension, LONGEST_NAME},
};

/// A bitmap that the image is to have.
pub(super) struct NewBitmap {
    details: BitmapDetails,
    /// Who knows what is dirty.
    source: Arc<dyn BlockDevice>,
}

impl NewImage {
    /// As [`NewImage::add_bitmap`](crate::NewImage::add_bitmap).
    pub(super) fn note_bitmap(
        &self,
        details: BitmapDetails,
        source: Arc<dyn BlockDevice>,
    ) -> Result<()> {
        let refuse = |message: &str| Err(Error::with_message(ErrorKind::InvalidInput, message));
        if self.options.version < 3 {
            return refuse("version 2 (compat=0.10) knows no bitmaps");
        }
        if details.in_use {
            return refuse("a bitmap that was in use does not say all that was written");
        }
        // It is longer than it was where it is no text there: as text it takes up to three times as many bytes.
        if !(1..=LONGEST_NAME as usize).contains(&details.name.len()) {
            return refuse("the name of a bitmap has 1 to 1023 bytes");
        }
        let context = Context::DirtyBitmap(details.name.clone());
        if !source.info().contexts.contains(&context) {
            return refuse("the source has no such bitmap");
        }
        let mut bitmaps = self.bitmaps();
        if bitmaps
            .iter()
            .any(|known| known.details.name == details.name)
        {
            return refuse("the image has a bitmap of that name");
        }
        bitmaps.push(NewBitmap { details, source });
        Ok(())
    }

    fn bitmaps(&self) -> MutexGuard<'_, Vec<NewBitmap>> {
        self.bitmaps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the bitmaps and their directory, if there are any.
    pub(super) async fn write_bitmaps(
        &self,
        counting: &mut Counting<'_>,
    ) -> Result<Option<BitmapsExtension>> {
        let wanted: Vec<_> = {
            let bitmaps = self.bitmaps();
            let wanted = bitmaps.iter();
            wanted
                .map(|bitmap| (bitmap.details.clone(), Arc::clone(&bitmap.source)))
                .collect()
        };
        if wanted.is_empty() {
            return Ok(None);
        }
        let mut bitmaps = Vec::with_capacity(wanted.len());
        for (details, source) in wanted {
            bitmaps.push(self.write_bitmap(details, &*source, counting).await?);
        }
        let directory = encode_directory(&bitmaps);
        let place = self.store(&directory, counting).await?;
        Ok(Some(BitmapsExtension {
            count: bitmaps.len() as u32,
            directory: ByteRange::between(place, place + directory.len() as u64),
        }))
    }

    /// Writes one bitmap, a cluster of it at a time, and its table.
    async fn write_bitmap(
        &self,
        details: BitmapDetails,
        source: &dyn BlockDevice,
        counting: &mut Counting<'_>,
    ) -> Result<Bitmap> {
        let context = Context::DirtyBitmap(details.name.clone());
        let mut bitmap = Bitmap {
            details,
            is_known: true,
            table: ByteRange::default(),
            flags: None,
            entry: 0,
        };
        let geometry = self.options.geometry(stored_size(self.size()));
        let entries = bitmap.entries_for(geometry);
        if entries > MOST_ENTRIES {
            let message = "the disk is too large for a bitmap of this granularity";
            return Err(Error::with_message(ErrorKind::InvalidInput, message));
        }
        let disk = ByteRange::between(0, geometry.size);
        let mut table = Vec::new();
        for part in disk.pieces(bitmap.span(geometry)) {
            let granularity = bitmap.details.granularity;
            let mut bits = BitCluster::new(part, granularity, self.cluster_size(), Dirty::Nothing);
            fill(&mut bits, source, &context).await?;
            let entry = match bits.into_dirty() {
                Dirty::Nothing => Bits::Zeroes,
                Dirty::Everything => Bits::Ones,
                Dirty::Some(bytes) => Bits::Host(self.store(&bytes, counting).await?),
            };
            table.extend(entry.encode().to_be_bytes());
        }
        let place = self.store(&table, counting).await?;
        bitmap.table = ByteRange::between(place, place + table.len() as u64);
        Ok(bitmap)
    }

    /// Writes `bytes` to new clusters and says where they are.
    async fn store(&self, bytes: &[u8], counting: &mut Counting<'_>) -> Result<u64> {
        let cluster = self.cluster_size();
        let count = (bytes.len() as u64).div_ceil(cluster);
        let start = self.places.take(count)?;
        let place = ByteRange::between(start, start + count * cluster);
        counting.add(place);
        self.file.check_room(place.end())?;
        for (piece, bytes) in place.pieces(cluster).zip(bytes.chunks(cluster as usize)) {
            let mut data = Buffer::zeroed(cluster as usize);
            data[..bytes.len()].copy_from_slice(bytes);
            self.file.write_blocks(piece.start(), data).await?;
        }
        Ok(start)
    }
}

/// Sets the bits of what `source` says is dirty.
async fn fill(bits: &mut BitCluster, source: &dyn BlockDevice, context: &Context) -> Result<()> {
    let known = ByteRange::between(0, source.info().size).intersection(bits.range());
    let mut offset = known.start();
    while offset < known.end() {
        let rest = ByteRange::between(offset, known.end());
        let extents = source.extents(rest, context).await?;
        let mut end = offset;
        for extent in extents {
            let range = extent.range.intersection(rest);
            end = end.max(range.end());
            if extent.status.0 & DIRTY != 0 {
                bits.set(range);
            }
        }
        if end == offset {
            let message = "the source does not say what is dirty";
            let error = Error::with_message(ErrorKind::Io, message);
            return Err(error
                .during(Operation::Extents)
                .at(rest.start(), rest.len()));
        }
        offset = end;
    }
    Ok(())
}

/// The bit of a status that says that a range is dirty (NBD's `qemu:dirty-bitmap:`).
const DIRTY: u64 = 1;

#[cfg(test)]
mod tests {
    use blockferry_block::{MemoryDevice, testing::FaultyDevice};

    use super::*;
    use crate::qcow2::CreateOptions;

    #[tokio::test]
    async fn a_name_that_is_too_long_for_readers_is_refused() {
        let below = Arc::new(MemoryDevice::new(0).growable());
        let options = CreateOptions {
            size: Some(1 << 20),
            ..Default::default()
        };
        let image = crate::qcow2::create(below, options).await.expect("begun");
        for (length, fits) in [(0, false), (341, true), (342, false)] {
            let name = "\u{fffd}".repeat(length);
            let source = FaultyDevice::new(Arc::new(MemoryDevice::new(1 << 20)));
            let source = source.with_info(|info| {
                info.contexts.push(Context::DirtyBitmap(name.clone()));
            });
            let details = BitmapDetails {
                name,
                granularity: 65536,
                in_use: false,
                auto: true,
            };
            let added = image.add_bitmap(details, Arc::new(source));
            assert_eq!(added.is_ok(), fits, "{length}");
        }
    }
}
