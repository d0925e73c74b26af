//! Several filters in front of one source.

use std::sync::Arc;

use blockferry_block::{
    BoxFuture, ClientFacts, Error, ExportEntry, Exports, OpenExport, Operation, Result, Wish,
};

use crate::{Counters, Layer, NamedFilter};

/// Filters in front of exports, the first one nearest the client.
#[derive(Clone)]
pub struct Chain {
    layers: Vec<Arc<dyn Layer>>,
    exports: Arc<dyn Exports>,
}

impl Chain {
    /// Puts `filters` in front of `exports`. Call it in the runtime that lives as long as they are used.
    ///
    /// # Errors
    /// Of the first filter, from the source's side, that cannot be made.
    pub fn new(filters: &[NamedFilter], exports: Arc<dyn Exports>) -> Result<Self> {
        let mut chain = Self {
            layers: Vec::new(),
            exports,
        };
        for named in filters.iter().rev() {
            let mut below = Arc::clone(&chain.exports);
            if named.filter().never_writes() {
                below = Arc::new(Reading(below));
            }
            let name = || Arc::from(named.to_string());
            let explain = |error: Error| error.during(Operation::Open).on(&name());
            let layer = named.filter().layer(below).map_err(explain)?;
            chain.exports = Arc::clone(&layer) as Arc<dyn Exports>;
            chain.layers.insert(0, layer);
        }
        Ok(chain)
    }

    /// The exports as they are seen through the filters.
    #[must_use]
    pub fn exports(&self) -> Arc<dyn Exports> {
        Arc::clone(&self.exports)
    }

    /// What the filters have counted, the first one's first.
    #[must_use]
    pub fn counters(&self) -> Vec<Counters> {
        let layers = self.layers.iter();
        layers.flat_map(|layer| layer.counters()).collect()
    }
}

/// Exports that nobody writes: they are opened for clients that cannot.
struct Reading(Arc<dyn Exports>);

impl Exports for Reading {
    fn connecting(&self, client: ClientFacts) -> BoxFuture<'_, Result<()>> {
        self.0.connecting(reading(client))
    }

    fn list(&self, client: ClientFacts) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        self.0.list(reading(client))
    }

    fn open<'a>(&'a self, name: &'a str, client: ClientFacts) -> BoxFuture<'a, Result<OpenExport>> {
        self.0.open(name, reading(client))
    }

    fn wish(&self) -> Option<Wish> {
        self.0.wish()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.0.close()
    }
}

fn reading(client: ClientFacts) -> ClientFacts {
    ClientFacts {
        read_only: true,
        ..client
    }
}
