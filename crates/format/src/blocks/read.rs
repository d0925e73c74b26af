//! Reading: what a request touches is cut into runs, and each run comes the shortest way.

use std::sync::Arc;

use blockferry_block::{Buffer, BufferPool, ByteRange, Error, Result};
use futures_util::{StreamExt, TryStreamExt, future::try_join, stream};

use super::{
    Shape, Table,
    bitmaps::Bitmaps,
    runs::{Run, Source},
};
use crate::{holes::Holes, host::HostFile};

/// How many parts of a request are read at a time.
const SIDE_BY_SIDE: usize = 16;

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
        let mut buffer = buffer;
        let (zeroes, mut runs): (Vec<_>, Vec<_>) =
            runs.into_iter().partition(|run| self.is_zero(run));
        // The first of a few runs is read where it belongs.
        let is_first = |run: &Run| run.range.start() == range.start();
        let first = match runs.first() {
            Some(run) if runs.len() <= SIDE_BY_SIDE && is_first(run) => Some(runs.remove(0)),
            _ => None,
        };
        let parts = stream::iter(runs).map(|run| async move {
            let scratch = self.scratch.take(run.range.len() as usize);
            Ok::<_, Error>((run.range, self.read_run(run, scratch).await?))
        });
        let mut parts = parts.buffer_unordered(SIDE_BY_SIDE);
        match first {
            Some(first) => {
                let reading = parts.try_collect::<Vec<_>>();
                let (read, filled) = try_join(self.read_first(first, buffer), reading).await?;
                buffer = read;
                for (own, bytes) in filled {
                    part(&mut buffer, range, own).copy_from_slice(&bytes);
                }
            }
            // Each has a buffer of its own, most of it unused: there can be one for every sector.
            None => {
                while let Some((own, bytes)) = parts.try_next().await? {
                    part(&mut buffer, range, own).copy_from_slice(&bytes);
                }
            }
        }
        for run in zeroes {
            part(&mut buffer, range, run.range).fill(0);
        }
        Ok(buffer)
    }

    /// Fills the beginning of `buffer` with `run`.
    async fn read_first(&self, run: Run, mut buffer: Buffer) -> Result<Buffer> {
        let length = buffer.len();
        buffer.set_len(run.range.len() as usize);
        let mut buffer = self.read_run(run, buffer).await?;
        buffer.set_len(length);
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

/// The bytes of `own` in those of `range`.
fn part(bytes: &mut [u8], range: ByteRange, own: ByteRange) -> &mut [u8] {
    let start = (own.start() - range.start()) as usize;
    &mut bytes[start..][..own.len() as usize]
}
