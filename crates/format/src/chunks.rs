//! Bytes that come in small pieces, gathered into long writes.

use std::collections::VecDeque;

use blockferry_block::{Buffer, BufferPool};

/// How much is written in one request, in bytes, about.
const WRITTEN_AT_ONCE: u64 = 1 << 20;
/// How many buffers for that are kept.
const KEPT: usize = 4;

/// Long runs of bytes that are to be written.
pub(crate) struct Chunks {
    /// What writes are multiples of.
    block: usize,
    full: VecDeque<Chunk>,
    buffers: BufferPool,
}

/// Bytes that lie side by side in the file.
pub(crate) struct Chunk {
    /// Where they begin: a multiple of a block.
    pub(crate) start: u64,
    pub(crate) bytes: Buffer,
    length: usize,
    /// How many of the first were written before.
    written: usize,
}

impl Chunks {
    /// Chunks that are written in multiples of `block` bytes, and have room for `least` bytes at least.
    pub(crate) fn new(block: u64, least: u64) -> Self {
        Self {
            block: block as usize,
            full: VecDeque::new(),
            buffers: BufferPool::new(WRITTEN_AT_ONCE.max(least) as usize, KEPT),
        }
    }

    /// Adds bytes to a chunk, or to the next one. What begins a chunk lies at a multiple of a block.
    pub(crate) fn append(&mut self, open: &mut Option<Chunk>, offset: u64, bytes: &[u8]) {
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
    pub(crate) fn close(&mut self, mut chunk: Chunk) {
        let length = chunk.length.next_multiple_of(self.block);
        chunk.bytes[chunk.length..length].fill(0);
        chunk.bytes.set_len(length);
        self.full.push_back(chunk);
    }

    /// Lets what was added so far be written, although more comes behind it: a block that is not full is written
    /// again with that.
    pub(crate) fn close_so_far(&mut self, open: &mut Option<Chunk>) {
        let Some(chunk) = open.take_if(|chunk| !chunk.is_written()) else {
            return;
        };
        let rest = chunk.length % self.block;
        let whole = chunk.length - rest;
        let mut next = Chunk {
            start: chunk.start + whole as u64,
            bytes: self.buffers.take(self.buffers.capacity()),
            length: rest,
            written: rest,
        };
        next.bytes[..rest].copy_from_slice(&chunk.bytes[whole..chunk.length]);
        self.close(chunk);
        *open = Some(next);
    }

    /// How many are to be written.
    pub(crate) fn full(&self) -> usize {
        self.full.len()
    }

    /// Those that are to be written.
    pub(crate) fn take_full(&mut self) -> VecDeque<Chunk> {
        std::mem::take(&mut self.full)
    }
}

impl Chunk {
    fn end(&self) -> u64 {
        self.start + self.length as u64
    }

    /// Whether all of it was handed out to be written.
    pub(crate) fn is_written(&self) -> bool {
        self.written == self.length
    }
}
