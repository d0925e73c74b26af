//! Blocks on their way through the compressors: the clusters or grains of a new image.
//!
//! ```text
//!   tasks ── queue ──> threads: compress ── in turn ──> packer ──> chunks ── tasks ──> file
//! ```
//!
//! Threads compress, give places, and note them where the packer does; they belong to no runtime and never wait for a
//! device. Tasks that write, flush or finish hand blocks in, wait for room, and write what has been gathered. So
//! what goes wrong late is told to the next of them, and to all that follow.

use std::{
    collections::{BTreeMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use blockferry_block::{Buffer, BufferPool, Error, ErrorKind, Result};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::sync::Notify;

use crate::{below::Below, chunks::Chunk};

/// How much is compressed by one thread at a time, in bytes, where blocks are smaller.
const AT_ONCE: u64 = 64 << 10;
/// How much may wait to be compressed, or for its turn: so many bytes, and so many times what each thread compresses.
const LEAST_ROOM: u64 = 2 << 20;
const ROOM_PER_THREAD: u64 = 4;
/// How many chunks may wait to be written while others are.
const MOST_CHUNKS: usize = 8;

/// Gives what was compressed its place in the file, and gathers it.
pub(crate) trait Packer: Send + 'static {
    /// What it has to know of blocks that lie side by side.
    type Place: Send;

    /// Takes blocks that were compressed.
    ///
    /// # Errors
    /// `NoSpace` where there can be no more; nothing else is packed then.
    fn pack(&mut self, packed: &Packed<Self::Place>) -> Result<()>;

    /// How many chunks are to be written.
    fn full(&self) -> usize;

    /// The chunks that are to be written.
    fn take_full(&mut self) -> VecDeque<Chunk>;

    /// All that is to be written, also what is not much yet. What comes next goes on behind it.
    fn take_all(&mut self) -> VecDeque<Chunk>;

    /// Whether all that was added was taken to be written.
    fn is_empty(&self) -> bool;
}

/// Compresses one block into the beginning of the second slice, and says how many bytes that took; `None` where it does
/// not become smaller, or there is not room enough.
pub(crate) type Compress = Box<dyn FnMut(&[u8], &mut [u8]) -> Option<usize>>;

/// How blocks are compressed.
pub(crate) struct PipelineOptions {
    /// How long they are, in bytes.
    pub(crate) block: u64,
    /// How long one may become, in bytes.
    pub(crate) room: u64,
    /// How many are compressed at a time; 0: as many as there are processors.
    pub(crate) threads: usize,
    /// Whether they get their places in the order in which they came.
    pub(crate) in_order: bool,
    /// Makes what compresses, for each thread.
    pub(crate) compress: Box<dyn Fn() -> Compress + Send + Sync>,
}

/// Compresses blocks and packs them.
pub(crate) struct Pipeline<P: Packer> {
    shared: Arc<Shared<P>>,
    /// Held by who hands blocks in: in the order in which they asked for it.
    turn: tokio::sync::Mutex<()>,
    /// Held by who writes chunks.
    writer: tokio::sync::Mutex<()>,
    most_threads: usize,
    /// How many bytes may be on their way.
    room: u64,
    blocks: BufferPool,
    at_once: usize,
}

struct Shared<P: Packer> {
    options: PipelineOptions,
    state: Mutex<State<P>>,
    /// There is something to compress, or nothing ever again.
    work: Condvar,
    /// Something was placed, or failed.
    news: Notify,
    streams: BufferPool,
}

struct State<P: Packer> {
    jobs: VecDeque<Job<P::Place>>,
    /// How many jobs there were.
    handed_in: u64,
    /// What was compressed before its turn.
    early: BTreeMap<u64, Packed<P::Place>>,
    /// Whose turn it is.
    turn: u64,
    /// How many bytes have no place yet.
    pending: u64,
    packer: P,
    threads: usize,
    idle: usize,
    is_over: bool,
    failure: Option<Error>,
}

/// Blocks to be compressed, side by side.
struct Job<T> {
    number: u64,
    place: T,
    blocks: Buffer,
}

/// Blocks that were compressed.
pub(crate) struct Packed<T> {
    job: Job<T>,
    /// The streams, each at the place that its block has in the job.
    streams: Buffer,
    /// How long they are; `None`: the block stays as it is.
    lengths: Vec<Option<usize>>,
    block: usize,
    room: usize,
}

impl<T> Packed<T> {
    /// What was said of the blocks when they were handed in.
    pub(crate) fn place(&self) -> &T {
        &self.job.place
    }

    /// Each block, and its stream unless it stays as it is.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        let blocks = self.job.blocks.chunks_exact(self.block);
        let streams = self.streams.chunks_exact(self.room);
        let streams = streams
            .zip(&self.lengths)
            .map(|(stream, length)| length.and_then(|length| stream.get(..length)));
        blocks.zip(streams)
    }
}

impl<P: Packer> Pipeline<P> {
    /// A pipeline into `packer`.
    pub(crate) fn new(options: PipelineOptions, packer: P) -> Self {
        let processors = || thread::available_parallelism().map_or(1, usize::from);
        let most_threads = match options.threads {
            0 => processors(),
            threads => threads.min(1024),
        };
        let block = options.block;
        let at_once = (AT_ONCE / block).max(1);
        let room = (ROOM_PER_THREAD * most_threads as u64 * at_once * block).max(LEAST_ROOM);
        let keep = (room / (at_once * block)) as usize + 2;
        let buffers = |length: u64| BufferPool::new((at_once * length) as usize, keep);
        Self {
            blocks: buffers(block),
            shared: Arc::new(Shared {
                streams: buffers(options.room),
                options,
                state: Mutex::new(State {
                    jobs: VecDeque::new(),
                    handed_in: 0,
                    early: BTreeMap::new(),
                    turn: 0,
                    pending: 0,
                    packer,
                    threads: 0,
                    idle: 0,
                    is_over: false,
                    failure: None,
                }),
                work: Condvar::new(),
                news: Notify::new(),
            }),
            turn: tokio::sync::Mutex::default(),
            writer: tokio::sync::Mutex::default(),
            most_threads,
            room,
            at_once: at_once as usize,
        }
    }

    /// Waits until it is this task's turn to hand blocks in.
    pub(crate) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// How many blocks go in at a time.
    pub(crate) fn at_once(&self) -> usize {
        self.at_once
    }

    /// Takes blocks, as many as go in at a time. The last may be short: zeroes follow.
    pub(crate) async fn add(&self, place: P::Place, bytes: &[u8], file: &Below) -> Result<()> {
        let block = self.shared.options.block as usize;
        let length = bytes.len().next_multiple_of(block);
        let mut blocks = self.blocks.take(length);
        let (data, padding) = blocks.split_at_mut(bytes.len());
        data.copy_from_slice(bytes);
        padding.fill(0);
        self.wait_for_room(file).await?;
        let mut state = self.shared.state();
        let number = state.handed_in;
        state.handed_in += 1;
        state.pending += length as u64;
        state.jobs.push_back(Job {
            number,
            place,
            blocks,
        });
        if state.idle == 0 && state.threads < self.most_threads {
            self.start_thread(&mut state);
        }
        drop(state);
        self.shared.work.notify_one();
        Ok(())
    }

    fn start_thread(&self, state: &mut State<P>) {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name("compress".to_owned());
        match thread.spawn(move || shared.run()) {
            Ok(_) => state.threads += 1,
            // Those that are there do it alone.
            Err(_) if state.threads > 0 => {}
            Err(error) => {
                state.failure.get_or_insert(error.into());
            }
        }
    }

    /// Waits until there is room for more, and writes meanwhile what is ready.
    async fn wait_for_room(&self, file: &Below) -> Result<()> {
        loop {
            let mut news = std::pin::pin!(self.shared.news.notified());
            news.as_mut().enable();
            let full = {
                let state = self.shared.state();
                state.check()?;
                let full = state.packer.full();
                if state.pending < self.room && full <= MOST_CHUNKS {
                    return Ok(());
                }
                full
            };
            match full {
                0 => news.await,
                _ => self.write_chunks(file, false).await?,
            }
        }
    }

    /// Writes what is ready, unless somebody does.
    pub(crate) async fn write_ready(&self, file: &Below) -> Result<()> {
        let is_ready = {
            let state = self.shared.state();
            state.check()?;
            state.packer.full() > 0
        };
        match self.writer.try_lock() {
            Ok(_writer) if is_ready => self.write_with(file, false).await,
            _ => Ok(()),
        }
    }

    /// Waits until all that was handed in has its place.
    pub(crate) async fn settle(&self, file: &Below) -> Result<()> {
        loop {
            let mut news = std::pin::pin!(self.shared.news.notified());
            news.as_mut().enable();
            let full = {
                let state = self.shared.state();
                state.check()?;
                if state.pending == 0 {
                    return Ok(());
                }
                state.packer.full()
            };
            match full {
                0 => news.await,
                _ => self.write_chunks(file, false).await?,
            }
        }
    }

    /// Waits until all that was handed in is written.
    pub(crate) async fn drain(&self, file: &Below) -> Result<()> {
        self.settle(file).await?;
        self.write_chunks(file, true).await
    }

    /// Does something with the packer.
    ///
    /// # Errors
    /// What went wrong before.
    pub(crate) fn with_packer<T>(&self, work: impl FnOnce(&mut P) -> T) -> Result<T> {
        let mut state = self.shared.state();
        state.check()?;
        Ok(work(&mut state.packer))
    }

    /// Whether all that was handed in is written.
    pub(crate) fn is_idle(&self) -> bool {
        let state = self.shared.state();
        let is_settled = state.failure.is_none() && state.pending == 0;
        is_settled && state.packer.is_empty() && self.writer.try_lock().is_ok()
    }

    async fn write_chunks(&self, file: &Below, all: bool) -> Result<()> {
        let _writer = self.writer.lock().await;
        self.write_with(file, all).await
    }

    /// Writes chunks, all at a time. For the one writer.
    async fn write_with(&self, file: &Below, all: bool) -> Result<()> {
        let chunks = {
            let mut state = self.shared.state();
            state.check()?;
            match all {
                true => state.packer.take_all(),
                false => state.packer.take_full(),
            }
        };
        if chunks.is_empty() {
            return Ok(());
        }
        let mut writing = Writing {
            shared: &self.shared,
            is_done: false,
        };
        let writes = chunks.into_iter().map(|chunk| write(file, chunk));
        let mut writes: FuturesUnordered<_> = writes.collect();
        let mut failure = None;
        while let Some(written) = writes.next().await {
            failure = failure.or(written.err());
        }
        writing.is_done = true;
        match failure {
            None => {
                // Who waits for room looks again.
                self.shared.news.notify_waiters();
                Ok(())
            }
            Some(error) => Err(self.shared.fail(error)),
        }
    }
}

async fn write(file: &Below, chunk: Chunk) -> Result<()> {
    file.check_room(chunk.start + chunk.bytes.len() as u64)?;
    file.write_blocks(chunk.start, chunk.bytes).await.map(drop)
}

impl<P: Packer> Drop for Pipeline<P> {
    fn drop(&mut self) {
        self.shared.state().is_over = true;
        self.shared.work.notify_all();
    }
}

/// Chunks that are being written: given up, they are lost.
struct Writing<'a, P: Packer> {
    shared: &'a Shared<P>,
    is_done: bool,
}

impl<P: Packer> Drop for Writing<'_, P> {
    fn drop(&mut self) {
        if !self.is_done {
            let message = "a write of what was compressed was given up";
            let error = Error::with_message(ErrorKind::Cancelled, message);
            self.shared.fail(error);
        }
    }
}

impl<P: Packer> State<P> {
    fn check(&self) -> Result<()> {
        self.failure.clone().map_or(Ok(()), Err)
    }
}

impl<P: Packer> Shared<P> {
    fn state(&self) -> MutexGuard<'_, State<P>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on everything fails with the first error.
    fn fail(&self, error: Error) -> Error {
        let error = self.state().failure.get_or_insert(error).clone();
        self.news.notify_waiters();
        error
    }

    /// What a thread does.
    fn run(&self) {
        let mut compressor = (self.options.compress)();
        while let Some(job) = self.next_job() {
            let compress = AssertUnwindSafe(|| self.compress(&mut compressor, job));
            let Ok(packed) = catch_unwind(compress) else {
                let message = "compressing failed";
                self.fail(Error::with_message(ErrorKind::Io, message));
                return;
            };
            self.take(packed);
        }
    }

    fn next_job(&self) -> Option<Job<P::Place>> {
        let mut state = self.state();
        loop {
            if state.is_over {
                return None;
            }
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            state.idle += 1;
            state = self
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    fn compress(&self, compress: &mut Compress, job: Job<P::Place>) -> Packed<P::Place> {
        let (block, room) = (self.options.block as usize, self.options.room as usize);
        let mut streams = self.streams.take(job.blocks.len() / block * room);
        let blocks = job.blocks.chunks_exact(block);
        let rooms = streams.chunks_exact_mut(room);
        let lengths = blocks
            .zip(rooms)
            .map(|(block, room)| compress(block, room))
            .collect();
        Packed {
            job,
            streams,
            lengths,
            block,
            room,
        }
    }

    /// Gives places to what was compressed, as soon as it is its turn.
    fn take(&self, packed: Packed<P::Place>) {
        let mut state = self.state();
        if self.options.in_order {
            state.early.insert(packed.job.number, packed);
            loop {
                let turn = state.turn;
                let Some(packed) = state.early.remove(&turn) else {
                    break;
                };
                state.turn += 1;
                place(&mut state, packed);
            }
        } else {
            place(&mut state, packed);
        }
        drop(state);
        self.news.notify_waiters();
    }
}

fn place<P: Packer>(state: &mut State<P>, packed: Packed<P::Place>) {
    if let Err(error) = state.packer.pack(&packed) {
        state.failure.get_or_insert(error);
        return;
    }
    let length = packed.job.blocks.len() as u64;
    // Who waits for this may want to put away what its place is in.
    drop(packed);
    state.pending -= length;
}
