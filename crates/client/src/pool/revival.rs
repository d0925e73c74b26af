//! Opening connections: those beside the first, and those in the place of lost ones.

use std::{
    future::Future,
    pin::pin,
    sync::{Arc, Weak, atomic::Ordering},
    time::{Duration, Instant},
};

use blockferry_block::{
    BlockDevice, DeviceInfo, Error, ErrorKind, Operation, Result, check_fit,
    reopening::{FIRST_PAUSE, LONGEST_PAUSE, can_heal, pause},
};
use blockferry_proto::NbdUri;
use futures_util::future::{Either, select};
use tokio::sync::Notify;

use super::{
    members::{Inner, Phase, State},
    options::PoolEvent,
};
use crate::{Client, ConnectOptions};

/// What it takes to open another connection to the same export.
pub(super) struct Blueprint {
    pub(super) uri: NbdUri,
    pub(super) options: ConnectOptions,
    /// What the export was, and must still be.
    pub(super) was: DeviceInfo,
}

/// What the supervisor does next.
enum Step {
    /// Nothing, ever.
    Over,
    /// Nothing, until it is woken.
    Rest,
    /// Open a connection, as the only one.
    First { pause: Duration },
    /// Open a connection beside others.
    Beside { pause: Duration },
}

/// Keeps the pool in connections, as long as it is there.
pub(super) async fn supervise(pool: Weak<Inner>, work: Arc<Notify>) {
    loop {
        let Some(inner) = pool.upgrade() else { return };
        let step = inner.next_step();
        let blueprint = Arc::clone(&inner.blueprint);
        drop(inner);
        match step {
            Step::Over => return,
            Step::Rest => work.notified().await,
            Step::First { pause } => {
                let opened = blueprint.connect_after(pause).await;
                let Some(inner) = pool.upgrade() else { return };
                inner.revived(opened);
            }
            Step::Beside { pause } => {
                let opening = pin!(blueprint.connect_after(pause));
                // A server that answers no more must not hold up what follows the last one's loss.
                let desolation = pin!(until_desolate(&pool, &work));
                if let Either::Left((opened, _)) = select(opening, desolation).await {
                    let Some(inner) = pool.upgrade() else { return };
                    inner.joined(opened);
                }
            }
        }
    }
}

/// Waits for the end of a connection, so that its loss is noticed also when nothing is in flight.
pub(super) async fn watch(pool: Weak<Inner>, birth: u64, closed: impl Future<Output = Error>) {
    let error = closed.await;
    if let Some(inner) = pool.upgrade() {
        let error = error.on(&inner.info().name);
        inner.retire_member(birth, &error);
    }
}

async fn until_desolate(pool: &Weak<Inner>, work: &Notify) {
    while pool.upgrade().is_some_and(|inner| inner.live() > 0) {
        work.notified().await;
    }
}

impl Blueprint {
    /// Connects, to what must still be the same export.
    pub(super) async fn connect(&self) -> Result<Client> {
        let client = Client::connect(&self.uri, &self.options).await?;
        check_fit(&self.was, client.info())
            .map_err(|error| error.during(Operation::Open).on(&self.was.name))?;
        Ok(client)
    }

    async fn connect_after(&self, pause: Duration) -> Result<Client> {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        self.connect().await
    }
}

impl Inner {
    fn next_step(&self) -> Step {
        let mut state = self.state();
        let live = state.live();
        if state.phase == Phase::Closed || state.is_ending {
            return Step::Over;
        }
        if live > 0 {
            let births = usize::try_from(state.births).unwrap_or(usize::MAX);
            // Without reconnection each place is filled once.
            let filled = match self.reconnects() {
                true => live,
                false => births,
            };
            if filled >= self.wanted || state.enough {
                return Step::Rest;
            }
            let pause = match births >= self.wanted {
                true => state.replacement_pause(),
                false => Duration::ZERO,
            };
            return Step::Beside { pause };
        }
        if !self.reconnects() {
            return Step::Over;
        }
        let pause = match state.phase {
            Phase::Down if !state.demand => return Step::Rest,
            // Whoever asks again and again is slowed down.
            Phase::Down => {
                let last = state.last_attempt.map_or(FIRST_PAUSE, |it| it.elapsed());
                FIRST_PAUSE.saturating_sub(last)
            }
            _ => pause(self.vain.load(Ordering::Relaxed)),
        };
        self.vain.fetch_add(1, Ordering::Relaxed);
        state.demand = false;
        Step::First { pause }
    }

    /// The attempt to open the only connection has ended.
    fn revived(self: &Arc<Self>, opened: Result<Client>) {
        let attempts = self.vain.load(Ordering::Relaxed);
        let error = match opened {
            Ok(client) => {
                {
                    let mut state = self.state();
                    if state.phase == Phase::Down {
                        state.phase = Phase::Up;
                    }
                    (state.enough, state.replacements) = (false, 0);
                }
                if self.join(client) {
                    self.tell(|| PoolEvent::Reconnected { attempts });
                }
                self.news.notify_waiters();
                return;
            }
            Err(error) => error,
        };
        let mut state = self.state();
        state.last_attempt = Some(Instant::now());
        if state.phase == Phase::Closed {
            return;
        }
        let was_down = state.phase == Phase::Down;
        if !was_down && can_heal(&error) && attempts < self.retries {
            drop(state);
            self.tell(|| PoolEvent::AttemptFailed {
                error,
                attempt: attempts,
                pause: pause(attempts),
            });
            return;
        }
        let failure = self.given_up(&error, attempts);
        state.phase = Phase::Down;
        state.failures += 1;
        state.demand = false;
        state.failure = Some(failure.clone());
        drop(state);
        if !was_down {
            self.tell(|| PoolEvent::GaveUp { error: failure });
        }
        self.news.notify_waiters();
    }

    /// The attempt to open a connection beside others has ended.
    fn joined(self: &Arc<Self>, opened: Result<Client>) {
        match opened {
            Ok(client) => {
                if self.live() > 0 {
                    // The same server answers as before.
                    client.skip_warm_up();
                }
                // Without reconnection, a server that comes back after all was lost is another one.
                if self.reconnects() || self.live() > 0 {
                    self.join(client);
                }
            }
            Err(error) => {
                let mut state = self.state();
                state.enough = !can_heal(&error) || state.replacements >= self.retries;
            }
        }
    }

    /// What requests fail with when no connection could be opened, the last attempt having failed with
    /// `error`. A later one may have more luck, unless something answered that is not what it was.
    fn given_up(&self, error: &Error, attempts: u32) -> Error {
        let kind = match error.kind() {
            kind @ (ErrorKind::Incompatible
            | ErrorKind::NotPermitted
            | ErrorKind::InvalidInput
            | ErrorKind::Unsupported
            | ErrorKind::Protocol) => kind,
            kind if error.is_transient() => kind,
            _ => ErrorKind::ConnectionLost,
        };
        let name = &self.info().name;
        let why = error.to_string();
        let why = why.strip_prefix(&format!("{name}: ")).unwrap_or(&why);
        let attempts = match attempts {
            1 => String::new(),
            _ => format!(" in {attempts} attempts"),
        };
        let message =
            format!("the connection was lost and could not be opened again{attempts}: {why}");
        Error::with_message(kind, message).on(name)
    }
}

impl State {
    /// The pause before a lost connection is replaced beside others: longer each time, when that happens
    /// again and again.
    fn replacement_pause(&mut self) -> Duration {
        let is_old = |last: Instant| last.elapsed() > LONGEST_PAUSE * 6;
        if self.last_replacement.is_none_or(is_old) {
            self.replacements = 0;
        }
        let pause = pause(self.replacements);
        self.replacements += 1;
        self.last_replacement = Some(Instant::now());
        pause
    }
}
