//! The block allocation table: where each block lies (specification, section 2.5).
//!
//! That of the largest disk has 512 MiB, so it is read in pieces, of which as many are kept as there is room for.

use std::sync::Arc;

use blockferry_block::{BoxFuture, ByteRange, Error, Result, is_zero};

use super::{
    geometry::{ENTRY, Geometry},
    header::{MIB, bytes_at},
};
use crate::{
    blocks::{Block, Row, Table},
    corrupt::corrupt,
    flights::Flights,
    host::HostFile,
    le::le64,
    table_cache::{CachedTable, TableCache},
};

/// The size of a piece of the table, in bytes: 8192 entries.
const PIECE: u64 = 64 << 10;

/// The memory for pieces unless told otherwise, in bytes.
const DEFAULT_MEMORY: usize = 16 << 20;
/// At least so many pieces are kept, whatever the memory.
const FEWEST: usize = 2;

/// The parts of an entry.
const STATE: u64 = 0x7;
const RESERVED: u64 = 0xf_fff8;

/// States of blocks.
pub(super) const NOT_PRESENT: u64 = 0;
const UNDEFINED: u64 = 1;
pub(super) const ZERO: u64 = 2;
const UNMAPPED: u64 = 3;
const FULLY_PRESENT: u64 = 6;
const PARTIALLY_PRESENT: u64 = 7;
/// The state of a bitmap that is there.
const BITMAP_PRESENT: u64 = 6;
/// How much of a bitmap there is.
const BITMAP_BLOCK: u64 = 1 << 20;

/// The table of an image, as seen by all handles to it.
pub(crate) struct Bat {
    geometry: Geometry,
    /// Where no block can lie: other parts of the image.
    taken: Vec<ByteRange>,
    /// Where the file ends.
    file_end: u64,
    pieces: Arc<Pieces>,
}

/// Those that were read.
struct Pieces {
    cache: TableCache<Piece>,
    under_way: Arc<Flights<u64, Arc<Piece>>>,
}

/// A piece of the table: its entries, or none where all of them are zero, as they are in most of a large table.
struct Piece(Box<[u64]>);

impl CachedTable for Piece {}

impl Bat {
    /// The table of an image with `geometry` in `file`, of which other things lie at `taken`. Pieces take `memory`
    /// bytes at most, 0 stands for 16 MiB; a few are always kept.
    pub(crate) fn new(
        geometry: Geometry,
        file: &HostFile,
        taken: Vec<ByteRange>,
        memory: usize,
    ) -> Self {
        let memory = match memory {
            0 => DEFAULT_MEMORY,
            memory => memory,
        };
        Self {
            geometry,
            taken,
            file_end: file.end(),
            pieces: Arc::new(Pieces {
                cache: TableCache::new((memory / PIECE as usize).max(FEWEST)),
                under_way: Arc::default(),
            }),
        }
    }

    /// Whether what `piece` says of `block` is told by a bitmap.
    fn has_bitmap(&self, piece: &Piece, block: u64) -> bool {
        let word = piece.word(self.index_of(self.geometry.entry_of(block)));
        self.geometry.has_parent && word & STATE == PARTIALLY_PRESENT
    }

    /// What `piece` says of `block`, whose bitmap's entry is in `bitmaps` if it has one.
    fn decode(&self, block: u64, piece: &Piece, bitmaps: &Piece) -> Result<Row> {
        let geometry = self.geometry;
        let first = self.index_of(geometry.entry_of(block));
        let word = piece.word(first);
        let found = match word & STATE {
            NOT_PRESENT => Block::Behind,
            // What is not defined, or was unmapped, may read as zeroes, and it tells nobody anything.
            UNDEFINED | ZERO | UNMAPPED => Block::Zero,
            FULLY_PRESENT => Block::Host(self.place(block, word)?),
            PARTIALLY_PRESENT if geometry.has_parent => {
                let entry = self.index_of(geometry.bitmap_entry_of(block));
                Block::Mixed {
                    host: self.place(block, word)?,
                    bitmap: self.bitmap(block, bitmaps.word(entry))?,
                }
            }
            PARTIALLY_PRESENT => {
                let part = "is said to be partly in a parent, which the image has not";
                return Err(self.damaged(block, part));
            }
            state => {
                return Err(self.damaged(block, &format!("has the state {state}, which is none")));
            }
        };
        // The entry behind the last one of a chunk is no block's.
        let chunk = geometry.blocks_in_chunk_from(block) as usize;
        let end = first.saturating_add(chunk).min((PIECE / ENTRY) as usize);
        if piece.0.is_empty() {
            let count = (end - first) as u64;
            return Ok(Row {
                block: found,
                count,
            });
        }
        let rest = piece.0.get(first..piece.0.len().min(end));
        let rest = rest.unwrap_or_default();
        let count = match found {
            Block::Behind | Block::Zero => {
                let alike = |other: &&u64| **other & STATE == word & STATE;
                rest.iter().take_while(alike).count()
            }
            Block::Host(host) => {
                let next = (word..).step_by(geometry.block_size() as usize);
                let in_a_row = rest
                    .iter()
                    .zip(next)
                    .take_while(|(word, next)| *word == next);
                in_a_row.count().min(self.room(host))
            }
            Block::Mixed { .. } => 1,
        };
        Ok(Row {
            block: found,
            count: count.max(1) as u64,
        })
    }

    /// Where `block` lies, whose entry is `word`.
    fn place(&self, block: u64, word: u64) -> Result<u64> {
        let start = block << self.geometry.block_bits;
        let length = self.geometry.block_size().min(self.geometry.size - start);
        self.checked(word, length)
            .map_err(|why| self.damaged(block, &why))
    }

    /// Where the bits of `block` lie, whose bitmap has the entry `word`.
    fn bitmap(&self, block: u64, word: u64) -> Result<u64> {
        if word & STATE != BITMAP_PRESENT {
            return Err(self.damaged(block, "needs a bitmap, and there is none"));
        }
        let place = self.checked(word, BITMAP_BLOCK);
        let place =
            place.map_err(|why| self.damaged(block, &format!("has a bitmap that {why}")))?;
        Ok(place + self.geometry.place_in_bitmap(block))
    }

    /// The place that `word` names for something with `length` bytes, or why it can be none.
    fn checked(&self, word: u64, length: u64) -> Result<u64, String> {
        if word & RESERVED != 0 {
            return Err(format!("has the entry {word:#x}, which breaks the rules"));
        }
        let host = word & !(STATE | RESERVED);
        let range = ByteRange::new(host, length).map_err(|_| behind(host))?;
        if range.end() > self.file_end {
            return Err(behind(host));
        }
        let mut taken = self.taken.iter();
        if host < MIB || taken.any(|taken| !taken.intersection(range).is_empty()) {
            return Err(format!("lies at {host:#x}, where something else is"));
        }
        Ok(host)
    }

    /// How many whole blocks can lie in a row from `host` on.
    fn room(&self, host: u64) -> usize {
        let starts = self.taken.iter().map(|taken| taken.start());
        let next = starts.filter(|start| *start >= host).min();
        let end = next.unwrap_or(u64::MAX).min(self.file_end);
        usize::try_from((end - host) >> self.geometry.block_bits).unwrap_or(usize::MAX)
    }

    fn damaged(&self, block: u64, why: &str) -> Error {
        let guest = block << self.geometry.block_bits;
        corrupt(format!("the block for guest offset {guest:#x} {why}"))
    }

    /// The piece that the entry at `place` of the file is in, by its number.
    fn piece_of(&self, place: u64) -> u64 {
        (place - self.geometry.bat.start()) / PIECE
    }

    /// The number of that entry within its piece.
    fn index_of(&self, place: u64) -> usize {
        ((place - self.geometry.bat.start()) % PIECE / ENTRY) as usize
    }

    /// The piece with the entry at `place`, if it is in memory.
    fn find(&self, place: u64) -> Option<Arc<Piece>> {
        self.pieces.cache.find(self.piece_of(place))
    }

    /// The piece with the entry at `place`, read from `file` if need be. Those who ask for it meanwhile share the read.
    async fn piece(&self, file: &HostFile, place: u64) -> Result<Arc<Piece>> {
        let number = self.piece_of(place);
        if let Some(piece) = self.pieces.cache.find(number) {
            return Ok(piece);
        }
        let needed = self.geometry.bat_length();
        let range = ByteRange::between(number * PIECE, needed.min((number + 1) * PIECE));
        let start = self.geometry.bat.start() + range.start();
        let (pieces, file) = (Arc::clone(&self.pieces), file.clone());
        let fetch = async move {
            let reader = pieces.cache.reader();
            let bytes = bytes_at(&file, start, range.len()).await?;
            let piece = Arc::new(Piece::parse(&bytes));
            let kept = pieces.cache.keep(number, Arc::clone(&piece), reader);
            Ok(kept.unwrap_or(piece))
        };
        self.pieces.under_way.join(number, fetch).await
    }
}

impl Table for Bat {
    fn row(&self, block: u64) -> Result<Option<Row>> {
        let Some(piece) = self.find(self.geometry.entry_of(block)) else {
            return Ok(None);
        };
        if !self.has_bitmap(&piece, block) {
            return self.decode(block, &piece, &piece).map(Some);
        }
        match self.find(self.geometry.bitmap_entry_of(block)) {
            Some(bitmaps) => self.decode(block, &piece, &bitmaps).map(Some),
            None => Ok(None),
        }
    }

    fn read<'a>(&'a self, file: &'a HostFile, block: u64) -> BoxFuture<'a, Result<Row>> {
        Box::pin(async move {
            let piece = self.piece(file, self.geometry.entry_of(block)).await?;
            if !self.has_bitmap(&piece, block) {
                return self.decode(block, &piece, &piece);
            }
            let bitmap = self.geometry.bitmap_entry_of(block);
            self.decode(block, &piece, &*self.piece(file, bitmap).await?)
        })
    }
}

impl Piece {
    fn parse(bytes: &[u8]) -> Self {
        if is_zero(bytes) {
            return Self(Box::default());
        }
        let words = bytes.chunks_exact(ENTRY as usize);
        Self(words.map(|word| le64(word, 0)).collect())
    }

    /// Entry `index`; behind the last one that the disk needs nothing is there.
    fn word(&self, index: usize) -> u64 {
        self.0.get(index).copied().unwrap_or(NOT_PRESENT)
    }
}

/// The entry of a block that lies at `host`, a multiple of 1 MiB.
pub(super) fn present(host: u64) -> u64 {
    host | FULLY_PRESENT
}

fn behind(host: u64) -> String {
    format!("lies at {host:#x}, past the end of the file")
}
