//! A new image that is a table of blocks, written by who knows all of its contents: a converter.
//!
//! Data comes in any order, from any number of tasks at a time. A block gets the next place in the file when it is
//! first written; or all of them have their places from the beginning, in a row. What says where they are is kept in
//! memory and written at the end, the header last of all: a file that was not finished is no image.
//!
//! What a format adds is its [`Ending`].

mod places;
#[cfg(test)]
mod tests;
mod write;

use std::sync::{Arc, Mutex, PoisonError, atomic::AtomicU64};

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, DeviceInfo, Operation, RangeSet, Result, ZeroFlags,
};
use futures_util::{StreamExt, TryStreamExt, stream};

use self::places::Places;
use crate::{
    below::Below,
    making::{self, NewDisk, Progress},
};

/// How many bitmaps are written at a time.
const SIDE_BY_SIDE: usize = 16;

/// What of an image is no data.
pub(crate) trait Ending: Send + Sync {
    /// Checks that there can be an image of a disk of `size` bytes.
    ///
    /// # Errors
    /// `InvalidInput`.
    fn check(&self, size: u64) -> Result<()>;

    /// The parts of the image of a disk of `size` bytes whose blocks have these places, by their numbers: `None` for
    /// those that have none.
    ///
    /// # Errors
    /// `InvalidInput`.
    fn complete(&self, size: u64, places: &[Option<u32>]) -> Result<Complete>;
}

/// What completes an image.
pub(crate) struct Complete {
    /// What is written first, and where: multiples of a sector.
    pub(crate) tables: Vec<(u64, Vec<u8>)>,
    /// What makes it an image.
    pub(crate) header: (u64, Vec<u8>),
    /// The size of the disk, as the image says it: what was asked for, or more.
    pub(crate) disk: u64,
    /// The length of the file.
    pub(crate) end: u64,
}

/// Where data goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// Where the first place begins in the file.
    pub(crate) first: u64,
    /// The size of a block; `None`: all of the disk lies in a row.
    pub(crate) block: Option<u64>,
    /// The length of the bitmap before each block, which is all ones.
    pub(crate) bitmap: u64,
    /// Whether what stands at the end of a file makes it an image.
    pub(crate) has_footer: bool,
}

/// An image that is being made.
pub(crate) struct Making {
    progress: Progress,
    file: Below,
    layout: Layout,
    ending: Box<dyn Ending>,
    places: Mutex<Places>,
    /// What was written, in a file that is not zero where nothing was.
    written: Option<Mutex<RangeSet>>,
    /// The end of what was written of the file.
    end: AtomicU64,
    /// Whether the file takes bytes over from others.
    takes_over: tokio::sync::OnceCell<bool>,
}

/// The unit that everything in such images is a multiple of, in bytes.
const SECTOR: u64 = 512;

impl Making {
    /// Begins an image in `below` for a disk of `size` bytes; `None`: it grows. There is no valid image in it before
    /// it is finished.
    ///
    /// # Errors
    /// `InvalidInput`, `NoSpace`, what writing failed with.
    pub(crate) async fn begin(
        below: Arc<dyn BlockDevice>,
        size: Option<u64>,
        layout: Layout,
        ending: Box<dyn Ending>,
    ) -> Result<NewDisk<Self>> {
        let begun = Self::begin_inside(below, size, layout, ending).await;
        begun
            .map(NewDisk)
            .map_err(|error| error.during(Operation::Open))
    }

    async fn begin_inside(
        below: Arc<dyn BlockDevice>,
        size: Option<u64>,
        layout: Layout,
        ending: Box<dyn Ending>,
    ) -> Result<Self> {
        ending.check(size.unwrap_or(0))?;
        let info = describe(below.info(), size, layout);
        let mut file = Below::new(below, SECTOR, false)?;
        if layout.block.is_none()
            && let Some(size) = size
        {
            file.check_room(ending.complete(size, &[])?.end)?;
        }
        file.destroy_header().await?;
        if layout.has_footer && !file.is_fresh() {
            let end = file.device().info().size;
            let last = ByteRange::between(end.saturating_sub(SECTOR), end);
            file.write_zeroes(last).await?;
            file.flush().await?;
        }
        let written = (!file.is_fresh()).then(Mutex::default);
        Ok(Self {
            progress: Progress::new(info),
            file,
            layout,
            ending,
            places: Mutex::default(),
            written,
            end: AtomicU64::new(0),
            takes_over: tokio::sync::OnceCell::new(),
        })
    }

    fn size(&self) -> u64 {
        self.progress.size()
    }

    /// Does something with the places of blocks. Nothing is waited for meanwhile.
    fn with_places<T>(&self, look: impl FnOnce(&mut Places) -> T) -> T {
        look(&mut self.places.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Does something with what was written, where that has to be known.
    fn with_written<T>(&self, look: impl FnOnce(&mut RangeSet) -> T) -> Option<T> {
        let written = self.written.as_ref()?;
        Some(look(
            &mut written.lock().unwrap_or_else(PoisonError::into_inner),
        ))
    }

    /// Writes everything but the header, makes it durable, then the header, durably.
    async fn write_end(&self) -> Result<()> {
        let size = self.size();
        self.progress.doubt.check(size)?;
        let blocks = self.layout.block.map_or(0, |block| size.div_ceil(block));
        let places = self.with_places(|places| places.to_list(blocks));
        let complete = self.ending.complete(size, &places)?;
        self.file.check_room(complete.end)?;
        self.zero_rest(complete.disk, &places).await?;
        if self.layout.bitmap > 0 {
            let bitmaps = places.iter().flatten().copied().map(|place| {
                let mut bitmap = Buffer::zeroed(self.layout.bitmap as usize);
                bitmap.fill(0xff);
                let at = self.start_of(place) - self.layout.bitmap;
                self.file.write_blocks(at, bitmap)
            });
            let bitmaps = stream::iter(bitmaps).buffer_unordered(SIDE_BY_SIDE);
            bitmaps.try_for_each(|_| async { Ok(()) }).await?;
        }
        for (at, bytes) in complete.tables {
            self.write_part(at, &bytes).await?;
        }
        self.file.set_size(complete.end).await?;
        self.file.flush().await?;
        let (at, bytes) = complete.header;
        self.write_part(at, &bytes).await?;
        self.file.flush().await
    }

    async fn write_part(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let mut buffer = Buffer::zeroed(bytes.len().next_multiple_of(SECTOR as usize));
        buffer[..bytes.len()].copy_from_slice(bytes);
        self.file.write_blocks(at, buffer).await.map(drop)
    }

    /// Zeroes what was never written of all places, in a file that is not zero anyway.
    async fn zero_rest(&self, disk: u64, places: &[Option<u32>]) -> Result<()> {
        let whole = match self.layout.block {
            None => vec![(ByteRange::between(0, disk), self.layout.first)],
            Some(block) => {
                let used = places.iter().zip(0_u64..);
                let used = used.filter_map(|(place, index)| {
                    let range = ByteRange::between(index * block, (index + 1) * block);
                    place.map(|place| (range, self.start_of(place)))
                });
                used.collect()
            }
        };
        for (range, host) in whole {
            let Some(missing) = self.with_written(|written| missing(written, range)) else {
                return Ok(());
            };
            for part in missing {
                // What was written ends with a block of the file, or with the disk.
                let unit = self.file.block();
                let start = (host + (part.start() - range.start())).next_multiple_of(unit);
                let end = host + (part.end() - range.start());
                let place = ByteRange::between(start, end.next_multiple_of(unit));
                self.file.zero(place, ZeroFlags::empty()).await?;
            }
        }
        Ok(())
    }

    /// Where the data of the block in that place begins.
    fn start_of(&self, place: u32) -> u64 {
        let stride = self.layout.block.unwrap_or(0) + self.layout.bitmap;
        self.layout.first + u64::from(place) * stride + self.layout.bitmap
    }
}

/// What of `range` is not in `written`.
fn missing(written: &RangeSet, range: ByteRange) -> Vec<ByteRange> {
    let mut list = Vec::new();
    let mut at = range.start();
    for part in written.present_in(range) {
        list.push(ByteRange::between(at, part.start()));
        at = part.end();
    }
    list.push(ByteRange::between(at, range.end()));
    list.retain(|part| !part.is_empty());
    list
}

/// What the new image says of itself.
fn describe(file: &DeviceInfo, size: Option<u64>, layout: Layout) -> DeviceInfo {
    let mut info = making::describe(file, size);
    info.limits = file.limits;
    info.limits.minimum = file.limits.minimum.max(1);
    if let Some(block) = layout.block {
        // So that most writes lie in one block.
        let block = u32::try_from(block).unwrap_or(u32::MAX);
        info.limits.maximum = file.limits.maximum.min(block).max(info.limits.minimum);
    }
    info.capabilities |= file.capabilities & making::AS_IT_IS;
    info
}
