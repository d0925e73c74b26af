//! What `serve` takes.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum, ValueHint};

use crate::copy::CopyOptions;

use super::{
    FilterArgs, FormatArgs, TimeoutArgs, brief, default_connections, sizes::parse_seconds, whole,
};

/// Serve images over NBD.
///
/// A SIGINT or SIGTERM ends it: requests in flight are finished, everything is flushed, and the exit code is 0. A
/// second one ends it at once.
#[derive(Args, Debug)]
#[command(after_help = brief("serve"), after_long_help = whole("serve", None, &[SERVED]))]
pub(crate) struct ServeArgs {
    /// What to serve: an endpoint, see 'blockferry sources'. It is the default export.
    #[arg(value_hint = ValueHint::AnyPath, required_unless_present = "export")]
    pub(crate) source: Option<OsString>,
    /// Serve SOURCE as the export NAME; several are possible. Without a source that has no name, the first one
    /// is the default export, too.
    #[arg(short, long, value_name = "NAME=SOURCE")]
    pub(crate) export: Vec<OsString>,
    /// What lists say of the source that has no name.
    #[arg(long, value_name = "TEXT", requires = "source")]
    pub(crate) description: Option<String>,
    #[command(flatten, next_help_heading = "Formats")]
    pub(crate) filters: FilterArgs,
    #[command(flatten, next_help_heading = "Formats")]
    pub(crate) formats: FormatArgs,

    /// Listen on a Unix socket at PATH, which is removed at the end; '-' takes a private one.
    #[arg(help_heading = "Places to listen at", short = 'U', long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) unix: Vec<PathBuf>,
    /// Listen on a TCP address such as 127.0.0.1:10809 or [::1]:0; an address left out is every one, IPv6 and
    /// IPv4; port 0 takes a free one and prints the URI.
    #[arg(
        help_heading = "Places to listen at",
        short,
        long,
        value_name = "ADDR:PORT"
    )]
    pub(crate) listen: Vec<String>,
    /// Listen on a port of AF_VSOCK, for virtual machines of this host.
    #[arg(help_heading = "Places to listen at", long, value_name = "PORT")]
    pub(crate) vsock: Vec<u32>,
    /// Print the URIs to standard output, one a line, once clients can connect.
    #[arg(help_heading = "Places to listen at", long)]
    pub(crate) print_uri: bool,

    /// Encrypt: off; on, for clients that ask for it; require, refusing all others.
    #[arg(help_heading = "TLS", long, value_name = "MODE", default_value = "off")]
    pub(crate) tls: TlsArg,
    /// The directory with server-cert.pem, server-key.pem and ca-cert.pem.
    #[arg(help_heading = "TLS", long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) tls_certificates: Option<PathBuf>,
    /// Refuse clients without a certificate that ca-cert.pem has signed.
    #[arg(help_heading = "TLS", long)]
    pub(crate) tls_verify_peer: bool,

    /// Refuse writes.
    #[arg(help_heading = "Clients", short, long)]
    pub(crate) read_only: bool,
    /// Copy what is read instead of sending the pages of a file: for files that others change meanwhile.
    #[arg(help_heading = "Clients", long)]
    pub(crate) no_zero_copy: bool,
    /// Clients at a time; more of them wait to be accepted.
    #[arg(help_heading = "Clients", long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) max_connections: u16,
    /// Seconds that a client may take until it uses an export.
    #[arg(help_heading = "Clients", long, value_name = "SECONDS", default_value = "10", value_parser = parse_seconds)]
    pub(crate) handshake_timeout: Duration,
    /// Disconnect clients that keep silent for so many seconds.
    #[arg(help_heading = "Clients", long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub(crate) idle_timeout: Option<Duration>,

    /// End when the last client has gone.
    #[arg(
        help_heading = "Beginning and end",
        long,
        overrides_with = "persistent"
    )]
    pub(crate) once: bool,
    /// Go on when the last client has gone; the default.
    #[arg(help_heading = "Beginning and end", long, overrides_with = "once")]
    pub(crate) persistent: bool,
    /// Run CMD by the shell, with the variables uri, unixsocket, port, exportname and tls, and end with it and
    /// its exit code. Without a place to listen at, a private Unix socket is taken.
    #[arg(help_heading = "Beginning and end", long, value_name = "CMD", conflicts_with = "daemon", value_hint = ValueHint::CommandString)]
    pub(crate) run: Option<OsString>,
    /// Go to the background once clients can connect.
    #[arg(
        help_heading = "Beginning and end",
        long,
        conflicts_with = "exit_with_parent"
    )]
    pub(crate) daemon: bool,
    /// Write the process's number to FILE once clients can connect; it is removed at the end.
    #[arg(help_heading = "Beginning and end", short = 'P', long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) pidfile: Option<PathBuf>,
    /// End when the process that started this one ends.
    #[arg(help_heading = "Beginning and end", long)]
    pub(crate) exit_with_parent: bool,

    /// Append a line of JSON to FILE for each connection and each failure; '-': to standard error.
    #[arg(help_heading = "Log and metrics", long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) log: Option<PathBuf>,
    /// A line for each request, too.
    #[arg(help_heading = "Log and metrics", long, requires = "log")]
    pub(crate) log_requests: bool,
    /// Tell connections, requests, bytes, latencies and errors to Prometheus at http://ADDR:PORT/metrics.
    #[arg(help_heading = "Log and metrics", long, value_name = "ADDR:PORT")]
    pub(crate) metrics: Option<String>,

    /// Connections to a source that is an NBD server, from 1 to 64.
    #[arg(help_heading = "Sources that are servers", short = 'C', long, value_name = "N", default_value_t = default_connections(),
          value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) connections: u16,
    /// How many attempts in a row to open a lost one again may fail before its clients hear of it.
    #[arg(help_heading = "Sources that are servers", long, value_name = "N", default_value_t = CopyOptions::default().retries,
          value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub(crate) retries: u32,
    #[command(flatten, next_help_heading = "Sources that are servers")]
    pub(crate) timeouts: TimeoutArgs,
}

/// Whether a server encrypts.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum TlsArg {
    Off,
    On,
    Require,
}

const SERVED: &str = "\
Without --unix, --listen, --vsock and --run, the sockets of systemd socket activation are served.

'dir:PATH' serves the files of a directory as exports of their names.";
