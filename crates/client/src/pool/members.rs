//! The connections of a pool: which ones live, and what was written through them and is not durable.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use blockferry_block::{BlockDevice, Capabilities, DeviceInfo, Error, ErrorKind, Result};
use blockferry_proto::NbdUri;
use tokio::{sync::Notify, task::AbortHandle};

use super::{
    options::{PoolEvent, PoolObserver, PoolOptions},
    revival::{Blueprint, supervise, watch},
};
use crate::{Client, ConnectOptions, in_flight::disconnected};

/// How many connections a pool has at most.
const MOST: usize = 256;

/// What the handles share; the last one to go closes the connections.
pub(super) struct Inner {
    info: DeviceInfo,
    pub(super) blueprint: Arc<Blueprint>,
    /// How many connections there are to be.
    pub(super) wanted: usize,
    /// How many attempts in a row may fail; none at all are made where it is 0.
    pub(super) retries: u32,
    observer: Option<PoolObserver>,
    state: Mutex<State>,
    /// How many attempts to connect again were made since any request was answered.
    pub(super) vain: AtomicU32,
    /// Wakes the supervisor.
    pub(super) work: Arc<Notify>,
    /// Wakes the requests that wait for a connection.
    pub(super) news: Notify,
    supervisor: Mutex<Option<AbortHandle>>,
}

/// What changes with each loss, and with each acknowledged change of the image.
pub(super) struct State {
    slots: Vec<Slot>,
    /// How many connections there ever were.
    pub(super) births: u64,
    /// Where the search for the next connection begins, so that equals take turns.
    turn: usize,
    debt: Option<Debt>,
    /// How often there was one more.
    debts: u64,
    /// How many debts nobody could settle any more.
    losses: u64,
    /// How many of those anyone was told of.
    told: u64,
    pub(super) phase: Phase,
    /// Why requests fail, when no connection is left.
    pub(super) failure: Option<Error>,
    /// How often it was given up to connect again.
    pub(super) failures: u64,
    /// No connection is opened any more.
    pub(super) is_ending: bool,
    /// A request waits for a connection.
    pub(super) demand: bool,
    /// The server wants no more connections than there are.
    pub(super) enough: bool,
    /// How many attempts were made lately to open a connection in the place of one that was lost beside
    /// others, and when the last one was.
    pub(super) replacements: u32,
    pub(super) last_replacement: Option<Instant>,
    /// When the last attempt to open the only connection ended in vain.
    pub(super) last_attempt: Option<Instant>,
}

/// How a pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It has connections, or is about to get some.
    Up,
    /// It has none, and it was given up to open any: the next request may try again.
    Down,
    /// It was told to disconnect.
    Closed,
}

/// A connection's place in the pool, with the account of what is written through it.
struct Slot {
    member: Arc<Member>,
    /// How many changes were acknowledged, and how many of those are known to be durable.
    changes: u64,
    durable: u64,
}

/// One connection.
struct Member {
    client: Client,
    /// Its number, counted from 1 in the order in which they came.
    birth: u64,
    /// How many of the pool's requests wait for this connection's answer.
    in_flight: AtomicUsize,
    /// The youngest connection that stood when a request was made that this one has answered since.
    proof: AtomicU64,
}

/// Changes that were acknowledged on connections that are lost now, and never flushed.
#[derive(Clone, Copy)]
struct Debt {
    /// A flush settles it on any connection that is this old, by its number: it is to the same server.
    birth: u64,
    /// Changes with each addition to it.
    version: u64,
}

/// A connection with a request of ours in flight.
pub(super) struct Busy {
    member: Arc<Member>,
    /// How many connections there had been when the request was made.
    births: u64,
}

/// A flush of one connection.
pub(super) struct Flushing {
    pub(super) busy: Busy,
    /// How many changes it makes durable.
    changes: u64,
    /// The version of the debt that it settles.
    settles: Option<u64>,
}

impl Inner {
    /// A pool that begins with the connection `first`.
    pub(super) fn begin(
        uri: NbdUri,
        connecting: ConnectOptions,
        options: PoolOptions,
        first: Client,
    ) -> Arc<Self> {
        let mut info = first.info().clone();
        let wanted = match info.can(Capabilities::MULTI_CONN) {
            true => options.connections.clamp(1, MOST),
            false => 1,
        };
        let mut was = info.clone();
        if wanted == 1 {
            was.capabilities -= Capabilities::MULTI_CONN;
        }
        info.capabilities |= Capabilities::MULTI_CONN;
        let inner = Arc::new(Self {
            info,
            blueprint: Arc::new(Blueprint {
                uri,
                options: connecting,
                was,
            }),
            wanted,
            retries: options.retries,
            observer: options.observer,
            state: Mutex::new(State {
                slots: Vec::new(),
                births: 0,
                turn: 0,
                debt: None,
                debts: 0,
                losses: 0,
                told: 0,
                phase: Phase::Up,
                failure: None,
                failures: 0,
                is_ending: false,
                demand: false,
                enough: false,
                replacements: 0,
                last_replacement: None,
                last_attempt: None,
            }),
            vain: AtomicU32::new(0),
            work: Arc::new(Notify::new()),
            news: Notify::new(),
            supervisor: Mutex::new(None),
        });
        inner.join(first);
        if inner.reconnects() || wanted > 1 {
            let task = tokio::spawn(supervise(Arc::downgrade(&inner), Arc::clone(&inner.work)));
            *inner.supervisor() = Some(task.abort_handle());
        }
        inner
    }

    pub(super) fn info(&self) -> &DeviceInfo {
        &self.info
    }

    pub(super) fn reconnects(&self) -> bool {
        self.retries > 0
    }

    /// How often one request is repeated at most.
    pub(super) fn most_repeats(&self) -> u32 {
        let connections = u32::try_from(self.wanted).unwrap_or(u32::MAX);
        self.retries.saturating_add(connections)
    }

    /// How many connections live.
    pub(super) fn live(&self) -> usize {
        self.state().live()
    }

    /// A connection for a request: the one that has the fewest in flight. Waits while one is opened again.
    pub(super) async fn connection(&self) -> Result<Busy> {
        let mut failures = None;
        loop {
            let news = self.news.notified();
            {
                let mut state = self.state();
                if state.phase == Phase::Closed {
                    return Err(disconnected());
                }
                if let Some(busy) = state.choose() {
                    return Ok(busy);
                }
                let since = *failures.get_or_insert(state.failures);
                if !self.reconnects() || state.is_ending || state.failures > since {
                    return Err(state.failure.clone().unwrap_or_else(disconnected));
                }
                state.demand = true;
            }
            self.work.notify_one();
            news.await;
        }
    }

    /// Whether `error` means that the connection is of no use any more, and another may be.
    pub(super) fn is_lost(&self, busy: &Busy, error: &Error) -> bool {
        let is_ending = self.reconnects() && error.kind() == ErrorKind::ShuttingDown;
        error.is_transient() && (is_ending || !busy.client().is_alive())
    }

    /// Gives up a connection on which a request failed with `error`.
    pub(super) fn retire(&self, busy: &Busy, error: &Error) {
        let (client, birth) = (busy.client(), busy.member.birth);
        if client.is_alive() {
            self.retire_member(birth, error);
        } else {
            let error = client.end_reason().on(&self.info.name);
            self.retire_member(birth, &error);
        }
    }

    /// Gives up the connection with this number, unless that was done before.
    pub(super) fn retire_member(&self, birth: u64, error: &Error) {
        let mut state = self.state();
        if state.phase == Phase::Closed {
            return;
        }
        let Some(place) = state.place_of(birth) else {
            return;
        };
        let slot = state.slots.swap_remove(place);
        if slot.changes > slot.durable && self.info.can(Capabilities::FLUSH) {
            state.owe(slot.member.proof.load(Ordering::Acquire));
        }
        let lost_writes = state.settle();
        if state.live() == 0 {
            state.failure = Some(error.clone());
        }
        // Those whose end was not noticed yet have their own events.
        let left = state.slots.len();
        drop(state);
        slot.member.client.close();
        self.tell(|| PoolEvent::Lost {
            error: error.clone(),
            left,
        });
        if lost_writes {
            self.tell(|| PoolEvent::WritesLost);
        }
        self.work.notify_one();
    }

    /// Takes note that a request was answered.
    pub(super) fn answered(&self, busy: &Busy) {
        let proof = &busy.member.proof;
        if proof.load(Ordering::Relaxed) < busy.births {
            proof.fetch_max(busy.births, Ordering::AcqRel);
        }
        if self.vain.load(Ordering::Relaxed) > 0 {
            self.vain.store(0, Ordering::Relaxed);
        }
    }

    /// Takes note that a change was acknowledged, and whether it is durable already.
    pub(super) fn changed(&self, busy: &Busy, durable: bool) {
        self.answered(busy);
        if durable || !self.info.can(Capabilities::FLUSH) {
            return;
        }
        let mut state = self.state();
        if let Some(place) = state.place_of(busy.member.birth) {
            state.slots[place].changes += 1;
            return;
        }
        // The connection was lost right after the answer.
        state.owe(busy.births);
        let lost_writes = state.settle();
        drop(state);
        if lost_writes {
            self.tell(|| PoolEvent::WritesLost);
        }
    }

    /// The flushes that make everything durable that was acknowledged so far.
    pub(super) fn flushes(&self) -> Vec<Flushing> {
        let mut state = self.state();
        let lost_writes = state.settle();
        let births = state.births;
        let mut settles = state.debt;
        let mut flushes = Vec::new();
        for slot in &state.slots {
            let settled = settles.take_if(|debt| slot.can_settle(*debt));
            if settled.is_some() || slot.changes > slot.durable {
                flushes.push(Flushing {
                    busy: Busy::new(&slot.member, births),
                    changes: slot.changes,
                    settles: settled.map(|debt| debt.version),
                });
            }
        }
        drop(state);
        if lost_writes {
            self.tell(|| PoolEvent::WritesLost);
        }
        flushes
    }

    /// Takes note that a flush has ended well.
    pub(super) fn flushed(&self, flush: &Flushing) {
        self.answered(&flush.busy);
        let mut state = self.state();
        if let Some(place) = state.place_of(flush.busy.member.birth) {
            let slot = &mut state.slots[place];
            slot.durable = slot.durable.max(flush.changes);
        }
        if let Some(version) = flush.settles {
            state.debt.take_if(|debt| debt.version == version);
        }
    }

    /// How often writes were lost.
    pub(super) fn losses(&self) -> u64 {
        self.state().losses
    }

    /// How many of those losses anyone was told of.
    pub(super) fn told(&self) -> u64 {
        self.state().told
    }

    pub(super) fn note_told(&self, losses: u64) {
        let mut state = self.state();
        state.told = state.told.max(losses);
    }

    /// Takes in a connection, which is `client`. False when the pool was told to disconnect meanwhile.
    pub(super) fn join(self: &Arc<Self>, client: Client) -> bool {
        let mut state = self.state();
        if state.phase == Phase::Closed {
            return false;
        }
        state.births += 1;
        let birth = state.births;
        tokio::spawn(watch(Arc::downgrade(self), birth, client.closed()));
        state.slots.push(Slot {
            member: Arc::new(Member {
                client,
                birth,
                in_flight: AtomicUsize::new(0),
                proof: AtomicU64::new(birth),
            }),
            changes: 0,
            durable: 0,
        });
        true
    }

    /// One more connection to the same export.
    pub(super) async fn another(&self) -> Result<Client> {
        self.blueprint.connect().await
    }

    /// Opens no connection any more, and lets no request wait for one.
    pub(super) fn stop_waiting(&self) {
        self.state().is_ending = true;
        self.news.notify_waiters();
        self.work.notify_one();
    }

    /// Lets no request in any more; these are the connections to be closed.
    pub(super) fn close(&self) -> Vec<Client> {
        if let Some(task) = self.supervisor().take() {
            task.abort();
        }
        let mut state = self.state();
        state.phase = Phase::Closed;
        let clients = state.slots.iter().map(|slot| slot.member.client.clone());
        let clients = clients.collect();
        drop(state);
        self.news.notify_waiters();
        clients
    }

    pub(super) fn tell(&self, event: impl FnOnce() -> PoolEvent) {
        if let Some(observer) = &self.observer {
            observer.see(&event());
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn supervisor(&self) -> MutexGuard<'_, Option<AbortHandle>> {
        self.supervisor
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(task) = self.supervisor().take() {
            task.abort();
        }
    }
}

impl State {
    pub(super) fn live(&self) -> usize {
        self.slots.iter().filter(|slot| slot.is_alive()).count()
    }

    fn choose(&mut self) -> Option<Busy> {
        self.turn = self.turn.wrapping_add(1);
        let (turn, places) = (self.turn, self.slots.len());
        let live = self.slots.iter().enumerate();
        let chosen = live
            .filter(|(_, slot)| slot.is_alive())
            .min_by_key(|(place, slot)| {
                let in_flight = slot.member.in_flight.load(Ordering::Relaxed);
                (in_flight, place.wrapping_sub(turn) % places)
            });
        chosen.map(|(_, slot)| Busy::new(&slot.member, self.births))
    }

    fn place_of(&self, birth: u64) -> Option<usize> {
        self.slots
            .iter()
            .position(|slot| slot.member.birth == birth)
    }

    /// Changes are lost with their connection unless one that is as old as `birth` flushes them.
    fn owe(&mut self, birth: u64) {
        self.debts += 1;
        let others = self.debt.map_or(u64::MAX, |debt| debt.birth);
        self.debt = Some(Debt {
            birth: birth.min(others),
            version: self.debts,
        });
    }

    /// Whether there was a debt that no connection can settle any more: it is a loss from now on.
    fn settle(&mut self) -> bool {
        let slots = &self.slots;
        let hopeless = |debt: &mut Debt| {
            let mut able = slots.iter().filter(|slot| slot.is_alive());
            !able.any(|slot| slot.can_settle(*debt))
        };
        let is_lost = self.debt.take_if(hopeless).is_some();
        self.losses += u64::from(is_lost);
        is_lost
    }
}

impl Slot {
    fn is_alive(&self) -> bool {
        self.member.client.is_alive()
    }

    fn can_settle(&self, debt: Debt) -> bool {
        self.member.birth <= debt.birth
    }
}

impl Busy {
    fn new(member: &Arc<Member>, births: u64) -> Self {
        member.in_flight.fetch_add(1, Ordering::Relaxed);
        Self {
            member: Arc::clone(member),
            births,
        }
    }

    pub(super) fn client(&self) -> &Client {
        &self.member.client
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.member.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Flushing {
    /// A flush of whatever is there.
    pub(super) fn of_nothing(busy: Busy) -> Self {
        Self {
            busy,
            changes: 0,
            settles: None,
        }
    }
}

/// What the next flush after a loss says.
pub(super) fn lost_writes() -> Error {
    Error::with_message(
        ErrorKind::Io,
        "the server was lost with writes that were not flushed: they may be gone",
    )
    .during(blockferry_block::Operation::Flush)
}
