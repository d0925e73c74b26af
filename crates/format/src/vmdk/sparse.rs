//! A sparse extent: where its grains lie. The grain directory is in memory as a whole, and as many grain tables of all
//! extents as there is room for.

use std::sync::Arc;

use blockferry_block::{Buffer, ByteRange, Error, ErrorKind, Result, read_exact_at};
use futures_util::future::join_all;

use super::header::{AT_END, Header, Layout, MAGIC, SECTOR};
use crate::{
    corrupt::corrupt,
    flights::Flights,
    host::HostFile,
    le::{le32, le64},
    table_cache::{CachedTable, TableCache},
};

/// The memory for grain tables unless told otherwise, in bytes: those of 256 GiB in the usual grains.
const DEFAULT_MEMORY: usize = 16 << 20;
/// At least so many grain tables are kept, whatever the memory.
const FEWEST: usize = 8;

/// Grain tables that lie in a row are read so many bytes at a time at most by whoever walks along, and so many of those
/// that do not.
const ROW: u64 = 1 << 20;
const TABLES_AHEAD: usize = 16;

/// The most grain directory entries of all extents together, so that nothing takes more than 128 MiB.
const MOST_DIRECTORY_ENTRIES: u64 = 32 << 20;

/// The end of a stream, with its footer, lies so near to the end of the file, in bytes: a device may be longer.
const TAIL: u64 = 64 << 10;

/// An entry of a grain table that says that the grain is zero.
const ZERO_GRAIN: u32 = 1;

/// The types of markers that are not those of grains.
pub(crate) const MARKER_END: u32 = 0;
pub(crate) const MARKER_TABLE: u32 = 1;
pub(crate) const MARKER_DIRECTORY: u32 = 2;
pub(crate) const MARKER_FOOTER: u32 = 3;

/// The grain tables of all extents of an image, as far as they are in memory.
pub(crate) struct Tables {
    cache: TableCache<Table>,
    under_way: Arc<Flights<u64, Arc<Table>>>,
    /// How many entries all directories have that were read.
    directories: std::sync::atomic::AtomicU64,
}

/// A grain table, in the byte order of this machine.
pub(crate) struct Table(Box<[u32]>);

impl CachedTable for Table {}

/// A sparse extent of an image.
pub(crate) struct Sparse {
    pub(crate) layout: Layout,
    /// Where grain tables lie, in sectors; 0 where there is none.
    directory: Box<[u32]>,
    /// Which of the extents it is.
    number: u64,
    tables: Arc<Tables>,
}

/// What a grain table says of a grain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grain {
    /// The extent has nothing of it.
    Nothing,
    /// It is zero.
    Zero,
    /// It lies from this byte of the file on. A compressed one ends before the other, as far as that can be told.
    At(u64, u64),
}

/// What may be one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Joined {
    /// What lies in a row, for those who read it: a compressed grain is a run by itself.
    InARow,
    /// What is in the extent at all, for those who only ask whether it is data.
    Alike,
}

/// What is known of a table without asking the file.
pub(crate) enum Peek {
    /// There is none: nothing is allocated where it would be.
    Nothing,
    /// It is in memory.
    Table(Arc<Table>),
    /// It must be read.
    Unknown,
}

impl Tables {
    /// Room for tables of `memory` bytes, 0 stands for 16 MiB.
    pub(crate) fn new(memory: usize) -> Self {
        let memory = match memory {
            0 => DEFAULT_MEMORY,
            memory => memory,
        };
        Self {
            // The usual ones; those of ESX are longer, and nearly no one has any.
            cache: TableCache::new((memory / 2048).max(FEWEST)),
            under_way: Arc::default(),
            directories: std::sync::atomic::AtomicU64::new(0),
        }
    }
}

impl Sparse {
    /// The extent with the number `number`, which `layout` describes: reads its grain directory.
    ///
    /// # Errors
    /// `Corrupt`, what reading failed with.
    pub(crate) async fn open(
        file: &HostFile,
        layout: Layout,
        number: u64,
        tables: &Arc<Tables>,
    ) -> Result<Self> {
        let range = layout.directory_range(file.end())?;
        let counted = std::sync::atomic::Ordering::Relaxed;
        let before = tables.directories.fetch_add(layout.tables(), counted);
        if before + layout.tables() > MOST_DIRECTORY_ENTRIES {
            return Err(corrupt("its grain directories are too long, all together"));
        }
        let mut directory = Vec::with_capacity(layout.tables() as usize);
        for piece in range.pieces(ROW) {
            let bytes = read_exact_at(&**file.device(), piece).await?;
            directory.extend(bytes.chunks_exact(4).map(|entry| le32(entry, 0)));
        }
        Ok(Self {
            layout,
            directory: directory.into(),
            number,
            tables: Arc::clone(tables),
        })
    }

    /// The table for the byte at `at` of the extent.
    pub(crate) fn index(&self, at: u64) -> u64 {
        at / self.layout.table_span()
    }

    /// The part of the extent that table `index` is for.
    pub(crate) fn span(&self, index: u64) -> ByteRange {
        let span = self.layout.table_span();
        let start = index.saturating_mul(span);
        ByteRange::between(start, start.saturating_add(span).min(self.layout.size()))
    }

    /// The first table from `index` on, and before `end`, that there is; `end` where there is none.
    pub(crate) fn next_table(&self, index: u64, end: u64) -> u64 {
        let to = (end as usize).min(self.directory.len());
        let rest = self.directory.get(index as usize..to).unwrap_or_default();
        let skipped = rest.iter().position(|place| *place != 0);
        skipped.map_or(end, |skipped| index + skipped as u64)
    }

    /// Table `index` as far as that is known without a read.
    pub(crate) fn peek(&self, index: u64) -> Peek {
        match self.directory.get(index as usize) {
            None | Some(0) => Peek::Nothing,
            Some(_) => match self.tables.cache.find(self.key(index)) {
                Some(table) => Peek::Table(table),
                None => Peek::Unknown,
            },
        }
    }

    /// Table `index`, read if need be; `None` where there is none. Those who ask for it meanwhile share the read.
    ///
    /// # Errors
    /// `Corrupt` where no table can lie; what reading failed with.
    pub(crate) async fn table(
        self: &Arc<Self>,
        file: &HostFile,
        index: u64,
    ) -> Result<Option<Arc<Table>>> {
        match self.peek(index) {
            Peek::Nothing => return Ok(None),
            Peek::Table(table) => return Ok(Some(table)),
            Peek::Unknown => {}
        }
        let (sparse, file) = (Arc::clone(self), file.clone());
        let fetch = async move { sparse.fetch(&file, index).await };
        let table = self.tables.under_way.join(self.key(index), fetch);
        table.await.map(Some)
    }

    /// Reads tables from `index` on, and before `end`, that are not in memory: in one go where they lie in a row, else a
    /// few at a time. A hint that fails in silence: [`table`](Self::table) tells.
    pub(crate) async fn bring(self: &Arc<Self>, file: &HostFile, index: u64, end: u64) {
        if !matches!(self.peek(index), Peek::Unknown) {
            return;
        }
        let size = self.layout.table_size();
        let first = self.place(index);
        let most = (self.tables.cache.most() as u64 / 2).min(ROW / size).max(1);
        let continues = |count: &u64| {
            let index = index + count;
            index < end
                && self.place(index) == first + count * size
                && matches!(self.peek(index), Peek::Unknown)
        };
        let count = 1 + (1..most).take_while(continues).count() as u64;
        let row = ByteRange::between(first, first + count * size);
        if count > 1 && row.end() <= file.end() {
            let reader = self.tables.cache.reader();
            let buffer = Buffer::zeroed(row.len() as usize);
            if let Ok(bytes) = file.read(row.start(), buffer).await {
                let tables = bytes.chunks_exact(size as usize);
                let tables = tables.map(|bytes| Arc::new(Table::parse(bytes)));
                let first = self.key(index);
                self.tables.cache.keep_row(first, tables.collect(), reader);
            }
            return;
        }
        let mut wanted = Vec::new();
        let mut next = index;
        while next < end && wanted.len() < TABLES_AHEAD.min(self.tables.cache.most() / 2) {
            wanted.push(next);
            next = self.next_table(next + 1, end);
        }
        join_all(wanted.into_iter().map(|index| self.table(file, index))).await;
    }

    /// What `table` says of the start of `range`, which lies in its span and is not empty, and where that ends.
    pub(crate) fn first(&self, table: &Table, range: ByteRange, joined: Joined) -> (Grain, u64) {
        let grain = self.layout.grain_size();
        let within = range.start() % grain;
        let first = (range.start() % self.layout.table_span() / grain) as usize;
        let words = table.0.get(first..).unwrap_or_default();
        let decode = |index: usize| self.decode(words, index);
        let source = decode(0);
        let is_packed = self.layout.packed.is_some();
        let continues = |count: &usize| {
            let distance = *count as u64 * grain;
            match (source, decode(*count)) {
                (Grain::Nothing, Grain::Nothing) | (Grain::Zero, Grain::Zero) => true,
                (Grain::At(..), Grain::At(..)) if joined == Joined::Alike => true,
                (Grain::At(at, _), Grain::At(next, _)) => !is_packed && at + distance == next,
                _ => false,
            }
        };
        let start = range.start() - within;
        let most = (range.end() - start).div_ceil(grain) as usize;
        let more = (1..most.min(words.len())).take_while(continues).count() as u64;
        let end = (start + (1 + more) * grain).min(range.end());
        (source.after(within, is_packed), end)
    }

    fn decode(&self, words: &[u32], index: usize) -> Grain {
        let place = |word: u32| u64::from(word) * SECTOR;
        match words.get(index).copied().unwrap_or(0) {
            0 => Grain::Nothing,
            ZERO_GRAIN if self.layout.has_zero_grains => Grain::Zero,
            word => {
                let longest = place(word) + longest_packed(self.layout.grain_size());
                let next = place(words.get(index + 1).copied().unwrap_or(0));
                // Grains that were written in order lie one behind the other.
                let is_next = next > place(word) && next < longest;
                Grain::At(place(word), if is_next { next } else { longest })
            }
        }
    }

    async fn fetch(&self, file: &HostFile, index: u64) -> Result<Arc<Table>> {
        let key = self.key(index);
        if let Some(table) = self.tables.cache.find(key) {
            return Ok(table);
        }
        let (place, size) = (self.place(index), self.layout.table_size());
        if place + size > file.end() {
            let guest = self.span(index).start();
            return Err(corrupt(format!(
                "the grain table {index} for offset {guest:#x} lies at {place:#x}, past the end of the file"
            )));
        }
        let reader = self.tables.cache.reader();
        let bytes = file.read(place, Buffer::zeroed(size as usize)).await?;
        let table = Arc::new(Table::parse(&bytes));
        // Nobody changes tables, so this one is kept.
        let kept = self.tables.cache.keep(key, Arc::clone(&table), reader);
        Ok(kept.unwrap_or(table))
    }

    /// Where table `index` lies in the file.
    fn place(&self, index: u64) -> u64 {
        let sector = self.directory.get(index as usize).copied().unwrap_or(0);
        u64::from(sector) * SECTOR
    }

    fn key(&self, index: u64) -> u64 {
        self.number << 32 | index
    }
}

impl Table {
    fn parse(bytes: &[u8]) -> Self {
        let entries = bytes.chunks_exact(4).map(|entry| le32(entry, 0));
        Self(entries.collect())
    }
}

impl Grain {
    /// What is `length` bytes behind its first byte.
    fn after(self, length: u64, is_packed: bool) -> Self {
        match self {
            Self::At(at, limit) if !is_packed => Self::At(at + length, limit),
            other => other,
        }
    }
}

/// How long a compressed grain may be with its marker, in bytes: what nobody would call compressed is damage.
pub(crate) fn longest_packed(grain: u64) -> u64 {
    2 * grain + SECTOR
}

/// The header of a hosted sparse extent, with the grain directory's place, which may stand in the footer.
///
/// # Errors
/// Those of [`Header::parse`]; `Corrupt` for a stream that was cut short; what reading failed with.
pub(crate) async fn read_header(file: &HostFile) -> Result<Header> {
    let first = ByteRange::between(0, SECTOR.min(file.end()));
    let first = read_exact_at(&**file.device(), first).await?;
    let header = Header::parse(&first)?;
    if header.directory != AT_END {
        return Ok(header);
    }
    // "Stream-Optimized Compressed Sparse Extents": the footer and the end-of-stream marker are the last of the file.
    let end = file.end() - file.end() % SECTOR;
    let tail = ByteRange::between(end.saturating_sub(TAIL).max(SECTOR), end);
    let bytes = read_exact_at(&**file.device(), tail).await?;
    let sector = |number: usize| bytes.chunks_exact(SECTOR as usize).nth(number);
    let count = bytes.len() / SECTOR as usize;
    let is_footer = |number: &usize| {
        let is_marker = |sector: &[u8], kind| le32(sector, 8) == 0 && le32(sector, 12) == kind;
        let marker = sector(*number).is_some_and(|sector| is_marker(sector, MARKER_FOOTER));
        let footer = sector(number + 1).is_some_and(|sector| sector.starts_with(MAGIC));
        let end = |sector: &[u8]| is_marker(sector, MARKER_END) && le64(sector, 0) == 0;
        marker && footer && sector(number + 2).is_some_and(end)
    };
    let Some(place) = (0..count.saturating_sub(2)).rev().find(is_footer) else {
        return Err(corrupt(
            "it ends without the footer and the end-of-stream marker: it was cut short",
        ));
    };
    let footer = Header::parse(sector(place + 1).unwrap_or_default())?;
    let alike = |header: &Header| (header.capacity, header.grain, header.entries);
    if footer.directory == AT_END || alike(&footer) != alike(&header) {
        return Err(corrupt("the footer contradicts the header"));
    }
    Ok(footer)
}

/// Says that an extent is not what its descriptor says, for people.
pub(crate) fn check_size(layout: &Layout, expected: u64) -> Result<()> {
    if layout.size() == expected {
        return Ok(());
    }
    let message = format!(
        "it has {} bytes, and {expected} in the descriptor",
        layout.size()
    );
    Err(Error::with_message(ErrorKind::Corrupt, message))
}
