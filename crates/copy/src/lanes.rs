//! The handles to one side: for an NBD export its connections.
//!
//! The copy begins with the handle that it was given. More are opened beside it and join when they are
//! there, so neither a server that refuses them nor one that never answers holds anything up. A handle
//! whose connection is lost is retired, and the others do its work, as long as one is left.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use blockferry_block::{BlockDevice, BoxFuture, Capabilities, Result};
use futures_util::{StreamExt, stream::FuturesUnordered};

/// Which handle of a side: they are numbered in the order in which they joined.
pub(crate) type LaneId = usize;

/// The handles to one side.
pub(crate) struct Lanes {
    lanes: Vec<Lane>,
    opening: FuturesUnordered<BoxFuture<'static, Result<Arc<dyn BlockDevice>>>>,
}

struct Lane {
    device: Arc<dyn BlockDevice>,
    /// How many requests it has in flight.
    requests: usize,
    /// How many it ever had.
    begun: u64,
    /// Whether it was written through.
    written: bool,
    lost: bool,
}

impl Lanes {
    /// `device` alone, and up to `wanted` handles in all once they are open.
    pub(crate) fn new(device: Arc<dyn BlockDevice>, wanted: usize) -> Self {
        let several = device.info().can(Capabilities::MULTI_CONN);
        let more = if several { wanted.max(1) - 1 } else { 0 };
        let open = |_| {
            let device = Arc::clone(&device);
            Box::pin(async move { device.reopen().await }) as BoxFuture<'static, _>
        };
        Self {
            opening: (0..more).map(open).collect(),
            lanes: vec![Lane::new(device)],
        }
    }

    /// Ready when another handle has joined.
    pub(crate) fn poll_join(&mut self, cx: &mut Context<'_>) -> Poll<Arc<dyn BlockDevice>> {
        while let Poll::Ready(Some(opened)) = self.opening.poll_next_unpin(cx) {
            // One that is refused is not missed: the copy goes on with those that it has.
            if let Ok(device) = opened {
                self.lanes.push(Lane::new(Arc::clone(&device)));
                return Poll::Ready(device);
            }
        }
        Poll::Pending
    }

    /// How many handles there ever were.
    pub(crate) fn joined(&self) -> usize {
        self.lanes.len()
    }

    /// How many handles are in use.
    pub(crate) fn live(&self) -> usize {
        self.lanes.iter().filter(|lane| !lane.lost).count()
    }

    /// A handle, lost or not.
    pub(crate) fn device(&self, lane: LaneId) -> &Arc<dyn BlockDevice> {
        &self.lanes[lane].device
    }

    /// The handle that is `owner`'s: another one for each, as far as there are enough.
    pub(crate) fn of_owner(&self, owner: usize) -> LaneId {
        let mut live = self.live_lanes();
        let turn = owner % self.live().max(1);
        live.nth(turn).map_or(0, |(id, _)| id)
    }

    /// The handle with the fewest requests in flight; of those, the one that had the fewest ever.
    pub(crate) fn least_busy(&self) -> LaneId {
        let least = self
            .live_lanes()
            .min_by_key(|(_, lane)| (lane.requests, lane.begun));
        least.map_or(0, |(id, _)| id)
    }

    /// A request begins.
    pub(crate) fn begin(&mut self, lane: LaneId) {
        self.lanes[lane].requests += 1;
        self.lanes[lane].begun += 1;
    }

    /// A request has ended.
    pub(crate) fn end(&mut self, lane: LaneId) {
        self.lanes[lane].requests -= 1;
    }

    /// Something is written through a handle.
    pub(crate) fn note_written(&mut self, lane: LaneId) {
        self.lanes[lane].written = true;
    }

    /// Gives up a handle whose connection was lost. False when no other is left to go on with.
    pub(crate) fn retire(&mut self, lane: LaneId) -> bool {
        let others = self.live_lanes().any(|(id, _)| id != lane);
        if others {
            self.lanes[lane].lost = true;
        }
        others
    }

    /// Whether a handle was given up.
    pub(crate) fn is_lost(&self, lane: LaneId) -> bool {
        self.lanes[lane].lost
    }

    /// The next handle that was written through and not flushed since.
    pub(crate) fn to_flush(&self) -> Option<LaneId> {
        let mut written = self.live_lanes().filter(|(_, lane)| lane.written);
        written.next().map(|(id, _)| id)
    }

    /// What was written through a handle is durable.
    pub(crate) fn note_flushed(&mut self, lane: LaneId) {
        self.lanes[lane].written = false;
    }

    fn live_lanes(&self) -> impl Iterator<Item = (LaneId, &Lane)> {
        self.lanes.iter().enumerate().filter(|(_, lane)| !lane.lost)
    }
}

impl Lane {
    fn new(device: Arc<dyn BlockDevice>) -> Self {
        Self {
            device,
            requests: 0,
            begun: 0,
            written: false,
            lost: false,
        }
    }
}
