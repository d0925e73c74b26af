//! What is known of ranges of the disk: holes and zeroes, and which image of a chain has them.

use std::sync::Arc;

use blockferry_block::{ByteRange, Context, Extent, Result, Status, push_merged};

use super::{
    read::{Part, PartKind, Reader, moved},
    sparse::{Grain, Joined, Sparse},
};
use crate::behind::Behind;

/// The most extents of one answer: 1.5 MiB of memory.
pub(crate) const MOST_EXTENTS: usize = 64 << 10;

/// How many entries of tables are looked at for one answer, to the end of a table: a few milliseconds.
const MOST_ENTRIES: u64 = 2 << 20;
/// A table counts as so many at least: it may have to be read.
const LEAST_ENTRIES: u64 = 128;

/// The depth of what is in this image.
const OWN: Status = Status(1);

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
            context,
            behind: Behind::new(self.parent.as_ref(), context, most == 1),
            end: range.end(),
            most,
            list: Vec::new(),
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
                PartKind::Zero => walk.push(within, walk.own(Status::HOLE_ZERO)),
                PartKind::Flat(offset) => walk.push_flat(number, part, *offset, within).await?,
                PartKind::Sparse(sparse) => walk.push_sparse(number, sparse, within).await?,
            };
            if most == 1 && !walk.list.is_empty() {
                break;
            }
            at = next;
        }
        let mut list = walk.list;
        list.truncate(most);
        Ok(list)
    }
}

/// An answer that is being put together.
struct Walk<'a> {
    reader: &'a Reader,
    context: &'a Context,
    behind: Behind<'a>,
    /// The end of what was asked for.
    end: u64,
    most: usize,
    list: Vec<Extent>,
    /// How many entries of tables were looked at.
    entries: u64,
}

impl Walk<'_> {
    /// Whether the answer is as long as it may become. The last extent may still grow before, so there may be one too
    /// many.
    fn is_full(&self) -> bool {
        self.list.len() > self.most || self.behind.is_spent || self.entries >= MOST_ENTRIES
    }

    /// The status of what is in this image, and is `status` in `base:allocation`.
    fn own(&self, status: Status) -> Status {
        match self.context {
            Context::AllocationDepth => OWN,
            _ => status,
        }
    }

    fn push(&mut self, range: ByteRange, status: Status) -> u64 {
        push_merged(&mut self.list, Extent { range, status });
        range.end()
    }

    /// Adds what shows in `range`, which the image has nothing of, and says how far it came.
    async fn push_behind(&mut self, range: ByteRange) -> Result<u64> {
        let asked = ByteRange::between(range.start(), self.end);
        let (most, list) = (self.most, &mut self.list);
        self.behind.push(range, asked, most, list).await
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
        if *self.context != Context::Allocation || !device.info().knows_allocation() || !is_aligned
        {
            return Ok(self.push(range, self.own(Status::DATA)));
        }
        // Nothing is lost without an answer, or by one that is not to be believed, but time.
        let answer = match self.most {
            1 => device.first_extent(host, &Context::Allocation).await,
            _ => device.extents(host, &Context::Allocation).await,
        };
        let mut at = host.start();
        for extent in answer.unwrap_or_default() {
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
            self.push(
                ByteRange::between(guest, guest + extent.range.len()),
                status,
            );
        }
        if at == host.start() {
            return Ok(self.push(range, Status::DATA));
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
                self.push_behind(moved(ByteRange::between(rest.start(), end), base))
                    .await?
            } else {
                if self.most > 1 {
                    sparse.bring(file, index, tables_end).await;
                }
                let within = rest.intersection(sparse.span(index));
                self.push_table(sparse, file, index, within, base).await?
            };
            rest = ByteRange::between(end - base, rest.end());
            if self.most == 1 && !self.list.is_empty() {
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
        file: &crate::host::HostFile,
        index: u64,
        within: ByteRange,
        base: u64,
    ) -> Result<u64> {
        let Some(table) = sparse.table(file, index).await? else {
            return self.push_behind(moved(within, base)).await;
        };
        self.entries += u64::from(sparse.layout.entries).max(LEAST_ENTRIES);
        let mut rest = within;
        while !rest.is_empty() && !self.is_full() {
            let (grain, end) = sparse.first(&table, rest, Joined::Alike);
            let run = moved(ByteRange::between(rest.start(), end), base);
            let reached = match grain {
                Grain::Nothing => self.push_behind(run).await?,
                Grain::Zero => self.push(run, self.own(Status::HOLE_ZERO)),
                Grain::At(..) => self.push(run, self.own(Status::DATA)),
            };
            rest = ByteRange::between(reached - base, rest.end());
            if self.most == 1 && !self.list.is_empty() {
                break;
            }
        }
        Ok(base + rest.start())
    }
}
