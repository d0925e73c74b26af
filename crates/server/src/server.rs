//! The server: accepts clients and gives each a thread.

use std::{
    future::poll_fn,
    io,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use blockferry_block::{BlockDevice, Exports};
use tokio::{
    runtime::Builder,
    select,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::sleep,
};

use crate::{
    buffers::Buffers,
    connection::{self, Connection},
    handshake,
    listener::{Accepted, Listener, Listeners},
    options::{ConnectionId, Ending, ServerEvent, ServerOptions},
    requests::Target,
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

/// What all connections of a server have in common.
pub(crate) struct Shared {
    pub(crate) exports: Arc<dyn Exports>,
    pub(crate) options: ServerOptions,
    pub(crate) buffers: Buffers,
    observer: Box<dyn Fn(&ServerEvent<'_>) + Send + Sync>,
    shutdown: watch::Sender<bool>,
    slots: Arc<Semaphore>,
    connections: AtomicU64,
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
                shutdown: watch::Sender::new(false),
                slots: Arc::new(Semaphore::new(slots)),
                connections: AtomicU64::new(0),
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
        self.wait_for_connections().await;
        self.shared.flush_all().await;
        Ok(())
    }

    /// Stops accepting, lets what is in flight finish, flushes what was written, and closes the
    /// connections; [`serve`](Self::serve) returns after that. What clients ask for from now on is
    /// refused with `ESHUTDOWN`.
    pub fn shutdown(&self) {
        self.shared.shutdown.send_replace(true);
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
        let id = shared.connections.fetch_add(1, Ordering::Relaxed) + 1;
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

impl Shared {
    pub(crate) fn observe(&self, event: &ServerEvent<'_>) {
        (self.observer)(event);
    }

    /// Resolves when the server was told to shut down.
    pub(crate) async fn shutting_down(&self) {
        let mut shutdown = self.shutdown.subscribe();
        // The sender lives in `self`: this fails never.
        let _ = shutdown.wait_for(|stop| *stop).await;
    }

    /// Serves one connection to its end, on its own thread.
    fn run(&self, id: ConnectionId, accepted: Accepted) {
        self.observe(&ServerEvent::Connected {
            connection: id,
            peer: &accepted.peer,
        });
        let runtime = Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build();
        let ending = match runtime {
            Ok(runtime) => runtime.block_on(self.serve_connection(id, accepted)),
            Err(error) => Ending::Io(error),
        };
        self.observe(&ServerEvent::Closed {
            connection: id,
            ending: &ending,
        });
    }

    async fn serve_connection(&self, id: ConnectionId, accepted: Accepted) -> Ending {
        let stream = match Stream::new(accepted.socket) {
            Ok(stream) => stream,
            Err(error) => return Ending::Io(error),
        };
        let settled = select! {
            settled = handshake::negotiate(&stream, self, id) => settled,
            () = self.shutting_down() => return Ending::ShutDown,
        };
        let settled = match settled {
            Ok(settled) => settled,
            Err(ending) => return ending,
        };
        self.observe(&ServerEvent::Serving {
            connection: id,
            negotiated: &settled.negotiated,
        });
        let target = Target::new(settled.export.device, self.buffers.clone());
        let connection = Connection::new(id, &stream, &target, self, &settled.negotiated);
        let connection::Outcome { ending, unflushed } = connection.run().await;
        // The client does not wait for what follows.
        drop(stream);
        if unflushed {
            self.settle(target.device()).await;
        }
        ending
    }

    /// Makes durable what a client wrote and did not flush: at once when the server shuts down, then
    /// otherwise, if the device is still open.
    async fn settle(&self, device: &Arc<dyn BlockDevice>) {
        if *self.shutdown.borrow() {
            self.flush(device).await;
            return;
        }
        let mut list = self
            .unflushed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        list.retain(|known| known.strong_count() > 0);
        let device = Arc::downgrade(device);
        if !list.iter().any(|known| known.ptr_eq(&device)) {
            list.push(device);
        }
    }

    async fn flush_all(&self) {
        let list = {
            let mut list = self
                .unflushed
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *list)
        };
        for device in list.iter().filter_map(Weak::upgrade) {
            self.flush(&device).await;
        }
    }

    async fn flush(&self, device: &Arc<dyn BlockDevice>) {
        if let Err(error) = device.flush().await {
            self.observe(&ServerEvent::FlushFailed(&error));
        }
    }
}

struct ShutdownOnDrop<'s>(&'s Shared);

impl Drop for ShutdownOnDrop<'_> {
    fn drop(&mut self) {
        self.0.shutdown.send_replace(true);
    }
}
