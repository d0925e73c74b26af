//! Endpoints become the exports of a server.

use std::sync::Arc;

use crate::{
    block::{Access, DirectoryExports, Exports, Result, SingleExport},
    script::Script,
};

use super::{
    Connection, Endpoint, EndpointKind, OpenDevice, OpenOptions,
    open::{open_device, opening},
};

/// The opened exports of an endpoint.
pub struct OpenExports {
    /// The exports.
    pub exports: Arc<dyn Exports>,
    /// What keeps them alive.
    pub connection: Connection,
}

/// Opens an endpoint to serve it: a script or a directory has exports of its own, everything else is the
/// default export. Their owner [closes](Exports::close) them before the connection.
///
/// # Errors
/// As [`open_device`].
pub async fn open_exports(
    endpoint: &Endpoint,
    access: Access,
    options: &OpenOptions,
) -> Result<OpenExports> {
    let exports: Arc<dyn Exports> = match endpoint.kind() {
        EndpointKind::Script(script) => {
            let script = Script::start(script.clone()).await;
            Arc::new(script.map_err(opening(endpoint))?)
        }
        EndpointKind::Directory(path) => {
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
