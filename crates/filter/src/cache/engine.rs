//! What requests do with the blocks of an export.
//!
//! Two turns keep things in order. Who changes blocks, or brings them in, has a turn on them (`changing`): that makes
//! one read of the source of many that miss the same block, and lets no block come in that was read before it was
//! changed. Who writes to the source has a turn for that (`writing`): no older version of a block ever follows a
//! newer one. The second turn may be waited for with the first in hand, never the other way round. A hit waits for
//! neither.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, Capabilities, Error, ErrorKind, RangeLock, Result, WriteFlags,
    ZeroFlags,
};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{
    CacheMode,
    blocks::{Blocks, Reservation},
};
use crate::aligned::{self, around, inside, within};

/// Reads or writes of the source for one request at the same time.
const PARALLEL: usize = 8;

/// Dirty blocks side by side are written so many bytes at a time.
const PIECE: u64 = 1 << 20;

/// The cache of an export.
pub(super) struct Engine {
    block: u64,
    capacity: usize,
    mode: CacheMode,
    on_read: bool,
    pub(super) blocks: Blocks,
    changing: RangeLock,
    writing: RangeLock,
    hits: AtomicU64,
    misses: AtomicU64,
    source_reads: AtomicU64,
    source_writes: AtomicU64,
    /// The size of the device, once it is known.
    size: Mutex<Option<u64>>,
}

impl Engine {
    pub(super) fn new(
        block: u64,
        capacity: usize,
        mode: CacheMode,
        on_read: bool,
        blocks: Blocks,
    ) -> Self {
        Self {
            block,
            capacity,
            mode,
            on_read,
            blocks,
            changing: RangeLock::default(),
            writing: RangeLock::default(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            source_reads: AtomicU64::new(0),
            source_writes: AtomicU64::new(0),
            size: Mutex::default(),
        }
    }

    /// Takes note that the device has `size` bytes. Blocks of one that had another size are forgotten.
    ///
    /// # Errors
    /// `InvalidInput` when there are dirty blocks of a device of another size.
    pub(super) fn adopt(&self, size: u64) -> Result<()> {
        let mut known = self.size.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_some_and(|known| known != size) {
            if self.blocks.dirty() > 0 {
                let message = "its size has changed, and not all of it was written back";
                return Err(Error::with_message(ErrorKind::InvalidInput, message));
            }
            self.blocks.forget(ByteRange::between(0, u64::MAX), false);
        }
        *known = Some(size);
        Ok(())
    }

    pub(super) fn counts(&self) -> Vec<(&'static str, u64)> {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        vec![
            ("hits", count(&self.hits)),
            ("misses", count(&self.misses)),
            ("evictions", self.blocks.evictions()),
            ("source_reads", count(&self.source_reads)),
            ("source_writes", count(&self.source_writes)),
        ]
    }

    /// Fills `bytes` from `range` if all of it is there and nothing has to be waited for.
    pub(super) fn read_now(&self, range: ByteRange, bytes: &mut [u8]) -> bool {
        let mut hits = 0;
        for piece in range.pieces(self.block) {
            let part = &mut bytes[within(piece, range)];
            if !self.blocks.read_now(piece, part).unwrap_or(false) {
                return false;
            }
            hits += 1;
        }
        self.hits.fetch_add(hits, Ordering::Relaxed);
        true
    }

    /// Fills `buffer` from `range`.
    pub(super) async fn read(
        &self,
        below: &dyn BlockDevice,
        range: ByteRange,
        buffer: Buffer,
    ) -> Result<Buffer> {
        self.read_and_keep(below, range, buffer, self.on_read).await
    }

    /// Brings in what of `range` is not there, as far as there is room.
    pub(super) async fn fetch(&self, below: &dyn BlockDevice, range: ByteRange) -> Result<()> {
        // More would push out what came in before.
        let most = (self.capacity as u64)
            .div_ceil(2)
            .saturating_mul(self.block);
        let (range, _) = range.split_at(most);
        for piece in range.pieces(PIECE.max(self.block)) {
            let buffer = Buffer::zeroed(within(piece, piece).len());
            self.read_and_keep(below, piece, buffer, true).await?;
        }
        Ok(())
    }

    async fn read_and_keep(
        &self,
        below: &dyn BlockDevice,
        range: ByteRange,
        mut buffer: Buffer,
        keep: bool,
    ) -> Result<Buffer> {
        let all: Vec<_> = range.pieces(self.block).collect();
        let missing = self.take(&all, range, &mut buffer).await?;
        self.misses
            .fetch_add(missing.len() as u64, Ordering::Relaxed);
        let hits = all.len() - missing.len();
        self.hits.fetch_add(hits as u64, Ordering::Relaxed);
        let (Some(first), Some(last)) = (missing.first(), missing.last()) else {
            return Ok(buffer);
        };
        if !keep {
            return self.read_runs(below, runs(&missing), range, buffer).await;
        }
        let blocks = ByteRange::between(first.start(), last.end());
        let blocks = around(blocks, self.block, below.info().size);
        let _turn = self.changing.lock(blocks).await;
        // Somebody else may have brought them in meanwhile.
        let missing = self.take(&missing, range, &mut buffer).await?;
        let runs = runs(&missing);
        let mut kept = Vec::new();
        for run in &runs {
            kept.push(self.reserve(below, *run).await);
        }
        let wanted: Vec<_> = runs
            .iter()
            .zip(&kept)
            .map(|(run, kept)| self.with(*run, kept, below))
            .collect();
        if let [only] = wanted[..]
            && only == range
        {
            self.source_reads.fetch_add(1, Ordering::Relaxed);
            let buffer = aligned::read(below, range, buffer).await?;
            self.keep(kept.remove(0), range, &buffer);
            return Ok(buffer);
        }
        let is_wider = wanted != runs;
        let mut reads = Vec::new();
        for (wanted, kept) in wanted.into_iter().zip(kept) {
            reads.push(self.read_kept(below, wanted, kept));
        }
        let mut reads = stream::iter(reads).buffer_unordered(PARALLEL);
        loop {
            match reads.try_next().await {
                Ok(Some((wanted, data))) => {
                    let part = wanted.intersection(range);
                    buffer[within(part, range)].copy_from_slice(&data[within(part, wanted)]);
                }
                Ok(None) => return Ok(buffer),
                Err(_) if is_wider => break,
                Err(error) => return Err(error),
            }
        }
        drop(reads);
        // Where the source fails may be in the rest of a block, for which nobody asked.
        self.read_runs(below, runs, range, buffer).await
    }

    /// Reads `wanted` from the source, and keeps the blocks of it that there are slots for.
    async fn read_kept(
        &self,
        below: &dyn BlockDevice,
        wanted: ByteRange,
        kept: Vec<Reservation<'_>>,
    ) -> Result<(ByteRange, Buffer)> {
        self.source_reads.fetch_add(1, Ordering::Relaxed);
        let data = Buffer::zeroed(within(wanted, wanted).len());
        let data = aligned::read(below, wanted, data).await?;
        self.keep(kept, wanted, &data);
        Ok((wanted, data))
    }

    /// Copies the `pieces` of `range` that are there into `buffer`, and says which are not.
    async fn take(
        &self,
        pieces: &[ByteRange],
        range: ByteRange,
        buffer: &mut Buffer,
    ) -> Result<Vec<ByteRange>> {
        let mut missing = Vec::new();
        for piece in pieces {
            let part = &mut buffer[within(*piece, range)];
            if !self.blocks.read(*piece, part).await? {
                missing.push(*piece);
            }
        }
        Ok(missing)
    }

    /// Reads `runs` of `range` from the source, which is not to be kept.
    async fn read_runs(
        &self,
        below: &dyn BlockDevice,
        runs: Vec<ByteRange>,
        range: ByteRange,
        mut buffer: Buffer,
    ) -> Result<Buffer> {
        self.source_reads
            .fetch_add(runs.len() as u64, Ordering::Relaxed);
        if runs[..] == [range] {
            return aligned::read(below, range, buffer).await;
        }
        let reads = runs.into_iter().map(|run| async move {
            let data = Buffer::zeroed(within(run, range).len());
            let data = aligned::read(below, run, data).await?;
            Ok::<_, Error>((run, data))
        });
        let mut reads = stream::iter(reads).buffer_unordered(PARALLEL);
        while let Some((run, data)) = reads.try_next().await? {
            buffer[within(run, range)].copy_from_slice(&data);
        }
        Ok(buffer)
    }

    /// Slots for the blocks of `run`, as many as there is room for.
    async fn reserve(&self, below: &dyn BlockDevice, run: ByteRange) -> Vec<Reservation<'_>> {
        let mut kept = Vec::new();
        for piece in run.pieces(self.block) {
            kept.extend(self.room_for(below, piece.start() / self.block).await);
        }
        kept
    }

    /// `run`, with the rest of the blocks at its ends if they are kept.
    fn with(&self, run: ByteRange, kept: &[Reservation<'_>], below: &dyn BlockDevice) -> ByteRange {
        let whole = around(run, self.block, below.info().size);
        let keeps = |block: u64| kept.iter().any(|it| it.block == block);
        let is_first = keeps(whole.start() / self.block);
        let is_last = keeps((whole.end() - 1) / self.block);
        ByteRange::between(
            if is_first { whole.start() } else { run.start() },
            if is_last { whole.end() } else { run.end() },
        )
    }

    /// Keeps the blocks that there are slots for. `data` is what was read of `range`.
    fn keep(&self, kept: Vec<Reservation<'_>>, range: ByteRange, data: &[u8]) {
        for reservation in kept {
            let block = self.range_of(reservation.block).intersection(range);
            // A store without room keeps less.
            let _ = reservation.fill(&data[within(block, range)], false);
        }
    }

    /// A slot for `block`, if there can be one. Dirty blocks are written to the source for it.
    async fn room_for(&self, below: &dyn BlockDevice, block: u64) -> Option<Reservation<'_>> {
        if let Some(reservation) = self.blocks.reserve(block) {
            return Some(reservation);
        }
        if !below.info().can(Capabilities::WRITE) {
            return None;
        }
        let victim = self.range_of(self.blocks.dirty_victim(block)?);
        // Its neighbours have to be written some time, too, and with it they cost less.
        let start = victim.start() - victim.start() % PIECE.max(self.block);
        let end = start.saturating_add(PIECE.max(self.block));
        let piece = ByteRange::between(start, end.min(below.info().size));
        // What fails stays dirty, and a flush is told of it.
        let _ = self.write_back(below, piece).await;
        self.blocks.reserve(block)
    }

    fn range_of(&self, block: u64) -> ByteRange {
        let start = block.saturating_mul(self.block);
        ByteRange::between(start, start.saturating_add(self.block))
    }

    /// Writes `data` to `range`, and gives it back.
    pub(super) async fn write(
        &self,
        below: &dyn BlockDevice,
        range: ByteRange,
        data: Buffer,
        flags: WriteFlags,
    ) -> Result<Buffer> {
        if range.is_empty() {
            return Ok(data);
        }
        let is_through = match self.mode {
            CacheMode::WriteThrough => true,
            CacheMode::WriteBack => flags.contains(WriteFlags::FUA),
            CacheMode::Unsafe => false,
        };
        let blocks = around(range, self.block, below.info().size);
        let most = (self.capacity as u64 / 2).max(1).saturating_mul(self.block);
        let _turn = self.changing.lock(blocks).await;
        if is_through {
            return self.write_through(below, range, data, flags).await;
        }
        if blocks.len() > most {
            return self
                .write_through(below, range, data, WriteFlags::empty())
                .await;
        }
        self.write_later(below, range, &data).await?;
        Ok(data)
    }

    /// Writes to the source, with a turn on the blocks.
    async fn write_through(
        &self,
        below: &dyn BlockDevice,
        range: ByteRange,
        data: Buffer,
        flags: WriteFlags,
    ) -> Result<Buffer> {
        let blocks = around(range, self.block, below.info().size);
        let _turn = self.writing.lock(blocks).await;
        let outdated = Outdated::new(&self.blocks, blocks);
        self.source_writes.fetch_add(1, Ordering::Relaxed);
        let data = below.write(range.start(), data, flags).await?;
        for piece in range.pieces(self.block) {
            let bytes = &data[within(piece, range)];
            let is_there = self.blocks.update(piece, bytes, false);
            let is_whole = piece
                == self
                    .range_of(piece.start() / self.block)
                    .intersection(blocks);
            // A store that fails keeps less; what is dirty in it stays as it was, so it must not fail.
            if !is_there?
                && is_whole
                && let Some(reservation) = self.blocks.reserve(piece.start() / self.block)
            {
                let _ = reservation.fill(bytes, false);
            }
        }
        outdated.settle();
        Ok(data)
    }

    /// Writes to the blocks, with a turn on them, to be written to the source some time.
    async fn write_later(
        &self,
        below: &dyn BlockDevice,
        range: ByteRange,
        data: &[u8],
    ) -> Result<()> {
        let size = below.info().size;
        let pieces = range.pieces(self.block).map(|piece| async move {
            let block = around(piece, self.block, size);
            let bytes = &data[within(piece, range)];
            if self.blocks.update(piece, bytes, true)? {
                return Ok(());
            }
            let mut whole;
            let mut bytes = bytes;
            if piece != block {
                self.source_reads.fetch_add(1, Ordering::Relaxed);
                let buffer = Buffer::zeroed(within(block, block).len());
                whole = aligned::read(below, block, buffer).await?;
                whole[within(piece, block)].copy_from_slice(bytes);
                bytes = &whole;
            }
            if let Some(reservation) = self.room_for(below, block.start() / self.block).await
                && reservation.fill(bytes, true).is_ok()
            {
                return Ok(());
            }
            // Nothing can be kept: it goes to the source at once.
            let _turn = self.writing.lock(block).await;
            self.write_source(below, block, Buffer::from(bytes), WriteFlags::empty())
                .await
        });
        // All of them go to their ends: a write of the source that is given up may still happen, after newer ones.
        let mut pieces = stream::iter(pieces).buffer_unordered(2);
        let mut result = Ok(());
        while let Some(written) = pieces.next().await {
            result = result.and(written);
        }
        result
    }

    /// Writes to the source within its limits, with a turn for that.
    async fn write_source(
        &self,
        below: &dyn BlockDevice,
        range: ByteRange,
        data: Buffer,
        flags: WriteFlags,
    ) -> Result<()> {
        let limits = below.info().limits;
        let minimum = u64::from(limits.minimum.max(1));
        let maximum = u64::from(limits.maximum);
        let most = (maximum - maximum % minimum).max(minimum);
        if range.len() <= most {
            self.source_writes.fetch_add(1, Ordering::Relaxed);
            return below.write(range.start(), data, flags).await.map(drop);
        }
        for piece in range.pieces(most) {
            self.source_writes.fetch_add(1, Ordering::Relaxed);
            let part = Buffer::from(&data[within(piece, range)]);
            below.write(piece.start(), part, flags).await?;
        }
        Ok(())
    }

    /// Writes the dirty blocks of `range`, which begins and ends with blocks, to the source; the first error is told
    /// when all was tried.
    async fn write_back(&self, below: &dyn BlockDevice, range: ByteRange) -> Result<()> {
        let _turn = self.writing.lock(range).await;
        let dirty = self.blocks.dirty_in(range);
        let mut result = Ok(());
        for run in dirty.chunk_by(|one, next| *next == one + 1) {
            result = result.and(self.write_run_back(below, run).await);
        }
        result
    }

    /// Writes dirty blocks side by side to the source, with a turn for that.
    async fn write_run_back(&self, below: &dyn BlockDevice, run: &[u64]) -> Result<()> {
        let (Some(first), Some(last)) = (run.first(), run.last()) else {
            return Ok(());
        };
        let info = below.info();
        let end = self.range_of(*last).end().min(info.size);
        let whole = ByteRange::between(self.range_of(*first).start(), end);
        let mut data = Buffer::zeroed(within(whole, whole).len());
        let mut versions = Vec::with_capacity(run.len());
        for block in run {
            let place = within(self.range_of(*block).intersection(whole), whole);
            let version = self.blocks.read_dirty(*block, &mut data[place]).await?;
            // Only who has this turn makes blocks clean, so they are all dirty still.
            let gone = || Error::with_message(ErrorKind::Io, "a block that was dirty is gone");
            versions.push(version.ok_or_else(gone)?);
        }
        // Where handles know nothing of each other, a flush of another one would not make this durable.
        let is_alone = self.mode == CacheMode::WriteBack && !info.can(Capabilities::MULTI_CONN);
        let mut flags = WriteFlags::empty();
        flags.set(WriteFlags::FUA, is_alone && info.can(Capabilities::FUA));
        self.write_source(below, whole, data, flags).await?;
        if is_alone && flags.is_empty() && info.can(Capabilities::FLUSH) {
            below.flush().await?;
        }
        for (block, version) in run.iter().zip(versions) {
            self.blocks.clean(*block, version);
        }
        Ok(())
    }

    /// Writes everything that is dirty to the source; the first error is told when all was tried.
    pub(super) async fn write_all_back(&self, below: &dyn BlockDevice) -> Result<()> {
        let size = below.info().size;
        let dirty = self.blocks.dirty_in(ByteRange::between(0, u64::MAX));
        let unit = PIECE.max(self.block);
        let mut pieces: Vec<_> = dirty
            .into_iter()
            .map(|block| self.range_of(block).start() / unit * unit)
            .collect();
        pieces.dedup();
        let writes = pieces.into_iter().map(|start| async move {
            let end = start.saturating_add(unit).min(size);
            self.write_back(below, ByteRange::between(start, end)).await
        });
        let mut writes = stream::iter(writes).buffer_unordered(PARALLEL);
        let mut result = Ok(());
        while let Some(written) = writes.next().await {
            result = result.and(written);
        }
        result
    }

    /// Makes everything durable that was acknowledged before.
    pub(super) async fn flush(&self, below: &dyn BlockDevice) -> Result<()> {
        if self.mode == CacheMode::Unsafe {
            return Ok(());
        }
        let written = self.write_all_back(below).await;
        if below.info().can(Capabilities::FLUSH) {
            below.flush().await?;
        }
        written
    }

    /// Makes `range` zero on the source, and here.
    pub(super) async fn zero(
        &self,
        below: &dyn BlockDevice,
        range: ByteRange,
        mut flags: ZeroFlags,
    ) -> Result<()> {
        let size = below.info().size;
        let blocks = around(range, self.block, size);
        let _change = self.changing.lock(blocks).await;
        let _turn = self.writing.lock(blocks).await;
        if self.mode == CacheMode::Unsafe {
            flags -= ZeroFlags::FUA;
        }
        let outdated = Outdated::new(&self.blocks, blocks);
        below.zero(range, flags).await?;
        let whole = inside(range, self.block, size);
        self.blocks.forget(whole, true);
        let edges = match whole.is_empty() {
            true => [range, whole],
            false => [
                ByteRange::between(range.start(), whole.start()),
                ByteRange::between(whole.end(), range.end()),
            ],
        };
        for piece in edges.into_iter().flat_map(|edge| edge.pieces(self.block)) {
            let zeroes = Buffer::zeroed(within(piece, piece).len());
            self.blocks.update(piece, &zeroes, false)?;
        }
        outdated.settle();
        Ok(())
    }

    /// Discards `range` on the source. What is here of its whole blocks is forgotten, dirty or not.
    pub(super) async fn trim(
        &self,
        below: &dyn BlockDevice,
        range: ByteRange,
        mut flags: WriteFlags,
    ) -> Result<()> {
        let size = below.info().size;
        let blocks = around(range, self.block, size);
        let _change = self.changing.lock(blocks).await;
        let _turn = self.writing.lock(blocks).await;
        if self.mode == CacheMode::Unsafe {
            flags -= WriteFlags::FUA;
        }
        let _outdated = Outdated::new(&self.blocks, blocks);
        below.trim(range, flags).await?;
        self.blocks.forget(inside(range, self.block, size), true);
        Ok(())
    }
}

/// Blocks that may be others on the source when a change fails or is given up: what is not dirty is forgotten then.
struct Outdated<'a> {
    blocks: &'a Blocks,
    range: ByteRange,
}

impl<'a> Outdated<'a> {
    fn new(blocks: &'a Blocks, range: ByteRange) -> Self {
        Self { blocks, range }
    }

    /// The change was made here, too.
    fn settle(mut self) {
        self.range = ByteRange::default();
    }
}

impl Drop for Outdated<'_> {
    fn drop(&mut self) {
        if !self.range.is_empty() {
            self.blocks.forget(self.range, false);
        }
    }
}

/// Pieces side by side as one.
fn runs(pieces: &[ByteRange]) -> Vec<ByteRange> {
    let mut runs: Vec<ByteRange> = Vec::new();
    for piece in pieces {
        match runs.last_mut() {
            Some(last) if last.end() == piece.start() => {
                *last = ByteRange::between(last.start(), piece.end());
            }
            _ => runs.push(*piece),
        }
    }
    runs
}
