//! Tables are written in an order in which a crash at any point loses space at worst.
//!
//! 1. Blocks of refcounts that nothing in the file names yet. A flush, if there are any.
//! 2. What names those, other refcounts, L2 tables that nothing names yet. Data was written before. A flush.
//! 3. What names all of that: other L2 tables, and the L1 table. A flush.
//! 4. Only now refcounts are lowered, of what nothing names any more, and it is free.
//!
//! Every sector of 512 bytes may be old or new after a crash, and all combinations of those of one step are right:
//! refcounts that are too high cost space, tables that nothing names are nothing, and an entry of an L2 table is
//! either the old one, whose cluster is still there, or the new one, whose cluster is there already.

use std::sync::Arc;

use blockferry_block::{ByteRange, Capabilities, Error, Result, WriteFlags};
use tokio::sync::oneshot;

use super::{Shared, lock, worker::gone};
use crate::qcow2::{allocate::Clusters, pieces::write_pieces};

/// Blocks of refcounts that only have lowered refcounts are written when they take so many bytes.
const MOST_LOWERED: u64 = 4 << 20;

/// Clusters that nothing in the file names, and since when.
pub(super) struct Freed {
    clusters: Clusters,
    /// The generation of the gate then.
    generation: usize,
}

impl Shared {
    /// Makes all that was acknowledged durable.
    pub(super) async fn flush(self: &Arc<Self>) -> Result<()> {
        if lock(&self.pending).is_clean() {
            return self.reader.data.device().flush().await;
        }
        self.commit().await
    }

    /// Writes the tables as they are now or a little later, and waits for that. Those who come together share one
    /// commit.
    pub(super) async fn commit(self: &Arc<Self>) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        let is_first = {
            let mut waiting = lock(&self.waiting);
            waiting.push(answer);
            waiting.len() == 1
        };
        if is_first {
            let shared = Arc::clone(self);
            let left = self.worker.leave(async move {
                let waiting = std::mem::take(&mut *lock(&shared.waiting));
                let result = shared.commit_now().await;
                for answer in waiting {
                    let _ = answer.send(result.clone());
                }
            });
            if let Err(error) = left {
                for answer in std::mem::take(&mut *lock(&self.waiting)) {
                    let _ = answer.send(Err(error.clone()));
                }
            }
        }
        answered.await.unwrap_or_else(|_| Err(gone()))
    }

    /// On the worker's thread.
    pub(super) async fn commit_now(&self) -> Result<()> {
        let (tables, pieces) = {
            let mut pending = lock(&self.pending);
            pending.take(&self.reader.tables, self.geometry, self.part)
        };
        // Later than the tables: the refcounts of all that they name are among these.
        let refcounts = self.allocator.lock().await.take_changes();
        let mut is_linked = false;
        let written = async {
            refcounts.write(&self.file).await?;
            write_pieces(&self.file, &pieces.new).await?;
            self.flush_files().await?;
            if !pieces.changed.is_empty() {
                is_linked = true;
                write_pieces(&self.file, &pieces.changed).await?;
                self.file.device().flush().await?;
            }
            Ok(())
        };
        let written = written.await;
        let mut allocator = self.allocator.lock().await;
        match written {
            Ok(()) => {
                allocator.written(&refcounts);
                drop(allocator);
                let freed = lock(&self.pending).committed(tables, &self.reader.tables);
                self.expect(freed);
                // Its failure is the next commit's: nothing is wrong but that space is not free.
                let _ = self.settle().await;
                Ok(())
            }
            Err(error) => {
                allocator.failed(refcounts);
                drop(allocator);
                lock(&self.pending).failed(tables, is_linked);
                Err(error)
            }
        }
    }

    async fn flush_files(&self) -> Result<()> {
        if self.geometry.data_file {
            self.reader.data.device().flush().await?;
        }
        self.file.device().flush().await
    }

    /// Nothing in the file names these any more, and only requests under way may still know them.
    fn expect(&self, freed: Vec<Clusters>) {
        let generation = self.gate.generation();
        let freed = freed.into_iter().map(|clusters| Freed {
            clusters,
            generation,
        });
        lock(&self.freed).extend(freed);
    }

    /// Frees what nobody knows any more. On the worker's thread.
    pub(super) async fn settle(&self) -> Result<()> {
        for _ in 0..2 {
            self.gate.advance();
        }
        let generation = self.gate.generation();
        let free: Vec<_> = {
            let mut freed = lock(&self.freed);
            let (free, known) = std::mem::take(&mut *freed)
                .into_iter()
                .partition(|it: &Freed| generation >= it.generation + 2);
            *freed = known;
            free
        };
        for (done, freed) in free.iter().enumerate() {
            if let Err((error, rest)) = self.free(freed.clusters).await {
                let left = free[done + 1..].iter().map(|freed| freed.clusters);
                let left = std::iter::once(rest).chain(left);
                let left = left.map(|clusters| Freed {
                    clusters,
                    generation: 0,
                });
                lock(&self.freed).extend(left);
                return Err(error);
            }
            if self.allocator.lock().await.changed_bytes() > MOST_LOWERED {
                self.write_lowered().await?;
            }
        }
        Ok(())
    }

    /// Writes refcounts alone: they may be written at any time.
    pub(super) async fn write_lowered(&self) -> Result<()> {
        let changes = self.allocator.lock().await.take_changes();
        let written = async {
            changes.write(&self.file).await?;
            self.file.device().flush().await
        };
        let written = written.await;
        let mut allocator = self.allocator.lock().await;
        match written {
            Ok(()) => allocator.written(&changes),
            Err(_) => allocator.failed(changes),
        }
        written
    }

    /// Lowers the refcounts of clusters that nothing names, and gives the space of those that are free then back to
    /// the file system. On failure also what is left.
    async fn free(&self, clusters: Clusters) -> Result<(), (Error, Clusters)> {
        let mut rest = clusters;
        while rest.count > 0 {
            let (run, is_single) = match self.next_free(rest).await {
                Ok(run) => run,
                Err(error) => return Err((error, rest)),
            };
            let is_late = {
                let late = lock(&self.late);
                late.missing_in(self.range_of(run)) != [self.range_of(run)]
            };
            // A write that nobody waits for may still arrive there.
            if !is_late {
                if is_single {
                    self.give_back(run).await;
                }
                let (done, result) = self.allocator.lock().await.release(run).await;
                if let Err(error) = result {
                    return Err((error, rest.split_at(done).1));
                }
            }
            rest = rest.split_at(run.count).1;
        }
        Ok(())
    }

    /// The first of the clusters that have one use, or the first one that has more.
    async fn next_free(&self, clusters: Clusters) -> Result<(Clusters, bool)> {
        let mut allocator = self.allocator.lock().await;
        let mut count = 0;
        while count < clusters.count && allocator.is_single(clusters.first + count).await? {
            count += 1;
        }
        let (run, _) = clusters.split_at(count.max(1));
        Ok((run, count > 0))
    }

    /// Trims clusters of the file that are about to be free. A hint.
    async fn give_back(&self, clusters: Clusters) {
        let range = self.range_of(clusters);
        let device = self.file.device();
        if range.end() <= self.file.end() && device.info().can(Capabilities::TRIM) {
            let _ = device.trim(range, WriteFlags::empty()).await;
        }
    }

    fn range_of(&self, clusters: Clusters) -> ByteRange {
        let size = self.geometry.cluster_size();
        let start = clusters.first.saturating_mul(size);
        ByteRange::between(
            start,
            start.saturating_add(clusters.count.saturating_mul(size)),
        )
    }

    /// Everything in its place, no space lost. On the worker's thread.
    pub(super) async fn close_now(&self) -> Result<()> {
        self.commit_now().await?;
        self.absorb().await?;
        self.settle().await?;
        if self.allocator.lock().await.is_changed() {
            self.write_lowered().await?;
        }
        Ok(())
    }

    /// Takes back clusters that requests did not use.
    pub(super) async fn absorb(&self) -> Result<()> {
        loop {
            let Some(clusters) = lock(&self.returned).pop() else {
                return Ok(());
            };
            let (done, result) = self.allocator.lock().await.release(clusters).await;
            if let Err(error) = result {
                lock(&self.returned).push(clusters.split_at(done).1);
                return Err(error);
            }
        }
    }
}
