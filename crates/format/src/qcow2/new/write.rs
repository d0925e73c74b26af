//! Clusters get their places and go there.

use std::sync::Arc;

use blockferry_block::{
    BlockDevice, Buffer, ByteRange, Context, CopyFlags, Error, ErrorKind, Extent, FileRange,
    Mapping, PipeBuffer, RangeSet, Result, ZeroFlags,
};

use super::{
    NewImage, check_layout,
    classify::{ALL, Fate, Piece},
    finish::set_disk_size,
    map::{Table, spans},
};
use crate::{
    making::{Make, Progress},
    qcow2::{
        BitmapDetails, Preallocation,
        entry::{COMPRESSED, COPIED, Cluster, Entry, OFFSET},
    },
};

/// How much of a range is zeroed by writing, at a time, in bytes.
const ZEROES: u64 = 1 << 20;

/// Clusters that lie side by side in the disk and in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// In the virtual disk.
    pub(super) guest: ByteRange,
    /// Where the first one lies.
    pub(super) host: u64,
}

impl Make for NewImage {
    fn progress(&self) -> &Progress {
        &self.progress
    }

    fn unit(&self) -> Option<(u64, &'static str)> {
        Some((self.cluster_size(), "clusters"))
    }

    fn check_size(&self, size: u64) -> Result<()> {
        check_layout(&self.options, size)
    }

    async fn write_range(&self, range: ByteRange, data: Buffer) -> Result<Buffer> {
        let change = self.progress.doubt.begin(range);
        let data = match self.fixed_place() {
            Some(first) => {
                let data = self.data().write(first + range.start(), data).await?;
                self.with_fixed(|written| written.insert(range));
                data
            }
            None => self.write_mapped(range, data).await?,
        };
        change.done();
        Ok(data)
    }

    async fn write_pipe(&self, range: ByteRange, data: PipeBuffer) -> Result<()> {
        if !self.data().takes_as_it_is(range) {
            return self.write_range(range, data.into_memory()?).await.map(drop);
        }
        let change = self.progress.doubt.begin(range);
        match self.fixed_place() {
            Some(first) => {
                let at = first + range.start();
                self.data().write_piped(at, data).await?;
                self.with_fixed(|written| written.insert(range));
            }
            None => match self.place_all(range).await?[..] {
                [run] => self.data().write_piped(run.host, data).await?,
                _ => {
                    self.write_mapped(range, data.into_memory()?).await?;
                }
            },
        }
        change.done();
        Ok(())
    }

    async fn copy_range(
        &self,
        range: ByteRange,
        source: &FileRange,
        flags: CopyFlags,
    ) -> Result<()> {
        let change = self.progress.doubt.begin(range);
        let copied = self.copy_to_places(range, source, flags).await;
        match copied {
            Ok(()) => change.done(),
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                // It is written instead, but for zeroes: nothing may be left of it.
                self.with_fixed(|written| written.remove(range));
                if self.fixed.is_none() {
                    self.forget_all(range).await?;
                }
                change.nothing();
                return Err(error);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn zero_range(&self, range: ByteRange, flags: ZeroFlags) -> Result<()> {
        let keep = flags.contains(ZeroFlags::NO_HOLE);
        self.settle(range).await?;
        let change = self.progress.doubt.begin(range);
        if let Some(first) = self.fixed_place() {
            self.zero_fixed(range, first, keep).await?;
        } else if keep {
            self.allocate_zeroes(range).await?;
        } else {
            self.make_holes(range).await?;
        }
        change.done();
        Ok(())
    }

    /// Sets the virtual size. What is cut off is forgotten.
    async fn set_size(&self, size: u64) -> Result<()> {
        self.progress.check_resize()?;
        check_layout(&self.options, size)?;
        let before = self.size();
        if size < before {
            self.cut_off(ByteRange::between(size, before)).await?;
        }
        self.progress.set_size(size);
        if let Some(data) = &self.data_file {
            set_disk_size(data, size).await?;
        }
        Ok(())
    }

    async fn read_range(&self, range: ByteRange, buffer: Buffer) -> Result<Buffer> {
        self.read_parts(range, buffer).await
    }

    async fn find_extents(&self, range: ByteRange) -> Result<Vec<Extent>> {
        self.list_extents(range).await
    }

    fn map_range(&self, range: ByteRange) -> Mapping<'_> {
        self.find_place(range)
    }

    async fn flush(&self) -> Result<()> {
        self.drain().await?;
        if let Some(data) = &self.data_file {
            data.flush().await?;
        }
        self.file.flush().await
    }

    async fn complete(&self) -> Result<()> {
        self.write_end().await
    }

    fn add_bitmap(&self, details: BitmapDetails, source: Arc<dyn BlockDevice>) -> Result<()> {
        self.note_bitmap(details, source)
    }
}

impl NewImage {
    async fn write_mapped(&self, range: ByteRange, data: Buffer) -> Result<Buffer> {
        if let Some(pipeline) = &self.pipeline {
            return self.write_compressed(range, data, pipeline).await;
        }
        let pieces = self.classify(range, &data).await?;
        if let [piece] = &pieces[..] {
            return self.write_piece(piece, data).await;
        }
        for piece in &pieces {
            let at = (piece.range.start() - range.start()) as usize;
            let part = match piece.is_data() {
                true => Buffer::from(&data[at..at + piece.range.len() as usize]),
                false => Buffer::zeroed(0),
            };
            self.write_piece(piece, part).await?;
        }
        Ok(data)
    }

    async fn write_piece(&self, piece: &Piece, data: Buffer) -> Result<Buffer> {
        if !piece.is_data() {
            self.forget(piece.range, &piece.fates).await?;
            return Ok(data);
        }
        let runs = self.place(piece.range, &piece.fates).await?;
        if let [run] = &runs[..] {
            return self.data().write(run.host, data).await;
        }
        for run in runs {
            let at = (run.guest.start() - piece.range.start()) as usize;
            let part = Buffer::from(&data[at..at + run.guest.len() as usize]);
            self.data().write(run.host, part).await?;
        }
        Ok(data)
    }

    /// The first attempt shows whether there is any use in others, which wait for it and have no places yet: those
    /// that are refused leave theirs empty.
    async fn copy_to_places(
        &self,
        range: ByteRange,
        source: &FileRange,
        flags: CopyFlags,
    ) -> Result<()> {
        if let Some(first) = self.fixed_place() {
            let run = Run {
                guest: range,
                host: first + range.start(),
            };
            return self.copy_runs(range, &[run], source, flags).await;
        }
        let mut own = None;
        let first = async {
            let end = self.places.end();
            let runs = self.place_all(range).await?;
            let copied = self.copy_runs(range, &runs, source, flags).await;
            let is_refused =
                matches!(&copied, Err(error) if error.kind() == ErrorKind::Unsupported);
            if is_refused {
                self.forget_all(range).await?;
                self.take_back(&runs, end);
            }
            own = Some(copied);
            Ok::<_, Error>(!is_refused)
        };
        let takes_over = *self.takes_over.get_or_try_init(|| first).await?;
        match own {
            Some(copied) => copied,
            None if takes_over => {
                let runs = self.place_all(range).await?;
                self.copy_runs(range, &runs, source, flags).await
            }
            None => Err(Error::new(ErrorKind::Unsupported)),
        }
    }

    /// Lets the places of `runs` that were taken from `end` on be given out again. Something may have come there, and
    /// nothing is on its way.
    fn take_back(&self, runs: &[Run], end: u64) {
        if self.data_file.is_some() {
            return;
        }
        let cluster = self.cluster_size();
        let taken = runs.iter().filter(|run| run.host >= end);
        let taken = taken.map(|run| run.guest.len().next_multiple_of(cluster));
        self.file.no_longer_fresh();
        self.places.take_back(end, end + taken.sum::<u64>());
    }

    async fn copy_runs(
        &self,
        range: ByteRange,
        runs: &[Run],
        source: &FileRange,
        flags: CopyFlags,
    ) -> Result<()> {
        for run in runs {
            let place = ByteRange::between(run.host, run.host + run.guest.len());
            if !self.data().takes_as_it_is(place) {
                self.data().clear_last(place).await?;
            }
            let from = source.range().start() + (run.guest.start() - range.start());
            let from = ByteRange::between(from, from + run.guest.len());
            let source = source.with_range(from);
            self.data().copy_from(run.host, source, flags).await?;
        }
        self.with_fixed(|written| written.insert(range));
        Ok(())
    }

    /// Zeroes what was written of `range`; the rest is zeroed in the end.
    async fn zero_fixed(&self, range: ByteRange, first: u64, keep: bool) -> Result<()> {
        let parts = match keep {
            true => vec![range],
            false => self
                .with_fixed(|written| written.present_in(range))
                .unwrap_or_default(),
        };
        let is_allocated = keep || self.options.preallocation >= Preallocation::Falloc;
        let flags = match is_allocated {
            true => ZeroFlags::NO_HOLE,
            false => ZeroFlags::empty(),
        };
        for part in parts {
            let place = ByteRange::between(first + part.start(), first + part.end());
            self.data().zero(self.data().whole(place), flags).await?;
            self.with_fixed(|written| written.insert(part));
        }
        Ok(())
    }

    /// Gives all of `range` a place that is zero and takes space.
    pub(super) async fn allocate_zeroes(&self, range: ByteRange) -> Result<()> {
        for piece in range.pieces(self.geometry().table_span().max(ZEROES)) {
            for run in self.place_all(piece).await? {
                let place = ByteRange::between(run.host, run.host + run.guest.len());
                let place = self.data().whole(place);
                self.data().zero(place, ZeroFlags::NO_HOLE).await?;
            }
        }
        Ok(())
    }

    /// Makes `range` zero without a place.
    async fn make_holes(&self, range: ByteRange) -> Result<()> {
        let Some(backing) = &self.options.backing else {
            return self.forget_all(range).await;
        };
        for piece in range.pieces(self.geometry().table_span()) {
            match (&backing.device, self.options.version) {
                (None, 2) => self.allocate_zeroes(piece).await?,
                (Some(_), 2) => {
                    let length = ZEROES.max(self.cluster_size());
                    for piece in piece.pieces(length) {
                        let zeroes = Buffer::zeroed(piece.len() as usize);
                        self.write_mapped(piece, zeroes).await?;
                    }
                }
                (None, _) => self.forget_as(piece, Fate::Zero(u32::MAX)).await?,
                (Some(device), _) => {
                    let zero = zeroes_in(device.as_ref(), piece).await?;
                    self.make_holes_before(piece, &zero).await?;
                }
            }
        }
        Ok(())
    }

    /// As [`make_holes`](Self::make_holes), where `zero` says what is zero in the backing file.
    async fn make_holes_before(&self, range: ByteRange, zero: &RangeSet) -> Result<()> {
        let cluster = self.cluster_size();
        let mut at = range.start();
        for part in zero.present_in(range) {
            let start = part.start().next_multiple_of(cluster);
            let end = match part.end() == range.end() {
                true => part.end(),
                false => part.end() - part.end() % cluster,
            };
            if start >= end {
                continue;
            }
            let before = ByteRange::between(at, start);
            self.forget_as(before, Fate::Zero(u32::MAX)).await?;
            self.forget_all(ByteRange::between(start, end)).await?;
            at = end;
        }
        let rest = ByteRange::between(at, range.end());
        self.forget_as(rest, Fate::Zero(u32::MAX)).await
    }

    /// As [`place`](Self::place), for clusters all of which is stored.
    async fn place_all(&self, range: ByteRange) -> Result<Vec<Run>> {
        self.place(range, &[]).await
    }

    /// Gives each cluster of `range` a place, unless it has one, and says where they are. Clusters without a fate
    /// are stored whole.
    async fn place(&self, range: ByteRange, fates: &[Fate]) -> Result<Vec<Run>> {
        let geometry = self.geometry();
        let mut tables: Vec<(Arc<Table>, usize, usize)> = Vec::new();
        let mut missing = 0;
        for (index, first, count) in spans(geometry, range) {
            let table = self.map.table(index).await?;
            let entries = (first..first + count).map(|at| table.entry(at));
            missing += entries.filter(|entry| place_of(*entry).is_none()).count() as u64;
            tables.push((table, first, count));
        }
        let cluster = self.cluster_size();
        let mut free = ByteRange::default();
        if missing > 0 && self.data_file.is_none() {
            let start = self.places.take(missing)?;
            free = ByteRange::between(start, start + missing * cluster);
            self.file.check_room(free.end())?;
        }
        let mut runs: Vec<Run> = Vec::new();
        let mut guests = range.pieces(cluster);
        let mut fates = fates.iter();
        for (table, first, count) in &tables {
            for (at, guest) in (*first..first + count).zip(&mut guests) {
                let host = match self.data_file {
                    Some(_) => claim(table, at, guest.start()).0,
                    None => {
                        let (host, is_new) = claim(table, at, free.start());
                        if is_new {
                            free = ByteRange::between(free.start() + cluster, free.end());
                        }
                        host
                    }
                };
                let Fate::Data { allocated, zero } = fates.next().copied().unwrap_or(ALL) else {
                    continue;
                };
                let masks = u64::from(zero) << 32 | u64::from(allocated);
                table.set_subclusters(at, masks);
                match runs.last_mut() {
                    Some(last) if last.host + last.guest.len() == host => {
                        last.guest = ByteRange::between(last.guest.start(), guest.end());
                    }
                    _ => runs.push(Run { guest, host }),
                }
            }
        }
        // Somebody else was quicker with the same cluster.
        self.places.give_back(free);
        Ok(runs)
    }

    /// Takes the places of all clusters of `range` away, so that nothing is said of them.
    pub(super) async fn forget_all(&self, range: ByteRange) -> Result<()> {
        self.forget_as(range, Fate::Nothing).await
    }

    async fn forget_as(&self, range: ByteRange, fate: Fate) -> Result<()> {
        let geometry = self.geometry();
        if fate != Fate::Nothing {
            let count = range.len().div_ceil(self.cluster_size());
            return self.forget(range, &vec![fate; count as usize]).await;
        }
        // Most of what is forgotten was never known.
        let mut rest = range;
        while !rest.is_empty() {
            let Some(index) = self.map.next_used(geometry.indices(rest.start()).0) else {
                return Ok(());
            };
            let span = geometry.span_of(index).intersection(rest);
            if span.is_empty() {
                return Ok(());
            }
            let count = span.len().div_ceil(self.cluster_size());
            self.forget(span, &vec![fate; count as usize]).await?;
            rest = ByteRange::between(span.end(), rest.end());
        }
        Ok(())
    }

    /// Takes the places of the clusters of `range` away; their fates are no data.
    pub(super) async fn forget(&self, range: ByteRange, fates: &[Fate]) -> Result<()> {
        let geometry = self.geometry();
        let mut fates = fates.iter();
        for (index, first, count) in spans(geometry, range) {
            let is_needed = fates.as_slice().iter().take(count);
            let is_needed = is_needed.clone().any(|fate| *fate != Fate::Nothing);
            let table = match is_needed {
                true => Some(self.map.table(index).await?),
                false => self.map.existing(index).await?,
            };
            let fates = fates.by_ref().take(count);
            let Some(table) = table else {
                fates.for_each(drop);
                continue;
            };
            for (at, fate) in (first..first + count).zip(fates) {
                let cluster = match fate {
                    Fate::Zero(u32::MAX) => Cluster::Zero { host: None },
                    Fate::Zero(zero) => Cluster::Mixed {
                        host: None,
                        allocated: 0,
                        zero: *zero,
                    },
                    _ => Cluster::Unallocated,
                };
                let entry = Entry::encode(cluster, geometry);
                if table.entry(at) == entry {
                    continue;
                }
                let before = table.replace(at, entry);
                if let (Some(host), None) = (place_of(before), &self.data_file) {
                    let place = ByteRange::between(host, host + self.cluster_size());
                    self.places.give_back(place);
                }
            }
        }
        Ok(())
    }

    /// Makes the end of the disk, `range`, read as zeroes, should it grow again.
    async fn cut_off(&self, range: ByteRange) -> Result<()> {
        let cluster = self.cluster_size();
        let start = range.start() - range.start() % cluster;
        let first = ByteRange::between(start, range.end().min(start + cluster));
        if start < range.start() {
            let bytes = Buffer::zeroed(first.len() as usize);
            let mut bytes = self.read_range(first, bytes).await?;
            bytes[(range.start() - start) as usize..].fill(0);
            self.write_range(first, bytes).await?;
        }
        let start = range.start().next_multiple_of(cluster);
        let rest = ByteRange::between(start, range.end());
        self.settle(rest).await?;
        if !rest.is_empty() {
            self.with_fixed(|written| written.remove(rest));
            self.forget_all(rest).await?;
        }
        self.progress.doubt.begin(range).done();
        Ok(())
    }
}

/// Where the cluster of an entry lies, if it has a place of its own.
pub(super) fn place_of(entry: Entry) -> Option<u64> {
    let host = entry.word & OFFSET;
    let is_plain = entry.word & COMPRESSED == 0;
    // With a data file the first cluster lies at its beginning.
    let has_place = is_plain && (host != 0 || entry.word & COPIED != 0);
    has_place.then_some(host)
}

/// The place of a cluster, and whether it is `free`, which it got if it had none.
fn claim(table: &Table, at: usize, free: u64) -> (u64, bool) {
    let mut entry = table.entry(at);
    loop {
        if let Some(host) = place_of(entry) {
            return (host, false);
        }
        match table.exchange(at, entry.word, free | COPIED) {
            Ok(()) => return (free, true),
            Err(word) => entry.word = word,
        }
    }
}

/// What is known to be zero in `range` of the backing file; behind its end, all is.
async fn zeroes_in(device: &dyn BlockDevice, range: ByteRange) -> Result<RangeSet> {
    let size = device.info().size;
    let mut zero = RangeSet::new();
    zero.insert(ByteRange::between(range.start().max(size), range.end()));
    let mut rest = range.intersection(ByteRange::between(0, size));
    while device.info().knows_allocation() && !rest.is_empty() {
        // What it does not tell is taken for data.
        let Ok(extents) = device.extents(rest, &Context::Allocation).await else {
            break;
        };
        let zeroes = extents.iter().filter(|extent| extent.status.is_zero());
        zero.extend(zeroes.map(|extent| extent.range.intersection(rest)));
        match extents.last() {
            Some(last) if last.range.end() > rest.start() => {
                rest = ByteRange::between(last.range.end(), rest.end());
            }
            _ => break,
        }
    }
    Ok(zero)
}
