//! What `serve` is told, resolved: what is served, where, to whom, for how long.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::PathBuf,
};

use crate::{
    block::Context,
    endpoint::{Endpoint, EndpointKind, printable},
    filter::NamedFilter,
    server::ServerOptions,
};

use super::{
    super::{
        args::{Common, ServeArgs, TlsArg},
        failure::Failure,
    },
    Timeouts, Trust, filters,
    formats::kind,
};

/// The longest name of an export in bytes (NBD's section "Conventions" on strings).
const LONGEST_NAME: usize = 4096;

/// A resolved `serve`.
#[derive(Debug)]
pub(crate) struct ServeJob {
    /// What is served. The first one is the default export, whatever its name.
    pub(crate) exports: Vec<ServedSource>,
    /// What stands in front of each of them, the first one nearest to the clients.
    pub(crate) filters: Vec<NamedFilter>,
    pub(crate) trust: Trust,
    /// What the only source must be able to tell of its extents, or nothing is served.
    pub(crate) contexts: Vec<Context>,
    /// Whether the only source is every client's, whatever the name of the export that it asks for.
    pub(crate) any_name: bool,
    /// What clients know the exports by, where that is not what their sources say.
    pub(crate) names: Option<ExportNames>,
    /// The export that the URIs name, those of [`run`](Self::run) too.
    pub(crate) uri_export: String,
    /// Where it is served; nowhere means at the sockets of systemd socket activation.
    pub(crate) listen: Vec<Place>,
    /// The security label of the sockets that are made for that.
    pub(crate) socket_label: Option<String>,
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
    /// Whether people are told that clients can connect, and where.
    pub(crate) greets: bool,
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
    /// When the first client comes, for good.
    FirstUse,
}

/// What clients know exports by.
#[derive(Clone, Debug, Default)]
pub(crate) struct ExportNames {
    /// The name that the empty one stands for; as the source has it without one.
    pub(crate) default: Option<String>,
    pub(crate) listed: Listed,
    /// Whether only [known](Self::known) names can be opened.
    pub(crate) strict: bool,
    pub(crate) known: Vec<String>,
    pub(crate) described: Described,
}

/// Which exports are listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Listed {
    #[default]
    AsTheyAre,
    /// None, and who asks is refused.
    Refused,
    Nothing,
    /// The default one.
    Default,
    /// Those whose names are known.
    Known,
}

/// What people are told of exports.
#[derive(Clone, Debug, Default)]
pub(crate) enum Described {
    #[default]
    AsTheyAre,
    Nothing,
    As(String),
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
            filters: Vec::new(),
            trust: Trust::default(),
            contexts: Vec::new(),
            any_name: false,
            names: None,
            uri_export: String::new(),
            listen: Vec::new(),
            socket_label: None,
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
            greets: true,
            print_uri: false,
            quiet: false,
            verbose: false,
        }
    }

    pub(crate) fn resolve(args: ServeArgs, common: Common) -> Result<Self, Failure> {
        let mut exports = Vec::new();
        if let Some(source) = &args.source {
            exports.push(ServedSource {
                name: None,
                source: served(source)?.interpreted(kind(args.formats.format)),
                description: args.description,
                open: Opening::OnDemand,
            });
        }
        for text in &args.export {
            let mut export = named(text)?;
            export.source = export.source.interpreted(kind(args.formats.format));
            exports.push(export);
        }
        let mut job = Self::new(exports);
        check_names(&job.exports)?;
        job.filters = filters(&args.filters)?;
        for export in &mut job.exports {
            export.source = export.source.clone().probed_behind(&job.filters);
        }
        job.trust = Trust::resolve(&args.formats.follow);
        let unix = args.unix.into_iter().map(|path| match path.as_os_str() {
            path if path == "-" => Place::PrivateUnix,
            _ => Place::Unix(path),
        });
        let tcp = args.listen.into_iter().map(Place::Tcp);
        job.listen = unix
            .chain(tcp)
            .chain(args.vsock.into_iter().map(Place::Vsock))
            .collect();
        if job.listen.is_empty() && args.run.is_some() {
            job.listen.push(Place::PrivateUnix);
        }
        job.uri_export = match &job.exports[..] {
            [first, ..] => first.name.clone().unwrap_or_default(),
            [] => String::new(),
        };
        job.server.read_only = args.read_only;
        job.server.max_connections = args.max_connections.into();
        job.server.handshake_timeout = args.handshake_timeout;
        job.server.idle_timeout = args.idle_timeout;
        job.server.zero_copy = !args.no_zero_copy;
        job.tls = TlsJob {
            mode: match args.tls {
                TlsArg::Off => TlsMode::Off,
                TlsArg::On => TlsMode::On,
                TlsArg::Require => TlsMode::Require,
            },
            certificates: args.tls_certificates,
            verify_peer: args.tls_verify_peer,
        };
        job.stay = match args.once {
            true => Stay::Once,
            false => Stay::Persistent,
        };
        job.run = args.run;
        job.pidfile = args.pidfile;
        job.background = args.daemon;
        job.exit_with_parent = args.exit_with_parent;
        let requests = args.log_requests;
        job.log = args.log.map(|path| LogJob { path, requests });
        job.metrics = args.metrics;
        job.connections = args.connections.into();
        job.retries = args.retries;
        job.timeouts = match args.timeouts.timeout {
            Some(_) => Timeouts::resolve(args.timeouts),
            None => Timeouts::PATIENT,
        };
        job.print_uri = args.print_uri;
        job.quiet = common.quiet;
        job.verbose = common.verbose;
        Ok(job)
    }
}

/// `NAME=SOURCE`.
fn named(text: &OsStr) -> Result<ServedSource, Failure> {
    let bytes = text.as_bytes();
    let wrong = || {
        let shown = printable(text);
        Failure::usage(format!("--export {shown}: it has no name")).hint("write NAME=SOURCE")
    };
    let end = bytes
        .iter()
        .position(|byte| *byte == b'=')
        .ok_or_else(wrong)?;
    let name = std::str::from_utf8(&bytes[..end]).map_err(|_| wrong())?;
    if name.len() > LONGEST_NAME {
        return Err(Failure::usage(format!(
            "--export: a name has {LONGEST_NAME} bytes at most"
        )));
    }
    Ok(ServedSource {
        name: Some(name.to_owned()),
        source: served(OsStr::from_bytes(&bytes[end + 1..]))?,
        description: None,
        open: Opening::OnDemand,
    })
}

/// One name is one export, and what brings names of its own stands alone.
fn check_names(exports: &[ServedSource]) -> Result<(), Failure> {
    for (index, one) in exports.iter().enumerate() {
        let name = one.name.as_deref().unwrap_or_default();
        let same = |other: &ServedSource| other.name.as_deref().unwrap_or_default() == name;
        if exports[..index].iter().any(same) {
            return Err(Failure::usage(format!("two exports are called {name:?}")));
        }
        if matches!(one.source.kind(), EndpointKind::Directory(_))
            && (exports.len() > 1 || one.name.is_some())
        {
            let source = &one.source;
            return Err(Failure::usage(format!(
                "{source}: it has exports with names of their own: serve it alone"
            )));
        }
    }
    Ok(())
}

/// An endpoint that can be served.
fn served(text: &OsStr) -> Result<Endpoint, Failure> {
    let endpoint = Endpoint::parse(text)?;
    match endpoint.kind() {
        EndpointKind::Standard | EndpointKind::Null(None) => Err(Failure::usage(format!(
            "{endpoint}: a stream cannot be served"
        ))
        .hint("a size makes it an image: null:1G")),
        _ => Ok(endpoint),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{
        super::super::args::{Cli, Command},
        *,
    };

    fn resolve(words: &[&str]) -> Result<ServeJob, String> {
        let words = ["blockferry", "serve"].iter().chain(words);
        let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
        let Command::Serve(args) = cli.command else {
            panic!("another command");
        };
        ServeJob::resolve(args, cli.common).map_err(|failure| failure.to_string())
    }

    #[test]
    fn exports_have_names_and_the_first_is_in_the_uris() {
        let job = resolve(&["-e", "a=memory:1M", "-e", "b=x=y.raw", "-U", "s"]).expect("a job");
        let names: Vec<_> = job
            .exports
            .iter()
            .map(|export| export.name.as_deref())
            .collect();
        assert_eq!(names, [Some("a"), Some("b")]);
        assert_eq!(job.exports[1].source.to_string(), "x=y.raw");
        assert_eq!(job.uri_export, "a");
        let job = resolve(&["memory:1M", "-e", "a=memory:2M", "-U", "s"]).expect("a job");
        assert_eq!(job.uri_export, "");
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        assert!(resolve(&["-U", "s"]).is_err(), "nothing to serve");
        let twice = resolve(&["-e", "a=memory:1M", "-e", "a=memory:1M"]);
        assert!(
            twice
                .expect_err("twice")
                .contains("two exports are called \"a\"")
        );
        assert!(
            resolve(&["-e", "memory:1M"])
                .expect_err("no name")
                .contains("NAME=SOURCE")
        );
        let two = resolve(&["dir:/tmp", "-e", "a=memory:1M"]);
        assert!(two.expect_err("two").contains("serve it alone"));
        assert!(resolve(&["memory:1M", "--daemon", "--run", "true"]).is_err());
        assert!(resolve(&["-"]).is_err() && resolve(&["null:"]).is_err());
    }

    #[test]
    fn a_command_gets_a_private_socket_unless_there_is_a_place() {
        let job = resolve(&["memory:1M", "--run", "true"]).expect("a job");
        assert_eq!(job.listen, [Place::PrivateUnix]);
        let job = resolve(&["memory:1M", "--run", "true", "--listen", ":0"]).expect("a job");
        assert_eq!(job.listen, [Place::Tcp(":0".to_owned())]);
    }
}
