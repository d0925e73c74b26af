//! What was written to an export: the states of its blocks and the bytes of those that are stored.
//!
//! Whoever changes a block has its turn: two writes to parts of one block both need the rest of it. Readers wait for
//! nobody. A block is written to the store wholly before it is called stored, so that what fails, or is given up,
//! leaves the block as it was.

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, Error, ErrorKind, Mapping, Operation, RangeLock, Result,
    ZeroFlags, is_zero,
};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::map::{Map, REGION, Run, State};
use crate::{
    aligned::{self, around, inside, within},
    store::Store,
};

/// Parts of the source that are so close together are read as one, in bytes.
const GAP: u64 = 64 << 10;

/// Reads of the source for one request at the same time.
const PARALLEL: usize = 8;

/// Bytes that are taken over from the source at a time.
const PIECE: u64 = 1 << 20;

/// Runs of blocks that are forgotten at a time.
const MOST_RUNS: usize = 256;

/// What was written to an export.
pub(super) struct Overlay {
    block: u64,
    pub(super) map: Map,
    store: Store,
    turns: RangeLock,
}

impl Overlay {
    pub(super) fn new(block: u64, store: Store) -> Self {
        Self {
            block,
            map: Map::new(block),
            store,
            turns: RangeLock::default(),
        }
    }

    /// Fills `buffer` from `range`.
    pub(super) async fn read(
        &self,
        below: &dyn BlockDevice,
        range: ByteRange,
        mut buffer: Buffer,
    ) -> Result<Buffer> {
        let runs = self.runs(range);
        let below_runs = runs.iter().filter(|run| run.state == State::Below);
        let wanted: Vec<_> = below_runs.map(|run| run.range).collect();
        let groups = groups(&wanted);
        let is_joined = groups.len() < wanted.len();
        let read = match groups[..] {
            [group] if group == range => aligned::read(below, range, buffer).await,
            _ => read_parts(below, groups, range, buffer).await,
        };
        buffer = match read {
            // Where the source fails may be between what is wanted of it.
            Err(_) if is_joined => {
                let buffer = Buffer::zeroed(within(range, range).len());
                read_parts(below, wanted, range, buffer).await?
            }
            read => read?,
        };
        for run in runs {
            let part = &mut buffer[within(run.range, range)];
            match run.state {
                State::Below => {}
                State::Zero => part.fill(0),
                State::Stored => self.store.read(run.place, part).await?,
            }
        }
        Ok(buffer)
    }

    /// All runs of `range`, which a buffer holds.
    fn runs(&self, range: ByteRange) -> Vec<Run> {
        self.map.runs(range, usize::MAX)
    }

    /// Writes `data` to `range`.
    pub(super) async fn write(
        &self,
        below: &dyn BlockDevice,
        range: ByteRange,
        data: &[u8],
    ) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let size = below.info().size;
        let blocks = around(range, self.block, size);
        let _turn = self.turns.lock(blocks).await;
        let head = blocks.split_at(self.block).0;
        let last = (blocks.len() - 1) / self.block * self.block;
        let tail = blocks.split_at(last).1;
        let edges = [Some(head), (tail != head).then_some(tail)];
        let partial = edges.into_iter().flatten();
        let partial = partial.filter(|edge| !range.contains(*edge));
        let rests = partial.map(|edge| self.rest(below, edge));
        let rests: Vec<_> = stream::iter(rests).buffered(2).try_collect().await?;
        // From here on nothing waits: a future that is dropped has done all, or nothing.
        for (edge, rest) in rests {
            let before = ByteRange::between(edge.start(), range.start());
            let after = ByteRange::between(range.end(), edge.end());
            for part in [before, after] {
                match &rest {
                    Rest::There => {}
                    Rest::Zero => self.store_zeroes(part)?,
                    Rest::Read(bytes) if !part.is_empty() => {
                        self.store(part, &bytes[within(part, edge)])?;
                    }
                    Rest::Read(_) => {}
                }
            }
        }
        self.store(range, data)?;
        self.map.set(blocks, State::Stored)
    }

    /// What the bytes of `block` are that are not written to.
    async fn rest(&self, below: &dyn BlockDevice, block: ByteRange) -> Result<(ByteRange, Rest)> {
        let rest = match self.map.first(block).state {
            State::Stored => Rest::There,
            State::Zero => Rest::Zero,
            State::Below => {
                let buffer = Buffer::zeroed(within(block, block).len());
                Rest::Read(aligned::read(below, block, buffer).await?)
            }
        };
        Ok((block, rest))
    }

    /// Writes `data` to the places of `range`.
    fn store(&self, range: ByteRange, data: &[u8]) -> Result<()> {
        for piece in range.pieces(REGION) {
            let place = self.map.place(piece)?;
            self.store.write(place, &data[within(piece, range)])?;
        }
        Ok(())
    }

    fn store_zeroes(&self, part: ByteRange) -> Result<()> {
        for piece in part.pieces(REGION) {
            let place = self.map.place(piece)?;
            self.store.write_zeroes(place, within(piece, piece).len())?;
        }
        Ok(())
    }

    /// Makes `range` zero: whole blocks take no space then, parts of blocks are written.
    pub(super) async fn zero(
        &self,
        below: &dyn BlockDevice,
        range: ByteRange,
        flags: ZeroFlags,
    ) -> Result<()> {
        let info = below.info();
        let whole = inside(range, self.block, info.size);
        if flags.contains(ZeroFlags::NO_HOLE) {
            let is_long = range.len() > u64::from(info.limits.maximum);
            if is_long || flags.contains(ZeroFlags::FAST) {
                let message = "space is not taken faster, nor more at once, than it is written";
                return Err(Error::with_message(ErrorKind::Unsupported, message));
            }
            return self.write_zeroes(below, range).await;
        }
        if whole.is_empty() {
            if flags.contains(ZeroFlags::FAST) && !range.is_empty() {
                let message = "a part of a block has to be written";
                return Err(Error::with_message(ErrorKind::Unsupported, message));
            }
            return self.write_zeroes(below, range).await;
        }
        let head = ByteRange::between(range.start(), whole.start());
        let tail = ByteRange::between(whole.end(), range.end());
        for edge in [head, tail] {
            if self.map.first(edge).state != State::Zero {
                self.write_zeroes(below, edge).await?;
            }
        }
        self.forget(whole).await
    }

    async fn write_zeroes(&self, below: &dyn BlockDevice, range: ByteRange) -> Result<()> {
        for piece in range.pieces(PIECE) {
            let zeroes = Buffer::zeroed(within(piece, piece).len());
            self.write(below, piece, &zeroes).await?;
        }
        Ok(())
    }

    /// Discards the blocks that lie wholly in `range`: they are zero afterwards.
    pub(super) async fn trim(&self, below: &dyn BlockDevice, range: ByteRange) -> Result<()> {
        self.forget(inside(range, self.block, below.info().size))
            .await
    }

    /// Makes whole blocks zero and gives their space back.
    async fn forget(&self, blocks: ByteRange) -> Result<()> {
        if blocks.is_empty() {
            return Ok(());
        }
        let _turn = self.turns.lock(blocks).await;
        let mut rest = blocks;
        while !rest.is_empty() {
            // What was stored is looked up before it is forgotten where.
            let runs = self.map.runs(rest, MOST_RUNS);
            let end = runs.last().map_or(rest.end(), |run| run.range.end());
            let (part, behind) = rest.split_at(end - rest.start());
            self.map.set(part, State::Zero)?;
            for run in runs {
                if run.state == State::Stored {
                    let end = run.place + run.range.len().next_multiple_of(self.block);
                    self.store.forget(ByteRange::between(run.place, end));
                }
            }
            rest = behind;
            // Giving space back takes its time: others on this thread want a turn.
            if !rest.is_empty() {
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    /// Takes over from the source what `range` and the blocks around it have there.
    pub(super) async fn take_over(&self, below: &dyn BlockDevice, range: ByteRange) -> Result<()> {
        let size = below.info().size;
        let blocks = around(range, self.block, size);
        for piece in blocks.pieces(PIECE.max(self.block)) {
            if self.runs(piece).iter().all(|run| run.state != State::Below) {
                continue;
            }
            let _turn = self.turns.lock(piece).await;
            for run in self.runs(piece) {
                if run.state != State::Below {
                    continue;
                }
                let buffer = Buffer::zeroed(within(run.range, run.range).len());
                let data = aligned::read(below, run.range, buffer).await?;
                for block in run.range.pieces(self.block) {
                    let bytes = &data[within(block, run.range)];
                    if is_zero(bytes) {
                        self.map.set(block, State::Zero)?;
                    } else {
                        self.store(block, bytes)?;
                        self.map.set(block, State::Stored)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Where the bytes of `run` lie, if that is in a file of the overlay.
    pub(super) fn mapping(&self, run: Run) -> Mapping<'_> {
        let length = run.range.len();
        match run.state {
            State::Below => Mapping::Opaque,
            State::Zero => Mapping::Zero { length },
            State::Stored => {
                let place = ByteRange::between(run.place, run.place + length);
                self.store.mapping(place)
            }
        }
    }
}

/// The bytes of a block that are not written to.
enum Rest {
    /// They are in the store.
    There,
    /// They are zero.
    Zero,
    /// The whole block, as the source has it.
    Read(Buffer),
}

/// Reads `parts` of `range` from the source into `buffer`, which is to hold that range.
async fn read_parts(
    below: &dyn BlockDevice,
    parts: Vec<ByteRange>,
    range: ByteRange,
    mut buffer: Buffer,
) -> Result<Buffer> {
    let reads = parts.into_iter().map(|part| async move {
        let length = within(part, range).len();
        let read = aligned::read(below, part, Buffer::zeroed(length)).await?;
        Ok::<_, Error>((part, read))
    });
    let mut reads = stream::iter(reads).buffer_unordered(PARALLEL);
    while let Some((part, read)) = reads.try_next().await? {
        buffer[within(part, range)].copy_from_slice(&read);
    }
    Ok(buffer)
}

/// What has to be read of the source to have `wanted`: as little as possible in as few reads as make sense.
fn groups(wanted: &[ByteRange]) -> Vec<ByteRange> {
    let mut groups: Vec<ByteRange> = Vec::new();
    for &part in wanted {
        match groups.last_mut() {
            Some(last) if part.start() - last.end() <= GAP => {
                *last = ByteRange::between(last.start(), part.end());
            }
            _ => groups.push(part),
        }
    }
    groups
}

/// An error of the overlay or of the source, told with the request that it is about.
pub(super) fn told(operation: Operation, range: ByteRange) -> impl FnOnce(Error) -> Error {
    move |error| error.during(operation).moved_to(range.start(), range.len())
}
