//! What `serve` was told to serve, as the exports of a server.

use std::sync::{Arc, Weak};

use tokio::sync::Mutex;

use crate::{
    block::{
        Access, BlockDevice, BoxFuture, ClientFacts, Context, ErrorKind, ExportEntry, Exports,
        OpenExport, Result, SingleExport, Wish, no_such_export,
    },
    cli::{
        failure::{Failure, is_system_error},
        options::{Opening, ServeJob, ServedSource, open_options},
    },
    client::PoolObserver,
    endpoint::{
        Connection, Endpoint, EndpointKind, FormatKind, OpenDevice, OpenExports, OpenOptions,
        access_below, open_device, open_exports,
    },
    filter::{Chain, Counters},
};

use super::{late::Late, observe::Observer};

/// The exports of a job, and what keeps them alive.
pub(super) struct Catalog {
    shelf: Arc<Shelf>,
    connections: Vec<Connection>,
    /// Those that are opened by their first clients.
    late: Vec<Arc<Late>>,
    /// The size of the only image, where there is just one.
    pub(super) size: Option<u64>,
}

/// What the filters in front of the exports count.
#[derive(Clone)]
pub(super) struct FilterCounters(Arc<Shelf>);

impl FilterCounters {
    /// The counts of now.
    pub(super) fn read(&self) -> Vec<Counters> {
        let entries = self.0.entries.iter();
        entries.flat_map(|entry| entry.filters.counters()).collect()
    }
}

/// The exports by name.
struct Shelf {
    /// The first one is the default.
    entries: Vec<Entry>,
    any_name: bool,
}

struct Entry {
    name: String,
    description: Option<String>,
    /// As they are seen through the filters.
    exports: Arc<dyn Exports>,
    filters: Chain,
    /// Whether the names of its exports are its own.
    has_names: bool,
}

impl Catalog {
    /// Opens what is to be served, to see whether it can be.
    pub(super) async fn open(job: &ServeJob, observer: &Arc<Observer>) -> Result<Self, Failure> {
        let mut catalog = Self {
            shelf: Arc::new(Shelf {
                entries: Vec::new(),
                any_name: job.any_name,
            }),
            connections: Vec::new(),
            late: Vec::new(),
            size: None,
        };
        let mut entries = Vec::new();
        for served in &job.exports {
            match catalog.entry(job, served, observer).await {
                Ok(entry) => entries.push(entry),
                Err(failure) => {
                    for entry in entries {
                        entry.exports.close().await;
                    }
                    let _ = catalog.close().await;
                    return Err(failure);
                }
            }
        }
        if entries.len() > 1 {
            catalog.size = None;
        }
        catalog.shelf = Arc::new(Shelf {
            entries,
            any_name: job.any_name,
        });
        Ok(catalog)
    }

    async fn entry(
        &mut self,
        job: &ServeJob,
        served: &ServedSource,
        observer: &Arc<Observer>,
    ) -> Result<Entry, Failure> {
        let read_only = job.server.read_only;
        let access = match read_only {
            true => Access::ReadOnly,
            false => Access::ReadWrite,
        };
        let access = access_below(&job.filters, access);
        let mut options = job.trust.in_options(open_options(job.timeouts));
        (options.connections, options.retries) = (job.connections, job.retries);
        options.all_contexts = true;
        let (observer, name) = (Arc::clone(observer), served.source.to_string());
        options.pool_observer = Some(PoolObserver::new(move |event| {
            observer.see_upstream(&name, event);
        }));
        let explain = |error: crate::block::Error| {
            let may_not_write = match error.kind() {
                ErrorKind::ReadOnly => true,
                // Not where it is ours to say what is opened.
                ErrorKind::NotPermitted => is_system_error(&error),
                _ => false,
            };
            let failure = Failure::from(error);
            match may_not_write && !read_only {
                true => failure.hint("--read-only serves what cannot be written"),
                false => failure,
            }
        };
        let source = &served.source;
        let is_cheap = matches!(
            source.kind(),
            EndpointKind::File(_) | EndpointKind::Split(_)
        );
        let exports: Arc<dyn Exports> = if is_cheap && served.open == Opening::OnDemand {
            let opened = open_device(source, access, &options).await;
            let OpenDevice { device, connection } = opened.map_err(explain)?;
            match connection.format() {
                // What a client writes does not make it an image, however it begins.
                FormatKind::Raw => Arc::new(OnDemand {
                    endpoint: source.clone().taken_for(FormatKind::Raw),
                    access,
                    options,
                    current: Mutex::default(),
                }),
                // It is closed in good order at the end, and never open twice.
                _ => {
                    self.connections.push(connection);
                    Arc::new(SingleExport::new(device))
                }
            }
        } else if served.open == Opening::FirstUse {
            let late = Arc::new(Late::new(source.clone(), access, options));
            self.late.push(Arc::clone(&late));
            late
        } else {
            let opened = open_exports(source, access, &options).await;
            let OpenExports {
                exports,
                connection,
            } = opened.map_err(explain)?;
            self.connections.push(connection);
            exports
        };
        let name = served.name.clone().unwrap_or_default();
        let has_names = has_names(source) && job.exports.len() == 1;
        // Filters tell of an export by the name that clients know it by.
        let exports = match has_names {
            true => exports,
            false => Arc::new(Only(exports)),
        };
        let below = Arc::clone(&exports);
        let filters = match Chain::new(&job.filters, exports) {
            Ok(filters) => filters,
            Err(error) => {
                below.close().await;
                return Err(Failure::from(error));
            }
        };
        let exports = filters.exports();
        let mut filters_of_job = job.filters.iter();
        let minded = filters_of_job.any(|named| named.filter().minds_openings());
        if !has_names && served.open != Opening::FirstUse && !minded {
            // What a filter has against the source is better said now than to the first client.
            let facts = ClientFacts {
                read_only,
                tls: false,
            };
            match exports.open(&name, facts).await {
                Ok(open) => {
                    let info = open.device.info();
                    self.size = Some(info.size);
                    let missing = |context: &&Context| !info.contexts.contains(context);
                    if let Some(context) = job.contexts.iter().find(missing) {
                        let text = format!("{source}: there is no {context} to be served");
                        drop(open);
                        exports.close().await;
                        return Err(Failure::failed(text));
                    }
                }
                Err(error) if !job.filters.is_empty() => {
                    exports.close().await;
                    let failure = explain(error);
                    return Err(failure.note(format!("it is in front of {source}")));
                }
                Err(_) => self.size = None,
            }
        }
        Ok(Entry {
            name,
            description: served.description.clone(),
            exports,
            filters,
            has_names,
        })
    }

    pub(super) fn exports(&self) -> Arc<dyn Exports> {
        Arc::clone(&self.shelf) as Arc<dyn Exports>
    }

    /// What the filters have counted, by the names of the exports.
    pub(super) fn filter_counters(&self) -> FilterCounters {
        FilterCounters(Arc::clone(&self.shelf))
    }

    /// Lets no request wait for a server that is away.
    pub(super) fn stop_waiting(&self) {
        self.connections.iter().for_each(Connection::stop_waiting);
    }

    /// Closes what the exports came from; the server has closed them. All are closed, whatever one of them fails with.
    pub(super) async fn close(self) -> Result<()> {
        drop(self.shelf);
        let mut result = Ok(());
        for connection in self.connections {
            result = result.and(connection.close().await);
        }
        for late in self.late {
            result = result.and(late.closed());
        }
        result
    }
}

/// Whether a source has exports of its own, with names of its own.
fn has_names(source: &Endpoint) -> bool {
    let has_several = matches!(
        source.kind(),
        EndpointKind::Script(_) | EndpointKind::Directory(_)
    );
    has_several && source.is_bytes()
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

/// The default export of others, under whatever name.
struct Only(Arc<dyn Exports>);

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
struct OnDemand {
    endpoint: Endpoint,
    access: Access,
    options: OpenOptions,
    current: Mutex<Option<Weak<dyn BlockDevice>>>,
}

impl OnDemand {
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
