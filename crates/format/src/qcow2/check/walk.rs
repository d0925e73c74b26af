//! The walk through everything that uses clusters.

use std::collections::BTreeMap;

use blockferry_block::{BlockDevice, Buffer, ByteRange, Error, ErrorKind, Result, read_exact_at};

use super::{
    CheckReport,
    counts::{Counts, Use},
};
use crate::qcow2::{
    bitmaps::{self, Bits},
    entry::{COPIED, Cluster, Entry, OFFSET},
    geometry::Geometry,
    header::{Autoclear, Header, be64},
    refcounts::{BLOCK_OFFSET, refcount},
    snapshots::SnapshotTable,
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
    report: CheckReport,
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
    pub(super) fn new(below: &'a dyn BlockDevice, header: &'a Header) -> Result<Self> {
        let geometry = header.geometry;
        let size = below.info().size;
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
            report,
        })
    }

    pub(super) async fn run(&mut self) -> Result<()> {
        let cluster = ByteRange::between(0, self.geometry.cluster_size());
        self.count("the header", cluster, 1, Use::Metadata)?;
        self.refcount_blocks().await?;
        self.l1_table("the L1 table", self.header.l1, true).await?;
        self.snapshots().await?;
        self.l2_tables().await?;
        self.bitmaps().await
    }

    /// Compares what was counted with the refcounts.
    pub(super) fn finish(self) -> CheckReport {
        let Self {
            counts,
            mut report,
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
            if counted.is_mixed && stored >= uses {
                report.corruption(format!(
                    "the cluster at {place:#x} is used for data and for tables"
                ));
            }
        }
        report.image_end = end;
        report
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
            let place = range.start();
            self.report.corruption(format!(
                "{what} at {place:#x} lies behind the end of the file"
            ));
            return Ok(false);
        }
        for index in range.start() / cluster..range.end().div_ceil(cluster) {
            self.counts.count(index, times, of)?;
        }
        Ok(true)
    }

    /// Reads `range`, which begins inside of the file; what is behind its end reads as zeroes.
    async fn read(&self, range: ByteRange) -> Result<Buffer> {
        let there = range.intersection(ByteRange::between(0, self.size));
        let read = read_exact_at(self.below, there).await?;
        if there == range {
            return Ok(read);
        }
        let mut padded = Buffer::zeroed(range.len() as usize);
        padded[..read.len()].copy_from_slice(&read);
        Ok(padded)
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
        if !self.count("the refcount table", table, 1, Use::Metadata)? {
            return Ok(());
        }
        let mut index = 0;
        for piece in table.pieces(PIECE) {
            let words = self.read(piece).await?;
            for word in words.chunks_exact(8).map(|word| be64(word, 0)) {
                let block = word & BLOCK_OFFSET;
                if word != block || !self.geometry.is_aligned(block) {
                    self.report
                        .corruption(format!("no block of refcounts can be at {word:#x}"));
                } else if block != 0 {
                    let range = ByteRange::between(block, block.saturating_add(cluster));
                    if self.count("a block of refcounts", range, 1, Use::Metadata)? {
                        self.refcount_block(index, range).await?;
                    }
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

    /// Counts an L1 table and notes the L2 tables that it points at.
    async fn l1_table(&mut self, what: &str, range: ByteRange, is_active: bool) -> Result<()> {
        if !self.count(what, range, 1, Use::Metadata)? {
            return Ok(());
        }
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
                    self.report.corruption(format!(
                        "an L2 table at {place:#x} is not on a cluster's boundary"
                    ));
                    continue;
                }
                let table = ByteRange::between(place, place + cluster);
                if !self.count("an L2 table", table, 1, Use::Metadata)? {
                    continue;
                }
                if is_active {
                    self.check_copied("the L2 table", word, place);
                }
                let uses = self.tables.entry(place).or_default();
                uses.active += u64::from(is_active);
                uses.all += 1;
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
        self.count("the snapshot table", table.range, 1, Use::Metadata)?;
        // More than the file holds must overlap.
        let mut rest = self.size;
        for snapshot in &table.snapshots {
            let Some(left) = rest.checked_sub(snapshot.l1.len()) else {
                let finding = "the L1 tables of the snapshots overlap each other";
                self.report.corruption(finding.to_owned());
                break;
            };
            rest = left;
            self.l1_table("a snapshot's L1 table", snapshot.l1, false)
                .await?;
        }
        Ok(())
    }

    /// What cannot be read, or breaks the rules.
    fn misread(&mut self, what: &str, error: &Error) {
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
        let Some(extension) = self.header.bitmaps else {
            return Ok(());
        };
        // Whoever does not know bitmaps clears the bit, and their clusters are used all the same.
        let header = Header {
            autoclear: self.header.autoclear | Autoclear::BITMAPS,
            ..self.header.clone()
        };
        let bitmaps = match bitmaps::read_directory(self.below, &header).await {
            Ok(bitmaps) => bitmaps,
            Err(error) => {
                self.misread("the directory of bitmaps", &error);
                return Ok(());
            }
        };
        let directory = extension.directory;
        self.count("the directory of bitmaps", directory, 1, Use::Metadata)?;
        let cluster = self.geometry.cluster_size();
        let mut rest = self.size;
        for bitmap in bitmaps {
            let Some(left) = rest.checked_sub(bitmap.table.len()) else {
                let finding = "the tables of the bitmaps overlap each other";
                self.report.corruption(finding.to_owned());
                break;
            };
            rest = left;
            if !self.count("the table of a bitmap", bitmap.table, 1, Use::Metadata)? {
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
                            self.count("the data of a bitmap", range, 1, Use::Metadata)?;
                        }
                        Ok(_) => {}
                        Err(error) => self.report.corruption(error.to_string()),
                    }
                }
            }
        }
        Ok(())
    }
}
