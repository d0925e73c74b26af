//! A new image, written by who knows all of its contents: a converter.
//!
//! ```text
//!   write ─┬─> queue ─> compressors ─> packer ─> below     (streamOptimized)
//!          └─> place ─> below                              (monolithicSparse)
//!                └──> map ─> finish ─> tables, then the header
//! ```

mod finish;
mod map;
mod packer;
mod read;
mod sink;
mod write;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, ByteSink, Capabilities, Context, CopyFlags,
    DeviceInfo, Error, ErrorKind, Extent, FileRange, Mapping, Operation, PipeBuffer, Result,
    WriteFlags, ZeroFlags, check_allocation, range_of, request_range,
};

use self::{map::Map, packer::GrainPacker, sink::SinkDevice};
use super::{CreateOptions, Subformat, header::SECTOR};
use crate::{
    below::Below,
    doubt::Doubt,
    pipeline::{Compress, Pipeline, PipelineOptions},
};

/// The size of a grain in bytes: that of everyone.
const GRAIN: u64 = 64 << 10;

/// Where grains or tables begin, in bytes: behind the header and the descriptor.
const DATA_START: u64 = 64 << 10;

/// How hard grains are compressed unless told otherwise: what follows takes much longer, for little.
const LEVEL: u32 = 4;

/// An image that is being made. It is none before [`finish`](Self::finish) has succeeded.
///
/// It is written in whole grains, each of them once or again: what was written last counts. It can be read, for those
/// who want to see that it holds what they wrote, unless it goes to a stream. Where no size was given it takes that of
/// [`resize`](BlockDevice::resize), or grows with what is written. Grains of zeroes are not stored.
///
/// What is compressed lies in the file in the order in which it was written, and is on its way for a while: what goes
/// wrong with it is told to who writes next, flushes or finishes, and to all that follow.
pub struct NewImage {
    info: DeviceInfo,
    options: CreateOptions,
    file: Arc<Below>,
    map: Arc<Map>,
    kind: Kind,
    size: AtomicU64,
    /// Where writes failed or were given up.
    doubt: Doubt,
    /// Nothing is written any more.
    is_closed: AtomicBool,
    /// Its beginning was written first: it goes to a stream.
    is_streamed: bool,
    /// Held by who finishes it.
    end: tokio::sync::Mutex<End>,
}

/// What becomes of grains.
enum Kind {
    Stream(Pipeline<GrainPacker>),
    /// Where the next one goes, in bytes.
    Sparse(AtomicU64),
}

/// Whether the image is finished.
#[derive(Default)]
enum End {
    #[default]
    Open,
    Failed(Error),
    Finished,
}

impl NewImage {
    /// Begins an image in `below`, which is a file that can grow, or has room enough. What was there before is no
    /// image any more afterwards.
    ///
    /// # Errors
    /// `InvalidInput` for options that make no sense, or for this device; `ReadOnly`; what writing failed with.
    pub async fn create(below: Arc<dyn BlockDevice>, options: CreateOptions) -> Result<Self> {
        let begun = Self::begin(below, options, false).await;
        begun.map_err(|error| error.during(Operation::Open))
    }

    /// Begins an image that goes to a stream: streamOptimized, of a size that is known, and written in ascending
    /// order.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub async fn create_streamed(sink: Box<dyn ByteSink>, options: CreateOptions) -> Result<Self> {
        let refuse = |message: &str| {
            let error = Error::with_message(ErrorKind::InvalidInput, message);
            Err(error.during(Operation::Open))
        };
        if options.subformat != Subformat::StreamOptimized {
            return refuse(
                "only streamOptimized can be streamed: the tables of others come first; write it to a file",
            );
        }
        if options.size.is_none() {
            return refuse(
                "a stream cannot be streamed on as an image, whose size comes first: write it to a file",
            );
        }
        let below = Arc::new(SinkDevice::new(sink));
        let image = Self::begin(below, options, true).await;
        let image = image.map_err(|error| error.during(Operation::Open))?;
        image.write_beginning().await?;
        Ok(image)
    }

    async fn begin(
        below: Arc<dyn BlockDevice>,
        options: CreateOptions,
        is_streamed: bool,
    ) -> Result<Self> {
        check(&options)?;
        let size = options.size.unwrap_or(0);
        check_size(size)?;
        let mut file = Below::new(Arc::clone(&below), GRAIN, false)?;
        file.destroy_header().await?;
        let file = Arc::new(file);
        let map: Arc<Map> = Arc::default();
        let kind = match options.subformat {
            Subformat::StreamOptimized => {
                let level = options.compression_level.unwrap_or(LEVEL);
                let pipeline = PipelineOptions {
                    block: GRAIN,
                    room: compressor(level).zlib_compress_bound(GRAIN as usize) as u64,
                    threads: options.threads,
                    in_order: true,
                    compress: Box::new(move || compress(level)),
                };
                let packer = GrainPacker::new(Arc::clone(&map), file.block());
                Kind::Stream(Pipeline::new(pipeline, packer))
            }
            Subformat::MonolithicSparse => {
                let tables = match options.size {
                    Some(size) => finish::Tables::at(DATA_START, size).end(),
                    None => DATA_START,
                };
                Kind::Sparse(AtomicU64::new(tables))
            }
        };
        Ok(Self {
            info: describe(&below, &options),
            options,
            file,
            map,
            kind,
            size: AtomicU64::new(size),
            doubt: Doubt::default(),
            is_closed: AtomicBool::new(false),
            is_streamed,
            end: tokio::sync::Mutex::default(),
        })
    }

    /// Completes the image: writes its tables, makes everything durable, and then its header, durably. What is below
    /// is as long as the image, if it can have another length, and holds a valid image only now. Nothing can be
    /// written afterwards, also when it fails, and finishing again only gives the same answer.
    ///
    /// # Errors
    /// What writing failed with, also earlier: `Io` where a write failed or was given up and was not made again.
    pub async fn finish(&self) -> Result<()> {
        let mut end = self.end.lock().await;
        match &*end {
            End::Open => {}
            End::Failed(error) => return Err(error.clone()),
            End::Finished => return Ok(()),
        }
        self.is_closed.store(true, Ordering::Release);
        let message = "finishing the image was given up before";
        *end = End::Failed(Error::with_message(ErrorKind::Cancelled, message));
        let completed = self.complete().await;
        *end = match &completed {
            Ok(()) => End::Finished,
            Err(error) => End::Failed(error.clone()),
        };
        completed
    }

    /// The virtual size at the moment.
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Checks a request for a change, and makes the image longer where it may be.
    fn check_change(&self, operation: Operation, range: ByteRange) -> Result<()> {
        let refuse = |kind, message: &str| {
            let error = Error::with_message(kind, message);
            Err(error.during(operation).at(range.start(), range.len()))
        };
        if self.is_closed.load(Ordering::Acquire) {
            return refuse(ErrorKind::InvalidInput, "the image is finished");
        }
        if range.is_empty() {
            return Ok(());
        }
        let size = self.size();
        if range.end() > size && !self.info.can(Capabilities::RESIZE) {
            return refuse(ErrorKind::OutOfBounds, "the image ends before");
        }
        let ends_well = range.end().is_multiple_of(GRAIN) || range.end() >= size;
        if !range.start().is_multiple_of(GRAIN) || !ends_well {
            let message = format!("a new image is written in whole grains of {GRAIN} bytes");
            return refuse(ErrorKind::InvalidInput, &message);
        }
        if range.end() > size {
            check_size(range.end())
                .map_err(|error| error.during(operation).at(range.start(), range.len()))?;
            self.size.fetch_max(range.end(), Ordering::AcqRel);
        }
        Ok(())
    }
}

/// Refuses options that make no sense.
fn check(options: &CreateOptions) -> Result<()> {
    let refuse = |message: String| Err(Error::with_message(ErrorKind::InvalidInput, message));
    if let Some(level) = options.compression_level {
        if options.subformat != Subformat::StreamOptimized {
            return refuse("only streamOptimized is compressed".to_owned());
        }
        if !(1..=9).contains(&level) {
            return refuse(format!("levels of compression are 1 to 9, not {level}"));
        }
    }
    let texts = [&options.adapter_type, &options.hardware_version];
    let is_plain = |c: char| c.is_ascii_alphanumeric();
    for text in texts.into_iter().flatten() {
        if text.is_empty() || text.len() > 32 || !text.chars().all(is_plain) {
            return refuse("adapters and versions are letters and digits".to_owned());
        }
    }
    Ok(())
}

/// Fails where no image can have `size` bytes.
fn check_size(size: u64) -> Result<()> {
    /// Half a PiB: all tables of a larger one take more than those who read it may hold.
    const LARGEST: u64 = 1 << 49;
    if size <= LARGEST {
        return Ok(());
    }
    let message = format!("an image of this format has {LARGEST} bytes at most, not {size}");
    Err(Error::with_message(ErrorKind::InvalidInput, message))
}

fn compressor(level: u32) -> libdeflater::Compressor {
    let level = libdeflater::CompressionLvl::new(level.clamp(1, 12) as i32);
    libdeflater::Compressor::new(level.unwrap_or_default())
}

fn compress(level: u32) -> Compress {
    let mut compressor = compressor(level);
    Box::new(move |grain, out| compressor.zlib_compress(grain, out).ok())
}

/// What the new image says of itself.
fn describe(below: &Arc<dyn BlockDevice>, options: &CreateOptions) -> DeviceInfo {
    let file = below.info();
    let mut info = DeviceInfo::new(Arc::clone(&file.name), options.size.unwrap_or(0));
    let grain = GRAIN as u32;
    let longest = file.limits.maximum.min(info.limits.maximum);
    info.limits.minimum = grain;
    info.limits.maximum = (longest - longest % grain).max(grain);
    info.limits.preferred = file.limits.preferred.clamp(grain, 1 << 20);
    info.rotational = file.rotational;
    info.contexts = vec![Context::Allocation];
    info.capabilities =
        Capabilities::WRITE | Capabilities::ZERO | Capabilities::FLUSH | Capabilities::BORN_ZERO;
    if options.size.is_none() {
        info.capabilities |= Capabilities::RESIZE;
    }
    if options.subformat == Subformat::MonolithicSparse {
        info.capabilities |=
            file.capabilities & (Capabilities::COPY_FROM | Capabilities::SPLICE_WRITE);
    }
    info
}

impl crate::NewImage for NewImage {
    fn finish(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.finish())
    }
}

impl BlockDevice for NewImage {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Read, offset, &buffer)?;
            let read = self.read_range(range, buffer).await;
            read.map_err(|error| failed(error, Operation::Read, range))
        })
    }

    fn write(&self, offset: u64, data: Buffer, _: WriteFlags) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Write, offset, &data)?;
            self.check_change(Operation::Write, range)?;
            let written = self.write_range(range, data).await;
            written.map_err(|error| failed(error, Operation::Write, range))
        })
    }

    fn write_piped(
        &self,
        offset: u64,
        data: PipeBuffer,
        _: WriteFlags,
    ) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let range = range_of(Operation::Write, offset, data.len() as u64)?;
            self.check_change(Operation::Write, range)?;
            let written = self.write_pipe(range, data).await;
            written.map_err(|error| failed(error, Operation::Write, range))
        })
    }

    fn copy_from(
        &self,
        offset: u64,
        source: FileRange,
        flags: CopyFlags,
    ) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let range = range_of(Operation::Copy, offset, source.range().len())?;
            if !self.info.can(Capabilities::COPY_FROM) {
                let error = Error::new(ErrorKind::Unsupported);
                return Err(failed(error, Operation::Copy, range));
            }
            self.check_change(Operation::Copy, range)?;
            let copied = self.copy_range(range, &source, flags).await;
            copied.map_err(|error| failed(error, Operation::Copy, range))
        })
    }

    fn zero(&self, range: ByteRange, flags: ZeroFlags) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.check_change(Operation::Zero, range)?;
            let zeroed = self.zero_range(range, flags).await;
            zeroed.map_err(|error| failed(error, Operation::Zero, range))
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let flushed = async {
                self.drain().await?;
                self.file.flush().await
            };
            flushed
                .await
                .map_err(|error| error.during(Operation::Flush))
        })
    }

    fn extents<'a>(
        &'a self,
        range: ByteRange,
        context: &'a Context,
    ) -> BoxFuture<'a, Result<Vec<Extent>>> {
        Box::pin(async move {
            check_allocation(range, context)?;
            let extents = self.find_extents(range);
            extents.map_err(|error| failed(error, Operation::Extents, range))
        })
    }

    fn mapping(&self, range: ByteRange) -> Mapping<'_> {
        self.map_range(range)
    }

    fn resize(&self, size: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let done = self.set_size(size).await;
            done.map_err(|error| error.during(Operation::Resize))
        })
    }
}

/// An error of what is below, told with the range of the request.
fn failed(error: Error, operation: Operation, range: ByteRange) -> Error {
    error.during(operation).moved_to(range.start(), range.len())
}

/// A size in whole sectors.
fn sectors(size: u64) -> u64 {
    size.div_ceil(SECTOR)
}

impl fmt::Debug for NewImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NewImage({}, {} bytes)", self.info.name, self.size())
    }
}
