//! Reading: what a request touches is cut into runs, and each run comes the shortest way.

use std::sync::Arc;

use blockferry_block::{Buffer, ByteRange, Result};

use super::{
    entry::Compressed,
    geometry::{Geometry, corrupt},
    holes::Holes,
    host::HostFile,
    runs::{Joined, Run, Source},
    tables::{Peek, Tables},
    unpacked::{Batch, TOGETHER, Unpacked, Whole},
};
use crate::gather::{Filled, SIDE_BY_SIDE, gather};

/// What is needed to read: the files, through one handle, and what is known of them, shared by all handles.
#[derive(Clone)]
pub(crate) struct Reader {
    pub(crate) geometry: Geometry,
    pub(crate) tables: Tables,
    /// The file that clusters lie in.
    pub(crate) data: HostFile,
    /// What shows where nothing is allocated.
    pub(crate) backing: Option<HostFile>,
    pub(crate) unpacked: Arc<Unpacked>,
    /// The holes of the data file, where nobody writes it.
    pub(crate) holes: Option<Arc<Holes>>,
}

/// A part of a request that is read by itself.
enum Part {
    Run(Run),
    Batch(Batch),
}

impl Reader {
    /// Fills `buffer` with `range` of the disk, which is inside of it and as long.
    ///
    /// # Errors
    /// `Corrupt`, what reading failed with; ranges of errors are anyone's.
    pub(crate) async fn read(&self, range: ByteRange, buffer: Buffer) -> Result<Buffer> {
        if let Some(run) = self.known_run(range)?
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
            Some(run) if are_few && matches!(run.source, Source::Host(_)) => Some(runs.remove(0)),
            _ => None,
        };
        let (parts, batches) = self.parts(runs);
        let clusters = batches.iter().map(|batch| batch.clusters.len() as u64);
        let unpacked = clusters.sum::<u64>() << self.geometry.cluster_bits;
        if unpacked == range.len() && unpacked <= TOGETHER {
            let start = range.start();
            return self
                .unpacked
                .unpack(&self.data, batches, start, buffer)
                .await;
        }
        let first = first.map(|run| (run.range.len(), move |buffer| self.read_run(run, buffer)));
        let batches = batches.into_iter().map(Part::Batch);
        let parts = parts.into_iter().chain(batches);
        let parts = parts.map(|part| self.read_part(part));
        gather(range, buffer, first, parts).await
    }

    /// The runs of `range`, in order.
    ///
    /// # Errors
    /// `Corrupt`, what reading tables failed with.
    pub(crate) async fn runs(&self, range: ByteRange) -> Result<Vec<Run>> {
        let geometry = self.geometry;
        let mut list = Vec::new();
        let tables_end = range.end().div_ceil(geometry.table_span());
        for part in range.pieces(geometry.table_span()) {
            let (index, _) = geometry.indices(part.start());
            if let Peek::Unknown = self.tables.peek(index)? {
                self.tables.read_row(index, tables_end).await;
            }
            let Some(table) = self.tables.table(index).await? else {
                let (range, source) = (part, Source::Behind);
                Run::push(&mut list, Run { range, source });
                continue;
            };
            let mut rest = part;
            while !rest.is_empty() {
                let run = Run::first(&table, geometry, rest, Joined::InARow)?;
                rest = rest.split_at(run.range.len()).1;
                Run::push(&mut list, run);
            }
        }
        Ok(list)
    }

    /// The first run of `range` as far as it is known without asking a file; `None` where it is not, or the range is
    /// empty.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn known_run(&self, range: ByteRange) -> Result<Option<Run>> {
        if range.is_empty() {
            return Ok(None);
        }
        let (index, _) = self.geometry.indices(range.start());
        match self.tables.peek(index)? {
            Peek::Unknown => Ok(None),
            Peek::Table(table) => {
                let within = range.intersection(self.geometry.span_of(index));
                Run::first(&table, self.geometry, within, Joined::InARow).map(Some)
            }
            Peek::Nothing => {
                let tables_end = range.end().div_ceil(self.geometry.table_span());
                let next = self.tables.next_table(index, tables_end);
                let end = self.geometry.span_of(next).start().min(range.end());
                Ok(Some(Run {
                    range: ByteRange::between(range.start(), end),
                    source: Source::Behind,
                }))
            }
        }
    }

    /// The `length` bytes from `host` of the file on, as far as they lie before its end.
    pub(crate) fn before_end(&self, host: u64, length: u64) -> ByteRange {
        let all = ByteRange::between(host, host.saturating_add(length));
        all.intersection(ByteRange::between(0, self.data.end()))
    }

    /// Fills `buffer` with `run`, which is as long.
    async fn read_run(&self, run: Run, mut buffer: Buffer) -> Result<Buffer> {
        match (run.source, &self.backing) {
            (Source::Host(host), _) => self.read_host(run.range, host, buffer).await,
            (Source::Compressed(packed), _) => self.read_packed(run.range, packed, buffer).await,
            (Source::Behind, Some(backing)) if run.range.start() < backing.end() => {
                let name = || "the backing file".to_owned();
                backing.read_padded(run.range.start(), buffer, name).await
            }
            _ => {
                buffer.fill(0);
                Ok(buffer)
            }
        }
    }

    /// Reads clusters that lie in a row. Only the last cluster of a file may end behind it: qemu calls it damage when
    /// a whole one lies there.
    async fn read_host(&self, range: ByteRange, host: u64, buffer: Buffer) -> Result<Buffer> {
        let end = self
            .data
            .end()
            .next_multiple_of(self.geometry.cluster_size());
        let there = end.saturating_sub(host);
        if there < range.len() {
            let guest = range.start() + there;
            return Err(corrupt(format!(
                "the cluster for guest offset {guest:#x} lies at {:#x}, past the end of the file",
                host + there
            )));
        }
        if host >= self.data.end() {
            let mut buffer = buffer;
            buffer.fill(0);
            return Ok(buffer);
        }
        let name = || "a cluster".to_owned();
        self.data.read_padded(host, buffer, name).await
    }

    /// Fills `buffer` with `range`, which lies in one compressed cluster.
    async fn read_packed(
        &self,
        range: ByteRange,
        packed: Compressed,
        mut buffer: Buffer,
    ) -> Result<Buffer> {
        let whole = self.whole(range, packed);
        if range.len() == self.geometry.cluster_size() {
            let batches = Batch::cut(vec![whole], self.geometry);
            return self
                .unpacked
                .unpack(&self.data, batches, whole.guest, buffer)
                .await;
        }
        let cluster = self.unpacked.cluster(&self.data, whole).await?;
        let from = (range.start() - whole.guest) as usize;
        let length = buffer.len();
        buffer.copy_from_slice(&cluster[from..][..length]);
        Ok(buffer)
    }

    /// The cluster that `range` is a part of.
    fn whole(&self, range: ByteRange, packed: Compressed) -> Whole {
        let guest = range.start() - range.start() % self.geometry.cluster_size();
        Whole { guest, packed }
    }

    /// What of `runs` is read by itself, and which clusters are unpacked together.
    fn parts(&self, runs: Vec<Run>) -> (Vec<Part>, Vec<Batch>) {
        let mut wholes = Vec::new();
        let mut parts = Vec::new();
        for run in runs {
            match run.source {
                Source::Compressed(packed) if run.range.len() == self.geometry.cluster_size() => {
                    wholes.push(self.whole(run.range, packed));
                }
                _ => parts.push(Part::Run(run)),
            }
        }
        (parts, Batch::cut(wholes, self.geometry))
    }

    async fn read_part(&self, part: Part) -> Result<Filled> {
        match part {
            Part::Run(run) => {
                let buffer = self.unpacked.scratch(run.range.len());
                let buffer = self.read_run(run, buffer).await?;
                Ok(Filled::one(run.range, buffer))
            }
            Part::Batch(batch) => {
                let size = self.geometry.cluster_size();
                let guests = batch.clusters.iter().map(|cluster| cluster.guest);
                let mut ranges = guests.map(|guest| ByteRange::between(guest, guest + size));
                Ok(Filled {
                    first: ranges.next().unwrap_or_default(),
                    others: ranges.collect(),
                    buffer: self.unpacked.unpack_in_a_row(&self.data, batch).await?,
                })
            }
        }
    }
}
