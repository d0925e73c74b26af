//! Bitmaps that are made, removed, cleared, merged, enabled and disabled in place.
//!
//! What changes is written to new clusters, the directory too, and the [header](super::switch) says so once all of it is
//! durable; what is not used any more is given up after that. So a crash at any point loses space at worst, and the
//! image has the old bitmaps or the new ones.

use std::sync::Arc;

use blockferry_block::{BlockDevice, Buffer, ByteRange, ErrorKind, Operation, Result};

use super::{
    Bitmap, Bits,
    directory::{Directory, granularity_for, refuse},
    encode_directory,
    merge::{Merged, Source},
    read_directory,
    room::Room,
    switch::Switch,
};
use crate::qcow2::{
    allocate::Clusters,
    check::mend_dirty,
    geometry::Geometry,
    header::{BitmapsExtension, Header, be64},
    host::HostFile,
    write::check_writable,
};

/// Entries of an old table are read so many at a time.
const TABLE_PIECE: u64 = 64 << 10;

/// What is done to a bitmap of an image.
#[derive(Clone)]
#[non_exhaustive]
pub enum BitmapChange {
    /// It is made: enabled, with nothing dirty.
    Add {
        /// How many bytes of the disk one bit stands for: a power of two, 512 to 2 GiB. By default the size of a
        /// cluster, but 4 KiB at least and 64 KiB at most.
        granularity: Option<u64>,
    },
    /// It is removed. Of one that is in use nothing else can be done.
    Remove,
    /// Nothing is dirty in it any more.
    Clear,
    /// Whoever writes the disk is to track it there.
    Enable,
    /// Nobody is to track anything in it.
    Disable,
    /// What is dirty in another bitmap is dirty in it, too.
    Merge {
        /// The other one's name.
        source: String,
        /// The file of the qcow2 image that has it, whose disk has the same size; `None` for the same image.
        image: Option<Arc<dyn BlockDevice>>,
    },
}

/// Changes the bitmap `name` of the image in `below`, durably. Nobody else uses the image meanwhile; `below` can grow
/// ([`Capabilities::RESIZE`](blockferry_block::Capabilities::RESIZE)) where the image needs room. No other file that it
/// names is opened.
///
/// A crash at any point loses space at worst.
///
/// # Errors
/// `NotFound` where there is no such bitmap; `InvalidInput` for one that is there already or cannot be as it is
/// wanted; `Unsupported` for one that is in use or of a kind that is not known here, and for images of version 2;
/// as those of opening the image for writing; `NoSpace`, what reading and writing failed with.
pub async fn change_bitmap(
    below: Arc<dyn BlockDevice>,
    name: &str,
    change: &BitmapChange,
) -> Result<()> {
    let changed = change_inside(HostFile::new(below), name, change).await;
    changed.map_err(|error| error.during(Operation::Write))
}

async fn change_inside(file: HostFile, name: &str, change: &BitmapChange) -> Result<()> {
    let header = Header::read(&**file.device()).await?;
    let directory = Directory::read(&file, &header).await?;
    // Nothing is mended of an image that is not changed.
    directory.check(name, change, &header)?;
    let header = mend_dirty(&file, header).await?;
    check_writable(&header, [&file, &file]).map_err(|error| error.during(Operation::Open))?;
    let changing = Changing {
        file: &file,
        header: &header,
        directory: Directory::read(&file, &header).await?,
    };
    match change {
        BitmapChange::Add { granularity } => changing.add(name, *granularity).await,
        BitmapChange::Remove => changing.remove(name).await,
        BitmapChange::Clear => changing.clear(name).await,
        BitmapChange::Enable => changing.enable(name, true).await,
        BitmapChange::Disable => changing.enable(name, false).await,
        BitmapChange::Merge { source, image } => {
            changing.merge(name, source, image.as_deref()).await
        }
    }
}

/// An image whose bitmaps change.
struct Changing<'a> {
    file: &'a HostFile,
    header: &'a Header,
    directory: Directory,
}

/// A table that nothing points to any more.
struct OldTable<'a> {
    range: ByteRange,
    /// What of it is in use still: the table in its place.
    kept: &'a [u64],
}

impl Changing<'_> {
    async fn add(&self, name: &str, granularity: Option<u64>) -> Result<()> {
        let geometry = self.header.geometry;
        let granularity = granularity_for(granularity, geometry);
        self.directory.check_new(name, granularity, geometry)?;
        let mut bitmap = Bitmap::new(name, granularity);
        let entries = bitmap.entries_for(geometry);
        let mut room = Room::open(self.file, self.header).await?;
        let stored = async {
            let place = room.store(&vec![0; entries as usize * 8]).await?;
            bitmap.table = ByteRange::between(place, place + entries * 8);
            let new = encode_directory(std::slice::from_ref(&bitmap));
            self.store_directory(&[&self.directory.bytes[..], &new].concat(), 1, &mut room)
                .await
        };
        let stored = stored.await;
        self.finish(stored.map(Some), room, None).await
    }

    async fn remove(&self, name: &str) -> Result<()> {
        let (index, bitmap) = self.directory.find(name)?;
        let mut room = Room::open(self.file, self.header).await?;
        let mut bytes = self.directory.bytes.clone();
        bytes.drain(self.directory.entry(index));
        let stored = match bytes.is_empty() {
            true => Ok(None),
            false => {
                let stored = self.store_directory(&bytes, -1, &mut room).await;
                stored.map(Some)
            }
        };
        let old = OldTable {
            range: bitmap.table,
            kept: &[],
        };
        self.finish(stored, room, Some(old)).await
    }

    async fn clear(&self, name: &str) -> Result<()> {
        let (_, bitmap) = self.directory.find(name)?;
        let words = bitmap.words(self.file, self.header.geometry).await?;
        if words.iter().all(|word| *word == 0) {
            return Ok(());
        }
        let room = Room::open(self.file, self.header).await?;
        let cleared = vec![0; words.len()];
        self.replace_table(name, &cleared, room).await
    }

    async fn enable(&self, name: &str, is_enabled: bool) -> Result<()> {
        let (_, bitmap) = self.directory.find(name)?;
        let Some((place, flags)) = bitmap.flags else {
            return Ok(());
        };
        let wanted = Bitmap::enabled(flags, is_enabled);
        if wanted == flags {
            return Ok(());
        }
        Switch::read(self.file, self.header).await?.begin().await?;
        self.file.patch(place, &wanted.to_be_bytes()).await?;
        self.file.device().flush().await
    }

    async fn merge(&self, name: &str, source: &str, image: Option<&dyn BlockDevice>) -> Result<()> {
        let geometry = self.header.geometry;
        let (_, bitmap) = self.directory.find(name)?;
        let other = match image {
            None => None,
            Some(below) => {
                let header = Header::read(below).await?;
                let bitmaps = read_directory(below, &header).await?;
                let directory = Directory {
                    bitmaps,
                    bytes: Vec::new(),
                    place: ByteRange::default(),
                };
                Some((below, header.geometry, directory))
            }
        };
        let source = match &other {
            None => Source {
                below: &**self.file.device(),
                geometry,
                bitmap: self.directory.find(source)?.1,
            },
            Some((below, geometry, directory)) => Source {
                below: *below,
                geometry: *geometry,
                bitmap: directory.find(source)?.1,
            },
        };
        source.bitmap.check_usable(source.geometry)?;
        if source.geometry.size != geometry.size {
            let message = format!(
                "bitmaps of disks of different sizes cannot be merged: {} bytes, and {} bytes where the other one is",
                geometry.size, source.geometry.size
            );
            return refuse(ErrorKind::InvalidInput, message);
        }
        if other.is_none() && source.bitmap.details.name == name {
            return Ok(());
        }
        let words = bitmap.words(self.file, geometry).await?;
        let mut room = Room::open(self.file, self.header).await?;
        let merged = Merged::new(bitmap, self.file, geometry, words);
        match merged.merge(&source, &mut room).await {
            Ok(None) => Ok(()),
            Ok(Some(words)) => self.replace_table(name, &words, room).await,
            Err(error) => {
                room.give_back().await;
                Err(error)
            }
        }
    }

    /// Gives the bitmap the table `words` in the place of its own.
    async fn replace_table(&self, name: &str, words: &[u64], mut room: Room<'_>) -> Result<()> {
        let (index, bitmap) = self.directory.find(name)?;
        let stored = async {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
            let place = room.store(&bytes).await?;
            let table = ByteRange::between(place, place + bytes.len() as u64);
            let directory = self.directory.with_table(index, table);
            self.store_directory(&directory, 0, &mut room).await
        };
        let stored = stored.await;
        let old = OldTable {
            range: bitmap.table,
            kept: words,
        };
        self.finish(stored.map(Some), room, Some(old)).await
    }

    /// Stores a directory of `more` bitmaps than there are.
    async fn store_directory(
        &self,
        bytes: &[u8],
        more: i32,
        room: &mut Room<'_>,
    ) -> Result<BitmapsExtension> {
        let place = room.store(bytes).await?;
        Ok(BitmapsExtension {
            count: (self.directory.bitmaps.len() as u32).saturating_add_signed(more),
            directory: ByteRange::between(place, place + bytes.len() as u64),
        })
    }

    /// Lets the header have what was stored, and gives up what it had before.
    async fn finish(
        &self,
        stored: Result<Option<BitmapsExtension>>,
        mut room: Room<'_>,
        old: Option<OldTable<'_>>,
    ) -> Result<()> {
        let prepared = async {
            let switch = Switch::read(self.file, self.header).await?;
            let plan = switch.plan(stored?)?;
            room.settle().await?;
            switch.begin().await?;
            Ok((plan, switch))
        };
        let (plan, switch) = match prepared.await {
            Ok(prepared) => prepared,
            Err(error) => {
                room.give_back().await;
                return Err(error);
            }
        };
        switch.carry_out(&plan).await?;
        // If this fails, space is lost and nothing else.
        let _ = self.give_up(old, &mut room).await;
        Ok(())
    }

    async fn give_up(&self, old: Option<OldTable<'_>>, room: &mut Room<'_>) -> Result<()> {
        let geometry = self.header.geometry;
        room.free(clusters_of(self.directory.place, geometry))
            .await?;
        if let Some(old) = old {
            let mut index = 0;
            for piece in old.range.pieces(TABLE_PIECE * 8) {
                let buffer = Buffer::zeroed(piece.len() as usize);
                let bytes = self.file.read(piece.start(), buffer).await?;
                for word in bytes.chunks_exact(8).map(|word| be64(word, 0)) {
                    let is_kept = old.kept.get(index) == Some(&word);
                    index += 1;
                    if let (false, Ok(Bits::Host(host))) = (is_kept, Bits::decode(word, geometry)) {
                        let bits = ByteRange::between(host, host + geometry.cluster_size());
                        room.free(clusters_of(bits, geometry)).await?;
                    }
                }
            }
            room.free(clusters_of(old.range, geometry)).await?;
        }
        room.settle().await
    }
}

/// The clusters that lie under `range`, which begins with one.
fn clusters_of(range: ByteRange, geometry: Geometry) -> Clusters {
    let cluster = geometry.cluster_size();
    Clusters {
        first: range.start() / cluster,
        count: range.len().div_ceil(cluster),
    }
}

#[cfg(test)]
mod tests;
