//! What is known of ranges of the disk: holes and zeroes, and which image of a chain has them.

use blockferry_block::{
    BlockDevice, ByteRange, Context, ErrorKind, Extent, RangeSet, Result, Status, push_merged,
};
use futures_util::future::join_all;

use super::{
    host::HostFile,
    read::Reader,
    runs::{Joined, Run, Source},
    tables::{L2Table, Peek},
};

/// The most extents of one answer: 1.5 MiB of memory.
pub(crate) const MOST_EXTENTS: usize = 64 << 10;

/// How many entries of tables are looked at for one answer, to the end of a table: a few milliseconds. All tables of
/// the largest disk may be one and the same.
const MOST_ENTRIES: u64 = 2 << 20;

/// How many L2 tables are read at a time by whoever walks along, where they do not lie in a row.
const TABLES_AHEAD: usize = 8;

/// The depth of what is in this image, and of what is in the one behind it.
const OWN: Status = Status(1);
const BEHIND: Status = Status(2);

impl Reader {
    /// What is known of `range`, which lies on the disk, in `context`: `base:allocation` or
    /// `qemu:allocation-depth`. An answer as [`BlockDevice::extents`] gives it, of `most` extents at most.
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
            (Some(holes), Context::Allocation) => Some(holes.of(&self.data, self.geometry).await),
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

/// Adds `range`, which lies from `host` on in a file that has `holes`.
fn push_host(list: &mut Vec<Extent>, range: ByteRange, host: u64, holes: &RangeSet) {
    let mut at = host;
    let guest = |host_offset: u64| range.start() + (host_offset - host);
    let mut push = |start: u64, end: u64, status| {
        let range = ByteRange::between(guest(start), guest(end));
        push_merged(list, Extent { range, status });
    };
    for hole in holes.present_in(ByteRange::between(host, host + range.len())) {
        push(at, hole.start(), Status::DATA);
        push(hole.start(), hole.end(), Status::ZERO);
        at = hole.end();
    }
    push(at, host + range.len(), Status::DATA);
}

/// What is behind an image, and what was heard of it. It is asked once for one answer: were it asked again to see how
/// that goes on, each image of a chain would be asked twice as often as the one before it.
struct Behind<'a> {
    device: Option<&'a dyn BlockDevice>,
    size: u64,
    context: &'a Context,
    /// Whether one extent is all that is wanted.
    is_first: bool,
    was_asked: bool,
    /// Its answer, in the image's own terms, and how much of that lies before what is asked for now.
    answer: Vec<Extent>,
    passed: usize,
    /// More is wanted than its answer tells of.
    is_spent: bool,
}

impl<'a> Behind<'a> {
    fn new(backing: Option<&'a HostFile>, context: &'a Context, is_first: bool) -> Self {
        Self {
            device: backing.map(|backing| &**backing.device()),
            size: backing.map_or(0, HostFile::end),
            context,
            is_first,
            was_asked: false,
            answer: Vec::new(),
            passed: 0,
            is_spent: false,
        }
    }

    /// Adds what shows in `range`, which the image has nothing of, until the list is longer than `most` or no more is
    /// known. What lies up to the end of `asked`, which begins as `range` does, is asked for at once. Says how far it
    /// came.
    async fn push(
        &mut self,
        range: ByteRange,
        asked: ByteRange,
        most: usize,
        list: &mut Vec<Extent>,
    ) -> Result<u64> {
        let mut at = range.start();
        while at < range.end() && list.len() <= most {
            let rest = ByteRange::between(at, range.end());
            let next = match self.device {
                Some(_) if at < self.size => self.next(rest, asked.end()).await?,
                device => Some(Extent {
                    range: rest,
                    status: self.status_of_nothing(device.is_some()),
                }),
            };
            let Some(next) = next else {
                self.is_spent = true;
                break;
            };
            push_merged(list, next);
            at = next.range.end();
        }
        Ok(at)
    }

    /// The status of what is in no image: what lies behind the end of a backing file counts as that file's.
    fn status_of_nothing(&self, has_backing: bool) -> Status {
        match self.context {
            Context::AllocationDepth if has_backing => BEHIND,
            Context::AllocationDepth => Status(0),
            _ => Status::HOLE_ZERO,
        }
    }

    /// The first extent of `range`, which begins before the end of the backing file; `None` where its answer tells
    /// nothing of that.
    async fn next(&mut self, range: ByteRange, asked_end: u64) -> Result<Option<Extent>> {
        let at = range.start();
        loop {
            while let Some(known) = self.answer.get(self.passed) {
                if known.range.end() <= at {
                    self.passed += 1;
                    continue;
                }
                if known.range.start() > at {
                    break;
                }
                return Ok(Some(Extent {
                    range: known.range.intersection(range),
                    status: known.status,
                }));
            }
            if self.was_asked {
                return Ok(None);
            }
            self.was_asked = true;
            let end = if self.is_first {
                range.end()
            } else {
                asked_end
            };
            self.ask(ByteRange::between(at, end.min(self.size))).await?;
        }
    }

    /// Asks the backing file about `range`, which it has. There is an answer about its start afterwards.
    async fn ask(&mut self, range: ByteRange) -> Result<()> {
        let whole = |status| vec![Extent { range, status }];
        let unknown = match self.context {
            Context::AllocationDepth => BEHIND,
            _ => Status::DATA,
        };
        let Some(device) = self.device else {
            self.answer = whole(unknown);
            return Ok(());
        };
        // What knows nothing of chains has all of itself.
        if !device.info().contexts.contains(self.context) {
            self.answer = whole(unknown);
            return Ok(());
        }
        let answer = match self.is_first {
            true => device.first_extent(range, self.context).await,
            false => device.extents(range, self.context).await,
        };
        self.answer = match answer {
            Err(error) if error.kind() == ErrorKind::Unsupported => whole(unknown),
            answer => answer?,
        };
        // An answer that leaves the range, or a part of it out, is not believed.
        let mut at = range.start();
        let is_row = |extent: &Extent| {
            let goes_on = extent.range.start() == at && !extent.range.is_empty();
            at = extent.range.end();
            goes_on && at <= range.end()
        };
        if self.answer.is_empty() || !self.answer.iter().all(is_row) {
            self.answer = whole(unknown);
        }
        if *self.context == Context::AllocationDepth {
            for extent in &mut self.answer {
                let depth = extent.status.0;
                extent.status = Status(if depth == 0 {
                    0
                } else {
                    depth.saturating_add(1)
                });
            }
        }
        Ok(())
    }
}
