//! As many tables as there is room for: those that were not looked at for longest go first.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering},
    },
};

/// A table that can be kept.
pub(crate) trait CachedTable {
    /// Whether it has what the file does not have, and must stay.
    fn is_pinned(&self) -> bool {
        false
    }
}

/// Tables by their index in the table that says where they are.
pub(crate) struct TableCache<T> {
    most: usize,
    kept: RwLock<Kept<T>>,
}

struct Kept<T> {
    slots: Vec<Slot<T>>,
    /// Indices into the slots.
    places: HashMap<u64, usize>,
    /// The slot that is looked at next when one must go.
    hand: usize,
    /// How often a table was about to be changed.
    changes: u64,
}

struct Slot<T> {
    index: u64,
    table: Arc<T>,
    /// Whether it was looked at since the hand came by.
    is_used: AtomicBool,
}

/// Since when tables are being read that nobody else knows of.
#[derive(Clone, Copy)]
pub(crate) struct Reader(u64);

impl<T: CachedTable> TableCache<T> {
    /// Room for `most` tables.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            kept: RwLock::new(Kept {
                slots: Vec::new(),
                places: HashMap::new(),
                hand: 0,
                changes: 0,
            }),
        }
    }

    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// The table `index`, if it is here.
    pub(crate) fn find(&self, index: u64) -> Option<Arc<T>> {
        self.read().find(index)
    }

    /// Keeps `table`, unless there is one already: gives what is here then. `None` where it may have been changed since
    /// it was read.
    pub(crate) fn keep(&self, index: u64, table: Arc<T>, reader: Reader) -> Option<Arc<T>> {
        let mut kept = self.write();
        if let Some(table) = kept.find(index) {
            return Some(table);
        }
        if kept.changes != reader.0 {
            return None;
        }
        kept.insert(index, Arc::clone(&table), self.most);
        Some(table)
    }

    /// Keeps `table` in the place of the one that is here.
    pub(crate) fn replace(&self, index: u64, table: Arc<T>) {
        let mut kept = self.write();
        kept.changes += 1;
        match kept.places.get(&index).copied() {
            Some(at) => kept.slots[at].table = table,
            None => kept.insert(index, table, self.most),
        }
    }

    /// To be asked for before tables are read outside of anyone's sight.
    pub(crate) fn reader(&self) -> Reader {
        Reader(self.read().changes)
    }

    /// What was read by anyone who has a [`Reader`] now is not kept.
    pub(crate) fn forget_readers(&self) {
        self.write().changes += 1;
    }

    /// Keeps the tables from `first` on, as far as they are not here, unless one may have been changed since they
    /// were read.
    pub(crate) fn keep_row(&self, first: u64, tables: Vec<Arc<T>>, reader: Reader) {
        let mut kept = self.write();
        if kept.changes != reader.0 {
            return;
        }
        for (index, table) in (first..).zip(tables) {
            if kept.find(index).is_none() {
                kept.insert(index, table, self.most);
            }
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Kept<T>> {
        self.kept.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Kept<T>> {
        self.kept.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: CachedTable> Kept<T> {
    fn find(&self, index: u64) -> Option<Arc<T>> {
        let slot = &self.slots[*self.places.get(&index)?];
        slot.is_used.store(true, Ordering::Relaxed);
        Some(Arc::clone(&slot.table))
    }

    /// Takes `table` in, which is not here. Where all that are here are in use there are more than `most`.
    fn insert(&mut self, index: u64, table: Arc<T>, most: usize) {
        while self.slots.len() >= most && self.forget_one() {}
        self.places.insert(index, self.slots.len());
        self.slots.push(Slot {
            index,
            table,
            is_used: AtomicBool::new(true),
        });
    }

    /// Forgets a table that nobody holds and that is not pinned; says whether there was one.
    fn forget_one(&mut self) -> bool {
        for _ in 0..2 * self.slots.len() {
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = &self.slots[self.hand];
            // Whoever has it may pin it at any time; whoever gets it does so under the lock.
            let is_held = Arc::strong_count(&slot.table) > 1 || slot.table.is_pinned();
            if is_held || slot.is_used.swap(false, Ordering::Relaxed) {
                continue;
            }
            let gone = self.slots.swap_remove(self.hand);
            self.places.remove(&gone.index);
            if let Some(moved) = self.slots.get(self.hand) {
                self.places.insert(moved.index, self.hand);
            }
            return true;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    /// One that can be pinned.
    struct Table(AtomicBool);

    impl CachedTable for Table {
        fn is_pinned(&self) -> bool {
            self.0.load(Ordering::Relaxed)
        }
    }

    fn table() -> Arc<Table> {
        Arc::new(Table(AtomicBool::new(false)))
    }

    fn keep(cache: &TableCache<Table>, index: u64) -> Arc<Table> {
        let kept = cache.keep(index, table(), cache.reader());
        kept.expect("nothing has changed")
    }

    #[test]
    fn tables_that_are_not_looked_at_are_forgotten_first() {
        let cache = TableCache::new(4);
        for index in 0..100 {
            keep(&cache, index);
            assert!(cache.find(index).is_some());
            assert!(cache.find(0).is_some(), "looked at after each");
        }
        let here = (0..100).filter(|index| cache.find(*index).is_some());
        assert_eq!(here.count(), 4);
    }

    #[test]
    fn a_table_that_is_held_or_pinned_stays() {
        let cache = TableCache::new(2);
        let held = keep(&cache, 0);
        let pinned = keep(&cache, 1);
        pinned.0.store(true, Ordering::Relaxed);
        drop(pinned);
        for index in 2..20 {
            keep(&cache, index);
        }
        assert!(
            cache
                .find(0)
                .is_some_and(|table| Arc::ptr_eq(&table, &held))
        );
        assert!(cache.find(1).is_some());
        drop(held);
        let pinned = cache.find(1).expect("pinned");
        pinned.0.store(false, Ordering::Relaxed);
        drop(pinned);
        for index in 20..40 {
            keep(&cache, index);
        }
        assert!(cache.find(0).is_none() && cache.find(1).is_none());
    }

    #[test]
    fn what_was_read_before_a_change_is_not_kept() {
        let cache = TableCache::new(8);
        let reader = cache.reader();
        cache.forget_readers();
        cache.keep_row(0, vec![table(), table()], reader);
        assert!(cache.keep(0, table(), reader).is_none());
        assert!(cache.find(0).is_none());
        let known = keep(&cache, 1);
        cache.keep_row(0, vec![table(), table()], cache.reader());
        assert!(cache.find(0).is_some());
        assert!(
            cache
                .find(1)
                .is_some_and(|table| Arc::ptr_eq(&table, &known))
        );
    }
}
