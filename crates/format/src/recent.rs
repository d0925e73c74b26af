//! What was unpacked last, for those who read it in small pieces.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use blockferry_block::Buffer;

/// A few unpacked blocks, by where they begin in the file. Nobody writes compressed blocks in place, so what came from
/// a place is never replaced by something else.
pub(crate) struct Recent {
    most: usize,
    kept: Mutex<Kept>,
}

/// The last one that was used comes first.
type Kept = VecDeque<(u64, Arc<Buffer>)>;

impl Recent {
    /// Room for `most` blocks, which is not 0.
    pub(crate) fn new(most: usize) -> Self {
        let kept = Mutex::default();
        Self { most, kept }
    }

    /// The unpacked block that begins at `offset` of the file, if it is kept.
    pub(crate) fn find(&self, offset: u64) -> Option<Arc<Buffer>> {
        let mut kept = self.kept();
        let place = kept.iter().position(|(key, _)| *key == offset)?;
        let entry = kept.remove(place)?;
        let buffer = Arc::clone(&entry.1);
        kept.push_front(entry);
        Some(buffer)
    }

    pub(crate) fn keep(&self, offset: u64, buffer: &Arc<Buffer>) {
        let mut kept = self.kept();
        kept.truncate(self.most - 1);
        kept.push_front((offset, Arc::clone(buffer)));
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_were_not_used_for_longest_go_first() {
        let recent = Recent::new(3);
        for at in 0..3 {
            recent.keep(at, &Arc::new(Buffer::zeroed(1)));
        }
        assert!(recent.find(0).is_some());
        recent.keep(3, &Arc::new(Buffer::zeroed(1)));
        let here = (0..4).filter(|at| recent.find(*at).is_some());
        assert_eq!(here.collect::<Vec<_>>(), [0, 2, 3]);
    }
}
