//! Who may change which blocks: a block of which only a part is written is read, changed and written back, and
//! nobody else may change it meanwhile.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blockferry_block::ByteRange;
use tokio::sync::Notify;

/// The changes of one export, in the order in which they came. Each waits for those before it that it must not
/// run beside, so there is no deadlock, and nobody waits for those that come later.
#[derive(Default)]
pub(super) struct BlockLocks {
    changes: Mutex<Changes>,
    released: Notify,
}

#[derive(Default)]
struct Changes {
    last_number: u64,
    /// By their numbers; those under way, and those that wait.
    all: Vec<Change>,
}

struct Change {
    number: u64,
    /// All blocks that are changed.
    around: ByteRange,
    /// Those of which only a part is.
    partial: Vec<ByteRange>,
}

impl Change {
    /// Whether one of them reads and writes back what the other changes.
    fn collides(&self, other: &Self) -> bool {
        let overlaps = |partial: &[ByteRange], around: ByteRange| {
            let mut partial = partial.iter();
            partial.any(|block| !block.intersection(around).is_empty())
        };
        overlaps(&self.partial, other.around) || overlaps(&other.partial, self.around)
    }
}

impl BlockLocks {
    /// Waits until the blocks `around` can be changed, those in `partial` by reading them first.
    pub(super) async fn lock(
        self: &Arc<Self>,
        around: ByteRange,
        partial: Vec<ByteRange>,
    ) -> ChangeGuard {
        let guard = {
            let mut changes = self.changes();
            changes.last_number += 1;
            let number = changes.last_number;
            changes.all.push(Change {
                number,
                around,
                partial,
            });
            ChangeGuard {
                locks: Arc::clone(self),
                number,
            }
        };
        loop {
            let released = self.released.notified();
            if self.is_free(guard.number) {
                return guard;
            }
            released.await;
        }
    }

    fn is_free(&self, number: u64) -> bool {
        let changes = self.changes();
        let before = changes.all.partition_point(|change| change.number < number);
        let Some(own) = changes.all.get(before) else {
            return true;
        };
        !changes.all[..before].iter().any(|it| it.collides(own))
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A change that is under way or waits for its turn, until this is dropped.
pub(super) struct ChangeGuard {
    locks: Arc<BlockLocks>,
    number: u64,
}

impl Drop for ChangeGuard {
    fn drop(&mut self) {
        let is_last = {
            let mut changes = self.locks.changes();
            changes.all.retain(|change| change.number != self.number);
            changes.all.is_empty()
        };
        if !is_last {
            self.locks.released.notify_waiters();
        }
    }
}
