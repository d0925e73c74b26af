//! Writing what has no place yet, or does not say so: what the request does not cover is copied, and then the table
//! says where it lies.

use std::sync::Arc;

use blockferry_block::{Buffer, ByteRange, Result};

use super::{Claim, ClaimState, Shared, indices, lock, subclusters};
use crate::qcow2::{
    allocate::Clusters,
    entry::{COPIED, Cluster, Entry},
    geometry::Geometry,
    tables::L2Table,
};

/// What a request changes of a table: clusters in a row.
pub(super) struct Change<'a> {
    pub(super) index: u64,
    pub(super) table: &'a Arc<L2Table>,
    /// What the request wants of the clusters.
    pub(super) own: ByteRange,
    /// Where the first of them lies in the file from now on.
    pub(super) host: u64,
    /// The place is new.
    pub(super) claim: Option<Claim<'a>>,
}

impl Shared {
    /// Writes what a change is about, with what has to be copied around it, and lets the table say so. `data` is that of
    /// `whole`.
    pub(super) async fn place(
        &self,
        mut change: Change<'_>,
        whole: ByteRange,
        data: &mut Buffer,
    ) -> Result<()> {
        let geometry = self.geometry;
        let (own, host) = (change.own, change.host);
        let around = geometry.around(own);
        let span = self.span_to_write(change.table, own, change.claim.is_some())?;
        let to_host = |guest: u64| host + (guest - around.start());
        let place = ByteRange::between(to_host(span.start()), to_host(span.end()));
        let is_all = span == whole && own == whole;
        let bytes = if is_all {
            std::mem::replace(data, Buffer::zeroed(0))
        } else {
            self.filled(span, own, &data[indices(own, whole)]).await?
        };
        let written = match &mut change.claim {
            Some(claim) => {
                claim.state = ClaimState::Writing;
                let written = self.reader.data.write(place.start(), bytes).await;
                if written.as_ref().is_err_and(|error| !error.is_transient()) {
                    claim.state = ClaimState::Unwritten;
                }
                written?
            }
            None => self.arrive(place, bytes).await?,
        };
        if is_all {
            *data = written;
        }
        let mut entries = Vec::new();
        let mut freed = Vec::new();
        for cluster in around.pieces(geometry.cluster_size()) {
            let (_, at) = geometry.indices(cluster.start());
            let old = change.table.entry(at).decode(geometry)?;
            let inside = cluster.intersection(span);
            entries.push((
                at,
                entry_after(geometry, old, to_host(cluster.start()), inside),
            ));
            if change.claim.is_some() {
                freed.extend(places_of(geometry, old));
            }
        }
        let mut pending = lock(&self.pending);
        pending.set(change.index, change.table, entries, geometry, self.part);
        freed
            .into_iter()
            .for_each(|clusters| pending.free(clusters));
        if let Some(claim) = &mut change.claim {
            claim.state = ClaimState::Used;
        }
        Ok(())
    }

    /// What is written of the clusters that `own` touches, in whole subclusters: `own`, and what must come with it.
    /// Subclusters that are in place already stay as they are: others may write them meanwhile.
    fn span_to_write(&self, table: &L2Table, own: ByteRange, is_new: bool) -> Result<ByteRange> {
        let geometry = self.geometry;
        let around = geometry.around(own);
        if !geometry.extended {
            return Ok(around);
        }
        let sub = geometry.subcluster_size();
        let mut start = own.start() - own.start() % sub;
        let mut end = own.end().next_multiple_of(sub);
        let edges = [own.start(), own.end() - 1];
        for (is_end, edge) in edges.into_iter().enumerate() {
            let guest = edge - edge % geometry.cluster_size();
            let (_, at) = geometry.indices(edge);
            let old = table.entry(at).decode(geometry)?;
            let cluster = ByteRange::between(guest, guest + geometry.cluster_size());
            let kept = match old {
                Cluster::Data { .. } | Cluster::Compressed(_) => cluster,
                Cluster::Mixed { allocated, .. } if allocated != 0 => {
                    let first = u64::from(allocated.trailing_zeros());
                    let last = u64::from(allocated.leading_zeros());
                    ByteRange::between(cluster.start() + first * sub, cluster.end() - last * sub)
                }
                _ => ByteRange::between(guest, guest),
            };
            if is_new {
                // All that the old place has moves.
                if !kept.is_empty() {
                    start = start.min(kept.start());
                    end = end.max(kept.end());
                }
            } else if let Cluster::Mixed { allocated, .. } = old {
                let number = (edge - guest) / sub;
                if allocated >> number & 1 == 1 {
                    match is_end {
                        0 => start = own.start(),
                        _ => end = own.end(),
                    }
                }
            }
        }
        Ok(ByteRange::between(start, end))
    }

    /// The bytes of `span`: `data` where `own` is, what the disk has elsewhere, and zeroes behind its end.
    async fn filled(&self, span: ByteRange, own: ByteRange, data: &[u8]) -> Result<Buffer> {
        let mut bytes = Buffer::zeroed(span.len() as usize);
        let disk = ByteRange::between(0, self.geometry.size);
        let head = ByteRange::between(span.start(), own.start());
        let tail = ByteRange::between(own.end(), span.end());
        for part in [head, tail] {
            let part = part.intersection(disk);
            if !part.is_empty() {
                let read = Buffer::zeroed(part.len() as usize);
                let read = self.reader.read(part, read).await?;
                bytes[indices(part, span)].copy_from_slice(&read);
            }
        }
        bytes[indices(own, span)].copy_from_slice(data);
        Ok(bytes)
    }
}

/// The entry of a cluster at `host` of which `written` was written, and that was `old` before.
fn entry_after(geometry: Geometry, old: Cluster, host: u64, written: ByteRange) -> Entry {
    if !geometry.extended {
        return Entry::encode(Cluster::Data { host }, geometry);
    }
    let (allocated, zero) = match old {
        Cluster::Mixed {
            allocated, zero, ..
        } => (allocated, zero),
        Cluster::Zero { .. } => (0, u32::MAX),
        Cluster::Data { .. } | Cluster::Compressed(_) => (u32::MAX, 0),
        Cluster::Unallocated => (0, 0),
    };
    let own = subclusters(geometry, written);
    Entry {
        word: host | COPIED,
        subclusters: u64::from(zero & !own) << 32 | u64::from(allocated | own),
    }
}

/// The clusters of the file that a cluster of the disk uses.
pub(crate) fn places_of(geometry: Geometry, cluster: Cluster) -> Option<Clusters> {
    let size = geometry.cluster_size();
    if geometry.data_file {
        return None;
    }
    let (start, end) = match cluster {
        Cluster::Unallocated => return None,
        Cluster::Data { host } => (host, host + size),
        Cluster::Zero { host } | Cluster::Mixed { host, .. } => {
            let host = host?;
            (host, host + size)
        }
        Cluster::Compressed(compressed) => {
            (compressed.offset, compressed.offset + compressed.length)
        }
    };
    let first = start / size;
    Some(Clusters {
        first,
        count: end.div_ceil(size) - first,
    })
}
