//! A compressed stream, unpacked as it is read.
//!
//! A task reads the packed bytes ahead, a thread unpacks them ahead of whoever reads, both by a bounded number of
//! buffers. The thread makes buffers as long as those that are asked for, and they change places with those that
//! the reader brings: nothing is copied.

mod bzip2;
mod gzip;
mod input;
mod members;
mod xz;
mod zstd;

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, BufferPool, ByteSource, Error, ErrorKind, HumanSize, Result,
};
use tokio::{sync::mpsc, task::JoinSet};

use self::{input::Pieces, members::Members};
use crate::Packing;

/// How much is unpacked at a time before anybody has said how much is wanted, in bytes.
const FIRST_CHUNK: usize = 256 << 10;

/// How much is unpacked at a time at most.
const LONGEST_CHUNK: usize = 1 << 20;

/// How many chunks are unpacked before somebody asks for them.
const AHEAD: usize = 8;

/// The compressed bytes.
pub enum Packed {
    /// All of a device.
    Device(Arc<dyn BlockDevice>),
    /// What comes.
    Stream(Box<dyn ByteSource>),
}

impl Packed {
    fn name(&self) -> Arc<str> {
        match self {
            Self::Device(device) => Arc::clone(&device.info().name),
            Self::Stream(stream) => Arc::clone(stream.name()),
        }
    }
}

/// How far a compressed stream is trusted.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct UnpackOptions {
    /// How many bytes may come out of it; `None`: any number.
    pub max_size: Option<u64>,
    /// How much memory a decoder may take, in bytes, about: it bounds the window of zstd and the dictionary of xz.
    /// 512 MiB unless set, which is eight times what `xz -9` and four times what `zstd` without `--long` needs.
    pub memory: u64,
    /// How many threads unpack what has blocks of known sizes: xz made by several threads. 0: one for each
    /// processor.
    pub threads: usize,
}

impl Default for UnpackOptions {
    fn default() -> Self {
        Self {
            max_size: None,
            memory: 512 << 20,
            threads: 0,
        }
    }
}

/// What a compressed stream holds. Dropping it ends the reading and the unpacking.
///
/// A read that was dropped while it waited has lost nothing.
pub struct Unpacked {
    name: Arc<str>,
    chunks: mpsc::Receiver<Chunk>,
    /// The length of the buffers that are asked for.
    wanted: Arc<AtomicUsize>,
    /// What came and was not taken, from `at` on.
    chunk: Buffer,
    at: usize,
    ended: bool,
    /// What reads the packed bytes; aborted with this.
    _reading: JoinSet<()>,
}

/// What the thread has to say.
enum Chunk {
    Bytes(Buffer),
    /// It was the whole of it, and it was right.
    End,
    Failed(Error),
}

impl Unpacked {
    /// Begins to unpack `packed`, in the runtime that this is called in, and waits for its first bytes.
    ///
    /// # Errors
    /// `InvalidInput` for something else than what `packing` says; what else goes wrong in the beginning, as later:
    /// `Corrupt` for what is damaged, cut off or followed by something else, with its offset; `Unsupported` for more than
    /// `max_size`, and for what needs more memory than it may; what reading failed with.
    pub async fn open(packed: Packed, packing: Packing, options: &UnpackOptions) -> Result<Self> {
        let name = packed.name();
        let (reading, pieces) = input::read_ahead(packed);
        let (sender, chunks) = mpsc::channel(AHEAD);
        let wanted = Arc::new(AtomicUsize::new(FIRST_CHUNK));
        let work = Work {
            members: Members::new(packing, options)?,
            pieces,
            sender,
            wanted: Arc::clone(&wanted),
            max_size: options.max_size,
        };
        thread::Builder::new()
            .name("unpack".to_owned())
            .spawn(|| work.run())?;
        let mut unpacked = Self {
            name,
            chunks,
            wanted,
            chunk: Buffer::zeroed(0),
            at: 0,
            ended: false,
            _reading: reading,
        };
        unpacked.next_chunk().await?;
        Ok(unpacked)
    }

    /// The next bytes that nobody has taken yet; directly after opening the first ones, several KiB where there are so
    /// many.
    #[must_use]
    pub fn begins_with(&self) -> &[u8] {
        &self.chunk[self.at..]
    }

    /// Waits for bytes, when all that came are taken.
    async fn next_chunk(&mut self) -> Result<()> {
        while self.at == self.chunk.len() && !self.ended {
            match self.chunks.recv().await {
                Some(Chunk::Bytes(chunk)) => (self.chunk, self.at) = (chunk, 0),
                Some(Chunk::End) => self.ended = true,
                Some(Chunk::Failed(error)) => return Err(error),
                None => {
                    let message = "what unpacks it has ended";
                    return Err(Error::with_message(ErrorKind::Io, message));
                }
            }
        }
        Ok(())
    }

    async fn fill(&mut self, mut buffer: Buffer) -> Result<Buffer> {
        let wanted = buffer.len();
        self.wanted
            .store(wanted.min(LONGEST_CHUNK), Ordering::Relaxed);
        let mut done = 0;
        while done < wanted {
            self.next_chunk().await?;
            if self.ended {
                break;
            }
            if done == 0 && self.at == 0 && self.chunk.len() == wanted {
                return Ok(std::mem::replace(&mut self.chunk, Buffer::zeroed(0)));
            }
            let rest = &self.chunk[self.at..];
            let count = rest.len().min(wanted - done);
            buffer[done..done + count].copy_from_slice(&rest[..count]);
            done += count;
            self.at += count;
        }
        buffer.set_len(done);
        Ok(buffer)
    }
}

impl ByteSource for Unpacked {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn read(&mut self, buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(self.fill(buffer))
    }
}

/// What the thread does.
struct Work {
    members: Members,
    pieces: Pieces,
    sender: mpsc::Sender<Chunk>,
    wanted: Arc<AtomicUsize>,
    max_size: Option<u64>,
}

impl Work {
    fn run(mut self) {
        let last = match self.unpack() {
            Ok(()) => Chunk::End,
            Err(error) => Chunk::Failed(error),
        };
        // Nobody may be interested any more.
        let _ = self.sender.blocking_send(last);
    }

    /// Unpacks all of it, for as long as somebody takes it.
    fn unpack(&mut self) -> Result<()> {
        let mut pool = BufferPool::new(FIRST_CHUNK, 2 * AHEAD);
        let mut left = self.max_size.unwrap_or(u64::MAX);
        loop {
            // A few bytes can become very many.
            if self.sender.is_closed() {
                return Ok(());
            }
            let wanted = self.wanted.load(Ordering::Relaxed).max(1);
            if wanted > pool.capacity() {
                pool = BufferPool::new(wanted, 2 * AHEAD);
            }
            let mut chunk = pool.take(wanted);
            let count = self.members.fill(&mut self.pieces, &mut chunk)?;
            if count as u64 > left {
                let most = HumanSize(self.max_size.unwrap_or(u64::MAX));
                let message = format!("it holds more than the {most} that max-size allows");
                return Err(Error::with_message(ErrorKind::Unsupported, message));
            }
            left -= count as u64;
            chunk.set_len(count);
            let is_last = count < wanted;
            if count > 0 && self.sender.blocking_send(Chunk::Bytes(chunk)).is_err() {
                return Ok(());
            }
            if is_last {
                return Ok(());
            }
        }
    }
}
