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

use std::sync::{Arc, Mutex, PoisonError};

use blockferry_block::{
    BlockDevice, ByteRange, Capabilities, DeviceInfo, Error, ErrorKind, Operation, RangeSet, Result,
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
    making::{self, NewDisk, Progress},
    pipeline::{Pipeline, PipelineOptions},
};

/// How much memory the tables may take, in bytes: those of half a TiB in the usual clusters.
const TABLE_MEMORY: u64 = 64 << 20;

/// Begins an image in `below`, which is a file that can grow, or has room enough. What was there before is no image any
/// more afterwards. It is none itself before it is [finished](crate::NewImage::finish).
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
///
/// # Errors
/// `InvalidInput` for options that make no sense, alone or together, or for this device; `ReadOnly`; what writing failed
/// with.
pub async fn create(
    below: Arc<dyn BlockDevice>,
    options: CreateOptions,
) -> Result<Arc<dyn crate::NewImage>> {
    Ok(Arc::new(
        NewImage::create(below, options, TABLE_MEMORY).await?,
    ))
}

/// An image that is being made.
pub(crate) struct NewImage {
    progress: Progress,
    options: CreateOptions,
    /// The file of the image.
    file: Arc<Below>,
    /// The file of the data, if it has one.
    data_file: Option<Arc<Below>>,
    places: Arc<Places>,
    map: Map,
    /// What compresses, if anything is compressed.
    pipeline: Option<Pipeline<ClusterPacker>>,
    /// Whether the file takes bytes over from other files, as the first attempt has shown.
    takes_over: tokio::sync::OnceCell<bool>,
    /// What was written, where all clusters have their places from the beginning: those that guest offsets tell.
    fixed: Option<Mutex<RangeSet>>,
    /// Those that it is to have.
    bitmaps: Mutex<Vec<NewBitmap>>,
}

impl NewImage {
    /// As [`create`], with so much memory for tables, in bytes.
    async fn create(
        below: Arc<dyn BlockDevice>,
        options: CreateOptions,
        table_memory: u64,
    ) -> Result<NewDisk<Self>> {
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
        Ok(NewDisk(Self {
            progress: Progress::new(describe(&below, data_file.as_deref(), &options)),
            options,
            file,
            data_file,
            places,
            map,
            pipeline,
            takes_over: tokio::sync::OnceCell::new(),
            fixed,
            bitmaps: Mutex::default(),
        }))
    }

    /// The virtual size at the moment.
    fn size(&self) -> u64 {
        self.progress.size()
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
}

/// What the new image says of itself.
fn describe(
    below: &Arc<dyn BlockDevice>,
    data_file: Option<&Below>,
    options: &CreateOptions,
) -> DeviceInfo {
    let file = below.info();
    let data = data_file.map_or(file, |data| data.device().info());
    let mut info = making::describe(file, options.size);
    let cluster = options.cluster_size;
    let longest = data.limits.maximum.min(info.limits.maximum);
    info.limits.minimum = cluster;
    info.limits.maximum = (longest - longest % cluster).max(cluster);
    info.limits.preferred = data.limits.preferred.clamp(cluster, cluster.max(1 << 20));
    info.rotational = data.rotational;
    if options.backing.is_some() {
        info.capabilities -= Capabilities::BORN_ZERO;
    }
    let looks_at_data = options.compress
        || options
            .backing
            .as_ref()
            .is_some_and(|backing| backing.device.is_some());
    if !looks_at_data {
        info.capabilities |= data.capabilities & making::AS_IT_IS;
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

#[cfg(test)]
mod tests;
