//! What is known of ranges of the disk: holes and zeroes, and which image of a chain has them.

use blockferry_block::{ByteRange, Context, Extent, RangeSet, Result, Status, push_merged};
use futures_util::future::join_all;

use super::{
    holes::push_host,
    read::Reader,
    runs::{Joined, Run, Source},
    tables::{L2Table, Peek},
};
use crate::behind::Behind;

/// The most extents of one answer: 1.5 MiB of memory.
pub(crate) const MOST_EXTENTS: usize = 64 << 10;

/// How many entries of tables are looked at for one answer, to the end of a table: a few milliseconds. All tables of
/// the largest disk may be one and the same.
const MOST_ENTRIES: u64 = 2 << 20;

/// How many L2 tables are read at a time by whoever walks along, where they do not lie in a row.
const TABLES_AHEAD: usize = 8;

/// The depth of what is in this image.
const OWN: Status = Status(1);

impl Reader {
    /// What is known of `range`, which lies on the disk, in `context`: `base:allocation` or
    /// `qemu:allocation-depth`. An answer as [`BlockDevice::extents`](blockferry_block::BlockDevice::extents) gives it, of `most` extents at most.
    ///
    /// # Errors
    /// `Corrupt`, what reading tables and asking the backing file failed with.
    pub(crate) async fn status(
        &self,
        range: ByteRange,
        context: &Context,
        most: usize,
    ) -> Result<Vec<Extent>> {
        let holes = match (&self.holes, context) {
            (Some(holes), Context::Allocation) => {
                Some(holes.of(&self.data, self.geometry.cluster_size()).await)
            }
            _ => None,
        };
        let mut walk = Walk {
            reader: self,
            context,
            holes: holes.filter(|holes| !holes.is_empty()),
            behind: Behind::new(self.backing.as_ref(), context, most == 1),
            end: range.end(),
            most,
            list: Vec::new(),
        };
        let mut at = range.start();
        let mut entries = 0;
        while at < range.end() && !walk.is_full() && entries < MOST_ENTRIES {
            let (index, _) = self.geometry.indices(at);
            let tables_end = range.end().div_ceil(self.geometry.table_span());
            let next = self.tables.next_table(index, tables_end);
            if next > index {
                let end = self.geometry.span_of(next).start().min(range.end());
                let end = if end > at { end } else { range.end() };
                at = walk.push_behind(ByteRange::between(at, end)).await?;
                continue;
            }
            let within = ByteRange::between(at, range.end());
            let within = within.intersection(self.geometry.span_of(index));
            if most > 1 {
                self.bring_tables(index, tables_end).await?;
            }
            at = match self.tables.table(index).await? {
                Some(table) => walk.push_table(&table, within).await?,
                None => walk.push_behind(within).await?,
            };
            entries += self.geometry.l2_entries();
            if most == 1 {
                break;
            }
            // Others on the same thread have their turn between two tables, which may both be in memory.
            tokio::task::yield_now().await;
        }
        let mut list = walk.list;
        list.truncate(most);
        Ok(list)
    }

    /// Reads the L2 tables from `index` on that are not in memory: in one go where they lie in a row, else a few at a
    /// time.
    async fn bring_tables(&self, index: u64, end: u64) -> Result<()> {
        if !matches!(self.tables.peek(index)?, Peek::Unknown) {
            return Ok(());
        }
        self.tables.read_row(index, end).await;
        if !matches!(self.tables.peek(index)?, Peek::Unknown) {
            return Ok(());
        }
        let mut wanted = Vec::new();
        let mut next = index;
        while next < end && wanted.len() < TABLES_AHEAD.min(self.tables.most_kept() / 2) {
            wanted.push(next);
            next = self.tables.next_table(next + 1, end);
        }
        // Whoever gets to a table that cannot be read meets the error there.
        join_all(wanted.into_iter().map(|index| self.tables.table(index))).await;
        Ok(())
    }
}

/// An answer that is being put together.
struct Walk<'a> {
    reader: &'a Reader,
    context: &'a Context,
    /// Those of the file, where there are any.
    holes: Option<&'a RangeSet>,
    behind: Behind<'a>,
    /// The end of what was asked for.
    end: u64,
    most: usize,
    list: Vec<Extent>,
}

impl Walk<'_> {
    /// Whether the answer is as long as it may become. The last extent may still grow before, so there may be one too
    /// many.
    fn is_full(&self) -> bool {
        self.list.len() > self.most || self.behind.is_spent
    }

    /// Adds what `table` says of `range`, which it maps, and says how far it came.
    async fn push_table(&mut self, table: &L2Table, range: ByteRange) -> Result<u64> {
        let joined = match self.holes {
            Some(_) => Joined::InARow,
            None => Joined::Alike,
        };
        let mut rest = range;
        while !rest.is_empty() && !self.is_full() {
            let run = Run::first(table, self.reader.geometry, rest, joined)?;
            let at = match (run.source, self.context, self.holes) {
                (Source::Behind, ..) => self.push_behind(run.range).await?,
                (_, Context::AllocationDepth, _) => self.push(run.range, OWN),
                (Source::Zero, ..) => self.push(run.range, Status::HOLE_ZERO),
                (Source::Host(host), _, Some(holes)) => {
                    push_host(&mut self.list, run.range, host, holes);
                    run.range.end()
                }
                _ => self.push(run.range, Status::DATA),
            };
            rest = ByteRange::between(at, rest.end());
            if self.most == 1 {
                break;
            }
        }
        Ok(rest.start())
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
}
