//! Connections through the relay, of which both ends are ours.
//!
//! Each begins with a number that its client sends and its target reads: whoever looked before us whether the relay
//! listens may have left it a connection that reaches us late, and that is not one of ours.

use std::{
    io::{self, Read, Write},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use blockferry_bench::{Address, Listener, Stream};

/// How long the relay may take for a connection.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where connections through the relay are opened and arrive.
pub(crate) struct Links<'a> {
    from: &'a Address,
    arrivals: Receiver<io::Result<Stream>>,
    next: u64,
}

/// The two ends of a connection through the relay.
pub(crate) struct Link {
    pub(crate) client: Stream,
    pub(crate) target: Stream,
}

impl<'a> Links<'a> {
    /// Listens at `to`, for ever.
    pub(crate) fn new(from: &'a Address, to: &Address) -> Result<Self> {
        let listener = Listener::bind(to)?;
        let (sender, arrivals) = mpsc::channel();
        // On a thread, for waiting for a connection knows no end.
        thread::spawn(move || while sender.send(listener.accept()).is_ok() {});
        Ok(Self {
            from,
            arrivals,
            next: 1,
        })
    }

    /// Opens a connection through the relay.
    pub(crate) fn open(&mut self) -> Result<Link> {
        let hello = self.next.to_le_bytes();
        self.next += 1;
        let mut client = Stream::connect(self.from)?;
        client.write_all(&hello).context("greeting the target")?;
        loop {
            let arrival = self.arrivals.recv_timeout(PATIENCE);
            let mut target = arrival.context("the relay does not connect to its target")??;
            target.set_patience(Some(PATIENCE))?;
            let mut heard = [0; 8];
            if target.read_exact(&mut heard).is_ok() && heard == hello {
                target.set_patience(None)?;
                return Ok(Link { client, target });
            }
        }
    }
}
