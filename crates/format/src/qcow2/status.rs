//! What is known of ranges of the disk: holes and zeroes, and which image of a chain has them.

use blockferry_block::{ByteRange, Context, Extent, RangeSet, Result, Status};
use futures_util::future::join_all;

use super::{
    read::Reader,
    runs::{Joined, Run, Source},
    tables::{L2Table, Peek},
};
use crate::answer::Answer;

/// How many entries of tables are looked at for one answer, to the end of a table: a few milliseconds. All tables of
/// the largest disk may be one and the same.
const MOST_ENTRIES: u64 = 2 << 20;

/// How many L2 tables are read at a time by whoever walks along, where they do not lie in a row.
const TABLES_AHEAD: usize = 8;

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
            holes: holes.filter(|holes| !holes.is_empty()),
            answer: Answer::new(self.backing.as_ref(), context, range, most),
        };
        let mut at = range.start();
        let mut entries = 0;
        while at < range.end() && !walk.answer.is_full() && entries < MOST_ENTRIES {
            let (index, _) = self.geometry.indices(at);
            let tables_end = range.end().div_ceil(self.geometry.table_span());
            let next = self.tables.next_table(index, tables_end);
            if next > index {
                let end = self.geometry.span_of(next).start().min(range.end());
                let end = if end > at { end } else { range.end() };
                at = walk.answer.push_behind(ByteRange::between(at, end)).await?;
                continue;
            }
            let within = ByteRange::between(at, range.end());
            let within = within.intersection(self.geometry.span_of(index));
            if most > 1 {
                self.bring_tables(index, tables_end).await?;
            }
            at = match self.tables.table(index).await? {
                Some(table) => walk.push_table(&table, within).await?,
                None => walk.answer.push_behind(within).await?,
            };
            entries += self.geometry.l2_entries();
            if most == 1 {
                break;
            }
            // Others on the same thread have their turn between two tables, which may both be in memory.
            tokio::task::yield_now().await;
        }
        Ok(walk.answer.finish())
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

/// The way along the tables, and what they say.
struct Walk<'a> {
    reader: &'a Reader,
    /// Those of the file, where there are any.
    holes: Option<&'a RangeSet>,
    answer: Answer<'a>,
}

impl Walk<'_> {
    /// Adds what `table` says of `range`, which it maps, and says how far it came.
    async fn push_table(&mut self, table: &L2Table, range: ByteRange) -> Result<u64> {
        let joined = match self.holes {
            Some(_) => Joined::InARow,
            None => Joined::Alike,
        };
        let answer = &mut self.answer;
        let mut rest = range;
        while !rest.is_empty() && !answer.is_full() {
            let run = Run::first(table, self.reader.geometry, rest, joined)?;
            let at = match (run.source, self.holes) {
                (Source::Behind, _) => answer.push_behind(run.range).await?,
                (Source::Zero, _) => answer.push(run.range, Status::HOLE_ZERO),
                (Source::Host(host), Some(holes)) => answer.push_host(run.range, host, holes),
                _ => answer.push(run.range, Status::DATA),
            };
            rest = ByteRange::between(at, rest.end());
            if answer.is_for_one() {
                break;
            }
        }
        Ok(rest.start())
    }
}
