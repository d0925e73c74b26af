//! What is counted while bytes move.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::relay::{Counters, Moved, Totals};

use super::connection::{ENDINGS, Ending};

/// The counts of one worker.
#[derive(Default)]
pub(super) struct Book {
    open: AtomicUsize,
    pages: Mutex<Pages>,
}

#[derive(Default)]
struct Pages {
    /// What connections that are over have moved.
    past: Totals,
    /// Those that are not.
    live: HashMap<u64, Counts>,
    /// How many ended in each of the ways of [`ENDINGS`].
    ended: [u64; ENDINGS.len()],
}

/// Where a connection counts its bytes.
#[derive(Clone)]
pub(super) enum Counts {
    /// Both ways together.
    Joined(Arc<Counters>),
    /// Each way counts as forward.
    Apart {
        to_target: Arc<Counters>,
        to_client: Arc<Counters>,
    },
}

impl Counts {
    /// For each way its own.
    pub(super) fn in_two() -> Self {
        Self::Apart {
            to_target: Arc::default(),
            to_client: Arc::default(),
        }
    }

    /// Where each way is counted, to the target and back, if it is by itself.
    pub(super) fn apart(&self) -> (Option<Arc<Counters>>, Option<Arc<Counters>>) {
        match self {
            Self::Joined(_) => (None, None),
            Self::Apart {
                to_target,
                to_client,
            } => (Some(Arc::clone(to_target)), Some(Arc::clone(to_client))),
        }
    }

    /// The counts of now.
    pub(super) fn totals(&self) -> Totals {
        match self {
            Self::Joined(counters) => counters.totals(),
            Self::Apart {
                to_target,
                to_client,
            } => Totals {
                forward: to_target.totals().forward,
                backward: to_client.totals().forward,
            },
        }
    }
}

impl Book {
    /// A connection was handed to this worker.
    pub(super) fn expect(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    /// How many connections there are, with those that are still being connected.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// A connection begins.
    pub(super) fn enter(&self, number: u64, counts: Counts) {
        self.pages().live.insert(number, counts);
    }

    /// It is over, and has moved so much.
    pub(super) fn leave(&self, number: u64, moved: &Totals, ending: &Ending) {
        let mut pages = self.pages();
        pages.live.remove(&number);
        pages.past = sum(pages.past, moved);
        if let Some(place) = ENDINGS.iter().position(|word| *word == ending.word()) {
            pages.ended[place] += 1;
        }
        drop(pages);
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// What was moved until now, by connections that are over and by those that are not.
    pub(super) fn moved(&self) -> Totals {
        let pages = self.pages();
        let live = pages.live.values().map(Counts::totals);
        live.fold(pages.past, |all, one| sum(all, &one))
    }

    /// How many connections ended in each of the ways of [`ENDINGS`].
    pub(super) fn ended(&self) -> [u64; ENDINGS.len()] {
        self.pages().ended
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What both have moved.
pub(super) fn sum(one: Totals, other: &Totals) -> Totals {
    let add = |one: Moved, other: Moved| Moved {
        spliced: one.spliced.saturating_add(other.spliced),
        copied: one.copied.saturating_add(other.copied),
    };
    Totals {
        forward: add(one.forward, other.forward),
        backward: add(one.backward, other.backward),
    }
}
