//! TLS at the ends of connections: what it takes, and the handshake.

use std::time::Duration;

use crate::{
    cli::{
        failure::Failure,
        options::{Address, RelayJob, TcpAddress, TlsListenJob, TlsTargetJob},
    },
    tls::{
        self, Certificates, ClientOptions, ClientTls, ServerTls, Session, TlsStream, Verification,
    },
};

use super::link::Link;

/// What it takes to speak TLS to clients and to targets, where that is asked for.
pub(super) struct Tls {
    clients: Option<ServerTls>,
    /// For each of the targets.
    targets: Option<Vec<ClientTls>>,
}

impl Tls {
    /// # Errors
    /// When certificates cannot be read, or will not do.
    pub(super) fn new(job: &RelayJob) -> Result<Self, Failure> {
        let clients = job.tls_listen.as_ref().map(towards_clients);
        let targets = job.tls_target.as_ref().map(|tls| {
            let targets = job.targets.iter();
            targets.map(|target| towards_target(tls, target)).collect()
        });
        Ok(Self {
            clients: clients.transpose()?,
            targets: targets.transpose()?,
        })
    }

    /// A session with a client, if there is to be one.
    pub(super) fn with_client(&self) -> Option<tls::Result<Session>> {
        self.clients.as_ref().map(ServerTls::session)
    }

    /// A session with a target, by its place among them, if there is to be one.
    pub(super) fn with_target(&self, target: usize) -> Option<tls::Result<Session>> {
        let targets = self.targets.as_ref()?;
        targets.get(target).map(ClientTls::session)
    }
}

/// Does the handshake of `session` over `link`.
pub(super) async fn secured(
    link: Link,
    session: tls::Result<Session>,
    limit: Duration,
) -> tls::Result<Link> {
    let stream = TlsStream::handshake(link, session?, limit).await?;
    Ok(Link::Tls(Box::new(stream)))
}

fn towards_clients(job: &TlsListenJob) -> Result<ServerTls, Failure> {
    let tls = ServerTls::new(&job.directory, job.clients);
    match (tls.check(), job.clients) {
        (Ok(()), _) => Ok(tls),
        (Err(error @ tls::Error::File { .. }), clients) => {
            let needed = match clients {
                Verification::Off => "server-cert.pem and server-key.pem",
                Verification::On => {
                    "server-cert.pem, server-key.pem, and ca-cert.pem to verify clients"
                }
            };
            let failure = Failure::failed(format!("--tls-listen: {error}"));
            Err(failure.hint(format!("the directory needs {needed}")))
        }
        (Err(error), _) => Err(Failure::failed(format!("--tls-listen: {error}"))),
    }
}

fn towards_target(job: &TlsTargetJob, target: &Address) -> Result<ClientTls, Failure> {
    let host = match (&job.hostname, target) {
        (Some(name), _) => name,
        (
            None,
            Address::Tcp(TcpAddress {
                host: Some(host), ..
            }),
        ) => host,
        // Who has no host is this one.
        (None, _) => "localhost",
    };
    let certificates = match &job.certificates {
        Some(directory) => Certificates::Directory(directory.clone()),
        None => Certificates::FirstOf(Vec::new()),
    };
    let mut options = ClientOptions::new(host, certificates);
    options.verification = job.verification;
    let tls = ClientTls::new(options);
    let checked = tls.check();
    checked.map_err(|error| Failure::failed(format!("--tls-target: {target}: {error}")))?;
    Ok(tls)
}
