//! Reading: what a request touches is cut into runs, and each run comes the shortest way.

use std::sync::Arc;

use blockferry_block::{Buffer, BufferPool, ByteRange, Result};

use super::{
    Shape, Table,
    bitmaps::Bitmaps,
    runs::{Run, Source},
};
use crate::{
    gather::{Filled, SIDE_BY_SIDE, gather},
    holes::Holes,
    host::HostFile,
};

/// Parts up to so many bytes use buffers again.
pub(super) const SCRATCH: usize = 64 << 10;

/// What is needed to read: the files, through one handle, and what is known of them, shared by all handles.
#[derive(Clone)]
pub(super) struct Reader {
    pub(super) shape: Shape,
    pub(super) table: Arc<dyn Table>,
    pub(super) file: HostFile,
    /// What shows where the image has nothing.
    pub(super) parent: Option<HostFile>,
    pub(super) bitmaps: Arc<Bitmaps>,
    pub(super) holes: Arc<Holes>,
    pub(super) scratch: BufferPool,
}

impl Reader {
    /// Fills `buffer` with `range` of the disk, which is inside of it and as long.
    ///
    /// # Errors
    /// `Corrupt`, what reading failed with; ranges of errors are anyone's.
    pub(super) async fn read(&self, range: ByteRange, buffer: Buffer) -> Result<Buffer> {
        if let Some(run) = self.known_run(range)?
            && run.range == range
        {
            return self.read_run(run, buffer).await;
        }
        let runs = self.runs(range).await?;
        let (zeroes, mut runs): (Vec<_>, Vec<_>) =
            runs.into_iter().partition(|run| self.is_zero(run));
        // The first of a few runs is read where it belongs.
        let is_first = |run: &Run| run.range.start() == range.start();
        let first = match runs.first() {
            Some(run) if runs.len() <= SIDE_BY_SIDE && is_first(run) => Some(runs.remove(0)),
            _ => None,
        };
        let first = first.map(|run| (run.range.len(), move |buffer| self.read_run(run, buffer)));
        let parts = runs.into_iter().map(|run| async move {
            let scratch = self.scratch.take(run.range.len() as usize);
            Ok(Filled::one(run.range, self.read_run(run, scratch).await?))
        });
        let mut buffer = gather(range, buffer, first, parts).await?;
        for run in zeroes {
            let start = (run.range.start() - range.start()) as usize;
            buffer[start..][..run.range.len() as usize].fill(0);
        }
        Ok(buffer)
    }

    /// Whether nothing is to be read for it.
    fn is_zero(&self, run: &Run) -> bool {
        match (run.source, &self.parent) {
            (Source::Host(_), _) => false,
            (Source::Behind, Some(parent)) => run.range.start() >= parent.end(),
            (Source::Behind, None) | (Source::Zero, _) => true,
        }
    }

    /// Fills `buffer` with `run`, which is as long.
    async fn read_run(&self, run: Run, mut buffer: Buffer) -> Result<Buffer> {
        match (run.source, &self.parent) {
            (Source::Host(host), _) => self.file.read(host, buffer).await,
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
}
