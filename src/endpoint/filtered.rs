//! Endpoints behind filters.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::timeout;

use crate::{
    block::{
        Access, BoxFuture, ClientFacts, ExportEntry, Exports, OpenExport, Result, no_such_export,
    },
    filter::{Chain, Counters, NamedFilter},
};

use super::{Connection, Endpoint, FormatKind, OpenDevice, OpenOptions, open::open_unfiltered};

/// How long filters may take for their last words after a failure.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Filters in front of an endpoint, and what they have opened below them.
pub(super) struct Filters {
    chain: Chain,
    below: Arc<Anew>,
}

impl Filters {
    /// Puts the endpoint's filters in front of it, and opens it through them.
    pub(super) async fn open(
        endpoint: &Endpoint,
        access: Access,
        options: &OpenOptions,
    ) -> Result<OpenDevice> {
        let filters = endpoint.filters();
        let below = Arc::new(Anew {
            endpoint: endpoint.clone(),
            access: access_below(filters, access),
            options: options.clone(),
            format: OnceLock::new(),
            connection: Mutex::default(),
            is_closing: AtomicBool::new(false),
        });
        let chain = Chain::new(filters, Arc::clone(&below) as Arc<dyn Exports>)?;
        let client = ClientFacts {
            read_only: access == Access::ReadOnly,
            tls: false,
        };
        let filters = Self { chain, below };
        match filters.chain.exports().open("", client).await {
            Ok(open) => Ok(OpenDevice {
                device: open.device,
                connection: Connection::filtered(filters),
            }),
            Err(error) => {
                filters.abandon().await;
                Err(error)
            }
        }
    }

    pub(super) fn counters(&self) -> Vec<Counters> {
        self.chain.counters()
    }

    /// The connection that is below now.
    pub(super) fn connection(&self) -> MutexGuard<'_, Option<Connection>> {
        self.below.connection()
    }

    /// Lets the filters finish, and closes what is below.
    pub(super) async fn close(self) -> Result<()> {
        self.below.is_closing.store(true, Ordering::Relaxed);
        self.chain.exports().close().await;
        let connection = self.connection().take();
        match connection {
            Some(connection) => Box::pin(connection.close()).await,
            None => Ok(()),
        }
    }

    /// Goes without a goodbye. The filters have their say, if that does not take long.
    pub(super) async fn abandon(self) {
        self.below.is_closing.store(true, Ordering::Relaxed);
        let _ = timeout(LAST_WORDS, self.chain.exports().close()).await;
        let connection = self.connection().take();
        if let Some(connection) = connection {
            Box::pin(connection.abandon()).await;
        }
    }
}

/// How a source is opened for clients who want `access`: nobody needs to be able to write what nobody writes.
pub(crate) fn access_below(filters: &[NamedFilter], access: Access) -> Access {
    match filters.iter().any(|named| named.filter().never_writes()) {
        true => Access::ReadOnly,
        false => access,
    }
}

/// An endpoint that is opened anew each time it is asked for.
struct Anew {
    endpoint: Endpoint,
    access: Access,
    options: OpenOptions,
    /// What it was taken for when it was opened first. A disk that was written since may begin like any image.
    format: OnceLock<FormatKind>,
    /// Of the device that was opened last.
    connection: Mutex<Option<Connection>>,
    is_closing: AtomicBool,
}

impl Anew {
    fn endpoint(&self) -> Endpoint {
        let endpoint = self.endpoint.clone();
        match self.format.get() {
            Some(kind) => endpoint.taken_for(*kind),
            None => endpoint,
        }
    }

    fn connection(&self) -> MutexGuard<'_, Option<Connection>> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Exports for Anew {
    fn list(&self, _: ClientFacts) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        Box::pin(async { Ok(vec![ExportEntry::default()]) })
    }

    fn open<'a>(&'a self, name: &'a str, _: ClientFacts) -> BoxFuture<'a, Result<OpenExport>> {
        Box::pin(async move {
            if !name.is_empty() || self.is_closing.load(Ordering::Relaxed) {
                return Err(no_such_export());
            }
            // Whoever opens it again has given up what was open before.
            let before = self.connection().take();
            if let Some(before) = before {
                before.abandon().await;
            }
            let opened = open_unfiltered(&self.endpoint(), self.access, &self.options).await?;
            let _ = self.format.set(opened.connection.format());
            *self.connection() = Some(opened.connection);
            Ok(OpenExport::new(opened.device))
        })
    }
}
