//! Raw flags become typed options, in one place. What contradicts itself is refused here, so that
//! nothing below has to look again.

mod contents;
mod serve;

use std::{
    ffi::OsStr,
    io::{self, IsTerminal},
    path::PathBuf,
    time::Duration,
};

use crate::{
    block::Context,
    copy::{CopyOptions, Destination, Order, Source},
    endpoint::{Endpoint, EndpointKind, OpenOptions},
    filter::NamedFilter,
};

use super::{
    args::{Common, CopyArgs, FilterArgs, InfoArgs, MapArgs, ProgressStyle, TimeoutArgs},
    failure::Failure,
    percent::PercentTo,
    rate::Rate,
};

use contents::digest_options;
pub(crate) use contents::{ChecksumJob, CompareJob, DigestJob, DigestTo};
pub(crate) use serve::{
    Identity, LogJob, Opening, Place, ServeJob, ServedSource, Stay, TlsJob, TlsMode,
};

/// A resolved `copy`.
#[derive(Debug)]
pub(crate) struct CopyJob {
    pub(crate) source: Endpoint,
    pub(crate) destination: Endpoint,
    pub(crate) engine: CopyOptions,
    /// Where to note what is done.
    pub(crate) checkpoint: Option<PathBuf>,
    pub(crate) digest: DigestJob,
    pub(crate) timeouts: Timeouts,
    /// Whether an NBD export may be copied onto itself, which writes what is there already.
    pub(crate) onto_itself: bool,
    pub(crate) rate: Rate,
    pub(crate) show: Show,
    pub(crate) report: ReportStyle,
    /// Whether it is told what is not as it should be.
    pub(crate) warnings: bool,
    pub(crate) verbose: bool,
    /// Tells of the two sides before anything is copied, in another tool's words.
    pub(crate) describe: Option<Describe>,
}

/// Tells of a job and the two sides that were opened for it.
pub(crate) type Describe = fn(&CopyJob, &Source, &Destination);

/// How a copy shows its progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Show {
    /// Not at all.
    Nothing,
    /// A bar that is drawn over itself.
    Bar,
    /// A line now and then.
    Lines,
    /// A JSON object a line.
    Json,
    /// Hundredths, as nbdcopy shows them.
    Percent(PercentTo),
}

/// What a copy says when it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReportStyle {
    /// Nothing.
    Nothing,
    /// A sentence on standard error.
    Sentence,
    /// JSON on standard output.
    Json,
}

/// A resolved `info`.
#[derive(Debug)]
pub(crate) struct InfoJob {
    pub(crate) endpoint: Endpoint,
    pub(crate) list: bool,
    pub(crate) timeouts: Timeouts,
    pub(crate) json: bool,
}

/// A resolved `map`.
#[derive(Debug)]
pub(crate) struct MapJob {
    pub(crate) endpoint: Endpoint,
    pub(crate) context: Context,
    pub(crate) totals: bool,
    pub(crate) timeouts: Timeouts,
    pub(crate) json: bool,
}

/// How long servers are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timeouts {
    /// Connecting and negotiating together.
    pub(crate) connect: Duration,
    /// While a request is in flight and nothing moves.
    pub(crate) request: Option<Duration>,
    /// The same for a flush alone.
    pub(crate) flush: Option<Duration>,
}

impl Timeouts {
    /// For those who have nobody to answer to: requests take as long as they take.
    pub(crate) const PATIENT: Self = Self {
        connect: Duration::from_secs(30),
        request: None,
        flush: None,
    };

    pub(crate) fn resolve(args: TimeoutArgs) -> Self {
        let patient = Self::PATIENT;
        match args.timeout {
            Some(0) => patient,
            Some(seconds) => {
                let limit = Duration::from_secs(seconds.into());
                Self {
                    connect: patient.connect.min(limit),
                    request: Some(limit),
                    flush: Some(limit),
                }
            }
            None => Self {
                request: Some(Duration::from_secs(300)),
                ..patient
            },
        }
    }
}

/// Which of the three standard streams are terminals; a value, so that rules about them can be tested.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terminals {
    pub(crate) input: bool,
    pub(crate) output: bool,
    pub(crate) error: bool,
}

impl Terminals {
    pub(crate) fn of_this_process() -> Self {
        Self {
            input: io::stdin().is_terminal(),
            output: io::stdout().is_terminal(),
            error: io::stderr().is_terminal(),
        }
    }
}

impl CopyJob {
    pub(crate) fn resolve(
        args: &CopyArgs,
        common: Common,
        terminals: Terminals,
    ) -> Result<Self, Failure> {
        let source = Endpoint::parse(&args.source)?.behind(filters(&args.filters)?);
        let destination = Endpoint::parse(&args.destination)?;
        check_sides(&source, &destination, args.json, terminals)?;
        let is_stream = |endpoint: &Endpoint| {
            matches!(
                endpoint.kind(),
                EndpointKind::Standard | EndpointKind::Null(_) | EndpointKind::Memory { .. }
            )
        };
        if args.checkpoint.is_some() && (is_stream(&source) || is_stream(&destination)) {
            return Err(Failure::usage(
                "--checkpoint needs a source and a destination that keep what they hold",
            ));
        }
        if let (Some(queue), Some(request)) = (args.queue_size, args.request_size)
            && queue.0 < request.0
        {
            return Err(Failure::usage(format!(
                "--queue-size {queue} is less than one request of {request}"
            )));
        }
        if common.quiet
            && args
                .progress
                .is_some_and(|style| style != ProgressStyle::Json)
        {
            return Err(Failure::usage(
                "--quiet shows no progress but that for programs, --progress=json",
            ));
        }
        let asked = args.checksum.map(Option::unwrap_or_default);
        // A bare `--checksum` leaves it to the digest that is expected.
        let said = args.checksum.flatten();
        let digest = digest_options(said, args.expect)?.or(asked);
        let engine = CopyOptions {
            connections: usize::from(args.connections),
            requests: args.requests.map(usize::from),
            // The parsers have kept these two at 32 MiB at most.
            request_size: args
                .request_size
                .and_then(|size| u32::try_from(size.0).ok()),
            sparse: u32::try_from(args.sparse.0).ok().filter(|size| *size > 0),
            queue_size: args.queue_size.map(|size| size.0),
            order: match args.in_order {
                true => Order::Ascending,
                false => Order::Any,
            },
            allocated: args.allocated,
            destination_is_zero: args.destination_is_zero,
            flush: !args.no_flush,
            extents: !args.no_extents,
            retries: args.retries,
            checkpoint: None,
            digest,
            verify: args.verify,
        };
        let to = match destination.kind() {
            _ if digest.is_none() || args.json => DigestTo::Nowhere,
            EndpointKind::Standard => DigestTo::Error,
            _ => DigestTo::Output,
        };
        Ok(Self {
            source,
            destination,
            engine,
            checkpoint: args.checkpoint.clone(),
            digest: DigestJob {
                expect: args.expect,
                to,
            },
            timeouts: Timeouts::resolve(args.timeouts),
            onto_itself: false,
            rate: Rate {
                limit: args.rate.map(|rate| rate.0),
                file: args.rate_file.clone(),
            },
            show: Show::resolve(args.progress, common, terminals),
            report: match (args.json, common.quiet) {
                (true, _) => ReportStyle::Json,
                (false, true) => ReportStyle::Nothing,
                (false, false) => ReportStyle::Sentence,
            },
            warnings: args.json || !common.quiet,
            verbose: common.verbose,
            describe: None,
        })
    }
}

impl Show {
    fn resolve(asked: Option<ProgressStyle>, common: Common, terminals: Terminals) -> Self {
        match (asked, terminals.error) {
            (Some(ProgressStyle::Json), _) => Self::Json,
            _ if common.quiet => Self::Nothing,
            (Some(ProgressStyle::Lines), _) => Self::Lines,
            (_, true) => Self::Bar,
            (Some(ProgressStyle::Auto | ProgressStyle::Bar), false) => Self::Lines,
            (None, false) => Self::Nothing,
        }
    }
}

/// Refuses pairs of endpoints that can never work.
pub(crate) fn check_sides(
    source: &Endpoint,
    destination: &Endpoint,
    json: bool,
    terminals: Terminals,
) -> Result<(), Failure> {
    let refuse = |message: &str| Err(Failure::usage(message));
    match source.kind() {
        EndpointKind::Standard if terminals.input => {
            return refuse("an image is not read from a terminal; redirect standard input");
        }
        _ => check_readable(source)?,
    }
    match destination.kind() {
        EndpointKind::Standard if terminals.output => {
            refuse("an image is not written to a terminal; redirect standard output")
        }
        EndpointKind::Standard if json => {
            refuse("--json writes to standard output, which is the destination")
        }
        kind if !kind.roles().destination => {
            let (name, why) = (kind.source_kind().name, unreadable(destination));
            let why = why.unwrap_or("can only be a source");
            Err(Failure::usage(format!("{name}: {why}")))
        }
        _ => Ok(()),
    }
}

/// Refuses what holds no image that could be read.
fn check_readable(source: &Endpoint) -> Result<(), Failure> {
    let Some(why) = unreadable(source) else {
        return Ok(());
    };
    let name = source.kind().source_kind().name;
    Err(Failure::usage(format!("{name}: {why}")))
}

/// Why there is no image to read.
fn unreadable(source: &Endpoint) -> Option<&'static str> {
    match source.kind() {
        _ if source.kind().roles().source => None,
        EndpointKind::Null(None) => Some("can only be a destination"),
        _ => Some("has several images, and works with serve only"),
    }
}

impl InfoJob {
    pub(crate) fn resolve(args: &InfoArgs) -> Result<Self, Failure> {
        let endpoint = seekable(&args.endpoint)?;
        let is_server = matches!(
            endpoint.kind(),
            EndpointKind::Nbd(_) | EndpointKind::Command(_)
        );
        if args.list && !is_server {
            return Err(Failure::usage(format!(
                "--list needs an NBD server, which {endpoint} is not"
            )));
        }
        Ok(Self {
            endpoint,
            list: args.list,
            timeouts: Timeouts::resolve(args.timeouts),
            json: args.json,
        })
    }
}

impl MapJob {
    pub(crate) fn resolve(args: &MapArgs) -> Result<Self, Failure> {
        Ok(Self {
            endpoint: seekable(&args.endpoint)?.behind(filters(&args.filters)?),
            context: Context::from(&*args.context),
            totals: args.totals,
            timeouts: Timeouts::resolve(args.timeouts),
            json: args.json,
        })
    }
}

/// An endpoint that holds an image with offsets.
fn seekable(text: &OsStr) -> Result<Endpoint, Failure> {
    let endpoint = Endpoint::parse(text)?;
    match endpoint.kind() {
        EndpointKind::Standard | EndpointKind::Null(None) => Err(Failure::usage(format!(
            "{endpoint} is a stream and works with copy and checksum only"
        ))),
        _ => Ok(endpoint),
    }
}

/// The filters that were asked for.
pub(crate) fn filters(args: &FilterArgs) -> Result<Vec<NamedFilter>, Failure> {
    let filters = args.filter.iter().map(|text| NamedFilter::parse(text));
    Ok(filters.collect::<Result<_, _>>()?)
}

/// How this program opens endpoints: `[ serve ... ]` is itself.
pub(crate) fn open_options(timeouts: Timeouts) -> OpenOptions {
    OpenOptions {
        own_program: std::env::current_exe().ok(),
        connect_timeout: timeouts.connect,
        request_timeout: timeouts.request,
        flush_timeout: timeouts.flush,
        ..OpenOptions::default()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::{Cli, Command};

    const NO_TERMINAL: Terminals = Terminals {
        input: false,
        output: false,
        error: false,
    };
    const TERMINAL: Terminals = Terminals {
        input: true,
        output: true,
        error: true,
    };

    fn resolve(words: &[&str], terminals: Terminals) -> Result<CopyJob, Failure> {
        let cli = Cli::try_parse_from([&["blockferry", "copy"], words].concat());
        let cli = cli.expect("valid arguments");
        let Command::Copy(args) = cli.command else {
            panic!("not a copy")
        };
        CopyJob::resolve(&args, cli.common, terminals)
    }

    fn refusal(words: &[&str], terminals: Terminals) -> String {
        let failure = resolve(words, terminals).expect_err("refused");
        assert_eq!(failure.code(), 2);
        failure.to_string()
    }

    #[test]
    fn without_flags_the_engine_has_its_own_defaults() {
        let job = resolve(&["a", "b"], NO_TERMINAL).expect("a job");
        let default = CopyOptions::default();
        assert_eq!(format!("{:?}", job.engine), format!("{default:?}"));
    }

    #[test]
    fn flags_reach_the_engine() {
        let words = "-C 3 -R 7 --request-size 64k --queue-size 1M --in-order -S 0 --allocated --no-flush --no-extents --retries 3 a b";
        let words: Vec<_> = words.split(' ').collect();
        let engine = resolve(&words, NO_TERMINAL).expect("a job").engine;
        assert_eq!((engine.connections, engine.requests), (3, Some(7)));
        assert_eq!(engine.request_size, Some(64 << 10));
        assert_eq!((engine.queue_size, engine.sparse), (Some(1 << 20), None));
        assert_eq!((engine.order, engine.retries), (Order::Ascending, 3));
        assert!(engine.allocated && !engine.flush && !engine.extents);
    }

    #[test]
    fn a_timeout_holds_for_everything_only_when_it_is_asked_for() {
        let timeouts = |words: &[&str]| resolve(words, NO_TERMINAL).expect("a job").timeouts;
        let seconds = Duration::from_secs;
        let usual = timeouts(&["a", "b"]);
        assert_eq!((usual.request, usual.flush), (Some(seconds(300)), None));
        assert_eq!(usual.connect, seconds(30));
        let short = timeouts(&["--timeout", "5", "a", "b"]);
        let five = Some(seconds(5));
        assert_eq!((short.request, short.flush), (five, five));
        assert_eq!(short.connect, seconds(5));
        let long = timeouts(&["--timeout", "600", "a", "b"]);
        assert_eq!(long.connect, seconds(30));
        assert_eq!(timeouts(&["--timeout=0", "a", "b"]), Timeouts::PATIENT);
    }

    #[test]
    fn terminals_are_neither_read_nor_written() {
        assert!(refusal(&["-", "b"], TERMINAL).contains("terminal"));
        assert!(refusal(&["a", "-"], TERMINAL).contains("terminal"));
        assert!(resolve(&["-", "-"], NO_TERMINAL).is_ok());
    }

    #[test]
    fn sides_that_make_no_sense_are_wrong_usage() {
        refusal(&["null:", "b"], NO_TERMINAL);
        refusal(&["a", "sample:1M"], NO_TERMINAL);
        refusal(&["--json", "a", "-"], NO_TERMINAL);
        refusal(
            &["--request-size", "1M", "--queue-size", "512K", "a", "b"],
            NO_TERMINAL,
        );
        refusal(&["http://host/a", "b"], NO_TERMINAL);
    }

    #[test]
    fn a_bar_is_for_terminals_and_lines_are_for_logs() {
        let show = |words: &[&str], error| {
            let terminals = Terminals {
                error,
                ..NO_TERMINAL
            };
            resolve(words, terminals).expect("a job").show
        };
        assert_eq!(show(&["a", "b"], true), Show::Bar);
        assert_eq!(show(&["-q", "a", "b"], true), Show::Nothing);
        assert_eq!(show(&["a", "b"], false), Show::Nothing);
        assert_eq!(show(&["-p", "a", "b"], false), Show::Lines);
        assert_eq!(show(&["--progress=bar", "a", "b"], false), Show::Lines);
        assert_eq!(show(&["--progress=lines", "a", "b"], true), Show::Lines);
        for words in [
            &["--progress=json", "a", "b"][..],
            &["-q", "-p=json", "a", "b"],
        ] {
            assert_eq!(show(words, false), Show::Json);
            assert_eq!(show(words, true), Show::Json);
        }
        refusal(&["-q", "-p", "a", "b"], NO_TERMINAL);
    }

    #[test]
    fn json_is_printed_even_when_quiet() {
        let report = |words: &[&str]| resolve(words, NO_TERMINAL).expect("a job").report;
        assert_eq!(report(&["--json", "-q", "a", "b"]), ReportStyle::Json);
        assert_eq!(report(&["-q", "a", "b"]), ReportStyle::Nothing);
        assert_eq!(report(&["a", "b"]), ReportStyle::Sentence);
    }
}
