//! A source that is opened when the first client asks for it, and stays open: another server need not be there
//! before.

use std::{
    io,
    sync::{Arc, OnceLock},
};

use tokio::{runtime::Handle, sync::Mutex};

use crate::{
    block::{
        Access, BoxFuture, ClientFacts, Error, ErrorKind, ExportEntry, Exports, OpenExport, Result,
    },
    endpoint::{Endpoint, OpenExports, OpenOptions, open_exports},
};

/// The exports of a source that may not be open yet. Where opening it fails, the next client tries again.
pub(super) struct Late {
    endpoint: Endpoint,
    access: Access,
    options: OpenOptions,
    /// Where it is opened: a client's own runtime ends with the client.
    runtime: Handle,
    opened: Mutex<Option<OpenExports>>,
    /// What closing it failed with.
    failure: OnceLock<Error>,
}

impl Late {
    /// To be called in the runtime that lives as long as the server.
    pub(super) fn new(endpoint: Endpoint, access: Access, options: OpenOptions) -> Self {
        Self {
            endpoint,
            access,
            options,
            runtime: Handle::current(),
            opened: Mutex::new(None),
            failure: OnceLock::new(),
        }
    }

    /// What closing the source failed with, once it was closed.
    pub(super) fn closed(&self) -> Result<()> {
        self.failure.get().cloned().map_or(Ok(()), Err)
    }

    async fn open_it(&self) -> Result<OpenExports> {
        let (endpoint, options) = (self.endpoint.clone(), self.options.clone());
        let access = self.access;
        let opening = self
            .runtime
            .spawn(async move { open_exports(&endpoint, access, &options).await });
        let opened = opening.await;
        opened.map_err(|error| Error::with_source(ErrorKind::Io, io::Error::other(error)))?
    }
}

impl Exports for Late {
    fn list(&self, client: ClientFacts) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        Box::pin(async move {
            match &*self.opened.lock().await {
                Some(opened) => opened.exports.list(client).await,
                None => Ok(vec![ExportEntry::default()]),
            }
        })
    }

    fn open<'a>(&'a self, name: &'a str, client: ClientFacts) -> BoxFuture<'a, Result<OpenExport>> {
        Box::pin(async move {
            let mut opened = self.opened.lock().await;
            let known = opened.take();
            let source = match known {
                Some(known) => known,
                None => self.open_it().await?,
            };
            let exports = Arc::clone(&opened.insert(source).exports);
            drop(opened);
            exports.open(name, client).await
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if let Some(opened) = self.opened.lock().await.take() {
                opened.exports.close().await;
                if let Err(error) = opened.connection.close().await {
                    // The first one is told.
                    let _ = self.failure.set(error);
                }
            }
        })
    }
}
