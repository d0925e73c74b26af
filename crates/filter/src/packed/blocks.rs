//! Unpacked blocks: each is unpacked once for all who want it, and kept as long as there is room.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use blockferry_block::{
    BlockDevice, ByteRange, Error, ErrorKind, Result, read_exact_at, run_blocking,
};
use tokio::sync::{Notify, OnceCell, Semaphore};

use super::index::Index;

/// The blocks of one packed file, for all handles to it.
///
/// What is in memory is bounded, blocks that are in use or being unpacked included: who wants one more waits until
/// one is no longer used. So nobody may hold a block while waiting for another, or for a client.
pub(super) struct Blocks {
    index: Index,
    /// The most bytes in memory; one block is always allowed.
    bound: u64,
    most: usize,
    kept: Mutex<Kept>,
    /// Somebody has made room.
    room: Notify,
    /// One permit for each block that can be unpacked at a time.
    unpackers: Arc<Semaphore>,
    processors: usize,
    tally: Arc<Tally>,
}

/// What is counted for an export.
#[derive(Default)]
pub(super) struct Tally {
    hits: AtomicU64,
    unpacked_blocks: AtomicU64,
    unpacked_bytes: AtomicU64,
}

#[derive(Default)]
struct Kept {
    entries: HashMap<usize, Entry>,
    /// The blocks that nobody uses, by when they were used last.
    idle: BTreeMap<u64, usize>,
    /// The weight of all entries, in bytes.
    weight: u64,
    clock: u64,
}

struct Entry {
    bytes: Arc<OnceCell<Vec<u8>>>,
    users: usize,
    /// The bytes that it takes, or will take.
    weight: u64,
    /// Its place among the idle ones, if it is.
    last_used: u64,
}

/// A block that stays in memory as long as this lives.
pub(super) struct Pinned {
    blocks: Arc<Blocks>,
    number: usize,
    bytes: Arc<OnceCell<Vec<u8>>>,
}

impl Tally {
    /// Counts blocks that were found unpacked, or that somebody else unpacked.
    pub(super) fn hit(&self, blocks: usize) {
        self.hits.fetch_add(blocks as u64, Ordering::Relaxed);
    }

    pub(super) fn counts(&self) -> Vec<(&'static str, u64)> {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        vec![
            ("hits", count(&self.hits)),
            ("unpacked_blocks", count(&self.unpacked_blocks)),
            ("unpacked_bytes", count(&self.unpacked_bytes)),
        ]
    }
}

impl Blocks {
    /// The blocks of `index`, of which `bound` bytes and `most` blocks are kept.
    pub(super) fn new(
        index: Index,
        bound: u64,
        most: Option<usize>,
        tally: Arc<Tally>,
    ) -> Arc<Self> {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Arc::new(Self {
            index,
            bound,
            most: most.unwrap_or(usize::MAX).max(1),
            kept: Mutex::default(),
            room: Notify::new(),
            unpackers: Arc::new(Semaphore::new(processors)),
            processors,
            tally,
        })
    }

    pub(super) fn index(&self) -> &Index {
        &self.index
    }

    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Block `number`, if it was unpacked before.
    pub(super) fn ready(self: &Arc<Self>, number: usize) -> Option<Pinned> {
        let bytes = {
            let mut kept = self.kept();
            let entry = kept.entries.get(&number)?;
            if !entry.bytes.initialized() {
                return None;
            }
            kept.enter(number)?
        };
        Some(self.pinned(number, bytes))
    }

    /// Block `number`, unpacked if need be from what is read of `device`. Waits for room; whoever unpacks the block
    /// already is waited for, and replaced when it fails or is dropped.
    pub(super) async fn unpacked(
        self: &Arc<Self>,
        device: &Arc<dyn BlockDevice>,
        number: usize,
    ) -> Result<Pinned> {
        let pinned = loop {
            let mut room = std::pin::pin!(self.room.notified());
            // From here on nobody makes room unnoticed.
            room.as_mut().enable();
            if let Some(pinned) = self.pin(number) {
                break pinned;
            }
            room.await;
        };
        let bytes = Arc::clone(&pinned.bytes);
        let mut is_hit = true;
        let unpacking = bytes.get_or_try_init(|| {
            is_hit = false;
            self.unpack(device, number)
        });
        unpacking.await?;
        if is_hit {
            self.tally.hit(1);
        }
        Ok(pinned)
    }

    /// Whether block `number` is unpacked, or about to be.
    pub(super) fn has(&self, number: usize) -> bool {
        self.kept().entries.contains_key(&number)
    }

    /// How many blocks from `next` on may be unpacked before anybody asks for them: one for each processor, as
    /// long as they take half of the room at most, for what is read meanwhile must stay.
    pub(super) fn most_ahead(&self, next: usize) -> usize {
        let weight = self.index.unpacked(next).len() + self.index.packed(next).len();
        let fit = self.bound / 2 / weight.max(1);
        let fit = usize::try_from(fit)
            .unwrap_or(usize::MAX)
            .min(self.most / 2);
        fit.clamp(1, self.processors)
    }

    /// As [`unpacked`](Self::unpacked), but without waiting for room, or for somebody else.
    pub(super) async fn unpack_ahead(
        self: &Arc<Self>,
        device: &Arc<dyn BlockDevice>,
        number: usize,
    ) {
        if self.has(number) {
            return;
        }
        if let Some(pinned) = self.pin(number) {
            let bytes = Arc::clone(&pinned.bytes);
            // Whoever wants the block will meet the error again.
            let _ = bytes.get_or_try_init(|| self.unpack(device, number)).await;
        }
    }

    async fn unpack(
        self: &Arc<Self>,
        device: &Arc<dyn BlockDevice>,
        number: usize,
    ) -> Result<Vec<u8>> {
        let packed = self.index.packed(number);
        let bytes = read_exact_at(&**device, packed).await?;
        let permit = Arc::clone(&self.unpackers).acquire_owned().await;
        let permit = permit.map_err(|_| Error::new(ErrorKind::Cancelled))?;
        let blocks = Arc::clone(self);
        let unpacked = run_blocking(move || {
            // Kept to the end of the work, whoever still waits for it.
            let _permit = permit;
            blocks.index.unpack(number, &bytes)
        });
        let unpacked = unpacked.await??;
        self.tally.unpacked_blocks.fetch_add(1, Ordering::Relaxed);
        let length = unpacked.len() as u64;
        self.tally
            .unpacked_bytes
            .fetch_add(length, Ordering::Relaxed);
        self.kept().lighten(number, packed.len());
        self.room.notify_waiters();
        Ok(unpacked)
    }

    /// Holds block `number`, unpacked or not, if there is room for it.
    fn pin(self: &Arc<Self>, number: usize) -> Option<Pinned> {
        let weight = self.index.unpacked(number).len() + self.index.packed(number).len();
        // Dropped without the lock: giving back that much memory takes its time.
        let mut evicted = Vec::new();
        let bytes = {
            let mut kept = self.kept();
            match kept.enter(number) {
                Some(bytes) => bytes,
                None => kept
                    .make_room(weight, self.bound, self.most, &mut evicted)
                    .then(|| kept.insert(number, weight))?,
            }
        };
        Some(self.pinned(number, bytes))
    }

    fn pinned(self: &Arc<Self>, number: usize, bytes: Arc<OnceCell<Vec<u8>>>) -> Pinned {
        Pinned {
            blocks: Arc::clone(self),
            number,
            bytes,
        }
    }

    /// The bytes in memory.
    #[cfg(test)]
    pub(super) fn weight(&self) -> u64 {
        self.kept().weight
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// One more user of `number`, if it is here.
    fn enter(&mut self, number: usize) -> Option<Arc<OnceCell<Vec<u8>>>> {
        let entry = self.entries.get_mut(&number)?;
        if entry.users == 0 {
            self.idle.remove(&entry.last_used);
        }
        entry.users += 1;
        Some(Arc::clone(&entry.bytes))
    }

    /// Forgets idle blocks until `weight` more bytes fit. When they never do, because of blocks in use, says so.
    fn make_room(
        &mut self,
        weight: u64,
        bound: u64,
        most: usize,
        evicted: &mut Vec<Entry>,
    ) -> bool {
        while self.weight.saturating_add(weight) > bound || self.entries.len() >= most {
            let Some((_, oldest)) = self.idle.pop_first() else {
                return self.entries.is_empty();
            };
            evicted.extend(self.remove(oldest));
        }
        true
    }

    fn insert(&mut self, number: usize, weight: u64) -> Arc<OnceCell<Vec<u8>>> {
        let bytes = Arc::default();
        self.weight += weight;
        let entry = Entry {
            bytes: Arc::clone(&bytes),
            users: 1,
            weight,
            last_used: 0,
        };
        self.entries.insert(number, entry);
        bytes
    }

    /// One user of `number` less. What was not unpacked then is forgotten.
    fn leave(&mut self, number: usize) {
        self.clock += 1;
        let Some(entry) = self.entries.get_mut(&number) else {
            return;
        };
        entry.users -= 1;
        if entry.users > 0 {
            return;
        }
        if entry.bytes.initialized() {
            entry.last_used = self.clock;
            self.idle.insert(self.clock, number);
        } else {
            self.remove(number);
        }
    }

    /// The packed form of `number` is gone.
    fn lighten(&mut self, number: usize, bytes: u64) {
        if let Some(entry) = self.entries.get_mut(&number) {
            entry.weight -= bytes;
            self.weight -= bytes;
        }
    }

    fn remove(&mut self, number: usize) -> Option<Entry> {
        let entry = self.entries.remove(&number)?;
        self.weight -= entry.weight;
        Some(entry)
    }
}

impl Pinned {
    /// Copies what of the block lies in `range` to its place in `bytes`, which are those of `range`.
    pub(super) fn copy_to(&self, range: ByteRange, bytes: &mut [u8]) {
        let own = self.blocks.index.unpacked(self.number);
        let part = own.intersection(range);
        let from = (part.start() - own.start()) as usize;
        let to = (part.start() - range.start()) as usize;
        let length = part.len() as usize;
        if let Some(unpacked) = self.bytes.get() {
            bytes[to..to + length].copy_from_slice(&unpacked[from..from + length]);
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.blocks.kept().leave(self.number);
        self.blocks.room.notify_waiters();
    }
}
