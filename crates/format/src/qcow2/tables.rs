//! Where clusters lie: the L1 table, in memory as a whole, and as many L2 tables as there is room for
//! (specification, "Cluster mapping").
//!
//! Tables are shared by all handles and all runtimes. Their words are atomic: whoever writes the image changes a
//! table in place while others read it, and [pins](L2Table::pin) it until the change is in the file. A table that
//! anyone holds, or that is pinned, is not forgotten, so there is never more than one of it.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use blockferry_block::{Buffer, ByteRange, Result};

use super::{
    entry::{Entry, OFFSET},
    geometry::{Geometry, corrupt},
    header::be64,
    host::HostFile,
};
use crate::{
    flights::Flights,
    table_cache::{CachedTable, TableCache},
};

/// The memory for L2 tables unless told otherwise, in bytes.
const DEFAULT_MEMORY: usize = 16 << 20;

/// At least so many L2 tables are kept, whatever the memory.
const FEWEST: usize = 2;

/// L2 tables that lie in a row are read so many bytes at a time at most by whoever walks along.
const ROW: u64 = 1 << 20;

/// The L1 table is read in parts of so many bytes.
const L1_PART: u64 = 1 << 20;

/// The tables of one state of an image, as seen through one handle. Cloning is cheap and shares them.
#[derive(Clone)]
pub(crate) struct Tables {
    file: HostFile,
    shared: Arc<Shared>,
}

struct Shared {
    geometry: Geometry,
    /// Where the L1 table lies.
    place: ByteRange,
    /// The words of the L1 table, in the byte order of this machine.
    l1: Box<[AtomicU64]>,
    cache: TableCache<L2Table>,
    under_way: Arc<Flights<u64, Arc<L2Table>>>,
}

/// An L2 table. Changes are seen at once by everyone who reads through it.
pub(crate) struct L2Table {
    words: Box<[AtomicU64]>,
    /// Odd while an entry of two words is being changed.
    changes: AtomicU32,
    pins: AtomicU32,
    extended: bool,
}

/// What is known of a table without asking the file.
pub(crate) enum Peek {
    /// There is none: nothing is allocated where it would be.
    Nothing,
    /// It is in memory.
    Table(Arc<L2Table>),
    /// It must be read.
    Unknown,
}

impl Tables {
    /// Reads the L1 table at `l1` of `file`. L2 tables take `memory` bytes at most, 0 stands for 16 MiB; a few are
    /// always kept.
    ///
    /// # Errors
    /// `Corrupt` where the table lies behind the end of the file; what reading failed with.
    pub(crate) async fn open(
        file: HostFile,
        geometry: Geometry,
        l1: ByteRange,
        memory: usize,
    ) -> Result<Self> {
        let mut words = Vec::with_capacity((l1.len() / 8) as usize);
        for part in l1.pieces(L1_PART) {
            let buffer = Buffer::zeroed(part.len() as usize);
            let bytes = file.read_padded(part.start(), buffer, || "the L1 table".to_owned());
            let bytes = bytes.await?;
            words.extend(words_of(&bytes));
        }
        let memory = match memory {
            0 => DEFAULT_MEMORY,
            memory => memory,
        };
        let most = (memory >> geometry.cluster_bits).max(FEWEST);
        let shared = Shared {
            geometry,
            place: l1,
            l1: words.into(),
            cache: TableCache::new(most),
            under_way: Arc::default(),
        };
        Ok(Self {
            file,
            shared: Arc::new(shared),
        })
    }

    /// The same tables, read through another handle to the same file.
    pub(crate) fn through(&self, file: HostFile) -> Self {
        Self {
            file,
            shared: Arc::clone(&self.shared),
        }
    }

    /// The words of the L1 table, of which there may be more than the disk needs.
    pub(crate) fn l1(&self) -> &[AtomicU64] {
        &self.shared.l1
    }

    /// Where the L1 table lies in the file.
    pub(crate) fn l1_place(&self) -> ByteRange {
        self.shared.place
    }

    /// Where L2 table `index` lies; `None` where there is none.
    ///
    /// # Errors
    /// `Corrupt` where no table can lie.
    pub(crate) fn place_of(&self, index: u64) -> Result<Option<u64>> {
        let geometry = self.shared.geometry;
        let word = usize::try_from(index)
            .ok()
            .and_then(|index| self.shared.l1.get(index));
        let offset = word.map_or(0, |word| word.load(Ordering::Acquire)) & OFFSET;
        if offset == 0 {
            return Ok(None);
        }
        if !geometry.is_aligned(offset) {
            return Err(corrupt(format!(
                "{} at {offset:#x} is not on a cluster's boundary",
                self.name_of(index)
            )));
        }
        Ok(Some(offset))
    }

    /// L2 table `index`, read if need be; `None` where there is none. Those who ask for it meanwhile share the read.
    ///
    /// # Errors
    /// `Corrupt` where no table can lie; what reading failed with.
    pub(crate) async fn table(&self, index: u64) -> Result<Option<Arc<L2Table>>> {
        match self.peek(index)? {
            Peek::Nothing => return Ok(None),
            Peek::Table(table) => return Ok(Some(table)),
            Peek::Unknown => {}
        }
        let tables = self.clone();
        let fetch = async move { tables.fetch(index).await };
        self.shared.under_way.join(index, fetch).await.map(Some)
    }

    /// L2 table `index` as far as that is known without a read.
    ///
    /// # Errors
    /// As [`place_of`](Self::place_of).
    pub(crate) fn peek(&self, index: u64) -> Result<Peek> {
        if self.place_of(index)?.is_none() {
            return Ok(Peek::Nothing);
        }
        Ok(match self.shared.cache.find(index) {
            Some(table) => Peek::Table(table),
            None => Peek::Unknown,
        })
    }

    /// Puts a table into memory that is new, or that takes another's place. Whoever does that pins it first, and
    /// only then lets the L1 table say where it lies.
    pub(crate) fn put(&self, index: u64, table: Arc<L2Table>) {
        self.shared.cache.replace(index, table);
    }

    /// Tells that a table is about to be changed: a table that is being read ahead at this moment is not kept.
    pub(crate) fn changing(&self) {
        self.shared.cache.forget_readers();
    }

    /// How many L2 tables are kept in memory.
    pub(crate) fn most_kept(&self) -> usize {
        self.shared.cache.most()
    }

    /// The first L2 table from `index` on, and before `end`, that there is; `end` where there is none.
    pub(crate) fn next_table(&self, index: u64, end: u64) -> u64 {
        let place = |index: u64| usize::try_from(index).unwrap_or(usize::MAX);
        let to = place(end).min(self.shared.l1.len());
        let rest = self.shared.l1.get(place(index)..to).unwrap_or_default();
        let is_there = |word: &AtomicU64| word.load(Ordering::Relaxed) & OFFSET != 0;
        let skipped = rest.iter().position(is_there);
        skipped.map_or(end, |skipped| end.min(index + skipped as u64))
    }

    /// Reads L2 tables ahead for someone who walks from `index` to `end`: as many as lie in a row from there on, in
    /// one go, if there are several. A hint that fails in silence: [`table`](Self::table) tells.
    pub(crate) async fn read_row(&self, index: u64, end: u64) {
        let cluster = self.shared.geometry.cluster_size();
        let most = (self.shared.cache.most() as u64 / 2).min(ROW / cluster);
        let Ok(Some(first)) = self.place_of(index) else {
            return;
        };
        let continues = |count: u64| {
            let index = index + count;
            index < end
                && matches!(self.place_of(index), Ok(Some(place)) if place == first + count * cluster)
                && self.shared.cache.find(index).is_none()
        };
        let count = 1 + (1..most).take_while(|count| continues(*count)).count() as u64;
        let row = ByteRange::between(first, first + count * cluster);
        if count < 2 || row.end() > self.file.end() {
            return;
        }
        let reader = self.shared.cache.reader();
        let buffer = Buffer::zeroed(row.len() as usize);
        let Ok(bytes) = self.file.read(row.start(), buffer).await else {
            return;
        };
        let tables = bytes.chunks_exact(cluster as usize);
        let tables = tables.map(|bytes| Arc::new(L2Table::parse(bytes, self.shared.geometry)));
        self.shared.cache.keep_row(index, tables.collect(), reader);
    }

    async fn fetch(&self, index: u64) -> Result<Arc<L2Table>> {
        let geometry = self.shared.geometry;
        loop {
            if let Some(table) = self.shared.cache.find(index) {
                return Ok(table);
            }
            let Some(place) = self.place_of(index)? else {
                return Ok(Arc::new(L2Table::empty(geometry)));
            };
            let reader = self.shared.cache.reader();
            let buffer = Buffer::zeroed(geometry.cluster_size() as usize);
            let name = || self.name_of(index);
            let bytes = self.file.read_padded(place, buffer, name).await?;
            let table = Arc::new(L2Table::parse(&bytes, geometry));
            // Otherwise it may have been brought in, changed, written and forgotten by others meanwhile.
            if let Some(table) = self.shared.cache.keep(index, table, reader) {
                return Ok(table);
            }
        }
    }

    /// For messages.
    fn name_of(&self, index: u64) -> String {
        let guest = self.shared.geometry.span_of(index).start();
        format!("the L2 table {index} for guest offset {guest:#x}")
    }
}

impl L2Table {
    /// The table that `bytes` hold, a cluster of them.
    pub(crate) fn parse(bytes: &[u8], geometry: Geometry) -> Self {
        Self {
            words: words_of(bytes).collect(),
            changes: AtomicU32::new(0),
            pins: AtomicU32::new(0),
            extended: geometry.extended,
        }
    }

    /// A table in which nothing is allocated.
    pub(crate) fn empty(geometry: Geometry) -> Self {
        let words = geometry.cluster_size() / 8;
        Self {
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
            changes: AtomicU32::new(0),
            pins: AtomicU32::new(0),
            extended: geometry.extended,
        }
    }

    /// How many entries it has.
    pub(crate) fn len(&self) -> usize {
        if self.extended {
            self.words.len() / 2
        } else {
            self.words.len()
        }
    }

    /// Entry `index`, which is below [`len`](Self::len).
    pub(crate) fn entry(&self, index: usize) -> Entry {
        if !self.extended {
            return Entry {
                word: self.words[index].load(Ordering::Acquire),
                subclusters: 0,
            };
        }
        loop {
            let before = self.changes.load(Ordering::Acquire);
            let entry = Entry {
                word: self.words[2 * index].load(Ordering::Acquire),
                subclusters: self.words[2 * index + 1].load(Ordering::Acquire),
            };
            if before & 1 == 0 && self.changes.load(Ordering::Acquire) == before {
                return entry;
            }
            std::thread::yield_now();
        }
    }

    /// The words of all entries, where each has one.
    pub(crate) fn words(&self) -> Option<&[AtomicU64]> {
        (!self.extended).then_some(&self.words)
    }

    /// Sets entry `index`, which is below [`len`](Self::len). Readers see the old one or the new one.
    pub(crate) fn set(&self, index: usize, entry: Entry) {
        if !self.extended {
            self.words[index].store(entry.word, Ordering::Release);
            return;
        }
        let even = loop {
            let now = self.changes.load(Ordering::Relaxed) & !1;
            let taken = self.changes.compare_exchange_weak(
                now,
                now | 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            );
            if taken.is_ok() {
                break now;
            }
            std::thread::yield_now();
        };
        self.words[2 * index].store(entry.word, Ordering::Release);
        self.words[2 * index + 1].store(entry.subclusters, Ordering::Release);
        self.changes.store(even.wrapping_add(2), Ordering::Release);
    }

    /// Keeps it in memory until [`unpin`](Self::unpin) was called as often: it has what the file does not have.
    /// Pinned by someone who holds it.
    pub(crate) fn pin(&self) {
        self.pins.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn unpin(&self) {
        self.pins.fetch_sub(1, Ordering::AcqRel);
    }

    /// The bytes of the entries `which`, as they stand in the file.
    pub(crate) fn bytes(&self, which: std::ops::Range<usize>) -> Vec<u8> {
        let entries = which.map(|index| self.entry(index));
        let mut bytes = Vec::new();
        for entry in entries {
            bytes.extend(entry.word.to_be_bytes());
            if self.extended {
                bytes.extend(entry.subclusters.to_be_bytes());
            }
        }
        bytes
    }
}

impl CachedTable for L2Table {
    fn is_pinned(&self) -> bool {
        self.pins.load(Ordering::Acquire) > 0
    }
}

/// The numbers that a table's bytes are.
fn words_of(bytes: &[u8]) -> impl Iterator<Item = AtomicU64> {
    bytes
        .chunks_exact(8)
        .map(|word| AtomicU64::new(be64(word, 0)))
}
