//! Grains come in: handed to the compressors, or written where they go.

use std::sync::{Arc, atomic::Ordering};

use blockferry_block::{
    Buffer, ByteRange, CopyFlags, Error, ErrorKind, Extent, FileRange, Mapping, PipeBuffer, Result,
    ZeroFlags, is_zero,
};

use super::{
    GRAIN, Kind, NewImage, check_size,
    map::{PENDING, Table, place_of},
    packer::{GrainPacker, Place},
};
use crate::{
    making::{Make, Progress},
    pipeline::Pipeline,
    vmdk::header::SECTOR,
};

/// Grains that lie side by side, on the disk and in the file.
#[derive(Clone, Copy, Debug)]
struct Run {
    guest: ByteRange,
    host: u64,
}

/// Grains that were given places and may have to give them back.
type Taken = Vec<(Arc<Table>, usize)>;

impl Make for NewImage {
    fn progress(&self) -> &Progress {
        &self.progress
    }

    fn unit(&self) -> Option<(u64, &'static str)> {
        Some((GRAIN, "grains"))
    }

    fn check_size(&self, size: u64) -> Result<()> {
        check_size(size)
    }

    async fn write_range(&self, range: ByteRange, data: Buffer) -> Result<Buffer> {
        let change = self.progress.doubt.begin(range);
        let data = match &self.kind {
            Kind::Stream(pipeline) => self.hand_in(range, data, pipeline).await?,
            Kind::Sparse(_) => self.write_sparse(range, data).await?,
        };
        change.done();
        Ok(data)
    }

    async fn write_pipe(&self, range: ByteRange, data: PipeBuffer) -> Result<()> {
        if !self.file.takes_as_it_is(range) {
            return self.write_range(range, data.into_memory()?).await.map(drop);
        }
        let change = self.progress.doubt.begin(range);
        match self.place(range)?.0[..] {
            [run] => self.file.write_piped(run.host, data).await?,
            _ => self
                .write_sparse(range, data.into_memory()?)
                .await
                .map(drop)?,
        }
        change.done();
        Ok(())
    }

    async fn copy_range(
        &self,
        range: ByteRange,
        source: &FileRange,
        flags: CopyFlags,
    ) -> Result<()> {
        let change = self.progress.doubt.begin(range);
        let (runs, taken) = self.place(range)?;
        for run in runs {
            let place = ByteRange::between(run.host, run.host + run.guest.len());
            if !self.file.takes_as_it_is(place) {
                self.file.clear_last(place).await?;
            }
            let from = source.range().start() + (run.guest.start() - range.start());
            let from = ByteRange::between(from, from + run.guest.len());
            let copied = self
                .file
                .copy_from(run.host, source.with_range(from), flags);
            match copied.await {
                Ok(()) => {}
                Err(error)
                    if error.kind() == ErrorKind::Unsupported && taken_is_all(&taken, range) =>
                {
                    // Something may have come there.
                    self.file.no_longer_fresh();
                    for (table, at) in taken {
                        table.set(at, 0);
                    }
                    change.nothing();
                    return Err(error);
                }
                Err(error) => return Err(error),
            }
        }
        change.done();
        Ok(())
    }

    async fn zero_range(&self, range: ByteRange, flags: ZeroFlags) -> Result<()> {
        let change = self.progress.doubt.begin(range);
        match &self.kind {
            Kind::Stream(pipeline) => {
                let _turn = pipeline.turn().await;
                self.settle(range, pipeline).await?;
                self.forget(range)?;
            }
            Kind::Sparse(_) if flags.contains(ZeroFlags::NO_HOLE) => {
                for piece in range.pieces(64 * GRAIN) {
                    for run in self.place(piece)?.0 {
                        let place = ByteRange::between(run.host, run.host + run.guest.len());
                        self.file
                            .zero(self.file.whole(place), ZeroFlags::NO_HOLE)
                            .await?;
                    }
                }
            }
            Kind::Sparse(_) => self.forget(range)?,
        }
        change.done();
        Ok(())
    }

    /// Sets the virtual size. What is cut off is forgotten.
    async fn set_size(&self, size: u64) -> Result<()> {
        self.progress.check_resize()?;
        check_size(size)?;
        let before = self.size();
        if size < before {
            let start = size - size % GRAIN;
            let first = ByteRange::between(start, before.min(start + GRAIN));
            if start < size {
                let mut bytes = Buffer::zeroed(first.len() as usize);
                bytes = self.read_range(first, bytes).await?;
                bytes[(size - start) as usize..].fill(0);
                self.write_range(first, bytes).await?;
            }
            let rest = ByteRange::between(size.next_multiple_of(GRAIN), before);
            if !rest.is_empty() {
                self.zero_range(rest, ZeroFlags::empty()).await?;
            }
            self.progress
                .doubt
                .begin(ByteRange::between(size, before))
                .done();
        }
        self.progress.set_size(size);
        Ok(())
    }

    async fn read_range(&self, range: ByteRange, buffer: Buffer) -> Result<Buffer> {
        self.read_parts(range, buffer).await
    }

    async fn find_extents(&self, range: ByteRange) -> Result<Vec<Extent>> {
        self.list_extents(range)
    }

    fn map_range(&self, range: ByteRange) -> Mapping<'_> {
        self.find_place(range)
    }

    async fn flush(&self) -> Result<()> {
        self.drain().await?;
        self.file.flush().await
    }

    async fn complete(&self) -> Result<()> {
        self.write_end().await
    }
}

impl NewImage {
    /// Hands `data` in, but for zeroes. It is not compressed when this returns.
    async fn hand_in(
        &self,
        range: ByteRange,
        data: Buffer,
        pipeline: &Pipeline<GrainPacker>,
    ) -> Result<Buffer> {
        {
            // Before all else: whoever came first is first.
            let _turn = pipeline.turn().await;
            self.settle(range, pipeline).await?;
            for (piece, bytes) in range.pieces(GRAIN).zip(data.chunks(GRAIN as usize)) {
                if is_zero(bytes) {
                    self.forget(piece)?;
                    continue;
                }
                let (number, index) = place_of(piece.start());
                let table = self.map.table(number);
                pipeline.with_packer(|_| table.set(index, PENDING))?;
                let offset = piece.start();
                pipeline
                    .add(Place { offset, table }, bytes, &self.file)
                    .await?;
            }
        }
        pipeline.write_ready(&self.file).await?;
        Ok(data)
    }

    /// Waits until all of `range` that was handed in has its place.
    async fn settle(&self, range: ByteRange, pipeline: &Pipeline<GrainPacker>) -> Result<()> {
        let mut tables = self.map.tables_in(range).into_iter();
        let is_pending = tables
            .any(|(_, table, entries)| entries.into_iter().any(|at| table.entry(at) == PENDING));
        match is_pending {
            true => pipeline.settle(&self.file).await,
            false => Ok(()),
        }
    }

    /// Waits until all that was handed in is written.
    pub(super) async fn drain(&self) -> Result<()> {
        match &self.kind {
            Kind::Stream(pipeline) if !pipeline.is_idle() => pipeline.drain(&self.file).await,
            _ => Ok(()),
        }
    }

    /// Says that all grains of `range` are zero. None of them is on its way.
    fn forget(&self, range: ByteRange) -> Result<()> {
        let forget = || {
            for (_, table, entries) in self.map.tables_in(range) {
                for at in entries {
                    if table.entry(at) != 0 {
                        table.set(at, 0);
                    }
                }
            }
        };
        match &self.kind {
            // Nobody writes a table meanwhile.
            Kind::Stream(pipeline) => pipeline.with_packer(|_| forget()),
            Kind::Sparse(_) => {
                forget();
                Ok(())
            }
        }
    }

    async fn write_sparse(&self, range: ByteRange, data: Buffer) -> Result<Buffer> {
        let grain = GRAIN as usize;
        let mut full: Vec<ByteRange> = Vec::new();
        for (piece, bytes) in range.pieces(GRAIN).zip(data.chunks(grain)) {
            if is_zero(bytes) {
                self.forget(piece)?;
                continue;
            }
            match full.last_mut() {
                Some(last) if last.end() == piece.start() => {
                    *last = ByteRange::between(last.start(), piece.end());
                }
                _ => full.push(piece),
            }
        }
        let mut runs = Vec::new();
        for part in full {
            runs.extend(self.place(part)?.0);
        }
        if let [run] = runs[..]
            && run.guest == range
        {
            return self.file.write(run.host, data).await;
        }
        for run in runs {
            let at = (run.guest.start() - range.start()) as usize;
            let part = Buffer::from(&data[at..][..run.guest.len() as usize]);
            self.file.write(run.host, part).await?;
        }
        Ok(data)
    }

    /// Gives each grain of `range` a place, unless it has one, and says where they are, and which are new.
    fn place(&self, range: ByteRange) -> Result<(Vec<Run>, Taken)> {
        let Kind::Sparse(next) = &self.kind else {
            return Err(Error::new(ErrorKind::Unsupported));
        };
        let mut runs: Vec<Run> = Vec::new();
        let mut taken = Vec::new();
        let entries: Vec<_> = range
            .pieces(GRAIN)
            .map(|piece| {
                let (number, index) = place_of(piece.start());
                (piece, self.map.table(number), index)
            })
            .collect();
        let missing = entries
            .iter()
            .filter(|(_, table, at)| table.entry(*at) == 0);
        let length = missing.count() as u64 * GRAIN;
        let mut free = next.fetch_add(length, Ordering::AcqRel);
        let end = free + length;
        if end / SECTOR > u64::from(PENDING) {
            let message = "a file of this format has 2 TiB at most";
            return Err(Error::with_message(ErrorKind::NoSpace, message));
        }
        self.file.check_room(end)?;
        for (piece, table, at) in entries {
            let host = match table.entry(at) {
                0 if free < end => match table.claim(at, (free / SECTOR) as u32) {
                    0 => {
                        free += GRAIN;
                        taken.push((table, at));
                        free - GRAIN
                    }
                    other => u64::from(other) * SECTOR,
                },
                // Somebody else has zeroed it meanwhile.
                0 => {
                    let host = next.fetch_add(GRAIN, Ordering::AcqRel);
                    table.set(at, (host / SECTOR) as u32);
                    host
                }
                other => u64::from(other) * SECTOR,
            };
            match runs.last_mut() {
                Some(last) if last.host + last.guest.len() == host => {
                    last.guest = ByteRange::between(last.guest.start(), piece.end());
                }
                _ => runs.push(Run { guest: piece, host }),
            }
        }
        Ok((runs, taken))
    }
}

/// Whether all grains of `range` are new.
fn taken_is_all(taken: &Taken, range: ByteRange) -> bool {
    taken.len() as u64 == range.len().div_ceil(GRAIN)
}
