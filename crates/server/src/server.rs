//! The server: accepts clients and gives each a thread.

use std::{
    fmt,
    future::poll_fn,
    io,
    os::fd::OwnedFd,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use blockferry_block::{BlockDevice, Capabilities, ClientFacts, Exports, Wish};
use tokio::{
    runtime::Builder,
    select,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::sleep,
};

use crate::{
    buffers::Buffers,
    connection::{self, Connection},
    handshake::{self, Settled},
    listener::{Accepted, Listener, Listeners},
    options::{ConnectionId, Ending, ServerEvent, ServerOptions},
    requests::Target,
    statistics::{Book, Statistics},
    stream::Stream,
};

/// The stack of a connection's thread in bytes. Only what is used of it takes memory.
const STACK: usize = 512 << 10;

/// More connections than a machine has threads for are no limit.
const MOST_CONNECTIONS: usize = 1 << 16;

/// How long accepting rests after it failed, for want of descriptors for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An NBD server. Cloning gives another handle to the same one.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

/// How far a server is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    /// What is in flight is finished.
    Ending,
    /// Nothing is.
    Aborting,
}

/// What all connections of a server have in common.
pub(crate) struct Shared {
    pub(crate) exports: Arc<dyn Exports>,
    pub(crate) options: ServerOptions,
    pub(crate) buffers: Buffers,
    observer: Box<dyn Fn(&ServerEvent<'_>) + Send + Sync>,
    phase: watch::Sender<Phase>,
    slots: Arc<Semaphore>,
    book: Book,
    /// Connections that use an export.
    using: AtomicUsize,
    /// Devices that were written by clients which are gone, and were not flushed.
    unflushed: Mutex<Vec<Weak<dyn BlockDevice>>>,
}

impl Server {
    /// A server of `exports` that nobody observes.
    #[must_use]
    pub fn new(exports: Arc<dyn Exports>, options: ServerOptions) -> Self {
        Self::observed(exports, options, |_| {})
    }

    /// A server of `exports` that tells `observer` what happens.
    #[must_use]
    pub fn observed(
        exports: Arc<dyn Exports>,
        options: ServerOptions,
        observer: impl Fn(&ServerEvent<'_>) + Send + Sync + 'static,
    ) -> Self {
        let slots = options.max_connections.clamp(1, MOST_CONNECTIONS);
        Self {
            shared: Arc::new(Shared {
                exports,
                options,
                buffers: Buffers::new(),
                observer: Box::new(observer),
                phase: watch::Sender::new(Phase::Serving),
                slots: Arc::new(Semaphore::new(slots)),
                book: Book::default(),
                using: AtomicUsize::new(0),
                unflushed: Mutex::default(),
            }),
        }
    }

    /// Serves the clients of `listeners` until [`shutdown`](Self::shutdown) is called and the last
    /// connection is over. Dropping the future shuts down as well, without waiting.
    ///
    /// Needs a tokio runtime with I/O and time enabled. Each connection has a thread and a runtime of
    /// its own.
    ///
    /// # Errors
    /// When a listener cannot be used at all. A failure to accept a client is an event, not an end.
    pub async fn serve(&self, listeners: Vec<Listener>) -> io::Result<()> {
        let listeners = Listeners::new(listeners)?;
        let guard = ShutdownOnDrop(&self.shared);
        self.accept_all(listeners).await;
        drop(guard);
        self.end().await;
        Ok(())
    }

    /// Serves one client that is connected already, until it is gone or [`shutdown`](Self::shutdown) is
    /// called: how inetd starts a server.
    ///
    /// # Errors
    /// When `socket` is no socket that a client can be at the other end of, or has no thread to serve it.
    pub async fn serve_connected(&self, socket: OwnedFd) -> io::Result<()> {
        let accepted = Accepted::connected(socket)?;
        // The semaphore is never closed.
        let slots = Arc::clone(&self.shared.slots);
        let slot = slots.acquire_owned().await.map_err(io::Error::other)?;
        let guard = ShutdownOnDrop(&self.shared);
        self.start(accepted, slot)?;
        self.wait_for_connections().await;
        drop(guard);
        self.end().await;
        Ok(())
    }

    /// Shuts down at once: connections are cut, and what devices are doing for them is given up.
    pub fn abort(&self) {
        self.shared.phase.send_replace(Phase::Aborting);
    }

    /// What was done so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.shared.book.read()
    }

    /// Lets the connections end, and makes durable what they wrote.
    async fn end(&self) {
        self.wait_for_connections().await;
        self.shared.flush_all().await;
        self.shared.exports.close().await;
    }

    /// Stops accepting, lets what is in flight finish, flushes what was written, and closes the
    /// connections; [`serve`](Self::serve) returns after that. What clients ask for from now on is
    /// refused with `ESHUTDOWN`.
    pub fn shutdown(&self) {
        self.shared.shut_down();
    }

    async fn accept_all(&self, mut listeners: Listeners) {
        let mut shutdown = pin!(self.shared.shutting_down());
        loop {
            let slot = select! {
                biased;
                () = &mut shutdown => return,
                slot = Arc::clone(&self.shared.slots).acquire_owned() => slot,
            };
            // The semaphore is never closed.
            let Ok(slot) = slot else { return };
            let accepted = select! {
                biased;
                () = &mut shutdown => return,
                accepted = poll_fn(|cx| listeners.poll_accept(cx)) => accepted,
            };
            let result = accepted.and_then(|accepted| self.start(accepted, slot));
            if let Err(error) = result {
                self.shared.observe(&ServerEvent::AcceptFailed(&error));
                select! {
                    () = &mut shutdown => return,
                    () = sleep(ACCEPT_PAUSE) => {}
                }
            }
        }
    }

    fn start(&self, accepted: Accepted, slot: OwnedSemaphorePermit) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let id = shared.book.connections.fetch_add(1, Ordering::Relaxed) + 1;
        thread::Builder::new()
            .name(format!("nbd-{id}"))
            .stack_size(STACK)
            .spawn(move || {
                shared.run(id, accepted);
                drop(slot);
            })?;
        Ok(())
    }

    async fn wait_for_connections(&self) {
        let slots = self.shared.options.max_connections;
        let all = slots.clamp(1, MOST_CONNECTIONS);
        // A count of 2^16 at most fits, and the semaphore is never closed.
        let all = u32::try_from(all).unwrap_or(u32::MAX);
        let _ = self.shared.slots.acquire_many(all).await;
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connected = self.shared.book.connected.load(Ordering::Relaxed);
        f.debug_struct("Server")
            .field("phase", &*self.shared.phase.borrow())
            .field("connected", &connected)
            .field("options", &self.shared.options)
            .finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn observe(&self, event: &ServerEvent<'_>) {
        (self.observer)(event);
    }

    /// Resolves when the server was told to shut down.
    pub(crate) async fn shutting_down(&self) {
        self.reached(Phase::Ending).await;
    }

    /// Resolves when the server was told to shut down at once.
    pub(crate) async fn aborting(&self) {
        self.reached(Phase::Aborting).await;
    }

    async fn reached(&self, phase: Phase) {
        let mut current = self.phase.subscribe();
        // The sender lives in `self`: this fails never.
        let _ = current.wait_for(|current| *current >= phase).await;
    }

    /// Tells the server to shut down.
    pub(crate) fn shut_down(&self) {
        self.phase.send_if_modified(|phase| {
            let begins = *phase == Phase::Serving;
            *phase = (*phase).max(Phase::Ending);
            begins
        });
    }

    /// Serves one connection to its end, on its own thread.
    fn run(&self, id: ConnectionId, accepted: Accepted) {
        self.observe(&ServerEvent::Connected {
            connection: id,
            peer: &accepted.peer,
        });
        self.book.connected.fetch_add(1, Ordering::Relaxed);
        let runtime = Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build();
        let ending = match runtime {
            Ok(runtime) => runtime.block_on(self.serve_connection(id, accepted)),
            Err(error) => Ending::Io(error),
        };
        self.book.connected.fetch_sub(1, Ordering::Relaxed);
        self.observe(&ServerEvent::Closed {
            connection: id,
            ending: &ending,
        });
    }

    async fn serve_connection(&self, id: ConnectionId, accepted: Accepted) -> Ending {
        let greeted = self.greet(id, accepted).await;
        self.heed_exports();
        let settled = match greeted {
            Ok(settled) => settled,
            Err(ending @ (Ending::Disconnected | Ending::ShutDown)) => return ending,
            Err(ending) => {
                self.book.failed_connections.fetch_add(1, Ordering::Relaxed);
                return ending;
            }
        };
        self.using.fetch_add(1, Ordering::AcqRel);
        let ending = self.serve_export(id, settled).await;
        if let Ending::Misbehaved(_) = ending {
            self.book.failed_connections.fetch_add(1, Ordering::Relaxed);
        }
        if self.using.fetch_sub(1, Ordering::AcqRel) == 1 && self.options.once {
            self.shut_down();
        }
        self.heed_exports();
        ending
    }

    /// Does what the exports wish for as a whole: where no client could tell, and when one has gone.
    fn heed_exports(&self) {
        if self.exports.wish() == Some(Wish::ShutDown) {
            self.shut_down();
        }
    }

    /// Leads a client to an export.
    async fn greet(&self, id: ConnectionId, accepted: Accepted) -> Result<Greeted, Ending> {
        let stream = Stream::new(accepted.socket).map_err(Ending::Io)?;
        let client = ClientFacts {
            read_only: self.options.read_only,
            tls: false,
        };
        let settled = async {
            if let Err(error) = self.exports.connecting(client).await {
                self.observe(&ServerEvent::OpenFailed {
                    connection: id,
                    export: "",
                    error: &error,
                });
                return Err(Ending::Refused);
            }
            handshake::negotiate(&stream, self, id).await
        };
        let settled = select! {
            settled = settled => settled?,
            () = self.shutting_down() => return Err(Ending::ShutDown),
        };
        Ok((stream, settled))
    }

    async fn serve_export(&self, id: ConnectionId, (stream, settled): Greeted) -> Ending {
        let Settled { negotiated, export } = settled;
        self.observe(&ServerEvent::Serving {
            connection: id,
            negotiated: &negotiated,
        });
        let name = export
            .canonical_name
            .as_ref()
            .unwrap_or(&negotiated.export_name);
        let counters = self.options.measured.then(|| self.book.open(name));
        let target =
            Target::new(export.device, self.buffers.clone()).discarding(self.options.discard);
        let connection = Connection::new(id, &stream, &target, self, &negotiated)
            .counted(counters.clone())
            .heeding(export.wishes);
        let connection::Outcome { ending, unflushed } = connection.run().await;
        if let Some(counters) = &counters {
            self.book.close(name, counters);
        }
        // The client does not wait for what follows.
        drop(stream);
        self.release(target.into_device(), unflushed).await;
        ending
    }

    /// Gives back a device, and sees to it that what its client wrote and did not flush becomes durable:
    /// at once when the server shuts down or nobody else has the device open, otherwise before that.
    async fn release(&self, device: Arc<dyn BlockDevice>, unflushed: bool) {
        let is_known = |known: &Weak<dyn BlockDevice>| known.ptr_eq(&Arc::downgrade(&device));
        {
            let mut list = self.unflushed();
            list.retain(|known| known.strong_count() > 0);
            let place = list.iter().position(is_known);
            if !unflushed && place.is_none() {
                // Under the lock, so that of two connections that end together the last one is seen to be.
                drop(device);
                return;
            }
            if Arc::strong_count(&device) > 1 && *self.phase.borrow() == Phase::Serving {
                if place.is_none() {
                    list.push(Arc::downgrade(&device));
                }
                drop(device);
                return;
            }
            if let Some(place) = place {
                list.swap_remove(place);
            }
        }
        self.flush(&device).await;
    }

    fn unflushed(&self) -> MutexGuard<'_, Vec<Weak<dyn BlockDevice>>> {
        self.unflushed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn flush_all(&self) {
        let list = std::mem::take(&mut *self.unflushed());
        for device in list.iter().filter_map(Weak::upgrade) {
            self.flush(&device).await;
        }
    }

    async fn flush(&self, device: &Arc<dyn BlockDevice>) {
        // What cannot be made durable was never promised to be.
        if !device.info().can(Capabilities::FLUSH) {
            return;
        }
        if let Err(error) = device.flush().await {
            self.observe(&ServerEvent::FlushFailed(&error));
        }
    }
}

/// A client that is ready for requests, and its stream.
type Greeted = (Stream, Settled);

struct ShutdownOnDrop<'s>(&'s Shared);

impl Drop for ShutdownOnDrop<'_> {
    fn drop(&mut self) {
        self.0.shut_down();
    }
}
