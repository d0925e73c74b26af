//! Data goes to its places, and is read again by those who want to see that it is there.

use std::sync::atomic::Ordering;

use blockferry_block::{
    Buffer, ByteRange, CopyFlags, Error, ErrorKind, Extent, FileRange, PipeBuffer, Result, Status,
    ZeroFlags, push_merged,
};

use super::Making;
use crate::making::{Make, Progress};

/// A part of the disk, and where it lies in the file, if it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) range: ByteRange,
    pub(super) host: Option<u64>,
}

impl Make for Making {
    fn progress(&self) -> &Progress {
        &self.progress
    }

    fn unit(&self) -> Option<(u64, &'static str)> {
        None
    }

    fn check_size(&self, size: u64) -> Result<()> {
        self.ending.check(size)
    }

    async fn write_range(&self, range: ByteRange, data: Buffer) -> Result<Buffer> {
        let change = self.progress.doubt.begin(range);
        let parts = self.place(range);
        let data = match parts[..] {
            [(_, host)] => self.write_place(host, data).await?,
            _ => {
                for (part, host) in &parts {
                    let at = (part.start() - range.start()) as usize;
                    let bytes = Buffer::from(&data[at..at + part.len() as usize]);
                    self.write_place(*host, bytes).await?;
                }
                data
            }
        };
        self.done(range, &parts);
        change.done();
        Ok(data)
    }

    async fn write_pipe(&self, range: ByteRange, data: PipeBuffer) -> Result<()> {
        let parts = self.place(range);
        let &[(_, host)] = &parts[..] else {
            return self.write_range(range, data.into_memory()?).await.map(drop);
        };
        if !range.len().is_multiple_of(self.file.block()) {
            return self.write_range(range, data.into_memory()?).await.map(drop);
        }
        let change = self.progress.doubt.begin(range);
        self.file.write_piped(host, data).await?;
        self.done(range, &parts);
        change.done();
        Ok(())
    }

    /// The first attempt shows whether there is any use in others, which wait for it and have no places yet.
    async fn copy_range(
        &self,
        range: ByteRange,
        source: &FileRange,
        flags: CopyFlags,
    ) -> Result<()> {
        if !range.len().is_multiple_of(self.file.block()) {
            return Err(Error::new(ErrorKind::Unsupported));
        }
        let mut own = None;
        let first = async {
            let copied = self.copy_to_places(range, source, flags).await;
            let takes = !matches!(&copied, Err(error) if error.kind() == ErrorKind::Unsupported);
            own = Some(copied);
            Ok::<_, Error>(takes)
        };
        let takes_over = *self.takes_over.get_or_try_init(|| first).await?;
        match own {
            Some(copied) => copied,
            None if takes_over => self.copy_to_places(range, source, flags).await,
            None => Err(Error::new(ErrorKind::Unsupported)),
        }
    }

    async fn zero_range(&self, range: ByteRange, flags: ZeroFlags) -> Result<()> {
        let change = self.progress.doubt.begin(range);
        let keep = flags & ZeroFlags::NO_HOLE;
        let parts = match keep.is_empty() {
            true => {
                let parts = self.parts(range).into_iter();
                let parts = parts.filter_map(|part| Some((part.range, part.host?)));
                parts.collect()
            }
            false => self.place(range),
        };
        let end = self.end.load(Ordering::Acquire);
        for (part, host) in &parts {
            // Where nothing was written of a file that was empty there is nothing to be done.
            if keep.is_empty() && *host >= end && self.written.is_none() {
                continue;
            }
            let place = ByteRange::between(*host, host + part.len());
            self.zero_place(place, keep).await?;
            self.done(*part, &[(*part, *host)]);
        }
        change.done();
        Ok(())
    }

    async fn read_range(&self, range: ByteRange, buffer: Buffer) -> Result<Buffer> {
        if range.end() > self.size() {
            return Err(Error::new(ErrorKind::OutOfBounds));
        }
        let mut buffer = buffer;
        buffer.fill(0);
        let end = self.end.load(Ordering::Acquire);
        for part in self.parts(range) {
            let Some(host) = part.host else {
                continue;
            };
            // What was never written need not be there.
            let there = match self.with_written(|written| written.present_in(part.range)) {
                Some(there) => there,
                None => vec![part.range.split_at(end.saturating_sub(host)).0],
            };
            for own in there.into_iter().filter(|own| !own.is_empty()) {
                let length = own.len() as usize;
                let at = host + (own.start() - part.range.start());
                let read = self.file.read(at, Buffer::zeroed(length)).await?;
                let to = (own.start() - range.start()) as usize;
                buffer[to..to + length].copy_from_slice(&read);
            }
        }
        Ok(buffer)
    }

    async fn set_size(&self, size: u64) -> Result<()> {
        self.progress.check_resize()?;
        self.ending.check(size)?;
        let before = self.size();
        if size < before {
            // It may become longer again.
            let cut = ByteRange::between(size, before);
            self.zero_range(cut, ZeroFlags::empty()).await?;
        }
        self.progress.set_size(size);
        Ok(())
    }

    async fn find_extents(&self, range: ByteRange) -> Result<Vec<Extent>> {
        if range.end() > self.size() {
            return Err(Error::new(ErrorKind::OutOfBounds));
        }
        let mut list = Vec::new();
        for part in self.parts(range) {
            let status = match part.host {
                Some(_) => Status::DATA,
                None => Status::HOLE_ZERO,
            };
            let range = part.range;
            push_merged(&mut list, Extent { range, status });
        }
        Ok(list)
    }

    async fn flush(&self) -> Result<()> {
        self.file.flush().await
    }

    async fn complete(&self) -> Result<()> {
        self.write_end().await
    }
}

impl Making {
    /// Writes what ends with a block of the file, or with the disk: nothing is behind that.
    async fn write_place(&self, host: u64, data: Buffer) -> Result<Buffer> {
        let length = data.len();
        let unit = self.file.block() as usize;
        if length.is_multiple_of(unit) {
            return self.file.write_blocks(host, data).await;
        }
        let mut padded = Buffer::zeroed(length.next_multiple_of(unit));
        padded[..length].copy_from_slice(&data);
        self.file.write_blocks(host, padded).await?;
        Ok(data)
    }

    async fn copy_to_places(
        &self,
        range: ByteRange,
        source: &FileRange,
        flags: CopyFlags,
    ) -> Result<()> {
        let change = self.progress.doubt.begin(range);
        let had = self.parts(range);
        let parts = self.place(range);
        match self.copy_parts(range, &parts, source, flags).await {
            Ok(()) => {
                self.done(range, &parts);
                change.done();
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                // It is written instead, but for zeroes: nothing may be left of it.
                for (part, host) in &parts {
                    let place = ByteRange::between(*host, host + part.len());
                    self.zero_place(place, ZeroFlags::empty()).await?;
                }
                self.done(range, &parts);
                self.take_back(&had);
                change.nothing();
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Takes back the places of blocks that had none before.
    fn take_back(&self, had: &[Part]) {
        let Some(block) = self.layout.block else {
            return;
        };
        for part in had.iter().rev().filter(|part| part.host.is_none()) {
            let blocks = part.range.start() / block..part.range.end().div_ceil(block);
            self.with_places(|places| blocks.rev().for_each(|index| places.take_back(index)));
        }
    }

    async fn copy_parts(
        &self,
        range: ByteRange,
        parts: &[(ByteRange, u64)],
        source: &FileRange,
        flags: CopyFlags,
    ) -> Result<()> {
        for (part, host) in parts {
            let from = source.range().start() + (part.start() - range.start());
            let from = source.with_range(ByteRange::between(from, from + part.len()));
            self.file.copy_from(*host, from, flags).await?;
        }
        Ok(())
    }

    /// Zeroes a range of the file.
    async fn zero_place(&self, place: ByteRange, flags: ZeroFlags) -> Result<()> {
        let unit = self.file.block();
        if place.end().is_multiple_of(unit) {
            return self.file.zero(place, flags).await;
        }
        // Only the disk ends within a block of the file, and nothing is behind it.
        let end = place.end().next_multiple_of(unit);
        self.file
            .zero(ByteRange::between(place.start(), end), flags)
            .await
    }

    /// Where the parts of `range` lie, which are as long as can be.
    pub(super) fn parts(&self, range: ByteRange) -> Vec<Part> {
        let Some(block) = self.layout.block else {
            let host = Some(self.layout.first + range.start());
            return vec![Part { range, host }];
        };
        let mut list: Vec<Part> = Vec::new();
        self.with_places(|places| {
            for piece in range.pieces(block) {
                let place = places.find(piece.start() / block);
                let host = place.map(|place| self.start_of(place) + piece.start() % block);
                push(&mut list, piece, host);
            }
        });
        list
    }

    /// As [`parts`](Self::parts), after all blocks of `range` have got their places.
    fn place(&self, range: ByteRange) -> Vec<(ByteRange, u64)> {
        if let Some(block) = self.layout.block {
            self.with_places(|places| {
                for piece in range.pieces(block) {
                    places.take(piece.start() / block);
                }
            });
        }
        let parts = self.parts(range).into_iter();
        parts
            .filter_map(|part| Some((part.range, part.host?)))
            .collect()
    }

    /// Notes what was written.
    fn done(&self, range: ByteRange, parts: &[(ByteRange, u64)]) {
        self.with_written(|written| written.insert(range));
        for (part, host) in parts {
            self.end.fetch_max(host + part.len(), Ordering::AcqRel);
        }
    }
}

/// Adds a piece, or makes the last part longer where it goes on with that.
fn push(list: &mut Vec<Part>, range: ByteRange, host: Option<u64>) {
    if let Some(last) = list.last_mut() {
        let goes_on = match (last.host, host) {
            (Some(start), Some(next)) => start + last.range.len() == next,
            (None, None) => true,
            _ => false,
        };
        if goes_on {
            last.range = ByteRange::between(last.range.start(), range.end());
            return;
        }
    }
    list.push(Part { range, host });
}
