//! A range of the disk as a row of runs: where the bytes of each come from.

use std::sync::atomic::Ordering;

use blockferry_block::{ByteRange, Error, Result};

use super::{
    entry::{COPIED, Cluster, Compressed, OFFSET, Subcluster},
    geometry::{Geometry, corrupt},
    tables::L2Table,
};

/// Where bytes of the disk come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// They are not in this image: those of the backing file show, or zeroes.
    Behind,
    /// They are zeroes.
    Zero,
    /// They lie in the file, the first of them at this offset.
    Host(u64),
    /// They are unpacked from this, a part of one cluster or all of it.
    Compressed(Compressed),
}

/// A range of the disk whose bytes come from one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) range: ByteRange,
    pub(crate) source: Source,
}

/// What may be one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Joined {
    /// What lies in a row, for those who read it: a compressed cluster is a run by itself.
    InARow,
    /// What is in this image at all, wherever it lies, for those who only ask whether it is data: the first
    /// cluster's place stands for all.
    Alike,
}

impl Source {
    /// Where the bytes `length` behind its first one come from.
    fn after(self, length: u64) -> Self {
        match self {
            Self::Host(host) => Self::Host(host + length),
            other => other,
        }
    }

    /// Whether `next`, which begins `length` bytes behind it, goes on with it.
    fn continues(self, length: u64, next: Self, joined: Joined) -> bool {
        use Source::{Behind, Compressed, Host, Zero};
        match (self, next) {
            (Behind, Behind) | (Zero, Zero) => true,
            (Host(_) | Compressed(_), Host(_) | Compressed(_)) if joined == Joined::Alike => true,
            (Host(_), Host(_)) => self.after(length) == next,
            _ => false,
        }
    }
}

impl Run {
    /// The first run of `range`, which is not empty and in the part of the disk that `table` maps. It ends inside of
    /// the range.
    ///
    /// # Errors
    /// `Corrupt` for entries that break the rules.
    pub(crate) fn first(
        table: &L2Table,
        geometry: Geometry,
        range: ByteRange,
        joined: Joined,
    ) -> Result<Self> {
        let (source, mut at) = piece(table, geometry, range.start())?;
        let limit = range.end();
        while at < limit {
            let rest = ByteRange::between(at, limit);
            at = skip(
                table,
                geometry,
                rest,
                source.after(at - range.start()),
                joined,
            );
            if at >= limit {
                break;
            }
            // Damage further on is met by whoever gets there.
            let Ok((next, end)) = piece(table, geometry, at) else {
                break;
            };
            if !source.continues(at - range.start(), next, joined) {
                break;
            }
            at = end;
        }
        let range = ByteRange::between(range.start(), at.min(limit));
        Ok(Self { range, source })
    }

    /// Adds `next` to the end of `list`, or to its last run where it goes on with that.
    pub(crate) fn push(list: &mut Vec<Self>, next: Self) {
        if next.range.is_empty() {
            return;
        }
        if let Some(last) = list.last_mut()
            && last
                .source
                .continues(last.range.len(), next.source, Joined::InARow)
        {
            last.range = ByteRange::between(last.range.start(), next.range.end());
            return;
        }
        list.push(next);
    }
}

/// The end of the clusters from the start of `range`, a cluster's, whose entries say at first sight that they go on
/// with a run that comes from `source` there. Most entries do, and whole tables are looked at for one answer.
fn skip(
    table: &L2Table,
    geometry: Geometry,
    range: ByteRange,
    source: Source,
    joined: Joined,
) -> u64 {
    let (_, first) = geometry.indices(range.start());
    let last = geometry.indices(range.end() - 1).1;
    let words = table.words().and_then(|words| words.get(first..=last));
    let Some(words) = words.filter(|_| !geometry.data_file) else {
        return range.start();
    };
    let words = words.iter().map(|word| word.load(Ordering::Acquire));
    let cluster = geometry.cluster_size();
    let is_plain = |word: u64| word & !(COPIED | OFFSET & !(cluster - 1)) == 0;
    let count = match (source, joined) {
        (Source::Behind, _) => words.take_while(|word| *word == 0).count(),
        (Source::Host(_), Joined::Alike) => words
            .take_while(|word| is_plain(*word) && word & OFFSET != 0)
            .count(),
        (Source::Host(host), Joined::InARow) => words
            .zip((host..).step_by(cluster as usize))
            .take_while(|(word, host)| is_plain(*word) && word & OFFSET == *host)
            .count(),
        _ => 0,
    };
    (range.start() + count as u64 * cluster).min(range.end())
}

/// Where the bytes from `guest` on come from, and the end of what its cluster, or its subclusters, say of that.
fn piece(table: &L2Table, geometry: Geometry, guest: u64) -> Result<(Source, u64)> {
    let cluster_size = geometry.cluster_size();
    let within = guest & (cluster_size - 1);
    let end = guest - within + cluster_size;
    let (_, index) = geometry.indices(guest);
    let at = |error: Error| corrupt(format!("at guest offset {guest:#x}: {error}"));
    let source = match table.entry(index).decode(geometry).map_err(at)? {
        Cluster::Unallocated => Source::Behind,
        Cluster::Zero { .. } => Source::Zero,
        Cluster::Data { host } => {
            check_place(host, guest - within, geometry)?;
            Source::Host(host + within)
        }
        Cluster::Compressed(_) if geometry.data_file => {
            return Err(at(corrupt("a data file holds no compressed clusters")));
        }
        Cluster::Compressed(compressed) => Source::Compressed(compressed),
        Cluster::Mixed {
            host,
            allocated,
            zero,
        } => {
            let size = geometry.subcluster_size();
            let (own, next) = Subcluster::row((within / size) as u32, allocated, zero);
            let end = guest - within + u64::from(next) * size;
            let source = match (own, host) {
                (Subcluster::Allocated, Some(host)) => {
                    check_place(host, guest - within, geometry)?;
                    Source::Host(host + within)
                }
                (Subcluster::Zero, _) => Source::Zero,
                _ => Source::Behind,
            };
            return Ok((source, end));
        }
    };
    Ok((source, end))
}

/// In a data file clusters lie where they lie on the disk (specification, "External data file bit").
fn check_place(host: u64, guest: u64, geometry: Geometry) -> Result<()> {
    if geometry.data_file && host != guest {
        return Err(corrupt(format!(
            "the cluster at guest offset {guest:#x} lies at {host:#x} of the data file"
        )));
    }
    Ok(())
}
