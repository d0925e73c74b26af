//! Where the clusters of the disk lie: for maps, which show offsets.

use blockferry_block::{BlockDevice, ByteRange, Mapping, Result, read_exact_at};

use super::{
    entry::{Cluster, Subcluster},
    geometry::{Geometry, corrupt},
    read::Reader,
    refcounts::{BLOCK_OFFSET, refcount},
    tables::L2Table,
};
use crate::{Contents, Place, PlaceFile, Placed, placed::with_holes};

/// The most parts of one answer: 4 MiB of memory.
const MOST_PARTS: usize = 64 << 10;

/// How many tables are looked at for one answer.
const MOST_TABLES: usize = 256;

impl Reader {
    /// What the image itself has of the beginning of `range`, which lies on the disk. Where `sparse` holes of the
    /// file count, too.
    ///
    /// # Errors
    /// `Corrupt`, what reading tables failed with.
    pub(crate) async fn placed(&self, range: ByteRange, sparse: bool) -> Result<Vec<Placed>> {
        let geometry = self.geometry;
        let mut list = Vec::new();
        let mut at = range.start();
        let mut tables = 0;
        while at < range.end() && list.len() < MOST_PARTS && tables < MOST_TABLES {
            tables += 1;
            let (index, _) = geometry.indices(at);
            let last = range.end().div_ceil(geometry.table_span());
            let next = self.tables.next_table(index, last);
            let absent = |at, end| Placed {
                range: ByteRange::between(at, end),
                contents: Contents::Absent,
                compressed: false,
                place: None,
            };
            if next > index {
                let end = geometry.span_of(next).start().min(range.end());
                let end = if end > at { end } else { range.end() };
                Placed::push(&mut list, absent(at, end));
                at = end;
                continue;
            }
            let end = geometry.span_of(index).end().min(range.end());
            match self.tables.table(index).await? {
                Some(table) => {
                    while at < end {
                        let piece = piece(&table, geometry, ByteRange::between(at, end))?;
                        at = piece.range.end();
                        Placed::push(&mut list, piece);
                    }
                }
                None => {
                    Placed::push(&mut list, absent(at, end));
                    at = end;
                }
            }
            // Others on the same thread have their turn.
            tokio::task::yield_now().await;
        }
        if !sparse {
            return Ok(list);
        }
        let mut refined = Vec::with_capacity(list.len());
        for part in list {
            with_holes(part, &**self.data.device(), &mut refined).await?;
        }
        Ok(refined)
    }
}

/// What the entry of the first cluster of `range`, or those of its subclusters, say of the beginning of that.
fn piece(table: &L2Table, geometry: Geometry, range: ByteRange) -> Result<Placed> {
    let guest = range.start();
    let cluster = geometry.cluster_size();
    let within = guest & (cluster - 1);
    let (_, index) = geometry.indices(guest);
    let decoded = table.entry(index).decode(geometry);
    let decoded =
        decoded.map_err(|error| corrupt(format!("at guest offset {guest:#x}: {error}")))?;
    let file = match geometry.data_file {
        true => PlaceFile::Data,
        false => PlaceFile::Image,
    };
    let place = |host: u64| Place {
        file,
        offset: host + within,
    };
    let mut end = guest - within + cluster;
    let (contents, host) = match decoded {
        Cluster::Unallocated => (Contents::Absent, None),
        Cluster::Zero { host } => (Contents::Zero, host),
        Cluster::Data { host } => (Contents::Data, Some(host)),
        Cluster::Compressed(_) => (Contents::Data, None),
        Cluster::Mixed {
            host,
            allocated,
            zero,
        } => {
            let size = geometry.subcluster_size();
            let (own, next) = Subcluster::row((within / size) as u32, allocated, zero);
            end = guest - within + u64::from(next) * size;
            let contents = match own {
                Subcluster::Allocated => Contents::Data,
                Subcluster::Zero => Contents::Zero,
                Subcluster::Absent => Contents::Absent,
            };
            (contents, host)
        }
    };
    Ok(Placed {
        range: ByteRange::between(guest, end.min(range.end())),
        contents,
        compressed: matches!(decoded, Cluster::Compressed(_)),
        place: host.map(place),
    })
}

/// Whether the file in `below` has far more clusters in use than it has space: they were allocated in advance, and it
/// is worth asking where the file has holes. The bound is qemu's. `false` where the space cannot be told.
///
/// # Errors
/// What reading the refcounts, whose table is at `table`, failed with.
pub(crate) async fn is_preallocated(
    below: &dyn BlockDevice,
    geometry: Geometry,
    table: ByteRange,
) -> Result<bool> {
    let size = below.info().size;
    let space = match below.mapping(ByteRange::between(0, size.min(1))) {
        Mapping::File { fd, offset: 0, .. } => blockferry_sys::inspect(fd)?.allocated,
        _ => return Ok(false),
    };
    let cluster = geometry.cluster_size();
    let real = space / cluster;
    let bound = (real.saturating_mul(10) / 9).max(real + 2);
    let mut rest = size.div_ceil(cluster);
    if rest < bound {
        return Ok(false);
    }
    let mut used = 0;
    let per_block = geometry.refcounts_per_block();
    for words in table
        .intersection(ByteRange::between(0, size))
        .pieces(cluster)
    {
        let bytes = read_exact_at(below, words).await?;
        for word in bytes.as_chunks::<8>().0 {
            let place = u64::from_be_bytes(*word) & BLOCK_OFFSET;
            let block =
                ByteRange::between(place, place.saturating_add(cluster).min(size).max(place));
            if place != 0 && !block.is_empty() {
                let mut bytes = read_exact_at(below, block).await?.to_vec();
                bytes.resize(cluster as usize, 0);
                let counts = (0..rest.min(per_block) as usize)
                    .filter(|index| refcount(&bytes, geometry.refcount_order, *index) != 0);
                used += counts.count() as u64;
            }
            rest = rest.saturating_sub(per_block);
            if used >= bound || rest == 0 {
                return Ok(used >= bound);
            }
        }
    }
    Ok(false)
}
