//! `exitlast`: the server ends when its last client has gone.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use blockferry_block::{
    BlockDevice, BoxFuture, Capabilities, ClientFacts, ExportEntry, Exports, OpenExport, Result,
    Wish,
};

use crate::{DeviceFilter, Effects, Filter, FilterKind, Filtered, Layer, lines::Common};

pub(crate) static EXIT_LAST: FilterKind = FilterKind {
    name: "exitlast",
    syntax: "exitlast",
    help: "The server ends when the last client that used an export has gone",
    parameters: &[],
    effects: Effects {
        concurrency: "as the source's; clients of all exports are counted together",
        ..Effects::NONE
    },
    build: |_| Ok(Arc::new(ExitLast::default())),
};

/// Lets the server end when the last client has gone. Nothing in front of what is no server.
#[derive(Clone, Debug, Default)]
pub struct ExitLast {
    clients: Common<Clients>,
}

impl Filter for ExitLast {
    fn kind(&self) -> &'static FilterKind {
        &EXIT_LAST
    }

    fn minds_openings(&self) -> bool {
        true
    }

    fn layer(&self, below: Arc<dyn Exports>) -> Result<Arc<dyn Layer>> {
        let clients = self.clients.open(|| Ok(Clients::default()))?;
        Ok(Arc::new(Counting { below, clients }))
    }
}

/// The clients that have an export open.
#[derive(Debug, Default)]
struct Clients {
    open: AtomicUsize,
    were_there: AtomicBool,
}

struct Counting {
    below: Arc<dyn Exports>,
    clients: Arc<Clients>,
}

impl Exports for Counting {
    fn connecting(&self, client: ClientFacts) -> BoxFuture<'_, Result<()>> {
        self.below.connecting(client)
    }

    fn list(&self, client: ClientFacts) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        self.below.list(client)
    }

    fn open<'a>(&'a self, name: &'a str, client: ClientFacts) -> BoxFuture<'a, Result<OpenExport>> {
        Box::pin(async move {
            let mut open = self.below.open(name, client).await?;
            open.device = Arc::new(Filtered::new(Counted {
                client: Client::new(Arc::clone(&self.clients)),
                below: open.device,
            }));
            Ok(open)
        })
    }

    fn wish(&self) -> Option<Wish> {
        let clients = &self.clients;
        let all_gone =
            clients.were_there.load(Ordering::Acquire) && clients.open.load(Ordering::Acquire) == 0;
        let own = all_gone.then_some(Wish::ShutDown);
        own.max(self.below.wish())
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.below.close()
    }
}

impl Layer for Counting {}

/// A client, as long as it has the export open.
struct Client(Arc<Clients>);

impl Client {
    fn new(clients: Arc<Clients>) -> Self {
        clients.open.fetch_add(1, Ordering::AcqRel);
        clients.were_there.store(true, Ordering::Release);
        Self(clients)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

struct Counted {
    below: Arc<dyn BlockDevice>,
    client: Client,
}

impl DeviceFilter for Counted {
    const PASSES: Capabilities = Capabilities::all();

    fn below(&self) -> &Arc<dyn BlockDevice> {
        &self.below
    }

    fn over(&self, below: Arc<dyn BlockDevice>) -> Option<Self> {
        let client = Client::new(Arc::clone(&self.client.0));
        Some(Self { below, client })
    }
}
