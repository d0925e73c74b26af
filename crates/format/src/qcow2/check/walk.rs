//! The walk through everything that uses clusters.

use std::collections::BTreeMap;

use blockferry_block::{BlockDevice, Buffer, ByteRange, Error, ErrorKind, Result};

use super::{
    CheckReport,
    counts::{Counts, Use},
};
use crate::{
    host::read_before,
    qcow2::{
        bitmaps::{self, Bits},
        entry::{COPIED, Cluster, Entry, OFFSET},
        geometry::Geometry,
        header::{Autoclear, Header, be64},
        refcounts::{BLOCK_OFFSET, refcount},
        snapshots::SnapshotTable,
    },
};

/// Tables are read in pieces of so many bytes at most.
const PIECE: u64 = 1 << 20;

/// The bits of entries that must not be set.
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;

pub(super) struct Walk<'a> {
    below: &'a dyn BlockDevice,
    header: &'a Header,
    geometry: Geometry,
    /// The size of the file.
    size: u64,
    counts: Counts,
    /// L2 tables by their places.
    tables: BTreeMap<u64, TableUses>,
    damage: Damage,
    report: CheckReport,
}

/// What a walk found.
pub(super) struct Walked {
    pub(super) report: CheckReport,
    pub(super) counts: Counts,
    pub(super) damage: Damage,
}

/// What cannot be trusted of an image.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Damage {
    /// Something that names clusters cannot be understood or read, or lies where something else does: there may be
    /// uses that were not found.
    pub(super) uses: bool,
    /// The table of refcounts, or a block of them, does not lie where it could.
    pub(super) refcounts: bool,
}

/// How many entries point at an L2 table.
#[derive(Clone, Copy, Default)]
struct TableUses {
    /// Of the present state.
    active: u64,
    /// Of all states.
    all: u64,
}

impl<'a> Walk<'a> {
    /// Through the image in `below`, of `size` bytes.
    pub(super) fn new(below: &'a dyn BlockDevice, size: u64, header: &'a Header) -> Result<Self> {
        let geometry = header.geometry;
        let report = CheckReport {
            total_clusters: geometry.clusters(),
            ..CheckReport::default()
        };
        Ok(Self {
            below,
            header,
            geometry,
            size,
            counts: Counts::new(size.div_ceil(geometry.cluster_size()))?,
            tables: BTreeMap::new(),
            damage: Damage::default(),
            report,
        })
    }

    /// Takes up all refcounts and counts all uses.
    pub(super) async fn run(&mut self) -> Result<()> {
        self.refcount_blocks().await?;
        self.uses().await
    }

    /// Counts all uses, but those by the refcounts.
    pub(super) async fn uses(&mut self) -> Result<()> {
        let cluster = ByteRange::between(0, self.geometry.cluster_size());
        self.count("the header", cluster, 1, Use::Sole)?;
        let l1 = self.header.l1;
        self.count("the L1 table", l1, 1, Use::Sole)?;
        self.l1_words("the L1 table", l1, 1, true).await?;
        self.snapshots().await?;
        self.l2_tables().await?;
        self.bitmaps().await
    }

    /// Compares what was counted with the refcounts.
    pub(super) fn finish(self) -> Walked {
        let Self {
            counts,
            mut report,
            mut damage,
            geometry,
            ..
        } = self;
        let mut end = 0;
        for counted in counts.iter() {
            let (cluster, stored, uses) = (counted.cluster, counted.stored, counted.uses);
            let place = cluster * geometry.cluster_size();
            if stored > 0 || uses > 0 {
                end = place + geometry.cluster_size();
            }
            if stored < uses {
                report.corruption(format!(
                    "the cluster at {place:#x} has the refcount {stored} and {uses} uses"
                ));
            } else if stored > uses {
                report.leak(format!(
                    "the cluster at {place:#x} has the refcount {stored} and {uses} uses: leaked"
                ));
            }
            damage.uses |= counted.is_contested();
            damage.refcounts |= counted.is_refcounts_twice();
            if counted.is_mixed() && stored >= uses {
                report.corruption(format!(
                    "the cluster at {place:#x} is used for data and for tables"
                ));
            }
        }
        report.image_end = end;
        damage.uses |= report.check_errors > 0;
        Walked {
            report,
            counts,
            damage,
        }
    }

    /// Counts `times` uses of the clusters that `range` touches. Says no, and reports it, where that is outside of
    /// the file.
    fn count(&mut self, what: &str, range: ByteRange, times: u64, of: Use) -> Result<bool> {
        if range.is_empty() {
            return Ok(true);
        }
        let cluster = self.geometry.cluster_size();
        // The last cluster of a file may be cut short.
        let end = self.size.div_ceil(cluster).saturating_mul(cluster);
        if range.start() >= self.size || range.end() > end {
            self.distrust(of);
            let place = range.start();
            self.report.corruption(format!(
                "{what} at {place:#x} lies past the end of the file"
            ));
            return Ok(false);
        }
        for index in range.start() / cluster..range.end().div_ceil(cluster) {
            self.counts.count(index, times, of)?;
        }
        Ok(true)
    }

    /// What was to be of that use is not where it could be.
    fn distrust(&mut self, of: Use) {
        match of {
            Use::Refcounts => self.damage.refcounts = true,
            _ => self.damage.uses = true,
        }
    }

    /// Reads `range`, which begins inside of the file; what is behind its end reads as zeroes.
    async fn read(&self, range: ByteRange) -> Result<Buffer> {
        let mut buffer = Buffer::zeroed(range.len() as usize);
        let there = range.intersection(ByteRange::between(0, self.size)).len() as usize;
        buffer.set_len(there);
        let mut read = read_before(self.below, self.size, range.start(), buffer).await?;
        read.set_len(range.len() as usize);
        read[there..].fill(0);
        Ok(read)
    }

    /// As [`read`](Self::read), where a failure is one of the findings.
    async fn try_read(&mut self, what: &str, range: ByteRange) -> Option<Buffer> {
        match self.read(range).await {
            Ok(read) => Some(read),
            Err(error) => {
                let place = range.start();
                self.report
                    .unreadable(format!("{what} at {place:#x} cannot be read: {error}"));
                None
            }
        }
    }

    /// Takes up all refcounts, and counts the clusters that they lie in.
    async fn refcount_blocks(&mut self) -> Result<()> {
        let (table, cluster) = (self.header.refcount_table, self.geometry.cluster_size());
        if !self.count("the refcount table", table, 1, Use::Refcounts)? {
            return Ok(());
        }
        let mut index = 0;
        for piece in table.pieces(PIECE) {
            let words = self.read(piece).await?;
            for word in words.chunks_exact(8).map(|word| be64(word, 0)) {
                let block = word & BLOCK_OFFSET;
                let range = ByteRange::between(block, block.saturating_add(cluster));
                // At the end of all offsets there is no room for one.
                let has_room = range.len() == cluster;
                if word != block || !self.geometry.is_aligned(block) || !has_room {
                    self.distrust(Use::Refcounts);
                    self.report
                        .corruption(format!("no block of refcounts can be at {word:#x}"));
                } else if block != 0
                    && self.count("a block of refcounts", range, 1, Use::Refcounts)?
                {
                    self.refcount_block(index, range).await?;
                }
                index += 1;
            }
        }
        Ok(())
    }

    async fn refcount_block(&mut self, index: u64, range: ByteRange) -> Result<()> {
        let Some(block) = self.try_read("a block of refcounts", range).await else {
            return Ok(());
        };
        let geometry = self.geometry;
        let each = geometry.refcounts_per_block();
        let first = index * each;
        let clusters = self.size.div_ceil(geometry.cluster_size());
        for at in 0..each.min(clusters.saturating_sub(first)) {
            match refcount(&block, geometry.refcount_order, at as usize) {
                0 => {}
                refcount => self.counts.store(first + at, refcount)?,
            }
        }
        Ok(())
    }

    /// Notes the L2 tables that words of L1 tables point at; `times` states of the disk have these words.
    async fn l1_words(
        &mut self,
        what: &str,
        range: ByteRange,
        times: u64,
        is_active: bool,
    ) -> Result<()> {
        // What is not in the file was reported.
        let range = range.intersection(ByteRange::between(0, self.size));
        let cluster = self.geometry.cluster_size();
        for piece in range.pieces(PIECE) {
            let Some(words) = self.try_read(what, piece).await else {
                continue;
            };
            for word in words.chunks_exact(8).map(|word| be64(word, 0)) {
                let place = word & OFFSET;
                if word & L1_RESERVED != 0 {
                    self.report
                        .corruption(format!("an entry of {what} is {word:#x}"));
                }
                if place == 0 {
                    continue;
                }
                if !self.geometry.is_aligned(place) {
                    self.damage.uses = true;
                    self.report.corruption(format!(
                        "an L2 table at {place:#x} is not on a cluster's boundary"
                    ));
                    continue;
                }
                let table = ByteRange::between(place, place + cluster);
                if !self.count("an L2 table", table, times, Use::Table)? {
                    continue;
                }
                if is_active {
                    self.check_copied("the L2 table", word, place);
                }
                let uses = self.tables.entry(place).or_default();
                uses.active += u64::from(is_active);
                uses.all += times;
            }
        }
        Ok(())
    }

    /// The bit that allows to write in place goes with a refcount of one.
    fn check_copied(&mut self, what: &str, word: u64, place: u64) {
        let refcount = self.counts.stored(place >> self.geometry.cluster_bits);
        let is_copied = word & COPIED != 0;
        if is_copied != (refcount == 1) {
            let says = if is_copied { "may" } else { "may not" };
            self.report.corruption(format!(
                "{what} at {place:#x} {says} be written in place, and its refcount is {refcount}"
            ));
        }
    }

    async fn snapshots(&mut self) -> Result<()> {
        let table = match SnapshotTable::read(self.below, self.header).await {
            Ok(table) => table,
            Err(error) => {
                self.misread("the snapshot table", &error);
                return Ok(());
            }
        };
        if !table.snapshots.is_empty() && self.geometry.data_file {
            let finding = "there are snapshots, and the data lies in a file of its own";
            self.report.corruption(finding.to_owned());
        }
        self.count("the snapshot table", table.range, 1, Use::Sole)?;
        // Every word is looked at once, however many L1 tables a hostile image puts it in.
        let cluster = self.geometry.cluster_size();
        let whole =
            |it: ByteRange| ByteRange::between(it.start(), it.end().next_multiple_of(cluster));
        let tables = table.snapshots.iter().map(|snapshot| snapshot.l1);
        for (range, times) in layers(tables.clone().map(whole)) {
            self.count("a snapshot's L1 table", range, times, Use::Sole)?;
        }
        for (range, times) in layers(tables) {
            self.l1_words("a snapshot's L1 table", range, times, false)
                .await?;
        }
        Ok(())
    }

    /// What cannot be read, or breaks the rules.
    fn misread(&mut self, what: &str, error: &Error) {
        self.damage.uses = true;
        let finding = format!("{what}: {error}");
        if error.kind() == ErrorKind::Corrupt {
            self.report.corruption(finding);
        } else {
            self.report.unreadable(finding);
        }
    }

    /// The tables in the order in which they lie in the file.
    async fn l2_tables(&mut self) -> Result<()> {
        let cluster = self.geometry.cluster_size();
        for (place, uses) in std::mem::take(&mut self.tables) {
            let range = ByteRange::between(place, place + cluster);
            let Some(table) = self.try_read("an L2 table", range).await else {
                continue;
            };
            let mut follows = None;
            for entry in table.chunks_exact(self.geometry.entry_size() as usize) {
                let subclusters = match self.geometry.extended {
                    true => be64(entry, 8),
                    false => 0,
                };
                let word = be64(entry, 0);
                if word != 0 || subclusters != 0 {
                    self.l2_entry(Entry { word, subclusters }, uses, &mut follows)?;
                }
            }
        }
        Ok(())
    }

    /// `follows` is where the next cluster would lie, were it to follow the last one of the same table.
    fn l2_entry(&mut self, entry: Entry, uses: TableUses, follows: &mut Option<u64>) -> Result<()> {
        let decoded = entry.decode(self.geometry);
        let cluster = match decoded {
            Ok(cluster) => cluster,
            Err(error) => {
                self.damage.uses = true;
                self.report
                    .corruption(format!("an entry of an L2 table is wrong: {error}"));
                return Ok(());
            }
        };
        let size = self.geometry.cluster_size();
        let host = match cluster {
            Cluster::Compressed(compressed) => {
                let info = &mut self.report;
                info.allocated_clusters += uses.active;
                info.compressed_clusters += uses.active;
                info.fragmented_clusters += uses.active;
                if self.geometry.data_file || entry.word & COPIED != 0 {
                    let place = compressed.offset;
                    self.report.corruption(format!(
                        "the compressed cluster at {place:#x} should not be there, or not be marked"
                    ));
                }
                let end = compressed.offset.saturating_add(compressed.length);
                let range = ByteRange::between(compressed.offset, end);
                self.count("a compressed cluster", range, uses.all, Use::Data)?;
                return Ok(());
            }
            Cluster::Unallocated => None,
            Cluster::Data { host } => Some(host),
            Cluster::Zero { host } | Cluster::Mixed { host, .. } => host,
        };
        if entry.word & L2_RESERVED != 0 {
            self.report
                .corruption(format!("an entry of an L2 table is {:#x}", entry.word));
        }
        let Some(host) = host else {
            return Ok(());
        };
        self.report.allocated_clusters += uses.active;
        if follows.is_some_and(|follows| follows != host) {
            self.report.fragmented_clusters += uses.active;
        }
        *follows = Some(host + size);
        if self.geometry.data_file {
            return Ok(());
        }
        let range = ByteRange::between(host, host + size);
        if self.count("a cluster", range, uses.all, Use::Data)? && uses.active > 0 {
            self.check_copied("the cluster", entry.word, host);
        }
        Ok(())
    }

    async fn bitmaps(&mut self) -> Result<()> {
        // Whoever does not know bitmaps clears the bit, and may have given their clusters to others since: they are lost.
        let known = self.header.autoclear.contains(Autoclear::BITMAPS);
        let Some(extension) = self.header.bitmaps.filter(|_| known) else {
            return Ok(());
        };
        let bitmaps = match bitmaps::read_directory(self.below, self.header).await {
            Ok(bitmaps) => bitmaps,
            Err(error) => {
                self.misread("the directory of bitmaps", &error);
                return Ok(());
            }
        };
        let directory = extension.directory;
        self.count("the directory of bitmaps", directory, 1, Use::Sole)?;
        let cluster = self.geometry.cluster_size();
        let mut rest = self.size;
        for bitmap in bitmaps {
            let Some(left) = rest.checked_sub(bitmap.table.len()) else {
                self.damage.uses = true;
                let finding = "the tables of the bitmaps overlap each other";
                self.report.corruption(finding.to_owned());
                break;
            };
            rest = left;
            if !self.count("the table of a bitmap", bitmap.table, 1, Use::Sole)? {
                continue;
            }
            for piece in bitmap.table.pieces(PIECE) {
                let Some(words) = self.try_read("the table of a bitmap", piece).await else {
                    continue;
                };
                for word in words.chunks_exact(8).map(|word| be64(word, 0)) {
                    match Bits::decode(word, self.geometry) {
                        Ok(Bits::Host(host)) => {
                            let range = ByteRange::between(host, host + cluster);
                            self.count("the data of a bitmap", range, 1, Use::Sole)?;
                        }
                        Ok(_) => {}
                        Err(error) => {
                            self.damage.uses = true;
                            self.report.corruption(error.to_string());
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// Ranges that may overlap as ranges that do not, in order, each with how many of them it is in. Empty ones are left
/// out.
fn layers(ranges: impl Iterator<Item = ByteRange>) -> Vec<(ByteRange, u64)> {
    let mut edges: BTreeMap<u64, i64> = BTreeMap::new();
    for range in ranges.filter(|range| !range.is_empty()) {
        *edges.entry(range.start()).or_default() += 1;
        *edges.entry(range.end()).or_default() -= 1;
    }
    let mut layers = Vec::new();
    let (mut start, mut depth) = (0, 0_i64);
    for (edge, change) in edges {
        if depth > 0 {
            layers.push((ByteRange::between(start, edge), depth.unsigned_abs()));
        }
        depth += change;
        start = edge;
    }
    layers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_overlap_are_told_once_and_how_often() {
        let range = ByteRange::between;
        let ranges = [
            range(0, 8),
            range(4, 4),
            range(4, 12),
            range(4, 8),
            range(20, 24),
        ];
        let expected = [
            (range(0, 4), 1),
            (range(4, 8), 3),
            (range(8, 12), 1),
            (range(20, 24), 1),
        ];
        assert_eq!(layers(ranges.into_iter()), expected);
    }
}
