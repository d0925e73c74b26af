//! Which clusters of the file are free (specification, "Host cluster management"): the refcount table, as many blocks
//! of refcounts as there is room for, and how both grow.
//!
//! Everything changes in memory alone. What was changed is taken out as [`Changes`], which are written in their
//! order, and then are told to have been [`written`](Allocator::written), or to have [`failed`](Allocator::failed).
//! A refcount in the file may be too high at any time, never too low for what the file's tables say: whoever lowers
//! one does it after the tables were written.

mod end;
mod grow;

use std::collections::{BTreeSet, HashMap};

use blockferry_block::{Buffer, ByteRange, Capabilities, Error, ErrorKind, Result};

use super::{
    geometry::{Geometry, corrupt},
    header::{Header, be64},
    host::HostFile,
    pieces::{Piece, part_size, parts_of, ranges_of, write_pieces},
    refcounts::{BLOCK_OFFSET, largest, refcount, set_refcount},
};

/// The memory for blocks of refcounts that are as they are in the file, in bytes. Changed ones are kept besides.
const BLOCK_MEMORY: u64 = 4 << 20;

/// Clusters beyond this cannot be named by an entry of a table.
pub(crate) const MOST_OFFSET: u64 = 1 << 56;

/// Clusters of the file that lie in a row, by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Clusters {
    pub(crate) first: u64,
    pub(crate) count: u64,
}

impl Clusters {
    /// The first `count` of them (or all, when there are fewer) and the rest.
    pub(crate) fn split_at(self, count: u64) -> (Self, Self) {
        let count = count.min(self.count);
        let rest = Self {
            first: self.first + count,
            count: self.count - count,
        };
        (Self { count, ..self }, rest)
    }
}

/// What is to be written, in this order: `new`, a flush, `table` and `others`.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Blocks that the refcount table does not name yet.
    pub(crate) new: Vec<Piece>,
    /// Of the refcount table.
    pub(crate) table: Vec<Piece>,
    /// Of blocks that it names.
    pub(crate) others: Vec<Piece>,
    blocks: Vec<Taken>,
    parts: BTreeSet<u64>,
}

#[derive(Debug)]
struct Taken {
    index: u64,
    parts: u64,
    is_new: bool,
}

impl Changes {
    /// Writes them in their order, to where they lie in `file`. What is written last is not flushed.
    pub(crate) async fn write(&self, file: &HostFile) -> Result<()> {
        if !self.new.is_empty() {
            write_pieces(file, &self.new).await?;
            file.device().flush().await?;
        }
        write_pieces(file, &self.table).await?;
        write_pieces(file, &self.others).await
    }
}

/// The refcounts of an image that is written.
pub(crate) struct Allocator {
    geometry: Geometry,
    file: HostFile,
    /// What must never be handed out, whatever the refcounts say.
    reserved: Vec<ByteRange>,
    /// Places of blocks; 0 where there is none.
    table: Vec<u64>,
    table_place: ByteRange,
    /// Parts of the table that are not in the file.
    table_parts: BTreeSet<u64>,
    blocks: HashMap<u64, Block>,
    /// No cluster before this one is free.
    hint: u64,
    clock: u64,
}

struct Block {
    bytes: Vec<u8>,
    /// Parts that are not in the file, a bit for each.
    parts: u64,
    /// Changes of it are being written.
    is_busy: bool,
    /// The table in the file does not name it.
    is_new: bool,
    last_use: u64,
}

impl Allocator {
    /// Reads the refcount table of the image in `file`.
    ///
    /// # Errors
    /// `Corrupt` where it does not lie in the file, or a block cannot lie where it says; what reading failed with.
    pub(crate) async fn open(file: HostFile, header: &Header) -> Result<Self> {
        let (geometry, place) = (header.geometry, header.refcount_table);
        let table = read_refcount_table(&file, header).await?;
        let first = ByteRange::between(0, geometry.cluster_size());
        Ok(Self {
            geometry,
            reserved: vec![first, header.l1, place],
            file,
            table,
            table_place: place,
            table_parts: BTreeSet::new(),
            blocks: HashMap::new(),
            hint: 0,
            clock: 0,
        })
    }

    /// Takes free clusters in a row, `most` (not 0) at most and one at least: their refcounts are 1 from now on.
    /// `None` where the refcount table must [grow](Self::grow) first.
    ///
    /// # Errors
    /// `NoSpace` where the file cannot grow; `Corrupt` where clusters in use are called free; what reading refcounts
    /// failed with.
    pub(crate) async fn allocate(&mut self, most: u64) -> Result<Option<Clusters>> {
        let each = self.geometry.refcounts_per_block();
        let order = self.geometry.refcount_order;
        loop {
            let index = self.hint / each;
            let Some(&place) = usize::try_from(index)
                .ok()
                .and_then(|at| self.table.get(at))
            else {
                return Ok(None);
            };
            if place == 0 {
                let own = Clusters {
                    first: self.hint,
                    count: 1,
                };
                self.check_room(own)?;
                self.add_block(index, own.first);
                self.set(index, (own.first % each) as usize, 1);
                self.hint += 1;
                continue;
            }
            self.load(index).await?;
            let block = &self.blocks[&index].bytes;
            let is_free = |at: &u64| refcount(block, order, *at as usize) == 0;
            let Some(at) = (self.hint % each..each).find(is_free) else {
                self.hint = (index + 1) * each;
                continue;
            };
            let first = index * each + at;
            let wanted = (at..each.min(at.saturating_add(most))).take_while(is_free);
            let mut run = Clusters {
                first,
                count: wanted.count() as u64,
            };
            self.hint = first;
            run.count = self.check_room(run)?;
            for at in at..at + run.count {
                self.set(index, at as usize, 1);
            }
            self.hint = first + run.count;
            return Ok(Some(run));
        }
    }

    /// Lowers the refcounts of clusters by one. What has no use left is free at once. Says for how many of them it
    /// was done, also where reading refcounts failed in between.
    pub(crate) async fn release(&mut self, clusters: Clusters) -> (u64, Result<()>) {
        let each = self.geometry.refcounts_per_block();
        for done in 0..clusters.count {
            let cluster = clusters.first + done;
            let (index, at) = (cluster / each, (cluster % each) as usize);
            if !self.counts(cluster) {
                continue;
            }
            if let Err(error) = self.load(index).await {
                return (done, Err(error));
            }
            let block = &self.blocks[&index].bytes;
            match refcount(block, self.geometry.refcount_order, at) {
                // It was wrong before: there is nothing to lower.
                0 => {}
                count => {
                    self.set(index, at, count - 1);
                    if count == 1 {
                        self.hint = self.hint.min(cluster);
                    }
                }
            }
        }
        (clusters.count, Ok(()))
    }

    /// Whether the refcount of a cluster is one, so that lowering it makes it free.
    ///
    /// # Errors
    /// What reading refcounts failed with.
    pub(crate) async fn is_single(&mut self, cluster: u64) -> Result<bool> {
        let each = self.geometry.refcounts_per_block();
        if !self.counts(cluster) {
            return Ok(false);
        }
        let index = cluster / each;
        self.load(index).await?;
        let (block, order) = (&self.blocks[&index].bytes, self.geometry.refcount_order);
        Ok(refcount(block, order, (cluster % each) as usize) == 1)
    }

    /// Whether there is a block that has the refcount of a cluster.
    pub(crate) fn counts(&self, cluster: u64) -> bool {
        let index = cluster / self.geometry.refcounts_per_block();
        let place = usize::try_from(index).ok();
        place.is_some_and(|at| self.table.get(at).is_some_and(|place| *place != 0))
    }

    /// Lets the refcount of a cluster be `refcount`, which is what its uses are, if there is a block that has it.
    ///
    /// # Errors
    /// What reading refcounts failed with.
    pub(crate) async fn correct(&mut self, cluster: u64, refcount: u64) -> Result<()> {
        if !self.counts(cluster) {
            return Ok(());
        }
        let each = self.geometry.refcounts_per_block();
        self.load(cluster / each).await?;
        self.set(cluster / each, (cluster % each) as usize, refcount);
        Ok(())
    }

    /// Whether anything is not in the file.
    pub(crate) fn is_changed(&self) -> bool {
        !self.table_parts.is_empty() || self.blocks.values().any(|block| block.parts != 0)
    }

    /// How many bytes of memory changed blocks take.
    pub(crate) fn changed_bytes(&self) -> u64 {
        let changed = self.blocks.values().filter(|block| block.parts != 0);
        changed.count() as u64 * self.geometry.cluster_size()
    }

    /// What is not in the file. Nothing else is taken until this is told to be [`written`](Self::written), or to have
    /// [`failed`](Self::failed).
    pub(crate) fn take_changes(&mut self) -> Changes {
        let part = part_size(self.geometry, &self.file);
        let mut changes = Changes::default();
        for (index, block) in &mut self.blocks {
            if block.parts == 0 {
                continue;
            }
            let place = self.table[*index as usize];
            changes.blocks.push(Taken {
                index: *index,
                parts: block.parts,
                is_new: block.is_new,
            });
            let parts = if block.is_new { u64::MAX } else { block.parts };
            let pieces = match block.is_new {
                true => &mut changes.new,
                false => &mut changes.others,
            };
            let size = block.bytes.len() as u64;
            for range in ranges_of(parts, part) {
                let range = range.start.min(size)..range.end.min(size);
                if !range.is_empty() {
                    pieces.push(Piece {
                        offset: place + range.start,
                        bytes: block.bytes[range.start as usize..range.end as usize].to_vec(),
                    });
                }
            }
            block.parts = 0;
            block.is_busy = true;
        }
        changes.parts = std::mem::take(&mut self.table_parts);
        for index in &changes.parts {
            changes.table.push(self.table_piece(*index));
        }
        changes
    }

    /// The changes are in the file, and flushed.
    pub(crate) fn written(&mut self, changes: &Changes) {
        for taken in &changes.blocks {
            if let Some(block) = self.blocks.get_mut(&taken.index) {
                block.is_busy = false;
                block.is_new = false;
            }
        }
    }

    /// Nobody knows which of the changes are in the file.
    pub(crate) fn failed(&mut self, changes: Changes) {
        for taken in changes.blocks {
            if let Some(block) = self.blocks.get_mut(&taken.index) {
                block.is_busy = false;
                block.is_new = taken.is_new;
                block.parts |= taken.parts;
            }
        }
        self.table_parts.extend(changes.parts);
    }

    /// How many of the clusters may be handed out.
    fn check_room(&self, clusters: Clusters) -> Result<u64> {
        let size = self.geometry.cluster_size();
        let info = self.file.device().info();
        let end = match info.can(Capabilities::RESIZE) {
            true => MOST_OFFSET,
            false => info.size.min(MOST_OFFSET),
        };
        let room = (end / size).saturating_sub(clusters.first);
        if room == 0 {
            return Err(no_space("there is no room in the image's file"));
        }
        let count = clusters.count.min(room);
        let range = ByteRange::between(clusters.first * size, (clusters.first + count) * size);
        let mut reserved = self.reserved.iter();
        match reserved.find(|reserved| !reserved.intersection(range).is_empty()) {
            None => Ok(count),
            Some(reserved) => Err(corrupt(format!(
                "the refcounts are wrong: clusters of tables are called free, at {:#x}",
                reserved.start()
            ))),
        }
    }

    /// Adds a block for `index`, which lies in its own cluster.
    fn add_block(&mut self, index: u64, cluster: u64) {
        self.table[index as usize] = cluster * self.geometry.cluster_size();
        self.table_parts.insert(index * 8 / self.table_part());
        self.clock += 1;
        let block = Block {
            bytes: vec![0; self.geometry.cluster_size() as usize],
            parts: 0,
            is_busy: false,
            is_new: true,
            last_use: self.clock,
        };
        self.blocks.insert(index, block);
    }

    fn set(&mut self, index: u64, at: usize, value: u64) {
        let order = self.geometry.refcount_order;
        let part = part_size(self.geometry, &self.file);
        let Some(block) = self.blocks.get_mut(&index) else {
            return;
        };
        set_refcount(&mut block.bytes, order, at, value.min(largest(order)));
        let byte = ((at as u64) << order) / 8;
        block.parts |= parts_of(byte..byte + 1, part);
    }

    /// Reads a block that the table names, unless it is here.
    async fn load(&mut self, index: u64) -> Result<()> {
        self.clock += 1;
        let clock = self.clock;
        if let Some(block) = self.blocks.get_mut(&index) {
            block.last_use = clock;
            return Ok(());
        }
        let place = self.table[index as usize];
        let buffer = Buffer::zeroed(self.geometry.cluster_size() as usize);
        let name = || "a block of refcounts".to_owned();
        let bytes = self.file.read_padded(place, buffer, name).await?;
        let most = (BLOCK_MEMORY >> self.geometry.cluster_bits).max(2) as usize;
        while self.blocks.len() >= most && self.forget_one() {}
        let block = Block {
            bytes: bytes.to_vec(),
            parts: 0,
            is_busy: false,
            is_new: false,
            last_use: clock,
        };
        self.blocks.insert(index, block);
        Ok(())
    }

    fn forget_one(&mut self) -> bool {
        let blocks = self.blocks.iter();
        let unchanged = blocks.filter(|(_, it)| it.parts == 0 && !it.is_busy && !it.is_new);
        let oldest = unchanged.min_by_key(|(_, it)| it.last_use);
        let index = oldest.map(|(index, _)| *index);
        index.is_some_and(|index| self.blocks.remove(&index).is_some())
    }

    /// The size of the parts that the refcount table is written in.
    fn table_part(&self) -> u64 {
        part_size(self.geometry, &self.file)
    }

    fn table_piece(&self, index: u64) -> Piece {
        let part = self.table_part();
        let first = (index * part / 8) as usize;
        let end = self.table.len().min(first + (part / 8) as usize);
        let words = self.table[first..end].iter();
        Piece {
            offset: self.table_place.start() + index * part,
            bytes: words.flat_map(|word| word.to_be_bytes()).collect(),
        }
    }
}

/// The places of blocks of refcounts in the image in `file`; 0 where there is none.
///
/// # Errors
/// `Corrupt` where the table does not lie in the file, or a block cannot lie where it says; what reading failed with.
pub(crate) async fn read_refcount_table(file: &HostFile, header: &Header) -> Result<Vec<u64>> {
    let (geometry, place) = (header.geometry, header.refcount_table);
    let buffer = Buffer::zeroed(place.len() as usize);
    let name = || "the refcount table".to_owned();
    let bytes = file.read_padded(place.start(), buffer, name).await?;
    let words = bytes.chunks_exact(8).map(|word| be64(word, 0));
    let table: Vec<u64> = words.collect();
    for word in &table {
        if word & !BLOCK_OFFSET != 0 || !geometry.is_aligned(*word) || *word >= MOST_OFFSET {
            return Err(corrupt(format!(
                "no block of refcounts can be at {word:#x}"
            )));
        }
    }
    Ok(table)
}

fn no_space(message: &str) -> Error {
    Error::with_message(ErrorKind::NoSpace, message)
}
