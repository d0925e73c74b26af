//! Where the devices of a server come from: exports by name, opened for a client that asks.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use crate::{BlockDevice, BoxFuture, Error, ErrorKind, Operation, Result};

/// What is known of the client for whom an export is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientFacts {
    /// Whether it can not write, whatever the device could.
    pub read_only: bool,
    /// Whether it speaks through TLS.
    pub tls: bool,
}

/// An export as a list shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportEntry {
    /// Its name; empty for one that has none but is the default.
    pub name: String,
    /// For people.
    pub description: Option<String>,
}

/// An export that was opened for a client.
#[derive(Clone)]
#[non_exhaustive]
pub struct OpenExport {
    /// The device. Its last owner to drop it closes it.
    pub device: Arc<dyn BlockDevice>,
    /// The export's name, where that is not the one that was asked for: the default's, for one.
    pub canonical_name: Option<String>,
    /// What people are told of it, where that is not what the device says.
    pub description: Option<String>,
    /// What the export may ask of its server later.
    pub wishes: Option<Arc<Wishes>>,
}

impl OpenExport {
    /// An export that is `device` and has no wishes.
    #[must_use]
    pub fn new(device: Arc<dyn BlockDevice>) -> Self {
        Self {
            device,
            canonical_name: None,
            description: None,
            wishes: None,
        }
    }
}

/// The exports of a server, by name.
pub trait Exports: Send + Sync {
    /// A client has connected, and nothing is known of it but `client`. When this fails the
    /// connection is dropped before a word was said.
    fn connecting(&self, client: ClientFacts) -> BoxFuture<'_, Result<()>> {
        let _ = client;
        Box::pin(async { Ok(()) })
    }

    /// The exports that a client is told of. May leave out what [`open`](Self::open) knows.
    fn list(&self, client: ClientFacts) -> BoxFuture<'_, Result<Vec<ExportEntry>>>;

    /// The device for `name`, the empty name being the default export. `NotFound` tells the client
    /// that there is no such export.
    ///
    /// Called when a client asks for the export, after TLS where that is required. It runs in the
    /// connection's own runtime, which ends with the connection: a device that is shared by
    /// connections must not depend on it. The name comes from a client: it is no path.
    fn open<'a>(&'a self, name: &'a str, client: ClientFacts) -> BoxFuture<'a, Result<OpenExport>>;

    /// What was wished for where no export was open: in a list, by an export that did not open, or after the last
    /// one was closed. Asked after each handshake and after each connection that used an export.
    fn wish(&self) -> Option<Wish> {
        None
    }

    /// The server has ended, and no connection is left.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// The failure of a client's asking for an export that is not there.
#[must_use]
pub fn no_such_export() -> Error {
    Error::with_message(ErrorKind::NotFound, "there is no such export").during(Operation::Open)
}

/// What an export asks of the server that serves it, beside its answers to requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
#[non_exhaustive]
pub enum Wish {
    /// Let the connection end: finish what is in flight, answer it, then close.
    Disconnect = 1,
    /// Drop the connection at once; not even the request that it came with is answered.
    Drop = 2,
    /// Let the server shut down, as by SIGTERM.
    ShutDown = 3,
}

/// A place for the wishes of a connection's export. The greatest one counts.
#[derive(Debug, Default)]
pub struct Wishes(AtomicU8);

impl Wishes {
    /// Makes a wish, before the answer to the request that it goes with.
    pub fn wish(&self, wish: Wish) {
        self.0.fetch_max(wish as u8, Ordering::AcqRel);
    }

    /// What was wished for.
    #[must_use]
    pub fn current(&self) -> Option<Wish> {
        match self.0.load(Ordering::Acquire) {
            0 => None,
            1 => Some(Wish::Disconnect),
            2 => Some(Wish::Drop),
            _ => Some(Wish::ShutDown),
        }
    }
}

/// One device that is open all the time: the default export, and one by name where it has one.
pub struct SingleExport {
    device: Arc<dyn BlockDevice>,
    name: String,
    any_name: bool,
}

impl SingleExport {
    /// Serves `device` as the default export, whose name is empty.
    #[must_use]
    pub fn new(device: Arc<dyn BlockDevice>) -> Self {
        Self {
            device,
            name: String::new(),
            any_name: false,
        }
    }

    /// The same, whatever name is asked for.
    #[must_use]
    pub fn under_any_name(mut self) -> Self {
        self.any_name = true;
        self
    }

    /// The same, under `name` too.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }
}

impl Exports for SingleExport {
    fn list(&self, _: ClientFacts) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        let entry = ExportEntry {
            name: self.name.clone(),
            description: self.device.info().description.clone(),
        };
        Box::pin(async move { Ok(vec![entry]) })
    }

    fn open<'a>(&'a self, name: &'a str, _: ClientFacts) -> BoxFuture<'a, Result<OpenExport>> {
        Box::pin(async move {
            let is_known = name.is_empty() || name == self.name;
            if !is_known && !self.any_name {
                return Err(no_such_export());
            }
            let mut open = OpenExport::new(Arc::clone(&self.device));
            if name != self.name && is_known {
                open.canonical_name = Some(self.name.clone());
            }
            Ok(open)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_device_has_its_name_or_any() {
        let device: Arc<dyn BlockDevice> = Arc::new(crate::NullDevice::new(1));
        let named = || SingleExport::new(Arc::clone(&device)).named("disk");
        let client = ClientFacts::default();
        let open = named().open("", client).await.expect("the default");
        assert_eq!(open.canonical_name.as_deref(), Some("disk"));
        let open = named().open("disk", client).await.expect("its name");
        assert_eq!(open.canonical_name, None);
        let refused = named().open("other", client).await.map(|_| ());
        assert_eq!(
            refused.expect_err("no such name").kind(),
            ErrorKind::NotFound
        );
        let any = named().under_any_name();
        let open = any.open("other", client).await.expect("any name");
        assert_eq!(open.canonical_name, None);
    }

    #[test]
    fn the_greatest_wish_counts() {
        let wishes = Wishes::default();
        assert_eq!(wishes.current(), None);
        wishes.wish(Wish::Drop);
        wishes.wish(Wish::Disconnect);
        assert_eq!(wishes.current(), Some(Wish::Drop));
        wishes.wish(Wish::ShutDown);
        assert_eq!(wishes.current(), Some(Wish::ShutDown));
    }
}
