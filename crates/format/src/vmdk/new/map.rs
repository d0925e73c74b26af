//! Where the grains of a new image lie, as far as they have been written.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
};

use blockferry_block::ByteRange;

use super::GRAIN;

/// How many entries a grain table has.
pub(super) const ENTRIES: u64 = 512;
/// How much of the disk one is for, in bytes.
const SPAN: u64 = ENTRIES * GRAIN;

/// An entry of a grain that is on its way.
pub(super) const PENDING: u32 = u32::MAX;

/// Grain tables, by their number: those that anything was written of.
#[derive(Default)]
pub(super) struct Map(RwLock<BTreeMap<u64, Arc<Table>>>);

/// A grain table.
pub(super) struct Table {
    entries: Box<[AtomicU32]>,
    /// Where it was written, in sectors, unless something has changed since; 0 otherwise.
    place: AtomicU32,
}

impl Map {
    /// Table `number`, made if there was none.
    pub(super) fn table(&self, number: u64) -> Arc<Table> {
        if let Some(table) = self.existing(number) {
            return table;
        }
        let mut tables = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let made = || {
            Arc::new(Table {
                entries: (0..ENTRIES).map(|_| AtomicU32::new(0)).collect(),
                place: AtomicU32::new(0),
            })
        };
        Arc::clone(tables.entry(number).or_insert_with(made))
    }

    pub(super) fn existing(&self, number: u64) -> Option<Arc<Table>> {
        let tables = self.0.read().unwrap_or_else(PoisonError::into_inner);
        tables.get(&number).cloned()
    }

    /// The first table from `number` on that there is.
    pub(super) fn next(&self, number: u64) -> Option<(u64, Arc<Table>)> {
        let tables = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let next = tables.range(number..).next();
        next.map(|(number, table)| (*number, Arc::clone(table)))
    }

    /// The tables that there are for `range`, each with the entries that it touches.
    pub(super) fn tables_in(&self, range: ByteRange) -> Vec<(u64, Arc<Table>, Range<usize>)> {
        let mut list = Vec::new();
        let mut number = range.start() / SPAN;
        while let Some((next, table)) = self.next(number)
            && next.saturating_mul(SPAN) < range.end()
        {
            let span = ByteRange::between(next * SPAN, (next + 1).saturating_mul(SPAN));
            let here = span.intersection(range);
            let from = (here.start() - span.start()) / GRAIN;
            let to = (here.end() - span.start()).div_ceil(GRAIN);
            list.push((next, table, from as usize..to as usize));
            number = next + 1;
        }
        list
    }
}

impl Table {
    /// Where grain `index` lies, in sectors; 0: nowhere, and zero.
    pub(super) fn entry(&self, index: usize) -> u32 {
        self.entries[index].load(Ordering::Acquire)
    }

    /// Sets entry `index`, and gives what it was.
    pub(super) fn set(&self, index: usize, entry: u32) -> u32 {
        let before = self.entries[index].swap(entry, Ordering::AcqRel);
        self.place.store(0, Ordering::Release);
        before
    }

    /// Sets entry `index` if it is 0, and gives what it was.
    pub(super) fn claim(&self, index: usize, entry: u32) -> u32 {
        let swap = Ordering::AcqRel;
        let claimed = self.entries[index].compare_exchange(0, entry, swap, Ordering::Acquire);
        match claimed {
            Ok(before) | Err(before) => before,
        }
    }

    pub(super) fn place(&self) -> u32 {
        self.place.load(Ordering::Acquire)
    }

    pub(super) fn written_at(&self, sector: u32) {
        self.place.store(sector, Ordering::Release);
    }

    /// Whether none of its grains lies anywhere.
    pub(super) fn is_empty(&self) -> bool {
        (0..self.entries.len()).all(|index| self.entry(index) == 0)
    }

    /// Its bytes; `None` while grains are on their way.
    pub(super) fn bytes(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(self.entries.len() * 4);
        for index in 0..self.entries.len() {
            match self.entry(index) {
                PENDING => return None,
                entry => bytes.extend(entry.to_le_bytes()),
            }
        }
        Some(bytes)
    }
}

/// The table and the entry of the grain at `offset` of the disk.
pub(super) fn place_of(offset: u64) -> (u64, usize) {
    (offset / SPAN, (offset % SPAN / GRAIN) as usize)
}

/// How many tables a disk of `size` bytes has.
pub(super) fn tables_of(size: u64) -> u64 {
    size.div_ceil(SPAN)
}
