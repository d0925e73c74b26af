//! Reading: what a request touches is cut into runs, and each run comes the shortest way.

use std::sync::Arc;

use blockferry_block::{Buffer, ByteRange, Result};

use super::{
    header::Packed,
    sparse::{Grain, Joined, Peek, Sparse, Table},
    unpacked::{Batch, TOGETHER, Unpacked, Whole},
};
use crate::{
    corrupt::corrupt,
    gather::{Filled, SIDE_BY_SIDE, gather},
    host::HostFile,
};

/// What is needed to read: the files, through one handle, and what is known of them, shared by all handles.
#[derive(Clone)]
pub(crate) struct Reader {
    pub(crate) parts: Arc<[Part]>,
    /// The file of each part; any for one that has none.
    pub(crate) files: Arc<[HostFile]>,
    /// What shows where nothing is allocated.
    pub(crate) parent: Option<HostFile>,
    pub(crate) unpacked: Arc<Unpacked>,
}

/// A part of the disk: an extent.
pub(crate) struct Part {
    /// Where on the disk.
    pub(crate) range: ByteRange,
    pub(crate) kind: PartKind,
}

pub(crate) enum PartKind {
    Zero,
    /// The bytes lie in the file, from here on.
    Flat(u64),
    Sparse(Arc<Sparse>),
}

/// Where bytes of the disk come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// They are not in this image: those of the parent show, or zeroes.
    Behind,
    /// They are zeroes.
    Zero,
    /// They lie in the file of this part, the first of them at this offset.
    File(usize, u64),
    /// They are unpacked from a grain of this part, which begins here in its file and ends before there.
    Packed(usize, Packed, u64, u64),
}

/// A range of the disk whose bytes come from one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) range: ByteRange,
    pub(crate) source: Source,
}

/// A part of a request that is read by itself.
enum Piece {
    Run(Run),
    Batch(Batch),
}

impl Reader {
    /// The part that the byte at `at` is in, which is on the disk.
    pub(crate) fn part_at(&self, at: u64) -> usize {
        let before = self.parts.partition_point(|part| part.range.end() <= at);
        before.min(self.parts.len().saturating_sub(1))
    }

    /// Brings the table of the disk's beginning into memory, as far as that goes.
    pub(crate) async fn bring_first(&self) {
        if let (Some(part), Some(file)) = (self.parts.first(), self.files.first())
            && let PartKind::Sparse(sparse) = &part.kind
        {
            let _ = sparse.table(file, 0).await;
        }
    }

    /// Fills `buffer` with `range` of the disk, which is inside of it and as long.
    ///
    /// # Errors
    /// `Corrupt`, what reading failed with; ranges of errors are anyone's.
    pub(crate) async fn read(&self, range: ByteRange, buffer: Buffer) -> Result<Buffer> {
        if let Some(run) = self.known_run(range)
            && run.range == range
        {
            return self.read_run(run, buffer).await;
        }
        let mut runs = self.runs(range).await?;
        if let [run] = runs[..] {
            return self.read_run(run, buffer).await;
        }
        // The first of a few runs is read where it belongs, if its bytes only have to be read.
        let are_few = runs.len() <= SIDE_BY_SIDE;
        let first = match runs.first() {
            Some(run) if are_few && matches!(run.source, Source::File(..)) => Some(runs.remove(0)),
            _ => None,
        };
        let (pieces, batches) = self.pieces(runs);
        let unpacked: u64 = batches.iter().map(Batch::len).sum();
        if unpacked == range.len() && unpacked <= TOGETHER {
            let start = range.start();
            return self
                .unpacked
                .unpack(&self.files, batches, start, buffer)
                .await;
        }
        let first = first.map(|run| (run.range.len(), move |buffer| self.read_run(run, buffer)));
        let batches = batches.into_iter().map(Piece::Batch);
        let pieces = pieces.into_iter().chain(batches);
        let pieces = pieces.map(|piece| self.read_piece(piece));
        gather(range, buffer, first, pieces).await
    }

    /// The runs of `range`, in order.
    ///
    /// # Errors
    /// `Corrupt`, what reading tables failed with.
    pub(super) async fn runs(&self, range: ByteRange) -> Result<Vec<Run>> {
        let mut list = Vec::new();
        let mut rest = range;
        while !rest.is_empty() {
            let number = self.part_at(rest.start());
            let Some(part) = self.parts.get(number) else {
                break;
            };
            let within = rest.intersection(part.range);
            rest = rest.split_at(within.len()).1;
            if within.is_empty() {
                break;
            }
            match &part.kind {
                PartKind::Sparse(sparse) => {
                    self.sparse_runs(number, sparse, within, &mut list).await?;
                }
                kind => push(&mut list, plain(number, part, kind, within)),
            }
        }
        Ok(list)
    }

    async fn sparse_runs(
        &self,
        number: usize,
        sparse: &Arc<Sparse>,
        range: ByteRange,
        list: &mut Vec<Run>,
    ) -> Result<()> {
        let (file, base) = (&self.files[number], self.parts[number].range.start());
        let inner = ByteRange::between(range.start() - base, range.end() - base);
        let end = sparse.index(inner.end() - 1) + 1;
        for piece in inner.pieces(sparse.layout.table_span()) {
            let index = sparse.index(piece.start());
            sparse.bring(file, index, end).await;
            let Some(table) = sparse.table(file, index).await? else {
                push(list, behind(moved(piece, base)));
                continue;
            };
            let mut rest = piece;
            while !rest.is_empty() {
                let run = first_run(number, sparse, &table, rest, base);
                rest = rest.split_at(run.range.len()).1;
                push(list, run);
            }
        }
        Ok(())
    }

    /// The first run of `range` as far as it is known without asking a file; `None` where it is not, or the range is
    /// empty.
    pub(crate) fn known_run(&self, range: ByteRange) -> Option<Run> {
        if range.is_empty() {
            return None;
        }
        let number = self.part_at(range.start());
        let part = self.parts.get(number)?;
        let within = range.intersection(part.range);
        if within.is_empty() {
            return None;
        }
        let PartKind::Sparse(sparse) = &part.kind else {
            return Some(plain(number, part, &part.kind, within));
        };
        let base = part.range.start();
        let inner = ByteRange::between(within.start() - base, within.end() - base);
        let index = sparse.index(inner.start());
        match sparse.peek(index) {
            Peek::Unknown => None,
            Peek::Table(table) => {
                let inner = inner.intersection(sparse.span(index));
                Some(first_run(number, sparse, &table, inner, base))
            }
            Peek::Nothing => {
                let next = sparse.next_table(index, sparse.index(inner.end() - 1) + 1);
                let end = sparse.span(next).start().min(inner.end());
                let none = ByteRange::between(inner.start(), end.max(inner.start() + 1));
                Some(behind(moved(none, base)))
            }
        }
    }

    /// Fills `buffer` with `run`, which is as long.
    async fn read_run(&self, run: Run, mut buffer: Buffer) -> Result<Buffer> {
        match (run.source, &self.parent) {
            (Source::File(part, host), _) => self.read_file(run.range, part, host, buffer).await,
            (Source::Packed(..), _) => self.read_packed(run, buffer).await,
            (Source::Behind, Some(parent)) if run.range.start() < parent.end() => {
                let name = || "the parent".to_owned();
                parent.read_padded(run.range.start(), buffer, name).await
            }
            _ => {
                buffer.fill(0);
                Ok(buffer)
            }
        }
    }

    /// Reads what lies in a row. Only the last grain of a file may end behind it, as qemu has it.
    async fn read_file(
        &self,
        range: ByteRange,
        part: usize,
        host: u64,
        buffer: Buffer,
    ) -> Result<Buffer> {
        let file = &self.files[part];
        let end = file.end().next_multiple_of(self.unit(part));
        let there = end.saturating_sub(host);
        if there < range.len() || host >= file.end() {
            let guest = range.start() + there.min(range.len());
            return Err(corrupt(format!(
                "what is at guest offset {guest:#x} lies at {:#x}, past the end of the file",
                host + there
            )));
        }
        file.read_padded(host, buffer, || "a grain".to_owned())
            .await
    }

    /// What a file may be shorter than it should be by, in bytes.
    fn unit(&self, part: usize) -> u64 {
        match &self.parts[part].kind {
            PartKind::Sparse(sparse) => sparse.layout.grain_size(),
            _ => 1,
        }
    }

    /// How much of `range` can be read from `host` of its part's file on in one request, as it is.
    pub(crate) fn before_end(&self, part: usize, host: u64, length: u64) -> ByteRange {
        let all = ByteRange::between(host, host.saturating_add(length));
        all.intersection(ByteRange::between(0, self.files[part].end()))
    }

    /// Fills `buffer` with `run`, which lies in one compressed grain.
    async fn read_packed(&self, run: Run, mut buffer: Buffer) -> Result<Buffer> {
        let Some(whole) = self.whole(run) else {
            return Err(corrupt("a grain is nowhere"));
        };
        if run.range == whole.guest {
            let batches = Batch::cut(vec![whole]);
            let start = whole.guest.start();
            return self
                .unpacked
                .unpack(&self.files, batches, start, buffer)
                .await;
        }
        let grain = self.unpacked.grain(&self.files, whole).await?;
        let from = (run.range.start() - whole.guest.start()) as usize;
        let length = buffer.len();
        buffer.copy_from_slice(&grain[from..][..length]);
        Ok(buffer)
    }

    /// The compressed grain that `run` is a part of.
    fn whole(&self, run: Run) -> Option<Whole> {
        let Source::Packed(number, kind, offset, limit) = run.source else {
            return None;
        };
        let part = self.parts.get(number)?;
        let PartKind::Sparse(sparse) = &part.kind else {
            return None;
        };
        let grain = sparse.layout.grain_size();
        let start = run.range.start() - (run.range.start() - part.range.start()) % grain;
        let guest = ByteRange::between(start, start.saturating_add(grain));
        Some(Whole {
            guest: guest.intersection(part.range),
            part: number,
            base: part.range.start(),
            grain,
            kind,
            offset,
            limit,
        })
    }

    /// What of `runs` is read by itself, and which grains are unpacked together.
    fn pieces(&self, runs: Vec<Run>) -> (Vec<Piece>, Vec<Batch>) {
        let mut wholes = Vec::new();
        let mut pieces = Vec::new();
        for run in runs {
            match self.whole(run) {
                Some(whole) if whole.guest == run.range => wholes.push(whole),
                _ => pieces.push(Piece::Run(run)),
            }
        }
        (pieces, Batch::cut(wholes))
    }

    async fn read_piece(&self, piece: Piece) -> Result<Filled> {
        match piece {
            Piece::Run(run) => {
                let buffer = self.unpacked.scratch(run.range.len());
                let buffer = self.read_run(run, buffer).await?;
                Ok(Filled::one(run.range, buffer))
            }
            Piece::Batch(batch) => {
                let mut ranges = batch.grains.iter().map(|grain| grain.guest);
                Ok(Filled {
                    first: ranges.next().unwrap_or_default(),
                    others: ranges.collect(),
                    buffer: self.unpacked.unpack_in_a_row(&self.files, batch).await?,
                })
            }
        }
    }
}

/// The run of a part that has no tables.
fn plain(number: usize, part: &Part, kind: &PartKind, range: ByteRange) -> Run {
    let source = match kind {
        PartKind::Flat(offset) => {
            Source::File(number, offset + (range.start() - part.range.start()))
        }
        _ => Source::Zero,
    };
    Run { range, source }
}

/// The first run of `inner`, a range of an extent that begins at `base` of the disk, which `table` maps.
fn first_run(number: usize, sparse: &Sparse, table: &Table, inner: ByteRange, base: u64) -> Run {
    let (grain, end) = sparse.first(table, inner, Joined::InARow);
    let range = moved(ByteRange::between(inner.start(), end), base);
    let source = match (grain, sparse.layout.packed) {
        (Grain::Nothing, _) => Source::Behind,
        (Grain::Zero, _) => Source::Zero,
        (Grain::At(host, _), None) => Source::File(number, host),
        (Grain::At(host, limit), Some(kind)) => Source::Packed(number, kind, host, limit),
    };
    Run { range, source }
}

fn behind(range: ByteRange) -> Run {
    let source = Source::Behind;
    Run { range, source }
}

/// A range of an extent that begins at `base` of the disk, as one of the disk.
pub(crate) fn moved(inner: ByteRange, base: u64) -> ByteRange {
    ByteRange::between(base + inner.start(), base + inner.end())
}

/// Adds `next` to the end of `list`, or to its last run where it goes on with that.
fn push(list: &mut Vec<Run>, next: Run) {
    if next.range.is_empty() {
        return;
    }
    if let Some(last) = list.last_mut() {
        let goes_on = match (last.source, next.source) {
            (Source::Behind, Source::Behind) | (Source::Zero, Source::Zero) => true,
            (Source::File(part, host), Source::File(other, next)) => {
                part == other && host + last.range.len() == next
            }
            _ => false,
        };
        if goes_on {
            last.range = ByteRange::between(last.range.start(), next.range.end());
            return;
        }
    }
    list.push(next);
}
