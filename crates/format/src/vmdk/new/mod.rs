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

use std::sync::{Arc, atomic::AtomicU64};

use blockferry_block::{BlockDevice, ByteSink, DeviceInfo, Error, ErrorKind, Operation, Result};

use self::{map::Map, packer::GrainPacker, sink::SinkDevice};
use super::{CreateOptions, Subformat, header::SECTOR};
use crate::{
    below::Below,
    making::{self, NewDisk, Progress},
    pipeline::{Compress, Pipeline, PipelineOptions},
};

/// The size of a grain in bytes: that of everyone.
const GRAIN: u64 = 64 << 10;

/// Where grains or tables begin, in bytes: behind the header and the descriptor.
const DATA_START: u64 = 64 << 10;

/// How hard grains are compressed unless told otherwise: what follows takes much longer, for little.
const LEVEL: u32 = 4;

/// Begins an image in `below`, which is a file that can grow, or has room enough. What was there before is no image any
/// more afterwards. It is none itself before it is [finished](crate::NewImage::finish).
///
/// It is written in whole grains, each of them once or again: what was written last counts. It can be read, for those
/// who want to see that it holds what they wrote. Where no size was given it takes that of
/// [`resize`](BlockDevice::resize), or grows with what is written. Grains of zeroes are not stored.
///
/// What is compressed lies in the file in the order in which it was written, and is on its way for a while: what goes
/// wrong with it is told to who writes next, flushes or finishes, and to all that follow.
///
/// # Errors
/// `InvalidInput` for options that make no sense, or for this device; `ReadOnly`; what writing failed with.
pub async fn create(
    below: Arc<dyn BlockDevice>,
    options: CreateOptions,
) -> Result<Arc<dyn crate::NewImage>> {
    let begun = NewImage::begin(below, options, false).await;
    let image = begun.map_err(|error| error.during(Operation::Open))?;
    Ok(Arc::new(NewDisk(image)))
}

/// As [`create`], for an image that goes to a stream: streamOptimized, of a size that is known, and written in ascending
/// order. It cannot be read.
///
/// # Errors
/// As [`create`].
pub async fn create_streamed(
    sink: Box<dyn ByteSink>,
    options: CreateOptions,
) -> Result<Arc<dyn crate::NewImage>> {
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
    let image = NewImage::begin(below, options, true).await;
    let image = image.map_err(|error| error.during(Operation::Open))?;
    image.write_beginning().await?;
    Ok(Arc::new(NewDisk(image)))
}

/// An image that is being made.
struct NewImage {
    progress: Progress,
    options: CreateOptions,
    file: Arc<Below>,
    map: Arc<Map>,
    kind: Kind,
    /// Its beginning was written first: it goes to a stream.
    is_streamed: bool,
}

/// What becomes of grains.
enum Kind {
    Stream(Pipeline<GrainPacker>),
    /// Where the next one goes, in bytes.
    Sparse(AtomicU64),
}

impl NewImage {
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
            progress: Progress::new(describe(&below, &options)),
            options,
            file,
            map,
            kind,
            is_streamed,
        })
    }

    /// The virtual size at the moment.
    fn size(&self) -> u64 {
        self.progress.size()
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
    let mut info = making::describe(file, options.size);
    let grain = GRAIN as u32;
    let longest = file.limits.maximum.min(info.limits.maximum);
    info.limits.minimum = grain;
    info.limits.maximum = (longest - longest % grain).max(grain);
    info.limits.preferred = file.limits.preferred.clamp(grain, 1 << 20);
    if options.subformat == Subformat::MonolithicSparse {
        info.capabilities |= file.capabilities & making::AS_IT_IS;
    }
    info
}

/// A size in whole sectors.
fn sectors(size: u64) -> u64 {
    size.div_ceil(SECTOR)
}
