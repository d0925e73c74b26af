//! The end of a new image: tables, then what counts references, and the header when all else is durable.

use blockferry_block::{
    Buffer, ByteRange, Capabilities, Error, ErrorKind, Operation, Result, ZeroFlags,
};

use super::{NewImage, packer::ClusterPacker, refcounts::Counting, write::place_of};
use crate::below::Below;
use crate::qcow2::{
    CreateOptions, Preallocation,
    entry::{COPIED, Cluster, Entry, SECTOR},
    geometry::Geometry,
    header::{Autoclear, Compatible, Compression, Header, Incompatible},
};

/// How much of a table is written in one request, in bytes, about.
pub(super) const WRITTEN_AT_ONCE: u64 = 1 << 20;

impl NewImage {
    /// Writes everything but the header, makes it durable, then the header, durably.
    pub(super) async fn write_end(&self) -> Result<()> {
        let size = self.size();
        if let Some(pipeline) = &self.pipeline {
            pipeline.drain(&self.file).await?;
            pipeline.with_packer(ClusterPacker::end)?;
        }
        self.progress.doubt.check(size)?;
        let tables = match self.fixed_place() {
            Some(first) => {
                self.preallocate_fixed(first).await?;
                self.write_fixed_tables(first).await?
            }
            None => {
                if self.options.preallocation != Preallocation::Off {
                    self.preallocate_places().await?;
                }
                self.map.write_all().await?
            }
        };
        let l1 = self.write_l1(&tables).await?;
        let mut counting = Counting::new(self);
        counting.add_tables(&tables);
        counting.add(l1);
        let bitmaps = self.write_bitmaps(&mut counting).await?;
        let refcount_table = counting.write().await?;
        let end = self.places.end();
        self.file.set_size(end).await?;
        if let Some(data) = &self.data_file {
            set_disk_size(data, size).await?;
            data.flush().await?;
        }
        self.file.flush().await?;

        let geometry = self.options.geometry(stored_size(size));
        let mut header = header(&self.options, geometry, l1, refcount_table);
        header.bitmaps = bitmaps;
        header.autoclear.set(Autoclear::BITMAPS, bitmaps.is_some());
        let bytes = header.encode()?;
        let length = (bytes.len() as u64).next_multiple_of(self.file.block().max(512));
        let mut first = Buffer::zeroed(length as usize);
        first[..bytes.len()].copy_from_slice(&bytes);
        self.file.write_blocks(0, first).await?;
        self.file.flush().await
    }

    /// Gives those clusters what they were promised that were not written, where all have their places.
    async fn preallocate_fixed(&self, first: u64) -> Result<()> {
        let clusters = self.geometry().clusters();
        if self.data_file.is_none() {
            if self.places.take(clusters)? != first {
                return Err(disturbed());
            }
            self.file.check_room(self.places.end())?;
        }
        let disk = ByteRange::between(0, self.size());
        let missing = self.with_fixed(|written| written.missing_in(disk));
        for range in missing.unwrap_or_default() {
            let place = ByteRange::between(first + range.start(), first + range.end());
            self.preallocate(self.data().whole(place)).await?;
        }
        Ok(())
    }

    /// Allocates `place` as far as was asked for. It reads as zeroes then.
    async fn preallocate(&self, place: ByteRange) -> Result<()> {
        match self.options.preallocation {
            Preallocation::Full => self.data().write_zeroes(place).await,
            Preallocation::Falloc => self.data().zero(place, ZeroFlags::NO_HOLE).await,
            _ if self.data().is_fresh() => Ok(()),
            _ => self.data().zero(place, ZeroFlags::empty()).await,
        }
    }

    /// Gives all clusters places that have none, and leaves what they read as.
    async fn preallocate_places(&self) -> Result<()> {
        let geometry = self.geometry();
        let cluster = self.cluster_size();
        for index in 0..geometry.l1_entries() {
            let span = geometry.span_of(index);
            let table = self.map.table(index).await?;
            let count = span.len().div_ceil(cluster) as usize;
            let missing = |at: &usize| place_of(table.entry(*at)).is_none();
            let missing: Vec<_> = (0..count).filter(missing).collect();
            let start = match self.data_file {
                Some(_) => span.start(),
                None => self.places.take(missing.len() as u64)?,
            };
            self.file.check_room(self.places.end())?;
            let mut places: Vec<ByteRange> = Vec::new();
            for (number, at) in missing.iter().enumerate() {
                let place = match self.data_file {
                    Some(_) => start + *at as u64 * cluster,
                    None => start + number as u64 * cluster,
                };
                let before = table.entry(*at);
                let word = place | COPIED;
                let subclusters = before.subclusters;
                table.replace(*at, Entry { word, subclusters });
                match places.last_mut() {
                    Some(last) if last.end() == place => {
                        *last = ByteRange::between(last.start(), place + cluster);
                    }
                    _ => places.push(ByteRange::between(place, place + cluster)),
                }
            }
            if self.options.preallocation == Preallocation::Metadata {
                continue;
            }
            for place in places {
                let end = match self.data_file {
                    Some(_) => place.end().min(self.size()),
                    None => place.end(),
                };
                let place = ByteRange::between(place.start(), end);
                self.preallocate(self.data().whole(place)).await?;
            }
        }
        Ok(())
    }

    /// Writes the tables of an image all of whose clusters have their places, and says where they are.
    async fn write_fixed_tables(&self, first: u64) -> Result<Vec<u64>> {
        let geometry = self.geometry();
        let count = geometry.l1_entries();
        let cluster = self.cluster_size();
        let home = self.places.take(count)?;
        let range = ByteRange::between(home, home + count * cluster);
        self.file.check_room(range.end())?;
        let mut guest = 0;
        for piece in range.pieces(WRITTEN_AT_ONCE.max(cluster)) {
            let mut bytes = Buffer::zeroed(piece.len() as usize);
            for entry in bytes.chunks_exact_mut(geometry.entry_size() as usize) {
                if guest < self.size() {
                    let host = first + guest;
                    encode(Entry::encode(Cluster::Data { host }, geometry), entry);
                    guest += cluster;
                }
            }
            self.file.write_blocks(piece.start(), bytes).await?;
        }
        Ok((0..count).map(|index| home + index * cluster).collect())
    }

    /// Writes the L1 table and says where it is.
    async fn write_l1(&self, tables: &[u64]) -> Result<ByteRange> {
        let geometry = self.geometry();
        let length = geometry.l1_entries() * 8;
        if length == 0 {
            return Ok(ByteRange::default());
        }
        let words = (0..geometry.l1_entries()).map(|index| {
            let home = tables.get(index as usize).copied().unwrap_or(0);
            if home == 0 { 0 } else { home | COPIED }
        });
        let place = self.write_words(words, length).await?;
        Ok(ByteRange::between(place.start(), place.start() + length))
    }

    /// Writes `length` bytes of big-endian words to new clusters, and says which.
    pub(super) async fn write_words(
        &self,
        words: impl Iterator<Item = u64>,
        length: u64,
    ) -> Result<ByteRange> {
        let cluster = self.cluster_size();
        let count = length.div_ceil(cluster);
        let start = self.places.take(count)?;
        let place = ByteRange::between(start, start + count * cluster);
        self.file.check_room(place.end())?;
        let mut words = words;
        for piece in place.pieces(WRITTEN_AT_ONCE.max(cluster)) {
            let mut bytes = Buffer::zeroed(piece.len() as usize);
            let (chunks, _) = bytes.as_chunks_mut::<8>();
            for (bytes, word) in chunks.iter_mut().zip(&mut words) {
                *bytes = word.to_be_bytes();
            }
            self.file.write_blocks(piece.start(), bytes).await?;
        }
        Ok(place)
    }
}

/// The size that an image says it has: whole sectors, for qemu would not see the rest of the last one.
pub(crate) fn stored_size(size: u64) -> u64 {
    size.next_multiple_of(SECTOR)
}

/// Makes a data file as long as a disk of `size` bytes, as [`Below::set_size`]: in whole sectors where it can be.
pub(super) async fn set_disk_size(data: &Below, size: u64) -> Result<()> {
    match data.can(Capabilities::RESIZE) {
        true => data.set_size(stored_size(size)).await,
        false => data.check_room(size),
    }
}

/// Writes an entry as it is in the file.
pub(crate) fn encode(entry: Entry, bytes: &mut [u8]) {
    let (word, subclusters) = bytes.split_at_mut(8);
    word.copy_from_slice(&entry.word.to_be_bytes());
    if !subclusters.is_empty() {
        subclusters.copy_from_slice(&entry.subclusters.to_be_bytes());
    }
}

pub(super) fn disturbed() -> Error {
    let message = "it was written while it was finished";
    Error::with_message(ErrorKind::InvalidInput, message).during(Operation::Write)
}

/// The header of an image that is made with these options.
pub(crate) fn header(
    options: &CreateOptions,
    geometry: Geometry,
    l1: ByteRange,
    refcount_table: ByteRange,
) -> Header {
    let mut incompatible = Incompatible::empty();
    incompatible.set(Incompatible::DATA_FILE, options.data_file.is_some());
    incompatible.set(Incompatible::EXTENDED_L2, options.extended_l2);
    let is_zstd = options.compression == Compression::Zstd;
    incompatible.set(Incompatible::COMPRESSION, is_zstd);
    let mut compatible = Compatible::empty();
    compatible.set(Compatible::LAZY_REFCOUNTS, options.lazy_refcounts);
    let mut autoclear = Autoclear::empty();
    let is_raw = options.data_file.as_ref().is_some_and(|data| data.raw);
    autoclear.set(Autoclear::RAW_DATA_FILE, is_raw);
    let backing = options.backing.as_ref();
    Header {
        geometry,
        backing: backing.map(|backing| backing.name.clone()),
        backing_format: backing.and_then(|backing| backing.format.clone()),
        l1,
        refcount_table,
        snapshots: 0,
        snapshots_offset: 0,
        incompatible,
        compatible,
        autoclear,
        compression: options.compression,
        data_file: options.data_file.as_ref().map(|data| data.name.clone()),
        bitmaps: None,
        length: if geometry.version == 2 { 72 } else { 112 },
        unknown: Vec::new(),
    }
}
