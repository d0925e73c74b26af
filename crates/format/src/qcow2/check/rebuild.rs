//! New refcounts for all clusters, with a new table of them, where the old ones cannot be mended in their places.

use std::collections::BTreeSet;

use blockferry_block::{Buffer, ByteRange, Capabilities, Error, ErrorKind, Result};

use super::{counts::Counts, walk::Walk};
use crate::{
    host::HostFile,
    qcow2::{
        header::{Header, LARGEST_REFCOUNT_TABLE},
        refcounts::set_refcount,
    },
};

/// Where the place of the refcount table stands in the header, and behind it the number of its clusters.
const TABLE_IN_HEADER: u64 = 48;

/// Counts all uses of clusters and writes refcounts that say the same behind the end of the file, or behind
/// `used_end`, where all ends that is used or counted, of a file that cannot grow; once they are durable the header names
/// them, and the old ones are free. A crash leaves either the old ones or the new ones. Gives the uses, but those by
/// refcounts.
///
/// # Errors
/// `Unsupported` where the table would be too long; `NoSpace`, what reading and writing failed with.
pub(super) async fn rebuild(file: &HostFile, header: &Header, used_end: u64) -> Result<Counts> {
    let geometry = header.geometry;
    let (cluster, each) = (geometry.cluster_size(), geometry.refcounts_per_block());
    let mut walk = Walk::new(&**file.device(), file.end(), header)?;
    walk.uses().await?;
    let counts = walk.finish().counts;
    let mut blocks: BTreeSet<u64> = counts.iter().map(|it| it.cluster / each).collect();
    let grows = file.device().info().can(Capabilities::RESIZE);
    let behind = if grows { file.end() } else { used_end };
    let first = behind.div_ceil(cluster);
    // The blocks count themselves and their table, too.
    let (own, entries) = loop {
        let entries = blocks.last().map_or(0, |last| last + 1);
        let clusters = blocks.len() as u64 + (entries * 8).div_ceil(cluster);
        let own = first..first + clusters;
        let before = blocks.len();
        blocks.extend(own.start / each..own.end.div_ceil(each));
        if blocks.len() == before {
            break (own, entries);
        }
    };
    let table_clusters = (entries * 8).div_ceil(cluster);
    if table_clusters * cluster > LARGEST_REFCOUNT_TABLE.max(cluster) {
        let message = "the table of refcounts would be too long";
        return Err(Error::with_message(ErrorKind::Unsupported, message));
    }
    if !grows && own.end * cluster > file.end() {
        let message = "there is no room for new refcounts behind what is used";
        return Err(Error::with_message(ErrorKind::NoSpace, message));
    }
    let mut table = vec![0; (table_clusters * cluster) as usize];
    for (index, place) in blocks
        .iter()
        .zip((own.start * cluster..).step_by(cluster as usize))
    {
        let mut block = vec![0; cluster as usize];
        for at in 0..each {
            let number = index * each + at;
            let count = match own.contains(&number) {
                true => 1,
                false => counts.uses(number),
            };
            set_refcount(&mut block, geometry.refcount_order, at as usize, count);
        }
        file.write(place, Buffer::from(&block[..])).await?;
        table[*index as usize * 8..][..8].copy_from_slice(&place.to_be_bytes());
    }
    let place = (own.start + blocks.len() as u64) * cluster;
    let place = ByteRange::between(place, place + table.len() as u64);
    file.write(place.start(), Buffer::from(&table[..])).await?;
    file.device().flush().await?;
    let mut says = place.start().to_be_bytes().to_vec();
    says.extend((table_clusters as u32).to_be_bytes());
    file.patch(TABLE_IN_HEADER, &says).await?;
    file.device().flush().await?;
    Ok(counts)
}
