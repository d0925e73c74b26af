//! What is known of ranges of the disk: holes and zeroes, and which image of a chain has them.

use std::sync::Arc;

use blockferry_block::{ByteRange, Context, Extent, Result, Status};

use super::{
    read::{Part, PartKind, Reader, moved},
    sparse::{Grain, Joined, Sparse},
};
use crate::{answer::Answer, host::HostFile};

/// How many entries of tables are looked at for one answer, to the end of a table: a few milliseconds.
const MOST_ENTRIES: u64 = 2 << 20;
/// A table counts as so many at least: it may have to be read.
const LEAST_ENTRIES: u64 = 128;

impl Reader {
    /// What is known of `range`, which lies on the disk, in `context`: `base:allocation` or
    /// `qemu:allocation-depth`. An answer as [`BlockDevice::extents`](blockferry_block::BlockDevice::extents) gives
    /// it, of `most` extents at most.
    ///
    /// # Errors
    /// `Corrupt`, what reading tables and asking the parent failed with.
    pub(crate) async fn status(
        &self,
        range: ByteRange,
        context: &Context,
        most: usize,
    ) -> Result<Vec<Extent>> {
        let mut walk = Walk {
            reader: self,
            answer: Answer::new(self.parent.as_ref(), context, range, most),
            entries: 0,
        };
        let mut at = range.start();
        while at < range.end() && !walk.is_full() {
            let number = self.part_at(at);
            let Some(part) = self.parts.get(number) else {
                break;
            };
            let within = ByteRange::between(at, range.end()).intersection(part.range);
            if within.is_empty() {
                break;
            }
            let next = match &part.kind {
                PartKind::Zero => walk.answer.push(within, Status::HOLE_ZERO),
                PartKind::Flat(offset) => walk.push_flat(number, part, *offset, within).await?,
                PartKind::Sparse(sparse) => walk.push_sparse(number, sparse, within).await?,
            };
            if most == 1 && !walk.answer.is_empty() {
                break;
            }
            at = next;
        }
        Ok(walk.answer.finish())
    }
}

/// The way along the extents, and what they say.
struct Walk<'a> {
    reader: &'a Reader,
    answer: Answer<'a>,
    /// How many entries of tables were looked at.
    entries: u64,
}

impl Walk<'_> {
    fn is_full(&self) -> bool {
        self.answer.is_full() || self.entries >= MOST_ENTRIES
    }

    /// Adds what the file says of a flat extent: the holes that it has are zero, as qemu has it.
    async fn push_flat(
        &mut self,
        number: usize,
        part: &Part,
        offset: u64,
        range: ByteRange,
    ) -> Result<u64> {
        let device = self.reader.files[number].device();
        let minimum = u64::from(device.info().limits.minimum.max(1));
        let start = offset + (range.start() - part.range.start());
        let host = ByteRange::between(start, start + range.len());
        let is_aligned = start.is_multiple_of(minimum) && host.end().is_multiple_of(minimum);
        let is_told = self.answer.is_of_allocation() && device.info().knows_allocation();
        if !is_told || !is_aligned {
            return Ok(self.answer.push(range, Status::DATA));
        }
        // Nothing is lost without an answer, or by one that is not to be believed, but time.
        let holes = match self.answer.is_for_one() {
            true => device.first_extent(host, &Context::Allocation).await,
            false => device.extents(host, &Context::Allocation).await,
        };
        let mut at = host.start();
        for extent in holes.unwrap_or_default() {
            if extent.range.start() != at || extent.range.is_empty() || !host.contains(extent.range)
            {
                break;
            }
            at = extent.range.end();
            let status = match extent.status.is_zero() {
                true => Status::ZERO,
                false => Status::DATA,
            };
            let guest = extent.range.start() - host.start() + range.start();
            let guest = ByteRange::between(guest, guest + extent.range.len());
            self.answer.push(guest, status);
        }
        if at == host.start() {
            return Ok(self.answer.push(range, Status::DATA));
        }
        Ok(range.start() + (at - host.start()))
    }

    /// Adds what the tables of an extent say, and says how far it came.
    async fn push_sparse(
        &mut self,
        number: usize,
        sparse: &Arc<Sparse>,
        range: ByteRange,
    ) -> Result<u64> {
        let (file, base) = (
            &self.reader.files[number],
            self.reader.parts[number].range.start(),
        );
        let mut rest = ByteRange::between(range.start() - base, range.end() - base);
        let tables_end = sparse.index(rest.end() - 1) + 1;
        while !rest.is_empty() && !self.is_full() {
            let index = sparse.index(rest.start());
            let next = sparse.next_table(index, tables_end);
            let end = if next > index {
                let end = sparse.span(next).start().min(rest.end());
                let end = if end > rest.start() { end } else { rest.end() };
                let none = moved(ByteRange::between(rest.start(), end), base);
                self.answer.push_behind(none).await?
            } else {
                if !self.answer.is_for_one() {
                    sparse.bring(file, index, tables_end).await;
                }
                let within = rest.intersection(sparse.span(index));
                self.push_table(sparse, file, index, within, base).await?
            };
            rest = ByteRange::between(end - base, rest.end());
            if self.answer.is_for_one() && !self.answer.is_empty() {
                break;
            }
            // Others on the same thread have their turn between two tables, which may both be in memory.
            tokio::task::yield_now().await;
        }
        Ok(base + rest.start())
    }

    async fn push_table(
        &mut self,
        sparse: &Arc<Sparse>,
        file: &HostFile,
        index: u64,
        within: ByteRange,
        base: u64,
    ) -> Result<u64> {
        let Some(table) = sparse.table(file, index).await? else {
            return self.answer.push_behind(moved(within, base)).await;
        };
        self.entries += u64::from(sparse.layout.entries).max(LEAST_ENTRIES);
        let mut rest = within;
        while !rest.is_empty() && !self.is_full() {
            let (grain, end) = sparse.first(&table, rest, Joined::Alike);
            let run = moved(ByteRange::between(rest.start(), end), base);
            let reached = match grain {
                Grain::Nothing => self.answer.push_behind(run).await?,
                Grain::Zero => self.answer.push(run, Status::HOLE_ZERO),
                Grain::At(..) => self.answer.push(run, Status::DATA),
            };
            rest = ByteRange::between(reached - base, rest.end());
            if self.answer.is_for_one() && !self.answer.is_empty() {
                break;
            }
        }
        Ok(base + rest.start())
    }
}
