//! Clusters that are compressed as they are written: many of them lie in one cluster of the file, which has a use for each.

use std::sync::Arc;

use blockferry_block::{Buffer, ByteRange, Error, ErrorKind, Result};

use super::{ClaimState, Shared, Writer, lock, places_of};
use crate::{
    pool::unpack,
    qcow2::{
        codec::{CompressionSettings, Compressor},
        entry::{Cluster, Compressed, Entry, SECTOR},
        header::Compression,
        refcounts::largest,
    },
};

/// The window of zlib streams that every reader takes, in bytes.
const WINDOW: u32 = 4096;

/// Clusters that were compressed, in a row in the file.
struct Row {
    /// The number of each in what was to be written, and where its stream lies from the row's beginning on.
    streams: Vec<(usize, u64, u64)>,
    bytes: Vec<u8>,
    /// How many uses each cluster of the file has.
    uses: Vec<u64>,
}

impl Writer {
    /// Writes `data` to `range` of the disk, which begins with a cluster and ends with one, or with the disk; as long as it.
    /// What compression makes no smaller is written as it is, and so is all where the data has a file of its own.
    ///
    /// # Errors
    /// As a write.
    pub(crate) async fn write_packed(
        &self,
        range: ByteRange,
        data: Buffer,
        kind: Compression,
    ) -> Result<()> {
        let shared = &self.0;
        let geometry = shared.geometry;
        if geometry.data_file || largest(geometry.refcount_order) < 2 {
            self.0.write(range, data).await?;
            return Ok(());
        }
        let size = geometry.cluster_size() as usize;
        let mut padded = data.to_vec();
        padded.resize(data.len().next_multiple_of(size), 0);
        let work = move |_: &mut _| compressed(&padded, size, kind);
        let streams = unpack(work).await?;
        for (number, stream) in streams.iter().enumerate() {
            if stream.is_none() {
                let start = number * size;
                let end = data.len().min(start + size);
                let bytes = Buffer::from(&data[start..end]);
                let guest = range.start() + start as u64;
                let own = ByteRange::between(guest, range.start() + end as u64);
                shared.write(own, bytes).await?;
            }
        }
        shared.touch().await?;
        let mut next = 0;
        while streams[next..].iter().any(Option::is_some) {
            next = shared.write_row(range.start(), &streams, next).await?;
            shared.relieve().await?;
        }
        Ok(())
    }
}

/// Each cluster of `data`, compressed, unless it does not become smaller.
fn compressed(data: &[u8], size: usize, kind: Compression) -> Vec<Option<Vec<u8>>> {
    let mut compressor = Compressor::new(&CompressionSettings {
        kind,
        level: None,
        window: WINDOW,
    });
    let mut out = vec![0; size];
    let streams = data.chunks(size).map(|cluster| {
        let length = compressor.compress(cluster, &mut out)?;
        Some(out[..length].to_vec())
    });
    streams.collect()
}

impl Row {
    /// Packs `streams` from number `first` on into `room` bytes: whole clusters of `size`, with `most` uses each at most.
    /// Says which is the next one.
    fn pack(
        streams: &[Option<Vec<u8>>],
        first: usize,
        room: u64,
        size: u64,
        most: u64,
    ) -> (Self, usize) {
        let mut row = Self {
            streams: Vec::new(),
            bytes: Vec::new(),
            uses: Vec::new(),
        };
        let mut next = first;
        for (number, stream) in streams.iter().enumerate().skip(first) {
            if let Some(stream) = stream {
                let mut start = row.bytes.len() as u64;
                if row.uses.get((start / size) as usize) == Some(&most) {
                    start = start.next_multiple_of(size);
                }
                let end = start + stream.len() as u64;
                if end > room {
                    break;
                }
                let last = (end.next_multiple_of(SECTOR) - 1) / size;
                row.uses.resize(row.uses.len().max(last as usize + 1), 0);
                for uses in &mut row.uses[(start / size) as usize..=last as usize] {
                    *uses += 1;
                }
                row.bytes.resize(start as usize, 0);
                row.bytes.extend(stream);
                row.streams.push((number, start, stream.len() as u64));
            }
            next = number + 1;
        }
        row.bytes.resize(row.uses.len() * size as usize, 0);
        (row, next)
    }
}

impl Shared {
    /// Writes as many of `streams` from number `first` on as there is room for in a row; those of clusters from `guest`
    /// on. Says which is the next one.
    async fn write_row(
        self: &Arc<Self>,
        guest: u64,
        streams: &[Option<Vec<u8>>],
        first: usize,
    ) -> Result<usize> {
        let geometry = self.geometry;
        let size = geometry.cluster_size();
        let end = guest + streams.len() as u64 * size;
        let range = ByteRange::between(guest + first as u64 * size, end);
        let _turn = self.turns.lock(range).await;
        let _pass = self.gate.enter();
        let wanted = streams[first..]
            .iter()
            .flatten()
            .map(Vec::len)
            .sum::<usize>() as u64;
        let mut claim = self.claim(wanted.div_ceil(size).max(1)).await?;
        let host = claim.clusters.first * size;
        let room = claim.clusters.count * size;
        let (row, next) = Row::pack(streams, first, room, size, largest(geometry.refcount_order));
        let used = row.uses.len() as u64;
        let (own, rest) = claim.clusters.split_at(used);
        if rest.count > 0 {
            lock(&self.returned).push(rest);
            claim.clusters = own;
        }
        if host + used * size > Compressed::most_offset(geometry) {
            let message = "there is no room for compressed clusters in the image's file";
            return Err(Error::with_message(ErrorKind::NoSpace, message));
        }
        claim.state = ClaimState::Writing;
        let written = self
            .reader
            .data
            .write(host, Buffer::from(&row.bytes[..]))
            .await;
        if written.as_ref().is_err_and(|error| !error.is_transient()) {
            claim.state = ClaimState::Unwritten;
        }
        written?;
        // Before anything names them: a commit takes refcounts later than tables.
        let mut allocator = self.allocator.lock().await;
        for (number, uses) in (0..).zip(&row.uses) {
            allocator
                .correct(own.first + number, (*uses).max(1))
                .await?;
        }
        drop(allocator);
        claim.state = ClaimState::Used;
        for (number, offset, length) in &row.streams {
            let at = guest + *number as u64 * size;
            let offset = host + offset;
            let sectors_end = (offset + length).next_multiple_of(SECTOR);
            let place = Compressed {
                offset,
                length: sectors_end - offset,
            };
            self.name_compressed(at, place).await?;
        }
        Ok(next)
    }

    /// Lets the table say that the cluster at `guest` lies in `place`. If that fails, space is lost and nothing else.
    async fn name_compressed(self: &Arc<Self>, guest: u64, place: Compressed) -> Result<()> {
        let geometry = self.geometry;
        let (index, at) = geometry.indices(guest);
        let table = self.table_to_change(index).await?;
        let old = places_of(geometry, table.entry(at).decode(geometry)?);
        let entry = Entry::encode(Cluster::Compressed(place), geometry);
        let mut pending = lock(&self.pending);
        pending.set(index, &table, [(at, entry)], geometry, self.part);
        if let Some(old) = old {
            pending.free(old);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use blockferry_block::{BlockDevice, WriteFlags};

    use super::*;
    use crate::Image as _;
    use crate::qcow2::{
        check as check_image,
        testing::ImageBuilder,
        write::tests::{Relatives, check_clean, contents, copy, kinds, memory, open_with, text},
    };

    #[test]
    fn no_cluster_has_more_uses_than_its_refcount_has_room_for() {
        let streams: Vec<_> = (0..40).map(|number| Some(vec![1; 20 + number])).collect();
        let (row, next) = Row::pack(&streams, 0, 100 << 12, 1 << 12, 3);
        assert_eq!(next, 40);
        assert!(row.uses.iter().all(|uses| (1..=3).contains(uses)));
        assert_eq!(row.bytes.len(), row.uses.len() << 12);
        let (row, next) = Row::pack(&streams, 7, 1 << 12, 1 << 12, 15);
        assert_eq!((row.uses, next), (vec![15], 22));
    }

    #[tokio::test]
    async fn clusters_of_any_image_are_packed_and_read_again() {
        for (what, image, relatives) in kinds() {
            let below = memory(&image);
            let opened = open_with(below.clone(), &relatives).await;
            let mut expected = contents(&opened).await;
            drop(opened);
            let opened = open_with(below.clone(), &relatives).await;
            let size = image.geometry.cluster_size();
            let disk = expected.len() as u64;
            let writer = crate::disk::Layer::writer(opened.layer()).expect("it is written");
            for (start, end) in [(0, 3 * size), (5 * size, disk), (size, 2 * size)] {
                let range = ByteRange::between(start, end.min(disk));
                let mut bytes = text(start + 9, range.len().next_multiple_of(8));
                bytes.truncate(range.len() as usize);
                // One that does not become smaller.
                let mut state = 7_u64;
                for byte in bytes.iter_mut().take(size as usize) {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    *byte = (state >> 40) as u8;
                }
                let data = Buffer::from(&bytes[..]);
                let written = writer.write_packed(range, data, Compression::Zlib).await;
                written.unwrap_or_else(|error| panic!("{what}: {error:?}"));
                expected[range.start() as usize..range.end() as usize].copy_from_slice(&bytes);
            }
            opened.close().await.expect("closed");
            check_clean(&below, &what).await;
            let again = open_with(copy(&below), &relatives).await;
            assert!(contents(&again).await == expected, "{what}");
            // What is packed can be written over.
            let data = Buffer::from(&vec![5; expected.len()][..]);
            again
                .write(0, data, WriteFlags::empty())
                .await
                .expect("written");
            again.close().await.expect("closed");
        }
    }

    #[tokio::test]
    async fn what_is_packed_takes_less_room() {
        let below = memory(&ImageBuilder::new(16, 8 << 20));
        let opened = open_with(below.clone(), &Relatives::default()).await;
        let data = Buffer::from(&text(1, 8 << 20)[..]);
        let writer = crate::disk::Layer::writer(opened.layer()).expect("it is written");
        let range = ByteRange::between(0, 8 << 20);
        writer
            .write_packed(range, data, Compression::Zlib)
            .await
            .expect("written");
        opened.close().await.expect("closed");
        let report = check_image(&*copy(&below)).await.expect("checked");
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(report.compressed_clusters, 128);
        assert!(below.contents().len() < 3 << 20);
    }
}
