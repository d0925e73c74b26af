//! What another size of the disk asks of the tables.

use blockferry_block::{Buffer, ByteRange, ErrorKind, Result, ZeroFlags};

use super::{ClaimState, Shared, Writer, lock, places_of, zero::Clearing};
use crate::{
    Stop,
    qcow2::{
        Preallocation,
        allocate::Clusters,
        entry::{Cluster, Entry},
        host::HostFile,
        tables::L2Table,
    },
};

/// Where the length of the L1 table stands in the header, in entries, and behind it its place.
const L1_IN_HEADER: u64 = 36;

/// Zeroes are written in pieces of so many bytes.
const PIECE: u64 = 1 << 20;

impl Writer {
    /// Gives the image a longer L1 table, of `entries` entries, in a new place; the header says where that is once all
    /// of it is durable. Nothing can be written through this any more.
    ///
    /// # Errors
    /// `NoSpace`; what reading and writing failed with.
    pub(crate) async fn lengthen_l1(self, entries: u64) -> Result<()> {
        self.0.touch().await?;
        let result = self.0.lengthen_l1(entries).await;
        self.close().await?;
        result
    }

    /// What the image must not promise any more once it is written is not promised, durably.
    ///
    /// # Errors
    /// What writing failed with.
    pub(crate) async fn begin(&self) -> Result<()> {
        self.0.touch().await
    }

    /// So many clusters in a row, for the image's own tables; their refcounts are durable. Nobody writes meanwhile.
    ///
    /// # Errors
    /// `NoSpace`; what reading and writing refcounts failed with.
    pub(crate) async fn allocate(&self, count: u64) -> Result<Clusters> {
        let mut allocator = self.0.allocator.lock().await;
        let clusters = allocator.allocate_together(count).await?;
        allocator.write_changes().await?;
        Ok(clusters)
    }

    /// Gives up clusters that nothing names any more, durably. If that fails, space is lost and nothing else. Nobody writes
    /// meanwhile, and everything is in its place.
    pub(crate) async fn give_back(&self, clusters: Vec<Clusters>) {
        if clusters.is_empty() {
            return;
        }
        let mut allocator = self.0.allocator.lock().await;
        for clusters in clusters {
            let (_, _) = allocator.release(clusters).await;
        }
        let _ = allocator.write_changes().await;
    }

    /// Gives up all clusters that lie behind `size` as a whole, and all tables that map nothing before it.
    ///
    /// # Errors
    /// `Corrupt`; what reading and writing failed with.
    pub(crate) async fn drop_behind(&self, size: u64) -> Result<()> {
        let shared = &self.0;
        shared.touch().await?;
        let geometry = shared.geometry;
        let (cluster, span) = (geometry.cluster_size(), geometry.table_span());
        let start = size.next_multiple_of(cluster);
        let mut index = start / span;
        if !start.is_multiple_of(span) {
            let cut = ByteRange::between(start, geometry.span_of(index).end().max(start));
            shared.clear_in_table(index, cut, Clearing::Drop).await?;
            index += 1;
        }
        let tables = &shared.reader.tables;
        let end = tables.l1().len() as u64;
        loop {
            index = tables.next_table(index, end);
            if index >= end {
                return self.flush().await;
            }
            shared.drop_table(index).await?;
            shared.relieve().await?;
            index += 1;
        }
    }

    /// Gives every cluster of `range` that has none a place that reads as zeroes. `range` begins with a cluster.
    ///
    /// # Errors
    /// As a write; `Cancelled` where `stop` was asked for.
    pub(crate) async fn preallocate(
        &self,
        range: ByteRange,
        how: Preallocation,
        stop: &Stop,
    ) -> Result<()> {
        let shared = &self.0;
        shared.touch().await?;
        let geometry = shared.geometry;
        let mut rest = range;
        while !rest.is_empty() {
            let (index, _) = geometry.indices(rest.start());
            let (part, behind) = rest.split_at(geometry.span_of(index).end() - rest.start());
            let table = shared.table_to_change(index).await?;
            let mut left = part;
            while let Some(missing) = shared.first_without_place(&table, left)? {
                stop.check()?;
                let around = geometry.around(missing);
                let wanted = around.len() / geometry.cluster_size();
                let (host, claim) = match geometry.data_file {
                    true => (missing.start(), None),
                    false => {
                        let claim = shared.claim(wanted).await?;
                        (claim.clusters.first * geometry.cluster_size(), Some(claim))
                    }
                };
                let count = claim.as_ref().map_or(wanted, |claim| claim.clusters.count);
                let length = count * geometry.cluster_size();
                let done = missing.start() + length;
                let place = match geometry.data_file {
                    true => shared.in_data_file(ByteRange::between(host, done.min(missing.end()))),
                    false => ByteRange::between(host, host + length),
                };
                // What can be read as a raw image reads as zeroes there already.
                if !shared.is_raw || how > Preallocation::Metadata {
                    fill(&shared.reader.data, place, how, stop).await?;
                }
                let first = geometry.indices(missing.start()).1;
                let entries = (0..count).map(|number| {
                    let host = host + number * geometry.cluster_size();
                    let entry = Entry::encode(Cluster::Data { host }, geometry);
                    (first + number as usize, entry)
                });
                lock(&shared.pending).set(index, &table, entries, geometry, shared.part);
                if let Some(mut claim) = claim {
                    claim.state = ClaimState::Used;
                }
                left = left.split_at(done.min(left.end()) - left.start()).1;
                shared.relieve().await?;
            }
            rest = behind;
        }
        Ok(())
    }

    /// Gives up what refcounts need not be there at the end of the file, and says where the last cluster ends that is
    /// used, in bytes. Nobody writes meanwhile, and everything is in its place.
    ///
    /// # Errors
    /// What reading and writing refcounts failed with.
    pub(crate) async fn trim_end(&self) -> Result<u64> {
        self.0.allocator.lock().await.trim_end().await
    }
}

impl Shared {
    async fn lengthen_l1(&self, entries: u64) -> Result<()> {
        let cluster = self.geometry.cluster_size();
        let mut allocator = self.allocator.lock().await;
        let clusters = (entries * 8).div_ceil(cluster);
        let clusters = allocator.allocate_together(clusters).await?;
        allocator.write_changes().await?;
        let words = self.reader.tables.l1().iter();
        let words = words.map(|word| word.load(std::sync::atomic::Ordering::Acquire));
        let mut bytes: Vec<u8> = words.flat_map(u64::to_be_bytes).collect();
        bytes.resize((clusters.count * cluster) as usize, 0);
        let place = clusters.first * cluster;
        self.file.write(place, Buffer::from(&bytes[..])).await?;
        self.file.device().flush().await?;
        let mut says = (entries as u32).to_be_bytes().to_vec();
        says.extend(place.to_be_bytes());
        self.file.patch(L1_IN_HEADER, &says).await?;
        self.file.device().flush().await?;
        let old = self.reader.tables.l1_place();
        let old = Clusters {
            first: old.start() / cluster,
            count: old.len().div_ceil(cluster),
        };
        // If that fails, space is lost and nothing else.
        let (_, _) = allocator.release(old).await;
        let _ = allocator.write_changes().await;
        Ok(())
    }

    /// Gives up an L2 table and all that its entries name.
    async fn drop_table(&self, index: u64) -> Result<()> {
        let tables = &self.reader.tables;
        let (Some(table), Some(place)) = (tables.table(index).await?, tables.place_of(index)?)
        else {
            return Ok(());
        };
        let mut freed = Vec::new();
        for at in 0..table.len() {
            let cluster = table.entry(at).decode(self.geometry)?;
            freed.extend(places_of(self.geometry, cluster));
        }
        freed.push(Clusters {
            first: place / self.geometry.cluster_size(),
            count: 1,
        });
        let mut pending = lock(&self.pending);
        pending.remove_table(index, tables, self.part);
        freed
            .into_iter()
            .for_each(|clusters| pending.free(clusters));
        Ok(())
    }

    /// `place` of the data file up to the end of its last block, as far as that is there.
    fn in_data_file(&self, place: ByteRange) -> ByteRange {
        let data = &self.reader.data;
        let block = u64::from(data.device().info().limits.minimum.max(1));
        let end = place.end().next_multiple_of(block).min(data.end());
        ByteRange::between(place.start(), end.max(place.end()))
    }

    /// The first clusters of `range`, which `table` maps, that have no place.
    fn first_without_place(&self, table: &L2Table, range: ByteRange) -> Result<Option<ByteRange>> {
        let mut found: Option<ByteRange> = None;
        for cluster in range.pieces(self.geometry.cluster_size()) {
            let (_, at) = self.geometry.indices(cluster.start());
            let decoded = table.entry(at).decode(self.geometry)?;
            let is_missing = matches!(decoded, Cluster::Unallocated | Cluster::Zero { host: None });
            found = match (found, is_missing) {
                (None, false) => None,
                (None, true) => Some(cluster),
                (Some(found), true) => Some(ByteRange::between(found.start(), cluster.end())),
                (Some(found), false) => return Ok(Some(found)),
            };
        }
        Ok(found)
    }
}

/// Makes `place`, whole blocks of the file, read as zeroes, allocated as far as was asked for. The file reaches to its
/// end then.
///
/// # Errors
/// What writing failed with; `Cancelled` where `stop` was asked for.
pub(crate) async fn fill(
    file: &HostFile,
    place: ByteRange,
    how: Preallocation,
    stop: &Stop,
) -> Result<()> {
    let end = file.end();
    if how == Preallocation::Full {
        return write_zeroes(file, place, stop).await;
    }
    let flags = match how {
        Preallocation::Falloc => ZeroFlags::NO_HOLE,
        _ => ZeroFlags::empty(),
    };
    let (there, behind) = place.split_at(end.saturating_sub(place.start()));
    zero(file, there, flags, stop).await?;
    if how == Preallocation::Falloc {
        zero(file, behind, flags, stop).await?;
    }
    if place.end() > file.end() {
        // What a file has not got yet it gets as zeroes.
        let block = u64::from(file.device().info().limits.minimum).max(512);
        let last = ByteRange::between(place.end() - block.min(place.len()), place.end());
        write_zeroes(file, last, stop).await?;
    }
    Ok(())
}

async fn zero(file: &HostFile, range: ByteRange, flags: ZeroFlags, stop: &Stop) -> Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    match file.device().zero(range, flags).await {
        Ok(()) => {
            file.grown_to(range.end());
            Ok(())
        }
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            write_zeroes(file, range, stop).await
        }
        Err(error) => Err(error),
    }
}

async fn write_zeroes(file: &HostFile, range: ByteRange, stop: &Stop) -> Result<()> {
    for piece in range.pieces(PIECE) {
        stop.check()?;
        let zeroes = Buffer::zeroed(piece.len() as usize);
        file.write(piece.start(), zeroes).await?;
    }
    Ok(())
}
