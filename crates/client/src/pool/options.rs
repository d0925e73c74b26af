//! How a pool behaves, and what it tells.

use std::{fmt, sync::Arc, time::Duration};

use blockferry_block::Error;

/// How many connections a pool has, and what it does when they are lost. A number alone is that of the
/// connections, with no reconnection.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PoolOptions {
    /// How many connections there may be, 1 to 256, where the server advertises
    /// [`MULTI_CONN`](blockferry_block::Capabilities::MULTI_CONN); 1 otherwise. Default: 1.
    pub connections: usize,
    /// How many attempts in a row to open a lost connection again may fail. Default: 0, for no
    /// reconnection.
    pub retries: u32,
    /// Told what happens to the connections.
    pub observer: Option<PoolObserver>,
}

/// Is told what happens to a pool's connections.
#[derive(Clone)]
pub struct PoolObserver(Arc<dyn Fn(&PoolEvent) + Send + Sync>);

impl PoolObserver {
    /// `see` must not block, and must not use the pool. It is called on whichever thread meets the event.
    #[must_use]
    pub fn new(see: impl Fn(&PoolEvent) + Send + Sync + 'static) -> Self {
        Self(Arc::new(see))
    }

    pub(super) fn see(&self, event: &PoolEvent) {
        (self.0)(event);
    }
}

impl fmt::Debug for PoolObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolObserver").finish_non_exhaustive()
    }
}

/// What happens to a pool's connections.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum PoolEvent {
    /// A connection was lost.
    Lost {
        /// Why.
        error: Error,
        /// How many others are left, as far as is known.
        left: usize,
    },
    /// The server was lost with writes that it had acknowledged and nobody had flushed: the next flush
    /// fails.
    WritesLost,
    /// No connection is left, and an attempt to open one has failed.
    AttemptFailed {
        /// Why.
        error: Error,
        /// Which attempt it was, counted from 1.
        attempt: u32,
        /// How long it takes until the next one.
        pause: Duration,
    },
    /// The first connection after all were lost stands.
    Reconnected {
        /// How many attempts it took.
        attempts: u32,
    },
    /// No connection could be opened. Requests fail until one can be: each tries once.
    GaveUp {
        /// What requests fail with.
        error: Error,
    },
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self::from(1)
    }
}

impl From<usize> for PoolOptions {
    fn from(connections: usize) -> Self {
        Self {
            connections,
            retries: 0,
            observer: None,
        }
    }
}
