//! A bitmap into which another one is merged, of any granularity.

use blockferry_block::{BlockDevice, Buffer, ByteRange, Result};

use super::{BitCluster, Bitmap, Bits, Dirty, room::Room};
use crate::qcow2::{geometry::Geometry, host::HostFile};

/// How many ranges of the source are looked at together: 2 MiB of memory.
const MOST_RANGES: usize = 64 << 10;

/// What is merged: a bitmap of an image, which can be another one with a disk of the same size.
pub(super) struct Source<'a> {
    pub(super) below: &'a dyn BlockDevice,
    pub(super) geometry: Geometry,
    pub(super) bitmap: &'a Bitmap,
}

/// The table of a bitmap that gets more bits. What changes of it lies in new clusters.
pub(super) struct Merged<'a> {
    bitmap: &'a Bitmap,
    file: &'a HostFile,
    geometry: Geometry,
    words: Vec<u64>,
    is_changed: bool,
    /// The cluster that bits are set in, by its number in the table, and how it was.
    open: Option<(usize, Dirty, BitCluster)>,
}

impl<'a> Merged<'a> {
    /// The table `words` of `bitmap`, which is as long as the disk needs.
    pub(super) fn new(
        bitmap: &'a Bitmap,
        file: &'a HostFile,
        geometry: Geometry,
        words: Vec<u64>,
    ) -> Self {
        Self {
            bitmap,
            file,
            geometry,
            words,
            is_changed: false,
            open: None,
        }
    }

    /// Merges all of `source`, and returns the new table: `None` where it says nothing new.
    ///
    /// # Errors
    /// `Corrupt`, `NoSpace`, what reading and writing failed with.
    pub(super) async fn merge(
        mut self,
        source: &Source<'_>,
        room: &mut Room<'_>,
    ) -> Result<Option<Vec<u64>>> {
        let size = self.geometry.size;
        let mut at = 0;
        while at < size {
            let rest = ByteRange::between(at, size);
            let found = source
                .bitmap
                .extents(source.below, source.geometry, rest, MOST_RANGES)
                .await?;
            for extent in found {
                at = extent.range.end();
                if extent.status.0 != 0 {
                    self.set(extent.range, room).await?;
                }
            }
        }
        self.store(room).await?;
        Ok(self.is_changed.then_some(self.words))
    }

    async fn set(&mut self, range: ByteRange, room: &mut Room<'_>) -> Result<()> {
        for piece in range.pieces(self.bitmap.span(self.geometry)) {
            let index = (piece.start() / self.bitmap.span(self.geometry)) as usize;
            if !matches!(&self.open, Some((open, ..)) if *open == index) {
                self.store(room).await?;
                let before = self.load(index).await?;
                let span = self.span_of(index);
                let (granularity, size) = (
                    self.bitmap.details.granularity,
                    self.geometry.cluster_size(),
                );
                let cluster = BitCluster::new(span, granularity, size, before.clone());
                self.open = Some((index, before, cluster));
            }
            if let Some((.., cluster)) = &mut self.open {
                cluster.set(piece);
            }
        }
        Ok(())
    }

    /// The part of the disk that an entry of the table tells of.
    fn span_of(&self, index: usize) -> ByteRange {
        let span = self.bitmap.span(self.geometry);
        let start = (index as u64).saturating_mul(span);
        let end = start.saturating_add(span).min(self.geometry.size);
        ByteRange::between(start, end)
    }

    async fn load(&self, index: usize) -> Result<Dirty> {
        Ok(match Bits::decode(self.words[index], self.geometry)? {
            Bits::Zeroes => Dirty::Nothing,
            Bits::Ones => Dirty::Everything,
            Bits::Host(host) => {
                let buffer = Buffer::zeroed(self.geometry.cluster_size() as usize);
                let name = || "a bitmap".to_owned();
                let bytes = self.file.read_padded(host, buffer, name).await?;
                Dirty::Some(bytes.to_vec())
            }
        })
    }

    /// Gives the cluster that bits were set in its new place.
    async fn store(&mut self, room: &mut Room<'_>) -> Result<()> {
        let Some((index, before, cluster)) = self.open.take() else {
            return Ok(());
        };
        let dirty = cluster.into_dirty();
        if dirty == before {
            return Ok(());
        }
        let bits = match dirty {
            Dirty::Nothing => Bits::Zeroes,
            Dirty::Everything => Bits::Ones,
            Dirty::Some(bytes) => Bits::Host(room.store(&bytes).await?),
        };
        self.words[index] = bits.encode();
        self.is_changed = true;
        Ok(())
    }
}
