//! The arithmetic of clusters and tables (specification, "Cluster mapping").

use blockferry_block::{ByteRange, Result};

pub(crate) use crate::corrupt::corrupt;

/// The smallest and the largest cluster, as powers of two (specification, "Header", `cluster_bits`; qemu's bounds).
pub(crate) const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;

/// How many subclusters a cluster has in an image with extended L2 entries.
pub(crate) const SUBCLUSTERS: u64 = 32;

/// The numbers that everything in an image is computed with. All sizes and offsets are in bytes; "guest" is an
/// offset in the virtual disk, "host" one in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// The size of a cluster as a power of two: within [`CLUSTER_BITS`].
    pub(crate) cluster_bits: u32,
    /// The size of the virtual disk: `i64::MAX` at most.
    pub(crate) size: u64,
    /// The width of a refcount in bits as a power of two: 0 to 6.
    pub(crate) refcount_order: u32,
    /// Whether L2 entries have 16 bytes, the second 8 for the subclusters.
    pub(crate) extended: bool,
    /// Whether the data lies in a file of its own, from whose beginning on clusters may lie.
    pub(crate) data_file: bool,
    /// The version of the format: 2, which knows no zero clusters, or 3.
    pub(crate) version: u32,
}

impl Geometry {
    /// The size of a cluster: 512 bytes to 2 MiB.
    pub(crate) fn cluster_size(self) -> u64 {
        1 << self.cluster_bits
    }

    /// The size of what an entry tells apart: a subcluster, or the cluster where there are none.
    pub(crate) fn subcluster_size(self) -> u64 {
        match self.extended {
            true => self.cluster_size() / SUBCLUSTERS,
            false => self.cluster_size(),
        }
    }

    /// The size of an entry of an L2 table.
    pub(crate) fn entry_size(self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// How many entries an L2 table has.
    pub(crate) fn l2_entries(self) -> u64 {
        self.cluster_size() / self.entry_size()
    }

    /// How much of the virtual disk one L2 table maps.
    pub(crate) fn table_span(self) -> u64 {
        self.l2_entries() * self.cluster_size()
    }

    /// How many L1 entries a virtual disk of `size` needs.
    pub(crate) fn l1_entries_for(self, size: u64) -> u64 {
        size.div_ceil(self.table_span())
    }

    /// How many L1 entries the virtual disk needs.
    pub(crate) fn l1_entries(self) -> u64 {
        self.l1_entries_for(self.size)
    }

    /// How many clusters the virtual disk has; the last one may stick out.
    pub(crate) fn clusters(self) -> u64 {
        self.size.div_ceil(self.cluster_size())
    }

    /// Which L2 table maps `guest`, and which of its entries.
    pub(crate) fn indices(self, guest: u64) -> (u64, usize) {
        let cluster = guest >> self.cluster_bits;
        let entries = self.l2_entries();
        (cluster / entries, (cluster % entries) as usize)
    }

    /// The part of the virtual disk that the L2 table `index` maps; cut at the end of the disk.
    pub(crate) fn span_of(self, index: u64) -> ByteRange {
        let start = index.saturating_mul(self.table_span()).min(self.size);
        let end = start.saturating_add(self.table_span()).min(self.size);
        ByteRange::between(start, end)
    }

    /// How many refcounts a block of them holds.
    pub(crate) fn refcounts_per_block(self) -> u64 {
        (self.cluster_size() * 8) >> self.refcount_order
    }

    /// Whether `host` is the beginning of a cluster.
    pub(crate) fn is_aligned(self, host: u64) -> bool {
        host.is_multiple_of(self.cluster_size())
    }

    /// The clusters that `range` touches, as one range.
    pub(crate) fn around(self, range: ByteRange) -> ByteRange {
        let mask = self.cluster_size() - 1;
        let end = range.end().saturating_add(mask) & !mask;
        ByteRange::between(range.start() & !mask, end.max(range.start() & !mask))
    }
}

/// The range of a table inside the file, or why there can be none.
pub(crate) fn table_range(what: &str, offset: u64, length: u64) -> Result<ByteRange> {
    let end = offset
        .checked_add(length)
        .filter(|end| i64::try_from(*end).is_ok());
    end.map(|end| ByteRange::between(offset, end))
        .ok_or_else(|| {
            corrupt(format!(
                "{what} of {length} bytes at {offset:#x} lies outside of any file"
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_and_entries_follow_from_the_cluster_size() {
        let geometry = Geometry {
            cluster_bits: 16,
            size: (1 << 40) + 1,
            refcount_order: 4,
            extended: false,
            data_file: false,
            version: 3,
        };
        assert_eq!(geometry.l2_entries(), 8192);
        assert_eq!(geometry.table_span(), 512 << 20);
        assert_eq!(geometry.l1_entries(), 2049);
        assert_eq!(geometry.indices(512 << 20), (1, 0));
        assert_eq!(geometry.indices((512 << 20) - 1), (0, 8191));
        assert_eq!(geometry.refcounts_per_block(), 32768);
        assert_eq!(
            geometry.span_of(2048),
            ByteRange::between(1 << 40, (1 << 40) + 1)
        );
        let extended = Geometry {
            extended: true,
            ..geometry
        };
        assert_eq!(extended.table_span(), 256 << 20);
        assert_eq!(extended.subcluster_size(), 2048);
        assert_eq!(
            geometry.around(ByteRange::between(1, 65537)),
            ByteRange::between(0, 131_072)
        );
    }
}
