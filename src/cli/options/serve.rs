//! What `serve` is told, resolved: what is served, where, to whom, for how long.

use std::{ffi::OsString, path::PathBuf};

use crate::{endpoint::Endpoint, server::ServerOptions};

use super::{
    super::{
        args::{Common, ServeArgs},
        failure::Failure,
    },
    Timeouts, seekable,
};

/// A resolved `serve`.
#[derive(Debug)]
pub(crate) struct ServeJob {
    /// What is served. The first one is the default export, whatever its name.
    pub(crate) exports: Vec<ServedSource>,
    /// Whether the only source is every client's, whatever the name of the export that it asks for.
    pub(crate) any_name: bool,
    /// The export that the URIs name, those of [`run`](Self::run) too.
    pub(crate) uri_export: String,
    /// Where it is served; nowhere means at the sockets of systemd socket activation.
    pub(crate) listen: Vec<Place>,
    /// How the server behaves: limits, what it offers, whether it is read-only.
    pub(crate) server: ServerOptions,
    pub(crate) tls: TlsJob,
    /// When it ends by itself.
    pub(crate) stay: Stay,
    /// A command that is run by the shell once clients can connect; the server ends with it, and its exit
    /// code is the server's. Before it stand shell variables that say where the server is.
    pub(crate) run: Option<OsString>,
    /// The file that the process's number is written to once clients can connect.
    pub(crate) pidfile: Option<PathBuf>,
    /// Whether it goes to the background once clients can connect.
    pub(crate) background: bool,
    /// Whether it ends with the process that started it.
    pub(crate) exit_with_parent: bool,
    /// Who it becomes when it listens.
    pub(crate) identity: Identity,
    /// Whether all of its memory stays in memory, so that it can hold the swap space of this machine.
    pub(crate) lock_memory: bool,
    /// A file that gets a line of JSON for each connection and each failure.
    pub(crate) log: Option<LogJob>,
    /// `ADDR:PORT` where counters are told over HTTP.
    pub(crate) metrics: Option<String>,
    /// Connections to a source that is another NBD server.
    pub(crate) connections: usize,
    /// How many attempts in a row to open a lost one again may fail.
    pub(crate) retries: u32,
    /// How long that server is waited for.
    pub(crate) timeouts: Timeouts,
    /// Whether the URIs are printed.
    pub(crate) print_uri: bool,
    pub(crate) quiet: bool,
    pub(crate) verbose: bool,
}

/// An image that is served.
#[derive(Clone, Debug)]
pub(crate) struct ServedSource {
    /// The name of its export. Not of a source that has exports of its own.
    pub(crate) name: Option<String>,
    pub(crate) source: Endpoint,
    /// What lists say of it; the source's own description without it.
    pub(crate) description: Option<String>,
    /// When it is opened.
    pub(crate) open: Opening,
}

/// When a source is opened that can be opened again and again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Opening {
    /// At the start to see whether it can be, and again when the first client comes; it is closed when
    /// the last one goes.
    #[default]
    OnDemand,
    /// At the start, for good.
    AtStart,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A unix socket at this path.
    Unix(PathBuf),
    /// A unix socket in a directory of its own, which is removed at the end.
    PrivateUnix,
    /// `ADDR:PORT`; an empty address is every one of this machine, IPv6 and IPv4.
    Tcp(String),
    /// A port of AF_VSOCK, for any context identifier.
    Vsock(u32),
    /// Standard input and output are the only connection (inetd).
    Standard,
}

/// Whether and how there is TLS.
#[derive(Clone, Debug, Default)]
pub(crate) struct TlsJob {
    pub(crate) mode: TlsMode,
    /// The directory with ca-cert.pem, server-cert.pem, server-key.pem.
    pub(crate) certificates: Option<PathBuf>,
    /// Whether clients must show a certificate.
    pub(crate) verify_peer: bool,
}

/// Whether clients get TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum TlsMode {
    #[default]
    Off,
    /// Those who ask for it.
    On,
    /// All: without it nothing is said.
    Require,
}

/// When a server ends by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Stay {
    /// Never.
    #[default]
    Persistent,
    /// When the last client of some has gone.
    Once,
}

/// A user and a group, by their numbers; as before where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) user: Option<u32>,
    pub(crate) group: Option<u32>,
}

/// A log for programs.
#[derive(Clone, Debug)]
pub(crate) struct LogJob {
    pub(crate) path: PathBuf,
    /// Whether each request gets a line.
    pub(crate) requests: bool,
}

impl ServeJob {
    /// A server of `exports` that does nothing beyond serving.
    pub(crate) fn new(exports: Vec<ServedSource>) -> Self {
        Self {
            exports,
            any_name: false,
            uri_export: String::new(),
            listen: Vec::new(),
            server: ServerOptions::default(),
            tls: TlsJob::default(),
            stay: Stay::default(),
            run: None,
            pidfile: None,
            background: false,
            exit_with_parent: false,
            identity: Identity::default(),
            lock_memory: false,
            log: None,
            metrics: None,
            connections: 4,
            retries: 8,
            timeouts: Timeouts::PATIENT,
            print_uri: false,
            quiet: false,
            verbose: false,
        }
    }

    pub(crate) fn resolve(args: ServeArgs, common: Common) -> Result<Self, Failure> {
        let source = ServedSource {
            name: None,
            source: seekable(&args.source)?,
            description: None,
            open: Opening::OnDemand,
        };
        let unix = args.unix.into_iter().map(Place::Unix);
        let tcp = args.listen.into_iter().map(Place::Tcp);
        let mut job = Self::new(vec![source]);
        job.listen = unix.chain(tcp).collect();
        job.server.read_only = args.read_only;
        job.print_uri = args.print_uri;
        job.quiet = common.quiet;
        job.verbose = common.verbose;
        Ok(job)
    }
}
