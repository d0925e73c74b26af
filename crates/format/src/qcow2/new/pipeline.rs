//! Clusters on their way through the compressors.
//!
//! ```text
//!   tasks ── queue ──> threads: compress ── in turn ──> packer ──> chunks ── tasks ──> file
//! ```
//!
//! Threads compress, give places, and note them in the tables; they belong to no runtime and never wait for a
//! device. Tasks that write, flush or finish hand clusters in, wait for room, and write what has been gathered. So
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

use super::{map::Table, packer::Packer};
use crate::{
    below::Below,
    chunks::Chunk,
    qcow2::{
        codec::{CompressionSettings, Compressor},
        entry::{Cluster, Entry},
        geometry::Geometry,
    },
};

/// How much is compressed by one thread at a time, in bytes, where clusters are smaller.
const AT_ONCE: u64 = 64 << 10;
/// How much may wait to be compressed, or for its turn: so many bytes, and so many clusters for each thread.
const LEAST_ROOM: u64 = 2 << 20;
const ROOM_PER_THREAD: u64 = 4;
/// How many chunks may wait to be written while others are.
const MOST_CHUNKS: usize = 8;

/// Compresses clusters and packs them.
pub(super) struct Pipeline {
    shared: Arc<Shared>,
    /// Held by who hands clusters in: in the order in which they asked for it.
    turn: tokio::sync::Mutex<()>,
    /// Held by who writes chunks.
    writer: tokio::sync::Mutex<()>,
    most_threads: usize,
    /// How many bytes may be on their way.
    room: u64,
    clusters: BufferPool,
    at_once: usize,
}

struct Shared {
    settings: CompressionSettings,
    /// The size in it is not looked at.
    geometry: Geometry,
    in_order: bool,
    state: Mutex<State>,
    /// There is something to compress, or nothing ever again.
    work: Condvar,
    /// Something was placed, or failed.
    news: Notify,
    streams: BufferPool,
}

struct State {
    jobs: VecDeque<Job>,
    /// How many jobs there were.
    handed_in: u64,
    /// What was compressed before its turn.
    early: BTreeMap<u64, Packed>,
    /// Whose turn it is.
    turn: u64,
    /// How many bytes have no place yet.
    pending: u64,
    packer: Packer,
    threads: usize,
    idle: usize,
    is_over: bool,
    failure: Option<Error>,
}

/// Clusters to be compressed, side by side in one table.
struct Job {
    number: u64,
    table: Arc<Table>,
    first: usize,
    clusters: Buffer,
}

/// Clusters that were compressed.
struct Packed {
    job: Job,
    /// The streams, each at the place that its cluster has in the job.
    streams: Buffer,
    /// How long they are; `None`: the cluster stays as it is.
    lengths: Vec<Option<usize>>,
}

impl Pipeline {
    /// A pipeline of `threads` threads; 0: as many as there are processors.
    pub(super) fn new(
        settings: CompressionSettings,
        geometry: Geometry,
        threads: usize,
        in_order: bool,
        packer: Packer,
    ) -> Self {
        let processors = || thread::available_parallelism().map_or(1, usize::from);
        let most_threads = match threads {
            0 => processors(),
            threads => threads.min(1024),
        };
        let cluster = geometry.cluster_size();
        let at_once = (AT_ONCE / cluster).max(1);
        let room = (ROOM_PER_THREAD * most_threads as u64 * at_once * cluster).max(LEAST_ROOM);
        let keep = (room / (at_once * cluster)) as usize + 2;
        let buffers = || BufferPool::new((at_once * cluster) as usize, keep);
        Self {
            shared: Arc::new(Shared {
                settings,
                geometry,
                in_order,
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
                streams: buffers(),
            }),
            turn: tokio::sync::Mutex::default(),
            writer: tokio::sync::Mutex::default(),
            most_threads,
            room,
            clusters: buffers(),
            at_once: at_once as usize,
        }
    }

    /// Waits until it is this task's turn to hand clusters in.
    pub(super) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// How many clusters go in at a time.
    pub(super) fn at_once(&self) -> usize {
        self.at_once
    }

    /// Takes clusters whose entries in `table`, from `first` on, say that they are pending. The last may be short:
    /// zeroes follow.
    pub(super) async fn add(
        &self,
        table: Arc<Table>,
        first: usize,
        bytes: &[u8],
        file: &Below,
    ) -> Result<()> {
        let cluster = self.shared.geometry.cluster_size() as usize;
        let length = bytes.len().next_multiple_of(cluster);
        let mut clusters = self.clusters.take(length);
        let (data, padding) = clusters.split_at_mut(bytes.len());
        data.copy_from_slice(bytes);
        padding.fill(0);
        self.wait_for_room(file).await?;
        let mut state = self.shared.state();
        let number = state.handed_in;
        state.handed_in += 1;
        state.pending += length as u64;
        state.jobs.push_back(Job {
            number,
            table,
            first,
            clusters,
        });
        if state.idle == 0 && state.threads < self.most_threads {
            self.start_thread(&mut state);
        }
        drop(state);
        self.shared.work.notify_one();
        Ok(())
    }

    fn start_thread(&self, state: &mut State) {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name("qcow2-compress".to_owned());
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
    pub(super) async fn write_ready(&self, file: &Below) -> Result<()> {
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
    pub(super) async fn settle(&self, file: &Below) -> Result<()> {
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
    pub(super) async fn drain(&self, file: &Below) -> Result<()> {
        self.settle(file).await?;
        self.write_chunks(file, true).await
    }

    /// As [`drain`](Self::drain), the last time.
    pub(super) async fn end(&self, file: &Below) -> Result<()> {
        self.drain(file).await?;
        self.shared.state().packer.end();
        Ok(())
    }

    /// Whether all that was handed in is written.
    pub(super) fn is_idle(&self) -> bool {
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

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.shared.state().is_over = true;
        self.shared.work.notify_all();
    }
}

/// Chunks that are being written: given up, they are lost.
struct Writing<'a> {
    shared: &'a Shared,
    is_done: bool,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            let message = "a write of compressed clusters was given up";
            let error = Error::with_message(ErrorKind::Cancelled, message);
            self.shared.fail(error);
        }
    }
}

impl State {
    fn check(&self) -> Result<()> {
        self.failure.clone().map_or(Ok(()), Err)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
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
        let mut compressor = Compressor::new(&self.settings);
        while let Some(job) = self.next_job() {
            let compress = AssertUnwindSafe(|| self.compress(&mut compressor, job));
            let Ok(packed) = catch_unwind(compress) else {
                let message = "compressing a cluster failed";
                self.fail(Error::with_message(ErrorKind::Io, message));
                return;
            };
            self.take(packed);
        }
    }

    fn next_job(&self) -> Option<Job> {
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

    fn compress(&self, compressor: &mut Compressor, job: Job) -> Packed {
        let cluster = self.geometry.cluster_size() as usize;
        let mut streams = self.streams.take(job.clusters.len());
        let clusters = job.clusters.chunks_exact(cluster);
        let rooms = streams.chunks_exact_mut(cluster);
        let lengths = clusters
            .zip(rooms)
            .map(|(cluster, room)| compressor.compress(cluster, room))
            .collect();
        Packed {
            job,
            streams,
            lengths,
        }
    }

    /// Gives places to what was compressed, as soon as it is its turn.
    fn take(&self, packed: Packed) {
        let mut state = self.state();
        if self.in_order {
            state.early.insert(packed.job.number, packed);
            loop {
                let turn = state.turn;
                let Some(packed) = state.early.remove(&turn) else {
                    break;
                };
                state.turn += 1;
                self.place(&mut state, packed);
            }
        } else {
            self.place(&mut state, packed);
        }
        drop(state);
        self.news.notify_waiters();
    }

    fn place(&self, state: &mut State, packed: Packed) {
        let Packed {
            job,
            streams,
            lengths,
        } = packed;
        let size = self.geometry.cluster_size() as usize;
        let streams = streams.chunks_exact(size);
        let parts = job.clusters.chunks_exact(size).zip(streams).zip(lengths);
        for (at, ((bytes, stream), length)) in (job.first..).zip(parts) {
            let placed = match length {
                Some(length) => {
                    let placed = state.packer.add_stream(&stream[..length]);
                    placed.map(Cluster::Compressed)
                }
                None => {
                    let placed = state.packer.add_plain(bytes);
                    placed.map(|host| Cluster::Data { host })
                }
            };
            match placed {
                Ok(cluster) => {
                    let entry = Entry::encode(cluster, self.geometry);
                    job.table.replace(at, entry);
                }
                Err(error) => {
                    state.failure.get_or_insert(error);
                    return;
                }
            }
        }
        // Who waits for this may want to put the table away.
        drop(job.table);
        state.pending -= job.clusters.len() as u64;
    }
}
