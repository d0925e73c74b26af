//! Where a server's devices come from.

use std::sync::Arc;

use blockferry_block::{BlockDevice, BoxFuture, Error, ErrorKind, Operation, Result};
use blockferry_proto::ListedExport;

/// The exports of a server, by name.
pub trait Exports: Send + Sync {
    /// The exports that a client is told of. May leave out what [`open`](Self::open) knows.
    fn list(&self) -> BoxFuture<'_, Result<Vec<ListedExport>>>;

    /// The device for `name`, the empty name being the default export. `NotFound` tells the client
    /// that there is no such export.
    ///
    /// Called when a client asks for the export, never before its handshake got that far, in the
    /// connection's own runtime, which ends with the connection: a device that is shared by
    /// connections must not depend on it. The name comes from a client: it is no path.
    fn open<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Arc<dyn BlockDevice>>>;
}

/// One device that is open all the time: the default export.
pub struct SingleExport {
    device: Arc<dyn BlockDevice>,
    name: String,
}

impl SingleExport {
    /// Serves `device` as the default export, whose name is empty.
    #[must_use]
    pub fn new(device: Arc<dyn BlockDevice>) -> Self {
        Self {
            device,
            name: String::new(),
        }
    }

    /// The same, under `name` too.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }
}

impl Exports for SingleExport {
    fn list(&self) -> BoxFuture<'_, Result<Vec<ListedExport>>> {
        let description = self.device.info().description.clone();
        let export = ListedExport {
            name: self.name.clone(),
            description: description.unwrap_or_default(),
        };
        Box::pin(async move { Ok(vec![export]) })
    }

    fn open<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Arc<dyn BlockDevice>>> {
        Box::pin(async move {
            if name.is_empty() || name == self.name {
                return Ok(Arc::clone(&self.device));
            }
            Err(
                Error::with_message(ErrorKind::NotFound, "there is no such export")
                    .during(Operation::Open),
            )
        })
    }
}
