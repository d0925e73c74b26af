//! New clusters for what nothing points to yet, and old ones that nothing points to any more.

use blockferry_block::{Buffer, Result};

use crate::qcow2::{
    allocate::{Allocator, Clusters},
    geometry::Geometry,
    header::Header,
    host::HostFile,
};

/// Changed blocks of refcounts are written when they take so many bytes.
const MOST_CHANGED: u64 = 4 << 20;

/// Where the clusters of a change come from.
pub(super) struct Room<'a> {
    file: &'a HostFile,
    geometry: Geometry,
    allocator: Allocator,
    /// What has been allocated.
    taken: Vec<Clusters>,
}

impl<'a> Room<'a> {
    /// Nothing is changed yet.
    ///
    /// # Errors
    /// `Corrupt`, what reading failed with.
    pub(super) async fn open(file: &'a HostFile, header: &Header) -> Result<Self> {
        Ok(Self {
            file,
            geometry: header.geometry,
            allocator: Allocator::open(file.clone(), header).await?,
            taken: Vec::new(),
        })
    }

    /// Writes `bytes`, which are not none, to new clusters in a row and says where they begin.
    ///
    /// # Errors
    /// `NoSpace`; what reading refcounts and writing failed with.
    pub(super) async fn store(&mut self, bytes: &[u8]) -> Result<u64> {
        let cluster = self.geometry.cluster_size();
        let count = (bytes.len() as u64).div_ceil(cluster);
        let clusters = match count {
            // In a gap, where there is one.
            1 => Clusters {
                first: self.allocator.allocate_one().await?,
                count,
            },
            _ => self.allocator.allocate_together(count).await?,
        };
        match self.taken.last_mut() {
            Some(last) if last.first + last.count == clusters.first => last.count += count,
            _ => self.taken.push(clusters),
        }
        let mut data = Buffer::zeroed((count * cluster) as usize);
        data[..bytes.len()].copy_from_slice(bytes);
        let place = clusters.first * cluster;
        self.file.write(place, data).await?;
        Ok(place)
    }

    /// Makes all that was stored durable, with its refcounts: it can be pointed to.
    ///
    /// # Errors
    /// What writing failed with.
    pub(super) async fn settle(&mut self) -> Result<()> {
        self.allocator.write_changes().await
    }

    /// What was stored is not needed: nothing points to it. What cannot be given back is lost space.
    pub(super) async fn give_back(&mut self) {
        for clusters in std::mem::take(&mut self.taken) {
            let _ = self.free(clusters).await;
        }
        let _ = self.settle().await;
    }

    /// Gives up clusters that nothing points to any more, durably once it is [settled](Self::settle).
    ///
    /// # Errors
    /// What reading and writing refcounts failed with: space is lost and nothing else.
    pub(super) async fn free(&mut self, clusters: Clusters) -> Result<()> {
        self.allocator.release(clusters).await.1?;
        if self.allocator.changed_bytes() >= MOST_CHANGED {
            self.settle().await?;
        }
        Ok(())
    }
}
