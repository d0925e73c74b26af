//! The bitmaps of a disk that gets another size: what is new is not dirty, and what is gone is forgotten.
//!
//! While the size changes the bitmaps are marked as in use, so that after a crash nobody believes them. Before that
//! only what changes nothing happens: longer tables are written where nothing points yet, bits behind the end are
//! cleared.

use std::ffi::OsStr;

use blockferry_block::{Buffer, ByteRange, Error, ErrorKind, Result, printable};

use crate::qcow2::{
    allocate::Clusters,
    bitmaps::{Bitmap, Bits, LARGEST_BITS, MOST_ENTRIES},
    geometry::Geometry,
    header::be64,
    host::HostFile,
    write::Writer,
};

/// Where the place, the length and the flags stand in an entry of the directory, counted back from the flags.
const PLACE_BEFORE_FLAGS: u64 = 12;

/// Refuses bitmaps that cannot get the size, before anything is changed.
///
/// # Errors
/// `Unsupported` for bitmaps that do not say all that was written, or of a kind that is not known; `InvalidInput`
/// where a bitmap would become too large, or have nothing to tell of.
pub(super) fn check(bitmaps: &[Bitmap], geometry: Geometry) -> Result<()> {
    for bitmap in bitmaps {
        let name = printable(OsStr::new(&bitmap.details.name));
        if !bitmap.is_consistent() {
            let message = format!(
                "the bitmap \"{name}\" is inconsistent and cannot be used: 'qemu-img bitmap --remove' it first"
            );
            return Err(Error::with_message(ErrorKind::Unsupported, message));
        }
        let entries = bitmap.entries_for(geometry);
        let is_too_large = entries > MOST_ENTRIES
            || entries.saturating_mul(geometry.cluster_size()) > LARGEST_BITS;
        if is_too_large || entries == 0 {
            let message = match entries {
                0 => format!("a disk without a byte cannot have the bitmap \"{name}\""),
                _ => format!(
                    "the bitmap \"{name}\" would be too large: a bit of it stands for {} bytes",
                    bitmap.details.granularity
                ),
            };
            return Err(Error::with_message(ErrorKind::InvalidInput, message));
        }
    }
    Ok(())
}

/// The bitmaps of an image whose size changes.
pub(super) struct Resized<'a> {
    file: &'a HostFile,
    /// The old geometry; only the size differs from the new one.
    geometry: Geometry,
    bitmaps: Vec<Changed>,
}

/// A bitmap, and what its table is to become.
struct Changed {
    bitmap: Bitmap,
    /// Where its flags stand, and what they are.
    flags: (u64, u32),
    table: ByteRange,
    /// What has no use any more once the directory says so.
    freed: Vec<Clusters>,
    /// What has been allocated for it.
    taken: Vec<Clusters>,
}

impl<'a> Resized<'a> {
    /// Nothing is done yet.
    pub(super) fn new(file: &'a HostFile, geometry: Geometry, bitmaps: Vec<Bitmap>) -> Self {
        let bitmaps = bitmaps.into_iter().filter_map(|bitmap| {
            Some(Changed {
                flags: bitmap.flags?,
                table: bitmap.table,
                freed: Vec::new(),
                taken: Vec::new(),
                bitmap,
            })
        });
        Self {
            file,
            geometry,
            bitmaps: bitmaps.collect(),
        }
    }

    /// Writes the longer tables of a disk that gets `size` bytes, and clears what bits lie behind its old end. The image
    /// is what it was.
    ///
    /// # Errors
    /// `Corrupt`, `NoSpace`, what reading and writing failed with: nothing is taken then.
    pub(super) async fn lengthen(&mut self, size: u64, writer: &Writer) -> Result<()> {
        let (file, geometry) = (self.file, self.geometry);
        for changed in &mut self.bitmaps {
            let lengthened = changed.lengthen(size, file, geometry, writer).await;
            if let Err(error) = lengthened {
                self.give_up(writer).await;
                return Err(error);
            }
        }
        file.device().flush().await
    }

    /// Lets nobody believe the bitmaps until they are [finished](Self::finish).
    pub(super) async fn mark(&self) -> Result<()> {
        for Changed { bitmap, flags, .. } in &self.bitmaps {
            let marked = Bitmap::in_use(flags.1);
            debug_assert!(bitmap.is_consistent());
            self.file.patch(flags.0, &marked.to_be_bytes()).await?;
        }
        self.flush().await
    }

    /// What was prepared is not needed: the bitmaps are what they were, as far as that can be written. What cannot be
    /// given back is lost space.
    pub(super) async fn give_up(&mut self, writer: &Writer) {
        if self.unmark().await.is_err() || writer.close().await.is_err() {
            return;
        }
        for changed in &mut self.bitmaps {
            writer.give_back(std::mem::take(&mut changed.taken)).await;
        }
    }

    /// Cuts the bitmaps of a disk that has `size` bytes now.
    ///
    /// # Errors
    /// `Corrupt`, what reading and writing failed with.
    pub(super) async fn shorten(&mut self, size: u64) -> Result<()> {
        let (file, geometry) = (self.file, self.geometry);
        for changed in &mut self.bitmaps {
            changed.shorten(size, file, geometry).await?;
        }
        self.flush().await
    }

    /// Lets the directory say where the tables are, durably, and then that they can be believed. What has no use any more
    /// is given back.
    ///
    /// # Errors
    /// What writing failed with.
    pub(super) async fn finish(&mut self, writer: &Writer) -> Result<()> {
        for Changed { flags, table, .. } in &self.bitmaps {
            let mut entry = table.start().to_be_bytes().to_vec();
            entry.extend(((table.len() / 8) as u32).to_be_bytes());
            let place = flags.0 - PLACE_BEFORE_FLAGS;
            self.file.patch(place, &entry).await?;
        }
        self.flush().await?;
        self.unmark().await?;
        for changed in &mut self.bitmaps {
            writer.give_back(std::mem::take(&mut changed.freed)).await;
        }
        Ok(())
    }

    async fn unmark(&self) -> Result<()> {
        for Changed { flags, .. } in &self.bitmaps {
            self.file.patch(flags.0, &flags.1.to_be_bytes()).await?;
        }
        self.flush().await
    }

    async fn flush(&self) -> Result<()> {
        match self.bitmaps[..] {
            [] => Ok(()),
            _ => self.file.device().flush().await,
        }
    }
}

impl Changed {
    async fn lengthen(
        &mut self,
        size: u64,
        file: &HostFile,
        geometry: Geometry,
        writer: &Writer,
    ) -> Result<()> {
        let cluster = geometry.cluster_size();
        let mut words = self.words(file, geometry).await?;
        if let Some(last) = words.last_mut() {
            let start = geometry.size - geometry.size % self.bitmap.span(geometry);
            match Bits::decode(*last, geometry)? {
                // The end of the disk is the end of a cluster of bits, or nothing of it is dirty.
                _ if start == geometry.size => {}
                Bits::Zeroes => {}
                Bits::Host(host) => self.clear_behind(host, geometry, file).await?,
                Bits::Ones => {
                    let mut bytes = Buffer::zeroed(cluster as usize);
                    bytes.fill(0xff);
                    self.clear_bits(&mut bytes, geometry);
                    let host = self.take(1, geometry, writer).await?;
                    file.write(host, bytes).await?;
                    *last = Bits::Host(host).encode();
                }
            }
        }
        let entries = self.bitmap.entries_for(Geometry { size, ..geometry });
        words.resize(entries as usize, 0);
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        let (old, length) = (self.table, bytes.len() as u64);
        let place = match length <= old.len().next_multiple_of(cluster) {
            // What is behind the old table is nobody's, and what is replaced says the same. What it names now is used.
            true => {
                self.taken.clear();
                old.start()
            }
            false => {
                let count = length.div_ceil(cluster);
                let place = self.take(count, geometry, writer).await?;
                bytes.resize((count * cluster) as usize, 0);
                self.freed.push(clusters_of(old, geometry));
                place
            }
        };
        file.patch(place, &bytes).await?;
        self.table = ByteRange::between(place, place + length);
        Ok(())
    }

    async fn shorten(&mut self, size: u64, file: &HostFile, geometry: Geometry) -> Result<()> {
        let smaller = Geometry { size, ..geometry };
        let words = self.words(file, geometry).await?;
        let entries = (self.bitmap.entries_for(smaller) as usize).min(words.len());
        let (kept, gone) = words.split_at(entries);
        if let Some(last) = kept.last()
            && !size.is_multiple_of(self.bitmap.span(geometry))
            && let Bits::Host(host) = Bits::decode(*last, geometry)?
        {
            self.clear_behind(host, smaller, file).await?;
        }
        for word in gone {
            if let Bits::Host(host) = Bits::decode(*word, geometry)? {
                let bits = ByteRange::between(host, host + geometry.cluster_size());
                self.freed.push(clusters_of(bits, geometry));
            }
        }
        let end = self.table.start() + entries as u64 * 8;
        let used = clusters_of(ByteRange::between(self.table.start(), end), geometry);
        let (_, tail) = clusters_of(self.table, geometry).split_at(used.count);
        self.freed.push(tail);
        self.table = ByteRange::between(self.table.start(), end);
        Ok(())
    }

    /// The words of the table, as many as the disk of `geometry` has.
    async fn words(&self, file: &HostFile, geometry: Geometry) -> Result<Vec<u64>> {
        let entries = self.bitmap.entries_for(geometry);
        let table = self.bitmap.checked_table(entries, &**file.device())?;
        let buffer = Buffer::zeroed(table.len() as usize);
        let name = || "the table of a bitmap".to_owned();
        let bytes = file.read_padded(table.start(), buffer, name).await?;
        let words = bytes.chunks_exact(8).map(|word| be64(word, 0));
        Ok(words.collect())
    }

    /// Clears what bits of the last cluster of bits, at `host`, are behind the end of the disk.
    async fn clear_behind(&self, host: u64, geometry: Geometry, file: &HostFile) -> Result<()> {
        let buffer = Buffer::zeroed(geometry.cluster_size() as usize);
        let name = || "a bitmap".to_owned();
        let mut bytes = file.read_padded(host, buffer, name).await?;
        self.clear_bits(&mut bytes, geometry);
        file.write(host, bytes).await.map(drop)
    }

    fn clear_bits(&self, bytes: &mut [u8], geometry: Geometry) {
        let told = geometry.size % self.bitmap.span(geometry);
        let bits = told.div_ceil(self.bitmap.details.granularity);
        let (whole, left) = ((bits / 8) as usize, bits % 8);
        for (at, byte) in bytes.iter_mut().enumerate().skip(whole) {
            *byte &= match at == whole {
                true => (1 << left) - 1,
                false => 0,
            };
        }
    }

    /// New clusters in a row: where they begin.
    async fn take(&mut self, count: u64, geometry: Geometry, writer: &Writer) -> Result<u64> {
        let clusters = writer.allocate(count).await?;
        self.taken.push(clusters);
        Ok(clusters.first * geometry.cluster_size())
    }
}

/// The clusters that lie under `range`, which begins with one.
fn clusters_of(range: ByteRange, geometry: Geometry) -> Clusters {
    let cluster = geometry.cluster_size();
    Clusters {
        first: range.start() / cluster,
        count: range.len().div_ceil(cluster),
    }
}
