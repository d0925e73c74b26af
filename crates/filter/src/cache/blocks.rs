//! Which blocks are kept, where, and what is to be done with them before they can go.
//!
//! Blocks are spread over shards, each with a lock that is held for a lookup and a copy, never over a call to the
//! source. A shard has a fixed number of slots: those of blocks that are on their way count, so there are never
//! more blocks than were allowed. A slot is taken from the block that was not used for long (a clock: whoever was
//! used since the hand passed has another round). What is dirty is not taken: it has to be written first.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use blockferry_block::{ByteRange, Result};

use crate::store::Store;

/// From so many blocks on there are several shards.
const MANY: usize = 256;

/// How many shards there are then.
const SHARDS: usize = 16;

/// The blocks of an export that are kept.
pub(super) struct Blocks {
    /// The length of a block in bytes.
    block: u64,
    shards: Vec<Mutex<Shard>>,
    store: Store,
    dirty: AtomicU64,
    evictions: AtomicU64,
}

struct Shard {
    /// The slots of blocks by their numbers.
    index: HashMap<u64, usize>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// How many slots there may be.
    capacity: usize,
    /// The number of its first slot among those of all shards.
    first: usize,
    hand: usize,
    dirty: BTreeSet<u64>,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    block: u64,
    /// Whether a block is in it: otherwise it is free, or reserved for one that is on its way.
    is_filled: bool,
    is_dirty: bool,
    /// Whether it was used since the hand passed.
    was_used: bool,
    /// Readers that wait for the store.
    pins: u32,
    /// Whether the block is gone, and the slot is free as soon as its readers are.
    is_orphan: bool,
    /// Counts the changes of the block.
    version: u64,
}

/// A slot for a block that is on its way. Dropping it gives the slot back.
pub(super) struct Reservation<'a> {
    blocks: &'a Blocks,
    pub(super) block: u64,
    slot: usize,
}

/// A slot that keeps what it has for as long as somebody reads it.
struct Pin<'a> {
    blocks: &'a Blocks,
    shard: usize,
    slot: usize,
}

/// What a look for a block came to.
enum Found<'a> {
    /// Its bytes were copied.
    Copied,
    /// It is not there.
    Missing,
    /// It is in this slot, and has to be waited for.
    Waiting(Pin<'a>),
}

impl Blocks {
    /// Room for `capacity` blocks of `block` bytes in `store`.
    pub(super) fn new(block: u64, capacity: usize, store: Store) -> Self {
        let count = if capacity < MANY { 1 } else { SHARDS };
        let mut first = 0;
        let shards = (0..count).map(|index| {
            let capacity = capacity / count + usize::from(index < capacity % count);
            let shard = Shard {
                index: HashMap::new(),
                slots: Vec::new(),
                free: Vec::new(),
                capacity,
                first,
                hand: 0,
                dirty: BTreeSet::new(),
            };
            first += capacity;
            Mutex::new(shard)
        });
        Self {
            block,
            shards: shards.collect(),
            store,
            dirty: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
        }
    }

    /// How many blocks are to be written to the source.
    pub(super) fn dirty(&self) -> u64 {
        self.dirty.load(Ordering::Acquire)
    }

    /// How many blocks had to go for others.
    pub(super) fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }

    /// How many blocks there are, those on their way included.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        let used = |shard: &Mutex<Shard>| {
            let shard = shard.lock().expect("no panic");
            shard.slots.len() - shard.free.len()
        };
        self.shards.iter().map(used).sum()
    }

    /// Fills `bytes` from `piece`, which lies in one block, if that is there and nothing has to be waited for.
    pub(super) fn read_now(&self, piece: ByteRange, bytes: &mut [u8]) -> Result<bool> {
        Ok(matches!(self.find(piece, bytes)?, Found::Copied))
    }

    /// Fills `bytes` from `piece`, which lies in one block, if that is there.
    pub(super) async fn read(&self, piece: ByteRange, bytes: &mut [u8]) -> Result<bool> {
        match self.find(piece, bytes)? {
            Found::Copied => Ok(true),
            Found::Missing => Ok(false),
            Found::Waiting(pin) => {
                let place = self.place(pin.slot) + piece.start() % self.block;
                self.store.read(place, bytes).await?;
                Ok(true)
            }
        }
    }

    fn find(&self, piece: ByteRange, bytes: &mut [u8]) -> Result<Found<'_>> {
        let block = piece.start() / self.block;
        let shard_index = self.shard_of(block);
        let mut shard = self.shard(shard_index);
        let Some(&local) = shard.index.get(&block) else {
            return Ok(Found::Missing);
        };
        let slot = shard.first + local;
        let known = &mut shard.slots[local];
        known.was_used = true;
        let place = self.place(slot) + piece.start() % self.block;
        if self.store.read_now(place, bytes)? {
            return Ok(Found::Copied);
        }
        known.pins += 1;
        Ok(Found::Waiting(Pin {
            blocks: self,
            shard: shard_index,
            slot,
        }))
    }

    /// Writes `bytes` to `piece`, which lies in one block, if that is there; to be written to the source if `dirty`.
    ///
    /// # Errors
    /// When the store fails; a block that the source has as it was is not there any more then.
    pub(super) fn update(&self, piece: ByteRange, bytes: &[u8], dirty: bool) -> Result<bool> {
        let block = piece.start() / self.block;
        let mut shard = self.shard(self.shard_of(block));
        let Some(&local) = shard.index.get(&block) else {
            return Ok(false);
        };
        let place = self.place(shard.first + local) + piece.start() % self.block;
        let written = self.store.write(place, bytes);
        let slot = &mut shard.slots[local];
        slot.version += 1;
        slot.was_used = true;
        match written {
            Ok(()) if dirty => self.set_dirty(&mut shard, local),
            Ok(()) => {}
            Err(error) => {
                if !slot.is_dirty {
                    self.remove(&mut shard, block);
                }
                return Err(error);
            }
        }
        Ok(true)
    }

    /// A slot for `block`, which is not there, if one is free or a clean block can go.
    pub(super) fn reserve(&self, block: u64) -> Option<Reservation<'_>> {
        let mut shard = self.shard(self.shard_of(block));
        let local = match shard.free.pop() {
            Some(local) => local,
            None if shard.slots.len() < shard.capacity => {
                shard.slots.push(Slot::default());
                shard.slots.len() - 1
            }
            None => {
                let local = shard.victim(|slot| !slot.is_dirty)?;
                let victim = shard.slots[local].block;
                shard.index.remove(&victim);
                self.evictions.fetch_add(1, Ordering::Relaxed);
                local
            }
        };
        shard.slots[local] = Slot::default();
        let slot = shard.first + local;
        drop(shard);
        // What is on its way is in memory already.
        if let Store::Memory(_) = self.store {
            let place = self.place(slot);
            self.store
                .forget(ByteRange::between(place, place + self.block));
        }
        Some(Reservation {
            blocks: self,
            block,
            slot,
        })
    }

    /// A dirty block that has to go before there is room for `block`.
    pub(super) fn dirty_victim(&self, block: u64) -> Option<u64> {
        let mut shard = self.shard(self.shard_of(block));
        let local = shard.victim(|slot| slot.is_dirty)?;
        Some(shard.slots[local].block)
    }

    /// The dirty blocks of the device's part `range`, sorted.
    pub(super) fn dirty_in(&self, range: ByteRange) -> Vec<u64> {
        let mut found = Vec::new();
        if self.dirty() > 0 && !range.is_empty() {
            let numbers = range.start() / self.block..range.end().div_ceil(self.block);
            for index in 0..self.shards.len() {
                found.extend(self.shard(index).dirty.range(numbers.clone()));
            }
            found.sort_unstable();
        }
        found
    }

    /// Fills `bytes` from a dirty block, and says which version of it that is; `None`: it is not dirty.
    pub(super) async fn read_dirty(&self, block: u64, bytes: &mut [u8]) -> Result<Option<u64>> {
        let start = block * self.block;
        let range = ByteRange::between(start, start.saturating_add(bytes.len() as u64));
        let version = {
            let shard = self.shard(self.shard_of(block));
            let slot = shard.index.get(&block).map(|local| shard.slots[*local]);
            slot.filter(|slot| slot.is_dirty).map(|slot| slot.version)
        };
        // What is changed from here on has another version, and stays dirty.
        match version {
            Some(version) => Ok(self.read(range, bytes).await?.then_some(version)),
            None => Ok(None),
        }
    }

    /// Says that the source has that version of `block`.
    pub(super) fn clean(&self, block: u64, version: u64) {
        let mut shard = self.shard(self.shard_of(block));
        let Some(&local) = shard.index.get(&block) else {
            return;
        };
        let slot = &mut shard.slots[local];
        if slot.is_dirty && slot.version == version {
            slot.is_dirty = false;
            shard.dirty.remove(&block);
            self.dirty.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Forgets the blocks that lie in the device's part `range`; the dirty ones, too, if `dirty`.
    pub(super) fn forget(&self, range: ByteRange, dirty: bool) {
        if range.is_empty() {
            // It may lie inside a block, of which it has nothing.
            return;
        }
        let numbers = range.start() / self.block..range.end().div_ceil(self.block);
        for index in 0..self.shards.len() {
            let mut shard = self.shard(index);
            let count = numbers.end.saturating_sub(numbers.start);
            let found: Vec<u64> = if count < shard.index.len() as u64 {
                numbers
                    .clone()
                    .filter(|block| shard.index.contains_key(block))
                    .collect()
            } else {
                let known = shard.index.keys();
                known
                    .copied()
                    .filter(|block| numbers.contains(block))
                    .collect()
            };
            for block in found {
                let is_dirty = shard.dirty.contains(&block);
                if dirty || !is_dirty {
                    self.remove(&mut shard, block);
                }
            }
        }
    }

    fn remove(&self, shard: &mut Shard, block: u64) {
        let Some(local) = shard.index.remove(&block) else {
            return;
        };
        if shard.dirty.remove(&block) {
            self.dirty.fetch_sub(1, Ordering::AcqRel);
        }
        let slot = &mut shard.slots[local];
        if slot.pins > 0 {
            slot.is_orphan = true;
            slot.is_dirty = false;
            slot.is_filled = false;
            return;
        }
        *slot = Slot::default();
        shard.free.push(local);
    }

    fn set_dirty(&self, shard: &mut Shard, local: usize) {
        let slot = &mut shard.slots[local];
        if !slot.is_dirty {
            slot.is_dirty = true;
            let block = slot.block;
            shard.dirty.insert(block);
            self.dirty.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Where a slot is in the store.
    fn place(&self, slot: usize) -> u64 {
        slot as u64 * self.block
    }

    fn shard_of(&self, block: u64) -> usize {
        // Neighbours go to different shards, and so do blocks at regular distances.
        let mixed = block.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        (mixed % self.shards.len() as u64) as usize
    }

    fn shard(&self, index: usize) -> MutexGuard<'_, Shard> {
        self.shards[index]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    /// The slot that the hand finds: filled, not in use, and `fits`.
    fn victim(&mut self, fits: impl Fn(&Slot) -> bool) -> Option<usize> {
        // In the second round nobody was used since the first.
        for _ in 0..2 * self.slots.len() {
            let local = self.hand;
            self.hand = (local + 1) % self.slots.len();
            let slot = &mut self.slots[local];
            if !slot.is_filled || slot.pins > 0 || !fits(slot) {
                continue;
            }
            if !std::mem::take(&mut slot.was_used) {
                return Some(local);
            }
        }
        None
    }
}

impl Reservation<'_> {
    /// Puts the block in, of which `bytes` is all that there is on the device; to be written to the source if
    /// `dirty`.
    ///
    /// # Errors
    /// When the store fails; the block is not there then.
    pub(super) fn fill(self, bytes: &[u8], dirty: bool) -> Result<()> {
        let blocks = self.blocks;
        blocks.store.write(blocks.place(self.slot), bytes)?;
        let mut shard = blocks.shard(blocks.shard_of(self.block));
        let local = self.slot - shard.first;
        shard.slots[local] = Slot {
            block: self.block,
            is_filled: true,
            was_used: true,
            ..Slot::default()
        };
        shard.index.insert(self.block, local);
        if dirty {
            blocks.set_dirty(&mut shard, local);
        }
        drop(shard);
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut shard = self.blocks.shard(self.blocks.shard_of(self.block));
        let local = self.slot - shard.first;
        shard.free.push(local);
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let mut shard = self.blocks.shard(self.shard);
        let local = self.slot - shard.first;
        let slot = &mut shard.slots[local];
        slot.pins -= 1;
        if slot.pins == 0 && slot.is_orphan {
            *slot = Slot::default();
            shard.free.push(local);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StorePlace;

    const BLOCK: u64 = 4096;

    fn blocks(capacity: usize) -> Blocks {
        let store = Store::new(&StorePlace::Memory, BLOCK).expect("a store");
        Blocks::new(BLOCK, capacity, store)
    }

    fn put(blocks: &Blocks, block: u64, dirty: bool) -> bool {
        let reservation = blocks.reserve(block);
        reservation.is_some_and(|it| it.fill(&[block as u8; 4096], dirty).is_ok())
    }

    fn has(blocks: &Blocks, block: u64) -> bool {
        let start = block * BLOCK + 7;
        let mut bytes = [0; 9];
        let piece = ByteRange::between(start, start + 9);
        let found = blocks.read_now(piece, &mut bytes).expect("a store");
        assert!(!found || bytes == [block as u8; 9]);
        found
    }

    #[test]
    fn what_was_used_stays_and_what_is_dirty_is_not_taken() {
        let blocks = blocks(3);
        assert!(put(&blocks, 1, false) && put(&blocks, 2, false) && put(&blocks, 3, true));
        assert!(put(&blocks, 4, false), "all were used: the first one goes");
        assert!(!has(&blocks, 1) && has(&blocks, 2));
        assert!(put(&blocks, 5, false));
        assert!(has(&blocks, 3) && has(&blocks, 5) && blocks.count() == 3);
        assert_eq!(blocks.dirty_in(ByteRange::between(0, u64::MAX)), [3]);
        assert_eq!(blocks.evictions(), 2);
        let all = ByteRange::between(0, u64::MAX);
        blocks.forget(all, false);
        assert!(has(&blocks, 3) && blocks.count() == 1);
        blocks.forget(all, true);
        assert_eq!((blocks.count(), blocks.dirty()), (0, 0));
    }

    #[test]
    fn blocks_on_their_way_count() {
        let blocks = blocks(2);
        let one = blocks.reserve(1).expect("room");
        let other = blocks.reserve(2).expect("room");
        assert!(blocks.reserve(3).is_none());
        drop(one);
        assert!(put(&blocks, 3, true));
        assert!(blocks.reserve(4).is_none());
        assert_eq!(blocks.dirty_victim(4), Some(3));
        drop(other);
        assert!(put(&blocks, 4, true));
        assert_eq!(blocks.count(), 2);
    }

    #[tokio::test]
    async fn what_changed_since_it_was_written_stays_dirty() {
        let blocks = blocks(2);
        assert!(put(&blocks, 1, true));
        let mut bytes = [0; 4096];
        let version = blocks.read_dirty(1, &mut bytes).await.expect("read");
        let piece = ByteRange::between(BLOCK, BLOCK + 5);
        assert!(blocks.update(piece, b"hello", true).expect("a store"));
        blocks.clean(1, version.expect("dirty"));
        assert_eq!(blocks.dirty(), 1);
        let version = blocks.read_dirty(1, &mut bytes).await.expect("read");
        blocks.clean(1, version.expect("dirty"));
        assert_eq!((blocks.dirty(), &bytes[..5]), (0, &b"hello"[..]));
        assert_eq!(blocks.read_dirty(1, &mut bytes).await.expect("read"), None);
    }

    #[test]
    fn many_blocks_are_spread_and_none_is_too_many() {
        let blocks = blocks(1000);
        for block in 0..5000 {
            assert!(put(&blocks, block * 16, false));
        }
        assert_eq!(blocks.count(), 1000);
        assert_eq!(blocks.evictions(), 4000);
    }
}
