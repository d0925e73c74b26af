//! Endpoints that somebody else answers for: NBD servers, one connection or a pool of them; servers that are started for
//! an endpoint; scripts.

use std::sync::Arc;

use crate::{
    block::{Access, ClientFacts, Error, ErrorKind, Exports, Result},
    client::{Client, ConnectOptions, Gone, Pool, PoolOptions},
    proto::{NbdUri, Transport},
    script::{Script, ScriptOptions},
};

use super::{
    Connection, Endpoint, EndpointKind, OpenDevice, OpenOptions, ServerChild, ServerCommand,
    open::{local, opening},
};

pub(super) async fn connect(
    uri: &NbdUri,
    name: &Arc<str>,
    gone: Option<Gone>,
    options: &OpenOptions,
) -> Result<OpenDevice> {
    let client = Client::connect(uri, &connecting(name, gone, options)).await?;
    Ok(OpenDevice {
        device: Arc::new(client.clone()),
        connection: Connection {
            client: Some(client),
            ..Connection::default()
        },
    })
}

fn connecting(name: &Arc<str>, gone: Option<Gone>, options: &OpenOptions) -> ConnectOptions {
    let mut connecting = ConnectOptions::default();
    connecting.name = Some(Arc::clone(name));
    connecting.gone = gone;
    connecting.contexts = options.contexts.clone();
    connecting.all_contexts = options.all_contexts;
    connecting.connect_timeout = options.connect_timeout;
    connecting.request_timeout = options.request_timeout;
    connecting.flush_timeout = options.flush_timeout;
    connecting
}

/// Opens a pool of connections to what `endpoint` is: an NBD server, which may be lost and found again, or a
/// command, which is gone when it is gone. `None` for everything else.
pub(super) async fn open_pool(
    endpoint: &Endpoint,
    options: &OpenOptions,
) -> Result<Option<(Pool, Connection)>> {
    let pooling = |retries| {
        let mut pooling = PoolOptions::default();
        pooling.connections = options.connections;
        pooling.retries = retries;
        pooling.observer = options.pool_observer.clone();
        pooling
    };
    let (pool, child) = match endpoint.kind() {
        EndpointKind::Nbd(uri) => {
            let connecting = connecting(endpoint.name(), None, options);
            let pool = Pool::connect(uri, &connecting, pooling(options.retries)).await?;
            (pool, None)
        }
        EndpointKind::Command(command) => {
            let mut child = ServerChild::start(command, options)?;
            let connecting = connecting(child.name(), Some(child.gone()), options);
            let pool = Pool::connect(&child.uri(), &connecting, pooling(0)).await;
            let pool = pool.map_err(|error| child.explain(error))?;
            (pool, Some(child))
        }
        _ => return Ok(None),
    };
    let connection = Connection {
        pool: Some(pool.clone()),
        child,
        ..Connection::default()
    };
    Ok(Some((pool, connection)))
}

pub(super) async fn start(command: &ServerCommand, options: &OpenOptions) -> Result<OpenDevice> {
    let mut child = ServerChild::start(command, options)?;
    let uri = child.uri();
    let name = Arc::clone(child.name());
    match connect(&uri, &name, Some(child.gone()), options).await {
        Ok(mut open) => {
            open.connection.child = Some(child);
            Ok(open)
        }
        Err(error) => Err(child.explain(error)),
    }
}

impl ServerChild {
    /// The URI of its default export, for this process.
    #[must_use]
    pub fn uri(&self) -> NbdUri {
        NbdUri {
            transport: Transport::Unix {
                path: self.socket(),
            },
            tls: false,
            user: None,
            export: String::new(),
            parameters: Vec::new(),
        }
    }

    /// The failure to connect, or what lies behind it: that the server has ended.
    #[must_use]
    pub fn explain(&mut self, error: Error) -> Error {
        match self.early_end() {
            Some(end) => {
                let message = format!("the command {} {end} before it answered", self.name());
                Error::with_message(ErrorKind::Refused, message)
            }
            None => error.on(self.name()),
        }
    }
}

/// Loads a script, each call of which may take as long as a flush: it may be one.
pub(super) async fn start_script(
    endpoint: &Endpoint,
    script: &ScriptOptions,
    options: &OpenOptions,
) -> Result<Script> {
    let mut script = script.clone();
    script.timeout = script.timeout.or(options.flush_timeout);
    Script::start(script).await.map_err(opening(endpoint))
}

/// The default export of a script.
pub(super) async fn script(
    endpoint: &Endpoint,
    script: &ScriptOptions,
    access: Access,
    options: &OpenOptions,
) -> Result<OpenDevice> {
    let script = start_script(endpoint, script, options).await?;
    let client = ClientFacts {
        read_only: access == Access::ReadOnly,
        tls: false,
    };
    let export = script.open("", client).await.map_err(opening(endpoint))?;
    let mut opened = local(export.device);
    opened.connection.script = Some(script);
    Ok(opened)
}
