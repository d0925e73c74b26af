//! The handles to one side of a copy: one for most devices, several where an NBD server offers to export
//! its connections.
//!
//! The copy begins with the handle that it was given. More are opened beside it and join when they are
//! there, so neither a server that refuses them nor one that never answers holds anything up. A handle
//! whose connection is lost is given up: the others do its work, and where there are retries its place
//! is filled again by a new connection. When none is left the side is down, and one attempt follows the
//! other, with growing pauses in between, until a connection stands or the retries are used up.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use blockferry_block::{
    BlockDevice, BoxFuture, Capabilities, Error, ErrorKind, Result,
    reopening::{can_heal, pause},
};
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};

use crate::unflushed::Unflushed;

/// Which handle of a side: the place that it has, and how many had that place before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LaneId {
    pub(crate) place: usize,
    generation: u32,
}

/// The handles to one side.
pub(crate) struct Lanes {
    lanes: Vec<Lane>,
    opening: FuturesUnordered<BoxFuture<'static, Opened>>,
    /// How many attempts in a row may fail.
    retries: u32,
    /// How many attempts were made since anything was achieved.
    attempts: u32,
    /// The place that the last of these attempts is to fill. While the side is down the fate of the others
    /// that are being opened counts for nothing, unless one succeeds.
    attempt: Option<usize>,
    reconnections: u64,
}

struct Lane {
    device: Arc<dyn BlockDevice>,
    generation: u32,
    /// How many requests it has in flight.
    requests: usize,
    /// How many it ever had.
    begun: u64,
    /// Whether it was written through since it was flushed.
    written: bool,
    /// What was acknowledged on it and is not known to be durable.
    unflushed: Unflushed,
    /// The part of that which a flush that is under way makes durable.
    flushing: Unflushed,
    lost: bool,
    /// Whether its place is being filled again.
    opening: bool,
    /// How often that was tried in vain.
    attempts: u32,
}

struct Opened {
    /// The place to be filled; `None` for a handle beside the others.
    place: Option<usize>,
    result: Result<Arc<dyn BlockDevice>>,
}

/// News of the handles.
#[derive(Debug)]
pub(crate) enum Joining {
    /// There is a handle at this place.
    Joined { place: usize, again: bool },
    /// The side is down, and an attempt to connect again has failed.
    StillDown { error: Error, next: Next },
}

/// What follows the loss of the last handle, or a failed attempt to replace it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another attempt, so many seconds from now, and its number.
    Attempt { pause: Duration, number: u32 },
    /// Nothing, after so many attempts.
    GivenUp { attempts: u32 },
}

/// What the loss of a handle means.
#[derive(Debug)]
pub(crate) enum Loss {
    /// Others go on, so many.
    Others(usize),
    /// The side is down.
    Down(Next),
}

impl Lanes {
    /// `device` alone, and up to `wanted` handles in all once they are open. A lost one is replaced, after
    /// `retries` vain attempts in a row at most.
    pub(crate) fn new(device: Arc<dyn BlockDevice>, wanted: usize, retries: u32) -> Self {
        let info = device.info();
        let several = info.can(Capabilities::MULTI_CONN);
        let more = if several { wanted.max(1) - 1 } else { 0 };
        let retries = match info.can(Capabilities::REOPEN) {
            true => retries,
            false => 0,
        };
        let opening = (0..more).map(|_| open(&device, None, Duration::ZERO));
        Self {
            opening: opening.collect(),
            lanes: vec![Lane::new(device, 0)],
            retries,
            attempts: 0,
            attempt: None,
            reconnections: 0,
        }
    }

    /// Ready when a handle has joined, or could not be replaced.
    pub(crate) fn poll_join(&mut self, cx: &mut Context<'_>) -> Poll<Joining> {
        while let Poll::Ready(Some(opened)) = self.opening.poll_next_unpin(cx) {
            if let Some(news) = self.opened(opened) {
                return Poll::Ready(news);
            }
        }
        Poll::Pending
    }

    /// How many handles there were at a time.
    pub(crate) fn joined(&self) -> usize {
        self.lanes.len()
    }

    /// How many handles are in use.
    pub(crate) fn live(&self) -> usize {
        self.lanes.iter().filter(|lane| !lane.lost).count()
    }

    /// Whether no handle is left to go on with.
    pub(crate) fn is_down(&self) -> bool {
        self.lanes.iter().all(|lane| lane.lost)
    }

    /// How often a lost handle was replaced.
    pub(crate) fn reconnections(&self) -> u64 {
        self.reconnections
    }

    /// The handle at a place.
    pub(crate) fn device(&self, place: usize) -> &Arc<dyn BlockDevice> {
        &self.lanes[place].device
    }

    /// Which handle `device` is, if it is one of them.
    pub(crate) fn find(&self, device: &Arc<dyn BlockDevice>) -> Option<LaneId> {
        let place = self
            .lanes
            .iter()
            .position(|lane| Arc::ptr_eq(&lane.device, device))?;
        Some(self.id(place))
    }

    /// The handle that is `owner`'s: another one for each, as far as there are enough.
    pub(crate) fn of_owner(&self, owner: usize) -> LaneId {
        let turn = owner % self.live().max(1);
        let mut live = self.live_lanes();
        live.nth(turn)
            .map_or(self.id(0), |(place, _)| self.id(place))
    }

    /// The handle with the fewest requests in flight; of those, the one that had the fewest ever.
    pub(crate) fn least_busy(&self) -> LaneId {
        let least = self
            .live_lanes()
            .min_by_key(|(_, lane)| (lane.requests, lane.begun));
        least.map_or(self.id(0), |(place, _)| self.id(place))
    }

    /// A request begins.
    pub(crate) fn begin(&mut self, lane: LaneId) {
        self.lanes[lane.place].requests += 1;
        self.lanes[lane.place].begun += 1;
    }

    /// A request has ended.
    pub(crate) fn end(&mut self, lane: LaneId) {
        if let Some(lane) = self.same(lane) {
            lane.requests -= 1;
        }
    }

    /// Something was achieved: attempts to connect again count from the beginning.
    pub(crate) fn achieved(&mut self, lane: LaneId) {
        self.attempts = 0;
        if let Some(lane) = self.same(lane) {
            lane.attempts = 0;
        }
    }

    /// Something is written through a handle.
    pub(crate) fn note_written(&mut self, lane: LaneId) {
        self.lanes[lane.place].written = true;
    }

    /// What was written through a handle and is not known to be durable; `None` when the handle was lost
    /// since, so that this has to be written again.
    pub(crate) fn unflushed(&mut self, lane: LaneId) -> Option<&mut Unflushed> {
        self.same(lane)
            .filter(|lane| !lane.lost)
            .map(|lane| &mut lane.unflushed)
    }

    /// Whether a handle was given up.
    pub(crate) fn is_lost(&self, lane: LaneId) -> bool {
        let now = &self.lanes[lane.place];
        now.generation != lane.generation || now.lost
    }

    /// Whether there would be a handle to go on with, or at least an attempt to open one, without this one.
    pub(crate) fn can_do_without(&self, lane: LaneId) -> bool {
        self.is_lost(lane) || self.live() > 1 || self.attempts < self.retries
    }

    /// Gives up a handle whose connection was lost, and says what that means and what must be written
    /// again.
    pub(crate) fn retire(&mut self, lane: LaneId) -> (Loss, Unflushed) {
        let lost = &mut self.lanes[lane.place];
        lost.lost = true;
        lost.written = false;
        let mut again = std::mem::take(&mut lost.unflushed);
        again.absorb(std::mem::take(&mut lost.flushing));
        let loss = match self.live() {
            0 => Loss::Down(self.try_again(lane.place)),
            others => {
                self.replace(lane.place);
                Loss::Others(others)
            }
        };
        (loss, again)
    }

    /// The failure of a side that is down for good, after so many attempts, the last of which failed with
    /// `error`. Another copy may have more luck, unless something answered that is not what it was.
    pub(crate) fn given_up(&self, error: Error, attempts: u32) -> Error {
        let kind = match error.kind() {
            kind @ (ErrorKind::Incompatible
            | ErrorKind::NotPermitted
            | ErrorKind::InvalidInput
            | ErrorKind::Protocol) => kind,
            kind if error.is_transient() => kind,
            _ => ErrorKind::ConnectionLost,
        };
        let message = match attempts {
            1 => "the connection was lost and could not be opened again".to_owned(),
            _ => format!(
                "the connection was lost and could not be opened again in {attempts} attempts"
            ),
        };
        let failure = Error::with_message(kind, message).because(error);
        failure.on(&self.lanes[0].device.info().name)
    }

    /// The next handle that was written through and not flushed since.
    pub(crate) fn to_flush(&self) -> Option<LaneId> {
        let mut written = self.live_lanes().filter(|(_, lane)| lane.written);
        written.next().map(|(place, _)| self.id(place))
    }

    /// A flush of all that was written through a handle so far begins.
    pub(crate) fn begin_flush(&mut self, lane: LaneId) {
        let lane = &mut self.lanes[lane.place];
        lane.written = false;
        let unflushed = std::mem::take(&mut lane.unflushed);
        lane.flushing.absorb(unflushed);
    }

    /// A flush has ended well: what it made durable.
    pub(crate) fn flushed(&mut self, lane: LaneId) -> Unflushed {
        self.same(lane)
            .map(|lane| std::mem::take(&mut lane.flushing))
            .unwrap_or_default()
    }

    fn opened(&mut self, opened: Opened) -> Option<Joining> {
        let Some(place) = opened.place else {
            // One more that is refused is not missed: the copy goes on with those that it has.
            let device = opened.result.ok()?;
            self.lanes.push(Lane::new(device, 0));
            let place = self.lanes.len() - 1;
            return Some(Joining::Joined {
                place,
                again: false,
            });
        };
        self.lanes[place].opening = false;
        match opened.result {
            Ok(device) => {
                let old = &self.lanes[place];
                let (generation, attempts) = (old.generation + 1, old.attempts);
                self.lanes[place] = Lane::new(device, generation);
                self.lanes[place].attempts = attempts;
                self.reconnections += 1;
                let others: Vec<_> = (0..self.lanes.len())
                    .filter(|other| self.lanes[*other].lost)
                    .collect();
                for other in others {
                    self.replace(other);
                }
                Some(Joining::Joined { place, again: true })
            }
            Err(error) if !self.is_down() => {
                if can_heal(&error) {
                    self.replace(place);
                }
                None
            }
            Err(_) if self.attempt != Some(place) => None,
            Err(error) => {
                let next = match can_heal(&error) {
                    true => self.try_again(place),
                    false => Next::GivenUp {
                        attempts: self.attempts,
                    },
                };
                Some(Joining::StillDown { error, next })
            }
        }
    }

    /// Opens a handle for a place beside others that are in use.
    fn replace(&mut self, place: usize) {
        let lane = &mut self.lanes[place];
        if lane.opening || lane.attempts >= self.retries {
            return;
        }
        lane.opening = true;
        let pause = pause(lane.attempts);
        lane.attempts += 1;
        self.opening.push(open(&lane.device, Some(place), pause));
    }

    /// Opens a handle, as the only one, after a pause.
    fn try_again(&mut self, place: usize) -> Next {
        if self.attempts >= self.retries {
            return Next::GivenUp {
                attempts: self.attempts,
            };
        }
        let pause = pause(self.attempts);
        self.attempts += 1;
        let next = Next::Attempt {
            pause,
            number: self.attempts,
        };
        let lane = &mut self.lanes[place];
        lane.opening = true;
        self.opening.push(open(&lane.device, Some(place), pause));
        self.attempt = Some(place);
        next
    }

    fn id(&self, place: usize) -> LaneId {
        LaneId {
            place,
            generation: self.lanes[place].generation,
        }
    }

    fn same(&mut self, id: LaneId) -> Option<&mut Lane> {
        let lane = &mut self.lanes[id.place];
        (lane.generation == id.generation).then_some(lane)
    }

    fn live_lanes(&self) -> impl Iterator<Item = (usize, &Lane)> {
        self.lanes.iter().enumerate().filter(|(_, lane)| !lane.lost)
    }
}

impl Lane {
    fn new(device: Arc<dyn BlockDevice>, generation: u32) -> Self {
        Self {
            device,
            generation,
            requests: 0,
            begun: 0,
            written: false,
            unflushed: Unflushed::default(),
            flushing: Unflushed::default(),
            lost: false,
            opening: false,
            attempts: 0,
        }
    }
}

/// Opens another handle to what `device` is one to, after a pause.
fn open(
    device: &Arc<dyn BlockDevice>,
    place: Option<usize>,
    pause: Duration,
) -> BoxFuture<'static, Opened> {
    let device = Arc::clone(device);
    async move {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        Opened {
            place,
            result: device.reopen().await,
        }
    }
    .boxed()
}
