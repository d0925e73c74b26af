//! The threads that connections are shared out to, each with a runtime and pipes of its own.

use std::{
    sync::Arc,
    thread::{self, JoinHandle},
};

use tokio::{
    runtime::{Builder, Runtime},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};

use crate::relay::PipePool;

use super::{
    super::super::failure::Failure,
    Relay,
    book::Book,
    connection::{self, Arrival},
};

/// What the connections of a worker have in common.
pub(super) struct Workplace {
    pub(super) relay: Arc<Relay>,
    pub(super) pool: PipePool,
    pub(super) book: Book,
}

impl Workplace {
    pub(super) fn new(relay: &Arc<Relay>, pipes: usize) -> Arc<Self> {
        Arc::new(Self {
            relay: Arc::clone(relay),
            pool: PipePool::new(pipes),
            book: Book::default(),
        })
    }
}

/// All workers.
pub(super) struct Crew {
    workers: Vec<Worker>,
}

struct Worker {
    workplace: Arc<Workplace>,
    arrivals: UnboundedSender<Arrival>,
    thread: JoinHandle<()>,
}

impl Crew {
    /// Starts `count` workers with `pipes` each.
    pub(super) fn start(relay: &Arc<Relay>, count: usize, pipes: usize) -> Result<Self, Failure> {
        let workers = (0..count).map(|number| Worker::start(relay, number, pipes));
        let workers = workers.collect::<std::io::Result<_>>();
        Ok(Self {
            workers: workers.map_err(|error| Failure::system("cannot start", &error))?,
        })
    }

    pub(super) fn workplaces(&self) -> Vec<Arc<Workplace>> {
        let workplaces = self.workers.iter().map(|worker| &worker.workplace);
        workplaces.cloned().collect()
    }

    /// Hands a client to the worker with the fewest connections.
    pub(super) fn hand(&self, arrival: Arrival) {
        let fewest = |worker: &&Worker| worker.workplace.book.open();
        if let Some(worker) = self.workers.iter().min_by_key(fewest) {
            worker.workplace.book.expect();
            // A worker lives as long as its sender.
            let _ = worker.arrivals.send(arrival);
        }
    }

    /// How many connections there are.
    pub(super) fn open(&self) -> usize {
        let open = self
            .workers
            .iter()
            .map(|worker| worker.workplace.book.open());
        open.sum()
    }

    /// Breaks off all connections that there are, and waits until that is told.
    pub(super) fn dismiss(self) {
        for worker in self.workers {
            drop(worker.arrivals);
            // One that has panicked has nothing to say.
            let _ = worker.thread.join();
        }
    }
}

impl Worker {
    fn start(relay: &Arc<Relay>, number: usize, pipes: usize) -> std::io::Result<Self> {
        let workplace = Workplace::new(relay, pipes);
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (sender, arrivals) = unbounded_channel();
        let own = Arc::clone(&workplace);
        let thread = thread::Builder::new()
            .name(format!("relay-{number}"))
            .spawn(move || work(runtime, &own, arrivals))?;
        Ok(Self {
            workplace,
            arrivals: sender,
            thread,
        })
    }
}

/// Serves connections until nobody hands in more. Those that there are then go with the runtime.
fn work(runtime: Runtime, workplace: &Arc<Workplace>, mut arrivals: UnboundedReceiver<Arrival>) {
    runtime.block_on(async {
        while let Some(arrival) = arrivals.recv().await {
            tokio::spawn(connection::serve(workplace, arrival));
        }
    });
    // A host name that is being looked up is not waited for.
    runtime.shutdown_background();
}
