//! What `relay` is told, resolved: where streams come in, where they go, how long and how fast.

mod address;
mod secure;

use std::{path::PathBuf, time::Duration};

use crate::relay::{Mode, proxy_protocol::Version};

use super::super::{
    args::{Common, ModeArg, RelayArgs},
    failure::Failure,
};

pub(crate) use address::{Address, AddressError, TcpAddress};
pub(crate) use secure::{TlsListenJob, TlsTargetJob};

/// A resolved `relay`.
#[derive(Clone, Debug)]
pub(crate) struct RelayJob {
    /// Where clients come in.
    pub(crate) listen: Address,
    /// Where they are connected to: the first one that answers. Standard input and output stand alone.
    pub(crate) targets: Vec<Address>,
    pub(crate) mode: Mode,
    /// Clients at a time; `None` is as many as there can be descriptors for.
    pub(crate) max_connections: Option<usize>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) half_close_timeout: Option<Duration>,
    /// How long a target may take to answer.
    pub(crate) connect_timeout: Duration,
    /// How long connections may take to end after a request to end.
    pub(crate) drain_timeout: Duration,
    /// Bytes a second each way, of all connections together.
    pub(crate) rate: Option<u64>,
    /// Bytes a second each way, of each connection.
    pub(crate) connection_rate: Option<u64>,
    /// How targets are told who their client is.
    pub(crate) proxy_protocol: Option<Version>,
    pub(crate) tls_listen: Option<TlsListenJob>,
    pub(crate) tls_target: Option<TlsTargetJob>,
    /// A file that gets a line of JSON for each connection and each failure; `-` is standard error.
    pub(crate) log: Option<PathBuf>,
    /// `ADDR:PORT` where counts are told over HTTP.
    pub(crate) metrics: Option<String>,
    pub(crate) quiet: bool,
    pub(crate) verbose: bool,
}

impl RelayJob {
    pub(crate) fn resolve(args: RelayArgs, common: Common) -> Result<Self, Failure> {
        let listen = Address::parse(&args.listen)?;
        let targets = args.target.iter().map(|text| target(Address::parse(text)?));
        let targets = targets.collect::<Result<Vec<_>, Failure>>()?;
        let standard = targets.contains(&Address::Standard);
        if standard && listen == Address::Standard {
            return Err(Failure::usage(
                "standard input and output cannot be both ends",
            ));
        }
        if standard && targets.len() > 1 {
            return Err(Failure::usage("-: it is not a target among others")
                .hint("standard input and output are always there: write it alone"));
        }
        if let Some(path) = listen.path()
            && targets.iter().any(|target| target.path() == Some(path))
        {
            return Err(Failure::usage(format!("{listen}: it cannot be both ends")));
        }
        // Through TLS a peer that went away is not seen while nothing is written to it.
        let has_tls = args.tls_listen.is_some() || args.tls_target;
        let forsaken = (has_tls && args.idle_timeout.is_none()).then_some(FORSAKEN);
        Ok(Self {
            proxy_protocol: secure::proxy_protocol(&args, &targets)?,
            tls_listen: TlsListenJob::resolve(&args, &listen)?,
            tls_target: TlsTargetJob::resolve(&args, &targets)?,
            listen,
            targets,
            mode: match args.mode {
                ModeArg::Auto => Mode::Auto,
                ModeArg::Splice => Mode::Splice,
                ModeArg::Copy => Mode::Copy,
            },
            max_connections: args.max_connections.map(|most| most as usize),
            idle_timeout: args.idle_timeout,
            half_close_timeout: args.half_close_timeout.or(forsaken),
            connect_timeout: args.connect_timeout,
            drain_timeout: args.drain_timeout,
            rate: args.rate.map(|rate| rate.0).filter(|rate| *rate > 0),
            connection_rate: args
                .connection_rate
                .map(|rate| rate.0)
                .filter(|rate| *rate > 0),
            log: args.log,
            metrics: args.metrics,
            quiet: common.quiet,
            verbose: common.verbose,
        })
    }
}

/// How long the one side of a connection with TLS may be silent when the other has ended, where nobody says so.
const FORSAKEN: Duration = Duration::from_secs(3600);

/// An address that can be connected to.
fn target(address: Address) -> Result<Address, Failure> {
    let wrong = |reason: &str, hint: &str| {
        Err(Failure::usage(format!("{address}: {reason}")).hint(hint.to_owned()))
    };
    match &address {
        Address::Activated => wrong(
            "it is for LISTEN alone",
            "write tcp:HOST:PORT, unix:PATH or -",
        ),
        Address::Tcp(TcpAddress { host: None, port }) => wrong(
            "a target has a host",
            &format!("for this machine, write tcp:localhost:{port}"),
        ),
        Address::Tcp(TcpAddress { port: 0, .. }) => wrong(
            "a target has a port",
            "port 0 is for LISTEN alone, where it takes a free one",
        ),
        _ => Ok(address),
    }
}

impl From<AddressError> for Failure {
    fn from(error: AddressError) -> Self {
        Self::usage(error.to_string()).hint(error.hint())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::tls::Verification;

    use super::{
        super::super::args::{Cli, Command},
        *,
    };

    fn resolve(words: &[&str]) -> Result<RelayJob, String> {
        let words = ["blockferry", "relay"].iter().chain(words);
        let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
        let Command::Relay(args) = cli.command else {
            panic!("another command");
        };
        RelayJob::resolve(*args, cli.common).map_err(|failure| failure.to_string())
    }

    #[test]
    fn targets_keep_their_order() {
        let job = resolve(&["tcp::0", "unix:a", "tcp:b:1", "unix:c"]).expect("a job");
        let targets: Vec<_> = job.targets.iter().map(ToString::to_string).collect();
        assert_eq!(targets, ["unix:a", "tcp:b:1", "unix:c"]);
        assert_eq!(job.connect_timeout, Duration::from_secs(10));
        assert_eq!(job.drain_timeout, Duration::from_secs(30));
        assert!(job.idle_timeout.is_none() && job.max_connections.is_none());
    }

    #[test]
    fn no_rate_is_no_limit() {
        let rates = |words: &[&str]| {
            let job = resolve(&[words, &["-", "unix:a"]].concat()).expect("a job");
            (job.rate, job.connection_rate)
        };
        assert_eq!(rates(&[]), (None, None));
        assert_eq!(rates(&["--rate", "0"]), (None, None));
        assert_eq!(rates(&["--rate", "10M"]), (Some(10 << 20), None));
        assert_eq!(rates(&["--connection-rate", "1K"]), (None, Some(1 << 10)));
    }

    #[test]
    fn tls_is_verified_unless_somebody_says_otherwise() {
        let job = resolve(&["-", "unix:a"]).expect("a job");
        assert_eq!((job.tls_listen, job.tls_target), (None, None));
        assert_eq!(job.proxy_protocol, None);
        let job = resolve(&["--tls-target", "-", "unix:a"]).expect("a job");
        let target = job.tls_target.expect("TLS");
        assert_eq!(target.verification, Verification::On);
        assert_eq!((target.certificates, target.hostname), (None, None));
        let words = ["--tls-target", "--no-tls-verify-target", "-", "unix:a"];
        let target = resolve(&words).expect("a job").tls_target.expect("TLS");
        assert_eq!(target.verification, Verification::Off);
        for (words, clients) in [
            (&["--tls-listen", "d"][..], Verification::Off),
            (
                &["--tls-listen", "d", "--tls-verify-peer"],
                Verification::On,
            ),
        ] {
            let job = resolve(&[words, &["unix:b", "unix:a"]].concat()).expect("a job");
            assert_eq!(job.tls_listen.expect("TLS").clients, clients);
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (words, word) in [
            (&["tcp::1"][..], "TARGET"),
            (&["-", "-"], "both ends"),
            (&["unix:a", "unix:a"], "both ends"),
            (&["unix:a", "unix:b", "-"], "among others"),
            (&["unix:a", "tcp::80"], "tcp:localhost:80"),
            (&["unix:a", "tcp:b:0"], "port 0"),
            (&["unix:a", "systemd:"], "LISTEN alone"),
            (&["TCP-LISTEN:80", "unix:a"], "hint: write tcp:HOST:80"),
            (&["--idle-timeout", "0", "-", "unix:a"], "above 0"),
            (&["--max-connections", "0", "-", "unix:a"], "1..="),
            (&["--mode", "fast", "-", "unix:a"], "splice"),
            (&["--tls-listen", "d", "-", "unix:a"], "not a socket"),
            (&["--tls-target", "unix:a", "-"], "not a socket"),
            (&["--proxy-protocol", "v1", "unix:a", "-"], "not a socket"),
            (&["--proxy-protocol", "v3", "unix:a", "unix:b"], "v2"),
            (&["--tls-verify-peer", "-", "unix:a"], "--tls-listen"),
            (&["--tls-certificates", "d", "-", "unix:a"], "--tls-target"),
            (&["--tls-hostname", "h", "-", "unix:a"], "--tls-target"),
            (&["--no-tls-verify-target", "-", "unix:a"], "--tls-target"),
        ] {
            let refused = resolve(words).expect_err("refused");
            assert!(refused.contains(word), "{words:?}: {refused}");
        }
    }
}
