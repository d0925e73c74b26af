//! Turns on ranges: who changes a range has it alone, and who changes another one does not wait.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use crate::ByteRange;

/// A lock on each byte of a device. Turns are taken in the order in which they were asked for, so that a long
/// range is not starved by short ones. Nothing depends on a runtime: a turn that is dropped, by a connection that
/// ends for one, lets the next ones have theirs.
#[derive(Debug, Default)]
pub struct RangeLock {
    queue: Mutex<Queue>,
}

/// Everyone who has a turn or waits for one, the oldest first.
#[derive(Debug, Default)]
struct Queue {
    entries: VecDeque<Entry>,
    last: u64,
}

#[derive(Debug)]
struct Entry {
    ticket: u64,
    range: ByteRange,
    /// Of one who waits.
    waker: Option<Waker>,
}

/// A range that nobody else changes, until it is dropped.
#[derive(Debug)]
pub struct RangeTurn<'a> {
    lock: &'a RangeLock,
    ticket: u64,
}

/// A turn that was asked for, or will be with the first poll.
#[derive(Debug)]
pub struct RangeWaiting<'a> {
    lock: &'a RangeLock,
    range: ByteRange,
    turn: Option<RangeTurn<'a>>,
}

impl RangeLock {
    /// Waits for a turn on `range`. It is there at the first poll where nobody else has any of it.
    pub fn lock(&self, range: ByteRange) -> RangeWaiting<'_> {
        RangeWaiting {
            lock: self,
            range,
            turn: None,
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn is_free(&self, ticket: u64, range: ByteRange) -> bool {
        let older = self.entries.iter();
        older
            .take_while(|entry| entry.ticket < ticket)
            .all(|entry| entry.range.intersection(range).is_empty())
    }
}

impl<'a> Future for RangeWaiting<'a> {
    type Output = RangeTurn<'a>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { lock, range, .. } = *self;
        let mut queue = lock.queue();
        let ticket = match &self.turn {
            Some(turn) => turn.ticket,
            None => {
                queue.last += 1;
                let ticket = queue.last;
                queue.entries.push_back(Entry {
                    ticket,
                    range,
                    waker: None,
                });
                self.turn = Some(RangeTurn { lock, ticket });
                ticket
            }
        };
        let is_free = queue.is_free(ticket, range);
        let own = queue.entries.iter_mut().rev();
        if let Some(entry) = own.into_iter().find(|entry| entry.ticket == ticket) {
            entry.waker = (!is_free).then(|| cx.waker().clone());
        }
        drop(queue);
        match self.turn.take_if(|_| is_free) {
            Some(turn) => Poll::Ready(turn),
            None => Poll::Pending,
        }
    }
}

impl Drop for RangeTurn<'_> {
    fn drop(&mut self) {
        let mut woken = Vec::new();
        {
            let mut queue = self.lock.queue();
            let place = queue.entries.iter().position(|it| it.ticket == self.ticket);
            let Some(own) = place.and_then(|place| queue.entries.remove(place)) else {
                return;
            };
            for entry in &mut queue.entries {
                if !entry.range.intersection(own.range).is_empty() {
                    woken.extend(entry.waker.take());
                }
            }
        }
        woken.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::Arc,
        sync::atomic::{AtomicU32, Ordering},
    };

    use futures_util::FutureExt;

    use super::*;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::between(start, end)
    }

    #[test]
    fn only_who_overlaps_waits_and_in_order() {
        let lock = RangeLock::default();
        let first = lock.lock(range(0, 10)).now_or_never().expect("free");
        let _beside = lock.lock(range(10, 20)).now_or_never().expect("free");
        let mut long = Box::pin(lock.lock(range(5, 100)));
        assert!(long.as_mut().now_or_never().is_none());
        let mut late = Box::pin(lock.lock(range(90, 95)));
        assert!(
            late.as_mut().now_or_never().is_none(),
            "the long one was first"
        );
        drop(first);
        assert!(long.as_mut().now_or_never().is_none());
        drop(long);
        assert!(late.as_mut().now_or_never().is_some());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn nobody_is_forgotten_and_nobody_shares() {
        let lock = Arc::new(RangeLock::default());
        let inside = Arc::new([const { AtomicU32::new(0) }; 8]);
        let tasks = (0..16_u64).map(|task| {
            let (lock, inside) = (Arc::clone(&lock), Arc::clone(&inside));
            tokio::spawn(async move {
                for step in 0..300_u64 {
                    let start = (task * 7 + step * 3) % 8;
                    let end = (start + 1 + step % 3).min(8);
                    let waiting = lock.lock(range(start, end));
                    if step % 11 == 0 {
                        let _given_up = waiting.now_or_never();
                        continue;
                    }
                    let _turn = waiting.await;
                    for place in start..end {
                        assert_eq!(inside[place as usize].fetch_add(1, Ordering::SeqCst), 0);
                    }
                    tokio::task::yield_now().await;
                    for place in start..end {
                        inside[place as usize].fetch_sub(1, Ordering::SeqCst);
                    }
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.expect("no panic");
        }
        assert!(lock.queue().entries.is_empty());
    }
}
