//! The refcounts of an image as they are, and as they will be (specification, "Host cluster management").
//!
//! Nothing that the image has is overwritten: blocks of refcounts that change get new places, and so does their table. The
//! header names that table once all else is durable, and from then on all of it holds at once. What is taken is free
//! before and after.

use std::collections::HashMap;

use blockferry_block::{Buffer, ByteRange, Capabilities, Error, ErrorKind, Result};

use crate::qcow2::{
    allocate::{Clusters, MOST_OFFSET, read_refcount_table},
    geometry::{Geometry, corrupt},
    header::{Header, LARGEST_REFCOUNT_TABLE},
    host::HostFile,
    refcounts::{largest, refcount, set_refcount},
};

/// The memory for blocks of refcounts, in bytes; so little in tests that they get by with less than they need.
const MEMORY: u64 = if cfg!(test) { 8 << 10 } else { 64 << 20 };

/// So many runs of clusters that are free now are told.
const MOST_FREED: usize = 1 << 16;

/// How often something uses clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    OnceMore,
    OnceLess,
}

pub(super) struct Recount {
    geometry: Geometry,
    file: HostFile,
    /// Where the image has its blocks; 0 where there is none.
    old: Vec<u64>,
    /// Where they will be: as many.
    new: Vec<u64>,
    old_table: ByteRange,
    blocks: HashMap<u64, Block>,
    /// How many of them have changed.
    changed: usize,
    /// How many blocks there is room for.
    most: usize,
    /// No cluster before this one can be taken.
    hint: u64,
}

struct Block {
    /// The refcounts that the image has.
    old: Vec<u8>,
    /// Those that it will have.
    new: Vec<u8>,
    /// The new ones are not where they will be.
    is_changed: bool,
}

impl Recount {
    /// Reads the refcount table of the image in `file`. Nothing has changed yet.
    ///
    /// # Errors
    /// `Corrupt` where the table, or what it names, cannot lie there; what reading failed with.
    pub(super) async fn open(file: &HostFile, header: &Header) -> Result<Self> {
        let old = read_refcount_table(file, header).await?;
        let mut places: Vec<u64> = old.iter().copied().filter(|place| *place != 0).collect();
        places.sort_unstable();
        if places.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(corrupt("the refcount table names a block twice"));
        }
        let geometry = header.geometry;
        let mut recount = Self {
            geometry,
            file: file.clone(),
            new: old.clone(),
            old,
            old_table: header.refcount_table,
            blocks: HashMap::new(),
            changed: 0,
            most: (MEMORY / 2 / geometry.cluster_size()).max(8) as usize,
            hint: 0,
        };
        recount.require(header.refcount_table).await?;
        for place in places {
            let block = ByteRange::between(place, place + geometry.cluster_size());
            recount.require(block).await?;
        }
        Ok(recount)
    }

    /// Refuses an image in which what it has in `range` is called free: it would be overwritten.
    ///
    /// # Errors
    /// `Corrupt`; what reading refcounts failed with.
    pub(super) async fn require(&mut self, range: ByteRange) -> Result<()> {
        let clusters = clusters_of(range, self.geometry);
        for cluster in clusters.first..clusters.first + clusters.count {
            if self.count(cluster).await? == 0 {
                return Err(self.wrong(cluster));
            }
        }
        Ok(())
    }

    /// The refcount that a cluster will have.
    ///
    /// # Errors
    /// What reading refcounts failed with.
    pub(super) async fn count(&mut self, cluster: u64) -> Result<u64> {
        let (index, at) = self.indices(cluster);
        let order = self.geometry.refcount_order;
        if let Some(block) = self.blocks.get(&index) {
            return Ok(refcount(&block.new, order, at));
        }
        if !self.is_there(index) {
            return Ok(0);
        }
        let block = self.load(index).await?;
        Ok(refcount(&block.new, order, at))
    }

    /// Counts a use more or less of each of the clusters, all of which are used.
    ///
    /// # Errors
    /// `Corrupt` where one of them is called free; `Unsupported` where one would have more uses than a refcount can say;
    /// `NoSpace`, what reading and writing refcounts failed with.
    pub(super) async fn change(&mut self, clusters: Clusters, change: Change) -> Result<()> {
        self.relieve().await?;
        self.change_all(clusters, change).await
    }

    /// Takes clusters in a row, whose refcounts are 1 then.
    ///
    /// # Errors
    /// `NoSpace`; what reading and writing refcounts failed with.
    pub(super) async fn allocate(&mut self, count: u64) -> Result<Clusters> {
        self.relieve().await?;
        self.take(count).await
    }

    /// Puts all that has changed into its new place, where the header is to say that the refcount table is.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate).
    pub(super) async fn finish(&mut self) -> Result<ByteRange> {
        let cluster = self.geometry.cluster_size();
        let old = clusters_of(self.old_table, self.geometry);
        self.change_all(old, Change::OnceLess).await?;
        let needed = |recount: &Self| (recount.new.len() as u64 * 8).div_ceil(cluster).max(1);
        let table = loop {
            self.give_places().await?;
            // What it lies in is counted, too, and may need more blocks.
            let table = self.take(needed(self)).await?;
            self.give_places().await?;
            if needed(self) <= table.count {
                break table;
            }
            self.change_all(table, Change::OnceLess).await?;
        };
        self.write_blocks().await?;
        let mut bytes: Vec<u8> = self.new.iter().flat_map(|at| at.to_be_bytes()).collect();
        bytes.resize((table.count * cluster) as usize, 0);
        let place = table.first * cluster;
        self.file.write(place, Buffer::from(&bytes[..])).await?;
        Ok(ByteRange::between(place, place + bytes.len() as u64))
    }

    /// What the image had and will not have, in bytes of the file; some of it where it is much.
    ///
    /// # Errors
    /// What reading refcounts failed with.
    pub(super) async fn freed(&mut self) -> Result<Vec<ByteRange>> {
        let (order, cluster) = (self.geometry.refcount_order, self.geometry.cluster_size());
        let per_block = self.geometry.refcounts_per_block();
        let mut freed: Vec<ByteRange> = Vec::new();
        for index in 0..self.new.len() as u64 {
            let at = index as usize;
            if self.new[at] == self.old[at] {
                continue;
            }
            let block = self.load(index).await?;
            for at in 0..per_block {
                let [was, is] = [&block.old, &block.new].map(|it| refcount(it, order, at as usize));
                if was == 0 || is != 0 {
                    continue;
                }
                let start = (index * per_block + at) * cluster;
                let own = ByteRange::between(start, start + cluster);
                let is_full = freed.len() == MOST_FREED;
                match freed.last_mut() {
                    Some(last) if last.end() == start => {
                        *last = ByteRange::between(last.start(), own.end());
                    }
                    _ if is_full => return Ok(freed),
                    _ => freed.push(own),
                }
            }
        }
        Ok(freed)
    }

    /// As [`change`](Self::change), without regard to memory. Where it fails some are changed.
    async fn change_all(&mut self, clusters: Clusters, change: Change) -> Result<()> {
        let order = self.geometry.refcount_order;
        let mut rest = clusters;
        while rest.count > 0 {
            let (index, at) = self.indices(rest.first);
            let left = self.geometry.refcounts_per_block() - at as u64;
            let (run, behind) = rest.split_at(left);
            if !self.is_there(index) {
                return Err(self.wrong(run.first));
            }
            let block = self.load(index).await?;
            let is_first = !std::mem::replace(&mut block.is_changed, true);
            let failed = (at..at + run.count as usize).find(|at| {
                let changed = match (refcount(&block.new, order, *at), change) {
                    (0, _) => None,
                    (count, Change::OnceLess) => Some(count - 1),
                    (count, Change::OnceMore) if count == largest(order) => None,
                    (count, Change::OnceMore) => Some(count + 1),
                };
                let set = changed.map(|count| set_refcount(&mut block.new, order, *at, count));
                set.is_none()
            });
            let is_free = failed.is_some_and(|at| refcount(&block.new, order, at) == 0);
            self.changed += usize::from(is_first);
            match failed.map(|failed| run.first + (failed - at) as u64) {
                None => rest = behind,
                Some(cluster) if is_free => return Err(self.wrong(cluster)),
                Some(cluster) => return Err(self.too_often(cluster)),
            }
        }
        Ok(())
    }

    /// As [`allocate`](Self::allocate), without regard to memory.
    async fn take(&mut self, count: u64) -> Result<Clusters> {
        let info = self.file.device().info();
        let end = match info.can(Capabilities::RESIZE) {
            true => MOST_OFFSET,
            false => info.size.min(MOST_OFFSET),
        };
        let end = end / self.geometry.cluster_size();
        let mut run = Clusters {
            first: self.hint,
            count: 0,
        };
        while run.count < count {
            let next = run.first + run.count;
            if next >= end {
                let message = "there is no room in the image's file";
                return Err(Error::with_message(ErrorKind::NoSpace, message));
            }
            if self.is_free(next).await? {
                run.count += 1;
            } else {
                run = Clusters {
                    first: next + 1,
                    count: 0,
                };
            }
        }
        if count == 1 || run.first == self.hint {
            self.hint = run.first + run.count;
        }
        for cluster in each(run) {
            self.set(cluster, 1).await?;
        }
        Ok(run)
    }

    /// Whether a cluster is free before and after.
    async fn is_free(&mut self, cluster: u64) -> Result<bool> {
        let (index, at) = self.indices(cluster);
        if !self.is_there(index) {
            return Ok(true);
        }
        let order = self.geometry.refcount_order;
        let block = self.load(index).await?;
        let counts = [&block.old, &block.new].map(|it| refcount(it, order, at));
        Ok(counts == [0, 0])
    }

    async fn set(&mut self, cluster: u64, count: u64) -> Result<()> {
        let (index, at) = self.indices(cluster);
        if index >= LARGEST_REFCOUNT_TABLE.max(self.geometry.cluster_size()) / 8 {
            let message = "the refcount table cannot become longer";
            return Err(Error::with_message(ErrorKind::NoSpace, message));
        }
        let length = self.new.len().max(index as usize + 1);
        self.new.resize(length, 0);
        self.old.resize(length, 0);
        let order = self.geometry.refcount_order;
        let block = self.load(index).await?;
        set_refcount(&mut block.new, order, at, count);
        let is_first = !std::mem::replace(&mut block.is_changed, true);
        self.changed += usize::from(is_first);
        Ok(())
    }

    /// Where the refcount of a cluster is: in which block, and there.
    fn indices(&self, cluster: u64) -> (u64, usize) {
        let each = self.geometry.refcounts_per_block();
        (cluster / each, (cluster % each) as usize)
    }

    /// Whether a block has a place, or will have one.
    fn is_there(&self, index: u64) -> bool {
        let place = usize::try_from(index).ok();
        place.is_some_and(|at| self.new.get(at).is_some_and(|place| *place != 0))
            || self.blocks.contains_key(&index)
    }

    /// A block within the table, read if need be. Where there is none nothing is counted.
    async fn load(&mut self, index: u64) -> Result<&mut Block> {
        if !self.blocks.contains_key(&index) {
            if self.blocks.len() >= self.most {
                self.blocks.retain(|_, block| block.is_changed);
            }
            let [old, new] = [&self.old, &self.new].map(|places| places[index as usize]);
            let bytes = self.read(old).await?;
            let block = Block {
                new: match new == old {
                    true => bytes.clone(),
                    false => self.read(new).await?,
                },
                old: bytes,
                is_changed: false,
            };
            self.blocks.insert(index, block);
        }
        Ok(self.blocks.get_mut(&index).expect("it is there"))
    }

    async fn read(&self, place: u64) -> Result<Vec<u8>> {
        let buffer = Buffer::zeroed(self.geometry.cluster_size() as usize);
        if place == 0 {
            return Ok(buffer.to_vec());
        }
        let name = || "a block of refcounts".to_owned();
        let bytes = self.file.read_padded(place, buffer, name).await?;
        Ok(bytes.to_vec())
    }

    /// Keeps what is in memory within its bounds.
    async fn relieve(&mut self) -> Result<()> {
        // Half of the room is for those that have not changed.
        if self.changed < self.most / 2 {
            return Ok(());
        }
        self.give_places().await?;
        self.write_blocks().await?;
        self.blocks.clear();
        Ok(())
    }

    /// Gives each block that has changed a new place, and gives up its old one.
    async fn give_places(&mut self) -> Result<()> {
        loop {
            let changed = self.blocks.iter().filter(|(_, block)| block.is_changed);
            let indices = changed.map(|(index, _)| *index);
            let is_placed = |index: &u64| self.new[*index as usize] != self.old[*index as usize];
            let mut unplaced: Vec<_> = indices.filter(|index| !is_placed(index)).collect();
            if unplaced.is_empty() {
                return Ok(());
            }
            unplaced.sort_unstable();
            for index in unplaced {
                // Both may change blocks that had no change.
                let place = self.take(1).await?.first << self.geometry.cluster_bits;
                let old = self.old[index as usize];
                if old != 0 {
                    let old = Clusters {
                        first: old >> self.geometry.cluster_bits,
                        count: 1,
                    };
                    self.change_all(old, Change::OnceLess).await?;
                }
                self.new[index as usize] = place;
            }
        }
    }

    async fn write_blocks(&mut self) -> Result<()> {
        for (index, block) in &mut self.blocks {
            if block.is_changed {
                let place = self.new[*index as usize];
                let bytes = Buffer::from(&block.new[..]);
                self.file.write(place, bytes).await?;
                block.is_changed = false;
            }
        }
        self.changed = 0;
        Ok(())
    }

    fn too_often(&self, cluster: u64) -> Error {
        let message = format!(
            "refcounts of {} bits cannot say that another snapshot has the cluster at {:#x}",
            1_u64 << self.geometry.refcount_order,
            cluster << self.geometry.cluster_bits
        );
        Error::with_message(ErrorKind::Unsupported, message)
    }

    fn wrong(&self, cluster: u64) -> Error {
        let place = cluster.saturating_mul(self.geometry.cluster_size());
        corrupt(format!(
            "the refcounts are wrong: the cluster at {place:#x} is used and called free"
        ))
    }
}

/// The numbers of clusters.
fn each(clusters: Clusters) -> std::ops::Range<u64> {
    clusters.first..clusters.first + clusters.count
}

/// The clusters that `range` touches, which begins with one.
pub(super) fn clusters_of(range: ByteRange, geometry: Geometry) -> Clusters {
    let cluster = geometry.cluster_size();
    Clusters {
        first: range.start() / cluster,
        count: range.len().div_ceil(cluster),
    }
}
