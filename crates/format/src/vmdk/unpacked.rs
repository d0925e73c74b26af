//! Compressed grains: fetched together where they lie together, unpacked on threads of their own, and a few of them
//! kept for those who read them in small pieces.

use std::sync::Arc;

use blockferry_block::{Buffer, BufferPool, ByteRange, Result};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{
    header::{Packed, SECTOR},
    sparse::longest_packed,
};
use crate::{
    corrupt::corrupt,
    flights::Flights,
    gather::SIDE_BY_SIDE,
    host::HostFile,
    le::{le32, le64},
    pool,
    recent::Recent,
};

/// How many bytes of unpacked grains are kept, but at least a few grains.
const KEPT: u64 = 4 << 20;
const FEWEST: u64 = 4;

/// Grains that are unpacked one after the other by one thread, in bytes of the disk: enough to be worth the way to that
/// thread, few enough for several of them.
pub(crate) const TOGETHER: u64 = 256 << 10;

/// What lies between two grains that are fetched together, in bytes at most: a grain table with its marker.
const GAP: u64 = 4 << 10;

/// The buffers for packed and unpacked grains that are kept for the next, each kind in bytes, but at least one.
const BUFFERS: usize = 8 << 20;

/// Shorter ones get a buffer of their own length, in bytes.
const SHORT: u64 = 16 << 10;

/// How long a grain's marker is, in bytes: its place on the disk, and how long it is.
const MARKER: usize = 12;

/// What unpacking needs, and what it leaves for the next reader. Shared by all handles.
pub(crate) struct Unpacked {
    recent: Recent,
    /// By the extent and the place in its file.
    under_way: Arc<Flights<(usize, u64), Arc<Buffer>>>,
    packed: BufferPool,
    scratch: BufferPool,
}

/// A compressed grain of a request, all of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Whole {
    /// Where on the disk it begins, and how much of it there is.
    pub(crate) guest: ByteRange,
    /// Which extent it is in, and where on the disk that begins.
    pub(crate) part: usize,
    pub(crate) base: u64,
    /// How long a grain of it is, in bytes.
    pub(crate) grain: u64,
    pub(crate) kind: Packed,
    /// Where in the file it begins, and what it ends before, as far as that can be told.
    pub(crate) offset: u64,
    pub(crate) limit: u64,
}

/// Grains that are fetched by one read and unpacked by one thread.
#[derive(Debug)]
pub(crate) struct Batch {
    /// By where they lie in the file; all of one extent.
    pub(crate) grains: Vec<Whole>,
    range: ByteRange,
}

/// The bytes of a batch.
struct Fetched {
    batch: Batch,
    bytes: Buffer,
    /// Grains that turned out to be longer than was fetched of them, by their number.
    longer: Vec<(usize, Buffer)>,
}

impl Batch {
    /// The batches of `grains`, which come in the order of the disk.
    pub(crate) fn cut(mut grains: Vec<Whole>) -> Vec<Self> {
        // Whoever compresses in parallel may have written neighbours in another order.
        grains.sort_by_key(|grain| (grain.part, grain.offset));
        let mut batches: Vec<Self> = Vec::new();
        for mut grain in grains {
            match batches.last_mut() {
                Some(last) if last.takes(&grain) => {
                    if let Some(before) = last.grains.last_mut() {
                        before.limit = before.limit.min(grain.offset.max(before.offset));
                    }
                    last.range = ByteRange::between(last.range.start(), grain.limit);
                    last.grains.push(grain);
                }
                _ => {
                    grain.limit = grain.limit.max(grain.offset);
                    batches.push(Self {
                        range: ByteRange::between(grain.offset, grain.limit),
                        grains: vec![grain],
                    });
                }
            }
        }
        batches
    }

    /// Whether `grain`, which lies behind all that it has, is fetched with it.
    fn takes(&self, grain: &Whole) -> bool {
        let most = (TOGETHER / grain.grain).max(1) as usize;
        let Some(last) = self.grains.last() else {
            return true;
        };
        last.part == grain.part
            && self.grains.len() < most
            && grain.offset > last.offset
            && grain.offset <= last.limit + GAP
    }

    /// How much of the disk it is, in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.grains.iter().map(|grain| grain.guest.len()).sum()
    }
}

impl Unpacked {
    /// For grains of `grain` bytes at most.
    pub(crate) fn new(grain: u64) -> Self {
        let together = TOGETHER.max(grain) as usize;
        Self {
            recent: Recent::new((KEPT / grain.max(1)).clamp(FEWEST, 64) as usize),
            under_way: Arc::default(),
            packed: pool_of(together + longest_packed(grain) as usize),
            scratch: pool_of(together),
        }
    }

    /// A buffer of `length` bytes for a part of a request.
    pub(crate) fn scratch(&self, length: u64) -> Buffer {
        self.scratch.take(length as usize)
    }

    /// Unpacks `batches`, with the file of each, into `buffer`, which begins at `start` of the disk and has room for
    /// all of their grains.
    ///
    /// # Errors
    /// `Corrupt`, naming the grain; what reading failed with.
    pub(crate) async fn unpack(
        &self,
        files: &[HostFile],
        batches: Vec<Batch>,
        start: u64,
        buffer: Buffer,
    ) -> Result<Buffer> {
        let fetched = stream::iter(batches).map(|batch| self.fetch(files, batch));
        let fetched = fetched.buffer_unordered(SIDE_BY_SIDE).try_collect();
        let fetched: Vec<_> = fetched.await?;
        unpack_to(fetched, buffer, move |grain, _| grain.guest.start() - start).await
    }

    /// Unpacks `batch` into a buffer that has its grains one after the other.
    ///
    /// # Errors
    /// As [`unpack`](Self::unpack).
    pub(crate) async fn unpack_in_a_row(&self, files: &[HostFile], batch: Batch) -> Result<Buffer> {
        let buffer = self.scratch(batch.len());
        let fetched = vec![self.fetch(files, batch).await?];
        unpack_to(fetched, buffer, |_, before| before).await
    }

    /// The unpacked `grain`, for those who want a part of it: kept for the next who wants another part.
    ///
    /// # Errors
    /// As [`unpack`](Self::unpack).
    pub(crate) async fn grain(
        self: &Arc<Self>,
        files: &Arc<[HostFile]>,
        grain: Whole,
    ) -> Result<Arc<Buffer>> {
        let key = (grain.part as u64) << 48 ^ grain.offset;
        if let Some(known) = self.recent.find(key) {
            return Ok(known);
        }
        let (unpacked, files) = (Arc::clone(self), Arc::clone(files));
        let unpack = async move {
            let buffer = Buffer::zeroed(grain.guest.len() as usize);
            let batches = Batch::cut(vec![grain]);
            let unpacking = unpacked.unpack(&files, batches, grain.guest.start(), buffer);
            let buffer = Arc::new(unpacking.await?);
            unpacked.recent.keep(key, &buffer);
            Ok(buffer)
        };
        self.under_way
            .join((grain.part, grain.offset), unpack)
            .await
    }

    async fn fetch(&self, files: &[HostFile], batch: Batch) -> Result<Fetched> {
        let first = batch.grains.first();
        let Some((first, file)) = first.and_then(|first| Some((first, files.get(first.part)?)))
        else {
            return Err(corrupt("a grain is nowhere"));
        };
        let behind = |grain: &Whole| {
            let (guest, host) = (grain.guest.start(), grain.offset);
            corrupt(format!(
                "the grain for guest offset {guest:#x} lies at {host:#x}, past the end of the file"
            ))
        };
        let there = batch.range.intersection(ByteRange::between(0, file.end()));
        if there.is_empty() {
            return Err(behind(first));
        }
        let buffer = match there.len() {
            // There may be very many that are very short.
            length @ ..SHORT => Buffer::zeroed(length as usize),
            length => self.packed.take(length as usize),
        };
        let bytes = file.read(there.start(), buffer).await?;
        let mut longer = Vec::new();
        for (number, grain) in batch.grains.iter().enumerate() {
            let Some(length) = grain.length(&bytes, there.start())? else {
                continue;
            };
            let end = grain.offset + length;
            if end > file.end() {
                return Err(behind(grain));
            }
            if end > there.end() {
                let buffer = Buffer::zeroed(length as usize);
                longer.push((number, file.read(grain.offset, buffer).await?));
            }
        }
        Ok(Fetched {
            batch,
            bytes,
            longer,
        })
    }
}

impl Whole {
    /// How long it is with its marker, which lies in `bytes` from `start` of the file on; `None` where there is none.
    fn length(&self, bytes: &[u8], start: u64) -> Result<Option<u64>> {
        if self.kind == Packed::Bare {
            return Ok(None);
        }
        let from = (self.offset - start) as usize;
        let marker = bytes.get(from..).and_then(|rest| rest.get(..MARKER));
        let Some(marker) = marker else {
            return Err(self.wrong("the marker is cut short"));
        };
        let length = u64::from(le32(marker, 8));
        if length == 0 {
            return Err(self.wrong("there is no grain"));
        }
        // The sector of the extent; who makes extents from a whole disk may mean that of the disk.
        let (sector, start) = (le64(marker, 0), self.guest.start());
        if sector != (start - self.base) / SECTOR && sector != start / SECTOR {
            let message = format!("it is another grain, that of sector {sector}");
            return Err(self.wrong(&message));
        }
        let length = length + MARKER as u64;
        if length > longest_packed(self.grain) {
            return Err(self.wrong(&format!("it has {length} bytes, which is too much")));
        }
        Ok(Some(length))
    }

    fn wrong(&self, message: &str) -> blockferry_block::Error {
        let (guest, host) = (self.guest.start(), self.offset);
        corrupt(format!(
            "the grain for guest offset {guest:#x}, at {host:#x}: {message}"
        ))
    }
}

impl Fetched {
    /// The compressed bytes of a grain.
    fn stream(&self, number: usize, grain: &Whole) -> Result<&[u8]> {
        let longer = self.longer.iter().find(|(own, _)| *own == number);
        let bytes = match longer {
            Some((_, bytes)) => &bytes[..],
            None => {
                let from = (grain.offset - self.batch.range.start()) as usize;
                self.bytes.get(from..).unwrap_or_default()
            }
        };
        match grain.kind {
            Packed::Bare => Ok(bytes),
            Packed::Marked => {
                let length = grain.length(bytes, grain.offset)?.unwrap_or(0);
                bytes
                    .get(MARKER..length as usize)
                    .ok_or_else(|| grain.wrong("it is cut short"))
            }
        }
    }
}

/// Buffers of `length` bytes each.
fn pool_of(length: usize) -> BufferPool {
    BufferPool::new(length, (BUFFERS / length).max(1))
}

/// Unpacks what was fetched; each grain goes to where `place` says by itself and how much came before.
async fn unpack_to(
    fetched: Vec<Fetched>,
    mut buffer: Buffer,
    place: impl Fn(&Whole, u64) -> u64 + Send + 'static,
) -> Result<Buffer> {
    let unpacking = pool::unpack(move |decompressor| {
        let mut before = 0;
        for fetched in &fetched {
            for (number, grain) in fetched.batch.grains.iter().enumerate() {
                let stream = fetched.stream(number, grain)?;
                let length = grain.guest.len();
                let at = place(grain, before) as usize;
                let out = &mut buffer[at..][..length as usize];
                before += length;
                let done = decompressor.decompress_grain(stream, out, grain.grain as usize);
                done.map_err(|error| grain.wrong(&error.to_string()))?;
            }
        }
        Ok(buffer)
    });
    unpacking.await?
}
