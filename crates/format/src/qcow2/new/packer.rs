//! Where compressed clusters go: each right behind the last, in clusters of the file that they share, gathered into
//! long writes. What would not become smaller goes to clusters of its own.

use std::{collections::VecDeque, sync::Arc};

use blockferry_block::{Buffer, BufferPool, Error, ErrorKind, Result};

use super::places::Places;
use crate::qcow2::{
    entry::{Compressed, SECTOR},
    geometry::Geometry,
    refcounts::largest,
};

/// How much is written in one request, in bytes, about.
const WRITTEN_AT_ONCE: u64 = 1 << 20;
/// How many buffers for that are kept.
const KEPT: usize = 4;

/// Gives places to streams and clusters, one after the other, and gathers them.
pub(super) struct Packer {
    places: Arc<Places>,
    cluster: u64,
    /// What writes are multiples of.
    block: u64,
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
    full: VecDeque<Chunk>,
    buffers: BufferPool,
}

/// Bytes that lie side by side in the file.
pub(super) struct Chunk {
    /// Where they begin: a multiple of a block.
    pub(super) start: u64,
    pub(super) bytes: Buffer,
    length: usize,
    /// How many of the first were written before.
    written: usize,
}

impl Packer {
    /// Packs into a file of `geometry`, of which `places` gives clusters, written in multiples of `block`.
    pub(super) fn new(geometry: Geometry, places: Arc<Places>, block: u64) -> Self {
        let cluster = geometry.cluster_size();
        Self {
            places,
            cluster,
            block: block.max(SECTOR),
            most_streams: largest(geometry.refcount_order),
            most_offset: Compressed::most_offset(geometry),
            position: 0,
            streams: 0,
            plain: 0,
            plain_end: 0,
            plain_batch: 1,
            packed_chunk: None,
            plain_chunk: None,
            full: VecDeque::new(),
            buffers: BufferPool::new(WRITTEN_AT_ONCE.max(cluster) as usize, KEPT),
        }
    }

    /// Takes a stream, and says where it goes.
    pub(super) fn add_stream(&mut self, stream: &[u8]) -> Result<Compressed> {
        let length = stream.len() as u64;
        let offset = self.place_stream(length)?;
        let mut chunk = self.packed_chunk.take();
        self.append(&mut chunk, offset, stream);
        self.packed_chunk = chunk;
        // Up to the end of the last sector.
        let end = (offset + length).next_multiple_of(SECTOR);
        let length = end - offset;
        Ok(Compressed { offset, length })
    }

    /// Takes a cluster as it is, and says where it goes.
    pub(super) fn add_plain(&mut self, cluster: &[u8]) -> Result<u64> {
        if self.plain == self.plain_end {
            let start = self.places.take(self.plain_batch)?;
            (self.plain, self.plain_end) = (start, start + self.plain_batch * self.cluster);
            let most = (WRITTEN_AT_ONCE / self.cluster).max(1);
            self.plain_batch = (self.plain_batch * 2).min(most);
        }
        let host = self.plain;
        self.plain += self.cluster;
        let mut chunk = self.plain_chunk.take();
        self.append(&mut chunk, host, cluster);
        self.plain_chunk = chunk;
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

    /// Adds bytes to a chunk, or to the next one.
    fn append(&mut self, open: &mut Option<Chunk>, offset: u64, bytes: &[u8]) {
        if let Some(chunk) = open.take_if(|chunk| chunk.end() != offset)
            && !chunk.is_written()
        {
            self.close(chunk);
        }
        let (mut offset, mut bytes) = (offset, bytes);
        while !bytes.is_empty() {
            let chunk = open.get_or_insert_with(|| Chunk {
                start: offset,
                bytes: self.buffers.take(self.buffers.capacity()),
                length: 0,
                written: 0,
            });
            let room = &mut chunk.bytes[chunk.length..];
            let (part, rest) = bytes.split_at(bytes.len().min(room.len()));
            room[..part.len()].copy_from_slice(part);
            chunk.length += part.len();
            offset += part.len() as u64;
            bytes = rest;
            if let Some(chunk) = open.take_if(|chunk| chunk.length == chunk.bytes.len()) {
                self.full.push_back(chunk);
            }
        }
    }

    /// No more is added to the chunk; what is missing to a block is zero.
    fn close(&mut self, mut chunk: Chunk) {
        let length = chunk.length.next_multiple_of(self.block as usize);
        chunk.bytes[chunk.length..length].fill(0);
        chunk.bytes.set_len(length);
        self.full.push_back(chunk);
    }

    /// How many chunks are to be written.
    pub(super) fn full(&self) -> usize {
        self.full.len()
    }

    /// The chunks that are to be written.
    pub(super) fn take_full(&mut self) -> VecDeque<Chunk> {
        std::mem::take(&mut self.full)
    }

    /// Whether all that was added was taken to be written.
    pub(super) fn is_empty(&self) -> bool {
        let is_written = |chunk: &Option<Chunk>| chunk.as_ref().is_none_or(Chunk::is_written);
        self.full.is_empty() && is_written(&self.packed_chunk) && is_written(&self.plain_chunk)
    }

    /// All that is to be written, also what is not much yet. A block that is not full is written again with what
    /// comes next.
    pub(super) fn take_all(&mut self) -> VecDeque<Chunk> {
        if let Some(chunk) = self.plain_chunk.take() {
            self.close(chunk);
        }
        match self.packed_chunk.take() {
            Some(chunk) if !chunk.is_written() => {
                let rest = chunk.length % self.block as usize;
                let whole = chunk.length - rest;
                let mut next = Chunk {
                    start: chunk.start + whole as u64,
                    bytes: self.buffers.take(self.buffers.capacity()),
                    length: rest,
                    written: rest,
                };
                next.bytes[..rest].copy_from_slice(&chunk.bytes[whole..chunk.length]);
                self.close(chunk);
                self.packed_chunk = Some(next);
            }
            written => self.packed_chunk = written,
        }
        std::mem::take(&mut self.full)
    }

    /// Nothing more comes: clusters that were taken and not used go back where that is possible.
    pub(super) fn end(&mut self) {
        self.places.give_back_last(self.plain, self.plain_end);
        self.plain_end = self.plain;
    }
}

impl Chunk {
    fn end(&self) -> u64 {
        self.start + self.length as u64
    }

    fn is_written(&self) -> bool {
        self.written == self.length
    }
}
