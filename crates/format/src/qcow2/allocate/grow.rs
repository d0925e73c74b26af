//! How the refcount table grows, and how many clusters in a row are found.

use std::collections::HashMap;

use blockferry_block::{Buffer, ByteRange, Capabilities, Result};

use super::{Allocator, Block, Clusters, no_space};
use crate::qcow2::{header::LARGEST_REFCOUNT_TABLE, refcounts::set_refcount};

/// Where the place of the refcount table stands in the header, and behind it the number of its clusters.
const TABLE_IN_HEADER: u64 = 48;

impl Allocator {
    /// Makes the refcount table longer: a copy of it behind all that it covers, with the blocks for the place that
    /// this takes, and then the header says where it is. Nothing in memory changes unless all of that is durable, and
    /// nothing else is being written meanwhile.
    ///
    /// # Errors
    /// `NoSpace` where it cannot grow; what writing failed with.
    pub(crate) async fn grow(&mut self) -> Result<()> {
        let geometry = self.geometry;
        let (cluster, each) = (geometry.cluster_size(), geometry.refcounts_per_block());
        let first_block = self.table.len() as u64;
        let first = first_block * each;
        // Half as much again, and at least what the table itself and its blocks need.
        let mut entries = first_block + (first_block / 2).max(1);
        let (clusters, blocks) = loop {
            let clusters = (entries * 8).div_ceil(cluster);
            let mut blocks = 1;
            while blocks * each < clusters + blocks {
                blocks += 1;
            }
            entries = clusters * cluster / 8;
            if entries >= first_block + blocks {
                break (clusters, blocks);
            }
            entries = first_block + blocks;
        };
        if clusters * cluster > LARGEST_REFCOUNT_TABLE.max(cluster) {
            return Err(no_space("the refcount table cannot become longer"));
        }
        let all = Clusters {
            first,
            count: blocks + clusters,
        };
        if self.check_room(all)? < all.count {
            return Err(no_space("the refcount table does not fit"));
        }
        let mut table = self.table.clone();
        table.resize(entries as usize, 0);
        let mut new = HashMap::new();
        for block in 0..blocks {
            let place = (first + block) * cluster;
            table[(first_block + block) as usize] = place;
            let mut bytes = vec![0; cluster as usize];
            let used = all.count.saturating_sub(block * each).min(each);
            for at in 0..used {
                set_refcount(&mut bytes, geometry.refcount_order, at as usize, 1);
            }
            self.file.write(place, Buffer::from(&bytes[..])).await?;
            new.insert(first_block + block, bytes);
        }
        // The new table names blocks that the old one does not name yet.
        for (index, block) in &self.blocks {
            if block.is_new {
                let place = self.table[*index as usize];
                self.file
                    .write(place, Buffer::from(&block.bytes[..]))
                    .await?;
            }
        }
        let place = ByteRange::between(
            (first + blocks) * cluster,
            (first + blocks + clusters) * cluster,
        );
        let bytes: Vec<u8> = table.iter().flat_map(|word| word.to_be_bytes()).collect();
        self.file
            .write(place.start(), Buffer::from(&bytes[..]))
            .await?;
        self.file.device().flush().await?;
        let mut says = place.start().to_be_bytes().to_vec();
        says.extend((clusters as u32).to_be_bytes());
        self.file.patch(TABLE_IN_HEADER, &says).await?;
        self.file.device().flush().await?;
        let old = Clusters {
            first: self.table_place.start() / cluster,
            count: self.table_place.len() / cluster,
        };
        self.reserved.retain(|range| *range != self.table_place);
        self.reserved.push(place);
        self.table = table;
        self.table_place = place;
        self.table_parts.clear();
        for block in self.blocks.values_mut() {
            block.is_new = false;
        }
        for (index, bytes) in new {
            self.clock += 1;
            let block = Block {
                bytes,
                parts: 0,
                is_busy: false,
                is_new: false,
                last_use: self.clock,
            };
            self.blocks.insert(index, block);
        }
        // If that fails, space is lost and nothing else.
        let (_, _) = self.release(old).await;
        Ok(())
    }

    /// Takes `count` free clusters in a row, behind the end of a file that can grow: their refcounts are 1 from now on.
    /// Blocks of refcounts that this needs are made, and may be written; nothing else is being written meanwhile.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate) and [`grow`](Self::grow).
    pub(crate) async fn allocate_together(&mut self, count: u64) -> Result<Clusters> {
        let (cluster, each) = (
            self.geometry.cluster_size(),
            self.geometry.refcounts_per_block(),
        );
        // Where blocks will lie that do not lie in what they count: behind them all is to be one row.
        let mut places = Vec::new();
        let mut first = self.hint;
        let (run, missing) = loop {
            if self.file.device().info().can(Capabilities::RESIZE) {
                first = first.max(self.file.end().div_ceil(cluster));
            }
            let run = Clusters { first, count };
            let blocks = run.first / each..(run.first + run.count).div_ceil(each);
            if blocks.end > self.table.len() as u64 {
                self.grow().await?;
                continue;
            }
            let missing = blocks.filter(|index| self.table[*index as usize] == 0);
            let missing: Vec<_> = missing.collect();
            if missing.len() > places.len() {
                let place = self.allocate_one().await?;
                first = first.max(place + 1);
                places.push(place);
                continue;
            }
            match self.last_used(run).await? {
                Some(used) => first = used + 1,
                None => break (run, missing),
            }
        };
        if self.check_room(run)? < run.count {
            return Err(no_space("there is no room in the image's file"));
        }
        if !places.is_empty() {
            // They are counted before anything names them.
            self.write_changes().await?;
        }
        let mut places = places.into_iter();
        for (index, place) in missing.into_iter().zip(&mut places) {
            self.add_block(index, place);
        }
        for place in places {
            let unused = Clusters {
                first: place,
                count: 1,
            };
            self.release(unused).await.1?;
        }
        for cluster in run.first..run.first + run.count {
            let index = cluster / each;
            self.load(index).await?;
            self.set(index, (cluster % each) as usize, 1);
        }
        Ok(run)
    }

    /// Writes all that is not in the file, durably. Nothing else is being written meanwhile.
    ///
    /// # Errors
    /// What writing failed with.
    pub(crate) async fn write_changes(&mut self) -> Result<()> {
        let changes = self.take_changes();
        let written = async {
            changes.write(&self.file).await?;
            self.file.device().flush().await
        };
        match written.await {
            Ok(()) => {
                self.written(&changes);
                Ok(())
            }
            Err(error) => {
                self.failed(changes);
                Err(error)
            }
        }
    }

    /// Takes one free cluster: its refcount is 1 from now on. As [`allocate_together`](Self::allocate_together).
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate) and [`grow`](Self::grow).
    pub(crate) async fn allocate_one(&mut self) -> Result<u64> {
        loop {
            match self.allocate(1).await? {
                Some(clusters) => return Ok(clusters.first),
                None => self.grow().await?,
            }
        }
    }
}
