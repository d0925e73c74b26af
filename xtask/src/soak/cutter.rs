//! A bad network: stands in front of a server's socket, and cuts connections, or lets them hang, in the middle of
//! what they carry.

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

use anyhow::Result;

use super::random::Random;

/// What becomes of a connection that has carried enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Cut,
    Stall,
}

/// How many connections are broken before the network is a good one.
const BROKEN: usize = 6;

pub(crate) struct Cutter {
    pub(crate) socket: PathBuf,
    state: Arc<State>,
}

struct State {
    server: PathBuf,
    fate: Fate,
    accepted: AtomicUsize,
    over: AtomicBool,
}

impl Cutter {
    /// Forwards connections from `socket` to `server`; each of the first ones is broken within `most` bytes.
    pub(crate) fn start(
        socket: PathBuf,
        server: &Path,
        fate: Fate,
        most: u64,
        mut random: Random,
    ) -> Result<Self> {
        let listener = UnixListener::bind(&socket)?;
        let state = Arc::new(State {
            server: server.to_owned(),
            fate,
            accepted: AtomicUsize::new(0),
            over: AtomicBool::new(false),
        });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                if shared.over.load(Ordering::SeqCst) {
                    return;
                }
                let number = shared.accepted.fetch_add(1, Ordering::SeqCst);
                let limit = match number < BROKEN {
                    true => 64 + random.below(most),
                    false => u64::MAX,
                };
                shared.join(client, limit);
            }
        });
        Ok(Self { socket, state })
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(&self.socket);
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl State {
    fn join(self: &Arc<Self>, client: UnixStream, limit: u64) {
        let Ok(server) = UnixStream::connect(&self.server) else {
            return;
        };
        let (Ok(client_too), Ok(server_too)) = (client.try_clone(), server.try_clone()) else {
            return;
        };
        let carried = Arc::new(AtomicU64::new(0));
        for (from, to) in [(client_too, server_too), (server, client)] {
            let (state, carried) = (Arc::clone(self), Arc::clone(&carried));
            thread::spawn(move || state.forward(from, to, &carried, limit));
        }
    }

    fn forward(&self, mut from: UnixStream, mut to: UnixStream, carried: &AtomicU64, limit: u64) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let before = carried.fetch_add(count as u64, Ordering::SeqCst);
            let left = usize::try_from(limit.saturating_sub(before)).unwrap_or(usize::MAX);
            if to.write_all(&buffer[..count.min(left)]).is_err() {
                break;
            }
            if left <= count {
                while self.fate == Fate::Stall && !self.over.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_millis(20));
                }
                break;
            }
        }
        for stream in [from, to] {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
