//! Zeroing and discarding: as far as they go, whole clusters change their entries and nothing else.

use std::sync::Arc;

use blockferry_block::{
    Buffer, ByteRange, Capabilities, Error, ErrorKind, Operation, Result, WriteFlags, ZeroFlags,
};

use super::{Shared, Writer, lock, places_of, subclusters};
use crate::qcow2::{
    entry::{COPIED, Cluster, Entry},
    host::HostFile,
    runs::Source,
    tables::L2Table,
};

/// Zeroes are written in pieces of so many bytes.
const PIECE: u64 = 1 << 20;

/// What happens to whole clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clearing {
    /// They read as zeroes, and their space is given up.
    Zero,
    /// They read as zeroes and keep their space.
    ZeroInPlace,
    /// Nobody minds what they read as.
    Discard,
    /// They are not of the disk any more.
    Drop,
}

impl Clearing {
    /// Whether what is not allocated must not show what lies behind.
    fn makes_zeroes(self) -> bool {
        matches!(self, Self::Zero | Self::ZeroInPlace)
    }
}

impl Writer {
    /// Makes `range` of the disk read as zeroes.
    ///
    /// # Errors
    /// `Unsupported` where it would not be fast and is to be; as a write.
    pub(crate) async fn zero(&self, range: ByteRange, flags: ZeroFlags) -> Result<()> {
        self.0.zero(range, flags).await?;
        if flags.contains(ZeroFlags::FUA) {
            self.flush().await?;
        }
        Ok(())
    }

    /// Discards `range` of the disk, as far as it has whole clusters.
    ///
    /// # Errors
    /// As a write.
    pub(crate) async fn trim(&self, range: ByteRange, flags: WriteFlags) -> Result<()> {
        self.0.trim(range).await?;
        if flags.contains(WriteFlags::FUA) {
            self.flush().await?;
        }
        Ok(())
    }
}

impl Shared {
    /// How much of the disk the backing file shows behind.
    fn shown(&self) -> u64 {
        self.reader.backing.as_ref().map_or(0, HostFile::end)
    }

    /// Whether whole clusters can become zeroes without being written.
    pub(super) fn zeroes_fast(&self) -> bool {
        !self.is_raw && (self.geometry.version >= 3 || self.reader.backing.is_none())
    }

    async fn zero(self: &Arc<Self>, range: ByteRange, flags: ZeroFlags) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let unit = self.geometry.subcluster_size();
        let size = self.geometry.cluster_size();
        let (is_fast, whole) = match flags.contains(ZeroFlags::FAST) {
            // A part of a compressed cluster would be written.
            true => (true, self.whole(range, size)),
            false => (false, self.whole(range, unit)),
        };
        if !self.zeroes_fast() || is_fast && whole != range {
            if is_fast {
                return Err(Error::new(ErrorKind::Unsupported)
                    .during(Operation::Zero)
                    .at(range.start(), range.len()));
            }
            self.touch().await?;
            return self.write_zeroes(range).await;
        }
        self.touch().await?;
        let clearing = match flags.contains(ZeroFlags::NO_HOLE) {
            true => Clearing::ZeroInPlace,
            false => Clearing::Zero,
        };
        if whole.is_empty() {
            return self.write_zeroes(range).await;
        }
        self.write_zeroes(ByteRange::between(range.start(), whole.start()))
            .await?;
        self.clear(whole, clearing).await?;
        self.write_zeroes(ByteRange::between(whole.end(), range.end()))
            .await
    }

    async fn trim(self: &Arc<Self>, range: ByteRange) -> Result<()> {
        let whole = self.whole(range, self.geometry.cluster_size());
        let shows_backing = self.geometry.version < 3 && self.reader.backing.is_some();
        if whole.is_empty() || shows_backing {
            return Ok(());
        }
        self.touch().await?;
        if self.geometry.data_file {
            return self.trim_data(whole).await;
        }
        self.clear(whole, Clearing::Discard).await
    }

    /// The part of `range` that is whole units. At the end of the disk a unit may be cut short.
    fn whole(&self, range: ByteRange, unit: u64) -> ByteRange {
        let whole = range.aligned_within(unit);
        let end = match range.end() == self.geometry.size {
            true => range.end(),
            false => whole.end(),
        };
        let start = range.start().next_multiple_of(unit);
        ByteRange::between(start, end)
    }

    /// The data file gives up its space, and the tables stay as they are.
    async fn trim_data(self: &Arc<Self>, range: ByteRange) -> Result<()> {
        let device = Arc::clone(self.reader.data.device());
        if !device.info().can(Capabilities::TRIM) {
            return Ok(());
        }
        let _turn = self.turns.lock(self.geometry.around(range)).await;
        for run in self.reader.runs(range).await? {
            if let Source::Host(host) = run.source {
                let place = ByteRange::between(host, host + run.range.len());
                let there = place.intersection(ByteRange::between(0, self.reader.data.end()));
                if self.is_on_blocks(there) && !there.is_empty() {
                    device.trim(there, WriteFlags::empty()).await?;
                }
            }
        }
        Ok(())
    }

    /// Writes zeroes where `range` does not read as such anyhow.
    async fn write_zeroes(self: &Arc<Self>, range: ByteRange) -> Result<()> {
        for piece in range.pieces(PIECE) {
            for run in self.reader.runs(piece).await? {
                let shown = self.shown();
                let is_zero = match run.source {
                    Source::Zero => true,
                    Source::Behind => run.range.start() >= shown,
                    _ => false,
                };
                if !is_zero {
                    let zeroes = Buffer::zeroed(run.range.len() as usize);
                    self.write(run.range, zeroes).await?;
                }
            }
        }
        Ok(())
    }

    /// Clears `range`, which is whole subclusters.
    async fn clear(self: &Arc<Self>, range: ByteRange, clearing: Clearing) -> Result<()> {
        let geometry = self.geometry;
        let tables_end = range.end().div_ceil(geometry.table_span());
        let mut rest = range;
        while !rest.is_empty() {
            let (index, _) = geometry.indices(rest.start());
            let shown = self.shown();
            // Where there is no table nothing is allocated, and zeroes need none unless something shows.
            if !clearing.makes_zeroes() || rest.start() >= shown {
                let next = self.reader.tables.next_table(index, tables_end);
                if next > index {
                    let (_, behind) = rest.split_at(geometry.span_of(next).start() - rest.start());
                    rest = behind;
                    continue;
                }
            }
            let (part, behind) = rest.split_at(geometry.span_of(index).end() - rest.start());
            self.clear_in_table(index, part, clearing).await?;
            self.relieve().await?;
            rest = behind;
        }
        Ok(())
    }

    pub(super) async fn clear_in_table(
        self: &Arc<Self>,
        index: u64,
        part: ByteRange,
        clearing: Clearing,
    ) -> Result<()> {
        let packed = {
            let _turn = self.turns.lock(self.geometry.around(part)).await;
            let _pass = self.gate.enter();
            let known = self.reader.tables.table(index).await?;
            let is_new = known.is_none();
            let known = match known {
                Some(known) => known,
                None => Arc::new(L2Table::empty(self.geometry)),
            };
            let (changes, packed) = self.cleared(&known, part, clearing)?;
            if !changes.is_empty() {
                let table = self.table_to_change(index).await?;
                let olds = changes.iter().map(|(at, ..)| table.entry(*at));
                debug_assert!(is_new || olds.zip(&changes).all(|(old, it)| old == it.1));
                let mut pending = lock(&self.pending);
                let entries = changes.iter().map(|(at, _, new)| (*at, *new));
                pending.set(index, &table, entries, self.geometry, self.part);
                for (_, old, new) in &changes {
                    let old = old.decode(self.geometry)?;
                    let new = new.decode(self.geometry)?;
                    let (was, is) = (places_of(self.geometry, old), places_of(self.geometry, new));
                    if was != is {
                        was.into_iter().for_each(|clusters| pending.free(clusters));
                    }
                }
            }
            packed
        };
        for range in packed {
            self.write_zeroes(range).await?;
        }
        Ok(())
    }

    /// The entries that change, before and after; and what must be written, parts of compressed clusters.
    #[expect(clippy::type_complexity, reason = "two lists")]
    fn cleared(
        &self,
        table: &L2Table,
        part: ByteRange,
        clearing: Clearing,
    ) -> Result<(Vec<(usize, Entry, Entry)>, Vec<ByteRange>)> {
        let geometry = self.geometry;
        let size = geometry.cluster_size();
        let shown = self.shown();
        let (mut changes, mut packed) = (Vec::new(), Vec::new());
        for cleared in part.pieces(size) {
            let (_, at) = geometry.indices(cleared.start());
            let old = table.entry(at);
            let cluster = old.decode(geometry)?;
            let guest = cleared.start() - cleared.start() % size;
            let is_whole = self.whole(cleared, size) == cleared;
            let new = match cluster {
                Cluster::Unallocated if !clearing.makes_zeroes() || guest >= shown => old,
                Cluster::Compressed(_) if !is_whole => {
                    packed.push(cleared);
                    old
                }
                _ if !is_whole => {
                    let own = u64::from(subclusters(geometry, cleared));
                    Entry {
                        word: old.word,
                        subclusters: match cluster {
                            Cluster::Zero { .. } => old.subclusters,
                            _ => (old.subclusters | own << 32) & !own,
                        },
                    }
                }
                _ => {
                    let keeps = clearing == Clearing::ZeroInPlace
                        && old.word & COPIED != 0
                        && geometry.version >= 3;
                    let host = match cluster {
                        Cluster::Data { host } if keeps => Some(host),
                        Cluster::Zero { host } | Cluster::Mixed { host, .. } if keeps => host,
                        _ => None,
                    };
                    let after = match host {
                        None if guest >= shown || clearing == Clearing::Drop => {
                            Cluster::Unallocated
                        }
                        host => Cluster::Zero { host },
                    };
                    Entry::encode(after, geometry)
                }
            };
            if new != old {
                changes.push((at, old, new));
            }
        }
        Ok((changes, packed))
    }
}
