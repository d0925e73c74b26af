//! An image whose clusters are compressed: how they come into the pipeline, and what waits for them.

use blockferry_block::{Buffer, ByteRange, Result};

use super::{
    NewImage,
    map::{PENDING, spans},
    packer::ClusterPacker,
};
use crate::{pipeline::Pipeline, qcow2::entry::Entry};

impl NewImage {
    /// Hands `data` in, but for what needs no storing. It is not compressed when this returns.
    pub(super) async fn write_compressed(
        &self,
        range: ByteRange,
        data: Buffer,
        pipeline: &Pipeline<ClusterPacker>,
    ) -> Result<Buffer> {
        {
            // Before all else: whoever came first is first.
            let _turn = pipeline.turn().await;
            for piece in self.classify(range, &data).await? {
                let at = (piece.range.start() - range.start()) as usize;
                let bytes = &data[at..at + piece.range.len() as usize];
                self.settle(piece.range).await?;
                match piece.is_data() {
                    true => self.hand_in(piece.range, bytes, pipeline).await?,
                    false => self.forget(piece.range, &piece.fates).await?,
                }
            }
        }
        pipeline.write_ready(&self.file).await?;
        Ok(data)
    }

    async fn hand_in(
        &self,
        range: ByteRange,
        bytes: &[u8],
        pipeline: &Pipeline<ClusterPacker>,
    ) -> Result<()> {
        let geometry = self.geometry();
        let cluster = self.cluster_size() as usize;
        let mut rest = bytes;
        for (index, first, count) in spans(geometry, range) {
            if self.map.is_full() && self.map.cached(index).is_none() {
                // What is on its way holds its tables; and the places of those that are written
                // early are to depend on nothing but what was written before.
                pipeline.settle(&self.file).await?;
            }
            let table = self.map.table(index).await?;
            for at in (first..first + count).step_by(pipeline.at_once()) {
                let count = pipeline.at_once().min(first + count - at);
                let (now, later) = rest.split_at(rest.len().min(count * cluster));
                rest = later;
                let pending = Entry {
                    word: PENDING,
                    subclusters: 0,
                };
                for at in at..at + count {
                    table.replace(at, pending);
                }
                let table = std::sync::Arc::clone(&table);
                pipeline.add((table, at), now, &self.file).await?;
            }
        }
        Ok(())
    }

    /// Waits until all of `range` that was handed in has its place.
    pub(super) async fn settle(&self, range: ByteRange) -> Result<()> {
        let Some(pipeline) = &self.pipeline else {
            return Ok(());
        };
        let is_pending = |(index, first, count): (u64, usize, usize)| {
            // What is pending is in memory.
            let Some(table) = self.map.cached(index) else {
                return false;
            };
            (first..first + count).any(|at| table.entry(at).word == PENDING)
        };
        let mut rest = range;
        while !rest.is_empty() {
            let geometry = self.geometry();
            let (index, _) = geometry.indices(rest.start());
            let Some(next) = self.map.next_used(index) else {
                break;
            };
            let start = next.saturating_mul(geometry.table_span()).max(rest.start());
            let end = start
                .saturating_add(1)
                .next_multiple_of(geometry.table_span());
            let here = ByteRange::between(start, end.min(rest.end()));
            if spans(geometry, here).any(is_pending) {
                return pipeline.settle(&self.file).await;
            }
            rest = ByteRange::between(here.end().max(start), rest.end());
        }
        Ok(())
    }

    /// Waits until all that was handed in is written.
    pub(super) async fn drain(&self) -> Result<()> {
        match &self.pipeline {
            Some(pipeline) if !pipeline.is_idle() => pipeline.drain(&self.file).await,
            _ => Ok(()),
        }
    }
}
