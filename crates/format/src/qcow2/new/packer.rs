//! Where compressed clusters go: each right behind the last, in clusters of the file that they share, gathered into
//! long writes. What would not become smaller goes to clusters of its own.

use std::{collections::VecDeque, sync::Arc};

use blockferry_block::{Error, ErrorKind, Result};

use super::{map::Table, places::Places};
use crate::{
    chunks::{Chunk, Chunks},
    pipeline::{Packed, Packer},
    qcow2::{
        entry::{Cluster, Compressed, Entry, SECTOR},
        geometry::Geometry,
        refcounts::largest,
    },
};

/// How many clusters that are not compressed are taken at a time, in bytes at most.
const TAKEN_AT_ONCE: u64 = 1 << 20;

/// Gives places to streams and clusters, one after the other, and gathers them.
pub(super) struct ClusterPacker {
    places: Arc<Places>,
    /// The size in it is not looked at.
    geometry: Geometry,
    cluster: u64,
    /// How many streams can touch a cluster of the file.
    most_streams: u64,
    /// The largest offset that a stream can have.
    most_offset: u64,
    /// Where the next stream goes; at the end of the clusters that were taken for streams where it is their multiple.
    position: u64,
    /// How many streams touch the cluster that it is in.
    streams: u64,
    /// Clusters that were taken for what is not compressed: from here
    plain: u64,
    /// to here.
    plain_end: u64,
    /// How many are taken next time.
    plain_batch: u64,
    packed_chunk: Option<Chunk>,
    plain_chunk: Option<Chunk>,
    chunks: Chunks,
}

impl ClusterPacker {
    /// Packs into a file of `geometry`, of which `places` gives clusters, written in multiples of `block`.
    pub(super) fn new(geometry: Geometry, places: Arc<Places>, block: u64) -> Self {
        let cluster = geometry.cluster_size();
        Self {
            places,
            geometry,
            cluster,
            most_streams: largest(geometry.refcount_order),
            most_offset: Compressed::most_offset(geometry),
            position: 0,
            streams: 0,
            plain: 0,
            plain_end: 0,
            plain_batch: 1,
            packed_chunk: None,
            plain_chunk: None,
            chunks: Chunks::new(block.max(SECTOR), cluster),
        }
    }

    /// Takes a stream, and says where it goes.
    fn add_stream(&mut self, stream: &[u8]) -> Result<Compressed> {
        let length = stream.len() as u64;
        let offset = self.place_stream(length)?;
        self.chunks.append(&mut self.packed_chunk, offset, stream);
        // Up to the end of the last sector.
        let end = (offset + length).next_multiple_of(SECTOR);
        let length = end - offset;
        Ok(Compressed { offset, length })
    }

    /// Takes a cluster as it is, and says where it goes.
    fn add_plain(&mut self, cluster: &[u8]) -> Result<u64> {
        if self.plain == self.plain_end {
            let start = self.places.take(self.plain_batch)?;
            (self.plain, self.plain_end) = (start, start + self.plain_batch * self.cluster);
            let most = (TAKEN_AT_ONCE / self.cluster).max(1);
            self.plain_batch = (self.plain_batch * 2).min(most);
        }
        let host = self.plain;
        self.plain += self.cluster;
        self.chunks.append(&mut self.plain_chunk, host, cluster);
        Ok(host)
    }

    fn place_stream(&mut self, length: u64) -> Result<u64> {
        let cluster = self.cluster;
        if self.streams >= self.most_streams {
            self.position = self.position.next_multiple_of(cluster);
            self.streams = 0;
        }
        let taken = self.position.next_multiple_of(cluster);
        let needed = (self.position + length).next_multiple_of(cluster);
        let more = (needed - taken) / cluster;
        let goes_on = self.position > 0 && (more == 0 || self.places.take_at(taken, more));
        if !goes_on {
            self.position = self.places.take(length.div_ceil(cluster))?;
            self.streams = 0;
        }
        let offset = self.position;
        if offset > self.most_offset {
            let message = format!(
                "compressed clusters of {cluster} bytes cannot lie behind the first {} bytes of a file",
                self.most_offset
            );
            return Err(Error::with_message(ErrorKind::NoSpace, message));
        }
        self.position += length;
        let is_another = (self.position - 1) / cluster != offset / cluster;
        self.streams = match self.position % cluster {
            0 => 0,
            _ if is_another => 1,
            _ => self.streams + 1,
        };
        Ok(offset)
    }

    /// Nothing more comes: clusters that were taken and not used go back where that is possible.
    pub(super) fn end(&mut self) {
        self.places.give_back_last(self.plain, self.plain_end);
        self.plain_end = self.plain;
    }
}

/// Blocks belong to entries of a table that say that they are pending, from one on.
impl Packer for ClusterPacker {
    type Place = (Arc<Table>, usize);

    fn pack(&mut self, packed: &Packed<Self::Place>) -> Result<()> {
        let (table, first) = packed.place();
        for (at, (bytes, stream)) in (*first..).zip(packed.blocks()) {
            let cluster = match stream {
                Some(stream) => Cluster::Compressed(self.add_stream(stream)?),
                None => Cluster::Data {
                    host: self.add_plain(bytes)?,
                },
            };
            table.replace(at, Entry::encode(cluster, self.geometry));
        }
        Ok(())
    }

    fn full(&self) -> usize {
        self.chunks.full()
    }

    fn take_full(&mut self) -> VecDeque<Chunk> {
        self.chunks.take_full()
    }

    fn is_empty(&self) -> bool {
        let is_written = |chunk: &Option<Chunk>| chunk.as_ref().is_none_or(Chunk::is_written);
        self.chunks.full() == 0 && is_written(&self.packed_chunk) && is_written(&self.plain_chunk)
    }

    fn take_all(&mut self) -> VecDeque<Chunk> {
        if let Some(chunk) = self.plain_chunk.take() {
            self.chunks.close(chunk);
        }
        self.chunks.close_so_far(&mut self.packed_chunk);
        self.chunks.take_full()
    }
}
