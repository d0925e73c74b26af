//! What counts references: how often each cluster of the file is referred to, found out in the end.
//!
//! Where nothing is compressed everything has one reference but what was given back. Compressed clusters share
//! clusters of the file; how many touch each is counted by a walk through all tables, a window of the file at a time.

use blockferry_block::{Buffer, ByteRange, Error, ErrorKind, RangeSet, Result};

use super::{
    NewImage,
    finish::{WRITTEN_AT_ONCE, disturbed},
    map::decode,
};
use crate::qcow2::{
    entry::Cluster, geometry::Geometry, header::LARGEST_REFCOUNT_TABLE, refcounts::set_refcount,
};

/// How many clusters are counted at a time, about.
const WINDOW: u64 = 4 << 20;

/// The counting of an image.
pub(super) struct Counting<'a> {
    image: &'a NewImage,
    /// Where everything but data is.
    tables: RangeSet,
}

impl<'a> Counting<'a> {
    pub(super) fn new(image: &'a NewImage) -> Self {
        let mut tables = RangeSet::new();
        tables.insert(ByteRange::between(0, image.cluster_size()));
        Self { image, tables }
    }

    /// A table is there.
    pub(super) fn add(&mut self, range: ByteRange) {
        self.tables.insert(self.image.geometry().around(range));
    }

    /// L2 tables are there; 0 stands for none.
    pub(super) fn add_tables(&mut self, places: &[u64]) {
        for place in places.iter().filter(|place| **place != 0) {
            let end = place + self.image.cluster_size();
            self.tables.insert(ByteRange::between(*place, end));
        }
    }

    /// Writes blocks and their table behind all else, and says where the table is.
    pub(super) async fn write(mut self) -> Result<ByteRange> {
        let image = self.image;
        let geometry = image.geometry();
        let cluster = geometry.cluster_size();
        let used = image.places.end() / cluster;
        let (blocks, table_clusters) = sizes(geometry, used);
        let start = image.places.take(blocks)?;
        if start != used * cluster {
            return Err(disturbed());
        }
        let range = ByteRange::between(start, start + blocks * cluster);
        self.add(range);
        let table = ByteRange::between(range.end(), range.end() + table_clusters * cluster);
        self.add(table);
        image.file.check_room(table.end())?;
        // Written first, for counting looks at what has a place.
        let words = (0..blocks).map(|index| start + index * cluster);
        if image.write_words(words, table.len()).await? != table {
            return Err(disturbed());
        }
        let per_block = geometry.refcounts_per_block();
        let at_once = (WINDOW / per_block).max(1);
        for piece in range.pieces(at_once * cluster) {
            let first = (piece.start() - start) / cluster * per_block;
            let count = piece.len() / cluster * per_block;
            let counts = self.count(first, count).await?;
            write_blocks(image, piece, &counts).await?;
        }
        Ok(table)
    }

    /// How often each of `count` clusters from `first` on is referred to.
    async fn count(&self, first: u64, count: u64) -> Result<Vec<u64>> {
        let image = self.image;
        let cluster = image.cluster_size();
        let end = image.places.end();
        let window = ByteRange::between(first * cluster, ((first + count) * cluster).min(end));
        let mut counts = Counts {
            first,
            cluster,
            counts: vec![0; count as usize],
        };
        if image.options.compress {
            for range in self.tables.present_in(window) {
                counts.add(range);
            }
            self.count_data(&mut counts).await?;
        } else {
            counts.add(window);
            for range in image.places.given_back_in(window) {
                counts.remove(range);
            }
        }
        Ok(counts.counts)
    }

    /// Counts all that L2 tables refer to.
    async fn count_data(&self, counts: &mut Counts) -> Result<()> {
        let geometry = self.image.geometry();
        let cluster = geometry.cluster_size();
        let mut next = self.image.map.next_used(0);
        while let Some(index) = next {
            next = self.image.map.next_used(index + 1);
            let Some(table) = self.image.map.existing(index).await? else {
                continue;
            };
            for at in 0..table.len() {
                match decode(table.entry(at), geometry)? {
                    Cluster::Data { host }
                    | Cluster::Zero { host: Some(host) }
                    | Cluster::Mixed {
                        host: Some(host), ..
                    } => counts.add(ByteRange::between(host, host + cluster)),
                    Cluster::Compressed(place) => {
                        let end = place.offset + place.length;
                        counts.add(geometry.around(ByteRange::between(place.offset, end)));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// The counts of some clusters.
struct Counts {
    first: u64,
    cluster: u64,
    counts: Vec<u64>,
}

impl Counts {
    fn part(&mut self, range: ByteRange) -> &mut [u64] {
        let length = self.counts.len() as u64;
        let start = (range.start() / self.cluster).saturating_sub(self.first);
        let end = (range.end() / self.cluster).saturating_sub(self.first);
        &mut self.counts[start.min(length) as usize..end.min(length) as usize]
    }

    /// One reference more to each of these clusters.
    fn add(&mut self, range: ByteRange) {
        self.part(range).iter_mut().for_each(|count| *count += 1);
    }

    fn remove(&mut self, range: ByteRange) {
        self.part(range)
            .iter_mut()
            .for_each(|count| *count = count.saturating_sub(1));
    }
}

/// As [`sizes`].
///
/// # Errors
/// `NoSpace` where the table would be longer than it can be.
pub(crate) fn checked_sizes(geometry: Geometry, used: u64) -> Result<(u64, u64)> {
    let (blocks, table) = sizes(geometry, used);
    let longest = LARGEST_REFCOUNT_TABLE.max(geometry.cluster_size());
    if table.saturating_mul(geometry.cluster_size()) <= longest {
        return Ok((blocks, table));
    }
    let message = "the image is longer than its refcounts can count: take larger clusters";
    Err(Error::with_message(ErrorKind::NoSpace, message))
}

/// How many blocks count `used` clusters and themselves and their table, and how many clusters that table has.
fn sizes(geometry: Geometry, used: u64) -> (u64, u64) {
    let per_block = geometry.refcounts_per_block();
    let (mut blocks, mut table) = (1, 1);
    loop {
        let needed = (used + blocks + table).div_ceil(per_block);
        let needed_table = (needed * 8).div_ceil(geometry.cluster_size());
        if (needed, needed_table) == (blocks, table) {
            return (blocks, table);
        }
        (blocks, table) = (needed.max(blocks), needed_table.max(table));
        if (blocks, table) != (needed, needed_table) {
            return (blocks, table);
        }
    }
}

async fn write_blocks(image: &NewImage, range: ByteRange, counts: &[u64]) -> Result<()> {
    let geometry = image.geometry();
    let cluster = geometry.cluster_size();
    let per_block = geometry.refcounts_per_block() as usize;
    let mut counts = counts.chunks(per_block);
    for piece in range.pieces(WRITTEN_AT_ONCE.max(cluster)) {
        let mut bytes = Buffer::zeroed(piece.len() as usize);
        for (block, counts) in bytes.chunks_exact_mut(cluster as usize).zip(&mut counts) {
            for (index, count) in counts.iter().enumerate() {
                set_refcount(block, geometry.refcount_order, index, *count);
            }
        }
        image.file.write_blocks(piece.start(), bytes).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_count_themselves() {
        for order in 0..=6 {
            for cluster_bits in [9, 16, 21] {
                let geometry = Geometry {
                    cluster_bits,
                    size: 0,
                    refcount_order: order,
                    extended: false,
                    data_file: false,
                    version: 3,
                };
                let per_block = geometry.refcounts_per_block();
                for used in [1, per_block - 2, per_block - 1, per_block, 1 << 22] {
                    let (blocks, table) = sizes(geometry, used);
                    assert!(blocks * per_block >= used + blocks + table);
                    assert!(table * geometry.cluster_size() >= blocks * 8);
                    assert!((blocks - 1) * per_block < used + blocks + table);
                }
            }
        }
    }
}
