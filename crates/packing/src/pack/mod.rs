//! A stream that is compressed as it is written: pieces on threads, put down in order.
//!
//! Each piece can be unpacked by itself, and is found without unpacking what is before it: gzip is written as BGZF
//! (the SAM/BAM specification, section 4.1), members of 64 KiB that say how long they are; zstd as frames with a seek
//! table behind them (contrib/seekable_format in zstd's sources). Whoever knows nothing of that reads a gzip file of
//! many members, or a zstd file of many frames.
//!
//! A piece of zeroes is compressed once and then written as often as it is needed.

mod encode;
mod threads;

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, BufferPool, ByteSink, Error, ErrorKind, Result, WriteFlags,
    is_zero,
};

use self::{
    encode::{Encoding, Piece},
    threads::{Answer, Threads},
};
use crate::Packing;

/// How much compressed data is written in one request, in bytes, about.
const WRITTEN_AT_ONCE: usize = 1 << 20;

/// The most threads that compress.
const MOST_THREADS: usize = 256;

/// How a disk is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PackOptions {
    /// As what: gzip or zstd.
    pub packing: Packing,
    /// How hard: 1 to 9 for gzip, 1 to 22 for zstd; `None`: what pays, 6 for gzip and 3 for zstd.
    pub level: Option<u32>,
    /// How many pieces are compressed at a time; 0: as many as there are processors.
    pub threads: usize,
}

impl PackOptions {
    /// `packing` as usual.
    #[must_use]
    pub fn new(packing: Packing) -> Self {
        Self {
            packing,
            level: None,
            threads: 0,
        }
    }
}

/// Where the compressed stream goes.
pub enum PackTarget {
    /// Into a device from its beginning on, which takes the size that it needs.
    Device(Arc<dyn BlockDevice>),
    /// Behind what was written to it before.
    Stream(Box<dyn ByteSink>),
}

/// Begins to pack into `target`. What is written to the sink is compressed; the other half ends the stream.
///
/// # Errors
/// `InvalidInput` for a packing that is not made, for a level that it has not, and where threads cannot be had.
pub fn pack(target: PackTarget, options: &PackOptions) -> Result<(PackSink, UnfinishedPack)> {
    let encoding = Encoding::new(options)?;
    let threads = match options.threads {
        0 => thread::available_parallelism().map_or(1, usize::from),
        threads => threads.min(MOST_THREADS),
    };
    let name = match &target {
        PackTarget::Device(device) => Arc::clone(&device.info().name),
        PackTarget::Stream(stream) => Arc::clone(stream.name()),
    };
    let pool = BufferPool::new(encoding.piece_length(), 2 * threads + 1);
    let packer = Packer {
        threads: Threads::start(encoding, threads)?,
        encoding,
        most_pending: 2 * threads,
        pending: VecDeque::new(),
        zeroes: 0,
        piece: None,
        pool,
        packed_zeroes: None,
        frames: Vec::new(),
        room: Vec::with_capacity(WRITTEN_AT_ONCE),
        output: Output {
            target,
            position: 0,
        },
    };
    let packer = Arc::new(Mutex::new(Some(Box::new(packer))));
    let unfinished = UnfinishedPack(Arc::clone(&packer));
    Ok((PackSink { name, packer }, unfinished))
}

/// Takes the bytes that are to be compressed. What was written is only sure to be there when it is
/// [finished](UnfinishedPack::finish).
pub struct PackSink {
    name: Arc<str>,
    packer: SharedPacker,
}

/// Ends the stream: until then it is none.
pub struct UnfinishedPack(SharedPacker);

/// `None` while it is in use, and after a failure.
type SharedPacker = Arc<Mutex<Option<Box<Packer>>>>;

impl ByteSink for PackSink {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn write(&mut self, data: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let mut packer = take(&self.packer)?;
            packer.add(&data).await?;
            put_back(&self.packer, packer);
            Ok(data)
        })
    }

    /// Does nothing: finishing does.
    fn flush(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

impl UnfinishedPack {
    /// Writes what is left, and what ends the stream, durably where that can be.
    ///
    /// # Errors
    /// What writing failed with, now or before: then the stream is none.
    pub async fn finish(self) -> Result<()> {
        let packer = take(&self.0)?;
        packer.finish().await
    }
}

fn take(shared: &SharedPacker) -> Result<Box<Packer>> {
    let mut packer = shared.lock().unwrap_or_else(PoisonError::into_inner);
    packer.take().ok_or_else(|| {
        let message = "something before it was not written";
        Error::with_message(ErrorKind::Io, message)
    })
}

fn put_back(shared: &SharedPacker, packer: Box<Packer>) {
    *shared.lock().unwrap_or_else(PoisonError::into_inner) = Some(packer);
}

/// What is between the bytes that come and the packed ones that go.
struct Packer {
    threads: Threads,
    encoding: Encoding,
    /// Pieces that are being compressed, or wait to be written, in order.
    pending: VecDeque<Pending>,
    most_pending: usize,
    /// The piece that is being filled begins with so many zeroes, which are nowhere.
    zeroes: usize,
    /// What comes behind them.
    piece: Option<Buffer>,
    pool: BufferPool,
    /// A whole piece of zeroes, compressed.
    packed_zeroes: Option<Arc<Piece>>,
    /// The lengths of what was written, packed and unpacked, for a table of them.
    frames: Vec<(u32, u32)>,
    /// What is to be written next.
    room: Vec<u8>,
    output: Output,
}

enum Pending {
    Piece(Answer),
    Zeroes(Arc<Piece>),
}

impl Packer {
    /// Takes `bytes`, and waits while too much is in memory.
    async fn add(&mut self, mut bytes: &[u8]) -> Result<()> {
        let whole = self.encoding.piece_length();
        while !bytes.is_empty() {
            let length = match &self.piece {
                None => self.zeroes,
                Some(piece) => piece.len(),
            };
            let (now, later) = bytes.split_at(bytes.len().min(whole - length));
            bytes = later;
            match &mut self.piece {
                None if is_zero(now) => self.zeroes += now.len(),
                None => {
                    let mut piece = self.pool.take(length + now.len());
                    piece[..length].fill(0);
                    piece[length..].copy_from_slice(now);
                    self.piece = Some(piece);
                }
                Some(piece) => {
                    piece.set_len(length + now.len());
                    piece[length..].copy_from_slice(now);
                }
            }
            if length + now.len() == whole {
                self.end_piece().await?;
            }
        }
        Ok(())
    }

    /// Sends the piece that was being filled on its way.
    async fn end_piece(&mut self) -> Result<()> {
        let zeroes = std::mem::take(&mut self.zeroes);
        let pending = match self.piece.take() {
            Some(piece) => Pending::Piece(self.threads.compress(piece)?),
            None if zeroes == self.encoding.piece_length() => {
                let packed = match &self.packed_zeroes {
                    Some(packed) => Arc::clone(packed),
                    None => {
                        let piece = self.threads.compress(Buffer::zeroed(zeroes))?;
                        let packed = Arc::new(piece.wait().await?);
                        Arc::clone(self.packed_zeroes.insert(packed))
                    }
                };
                Pending::Zeroes(packed)
            }
            None if zeroes > 0 => Pending::Piece(self.threads.compress(Buffer::zeroed(zeroes))?),
            None => return Ok(()),
        };
        self.pending.push_back(pending);
        while self.pending.len() > self.most_pending || self.is_first_ready() {
            self.write_first().await?;
        }
        Ok(())
    }

    fn is_first_ready(&mut self) -> bool {
        match self.pending.front_mut() {
            Some(Pending::Piece(answer)) => answer.is_ready(),
            Some(Pending::Zeroes(_)) => true,
            None => false,
        }
    }

    /// Writes the oldest piece, when it is there.
    async fn write_first(&mut self) -> Result<()> {
        match self.pending.pop_front() {
            Some(Pending::Piece(answer)) => {
                let piece = answer.wait().await?;
                self.put(&piece).await
            }
            Some(Pending::Zeroes(piece)) => self.put(&piece).await,
            None => Ok(()),
        }
    }

    async fn put(&mut self, piece: &Piece) -> Result<()> {
        if self.encoding.has_table() {
            self.frames.push((piece.packed.len() as u32, piece.length));
        }
        self.put_bytes(&piece.packed).await
    }

    async fn put_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        if !self.room.is_empty() && self.room.len() + bytes.len() > WRITTEN_AT_ONCE {
            self.write_out().await?;
        }
        self.room.extend_from_slice(bytes);
        Ok(())
    }

    async fn write_out(&mut self) -> Result<()> {
        self.output.write(&self.room).await?;
        self.room.clear();
        Ok(())
    }

    async fn finish(mut self) -> Result<()> {
        self.end_piece().await?;
        while !self.pending.is_empty() {
            self.write_first().await?;
        }
        let end = self.encoding.end(&self.frames);
        self.put_bytes(&end).await?;
        self.write_out().await?;
        self.output.finish().await
    }
}

/// Where packed bytes are put down.
struct Output {
    target: PackTarget,
    position: u64,
}

impl Output {
    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        for part in bytes.chunks(4 * WRITTEN_AT_ONCE) {
            let buffer = Buffer::from(part);
            match &mut self.target {
                PackTarget::Device(device) => {
                    let none = WriteFlags::empty();
                    device.write(self.position, buffer, none).await?;
                }
                PackTarget::Stream(sink) => {
                    sink.write(buffer).await?;
                }
            }
            self.position += part.len() as u64;
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<()> {
        match &mut self.target {
            PackTarget::Device(device) => {
                device.resize(self.position).await?;
                device.flush().await
            }
            PackTarget::Stream(sink) => sink.flush().await,
        }
    }
}
