//! Sources that have one export.

use std::sync::{Arc, Weak};

use tokio::sync::Mutex;

use crate::{
    block::{
        Access, BlockDevice, BoxFuture, ClientFacts, ExportEntry, Exports, OpenExport, Result, Wish,
    },
    endpoint::{Endpoint, OpenOptions, open_device},
};

/// The default export of others, under whatever name.
pub(super) struct Only(pub(super) Arc<dyn Exports>);

impl Exports for Only {
    fn connecting(&self, client: ClientFacts) -> BoxFuture<'_, Result<()>> {
        self.0.connecting(client)
    }

    fn list(&self, client: ClientFacts) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        self.0.list(client)
    }

    fn open<'a>(&'a self, _: &'a str, client: ClientFacts) -> BoxFuture<'a, Result<OpenExport>> {
        Box::pin(async move {
            let mut open = self.0.open("", client).await?;
            open.canonical_name = None;
            Ok(open)
        })
    }

    fn wish(&self) -> Option<Wish> {
        self.0.wish()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.0.close()
    }
}

/// A source that is open while somebody uses it.
pub(super) struct OnDemand {
    endpoint: Endpoint,
    access: Access,
    options: OpenOptions,
    current: Mutex<Option<Weak<dyn BlockDevice>>>,
}

impl OnDemand {
    /// The device at `endpoint`, opened as `options` say.
    pub(super) fn new(endpoint: Endpoint, access: Access, options: OpenOptions) -> Self {
        Self {
            endpoint,
            access,
            options,
            current: Mutex::default(),
        }
    }

    /// The device that is open, or else a new one.
    async fn device(&self) -> Result<Arc<dyn BlockDevice>> {
        let mut current = self.current.lock().await;
        if let Some(device) = current.as_ref().and_then(Weak::upgrade) {
            return Ok(device);
        }
        // What is opened so has no connection to be kept.
        let opened = open_device(&self.endpoint, self.access, &self.options).await?;
        *current = Some(Arc::downgrade(&opened.device));
        Ok(opened.device)
    }
}

impl Exports for OnDemand {
    fn list(&self, _: ClientFacts) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        Box::pin(async { Ok(vec![ExportEntry::default()]) })
    }

    fn open<'a>(&'a self, _: &'a str, _: ClientFacts) -> BoxFuture<'a, Result<OpenExport>> {
        Box::pin(async { Ok(OpenExport::new(self.device().await?)) })
    }
}
