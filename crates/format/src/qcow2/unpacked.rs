//! Compressed clusters: fetched together where they lie together, unpacked on threads of their own, and a few of
//! them kept for those who read them in small pieces.

use std::sync::Arc;

use blockferry_block::{Buffer, BufferPool, ByteRange, Result};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{
    codec::Decompressor,
    entry::Compressed,
    geometry::{Geometry, corrupt},
    header::Compression,
    host::HostFile,
};
use crate::{flights::Flights, gather::SIDE_BY_SIDE, pool, recent::Recent};

/// How many bytes of unpacked clusters are kept, but at least a few clusters.
const KEPT: u64 = 4 << 20;
const FEWEST: u64 = 4;

/// Clusters that are unpacked one after the other by one thread, in bytes of the disk: enough to be worth the way to
/// that thread, few enough for several of them.
pub(crate) const TOGETHER: u64 = 256 << 10;

/// What lies between two clusters that are fetched together, in bytes at most.
const GAP: u64 = 4 << 10;

/// The buffers for packed and unpacked clusters that are kept for the next.
const BUFFERS: usize = 32;

/// What unpacking needs, and what it leaves for the next reader. Shared by all handles.
pub(crate) struct Unpacked {
    geometry: Geometry,
    compression: Compression,
    recent: Recent,
    under_way: Arc<Flights<u64, Arc<Buffer>>>,
    packed: BufferPool,
    scratch: BufferPool,
}

/// One compressed cluster of a request, all of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Whole {
    /// Where on the disk.
    pub(crate) guest: u64,
    pub(crate) packed: Compressed,
}

/// Clusters that are fetched by one read and unpacked by one thread.
#[derive(Debug)]
pub(crate) struct Batch {
    /// By where they lie in the file.
    pub(crate) clusters: Vec<Whole>,
    range: ByteRange,
}

impl Batch {
    /// The batches of `clusters`, which come in the order of the disk.
    pub(crate) fn cut(mut clusters: Vec<Whole>, geometry: Geometry) -> Vec<Self> {
        // Whoever compresses in parallel may have written neighbours in another order.
        clusters.sort_by_key(|cluster| cluster.packed.offset);
        let most = (TOGETHER >> geometry.cluster_bits).max(1) as usize;
        let mut batches: Vec<Self> = Vec::new();
        for cluster in clusters {
            let start = cluster.packed.offset;
            let end = start.saturating_add(cluster.packed.length);
            match batches.last_mut() {
                Some(last) if last.clusters.len() < most && start <= last.range.end() + GAP => {
                    let end = end.max(last.range.end());
                    last.range = ByteRange::between(last.range.start(), end);
                    last.clusters.push(cluster);
                }
                _ => batches.push(Self {
                    range: ByteRange::between(start, end),
                    clusters: vec![cluster],
                }),
            }
        }
        batches
    }
}

impl Unpacked {
    pub(crate) fn new(geometry: Geometry, compression: Compression) -> Self {
        let cluster = geometry.cluster_size();
        let together = TOGETHER.max(cluster) as usize;
        Self {
            geometry,
            compression,
            recent: Recent::new((KEPT / cluster).clamp(FEWEST, 64) as usize),
            under_way: Arc::default(),
            packed: BufferPool::new(together, BUFFERS),
            scratch: BufferPool::new(together, BUFFERS),
        }
    }

    /// A buffer of `length` bytes for a part of a request.
    pub(crate) fn scratch(&self, length: u64) -> Buffer {
        self.scratch.take(length as usize)
    }

    /// Unpacks `batches` into `buffer`, which begins at `start` of the disk and has room for all of their clusters.
    ///
    /// # Errors
    /// `Corrupt`, naming the cluster; what reading failed with.
    pub(crate) async fn unpack(
        &self,
        file: &HostFile,
        batches: Vec<Batch>,
        start: u64,
        buffer: Buffer,
    ) -> Result<Buffer> {
        let fetched = stream::iter(batches).map(|batch| self.fetch(file, batch));
        let fetched = fetched.buffer_unordered(SIDE_BY_SIDE).try_collect();
        let fetched = fetched.await?;
        self.unpack_to(fetched, buffer, move |guest, _| guest - start)
            .await
    }

    /// Unpacks `batch` into a buffer that has its clusters one after the other.
    ///
    /// # Errors
    /// As [`unpack`](Self::unpack).
    pub(crate) async fn unpack_in_a_row(&self, file: &HostFile, batch: Batch) -> Result<Buffer> {
        let cluster = self.geometry.cluster_size();
        let buffer = self.scratch(batch.clusters.len() as u64 * cluster);
        let fetched = vec![self.fetch(file, batch).await?];
        self.unpack_to(fetched, buffer, move |_, number| number * cluster)
            .await
    }

    /// Unpacks what was fetched; each cluster goes to where `place` says by its place on the disk and its number.
    async fn unpack_to(
        &self,
        fetched: Vec<(Batch, Buffer)>,
        mut buffer: Buffer,
        place: impl Fn(u64, u64) -> u64 + Send + 'static,
    ) -> Result<Buffer> {
        let (compression, size) = (self.compression, self.geometry.cluster_size() as usize);
        let unpacking = pool::unpack(move |decompressor: &mut Decompressor| {
            let clusters = fetched.iter().flat_map(|(batch, packed)| {
                let start = batch.range.start();
                batch.clusters.iter().map(move |cluster| {
                    let from = (cluster.packed.offset - start) as usize;
                    (cluster, &packed[from..][..cluster.packed.length as usize])
                })
            });
            for ((cluster, stream), number) in clusters.zip(0..) {
                let out = &mut buffer[place(cluster.guest, number) as usize..][..size];
                let done = decompressor.decompress(compression, stream, out);
                done.map_err(|error| {
                    let (guest, host) = (cluster.guest, cluster.packed.offset);
                    corrupt(format!(
                        "at guest offset {guest:#x}, from {host:#x}: {error}"
                    ))
                })?;
            }
            Ok(buffer)
        });
        unpacking.await?
    }

    async fn fetch(&self, file: &HostFile, batch: Batch) -> Result<(Batch, Buffer)> {
        let buffer = self.packed.take(batch.range.len() as usize);
        let guest = batch.clusters.first().map_or(0, |cluster| cluster.guest);
        let name = || format!("the compressed cluster for guest offset {guest:#x}");
        let packed = file.read_padded(batch.range.start(), buffer, name).await?;
        Ok((batch, packed))
    }

    /// The unpacked `cluster`, for those who want a part of it: kept for the next who wants another part.
    ///
    /// # Errors
    /// As [`unpack`](Self::unpack).
    pub(crate) async fn cluster(
        self: &Arc<Self>,
        file: &HostFile,
        cluster: Whole,
    ) -> Result<Arc<Buffer>> {
        let key = cluster.packed.offset;
        if let Some(known) = self.recent.find(key) {
            return Ok(known);
        }
        let (unpacked, file) = (Arc::clone(self), file.clone());
        let unpack = async move {
            let batches = Batch::cut(vec![cluster], unpacked.geometry);
            let buffer = Buffer::zeroed(unpacked.geometry.cluster_size() as usize);
            let unpacking = unpacked.unpack(&file, batches, cluster.guest, buffer);
            let buffer = Arc::new(unpacking.await?);
            unpacked.recent.keep(key, &buffer);
            Ok(buffer)
        };
        self.under_way.join(key, unpack).await
    }
}
