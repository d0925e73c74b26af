//! A new image, written by who knows all of its contents: a converter.
//!
//! Clusters come in any order, from any number of tasks at a time. Each takes the next place in the file, without a
//! lock; tables are kept aside and written at the end, then what counts references, and the header last of all. So
//! a file that was not finished is no image.
//!
//! ```text
//!   write ─> classify ─┬─> place ─> data below                         (plain)
//!                      └─> queue ─> compressors ─> packer ─> below     (compressed)
//!                              └──> map of tables ─> finish ─> L2, L1, refcounts, header
//! ```

mod bitmaps;
mod classify;
mod compressed;
mod finish;
mod map;
mod packer;
mod places;
mod read;
mod refcounts;
mod write;

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Capabilities, Context, CopyFlags, DeviceInfo, Error,
    ErrorKind, Extent, FileRange, Mapping, Operation, PipeBuffer, RangeSet, Result, WriteFlags,
    ZeroFlags, check_allocation, range_of, request_range,
};

use self::{
    bitmaps::NewBitmap, finish::set_disk_size, map::Map, packer::ClusterPacker, places::Places,
};
pub(crate) use self::{
    finish::{encode as encode_entry, header, stored_size},
    refcounts::checked_sizes as refcount_sizes,
};
use super::{
    CreateOptions, Preallocation,
    codec::{CompressionSettings, Compressor},
    geometry::Geometry,
    header::LARGEST_L1,
};
use crate::{
    below::Below,
    doubt::Doubt,
    pipeline::{Pipeline, PipelineOptions},
};

/// How much memory the tables may take, in bytes: those of half a TiB in the usual clusters.
const TABLE_MEMORY: u64 = 64 << 20;

/// An image that is being made. It is none before [`finish`](Self::finish) has succeeded.
///
/// It is written in whole clusters, each of them once or again: what was written last counts. It can be read, for
/// those who want to see that it holds what they wrote. Where no size was given it takes that of
/// [`resize`](BlockDevice::resize), or grows with what is written.
///
/// Compressed clusters are on their way for a while after they were written: what goes wrong with them is told to who
/// writes next, flushes or finishes, and to all that follow.
///
/// Clusters of zeroes are not stored, and neither is what equals the backing file where that is known. A write that
/// failed must be made again before the image can be finished.
pub struct NewImage {
    info: DeviceInfo,
    options: CreateOptions,
    /// The file of the image.
    file: Arc<Below>,
    /// The file of the data, if it has one.
    data_file: Option<Arc<Below>>,
    places: Arc<Places>,
    map: Map,
    /// What compresses, if anything is compressed.
    pipeline: Option<Pipeline<ClusterPacker>>,
    size: AtomicU64,
    /// Where writes failed or were given up.
    doubt: Doubt,
    /// Whether the file takes bytes over from other files, as the first attempt has shown.
    takes_over: tokio::sync::OnceCell<bool>,
    /// What was written, where all clusters have their places from the beginning: those that guest offsets tell.
    fixed: Option<Mutex<RangeSet>>,
    /// Nothing is written any more.
    is_closed: AtomicBool,
    /// Those that it is to have.
    bitmaps: Mutex<Vec<NewBitmap>>,
    /// Held by who finishes it.
    end: tokio::sync::Mutex<End>,
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
    /// `InvalidInput` for options that make no sense, alone or together, or for this device; `ReadOnly`; what
    /// writing failed with.
    pub async fn create(below: Arc<dyn BlockDevice>, options: CreateOptions) -> Result<Self> {
        Self::create_within(below, options, TABLE_MEMORY).await
    }

    /// As [`create`](Self::create), with so much memory for tables.
    async fn create_within(
        below: Arc<dyn BlockDevice>,
        options: CreateOptions,
        table_memory: u64,
    ) -> Result<Self> {
        options
            .check()
            .map_err(|error| error.during(Operation::Open))?;
        let size = options.size.unwrap_or(0);
        check_layout(&options, size).map_err(|error| error.during(Operation::Open))?;
        let geometry = options.geometry(size);
        // Names that are too long are refused before anything is written.
        let nowhere = ByteRange::between(0, 0);
        finish::header(&options, geometry, nowhere, nowhere)
            .encode()
            .map_err(|error| error.during(Operation::Open))?;

        let mut file = Below::new(Arc::clone(&below), geometry.cluster_size(), false)?;
        file.destroy_header().await?;
        let file = Arc::new(file);
        let data_file = match &options.data_file {
            Some(data) => {
                let device = Arc::clone(&data.device);
                let mut data = Below::new(device, geometry.cluster_size(), true)?;
                if data.can(Capabilities::RESIZE) {
                    data.destroy_header().await?;
                }
                if options.size.is_some() {
                    set_disk_size(&data, size).await?;
                }
                Some(Arc::new(data))
            }
            None => None,
        };
        let is_raw = options.data_file.as_ref().is_some_and(|data| data.raw);
        let is_allocated = options.preallocation != Preallocation::Off || is_raw;
        let fixed = (is_allocated && options.backing.is_none()).then(Mutex::default);
        let places = Arc::new(Places::new(geometry));
        let map = Map::new(
            geometry,
            table_memory,
            Arc::clone(&file),
            Arc::clone(&places),
        );
        let pipeline = options.compress.then(|| {
            let settings = CompressionSettings {
                kind: options.compression,
                level: options.compression_level,
                window: options.compression_window,
            };
            let packer = ClusterPacker::new(geometry, Arc::clone(&places), file.block());
            let (threads, in_order) = (options.threads, options.in_order);
            let cluster = geometry.cluster_size();
            let pipeline = PipelineOptions {
                block: cluster,
                room: cluster,
                threads,
                in_order,
                compress: Box::new(move || {
                    let mut compressor = Compressor::new(&settings);
                    Box::new(move |cluster, out| compressor.compress(cluster, out))
                }),
            };
            Pipeline::new(pipeline, packer)
        });
        Ok(Self {
            info: describe(&below, data_file.as_deref(), &options),
            options,
            file,
            data_file,
            places,
            map,
            pipeline,
            size: AtomicU64::new(size),
            doubt: Doubt::default(),
            takes_over: tokio::sync::OnceCell::new(),
            fixed,
            is_closed: AtomicBool::new(false),
            bitmaps: Mutex::default(),
            end: tokio::sync::Mutex::default(),
        })
    }

    /// Completes the image: writes its tables, makes everything durable, and then its header, durably. What is
    /// below is as long as the image, if it can have another length, and holds a valid image only now. Nothing can
    /// be written afterwards, also when it fails, and finishing again only gives the same answer.
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
        match self.complete().await {
            Ok(()) => *end = End::Finished,
            Err(error) => *end = End::Failed(error.clone()),
        }
        match &*end {
            End::Failed(error) => Err(error.clone()),
            _ => Ok(()),
        }
    }

    fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    /// The virtual size at the moment.
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn geometry(&self) -> Geometry {
        self.options.geometry(self.size())
    }

    fn cluster_size(&self) -> u64 {
        u64::from(self.options.cluster_size)
    }

    /// Where data lies.
    fn data(&self) -> &Arc<Below> {
        self.data_file.as_ref().unwrap_or(&self.file)
    }

    /// Where all clusters have their places from the beginning: that of the first one.
    fn fixed_place(&self) -> Option<u64> {
        let first = match &self.data_file {
            Some(_) => 0,
            None => self.cluster_size(),
        };
        self.fixed.as_ref().map(|_| first)
    }

    /// Does something with what was written of clusters that have their places from the beginning.
    fn with_fixed<T>(&self, look: impl FnOnce(&mut RangeSet) -> T) -> Option<T> {
        let fixed = self.fixed.as_ref()?;
        Some(look(
            &mut fixed.lock().unwrap_or_else(PoisonError::into_inner),
        ))
    }

    /// Checks a request for a change, and makes the image longer where it may be.
    fn check_change(&self, operation: Operation, range: ByteRange) -> Result<()> {
        let refuse = |kind, message: &str| {
            let error = Error::with_message(kind, message);
            Err(error.during(operation).at(range.start(), range.len()))
        };
        if self.is_closed() {
            return refuse(ErrorKind::InvalidInput, "the image is finished");
        }
        if range.is_empty() {
            return Ok(());
        }
        let cluster = self.cluster_size();
        let size = self.size();
        let can_grow = self.info.can(Capabilities::RESIZE);
        if range.end() > size && !can_grow {
            return refuse(ErrorKind::OutOfBounds, "the image ends before");
        }
        let ends_well = range.end().is_multiple_of(cluster) || range.end() >= size;
        if !range.start().is_multiple_of(cluster) || !ends_well {
            let message = format!("a new image is written in whole clusters of {cluster} bytes");
            return refuse(ErrorKind::InvalidInput, &message);
        }
        if range.end() > size {
            check_layout(&self.options, range.end())
                .map_err(|error| error.during(operation).at(range.start(), range.len()))?;
            self.size.fetch_max(range.end(), Ordering::AcqRel);
        }
        Ok(())
    }
}

/// What the new image says of itself.
fn describe(
    below: &Arc<dyn BlockDevice>,
    data_file: Option<&Below>,
    options: &CreateOptions,
) -> DeviceInfo {
    let file = below.info();
    let data = data_file.map_or(file, |data| data.device().info());
    let mut info = DeviceInfo::new(Arc::clone(&file.name), options.size.unwrap_or(0));
    let cluster = options.cluster_size;
    let longest = data.limits.maximum.min(info.limits.maximum);
    info.limits.minimum = cluster;
    info.limits.maximum = (longest - longest % cluster).max(cluster);
    info.limits.preferred = data.limits.preferred.clamp(cluster, cluster.max(1 << 20));
    info.rotational = data.rotational;
    info.contexts = vec![Context::Allocation];
    info.capabilities = Capabilities::WRITE | Capabilities::ZERO | Capabilities::FLUSH;
    if options.backing.is_none() {
        info.capabilities |= Capabilities::BORN_ZERO;
    }
    if options.size.is_none() {
        info.capabilities |= Capabilities::RESIZE;
    }
    let looks_at_data = options.compress
        || options
            .backing
            .as_ref()
            .is_some_and(|backing| backing.device.is_some());
    if !looks_at_data {
        info.capabilities |=
            data.capabilities & (Capabilities::COPY_FROM | Capabilities::SPLICE_WRITE);
    }
    info
}

/// Fails where no image of that kind can have `size` bytes.
pub(crate) fn check_layout(options: &CreateOptions, size: u64) -> Result<()> {
    let geometry = options.geometry(size);
    if i64::try_from(size).is_ok() && geometry.l1_entries().saturating_mul(8) <= LARGEST_L1 {
        return Ok(());
    }
    let largest = (LARGEST_L1 / 8).saturating_mul(geometry.table_span());
    let message = format!(
        "an image with clusters of {} bytes has {largest} bytes at most, not {size}",
        geometry.cluster_size()
    );
    Err(Error::with_message(ErrorKind::InvalidInput, message))
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
                if let Some(data) = &self.data_file {
                    data.flush().await?;
                }
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
            let extents = self.find_extents(range).await;
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

impl fmt::Debug for NewImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NewImage({}, {} bytes)", self.info.name, self.size())
    }
}

#[cfg(test)]
mod tests;
