//! Endpoints become the exports of a server.

use std::sync::Arc;

use crate::{
    block::{
        Access, BlockDevice, BoxFuture, ClientFacts, DirectoryExports, ExportEntry, Exports,
        OpenExport, Result, SingleExport, no_such_export,
    },
    client::Pool,
};

use super::{
    Connection, Endpoint, EndpointKind, OpenDevice, OpenOptions,
    formats::interpret,
    open::{open_device, opening},
    servers::{open_pool, start_script},
};

/// The opened exports of an endpoint.
pub struct OpenExports {
    /// The exports.
    pub exports: Arc<dyn Exports>,
    /// What keeps them alive.
    pub connection: Connection,
}

/// Opens an endpoint to serve it: a script or a directory has exports of its own, everything else is the
/// default export. An NBD server has as many connections as `options` say, which are opened again when they
/// are lost. Their owner [closes](Exports::close) them before the connection.
///
/// # Errors
/// As [`open_device`].
pub async fn open_exports(
    endpoint: &Endpoint,
    access: Access,
    options: &OpenOptions,
) -> Result<OpenExports> {
    if let Some((pool, connection)) = open_pool(endpoint, options).await? {
        if !endpoint.is_bytes() {
            let device = Arc::new(pool) as Arc<dyn BlockDevice>;
            let opened = OpenDevice { device, connection };
            let opened = interpret(endpoint, access, options, opened).await?;
            return Ok(OpenExports {
                exports: Arc::new(SingleExport::new(opened.device)),
                connection: opened.connection,
            });
        }
        return Ok(OpenExports {
            exports: Arc::new(Proxy(pool)),
            connection,
        });
    }
    let exports: Arc<dyn Exports> = match endpoint.kind() {
        EndpointKind::Script(script) if endpoint.is_bytes() => {
            Arc::new(start_script(endpoint, script, options).await?)
        }
        EndpointKind::Directory(path) if endpoint.is_bytes() => {
            let directory = DirectoryExports::open(path, access);
            Arc::new(directory.map_err(opening(endpoint))?)
        }
        _ => {
            let OpenDevice { device, connection } = open_device(endpoint, access, options).await?;
            return Ok(OpenExports {
                exports: Arc::new(SingleExport::new(device)),
                connection,
            });
        }
    };
    Ok(OpenExports {
        exports,
        connection: Connection::default(),
    })
}

/// Another server. Each client gets a handle of its own to the connections, so that each is told of writes that
/// were lost.
struct Proxy(Pool);

impl Exports for Proxy {
    fn list(&self, _: ClientFacts) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        let entry = ExportEntry {
            name: String::new(),
            description: self.0.info().description.clone(),
        };
        Box::pin(async move { Ok(vec![entry]) })
    }

    fn open<'a>(&'a self, name: &'a str, _: ClientFacts) -> BoxFuture<'a, Result<OpenExport>> {
        Box::pin(async move {
            match name {
                "" => Ok(OpenExport::new(Arc::new(self.0.clone()))),
                _ => Err(no_such_export()),
            }
        })
    }
}
