//! Another backing file for an image whose disk stays what it is.
//!
//! Where the image has nothing of its own, and the two backing files differ, it gets what the old one has. All of that is
//! durable before the header names the new one, so that a crash leaves an image that shows the same through one of both.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use blockferry_block::{
    BlockDevice, BoxFuture, Buffer, ByteRange, Context, DeviceInfo, Error, ErrorKind, Operation,
    RangeSet, Result, Status, WriteFlags, ZeroFlags, is_zero, request_range,
};
use futures_util::{StreamExt, stream};

use super::{
    Backing, OpenOptions,
    backing::{check_backing, set_backing},
    check::{RepairMode, mend_dirty, repair_in},
    geometry::Geometry,
    header::{Compression, Header},
    host::HostFile,
    image::open_reader,
    read::Reader,
    resize::cut_file,
    runs::Source,
    write::Writer,
};
use crate::{Related, Stop};

/// So many clusters of the disk are looked at before the next ones are.
const PART: u64 = 128 << 10;

/// What is compared at a time, in bytes, unless clusters are larger, and how many of those side by side.
const PIECE: u64 = 1 << 20;
const SIDE_BY_SIDE: usize = 4;

/// How an image gets another backing file.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct RebaseOptions {
    /// What the old backing file and the new one have in common. Nothing unless set.
    pub common: Option<Common>,
    /// What is written into the image is compressed, in whole clusters, as the image compresses. Default false.
    pub compress: bool,
    /// Asks for the end: the image has its old backing file then. Nothing unless set.
    pub stop: Stop,
    /// Told how far it is in the disk, in bytes: the numbers never fall. Nobody unless set.
    pub progress: Option<Arc<dyn Fn(u64) + Send + Sync>>,
}

/// What a chain of images and the new backing file, which is one of them, have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Common {
    /// Which one it is: 1 is the old backing file itself, as in `qemu:allocation-depth`.
    pub depth: u64,
    /// The size of the smallest of them, up to that one, in bytes: behind it they may show something else.
    pub size: u64,
}

/// Gives the image in `below` the backing file `backing`, or none; its disk stays what it is. What is in the new one is in
/// `backing.device`; without it the new one is taken for zeroes. The old one is opened by `related`, as the data file is.
/// Nobody else uses the image meanwhile; `below` can grow where it needs room. Internal snapshots are left alone, and
/// show what is in the new backing file.
///
/// A crash at any point leaves the old backing file or the new one, the same disk, and lost space at worst.
///
/// # Errors
/// As [`set_backing`], those of `related` and of opening the image for writing, what reading and writing failed with,
/// `NoSpace`, `Cancelled`: the image has its old backing file then.
pub async fn rebase(
    below: Arc<dyn BlockDevice>,
    related: &dyn Related,
    backing: Option<&Backing>,
    options: &RebaseOptions,
) -> Result<()> {
    let header = Header::read(&*below).await?;
    let file = HostFile::new(Arc::clone(&below));
    let header = mend_dirty(&file, header).await?;
    check_backing(&file, &header, backing).await?;
    let opening = OpenOptions {
        writable: true,
        ..OpenOptions::default()
    };
    let mut reader = open_reader(&file, &header, related, &opening).await?;
    let size = header.geometry.size;
    let new = backing.and_then(|backing| backing.device.clone());
    let old = Arc::new(Padded::new(
        reader.backing.take().map(|it| Arc::clone(it.device())),
        size,
    ));
    // Zeroes are written down where only the end of the old one makes them.
    let shown: Arc<dyn BlockDevice> = old.clone();
    reader.backing = Some(HostFile::new(shown));
    let writer = Writer::open(&file, &reader, &header, &[]).await?;
    writer.begin().await?;
    let rebasing = Rebasing {
        geometry: header.geometry,
        compression: header.compression,
        old,
        new: Padded::new(new, size),
        reader,
        writer,
        options,
        has_failed: AtomicBool::new(false),
    };
    let written = rebasing.write_differences().await;
    // What was written is no harm in any case.
    let closed = rebasing.writer.close().await;
    let is_stopped = |error: &Error| error.kind() == ErrorKind::Cancelled;
    if closed.is_err() || written.as_ref().is_err_and(|error| !is_stopped(error)) {
        let reader = rebasing.reader.clone();
        drop(rebasing);
        // What failed first is told; if this fails, too, space is lost and nothing else.
        let _ = give_back(&file, &reader).await;
    }
    written?;
    closed?;
    options.stop.check()?;
    set_backing(below, backing).await
}

/// Gives up the space that was allocated and is named by no table: writes there failed, or those of the tables.
async fn give_back(file: &HostFile, reader: &Reader) -> Result<()> {
    let again = || async {
        let header = Header::read(&**file.device()).await?;
        Writer::open(file, reader, &header, &[]).await
    };
    // A write that failed may have made the file longer.
    file.grown_to(again().await?.trim_end().await?);
    repair_in(file, RepairMode::Leaks).await?;
    cut_file(file, &again().await?).await
}

/// A backing file as the image shows it: as long as its disk, with zeroes behind its end.
struct Padded {
    file: Option<HostFile>,
    info: DeviceInfo,
}

impl Padded {
    fn new(device: Option<Arc<dyn BlockDevice>>, size: u64) -> Self {
        let name = device
            .as_ref()
            .map_or_else(|| Arc::from("nothing"), |it| Arc::clone(&it.info().name));
        let mut info = DeviceInfo::new(name, size);
        info.contexts = Vec::new();
        let file = device.map(HostFile::new);
        Self { file, info }
    }

    /// The file, where `offset` lies before its end.
    fn there(&self, offset: u64) -> Option<&HostFile> {
        self.file.as_ref().filter(|file| offset < file.end())
    }

    async fn bytes(&self, range: ByteRange) -> Result<Buffer> {
        let buffer = Buffer::zeroed(range.len() as usize);
        match self.there(range.start()) {
            Some(file) => {
                let name = || "the backing file".to_owned();
                file.read_padded(range.start(), buffer, name).await
            }
            None => Ok(buffer),
        }
    }

    /// Adds the parts of `range` to `found` that may be something else than zeroes.
    async fn add_data(&self, range: ByteRange, found: &mut RangeSet) {
        let Some(file) = self.there(range.start()) else {
            return;
        };
        let there = range.intersection(ByteRange::between(0, file.end()));
        let add = |range, status: Status| {
            if !status.is_zero() {
                found.insert(range);
            }
        };
        each_extent(
            &**file.device(),
            there,
            &Context::Allocation,
            Status::DATA,
            add,
        )
        .await;
    }
}

impl BlockDevice for Padded {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, mut buffer: Buffer) -> BoxFuture<'_, Result<Buffer>> {
        Box::pin(async move {
            let range = request_range(Operation::Read, offset, &buffer)?;
            self.info.check(Operation::Read, range)?;
            match self.there(offset) {
                Some(file) => {
                    let name = || "the backing file".to_owned();
                    file.read_padded(offset, buffer, name).await
                }
                None => {
                    buffer.fill(0);
                    Ok(buffer)
                }
            }
        })
    }
}

/// Tells `each` what `device` says of `range`; where it says nothing that makes sense, that it is `unknown`.
async fn each_extent(
    device: &dyn BlockDevice,
    range: ByteRange,
    context: &Context,
    unknown: Status,
    mut each: impl FnMut(ByteRange, Status),
) {
    let mut rest = range;
    while !rest.is_empty() {
        let answer = device.extents(rest, context).await.unwrap_or_default();
        let before = rest;
        for extent in answer {
            if extent.range.start() != rest.start() {
                break;
            }
            let (part, behind) = rest.split_at(extent.range.len());
            each(part, extent.status);
            rest = behind;
        }
        if rest == before {
            return each(rest, unknown);
        }
    }
}

/// An image that gets another backing file.
struct Rebasing<'a> {
    geometry: Geometry,
    compression: Compression,
    old: Arc<Padded>,
    new: Padded,
    reader: Reader,
    writer: Writer,
    options: &'a RebaseOptions,
    /// Nothing more is begun.
    has_failed: AtomicBool,
}

impl Rebasing<'_> {
    async fn write_differences(&self) -> Result<()> {
        let cluster = self.geometry.cluster_size();
        let (part, piece) = (cluster * PART, PIECE.max(cluster));
        for part in ByteRange::between(0, self.geometry.size).pieces(part) {
            self.options.stop.check()?;
            let candidates = self.candidates(part).await?;
            let pieces = candidates.iter().flat_map(|range| range.pieces(piece));
            let writing = pieces.map(|range| async move {
                let written = self.write_where_different(range).await;
                (range.end(), written)
            });
            // Those under way come to their ends also when one has failed.
            let mut writing = stream::iter(writing).buffer_unordered(SIDE_BY_SIDE);
            let (mut done, mut result) = (part.start(), Ok(()));
            while let Some((end, written)) = writing.next().await {
                result = result.and(written);
                if end > done {
                    done = end;
                    self.tell(done);
                }
            }
            result?;
            if done < part.end() {
                self.tell(part.end());
            }
            // Where there is nothing to be read, nobody else had a turn.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    fn tell(&self, done: u64) {
        if let Some(progress) = &self.options.progress {
            progress(done);
        }
    }

    /// What is written as a whole: what an entry tells apart, or what is compressed.
    fn unit(&self) -> u64 {
        match self.options.compress {
            true => self.geometry.cluster_size(),
            false => self.geometry.subcluster_size(),
        }
    }

    /// The parts of `part` that the image has nothing of and that may differ: whole units.
    async fn candidates(&self, part: ByteRange) -> Result<RangeSet> {
        let mut found = RangeSet::new();
        for run in self.reader.runs(part).await? {
            if run.source != Source::Behind {
                continue;
            }
            let mut data = RangeSet::new();
            self.old.add_data(run.range, &mut data).await;
            self.new.add_data(run.range, &mut data).await;
            if !data.is_empty() {
                self.take_out_common(run.range, &mut data).await;
            }
            for range in data.iter() {
                let unit = self.unit();
                let start = range.start() - range.start() % unit;
                let around = ByteRange::between(start, range.end().next_multiple_of(unit));
                // Runs are whole units but for the end of the disk.
                found.insert(around.intersection(run.range));
            }
        }
        Ok(found)
    }

    /// Takes out of `data` what of `range` comes from an image that both chains have.
    async fn take_out_common(&self, range: ByteRange, data: &mut RangeSet) {
        let (Some(common), Some(old)) = (self.options.common, &self.old.file) else {
            return;
        };
        let there = range.intersection(ByteRange::between(0, common.size.min(old.end())));
        if there.is_empty() {
            return;
        }
        // What tells nothing of depths has all of itself.
        let itself = Status(1);
        let take = |range, depth: Status| {
            if depth.0 == 0 || depth.0 >= common.depth {
                data.remove(range);
            }
        };
        each_extent(
            &**old.device(),
            there,
            &Context::AllocationDepth,
            itself,
            take,
        )
        .await;
    }

    /// Compares `range`, whole units, and writes those that differ, unless something has failed.
    async fn write_where_different(&self, range: ByteRange) -> Result<()> {
        if self.has_failed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let written = self.write_differing(range).await;
        if written.is_err() {
            self.has_failed.store(true, Ordering::Relaxed);
        }
        written
    }

    async fn write_differing(&self, range: ByteRange) -> Result<()> {
        let cluster = self.geometry.cluster_size();
        let small = self.geometry.subcluster_size();
        if !self.options.compress {
            return self.write_units(range, small, Packing::None).await;
        }
        // The image may have a part of a cluster already.
        let disk_end = self.geometry.size;
        let start = range.start().next_multiple_of(cluster).min(range.end());
        let end = match range.end() == disk_end {
            true => disk_end,
            false => range.end() - range.end() % cluster,
        };
        let end = end.max(start);
        for (start, end, unit, packing) in [
            (range.start(), start, small, Packing::None),
            (start, end, cluster, Packing::Clusters),
            (end, range.end(), small, Packing::None),
        ] {
            let part = ByteRange::between(start, end);
            self.write_units(part, unit, packing).await?;
        }
        Ok(())
    }

    /// Compares `range`, whole units of `unit` bytes, and writes those that differ.
    async fn write_units(&self, range: ByteRange, unit: u64, packing: Packing) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        self.options.stop.check()?;
        let (old, new) = futures_util::try_join!(self.old.bytes(range), self.new.bytes(range))?;
        let unit = usize::try_from(unit).unwrap_or(usize::MAX);
        let mut rest = old.chunks(unit).zip(new.chunks(unit)).peekable();
        let mut at = range.start();
        let kind = |(old, new): (&[u8], &[u8])| match old == new {
            true => Kind::Same,
            false if is_zero(old) => Kind::Zero,
            false => Kind::Data,
        };
        while let Some(first) = rest.next() {
            let what = kind(first);
            let mut length = first.0.len();
            while let Some(next) = rest.next_if(|next| kind(*next) == what) {
                length += next.0.len();
            }
            let own = ByteRange::between(at, at + length as u64);
            at = own.end();
            let bytes = || {
                let start = (own.start() - range.start()) as usize;
                Buffer::from(&old[start..start + length])
            };
            match (what, packing) {
                (Kind::Same, _) => {}
                (Kind::Zero, _) => self.writer.zero(own, ZeroFlags::empty()).await?,
                (Kind::Data, Packing::None) => {
                    self.writer.write(own, bytes(), WriteFlags::empty()).await?;
                }
                (Kind::Data, Packing::Clusters) => {
                    let written = self.writer.write_packed(own, bytes(), self.compression);
                    written.await?;
                }
            }
        }
        Ok(())
    }
}

/// Whether what is written is compressed.
#[derive(Clone, Copy)]
enum Packing {
    None,
    Clusters,
}

/// What the image gets of a unit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Same,
    Zero,
    Data,
}

#[cfg(test)]
mod tests;
