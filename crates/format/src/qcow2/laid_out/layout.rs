//! Where everything lies in a file that is computed in advance, and what its tables say.
//!
//! ```text
//!   header | refcount table | refcount blocks | L1 table | L2 tables | data
//! ```

use blockferry_block::{ByteRange, Result};

use super::runs::Run;
use crate::qcow2::{
    CreateOptions,
    entry::{COPIED, Cluster, Entry},
    geometry::Geometry,
    new::{check_layout, encode_entry, header, refcount_sizes, stored_size},
    refcounts::set_refcount,
};

/// The layout of a file. All that it takes to make it is in here but the data.
#[derive(Debug)]
pub(super) struct Layout {
    geometry: Geometry,
    header: Vec<u8>,
    /// Which clusters of the disk have data.
    runs: Vec<Run>,
    /// The L2 tables that there are, by their indices.
    tables: Vec<u32>,
    /// Clusters of the file: where each part begins, and where the last one ends.
    refcount_table: u64,
    blocks: u64,
    l1: u64,
    l2: u64,
    data: u64,
    end: u64,
}

/// A part of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// A part of this cluster, which is no data.
    Table { number: u64, place: ByteRange },
    /// Data, which may reach behind the end of the disk.
    Data { place: ByteRange, guest: ByteRange },
}

impl Layout {
    /// The file with these options for a disk of `size` bytes whose data is in `runs`.
    ///
    /// # Errors
    /// `InvalidInput` and `NoSpace` where no such file can be.
    pub(super) fn new(options: &CreateOptions, size: u64, runs: Vec<Run>) -> Result<Self> {
        check_layout(options, size)?;
        let geometry = options.geometry(stored_size(size));
        let tables = tables_of(geometry, &runs);
        let data = runs.last().map_or(0, |last| last.before + last.count);
        let l1_length = geometry.l1_entries() * 8;
        let l1_clusters = l1_length.div_ceil(geometry.cluster_size());
        let used = 1 + l1_clusters + tables.len() as u64 + data;
        let (block_count, table_clusters) = refcount_sizes(geometry, used)?;
        let refcount_table = 1;
        let blocks = refcount_table + table_clusters;
        let l1 = blocks + block_count;
        let l2 = l1 + l1_clusters;
        let data_start = l2 + tables.len() as u64;
        let cluster = geometry.cluster_size();
        let l1_place = match l1_length {
            0 => ByteRange::default(),
            length => ByteRange::between(l1 * cluster, l1 * cluster + length),
        };
        let table_place = ByteRange::between(refcount_table * cluster, blocks * cluster);
        let header = header(options, geometry, l1_place, table_place).encode()?;
        Ok(Self {
            geometry,
            header,
            runs,
            tables,
            refcount_table,
            blocks,
            l1,
            l2,
            data: data_start,
            end: data_start + data,
        })
    }

    /// The length of the file in bytes.
    pub(super) fn size(&self) -> u64 {
        self.end * self.geometry.cluster_size()
    }

    /// Which part of the disk lies at the beginning of `range`, and how much of `range` it is; `None` for tables.
    pub(super) fn guest_at(&self, range: ByteRange) -> Option<(ByteRange, u64)> {
        let cluster = self.geometry.cluster_size();
        let number = (range.start() / cluster).checked_sub(self.data)?;
        let run = self.runs.partition_point(|run| run.before <= number);
        let run = self.runs.get(run.checked_sub(1)?)?;
        let end = (run.before + run.count + self.data) * cluster;
        let place = range.intersection(ByteRange::between(0, end));
        let first = run.first + (number - run.before);
        let start = first * cluster + place.start() % cluster;
        let guest = ByteRange::between(start, start + place.len());
        Some((guest, place.len()))
    }

    /// The parts of `range`, in order.
    pub(super) fn pieces(&self, range: ByteRange) -> impl Iterator<Item = Piece> {
        let cluster = self.geometry.cluster_size();
        let mut rest = range.intersection(ByteRange::between(0, self.size()));
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            if let Some((guest, length)) = self.guest_at(rest) {
                let (place, later) = rest.split_at(length);
                rest = later;
                return Some(Piece::Data { place, guest });
            }
            let number = rest.start() / cluster;
            let (place, later) = rest.split_at(cluster - rest.start() % cluster);
            rest = later;
            Some(Piece::Table { number, place })
        })
    }

    /// Fills `bytes` with what is at `place` within the cluster `number`, which is no data.
    pub(super) fn fill(&self, number: u64, place: ByteRange, bytes: &mut [u8]) {
        let cluster = self.geometry.cluster_size();
        let mut whole = vec![0; cluster as usize];
        self.fill_cluster(number, &mut whole);
        let at = (place.start() % cluster) as usize;
        bytes.copy_from_slice(&whole[at..at + bytes.len()]);
    }

    fn fill_cluster(&self, number: u64, bytes: &mut [u8]) {
        let cluster = self.geometry.cluster_size();
        let per_cluster = cluster / 8;
        if number < self.refcount_table {
            bytes[..self.header.len()].copy_from_slice(&self.header);
        } else if number < self.blocks {
            let first = (number - self.refcount_table) * per_cluster;
            let count = self.l1 - self.blocks;
            fill_words(bytes, first, |block| {
                (block < count).then(|| (self.blocks + block) * cluster)
            });
        } else if number < self.l1 {
            let per_block = self.geometry.refcounts_per_block();
            let first = (number - self.blocks) * per_block;
            // Everything that there is has one reference.
            for index in 0..self.end.saturating_sub(first).min(per_block) {
                set_refcount(bytes, self.geometry.refcount_order, index as usize, 1);
            }
        } else if number < self.l2 {
            let first = (number - self.l1) * per_cluster;
            fill_words(bytes, first, |index| {
                let index = u32::try_from(index).ok()?;
                let place = self.tables.binary_search(&index).ok()?;
                Some(((self.l2 + place as u64) * cluster) | COPIED)
            });
        } else if let Some(index) = self.tables.get((number - self.l2) as usize) {
            self.fill_l2(u64::from(*index), bytes);
        }
    }

    fn fill_l2(&self, index: u64, bytes: &mut [u8]) {
        let entries = self.geometry.l2_entries();
        let width = self.geometry.entry_size() as usize;
        let (first, end) = (index * entries, (index + 1) * entries);
        let from = self
            .runs
            .partition_point(|run| run.first + run.count <= first);
        for run in self.runs[from..].iter().take_while(|run| run.first < end) {
            for guest in run.first.max(first)..(run.first + run.count).min(end) {
                let host = self.data + run.before + (guest - run.first);
                let host = host * self.geometry.cluster_size();
                let entry = Entry::encode(Cluster::Data { host }, self.geometry);
                let at = (guest - first) as usize * width;
                encode_entry(entry, &mut bytes[at..at + width]);
            }
        }
    }
}

/// Fills a part of a table of words, beginning with the word `first`.
fn fill_words(bytes: &mut [u8], first: u64, word: impl Fn(u64) -> Option<u64>) {
    let (chunks, _) = bytes.as_chunks_mut::<8>();
    for (index, bytes) in (first..).zip(chunks) {
        *bytes = word(index).unwrap_or(0).to_be_bytes();
    }
}

/// The indices of the L2 tables that runs need. An L1 table has four million entries at most.
fn tables_of(geometry: Geometry, runs: &[Run]) -> Vec<u32> {
    let entries = geometry.l2_entries();
    let mut tables: Vec<u32> = Vec::new();
    for run in runs {
        let (first, last) = (run.first / entries, (run.first + run.count - 1) / entries);
        let first = match tables.last() {
            Some(known) => first.max(u64::from(*known) + 1),
            None => first,
        };
        tables.extend((first..=last).map(|index| index as u32));
    }
    tables
}
