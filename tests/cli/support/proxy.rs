//! Stands between a client and a server, and cuts connections in the middle of what they carry.

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use super::run::until;

/// More than a negotiation takes, in bytes, and less than the data that a connection carries.
const NEGOTIATION: u64 = 16 << 10;

/// Between 64 KiB of a connection that is ahead.
const PAUSE: Duration = Duration::from_millis(20);

/// A proxy in front of a server's socket; it ends with the value.
pub(crate) struct Proxy {
    socket: PathBuf,
    state: Arc<State>,
}

struct State {
    server: PathBuf,
    /// No connection carries data before there are so many.
    wanted: usize,
    accepted: AtomicUsize,
    /// How many of those will be cut.
    doomed: AtomicUsize,
    cut: AtomicUsize,
    over: AtomicBool,
    fate: Fate,
}

/// What becomes of a connection that has carried enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is closed.
    Cut,
    /// It stays open and carries nothing any more.
    Stall,
}

impl Proxy {
    /// Forwards connections to `server`, and data once there are `wanted` of them. Connection `n`, counted
    /// from 0, is cut when it has carried `limit(n)` bytes.
    pub(crate) fn cutting(
        directory: &Path,
        server: &Path,
        wanted: usize,
        limit: impl Fn(usize) -> Option<u64> + Send + 'static,
    ) -> Self {
        Self::failing(directory, server, wanted, Fate::Cut, limit)
    }

    /// The same with any fate.
    pub(crate) fn failing(
        directory: &Path,
        server: &Path,
        wanted: usize,
        fate: Fate,
        limit: impl Fn(usize) -> Option<u64> + Send + 'static,
    ) -> Self {
        let socket = directory.join("proxy.sock");
        let listener = UnixListener::bind(&socket).expect("a free name");
        let state = Arc::new(State {
            server: server.to_owned(),
            wanted,
            accepted: AtomicUsize::new(0),
            doomed: AtomicUsize::new(0),
            cut: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            fate,
        });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming() {
                if shared.over.load(Ordering::SeqCst) {
                    return;
                }
                let number = shared.accepted.load(Ordering::SeqCst);
                let limit = limit(number).unwrap_or(u64::MAX);
                if limit < u64::MAX && number < wanted {
                    shared.doomed.fetch_add(1, Ordering::SeqCst);
                }
                shared.accepted.fetch_add(1, Ordering::SeqCst);
                shared.join(client.expect("a connection"), limit);
            }
        });
        Self { socket, state }
    }

    pub(crate) fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    /// How many connections there were.
    pub(crate) fn accepted(&self) -> usize {
        self.state.accepted.load(Ordering::SeqCst)
    }

    /// How many connections were cut.
    pub(crate) fn cut(&self) -> usize {
        self.state.cut.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(&self.socket);
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl State {
    /// Forwards both ways, each in a thread of its own.
    fn join(self: &Arc<Self>, client: UnixStream, limit: u64) {
        let Ok(server) = UnixStream::connect(&self.server) else {
            return;
        };
        let carried = Arc::new(AtomicU64::new(0));
        let clone = |stream: &UnixStream| stream.try_clone().expect("a descriptor");
        for (from, to) in [(clone(&client), clone(&server)), (server, client)] {
            let (state, carried) = (Arc::clone(self), Arc::clone(&carried));
            thread::spawn(move || state.forward(from, to, &carried, limit));
        }
    }

    /// Whether a connection that is cut after `limit` bytes has to wait for one that will be cut and was not yet.
    /// On a busy machine the others would have done everything before.
    fn is_ahead(&self, limit: u64) -> bool {
        limit == u64::MAX
            && self.wanted > 1
            && self.doomed.load(Ordering::SeqCst) > 0
            && self.cut.load(Ordering::SeqCst) == 0
    }

    fn forward(&self, mut from: UnixStream, mut to: UnixStream, carried: &AtomicU64, limit: u64) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let before = carried.fetch_add(count as u64, Ordering::SeqCst);
            let after = before + count as u64;
            if before < limit && after >= limit {
                self.cut.fetch_add(1, Ordering::SeqCst);
            }
            if after > NEGOTIATION {
                until("the other connections", || {
                    self.over.load(Ordering::SeqCst)
                        || self.accepted.load(Ordering::SeqCst) >= self.wanted
                });
                if self.is_ahead(limit) {
                    // It goes on: what it carries may be what the others wait for.
                    thread::sleep(PAUSE);
                }
            }
            let left = usize::try_from(limit.saturating_sub(before)).unwrap_or(usize::MAX);
            if to.write_all(&buffer[..count.min(left)]).is_err() {
                break;
            }
            if after >= limit {
                if self.fate == Fate::Stall {
                    until("the end", || self.over.load(Ordering::SeqCst));
                }
                break;
            }
        }
        for stream in [from, to] {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
