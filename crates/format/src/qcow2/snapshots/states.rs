//! States of the disk: what the tables of one of them name is counted, and the marks of the present state follow.

use std::sync::atomic::Ordering;

use blockferry_block::{Buffer, ByteRange, Result};

use super::recount::{Change, Recount};
use crate::{
    Stop,
    qcow2::{
        allocate::Clusters,
        entry::{COMPRESSED, COPIED, Entry, OFFSET},
        geometry::{Geometry, corrupt},
        header::be64,
        host::HostFile,
        tables::{L2Table, Tables},
        write::places_of,
    },
};

/// What the states of an image need.
pub(super) struct States<'a> {
    pub(super) file: &'a HostFile,
    pub(super) geometry: Geometry,
    pub(super) recount: &'a mut Recount,
    pub(super) stop: &'a Stop,
}

/// The places of the L2 tables that the L1 table in `range` of `file` names, in its order; 0 where there is none.
///
/// # Errors
/// `Corrupt` where it names what cannot be one, or one twice; what reading failed with.
pub(super) async fn read_l1(
    file: &HostFile,
    geometry: Geometry,
    range: ByteRange,
) -> Result<Vec<u64>> {
    let tables = Tables::open(file.clone(), geometry, range, 1).await?;
    let words = tables.l1().iter();
    let places: Vec<u64> = words
        .map(|word| word.load(Ordering::Relaxed) & OFFSET)
        .collect();
    let mut sorted: Vec<u64> = places.iter().copied().filter(|place| *place != 0).collect();
    sorted.sort_unstable();
    if let Some(place) = sorted.iter().find(|place| !geometry.is_aligned(**place)) {
        return Err(corrupt(format!(
            "an L2 table at {place:#x} is not on a cluster's boundary"
        )));
    }
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        let place = pair[0];
        return Err(corrupt(format!(
            "an L1 table names the L2 table at {place:#x} twice"
        )));
    }
    Ok(places)
}

impl States<'_> {
    /// Counts a use more or less of all that a state names whose L2 tables are at `places`.
    ///
    /// # Errors
    /// Those of [`Recount::change`]; `Corrupt` for entries that make no sense; what reading failed with; `Cancelled`.
    pub(super) async fn count(&mut self, places: &[u64], change: Change) -> Result<()> {
        for place in places.iter().filter(|place| **place != 0) {
            self.pause().await?;
            let bytes = self.read_table(*place).await?;
            let table = L2Table::parse(&bytes, self.geometry);
            // Clusters that lie in a row are counted in one go.
            let mut row = Clusters { first: 0, count: 0 };
            for at in 0..table.len() {
                let entry = table.entry(at);
                if entry == Entry::default() {
                    continue;
                }
                let cluster = entry.decode(self.geometry)?;
                let Some(clusters) = places_of(self.geometry, cluster) else {
                    continue;
                };
                if row.first + row.count == clusters.first {
                    row.count += clusters.count;
                } else {
                    self.recount.change(row, change).await?;
                    row = clusters;
                }
            }
            self.recount.change(row, change).await?;
            let table = self.clusters_at(*place);
            self.recount.change(table, change).await?;
        }
        Ok(())
    }

    /// Lets each entry of the present state, whose L2 tables are at `places`, say whether its cluster may be written in
    /// place: a table in which that changes gets a new place. `twin` is another state that is being made of the same
    /// tables: it gets the new ones, too. Gives the words of the L1 table; all else has been counted.
    ///
    /// # Errors
    /// As [`count`](Self::count); `NoSpace`, what writing failed with.
    pub(super) async fn mark(
        &mut self,
        places: &[u64],
        mut twin: Option<&mut [u64]>,
    ) -> Result<Vec<u64>> {
        let mut words = Vec::with_capacity(places.len());
        for (index, place) in places.iter().copied().enumerate() {
            if place == 0 {
                words.push(0);
                continue;
            }
            self.pause().await?;
            let mut bytes = self.read_table(place).await?;
            let mut place = place;
            if self.mark_entries(&mut bytes).await? {
                let new = self.recount.allocate(1).await?;
                let old = self.clusters_at(place);
                self.recount.change(old, Change::OnceLess).await?;
                place = new.first << self.geometry.cluster_bits;
                self.file.write(place, bytes).await?;
                if let Some(twin) = &mut twin {
                    twin[index] = place;
                    self.recount.change(old, Change::OnceLess).await?;
                    self.recount.change(new, Change::OnceMore).await?;
                }
            }
            words.push(place | self.right_mark(place).await?);
        }
        Ok(words)
    }

    /// Says whether any mark of the table was wrong.
    async fn mark_entries(&mut self, table: &mut [u8]) -> Result<bool> {
        let mut is_changed = false;
        for entry in table.chunks_exact_mut(self.geometry.entry_size() as usize) {
            let word = be64(entry, 0);
            let mark = match word & (COMPRESSED | OFFSET) {
                0 => 0,
                host if host & COMPRESSED == 0 => self.right_mark(host).await?,
                _ => 0,
            };
            let right = word & !COPIED | mark;
            if right != word {
                entry[..8].copy_from_slice(&right.to_be_bytes());
                is_changed = true;
            }
        }
        Ok(is_changed)
    }

    /// The mark of an entry that names the cluster at `place`.
    async fn right_mark(&mut self, place: u64) -> Result<u64> {
        let uses = self.recount.count(place >> self.geometry.cluster_bits);
        Ok(if uses.await? == 1 { COPIED } else { 0 })
    }

    async fn read_table(&self, place: u64) -> Result<Buffer> {
        let buffer = Buffer::zeroed(self.geometry.cluster_size() as usize);
        let name = || "an L2 table".to_owned();
        self.file.read_padded(place, buffer, name).await
    }

    fn clusters_at(&self, place: u64) -> Clusters {
        Clusters {
            first: place >> self.geometry.cluster_bits,
            count: 1,
        }
    }

    /// Others have their turn, and whoever asks for the end is heard.
    async fn pause(&self) -> Result<()> {
        tokio::task::yield_now().await;
        self.stop.check()
    }
}
