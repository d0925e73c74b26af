//! What the last clusters are that are used, and where the file can end.

use blockferry_block::Result;

use super::{Allocator, Clusters};
use crate::qcow2::refcounts::refcount;

impl Allocator {
    /// Gives up the last blocks of refcounts as far as they count nothing but themselves, and says where the last cluster
    /// ends then that has a refcount, in bytes. Nothing else is being written meanwhile.
    ///
    /// # Errors
    /// What reading and writing refcounts failed with.
    pub(crate) async fn trim_end(&mut self) -> Result<u64> {
        let (cluster, each) = (
            self.geometry.cluster_size(),
            self.geometry.refcounts_per_block(),
        );
        let mut freed = Vec::new();
        for index in (0..self.table.len() as u64).rev() {
            let place = self.table[index as usize];
            if place == 0 {
                continue;
            }
            let own = place / cluster;
            self.load(index).await?;
            let block = &self.blocks[&index].bytes;
            let order = self.geometry.refcount_order;
            let is_own = |at: u64| index * each + at == own;
            let is_used = |at: &u64| !is_own(*at) && refcount(block, order, *at as usize) != 0;
            if (0..each).rev().find(is_used).is_some() {
                break;
            }
            self.forget_block(index);
            if own / each != index {
                freed.push(own);
            }
        }
        // What nothing names any more is free only then.
        self.write_changes().await?;
        for first in freed {
            self.release(Clusters { first, count: 1 }).await.1?;
        }
        self.write_changes().await?;
        let all = Clusters {
            first: 0,
            count: self.table.len() as u64 * each,
        };
        let last = self.last_used(all).await?;
        Ok(last.map_or(0, |last| (last + 1) * cluster))
    }

    /// The table does not name the block any more.
    fn forget_block(&mut self, index: u64) {
        self.table[index as usize] = 0;
        self.table_parts.insert(index * 8 / self.table_part());
        self.blocks.remove(&index);
    }

    /// The last of the clusters that has a refcount.
    pub(super) async fn last_used(&mut self, clusters: Clusters) -> Result<Option<u64>> {
        let (each, order) = (
            self.geometry.refcounts_per_block(),
            self.geometry.refcount_order,
        );
        let end = clusters.first + clusters.count;
        for index in (clusters.first / each..end.div_ceil(each)).rev() {
            match usize::try_from(index)
                .ok()
                .and_then(|at| self.table.get(at))
            {
                None | Some(0) => continue,
                Some(_) => self.load(index).await?,
            }
            let block = &self.blocks[&index].bytes;
            let first = clusters.first.max(index * each);
            let used = (first..end.min((index + 1) * each))
                .rev()
                .find(|cluster| refcount(block, order, (cluster % each) as usize) != 0);
            if used.is_some() {
                return Ok(used);
            }
        }
        Ok(None)
    }
}
