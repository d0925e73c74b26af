//! Where a server is reached: the sockets that it listens on, and what others are told of them.

use std::{
    fs::Permissions,
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
};

use tempfile::TempDir;

use crate::server::Listener;

use super::{
    super::super::{
        failure::Failure,
        options::{Place, ServeJob, TlsMode},
    },
    super::listen::{self, SocketFile, bind_tcp, bind_unix},
    label::Label,
    listen::{bind_vsock, uri_of},
    standard::{self, Bridge},
};

/// The sockets of a server. What they leave in the file system is removed when this is dropped.
#[derive(Default)]
pub(super) struct Places {
    /// To be taken by the server.
    pub(super) listeners: Vec<Listener>,
    /// The only client, when it is at the other end of standard input.
    pub(super) connected: Option<OwnedFd>,
    /// How clients name them.
    pub(super) uris: Vec<String>,
    /// The first TCP port.
    pub(super) port: Option<u16>,
    /// The first unix socket's path.
    pub(super) unix_socket: Option<String>,
    _bridge: Option<Bridge>,
    _files: Vec<SocketFile>,
    _directory: Option<TempDir>,
}

impl Places {
    /// Makes the sockets of a job; `activated` are those that this process was handed.
    pub(super) async fn open(job: &ServeJob, activated: Vec<Listener>) -> Result<Self, Failure> {
        let mut places = Self {
            listeners: activated,
            ..Self::default()
        };
        let label = job.socket_label.as_deref().map(Label::set).transpose()?;
        for place in &job.listen {
            places.add(place).await?;
        }
        if let Some(label) = label {
            label.clear()?;
        }
        // What only some clients want is not named to all.
        let tls = job.tls.mode == TlsMode::Require;
        let certificates = certificates(job).filter(|_| tls);
        let uris = places.listeners.iter();
        let uris = uris.filter_map(|listener| {
            let mut uri = uri_of(listener, tls, &job.uri_export)?;
            let directory = certificates.clone();
            let directory = directory.map(|directory| ("tls-certificates".to_owned(), directory));
            uri.parameters.extend(directory);
            Some(uri.to_string())
        });
        places.uris = uris.collect();
        for listener in &places.listeners {
            match listener {
                Listener::Tcp(listener) if places.port.is_none() => {
                    places.port = listener.local_addr().ok().map(|address| address.port());
                }
                Listener::Unix(listener) if places.unix_socket.is_none() => {
                    let address = listener.local_addr().ok();
                    let path = address.as_ref().and_then(|address| address.as_pathname());
                    let path = path.and_then(|path| std::path::absolute(path).ok());
                    places.unix_socket = path.map(|path| path.to_string_lossy().into_owned());
                }
                _ => {}
            }
        }
        Ok(places)
    }

    async fn add(&mut self, place: &Place) -> Result<(), Failure> {
        match place {
            Place::Unix(path) => {
                let (listener, file) = bind_unix(path).await?;
                self.listeners.push(listener.into());
                self._files.push(file);
            }
            Place::PrivateUnix => {
                let directory = tempfile::Builder::new()
                    .prefix("blockferry-")
                    .permissions(Permissions::from_mode(0o700))
                    .tempdir();
                let directory = directory.map_err(|error| {
                    Failure::system("cannot make a directory for the socket", &error)
                })?;
                let (listener, file) = bind_unix(&directory.path().join("socket")).await?;
                self.listeners.push(listener.into());
                self._files.push(file);
                self._directory = Some(directory);
            }
            Place::Tcp(address) => self.listeners.push(bind_tcp(address)?.into()),
            Place::Vsock(port) => self.listeners.push(bind_vsock(*port)?),
            Place::Standard => {
                let connected = standard::connect();
                let (socket, bridge) =
                    connected.map_err(|error| Failure::system("standard input", &error))?;
                self.connected = Some(socket);
                self._bridge = bridge;
            }
        }
        Ok(())
    }

    /// Shell variables that say where the server is, each on a line, as nbdkit's `--run` gives them to its
    /// command.
    pub(super) fn variables(&self, job: &ServeJob) -> String {
        let uri = self.uris.first().map_or("", String::as_str);
        let port = self.port.map(|port| port.to_string()).unwrap_or_default();
        let socket = self.unix_socket.as_deref().unwrap_or_default();
        let tls = match job.tls.mode {
            TlsMode::Off => "",
            TlsMode::On => "1",
            TlsMode::Require => "2",
        };
        let certificates = certificates(job).unwrap_or_default();
        let variables = [
            ("uri", uri),
            ("nbd", uri),
            ("port", &port),
            ("unixsocket", socket),
            ("exportname", &job.uri_export),
            ("tls", tls),
            ("tls_certificates", &certificates),
        ];
        let lines = variables.map(|(name, value)| format!("{name}={}\n", quoted(value)));
        lines.concat()
    }
}

/// The directory of the certificates, which clients on this machine need to know the authority.
fn certificates(job: &ServeJob) -> Option<String> {
    let directory = job.tls.certificates.as_deref()?;
    let directory = std::path::absolute(directory).ok()?;
    directory.to_str().map(str::to_owned)
}

/// A word that a shell reads as `text`.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// The sockets that this process was handed by systemd socket activation.
pub(super) fn activated() -> Result<Vec<Listener>, Failure> {
    let sockets = listen::activated()?;
    match sockets.is_empty() {
        false => Ok(sockets),
        true => Err(Failure::usage("there is nowhere to listen")
            .hint("give --unix PATH or --listen ADDR:PORT, or start it by socket activation")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_quoted_for_the_shell() {
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("a b$(c)"), "'a b$(c)'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
    }
}
