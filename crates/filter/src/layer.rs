//! What most filters are: a device around each device that is opened, and something that all handles of one
//! export share.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use blockferry_block::{
    BlockDevice, BoxFuture, ClientFacts, Error, ErrorKind, ExportEntry, Exports, OpenExport,
    Operation, Result, Wish, Wishes,
};

use crate::{Counters, Layer};

/// Exports that something is kept for although nobody has them open, and that can be forgotten.
const MOST_UNUSED: usize = 256;

/// Exports that something is kept for. A script may have as many as clients ask for.
const MOST_EXPORTS: usize = 1 << 16;

/// A filter whose exports are devices around devices.
pub trait DeviceLayer: Send + Sync + 'static {
    /// What all handles of one export have in common: a cache, a budget. `()` for nothing.
    type Shared: Send + Sync + 'static;

    /// The name of the filter.
    fn name(&self) -> &'static str;

    /// Makes what the handles of `export` will share; the name is the source's, empty for its only one.
    ///
    /// # Errors
    /// When it cannot be made: no room for a temporary file, for one.
    fn share(&self, export: &str) -> Result<Self::Shared>;

    /// Puts the filter around a device that was opened. Its handle keeps `opened.shared` as long as it lives.
    fn open(&self, opened: Opened<Self::Shared>) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>>;

    /// What was counted, see [`Counters::counts`].
    fn counts(&self, shared: &Self::Shared) -> Vec<(&'static str, u64)> {
        let _ = shared;
        Vec::new()
    }

    /// What people should hear of, see [`Counters::warnings`]; told with what was counted.
    fn warnings(&self, shared: &Self::Shared) -> Vec<String> {
        let _ = shared;
        Vec::new()
    }

    /// Whether what handles shared must be kept although none is left, until [`close`](Self::close): it holds
    /// what was written, or is a result. What need not be is kept for a while all the same.
    fn must_keep(&self, shared: &Self::Shared) -> bool {
        let _ = shared;
        false
    }

    /// Everything has ended, and no handle of `export` is left. The exports below are still open.
    fn close<'a>(&'a self, export: &'a str, shared: Arc<Self::Shared>) -> BoxFuture<'a, ()> {
        let _ = (export, shared);
        Box::pin(async {})
    }

    /// After the last of them, and where there was none. The exports below are still open.
    fn all_closed(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// A device that was opened below a filter.
pub struct Opened<S> {
    /// The device.
    pub device: Arc<dyn BlockDevice>,
    /// The name of the export as the source has it.
    pub export: String,
    /// For whom it was opened.
    pub client: ClientFacts,
    /// Where its wishes are made, if it may have some.
    pub wishes: Option<Arc<Wishes>>,
    /// What the handles of the export share.
    pub shared: Arc<S>,
}

/// A [`DeviceLayer`] in front of exports.
pub struct PerExport<L: DeviceLayer> {
    layer: L,
    below: Arc<dyn Exports>,
    shared: Mutex<HashMap<String, Arc<L::Shared>>>,
    /// Of what was closed.
    last_counters: Mutex<Vec<Counters>>,
}

impl<L: DeviceLayer> PerExport<L> {
    /// Puts `layer` in front of `below`.
    #[must_use]
    pub fn new(layer: L, below: Arc<dyn Exports>) -> Self {
        Self {
            layer,
            below,
            shared: Mutex::default(),
            last_counters: Mutex::default(),
        }
    }

    fn shared(&self) -> MutexGuard<'_, HashMap<String, Arc<L::Shared>>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last_counters(&self) -> MutexGuard<'_, Vec<Counters>> {
        self.last_counters
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn counters_of(&self, export: &str, shared: &L::Shared) -> Option<Counters> {
        let counts = self.layer.counts(shared);
        (!counts.is_empty()).then(|| Counters {
            filter: self.layer.name(),
            export: export.to_owned(),
            counts,
            warnings: self.layer.warnings(shared),
        })
    }

    /// What the handles of `export` share.
    fn shared_of(&self, export: &str) -> Result<Arc<L::Shared>> {
        let mut shared = self.shared();
        if let Some(known) = shared.get(export) {
            return Ok(Arc::clone(known));
        }
        if shared.len() >= MOST_UNUSED {
            shared.retain(|_, known| Arc::strong_count(known) > 1 || self.layer.must_keep(known));
        }
        if shared.len() >= MOST_EXPORTS {
            let message = format!("the filter '{}' has too many exports", self.layer.name());
            return Err(Error::with_message(ErrorKind::OutOfMemory, message));
        }
        let new = Arc::new(self.layer.share(export)?);
        shared.insert(export.to_owned(), Arc::clone(&new));
        Ok(new)
    }
}

impl<L: DeviceLayer> Exports for PerExport<L> {
    fn connecting(&self, client: ClientFacts) -> BoxFuture<'_, Result<()>> {
        self.below.connecting(client)
    }

    fn list(&self, client: ClientFacts) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        self.below.list(client)
    }

    fn open<'a>(&'a self, name: &'a str, client: ClientFacts) -> BoxFuture<'a, Result<OpenExport>> {
        Box::pin(async move {
            let mut open = self.below.open(name, client).await?;
            let export = open.canonical_name.as_deref().unwrap_or(name).to_owned();
            let opening = |error: Error| {
                let name = Arc::from(self.layer.name());
                error.during(Operation::Open).on(&name)
            };
            let opened = Opened {
                device: Arc::clone(&open.device),
                shared: self.shared_of(&export).map_err(opening)?,
                export,
                client,
                wishes: open.wishes.clone(),
            };
            open.device = self.layer.open(opened).await.map_err(opening)?;
            Ok(open)
        })
    }

    fn wish(&self) -> Option<Wish> {
        self.below.wish()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let mut shared: Vec<_> = self.shared().drain().collect();
            shared.sort_by(|(one, _), (other, _)| one.cmp(other));
            for (export, shared) in shared {
                self.layer.close(&export, Arc::clone(&shared)).await;
                let counters = self.counters_of(&export, &shared);
                self.last_counters().extend(counters);
            }
            self.layer.all_closed().await;
            self.below.close().await;
        })
    }
}

impl<L: DeviceLayer> Layer for PerExport<L> {
    fn counters(&self) -> Vec<Counters> {
        let mut counters = self.last_counters().clone();
        let shared = self.shared();
        let open = shared
            .iter()
            .filter_map(|(export, shared)| self.counters_of(export, shared));
        counters.extend(open);
        counters.sort_by(|one, other| one.export.cmp(&other.export));
        counters
    }
}

/// A layer that puts what `wrap` makes around each device, and shares nothing between handles.
#[must_use]
pub fn each_device<W>(name: &'static str, below: Arc<dyn Exports>, wrap: W) -> Arc<dyn Layer>
where
    W: Fn(Arc<dyn BlockDevice>) -> BoxFuture<'static, Result<Arc<dyn BlockDevice>>>
        + Send
        + Sync
        + 'static,
{
    Arc::new(PerExport::new(Each { name, wrap }, below))
}

struct Each<W> {
    name: &'static str,
    wrap: W,
}

impl<W> DeviceLayer for Each<W>
where
    W: Fn(Arc<dyn BlockDevice>) -> BoxFuture<'static, Result<Arc<dyn BlockDevice>>>
        + Send
        + Sync
        + 'static,
{
    type Shared = ();

    fn name(&self) -> &'static str {
        self.name
    }

    fn share(&self, _: &str) -> Result<()> {
        Ok(())
    }

    fn open(&self, opened: Opened<()>) -> BoxFuture<'_, Result<Arc<dyn BlockDevice>>> {
        (self.wrap)(opened.device)
    }
}
