//! What was written is read again.

use blockferry_block::{
    Buffer, ByteRange, Error, ErrorKind, Extent, Mapping, Result, Status, push_merged,
};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{GRAIN, Kind, NewImage, map::place_of};
use crate::{corrupt::corrupt, le::le32, pool::unpack, vmdk::header::SECTOR};

/// How many grains are read at a time.
const SIDE_BY_SIDE: usize = 8;
/// How much of the disk is looked at for one answer, in bytes.
const LOOKED_AT: u64 = 1 << 40;

impl NewImage {
    pub(super) async fn read_parts(&self, range: ByteRange, mut buffer: Buffer) -> Result<Buffer> {
        if range.end() > self.size() {
            return Err(Error::new(ErrorKind::OutOfBounds));
        }
        if self.is_streamed {
            let message = "what was written to a stream cannot be read again";
            return Err(Error::with_message(ErrorKind::Unsupported, message));
        }
        self.drain().await?;
        let pieces: Vec<_> = range.pieces(GRAIN).collect();
        let read = stream::iter(pieces).map(async |piece| {
            let read = self.read_piece(piece).await;
            read.map(|bytes| (piece, bytes))
        });
        let mut read = std::pin::pin!(read.buffer_unordered(SIDE_BY_SIDE));
        while let Some((piece, bytes)) = read.try_next().await? {
            let to = (piece.start() - range.start()) as usize;
            let own = &mut buffer[to..][..piece.len() as usize];
            match bytes {
                Some(bytes) => own.copy_from_slice(&bytes),
                None => own.fill(0),
            }
        }
        Ok(buffer)
    }

    /// The bytes of `piece`, which lies in one grain; `None`: they are zero.
    async fn read_piece(&self, piece: ByteRange) -> Result<Option<Buffer>> {
        let (number, index) = place_of(piece.start());
        let entry = self
            .map
            .existing(number)
            .map_or(0, |table| table.entry(index));
        if entry == 0 {
            return Ok(None);
        }
        let (host, within) = (u64::from(entry) * SECTOR, piece.start() % GRAIN);
        let buffer = Buffer::zeroed(piece.len() as usize);
        if let Kind::Sparse(_) = self.kind {
            return self.file.read(host + within, buffer).await.map(Some);
        }
        let marker = self
            .file
            .read(host, Buffer::zeroed(SECTOR as usize))
            .await?;
        let length = le32(&marker, 8) as usize;
        if length as u64 > 2 * GRAIN {
            return Err(corrupt("what was written is there no more"));
        }
        let packed = self.file.read(host + 12, Buffer::zeroed(length)).await?;
        let unpacked = unpack(move |decompressor| {
            let mut grain = Buffer::zeroed(GRAIN as usize);
            decompressor.decompress_grain(&packed, &mut grain, GRAIN as usize)?;
            let mut buffer = buffer;
            let length = buffer.len();
            buffer.copy_from_slice(&grain[within as usize..][..length]);
            Ok(Some(buffer))
        });
        unpacked.await?
    }

    pub(super) fn list_extents(&self, range: ByteRange) -> Result<Vec<Extent>> {
        if range.end() > self.size() {
            return Err(Error::new(ErrorKind::OutOfBounds));
        }
        let range = range.split_at(LOOKED_AT).0;
        let mut extents = Vec::new();
        let mut at = range.start();
        for (number, table, entries) in self.map.tables_in(range) {
            let start = number * 512 * GRAIN;
            for index in entries {
                let grain = start + index as u64 * GRAIN;
                let grain = ByteRange::between(grain, grain + GRAIN).intersection(range);
                let before = ByteRange::between(at, grain.start());
                push(&mut extents, before, Status::HOLE_ZERO);
                let status = match table.entry(index) {
                    0 => Status::HOLE_ZERO,
                    _ => Status::DATA,
                };
                push(&mut extents, grain, status);
                at = grain.end();
            }
        }
        push(
            &mut extents,
            ByteRange::between(at, range.end()),
            Status::HOLE_ZERO,
        );
        Ok(extents)
    }

    pub(super) fn find_place(&self, range: ByteRange) -> Mapping<'_> {
        let range = range.intersection(ByteRange::between(0, self.size()));
        let Some(first) = range.pieces(GRAIN).next() else {
            return Mapping::Opaque;
        };
        let entry = |offset| {
            let (number, index) = place_of(offset);
            self.map
                .existing(number)
                .map_or(0, |table| table.entry(index))
        };
        match (entry(first.start()), &self.kind) {
            (0, _) => Mapping::Zero {
                length: first.len(),
            },
            (_, Kind::Stream(_)) => Mapping::Opaque,
            (sector, Kind::Sparse(_)) => {
                let goes_on = |(piece, number): &(ByteRange, u64)| {
                    u64::from(entry(piece.start())) == u64::from(sector) + number * (GRAIN / SECTOR)
                };
                let pieces = range.pieces(GRAIN).zip(0..1024);
                let length = pieces
                    .take_while(goes_on)
                    .map(|(piece, _)| piece.len())
                    .sum::<u64>();
                let host = u64::from(sector) * SECTOR + first.start() % GRAIN;
                self.file
                    .device()
                    .mapping(ByteRange::between(host, host + length))
            }
        }
    }
}

fn push(extents: &mut Vec<Extent>, range: ByteRange, status: Status) {
    push_merged(extents, Extent { range, status });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use blockferry_block::MemoryDevice;

    use super::*;
    use crate::vmdk::{CreateOptions, Subformat};

    #[tokio::test]
    async fn the_last_grains_of_the_largest_file_are_mapped() {
        let mut options = CreateOptions::default();
        (options.subformat, options.size) = (Subformat::MonolithicSparse, Some(4 * GRAIN));
        let below = Arc::new(MemoryDevice::new(0).growable());
        let image = NewImage::begin(below, options, false).await.expect("begun");
        let last = u32::MAX - (2 * GRAIN / SECTOR) as u32 + 1;
        let table = image.map.table(0);
        table.set(0, last);
        table.set(1, last + (GRAIN / SECTOR) as u32);
        table.set(2, 128);
        let mapping = image.find_place(ByteRange::between(0, 4 * GRAIN));
        assert!(matches!(mapping, Mapping::Opaque), "memory has no place");
        let rest = image.find_place(ByteRange::between(3 * GRAIN, 4 * GRAIN));
        assert!(matches!(rest, Mapping::Zero { length: GRAIN }));
    }
}
