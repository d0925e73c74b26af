//! What `relay` takes.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum, ValueHint};

use super::{
    brief,
    sizes::{Size, parse_seconds},
    whole,
};

/// Forward byte streams between sockets.
///
/// Each client of LISTEN is connected to TARGET, until a SIGINT or SIGTERM comes. Then no more clients are accepted, the others may finish for --drain-timeout, and the exit code is 0; a
/// second signal ends it at once.
#[derive(Args, Debug)]
#[command(after_help = brief("relay"), after_long_help = whole("relay", None, &[ADDRESSES]))]
pub(crate) struct RelayArgs {
    /// Where clients come in: an address, see below.
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) listen: OsString,
    /// Where they are connected to: an address, see below. Of several, each client gets the first one that
    /// answers.
    #[arg(required = true, value_hint = ValueHint::AnyPath)]
    pub(crate) target: Vec<OsString>,

    /// By which way bytes go: auto, whichever is faster; splice, through a kernel pipe without a copy; copy,
    /// through memory.
    #[arg(long, value_name = "MODE", default_value = "auto")]
    pub(crate) mode: ModeArg,
    /// Clients at a time; more of them wait to be accepted. Without it, and at most, as many as there can be
    /// descriptors for.
    #[arg(help_heading = "Limits", long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MOST_CONNECTIONS))]
    pub(crate) max_connections: Option<u32>,

    /// Break off connections on which nothing moved for so many seconds, either way.
    #[arg(help_heading = "Limits", long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub(crate) idle_timeout: Option<Duration>,
    /// Once one side has ended, break off when nothing came from the other for so many seconds; without it as
    /// --idle-timeout, and with TLS an hour.
    #[arg(help_heading = "Limits", long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub(crate) half_close_timeout: Option<Duration>,
    /// Seconds that a target may take to answer, with all the addresses of its name; and that a handshake of TLS
    /// may take.
    #[arg(help_heading = "Limits", long, value_name = "SECONDS", default_value = "10", value_parser = parse_seconds)]
    pub(crate) connect_timeout: Duration,
    /// Seconds that connections may take to end after the first SIGINT or SIGTERM; then they are broken off.
    #[arg(help_heading = "Limits", long, value_name = "SECONDS", default_value = "30", value_parser = parse_seconds)]
    pub(crate) drain_timeout: Duration,

    /// Bytes a second at most, each way, of all connections together; 0: no limit.
    #[arg(help_heading = "Limits", long, value_name = "BYTES")]
    pub(crate) rate: Option<Size>,
    /// Bytes a second at most, each way, of each connection; 0: no limit. With --rate both hold.
    #[arg(help_heading = "Limits", long, value_name = "BYTES")]
    pub(crate) connection_rate: Option<Size>,

    /// Tell targets who their client is, ahead of its first byte, by the PROXY protocol: v1, a line of text; v2,
    /// binary, with what TLS knows of the client. Targets have to expect it.
    #[arg(
        help_heading = "TLS and the PROXY protocol",
        long,
        value_name = "VERSION"
    )]
    pub(crate) proxy_protocol: Option<ProxyProtocolArg>,
    /// Speak TLS to clients, with the server-cert.pem and server-key.pem in DIR.
    #[arg(help_heading = "TLS and the PROXY protocol", long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) tls_listen: Option<PathBuf>,
    /// Refuse clients without a certificate that ca-cert.pem in the directory of --tls-listen has signed.
    #[arg(
        help_heading = "TLS and the PROXY protocol",
        long,
        requires = "tls_listen"
    )]
    pub(crate) tls_verify_peer: bool,
    /// Speak TLS to targets, whose certificates must be good and for the host in their address.
    #[arg(help_heading = "TLS and the PROXY protocol", long)]
    pub(crate) tls_target: bool,
    /// The directory with ca-cert.pem, the authorities that targets are trusted by, and, to be shown to targets,
    /// client-cert.pem and client-key.pem; without it the system says who is trusted.
    #[arg(help_heading = "TLS and the PROXY protocol", long, value_name = "DIR", value_hint = ValueHint::DirPath, requires = "tls_target")]
    pub(crate) tls_certificates: Option<PathBuf>,
    /// Whom the targets' certificates must be for, instead of the host in their address.
    #[arg(
        help_heading = "TLS and the PROXY protocol",
        long,
        value_name = "NAME",
        requires = "tls_target"
    )]
    pub(crate) tls_hostname: Option<String>,
    /// Take any certificate of a target: whoever is in between can read and change everything.
    #[arg(
        help_heading = "TLS and the PROXY protocol",
        long,
        requires = "tls_target"
    )]
    pub(crate) no_tls_verify_target: bool,

    /// Append a line of JSON to FILE for each connection that is over and each failure; '-': to standard error.
    /// SIGHUP opens the file again.
    #[arg(help_heading = "Log and metrics", long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) log: Option<PathBuf>,
    /// Tell connections, bytes, failures and pipes to Prometheus at http://ADDR:PORT/metrics.
    #[arg(help_heading = "Log and metrics", long, value_name = "ADDR:PORT")]
    pub(crate) metrics: Option<String>,
}

/// The most that `--max-connections` takes: more than a process has descriptors.
const MOST_CONNECTIONS: i64 = 1 << 24;

/// By which way bytes go.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ModeArg {
    Auto,
    Splice,
    Copy,
}

/// How targets are told who their client is.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ProxyProtocolArg {
    V1,
    V2,
}

const ADDRESSES: &str = "\
Addresses:
  tcp:HOST:PORT  TCP; to listen, no host or '*' is every address of this machine, IPv6 and IPv4, and
                 port 0 is a free one, which is told. IPv6 addresses stand in brackets: tcp:[::1]:80
  unix:PATH      a Unix socket; where it is listened on, it is removed at the end
  -              standard input and output: the only connection, and the program ends with it
  systemd:       to listen: the sockets of systemd socket activation

A connection that broke off is broken off on the other side, too: what is cut short never looks
whole over TCP and TLS. Unix sockets know no reset; --log tells how each connection ended. One of
TLS that ends without TLS's own end has broken off.";
