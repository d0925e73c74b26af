//! What `serve` was told to serve, as the exports of a server.

mod shelf;
mod single;

use std::sync::Arc;

use crate::{
    block::{Access, ClientFacts, Context, Error, Exports, Result, SingleExport},
    cli::{
        failure::Failure,
        hints,
        options::{Opening, ServeJob, ServedSource, open_options},
    },
    client::PoolObserver,
    endpoint::{
        Connection, Endpoint, EndpointKind, FormatKind, OpenDevice, OpenExports, access_below,
        open_device, open_exports,
    },
    filter::Chain,
};

use super::{late::Late, observe::Observer};
use shelf::{Entry, Shelf};
use single::{OnDemand, Only};

pub(super) use shelf::FilterCounters;

/// The exports of a job, and what keeps them alive.
pub(super) struct Catalog {
    shelf: Arc<Shelf>,
    connections: Vec<Connection>,
    /// Those that are opened by their first clients.
    late: Vec<Arc<Late>>,
    /// The size of the only image, where there is just one.
    pub(super) size: Option<u64>,
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

    /// What one source is served as.
    async fn entry(
        &mut self,
        job: &ServeJob,
        served: &ServedSource,
        observer: &Arc<Observer>,
    ) -> Result<Entry, Failure> {
        let exports = self.open_source(job, served, observer).await?;
        let has_names = has_names(&served.source) && job.exports.len() == 1;
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
        let entry = Entry {
            name: served.name.clone().unwrap_or_default(),
            description: served.description.clone(),
            exports: filters.exports(),
            filters,
            has_names,
        };
        if let Err(failure) = self.look_at(&entry, job, served).await {
            entry.exports.close().await;
            return Err(failure);
        }
        Ok(entry)
    }

    /// The exports of a source, without filters.
    async fn open_source(
        &mut self,
        job: &ServeJob,
        served: &ServedSource,
        observer: &Arc<Observer>,
    ) -> Result<Arc<dyn Exports>, Failure> {
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
        let explain = |error| unopened(error, read_only);
        let source = &served.source;
        let is_cheap = matches!(
            source.kind(),
            EndpointKind::File(_) | EndpointKind::Split(_)
        );
        if is_cheap && served.open == Opening::OnDemand {
            let opened = open_device(source, access, &options).await;
            let OpenDevice { device, connection } = opened.map_err(explain)?;
            return Ok(match connection.format() {
                // What a client writes does not make it an image, however it begins.
                FormatKind::Raw => {
                    let endpoint = source.clone().taken_for(FormatKind::Raw);
                    Arc::new(OnDemand::new(endpoint, access, options))
                }
                // It is closed in good order at the end, and never open twice.
                _ => {
                    self.connections.push(connection);
                    Arc::new(SingleExport::new(device))
                }
            });
        }
        if served.open == Opening::FirstUse {
            let late = Arc::new(Late::new(source.clone(), access, options));
            self.late.push(Arc::clone(&late));
            return Ok(late);
        }
        let opened = open_exports(source, access, &options).await;
        let OpenExports {
            exports,
            connection,
        } = opened.map_err(explain)?;
        self.connections.push(connection);
        Ok(exports)
    }

    /// Opens an export once: what a filter has against the source is better said now than to the first client.
    async fn look_at(
        &mut self,
        entry: &Entry,
        job: &ServeJob,
        served: &ServedSource,
    ) -> Result<(), Failure> {
        let mut filters = job.filters.iter();
        let minded = filters.any(|named| named.filter().minds_openings());
        if entry.has_names || served.open == Opening::FirstUse || minded {
            return Ok(());
        }
        let (source, read_only) = (&served.source, job.server.read_only);
        let facts = ClientFacts {
            read_only,
            tls: false,
        };
        let open = match entry.exports.open(&entry.name, facts).await {
            Ok(open) => open,
            Err(error) if !job.filters.is_empty() => {
                let failure = unopened(error, read_only);
                return Err(failure.note(format!("it is in front of {source}")));
            }
            Err(_) => {
                self.size = None;
                return Ok(());
            }
        };
        let info = open.device.info();
        self.size = Some(info.size);
        let missing = |context: &&Context| !info.contexts.contains(context);
        match job.contexts.iter().find(missing) {
            Some(context) => Err(Failure::failed(format!(
                "{source}: there is no {context} to be served"
            ))),
            None => Ok(()),
        }
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

/// The failure to open a source.
fn unopened(error: Error, read_only: bool) -> Failure {
    let advice = hints::for_serving(&error).filter(|_| !read_only);
    let failure = Failure::from(error);
    match advice {
        // It helps more than what is said of such errors elsewhere.
        Some(advice) => failure.without_hint().hint(advice),
        None => failure,
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
