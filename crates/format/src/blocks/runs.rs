//! A range of the disk as a row of runs: where the bytes of each come from.

use blockferry_block::{ByteRange, Result};

use super::{Block, Row, bitmaps::Bitmap, read::Reader};

/// Where bytes of the disk come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// They are not in this image: those of the parent show, or zeroes.
    Behind,
    /// They are zeroes.
    Zero,
    /// They lie in the file, the first of them at this offset.
    Host(u64),
}

/// A range of the disk whose bytes come from one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) range: ByteRange,
    pub(super) source: Source,
}

/// How much work one answer may be, so that others have their turn.
pub(super) struct Budget(u64);

/// What looking at a block costs, or at a row of them, and reading a piece of the table, and a bitmap.
const BLOCK: u64 = 1;
const PIECE: u64 = 256;
const BITMAP: u64 = 256;

impl Budget {
    /// Of an answer that takes a few milliseconds where no bitmaps are to be read.
    pub(super) fn of_an_answer() -> Self {
        Self(2 << 20)
    }

    /// What a request needs is done.
    pub(super) fn endless() -> Self {
        Self(u64::MAX)
    }

    pub(super) fn is_spent(&self) -> bool {
        self.0 == 0
    }

    fn spend(&mut self, cost: u64) {
        self.0 = self.0.saturating_sub(cost);
    }
}

impl Source {
    /// Whether `next`, which begins `length` bytes behind it, goes on with it.
    fn continues(self, length: u64, next: Self) -> bool {
        match (self, next) {
            (Self::Host(host), Self::Host(next)) => host + length == next,
            _ => self == next,
        }
    }
}

impl Reader {
    /// The runs of `range`, in order, which lies on the disk.
    ///
    /// # Errors
    /// `Corrupt`, what reading bitmaps failed with.
    pub(super) async fn runs(&self, range: ByteRange) -> Result<Vec<Run>> {
        let mut list = Vec::new();
        let mut budget = Budget::endless();
        let mut rest = range;
        while !rest.is_empty() {
            let run = self.first_run(rest, &mut budget).await?;
            rest = rest.split_at(run.range.len()).1;
            list.push(run);
        }
        Ok(list)
    }

    /// The first run of `range`, which lies on the disk and is not empty. It ends inside of the range, and may end
    /// before what goes on with it when the budget is spent.
    ///
    /// # Errors
    /// `Corrupt`, what reading a bitmap failed with.
    pub(super) async fn first_run(&self, range: ByteRange, budget: &mut Budget) -> Result<Run> {
        let (source, mut at) = self.piece(range.start(), budget).await?;
        while at < range.end() && !budget.is_spent() {
            // Damage further on is met by whoever gets there.
            let Ok((next, end)) = self.piece(at, budget).await else {
                break;
            };
            if !source.continues(at - range.start(), next) {
                break;
            }
            at = end;
        }
        let range = ByteRange::between(range.start(), at.min(range.end()));
        Ok(Run { range, source })
    }

    /// The first run of `range`, which lies on the disk, as far as it is known without asking a file; `None` where it
    /// is not, or the range is empty.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(super) fn known_run(&self, range: ByteRange) -> Result<Option<Run>> {
        if range.is_empty() {
            return Ok(None);
        }
        let Some((source, mut at)) = self.known_piece(range.start())? else {
            return Ok(None);
        };
        while at < range.end() {
            match self.known_piece(at) {
                Ok(Some((next, end))) if source.continues(at - range.start(), next) => at = end,
                _ => break,
            }
        }
        let range = ByteRange::between(range.start(), at.min(range.end()));
        Ok(Some(Run { range, source }))
    }

    /// Where the bytes from `at` on come from, and the end of what its block, or its sectors, or those behind it that
    /// are alike, say of that.
    async fn piece(&self, at: u64, budget: &mut Budget) -> Result<(Source, u64)> {
        let index = at / self.shape.block;
        let row = match self.table.row(index)? {
            Some(row) => row,
            None => {
                budget.spend(PIECE);
                self.table.read(&self.file, index).await?
            }
        };
        budget.spend(BLOCK);
        let bitmap = match row.block {
            Block::Mixed { bitmap, .. } => {
                budget.spend(BITMAP);
                Some(self.bitmaps.get(&self.file, bitmap).await?)
            }
            _ => None,
        };
        Ok(self.source_at(at, row, bitmap.as_deref()))
    }

    /// As [`piece`](Self::piece), as far as the table and the bitmap, if there is one, are known.
    fn known_piece(&self, at: u64) -> Result<Option<(Source, u64)>> {
        let Some(row) = self.table.row(at / self.shape.block)? else {
            return Ok(None);
        };
        let bitmap = match row.block {
            Block::Mixed { bitmap, .. } => match self.bitmaps.peek(bitmap) {
                Some(bitmap) => Some(bitmap),
                None => return Ok(None),
            },
            _ => None,
        };
        Ok(Some(self.source_at(at, row, bitmap.as_deref())))
    }

    fn source_at(&self, at: u64, row: Row, bitmap: Option<&Bitmap>) -> (Source, u64) {
        let first = at / self.shape.block;
        let whole = self.shape.range(first);
        let within = at - whole.start();
        let source = match (row.block, bitmap) {
            (Block::Behind, _) => Source::Behind,
            (Block::Zero, _) => Source::Zero,
            (Block::Mixed { host, .. }, Some(bitmap)) => {
                let sector = self.shape.sector;
                let sectors = whole.len().div_ceil(sector);
                let (is_there, end) = bitmap.run(within / sector, sectors);
                let end = (whole.start() + end * sector).min(whole.end());
                return match is_there {
                    true => (Source::Host(host + within), end),
                    false => (Source::Behind, end),
                };
            }
            (Block::Host(host) | Block::Mixed { host, .. }, _) => Source::Host(host + within),
        };
        let last = first.saturating_add(row.count.saturating_sub(1));
        (source, self.shape.range(last).end())
    }
}
