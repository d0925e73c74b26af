//! The requests in flight. A cookie is the slot of its request and the generation in which the
//! slot was filled, so that a reply finds its request by an index and a stale or invented cookie
//! is noticed. The reads whose data is still to come are chained through the slots in the order
//! of their submission.

use super::coverage::Coverage;
use super::event::ServerError;
use super::request::Request;
use crate::limits;
use crate::wire::Command;

/// What ties a reply to its request (a "handle" in older texts).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cookie(pub u64);

impl Cookie {
    fn new(generation: u32, slot: u32) -> Self {
        Self(u64::from(generation) << 32 | u64::from(slot))
    }

    /// The slot of its request in the table: small, and unique among the requests in flight, so
    /// that a caller can keep what belongs to a request in an array.
    #[inline]
    #[must_use]
    pub fn slot(self) -> usize {
        (self.0 & 0xffff_ffff) as usize
    }
}

/// A slot's neighbour in the chain of reads.
const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(crate) struct InFlight {
    pub(crate) request: Request,
    pub(crate) coverage: Coverage,
    /// Data chunks so far.
    pub(crate) data_chunks: u32,
    /// The first error of the reply.
    pub(crate) error: Option<ServerError>,
    /// One bit for each negotiated context whose extents have come.
    pub(crate) contexts: u64,
    cookie: Cookie,
    live: bool,
    chained: bool,
    previous: u32,
    next: u32,
}

#[derive(Debug)]
pub(crate) struct Table {
    slots: Vec<InFlight>,
    free: Vec<u32>,
    generation: u32,
    oldest: u32,
    newest: u32,
}

impl Table {
    pub(crate) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            generation: 0,
            oldest: NONE,
            newest: NONE,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Enters a request, or says `None` when the table is full. Allocates only when more
    /// requests are in flight than ever before.
    pub(crate) fn insert(&mut self, request: Request) -> Option<Cookie> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots.len() >= limits::IN_FLIGHT => return None,
            None => {
                self.slots.push(InFlight {
                    request,
                    coverage: Coverage::default(),
                    data_chunks: 0,
                    error: None,
                    contexts: 0,
                    cookie: Cookie(0),
                    live: false,
                    chained: false,
                    previous: NONE,
                    next: NONE,
                });
                // Room for every slot to be free, so that `remove` never allocates.
                self.free.reserve(self.slots.len());
                (self.slots.len() - 1) as u32
            }
        };
        self.generation = self.generation.wrapping_add(1);
        let cookie = Cookie::new(self.generation, slot);
        let entry = &mut self.slots[slot as usize];
        entry.request = request;
        entry.coverage.clear();
        entry.data_chunks = 0;
        entry.error = None;
        entry.contexts = 0;
        entry.cookie = cookie;
        entry.live = true;
        if request.command == Command::Read {
            self.chain(slot);
        }
        Some(cookie)
    }

    #[inline]
    pub(crate) fn find(&mut self, cookie: Cookie) -> Option<&mut InFlight> {
        self.slots
            .get_mut(cookie.slot())
            .filter(|entry| entry.live && entry.cookie == cookie)
    }

    #[inline]
    pub(crate) fn peek(&self, cookie: Cookie) -> Option<&InFlight> {
        self.slots
            .get(cookie.slot())
            .filter(|entry| entry.live && entry.cookie == cookie)
    }

    /// Takes a request out and returns its error.
    pub(crate) fn remove(&mut self, cookie: Cookie) -> Option<ServerError> {
        self.unchain(cookie);
        let entry = self.find(cookie)?;
        entry.live = false;
        let error = entry.error.take();
        self.free.push(cookie.slot() as u32);
        error
    }

    /// The requests in flight, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Cookie, &Request)> {
        self.slots
            .iter()
            .filter(|entry| entry.live)
            .map(|entry| (entry.cookie, &entry.request))
    }

    /// The `n`th oldest read with data still to come, and its first gap.
    pub(crate) fn nth_read(&self, n: usize) -> Option<(Cookie, u64, u64)> {
        let mut slot = self.oldest;
        for _ in 0..n {
            slot = self.slots.get(slot as usize)?.next;
        }
        let entry = self.slots.get(slot as usize)?;
        let (offset, length) = entry.coverage.first_gap(entry.request.length)?;
        Some((entry.cookie, offset, length))
    }

    fn chain(&mut self, slot: u32) {
        let newest = self.newest;
        let entry = &mut self.slots[slot as usize];
        entry.chained = true;
        entry.previous = newest;
        entry.next = NONE;
        match self.slots.get_mut(newest as usize) {
            Some(before) => before.next = slot,
            None => self.oldest = slot,
        }
        self.newest = slot;
    }

    /// Takes a read out of the chain: its data is complete.
    pub(crate) fn unchain(&mut self, cookie: Cookie) {
        let Some(entry) = self.find(cookie).filter(|entry| entry.chained) else {
            return;
        };
        entry.chained = false;
        let (previous, next) = (entry.previous, entry.next);
        match self.slots.get_mut(previous as usize) {
            Some(before) => before.next = next,
            None => self.oldest = next,
        }
        match self.slots.get_mut(next as usize) {
            Some(after) => after.previous = previous,
            None => self.newest = previous,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;
    use crate::wire::CommandFlags;

    fn read(offset: u64) -> Request {
        Request {
            command: Command::Read,
            flags: CommandFlags::empty(),
            offset,
            length: 512,
        }
    }

    #[test]
    fn a_cookie_is_stale_once_its_slot_is_used_again() {
        let mut table = Table::new();
        let first = table.insert(read(0)).unwrap();
        table.remove(first);
        assert!(table.find(first).is_none());
        let second = table.insert(read(512)).unwrap();
        assert_eq!(first.slot(), second.slot());
        assert!(table.find(first).is_none());
        assert_eq!(table.find(second).unwrap().request.offset, 512);
    }

    #[test]
    fn the_table_is_bounded() {
        let mut table = Table::new();
        for _ in 0..limits::IN_FLIGHT {
            assert!(table.insert(read(0)).is_some());
        }
        assert!(table.insert(read(0)).is_none());
        assert_eq!(table.len(), limits::IN_FLIGHT);
    }

    proptest! {
        #[test]
        fn the_chain_keeps_the_order_of_submission(steps in prop::collection::vec(0usize..8, 0..200)) {
            let mut table = Table::new();
            let mut model = VecDeque::new();
            for step in steps {
                if step < 4 || model.is_empty() {
                    model.push_back(table.insert(read(0)).unwrap());
                } else {
                    let cookie = model.remove(step % model.len()).unwrap();
                    table.remove(cookie);
                }
                let chain: Vec<_> = (0..)
                    .map_while(|n| table.nth_read(n))
                    .map(|(cookie, ..)| cookie)
                    .collect();
                prop_assert_eq!(chain, model.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(table.len(), model.len());
            }
        }
    }
}
