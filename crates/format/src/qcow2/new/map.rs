//! The L2 tables of an image in the making: those that are used, in bounded memory.
//!
//! What there is no room for is written to its place early and read again when it is touched. A table that
//! somebody holds stays, so it can be changed by threads that wait for nothing.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use blockferry_block::{Buffer, ByteRange, Result};

use super::places::Places;
use crate::below::Below;
use crate::qcow2::{
    entry::Entry,
    geometry::{Geometry, corrupt},
};

/// What a table takes beside its words, in bytes, about.
const OVERHEAD: u64 = 160;
/// How much of tables is written in one request, in bytes.
const WRITTEN_AT_ONCE: u64 = 1 << 20;

/// An L2 table.
pub(super) struct Table {
    /// As in the file, in the byte order of this machine.
    words: Box<[AtomicU64]>,
    /// How many words an entry has.
    width: usize,
    /// It was changed since it was written.
    is_dirty: AtomicBool,
    /// When it was used last.
    used: AtomicU64,
}

/// The tables by their indices.
pub(super) struct Map {
    file: Arc<Below>,
    places: Arc<Places>,
    state: RwLock<State>,
    /// Held by who writes tables early or reads them again.
    moving: tokio::sync::Mutex<()>,
    clock: AtomicU64,
    /// How many tables there is room for.
    most: usize,
    words: usize,
    width: usize,
}

#[derive(Default)]
struct State {
    tables: HashMap<u64, Arc<Table>>,
    /// Where tables were written to: offsets in the file, 0 for none.
    homes: Vec<u64>,
    /// The indices of all that are in memory or were written.
    used: BTreeSet<u64>,
}

impl Table {
    fn new(words: usize, width: usize) -> Self {
        Self {
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
            width,
            is_dirty: AtomicBool::new(false),
            used: AtomicU64::new(0),
        }
    }

    /// The entry `index`, which the table has.
    pub(super) fn entry(&self, index: usize) -> Entry {
        let word = |at: usize| self.words[at].load(Ordering::Acquire);
        Entry {
            word: word(index * self.width),
            subclusters: match self.width {
                2 => word(index * 2 + 1),
                _ => 0,
            },
        }
    }

    /// Changes the entry `index`, which the table has, and gives what it was.
    pub(super) fn replace(&self, index: usize, entry: Entry) -> Entry {
        let swap = |at: usize, word| self.words[at].swap(word, Ordering::AcqRel);
        let before = Entry {
            word: swap(index * self.width, entry.word),
            subclusters: match self.width {
                2 => swap(index * 2 + 1, entry.subclusters),
                _ => 0,
            },
        };
        self.is_dirty.store(true, Ordering::Release);
        before
    }

    /// Changes the word of the entry `index` if it is still `before`; otherwise gives what it is.
    pub(super) fn exchange(&self, index: usize, before: u64, after: u64) -> Result<(), u64> {
        let word = &self.words[index * self.width];
        word.compare_exchange(before, after, Ordering::AcqRel, Ordering::Acquire)?;
        self.is_dirty.store(true, Ordering::Release);
        Ok(())
    }

    /// Changes what the entry `index` says of subclusters.
    pub(super) fn set_subclusters(&self, index: usize, subclusters: u64) {
        if self.width == 2 {
            self.words[index * 2 + 1].store(subclusters, Ordering::Release);
            self.is_dirty.store(true, Ordering::Release);
        }
    }

    /// How many entries it has.
    pub(super) fn len(&self) -> usize {
        self.words.len() / self.width
    }

    /// Whether nothing is in it.
    fn is_blank(&self) -> bool {
        self.words
            .iter()
            .all(|word| word.load(Ordering::Acquire) == 0)
    }

    /// As in the file.
    fn encode(&self, bytes: &mut [u8]) {
        let (chunks, _) = bytes.as_chunks_mut::<8>();
        for (bytes, word) in chunks.iter_mut().zip(&self.words) {
            *bytes = word.load(Ordering::Acquire).to_be_bytes();
        }
    }

    fn decode(&self, bytes: &[u8]) {
        let (chunks, _) = bytes.as_chunks::<8>();
        for (bytes, word) in chunks.iter().zip(&self.words) {
            word.store(u64::from_be_bytes(*bytes), Ordering::Release);
        }
    }
}

impl Map {
    /// No tables, of which `memory` bytes may be held; the others are in `file`.
    pub(super) fn new(
        geometry: Geometry,
        memory: u64,
        file: Arc<Below>,
        places: Arc<Places>,
    ) -> Self {
        let table = geometry.cluster_size() + OVERHEAD;
        Self {
            file,
            places,
            state: RwLock::default(),
            moving: tokio::sync::Mutex::default(),
            clock: AtomicU64::new(0),
            most: usize::try_from(memory / table).unwrap_or(usize::MAX).max(4),
            words: (geometry.cluster_size() / 8) as usize,
            width: (geometry.entry_size() / 8) as usize,
        }
    }

    /// The table, if it is in memory.
    pub(super) fn cached(&self, index: u64) -> Option<Arc<Table>> {
        self.read().tables.get(&index).cloned()
    }

    /// The first table from `index` on that there is, in memory or not.
    pub(super) fn next_used(&self, index: u64) -> Option<u64> {
        self.read().used.range(index..).next().copied()
    }

    /// How many tables are in memory.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.read().tables.len()
    }

    /// Whether there is no room for another table, so that [`table`](Self::table) may have to write some.
    pub(super) fn is_full(&self) -> bool {
        self.read().tables.len() >= self.most
    }

    /// The table, if there is one. For who only looks.
    pub(super) async fn existing(&self, index: u64) -> Result<Option<Arc<Table>>> {
        {
            let state = self.read();
            if let Some(table) = state.tables.get(&index) {
                return Ok(Some(Arc::clone(table)));
            }
            if state.home(index) == 0 {
                return Ok(None);
            }
        }
        if self.is_full() {
            self.make_room().await?;
        }
        let _moving = self.moving.lock().await;
        let home = {
            let state = self.read();
            if let Some(table) = state.tables.get(&index) {
                return Ok(Some(Arc::clone(table)));
            }
            state.home(index)
        };
        if home == 0 {
            return Ok(None);
        }
        let bytes = self.file.read(home, Buffer::zeroed(self.words * 8)).await?;
        let table = Arc::new(Table::new(self.words, self.width));
        table.decode(&bytes);
        self.touch(&table);
        self.write().insert(index, &table);
        Ok(Some(table))
    }

    /// The table, to be changed; an empty one if there was none. Others are written early where there is no room.
    pub(super) async fn table(&self, index: u64) -> Result<Arc<Table>> {
        if self.is_full() && self.cached(index).is_none() {
            self.make_room().await?;
        }
        let table = loop {
            if let Some(table) = self.existing(index).await? {
                break table;
            }
            let mut state = self.write();
            // Otherwise others have made one meanwhile, which was written early and forgotten.
            if state.home(index) == 0 || state.tables.contains_key(&index) {
                if let Some(table) = state.tables.get(&index) {
                    break Arc::clone(table);
                }
                let new = Arc::new(Table::new(self.words, self.width));
                state.insert(index, &new);
                break new;
            }
        };
        self.touch(&table);
        Ok(table)
    }

    /// Writes what was not used for the longest time, a quarter of all, and forgets it.
    async fn make_room(&self) -> Result<()> {
        let _moving = self.moving.lock().await;
        let mut oldest: Vec<_> = {
            let state = self.read();
            if state.tables.len() < self.most {
                return Ok(());
            }
            let tables = state.tables.iter();
            tables
                .map(|(index, table)| (table.used.load(Ordering::Relaxed), *index))
                .collect()
        };
        let count = (oldest.len() / 4).max(1);
        oldest.select_nth_unstable(count - 1);
        let mut indices: Vec<_> = oldest[..count].iter().map(|(_, index)| *index).collect();
        indices.sort_unstable();
        self.write_tables(&indices).await?;
        let mut state = self.write();
        for index in indices {
            let Some(table) = state.tables.get_mut(&index) else {
                continue;
            };
            // Nobody holds it, so nobody changes it, and nobody can take it before it is gone.
            let Some(table) = Arc::get_mut(table) else {
                continue;
            };
            if !*table.is_dirty.get_mut() {
                state.forget(index);
            }
        }
        Ok(())
    }

    /// Writes all tables, those that are in memory, and says where each table is by its index; 0 where there is none.
    pub(super) async fn write_all(&self) -> Result<Vec<u64>> {
        let _moving = self.moving.lock().await;
        let mut indices: Vec<_> = self.read().tables.keys().copied().collect();
        indices.sort_unstable();
        self.write_tables(&indices).await?;
        Ok(self.read().homes.clone())
    }

    /// Writes those of the tables that are not in their places as they are, many at a time.
    async fn write_tables(&self, indices: &[u64]) -> Result<()> {
        let cluster = self.words as u64 * 8;
        let at_once = (WRITTEN_AT_ONCE / cluster).max(1) as usize;
        let mut batch: Vec<(u64, Arc<Table>)> = Vec::new();
        for index in indices {
            let Some(table) = self.cached(*index) else {
                continue;
            };
            let is_dirty = table.is_dirty.swap(false, Ordering::AcqRel);
            let home = self.read().home(*index);
            if !is_dirty || home == 0 && table.is_blank() {
                continue;
            }
            // Until it is on its way: another's write may fail before.
            table.is_dirty.store(true, Ordering::Release);
            if home != 0 {
                self.write_batch(&[(*index, table)], home).await?;
                continue;
            }
            batch.push((*index, table));
            if batch.len() == at_once {
                let home = self.places.take(batch.len() as u64)?;
                self.write_batch(&batch, home).await?;
                batch.clear();
            }
        }
        if !batch.is_empty() {
            let home = self.places.take(batch.len() as u64)?;
            self.write_batch(&batch, home).await?;
        }
        Ok(())
    }

    /// Writes tables side by side from `home` on. When that fails, or is given up, nothing is ever read from
    /// there again: what was begun may still be written at any time.
    async fn write_batch(&self, batch: &[(u64, Arc<Table>)], home: u64) -> Result<()> {
        let cluster = self.words * 8;
        let range = ByteRange::between(home, home + (batch.len() * cluster) as u64);
        let mut writing = Writing {
            map: self,
            batch,
            range,
            is_done: false,
        };
        let mut bytes = Buffer::zeroed(batch.len() * cluster);
        for ((index, table), bytes) in batch.iter().zip(bytes.chunks_exact_mut(cluster)) {
            self.write().set_home(*index, 0);
            // What changes from here on makes it dirty again.
            table.is_dirty.swap(false, Ordering::AcqRel);
            table.encode(bytes);
        }
        self.file.write_blocks(home, bytes).await?;
        writing.is_done = true;
        let mut state = self.write();
        for ((index, _), home) in batch.iter().zip((home..).step_by(cluster)) {
            state.set_home(*index, home);
        }
        Ok(())
    }

    fn touch(&self, table: &Table) {
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        table.used.store(now, Ordering::Relaxed);
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn home(&self, index: u64) -> u64 {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        self.homes.get(index).copied().unwrap_or(0)
    }

    fn set_home(&mut self, index: u64, home: u64) {
        // The virtual size bounds the index: an L1 table has 32 MiB at most.
        let index = index as usize;
        if self.homes.len() <= index {
            self.homes.resize(index + 1, 0);
        }
        self.homes[index] = home;
    }

    fn insert(&mut self, index: u64, table: &Arc<Table>) {
        self.tables.insert(index, Arc::clone(table));
        self.used.insert(index);
    }

    /// Forgets a table that is as it was written, or was never written because nothing is in it.
    fn forget(&mut self, index: u64) {
        self.tables.remove(&index);
        if self.home(index) == 0 {
            self.used.remove(&index);
        }
    }
}

/// Tables that are on their way to their places.
struct Writing<'a> {
    map: &'a Map,
    batch: &'a [(u64, Arc<Table>)],
    range: ByteRange,
    is_done: bool,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        self.map.places.give_back(self.range);
        let mut state = self.map.write();
        for (index, table) in self.batch {
            state.set_home(*index, 0);
            table.is_dirty.store(true, Ordering::Release);
        }
    }
}

/// The table's index and the entry's for each cluster of `range`, one table after the other: the index, the first
/// entry, and how many.
pub(super) fn spans(
    geometry: Geometry,
    range: ByteRange,
) -> impl Iterator<Item = (u64, usize, usize)> {
    let cluster = geometry.cluster_size();
    range.pieces(geometry.table_span()).map(move |piece| {
        let (table, first) = geometry.indices(piece.start());
        let last = piece.end().div_ceil(cluster);
        (table, first, (last - piece.start() / cluster) as usize)
    })
}

/// An entry that is none: a place that was promised and is not given yet.
pub(super) const PENDING: u64 = 1 << 1;

/// What an entry says, with [`PENDING`] taken for an error.
pub(super) fn decode(entry: Entry, geometry: Geometry) -> Result<crate::qcow2::entry::Cluster> {
    if entry.word == PENDING {
        return Err(corrupt("a cluster has no place yet"));
    }
    entry.decode(geometry)
}
