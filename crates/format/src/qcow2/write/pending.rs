//! What the tables in memory say and those in the file do not yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
};

use crate::qcow2::{
    allocate::Clusters,
    entry::{COPIED, Entry},
    geometry::Geometry,
    pieces::{Piece, parts_of, ranges_of},
    tables::{L2Table, Tables},
};

/// Changes of L1 and L2 tables since the last commit. All of them are made under one lock, so that a commit takes
/// either all of a change or nothing.
#[derive(Default)]
pub(super) struct Pending {
    changes: TableChanges,
    /// A commit is under way.
    pub(super) is_committing: bool,
}

/// What one commit writes.
#[derive(Default)]
pub(super) struct TableChanges {
    tables: BTreeMap<u64, ChangedTable>,
    /// Parts of the L1 table.
    l1: BTreeSet<u64>,
    /// What the changed tables do not name any more: it is free once they are in the file.
    pub(super) freed: Vec<Clusters>,
}

struct ChangedTable {
    /// Pinned.
    table: Arc<L2Table>,
    parts: u64,
    /// The L1 table in the file does not name it.
    is_new: bool,
}

/// The bytes of the changes.
#[derive(Default)]
pub(super) struct TablePieces {
    /// L2 tables that the L1 table in the file does not name.
    pub(super) new: Vec<Piece>,
    /// Of other L2 tables, and of the L1 table.
    pub(super) changed: Vec<Piece>,
}

impl Pending {
    /// Whether the file's tables are those in memory.
    pub(super) fn is_clean(&self) -> bool {
        self.changes.is_empty() && !self.is_committing
    }

    /// How many L2 tables have changed.
    pub(super) fn tables(&self) -> usize {
        self.changes.tables.len()
    }

    /// How many entries the list of what is freed has.
    pub(super) fn freed(&self) -> usize {
        self.changes.freed.len()
    }

    /// Sets entries of L2 table `index`.
    pub(super) fn set(
        &mut self,
        index: u64,
        table: &Arc<L2Table>,
        entries: impl IntoIterator<Item = (usize, Entry)>,
        geometry: Geometry,
        part: u64,
    ) {
        let size = geometry.entry_size();
        let changed = self.changes.tables.entry(index).or_insert_with(|| {
            table.pin();
            ChangedTable {
                table: Arc::clone(table),
                parts: 0,
                is_new: false,
            }
        });
        for (at, entry) in entries {
            table.set(at, entry);
            let byte = at as u64 * size;
            changed.parts |= parts_of(byte..byte + size, part);
        }
    }

    /// Puts a new L2 table into its place, which is at `place` of the file.
    pub(super) fn add_table(
        &mut self,
        index: u64,
        table: Arc<L2Table>,
        place: u64,
        tables: &Tables,
        part: u64,
    ) {
        table.pin();
        tables.put(index, Arc::clone(&table));
        let changed = ChangedTable {
            table,
            parts: u64::MAX,
            is_new: true,
        };
        // The one that it takes the place of was shared with a snapshot, and so never changed.
        self.changes.tables.insert(index, changed);
        tables.l1()[index as usize].store(place | COPIED, Ordering::Release);
        self.changes.l1.insert(index * 8 / part);
    }

    /// Takes L2 table `index` out of the L1 table. What it and its entries lie in is to be [freed](Self::free).
    pub(super) fn remove_table(&mut self, index: u64, tables: &Tables, part: u64) {
        if let Some(changed) = self.changes.tables.remove(&index) {
            changed.table.unpin();
        }
        tables.l1()[index as usize].store(0, Ordering::Release);
        self.changes.l1.insert(index * 8 / part);
    }

    /// Notes what is free once the changes are in the file.
    pub(super) fn free(&mut self, clusters: Clusters) {
        match self.changes.freed.last_mut() {
            Some(last) if last.first + last.count == clusters.first => last.count += clusters.count,
            _ => self.changes.freed.push(clusters),
        }
    }

    /// Takes all changes, and their bytes as they are now.
    pub(super) fn take(
        &mut self,
        tables: &Tables,
        geometry: Geometry,
        part: u64,
    ) -> (TableChanges, TablePieces) {
        self.is_committing = true;
        let changes = std::mem::take(&mut self.changes);
        let pieces = changes.pieces(tables, geometry, part);
        (changes, pieces)
    }

    /// The changes are in the file. Gives what is free now.
    pub(super) fn committed(&mut self, changes: TableChanges, tables: &Tables) -> Vec<Clusters> {
        self.is_committing = false;
        // Whoever read a table just before must not take it for the present one when it is forgotten.
        tables.changing();
        for changed in changes.tables.values() {
            changed.table.unpin();
        }
        changes.freed
    }

    /// Nobody knows which of the changes are in the file. `is_linked`: what was new is wholly in the file, and the L1
    /// table may name it.
    pub(super) fn failed(&mut self, changes: TableChanges, is_linked: bool) {
        self.is_committing = false;
        for (index, mut old) in changes.tables {
            old.is_new &= !is_linked;
            match self.changes.tables.get_mut(&index) {
                None => {
                    self.changes.tables.insert(index, old);
                }
                Some(new) => {
                    new.parts |= old.parts;
                    new.is_new |= old.is_new;
                    old.table.unpin();
                }
            }
        }
        self.changes.l1.extend(changes.l1);
        self.changes.freed.extend(changes.freed);
    }
}

impl TableChanges {
    fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.l1.is_empty()
    }

    fn pieces(&self, tables: &Tables, geometry: Geometry, part: u64) -> TablePieces {
        let mut pieces = TablePieces::default();
        let (cluster, entry) = (geometry.cluster_size(), geometry.entry_size());
        for (index, changed) in &self.tables {
            let word = tables.l1()[*index as usize].load(Ordering::Acquire);
            let place = word & crate::qcow2::entry::OFFSET;
            let parts = if changed.is_new {
                u64::MAX
            } else {
                changed.parts
            };
            let list = match changed.is_new {
                true => &mut pieces.new,
                false => &mut pieces.changed,
            };
            for range in ranges_of(parts, part) {
                let range = range.start.min(cluster)..range.end.min(cluster);
                if range.is_empty() {
                    continue;
                }
                let entries = (range.start / entry) as usize..(range.end / entry) as usize;
                list.push(Piece {
                    offset: place + range.start,
                    bytes: changed.table.bytes(entries),
                });
            }
        }
        let l1 = tables.l1();
        for index in &self.l1 {
            let first = (index * part / 8) as usize;
            let end = l1.len().min(first + (part / 8) as usize);
            let words = l1[first..end].iter();
            let words = words.flat_map(|word| word.load(Ordering::Acquire).to_be_bytes());
            pieces.changed.push(Piece {
                offset: tables.l1_place().start() + index * part,
                bytes: words.collect(),
            });
        }
        pieces
    }
}
