//! Images that are written in place.
//!
//! ```text
//!   write ─┬─ in place: the cluster is the image's alone; no lock, no table changes
//!          └─ with a turn on the range: allocate, fill what the request does not cover, write, name it in a table
//!   zero, trim ─ entries of tables change; partial clusters are written
//!   flush ─ commit: tables and refcounts in their order, on a thread of the image's own
//! ```
//!
//! Tables and refcounts change in memory; what is not in the file yet is bounded. A request that is dropped, or whose
//! runtime ends, leaves a cluster unused at worst.

mod commit;
mod packed;
mod pending;
mod place;
mod resize;
#[cfg(test)]
pub(crate) mod tests;
mod worker;
mod zero;

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use blockferry_block::{
    Buffer, ByteRange, Capabilities, DeviceInfo, Error, ErrorKind, RangeLock, RangeSet, Result,
    WriteFlags,
};
use tokio::sync::oneshot;

use super::{
    allocate::{Allocator, Clusters},
    bitmaps::Bitmap,
    entry::{COPIED, Cluster, Entry},
    gate::{Gate, Pass},
    geometry::{Geometry, SUBCLUSTERS, corrupt},
    header::{Autoclear, Header, Incompatible},
    host::HostFile,
    pieces::part_size,
    read::Reader,
    tables::{L2Table, Peek},
};
use commit::Freed;
use pending::Pending;
use place::Change;
pub(crate) use place::places_of;
pub(crate) use resize::fill;
use worker::Worker;

/// Where the autoclear features stand in the header.
const AUTOCLEAR_IN_HEADER: u64 = 88;

/// So many entries of the list of what is freed make a commit.
const MOST_FREED: usize = 1 << 16;

/// Writes an image. Cloning is cheap and shares everything.
#[derive(Clone)]
pub(crate) struct Writer(Arc<Shared>);

struct Shared {
    geometry: Geometry,
    /// Reads what is copied, through the handle that the image was opened with; its tables are everyone's.
    reader: Reader,
    /// The file with the tables.
    file: HostFile,
    /// The data file can be read as a raw image, too.
    is_raw: bool,
    /// The size of the parts that tables are written in.
    part: u64,
    allocator: tokio::sync::Mutex<Allocator>,
    pending: Mutex<Pending>,
    /// Turns on ranges of the disk, in whole clusters, for whoever changes entries of tables.
    turns: RangeLock,
    /// A turn for whoever adds an L2 table.
    adding: tokio::sync::Mutex<()>,
    /// Whoever looks clusters up and then reads or writes them.
    gate: Gate,
    /// Where in the file writes may still arrive that nobody waits for any more.
    late: Mutex<RangeSet>,
    /// Clusters that were allocated and not used.
    returned: Mutex<Vec<Clusters>>,
    /// Clusters that nothing in the file names any more.
    freed: Mutex<Vec<Freed>>,
    /// Who waits for the next commit.
    waiting: Mutex<Vec<oneshot::Sender<Result<()>>>>,
    worker: Worker,
    /// The header has features that must be cleared before anything is changed.
    is_untouched: AtomicBool,
    untouched: tokio::sync::Mutex<()>,
    autoclear: Autoclear,
    /// The flags of bitmaps that are not kept, and where they stand.
    not_kept: Vec<(u64, u32)>,
}

/// What may happen to a cluster that is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// It lies at this place, and all that is to be written is there.
    InPlace(u64),
    /// It lies at this place, which is the image's alone, and does not say so yet.
    Keep(u64),
    /// It needs a new place.
    New,
}

/// Clusters that a request has allocated. They are given back when they are not used.
struct Claim<'a> {
    shared: &'a Shared,
    clusters: Clusters,
    state: ClaimState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ClaimState {
    Unwritten,
    /// A write may arrive there at any time: they cannot be given to anyone.
    Writing,
    Used,
}

/// A write to a place that has a name. Where nobody waits for its end the place is not used for anything else.
struct Arriving<'a> {
    shared: &'a Shared,
    place: ByteRange,
    has_ended: bool,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Refuses images that are not written.
pub(crate) fn check_writable(header: &Header, files: [&HostFile; 2]) -> Result<()> {
    let refuse = |kind, message: String| Err(Error::with_message(kind, message));
    if header.is_corrupt() {
        let message = "the image is marked as corrupt and can only be read";
        return refuse(ErrorKind::ReadOnly, message.to_owned());
    }
    if header.incompatible.contains(Incompatible::DIRTY) {
        let message = "the image was not closed by who wrote it, and what is wrong with its refcounts cannot be mended";
        return refuse(ErrorKind::ReadOnly, message.to_owned());
    }
    for file in files {
        let info = file.device().info();
        if !info.can(Capabilities::WRITE) {
            return refuse(ErrorKind::ReadOnly, "it cannot be written".to_owned());
        }
        let minimum = u64::from(info.limits.minimum.max(1));
        let unit = header.geometry.subcluster_size();
        if !unit.is_multiple_of(minimum) {
            let message = format!(
                "its clusters, or their parts, have {unit} bytes, less than the blocks of what it lies in, \
                 {minimum} bytes"
            );
            return refuse(ErrorKind::Unsupported, message);
        }
    }
    Ok(())
}

impl Writer {
    /// Prepares to write the image in `file`, whose present state `reader` reads. Nothing is changed yet.
    ///
    /// # Errors
    /// `ReadOnly` for an image that is damaged, whose refcounts may be wrong, or that lies in what cannot be written;
    /// `Unsupported` for clusters smaller than the file's blocks; `Corrupt`, what reading failed with.
    pub(crate) async fn open(
        file: &HostFile,
        reader: &Reader,
        header: &Header,
        bitmaps: &[Bitmap],
    ) -> Result<Self> {
        check_writable(header, [file, &reader.data])?;
        let geometry = header.geometry;
        let mut known = header.autoclear;
        let mut is_untouched = false;
        if geometry.version >= 3 {
            let name = || "the header".to_owned();
            let word = Buffer::zeroed(8);
            let word = file.read_padded(AUTOCLEAR_IN_HEADER, word, name).await?;
            is_untouched = word[..] != known.bits().to_be_bytes();
        }
        known &= Autoclear::all();
        let not_kept: Vec<_> = bitmaps.iter().filter_map(Bitmap::marked_in_use).collect();
        let shared = Shared {
            geometry,
            reader: reader.clone(),
            file: file.clone(),
            is_raw: known.contains(Autoclear::RAW_DATA_FILE),
            part: part_size(geometry, file),
            allocator: Allocator::open(file.clone(), header).await?.into(),
            pending: Mutex::default(),
            turns: RangeLock::default(),
            adding: tokio::sync::Mutex::default(),
            gate: Gate::default(),
            late: Mutex::default(),
            returned: Mutex::default(),
            freed: Mutex::default(),
            waiting: Mutex::default(),
            worker: Worker::default(),
            is_untouched: AtomicBool::new(is_untouched || !not_kept.is_empty()),
            untouched: tokio::sync::Mutex::default(),
            autoclear: known,
            not_kept,
        };
        Ok(Self(Arc::new(shared)))
    }

    /// Adds to `info`, which is that of a device for reading, what writing adds.
    pub(crate) fn describe(&self, info: &mut DeviceInfo) {
        let shared = &*self.0;
        let limits = [&shared.file, &shared.reader.data].map(|file| file.device().info().limits);
        info.limits.minimum = limits[0].minimum.max(limits[1].minimum).max(1);
        info.capabilities |= Capabilities::WRITE
            | Capabilities::FLUSH
            | Capabilities::FUA
            | Capabilities::TRIM
            | Capabilities::ZERO;
        if shared.zeroes_fast() {
            info.capabilities |= Capabilities::FAST_ZERO;
        }
        // What is written goes through the handle that the image was opened with: no other can take its place.
        info.capabilities -= Capabilities::REOPEN;
    }

    /// Keeps clusters that are looked up from now on from being used for something else, until it is dropped.
    pub(crate) fn enter(&self) -> Pass<'_> {
        self.0.gate.enter()
    }

    /// Writes `data` to `range` of the disk, which is as long.
    ///
    /// # Errors
    /// `NoSpace`, `Corrupt`, what reading and writing failed with; ranges of errors are anyone's.
    pub(crate) async fn write(
        &self,
        range: ByteRange,
        data: Buffer,
        flags: WriteFlags,
    ) -> Result<Buffer> {
        let data = self.0.write(range, data).await?;
        if flags.contains(WriteFlags::FUA) {
            self.flush().await?;
        }
        Ok(data)
    }

    /// Makes all that was acknowledged durable.
    ///
    /// # Errors
    /// What writing the tables or the flush failed with. They are written again with the next flush.
    pub(crate) async fn flush(&self) -> Result<()> {
        self.0.flush().await
    }

    /// Puts everything in its place, so that no space is lost. The image can still be written afterwards.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    pub(crate) async fn close(&self) -> Result<()> {
        let shared = Arc::clone(&self.0);
        let closing = async move { shared.close_now().await };
        self.0.worker.run(closing).await
    }
}

impl Shared {
    async fn write(self: &Arc<Self>, range: ByteRange, data: Buffer) -> Result<Buffer> {
        if range.is_empty() {
            return Ok(data);
        }
        self.touch().await?;
        {
            let _pass = self.gate.enter();
            if let Some(place) = self.in_place(range).await?
                && self.is_on_blocks(place)
            {
                return self.arrive(place, data).await;
            }
        }
        let mut data = data;
        loop {
            let written = self.write_turned(range, &mut data).await;
            match written {
                Ok(()) => break,
                // What was freed since the last commit can be had after one; not while this request is under way.
                Err(error) if error.kind() == ErrorKind::NoSpace && !data.is_empty() => {
                    if !self.make_room().await? {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        self.relieve().await?;
        Ok(data)
    }

    /// Before the first change: features that are not known here do not hold any more (specification, "Header",
    /// `autoclear_features`), and bitmaps that are to have all that is written do not have it.
    async fn touch(self: &Arc<Self>) -> Result<()> {
        if !self.is_untouched.load(Ordering::Acquire) {
            return Ok(());
        }
        let shared = Arc::clone(self);
        let clearing = async move {
            let _turn = shared.untouched.lock().await;
            if shared.is_untouched.load(Ordering::Acquire) {
                for (place, flags) in &shared.not_kept {
                    shared.file.patch(*place, &flags.to_be_bytes()).await?;
                }
                if shared.geometry.version >= 3 {
                    let word = shared.autoclear.bits().to_be_bytes();
                    shared.file.patch(AUTOCLEAR_IN_HEADER, &word).await?;
                }
                shared.file.device().flush().await?;
                shared.is_untouched.store(false, Ordering::Release);
            }
            Ok(())
        };
        self.worker.run(clearing).await
    }

    /// Where all of `range` lies in a row, in clusters that are the image's alone.
    async fn in_place(&self, range: ByteRange) -> Result<Option<ByteRange>> {
        let (index, _) = self.geometry.indices(range.start());
        if !self.geometry.span_of(index).contains(range) {
            return Ok(None);
        }
        let table = match self.reader.tables.peek(index)? {
            Peek::Nothing => None,
            Peek::Table(table) => Some(table),
            Peek::Unknown => self.reader.tables.table(index).await?,
        };
        let Some(table) = table else {
            return Ok(None);
        };
        let run = self.run_in_place(&table, range)?;
        Ok(run.filter(|place| place.len() == range.len()))
    }

    /// The first part of `range`, which is in what `table` maps, that lies in a row in clusters that are the image's
    /// alone; `None` where the first cluster does not.
    fn run_in_place(&self, table: &L2Table, range: ByteRange) -> Result<Option<ByteRange>> {
        let mut place: Option<ByteRange> = None;
        for wanted in range.pieces(self.geometry.cluster_size()) {
            let (_, at) = self.geometry.indices(wanted.start());
            let within = wanted.start() % self.geometry.cluster_size();
            let (_, way) = self.way(table.entry(at), wanted)?;
            let Way::InPlace(host) = way else {
                break;
            };
            let own = ByteRange::between(host + within, host + within + wanted.len());
            place = match place {
                None => Some(own),
                Some(before) if before.end() == own.start() => {
                    Some(ByteRange::between(before.start(), own.end()))
                }
                Some(_) => break,
            };
        }
        Ok(place)
    }

    /// What may happen to the cluster that `wanted` is in.
    fn way(&self, entry: Entry, wanted: ByteRange) -> Result<(Cluster, Way)> {
        let geometry = self.geometry;
        let guest = wanted.start() - wanted.start() % geometry.cluster_size();
        let cluster = entry.decode(geometry)?;
        let is_own = entry.word & COPIED != 0;
        let way = match cluster {
            Cluster::Compressed(_) if geometry.data_file => {
                return Err(corrupt("a data file holds no compressed clusters"));
            }
            Cluster::Data { host } if is_own || geometry.data_file => Way::InPlace(host),
            Cluster::Mixed {
                host: Some(host),
                allocated,
                ..
            } if is_own || geometry.data_file => {
                let touched = subclusters(geometry, wanted);
                if touched & !allocated == 0 {
                    Way::InPlace(host)
                } else {
                    Way::Keep(host)
                }
            }
            Cluster::Zero { host: Some(host) } if is_own => Way::Keep(host),
            _ if geometry.data_file => Way::Keep(guest),
            _ => Way::New,
        };
        if let Way::InPlace(host) | Way::Keep(host) = way {
            self.check_place(host, guest)?;
        }
        Ok((cluster, way))
    }

    /// Checks that a cluster can be written where an entry says that it lies.
    fn check_place(&self, host: u64, guest: u64) -> Result<()> {
        let geometry = self.geometry;
        let is_right = if geometry.data_file {
            host == guest
        } else {
            let end = self.file.end().next_multiple_of(geometry.cluster_size());
            let l1 = self.reader.tables.l1_place();
            let own = ByteRange::between(host, host + geometry.cluster_size());
            host > 0 && own.end() <= end && own.intersection(l1).is_empty()
        };
        if is_right {
            return Ok(());
        }
        Err(corrupt(format!(
            "the cluster for guest offset {guest:#x} cannot be written at {host:#x}"
        )))
    }

    fn is_on_blocks(&self, place: ByteRange) -> bool {
        let minimum = u64::from(self.reader.data.device().info().limits.minimum.max(1));
        place.start().is_multiple_of(minimum) && place.end().is_multiple_of(minimum)
    }

    /// Writes to a place that has a name.
    async fn arrive(&self, place: ByteRange, data: Buffer) -> Result<Buffer> {
        let mut arriving = Arriving {
            shared: self,
            place,
            has_ended: false,
        };
        let written = match self.is_on_blocks(place) {
            true => self.reader.data.write(place.start(), data).await,
            false => {
                let patched = self.reader.data.patch(place.start(), &data).await;
                patched.map(|()| data)
            }
        };
        arriving.has_ended = written.as_ref().err().is_none_or(|it| !it.is_transient());
        written
    }

    /// `data` is empty when it was given to a write that failed.
    async fn write_turned(self: &Arc<Self>, range: ByteRange, data: &mut Buffer) -> Result<()> {
        let _turn = self.turns.lock(self.geometry.around(range)).await;
        let _pass = self.gate.enter();
        let mut rest = range;
        while !rest.is_empty() {
            let (index, _) = self.geometry.indices(rest.start());
            let part = rest.intersection(self.geometry.span_of(index));
            let done = self.write_some(part, range, data).await?;
            rest = rest.split_at(done).1;
        }
        Ok(())
    }

    /// Commits, so that what is not named any more is free. Says whether there was anything.
    async fn make_room(self: &Arc<Self>) -> Result<bool> {
        let freed = lock(&self.pending).freed() + lock(&self.freed).len();
        if freed == 0 {
            return Ok(false);
        }
        self.commit().await?;
        Ok(lock(&self.pending).freed() + lock(&self.freed).len() < freed)
    }

    /// Writes the first part of `part`, which is in what one table maps; `data` is that of `whole`. Says how much.
    async fn write_some(
        self: &Arc<Self>,
        part: ByteRange,
        whole: ByteRange,
        data: &mut Buffer,
    ) -> Result<u64> {
        let (index, at) = self.geometry.indices(part.start());
        if let Some(table) = self.reader.tables.table(index).await?
            && let Some(place) = self.run_in_place(&table, part)?
        {
            let (own, _) = part.split_at(place.len());
            if own == whole {
                *data = self
                    .arrive(place, std::mem::replace(data, Buffer::zeroed(0)))
                    .await?;
            } else {
                let bytes = Buffer::from(&data[indices(own, whole)]);
                self.arrive(place, bytes).await?;
            }
            return Ok(place.len());
        }
        let table = self.table_to_change(index).await?;
        let (own, _) = part.split_at(self.geometry.cluster_size() - self.within(part.start()));
        let mut change = Change {
            index,
            table: &table,
            own,
            host: 0,
            claim: None,
        };
        if let (_, Way::Keep(host)) = self.way(table.entry(at), own)? {
            change.host = host;
        } else {
            let size = self.geometry.cluster_size();
            let wanted = self.run_of_new(&table, part)?;
            let around = self.geometry.around(wanted);
            let claim = self.claim(around.len() / size).await?;
            let end = around.start() + claim.clusters.count * size;
            change.own = ByteRange::between(wanted.start(), wanted.end().min(end));
            change.host = claim.clusters.first * size;
            change.claim = Some(claim);
        }
        let done = change.own.len();
        self.place(change, whole, data).await?;
        Ok(done)
    }

    /// How far `guest` lies behind the beginning of its cluster.
    fn within(&self, guest: u64) -> u64 {
        guest % self.geometry.cluster_size()
    }

    /// As much of `part` as needs new places.
    fn run_of_new(&self, table: &L2Table, part: ByteRange) -> Result<ByteRange> {
        let mut end = part.start();
        for wanted in part.pieces(self.geometry.cluster_size()) {
            let (_, at) = self.geometry.indices(wanted.start());
            if self.way(table.entry(at), wanted)?.1 != Way::New {
                break;
            }
            end = wanted.end();
        }
        Ok(ByteRange::between(part.start(), end))
    }

    /// L2 table `index`, which may be changed: a new one where there is none, a copy where a snapshot has it, too.
    async fn table_to_change(self: &Arc<Self>, index: u64) -> Result<Arc<L2Table>> {
        let tables = &self.reader.tables;
        let is_own = || {
            let word = usize::try_from(index)
                .ok()
                .and_then(|index| tables.l1().get(index));
            word.is_some_and(|word| word.load(Ordering::Acquire) & COPIED != 0)
        };
        if is_own()
            && let Some(table) = tables.table(index).await?
        {
            return Ok(table);
        }
        let _turn = self.adding.lock().await;
        if is_own()
            && let Some(table) = tables.table(index).await?
        {
            return Ok(table);
        }
        let geometry = self.geometry;
        let old = match tables.table(index).await? {
            Some(old) => Some((old, tables.place_of(index)?)),
            None => None,
        };
        let mut claim = self.claim(1).await?;
        let table = match &old {
            Some((old, _)) => L2Table::parse(&old.bytes(0..old.len()), geometry),
            None => L2Table::empty(geometry),
        };
        let table = Arc::new(table);
        let place = claim.clusters.first * geometry.cluster_size();
        let mut pending = lock(&self.pending);
        pending.add_table(index, Arc::clone(&table), place, tables, self.part);
        if let Some((_, Some(place))) = old {
            pending.free(Clusters {
                first: place / geometry.cluster_size(),
                count: 1,
            });
        }
        claim.state = ClaimState::Used;
        Ok(table)
    }

    /// Allocates `most` clusters in a row, or fewer.
    async fn claim(self: &Arc<Self>, most: u64) -> Result<Claim<'_>> {
        loop {
            self.absorb().await?;
            let allocated = self.allocator.lock().await.allocate(most).await?;
            if let Some(clusters) = allocated {
                return Ok(Claim {
                    shared: self,
                    clusters,
                    state: ClaimState::Unwritten,
                });
            }
            let shared = Arc::clone(self);
            let grow = async move { shared.allocator.lock().await.grow().await };
            self.worker.run(grow).await?;
        }
    }

    /// Keeps what is not in the file within its bounds.
    async fn relieve(self: &Arc<Self>) -> Result<()> {
        let is_much = {
            let pending = lock(&self.pending);
            let most = (self.reader.tables.most_kept() / 2).max(1);
            pending.tables() > most || pending.freed() > MOST_FREED
        };
        if is_much {
            self.commit().await?;
        }
        Ok(())
    }
}

/// Where `part` lies in the bytes of `whole`.
fn indices(part: ByteRange, whole: ByteRange) -> std::ops::Range<usize> {
    let start = (part.start() - whole.start()) as usize;
    start..start + part.len() as usize
}

/// A bit for each subcluster of its cluster that `range` touches; it lies in one cluster and is not empty.
fn subclusters(geometry: Geometry, range: ByteRange) -> u32 {
    let size = geometry.cluster_size() / SUBCLUSTERS;
    let within = range.start() % geometry.cluster_size();
    let (first, last) = (within / size, (within + range.len() - 1) / size);
    (u32::MAX >> (31 - last)) & (u32::MAX << first)
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if self.state == ClaimState::Unwritten {
            lock(&self.shared.returned).push(self.clusters);
        }
    }
}

impl Drop for Arriving<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            lock(&self.shared.late).insert(self.place);
        }
    }
}
