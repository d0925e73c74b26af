//! Exports of several sources, by their names.

use std::sync::Arc;

use crate::{
    block::{
        BoxFuture, ClientFacts, ExportEntry, Exports, OpenExport, Result, Wish, no_such_export,
    },
    filter::{Chain, Counters},
};

/// The exports by name.
pub(super) struct Shelf {
    /// The first one is the default.
    pub(super) entries: Vec<Entry>,
    pub(super) any_name: bool,
}

/// What one source has.
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) description: Option<String>,
    /// As they are seen through the filters.
    pub(super) exports: Arc<dyn Exports>,
    pub(super) filters: Chain,
    /// Whether the names of its exports are its own.
    pub(super) has_names: bool,
}

/// What the filters in front of the exports count.
#[derive(Clone)]
pub(in super::super) struct FilterCounters(pub(super) Arc<Shelf>);

impl FilterCounters {
    /// The counts of now.
    pub(in super::super) fn read(&self) -> Vec<Counters> {
        let entries = self.0.entries.iter();
        entries.flat_map(|entry| entry.filters.counters()).collect()
    }
}

impl Shelf {
    /// The entry that has an export of this name, or may have.
    fn find(&self, name: &str) -> Option<&Entry> {
        let first = self.entries.first()?;
        if self.any_name || first.has_names {
            return Some(first);
        }
        let mut named = self.entries.iter().filter(|entry| entry.name == name);
        named.next().or(name.is_empty().then_some(first))
    }
}

impl Exports for Shelf {
    fn connecting(&self, client: ClientFacts) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            for entry in &self.entries {
                entry.exports.connecting(client).await?;
            }
            Ok(())
        })
    }

    fn list(&self, client: ClientFacts) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        Box::pin(async move {
            let mut list = Vec::new();
            for entry in &self.entries {
                let own = entry.exports.list(client).await?;
                if entry.has_names {
                    list.extend(own);
                    continue;
                }
                let own = own.into_iter().next().and_then(|own| own.description);
                list.push(ExportEntry {
                    name: entry.name.clone(),
                    description: entry.description.clone().or(own),
                });
            }
            Ok(list)
        })
    }

    fn open<'a>(&'a self, name: &'a str, client: ClientFacts) -> BoxFuture<'a, Result<OpenExport>> {
        Box::pin(async move {
            let entry = self.find(name).ok_or_else(no_such_export)?;
            if entry.has_names {
                return entry.exports.open(name, client).await;
            }
            let mut open = entry.exports.open(&entry.name, client).await?;
            open.canonical_name =
                (!self.any_name && name != entry.name).then(|| entry.name.clone());
            if entry.description.is_some() {
                open.description.clone_from(&entry.description);
            }
            Ok(open)
        })
    }

    fn wish(&self) -> Option<Wish> {
        self.entries
            .iter()
            .filter_map(|entry| entry.exports.wish())
            .max()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            for entry in &self.entries {
                entry.exports.close().await;
            }
        })
    }
}
