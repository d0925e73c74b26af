//! Sources that have one export.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    slice,
    sync::{Arc, Weak},
};

use tokio::sync::Mutex;

use crate::{
    block::{
        Access, BlockDevice, BoxFuture, ClientFacts, ExportEntry, Exports, OpenExport, Result,
        Wish, run_blocking,
    },
    endpoint::{Endpoint, EndpointKind, OpenOptions, open_device},
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

/// A source that is open while somebody uses it. Its clients share what is open, as long as the files that it consists of
/// have the lengths that they had.
pub(super) struct OnDemand {
    endpoint: Endpoint,
    access: Access,
    options: OpenOptions,
    current: Mutex<Option<Current>>,
}

/// What is open.
struct Current {
    device: Weak<dyn BlockDevice>,
    /// As it was before that was opened.
    files: Vec<FileSize>,
}

/// A file, and how long it is.
#[derive(Clone, Copy, PartialEq, Eq)]
struct FileSize {
    device: u64,
    inode: u64,
    length: u64,
}

impl FileSize {
    /// Of those whose names still lead to a file.
    fn of(paths: &[PathBuf]) -> Vec<Self> {
        let metadata = paths.iter().filter_map(|path| fs::metadata(path).ok());
        let files = metadata.map(|metadata| Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
        });
        files.collect()
    }

    /// Whether it is the same file, and was longer or shorter. Another one in its place is for those who come when
    /// nobody uses this one any more.
    fn is_resized(&self, before: &Self) -> bool {
        (self.device, self.inode) == (before.device, before.inode) && self.length != before.length
    }
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
        let paths = match self.endpoint.kind() {
            EndpointKind::File(path) => slice::from_ref(path),
            EndpointKind::Split(paths) => paths,
            _ => &[],
        };
        let paths = paths.to_vec();
        let files = run_blocking(move || FileSize::of(&paths)).await?;
        if let Some(open) = &*current
            && let Some(device) = open.device.upgrade()
        {
            let mut pairs = files.iter().zip(&open.files);
            if !pairs.any(|(now, before)| now.is_resized(before)) {
                return Ok(device);
            }
        }
        // What is opened so has no connection to be kept.
        let opened = open_device(&self.endpoint, self.access, &self.options).await?;
        *current = Some(Current {
            device: Arc::downgrade(&opened.device),
            files,
        });
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
