//! The command line of `nbdcopy`: options before, between and after SOURCE and DESTINATION, in its spellings and
//! with its defaults. What it pins is pinned; where it leaves its defaults, the engine adapts.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use blockferry_sys::duplicate_inherited;

use crate::{
    block::{Capabilities, parse_size},
    cli::{
        args::Size,
        commands,
        failure::Failure,
        options::{
            Bitmaps, CopyJob, DigestJob, DigestTo, ReportStyle, Show, Terminals, Timeouts, Trust,
            check_sides,
        },
        output::{print, tell},
        percent::PercentTo,
        rate::Rate,
    },
    copy::{CopyOptions, Destination, DigestOptions, Order, Source},
    endpoint::{DestinationFormat, Endpoint, EndpointKind, collapse_groups, printable},
};

use super::{
    getopt::{Argument, Arguments, Flag, flag, long_options, short_options},
    refusal::{Refusal, end, misused},
    version,
};

/// nbdcopy's own defaults. Who asks for them asks for nothing in particular.
const REQUESTS: u32 = 64;
const QUEUE_SIZE: u64 = 16 << 20;

/// The limits of a request, in bytes.
const SHORTEST_REQUEST: u32 = 4 << 10;
const LONGEST_REQUEST: u32 = 32 << 20;
const USUAL_REQUEST: u32 = 256 << 10;

const HELP: &str = "\
Copies a disk image from or to an NBD server, or between two of them.

Usage: nbdcopy [OPTIONS] SOURCE DESTINATION

  SOURCE, DESTINATION   - | FILE | DEVICE | NBD-URI | [ CMD ARGS... ]
  DESTINATION also      null:

Options:
      --allocated             Allocate the whole destination: zeroes are written, not made by holes
      --blkhash[=ALG[/SIZE]]  Print the digest of the image: md5, sha1, sha256 (the default) or sha512,
                              of blocks of SIZE bytes (64k)
      --blkhash-file=FILE     Write that digest to FILE
  -C, --connections=N         At most N connections to each server (4)
      --destination-is-zero, --target-is-zero
                              Trust that the destination reads as zeroes, and write none
      --flush                 Make the destination durable before this program ends
      --no-extents            Do not ask the source where its holes are
  -p, --progress              Show a bar on standard error
      --progress=FD           Write N/100 to the descriptor FD as the copy goes on
      --queue-size=SIZE       Bytes in flight at most (adapted to the servers)
      --request-size=SIZE     Bytes per request: a power of two from 4k to 32M (adapted)
  -R, --requests=N            Requests in flight on each connection (adapted)
  -S, --sparse=SIZE           Make holes of blocks of SIZE zero bytes in the data; 0 looks for none (4k)
      --synchronous           One request at a time, from front to back
  -T, --threads=N             At most N connections, as one of N threads would have each
  -v, --verbose               Say on standard error what is copied
      --help                  Show this text
  -V, --version               Show the version

This is blockferry under the name of nbdcopy; 'blockferry copy --help' shows what else it can do.
";

const USAGE: &str = "\
usage: nbdcopy [OPTIONS] SOURCE DESTINATION
'nbdcopy --help' explains the options";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opt {
    Allocated,
    Blkhash,
    BlkhashFile,
    Connections,
    DestinationIsZero,
    Flush,
    Help,
    LongOptions,
    NoExtents,
    Progress,
    QueueSize,
    RequestSize,
    Requests,
    ShortOptions,
    Sparse,
    Synchronous,
    Threads,
    Verbose,
    Version,
}

/// In the order in which `--long-options` lists them.
const FLAGS: &[Flag<Opt>] = {
    use Argument::{No, Optional, Required};
    &[
        flag("help", None, No, Opt::Help),
        flag("long-options", None, No, Opt::LongOptions),
        flag("allocated", None, No, Opt::Allocated),
        flag("blkhash", None, Optional, Opt::Blkhash),
        flag("blkhash-file", None, Required, Opt::BlkhashFile),
        flag("connections", Some(b'C'), Required, Opt::Connections),
        flag("destination-is-zero", None, No, Opt::DestinationIsZero),
        flag("flush", None, No, Opt::Flush),
        flag("no-extents", None, No, Opt::NoExtents),
        flag("progress", Some(b'p'), Optional, Opt::Progress),
        flag("queue-size", None, Required, Opt::QueueSize),
        flag("request-size", None, Required, Opt::RequestSize),
        flag("requests", Some(b'R'), Required, Opt::Requests),
        flag("short-options", None, No, Opt::ShortOptions),
        flag("sparse", Some(b'S'), Required, Opt::Sparse),
        flag("synchronous", None, No, Opt::Synchronous),
        flag("target-is-zero", None, No, Opt::DestinationIsZero),
        flag("threads", Some(b'T'), Required, Opt::Threads),
        flag("verbose", Some(b'v'), No, Opt::Verbose),
        flag("version", Some(b'V'), No, Opt::Version),
    ]
};

/// Runs `nbdcopy`. It says nothing when it succeeds, and its only other exit code is 1, but for signals.
pub(super) fn main(arguments: Vec<OsString>) -> ExitCode {
    let done = match Request::parse(arguments, Terminals::of_this_process()) {
        Ok(Request::Print(text)) => print(&text),
        Ok(Request::Copy(job)) => commands::copy::run(*job),
        Err(refusal) => return refusal.end(USAGE),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => end(failure),
    }
}

/// What a command line asks for.
#[derive(Debug)]
enum Request {
    Copy(Box<CopyJob>),
    Print(String),
}

impl Request {
    /// Reads the command line; the first argument is the program's name.
    fn parse(arguments: Vec<OsString>, terminals: Terminals) -> Result<Self, Refusal> {
        let mut words = collapse_groups(arguments).map_err(misused)?;
        words.drain(..1);
        let mut choices = Choices::default();
        let mut arguments = Arguments::new(FLAGS, words);
        while let Some((option, argument)) = arguments.next_option().map_err(misused)? {
            match option {
                Opt::Help => return Ok(Self::Print(HELP.to_owned())),
                Opt::Version => return Ok(Self::Print(version("nbdcopy"))),
                Opt::LongOptions => return Ok(Self::Print(long_options(FLAGS))),
                Opt::ShortOptions => return Ok(Self::Print(short_options(FLAGS))),
                _ => choices.choose(option, argument.as_deref())?,
            }
        }
        let operands = arguments.into_operands();
        let [source, destination] = &operands[..] else {
            return Err(misused(match operands.len() {
                0 | 1 => "a SOURCE and a DESTINATION are needed".to_owned(),
                _ => format!("one operand too many: {}", printable(&operands[2])),
            }));
        };
        let source = Endpoint::parse(source).map_err(Failure::from)?;
        let destination = Endpoint::parse(destination).map_err(Failure::from)?;
        check_sides(&source, &destination, false, terminals)?;
        Ok(Self::Copy(Box::new(choices.job(source, destination)?)))
    }
}

/// What the options say.
#[derive(Debug)]
struct Choices {
    allocated: bool,
    blkhash: Option<DigestOptions>,
    blkhash_file: Option<PathBuf>,
    connections: u32,
    destination_is_zero: bool,
    extents: bool,
    flush: bool,
    /// `None`: none is shown.
    progress: Option<PercentTo>,
    queue_size: u64,
    request_size: Option<u32>,
    requests: u32,
    sparse: u64,
    synchronous: bool,
    /// 0: as many as there are processors.
    threads: u32,
    verbose: bool,
}

impl Default for Choices {
    fn default() -> Self {
        Self {
            allocated: false,
            blkhash: None,
            blkhash_file: None,
            connections: 4,
            destination_is_zero: false,
            extents: true,
            flush: false,
            progress: None,
            queue_size: QUEUE_SIZE,
            request_size: None,
            requests: REQUESTS,
            sparse: 4096,
            synchronous: false,
            threads: 0,
            verbose: false,
        }
    }
}

impl Choices {
    fn choose(&mut self, option: Opt, argument: Option<&OsStr>) -> Result<(), Failure> {
        let value = argument.unwrap_or_default();
        match option {
            Opt::Allocated => self.allocated = true,
            Opt::Blkhash => {
                self.blkhash = Some(match argument {
                    Some(text) => blkhash(text)?,
                    None => DigestOptions::default(),
                });
            }
            Opt::BlkhashFile => self.blkhash_file = Some(PathBuf::from(value)),
            Opt::Connections => self.connections = at_least_one("connections", value)?,
            Opt::DestinationIsZero => self.destination_is_zero = true,
            Opt::Flush => self.flush = true,
            Opt::NoExtents => self.extents = false,
            Opt::Progress => {
                self.progress = match argument {
                    Some(number) => progress_to(number)?,
                    None => Some(PercentTo::Bar),
                };
            }
            Opt::QueueSize => self.queue_size = size("queue-size", value)?,
            Opt::RequestSize => self.request_size = Some(request_size(value)?),
            Opt::Requests => self.requests = at_least_one("requests", value)?,
            Opt::Sparse => self.sparse = sparse(value)?,
            Opt::Synchronous => self.synchronous = true,
            Opt::Threads => self.threads = number("threads", value)?,
            Opt::Verbose => self.verbose = true,
            Opt::Help | Opt::Version | Opt::LongOptions | Opt::ShortOptions => {}
        }
        Ok(())
    }

    fn job(self, source: Endpoint, destination: Endpoint) -> Result<CopyJob, Failure> {
        let engine = self.engine();
        let digest_to = match (&self.blkhash_file, destination.kind()) {
            _ if engine.digest.is_none() => DigestTo::Nowhere,
            (Some(file), _) => DigestTo::File(file.clone()),
            (None, EndpointKind::Standard) => DigestTo::PlainError,
            (None, _) => DigestTo::Plain,
        };
        Ok(CopyJob {
            source,
            destination,
            format: DestinationFormat::Raw,
            bitmaps: Bitmaps::Ignored,
            trust: Trust::default(),
            engine,
            checkpoint: None,
            digest: DigestJob {
                expect: None,
                to: digest_to,
            },
            // It waits for its servers as long as they take.
            timeouts: Timeouts::PATIENT,
            shared: true,
            onto_itself: true,
            rate: Rate::default(),
            show: self.progress.map_or(Show::Nothing, Show::Percent),
            report: ReportStyle::Nothing,
            page: None,
            warnings: true,
            verbose: false,
            describe: self.verbose.then_some(describe),
            doubts: Vec::new(),
            stop: None,
        })
    }

    fn engine(&self) -> CopyOptions {
        let sparse = u32::try_from(self.sparse).ok().filter(|size| *size > 0);
        let worth_it = USUAL_REQUEST + 1..=LONGEST_REQUEST;
        let mut engine = CopyOptions::default();
        engine.connections = usize::try_from(self.connections).unwrap_or(usize::MAX);
        engine.requests = (self.requests != REQUESTS).then_some(self.requests as usize);
        // A block of zeroes is found only where it is read in one piece.
        engine.request_size = self
            .request_size
            .or(sparse.filter(|size| worth_it.contains(size)));
        engine.allocated = self.allocated;
        engine.destination_is_zero = self.destination_is_zero;
        engine.flush = self.flush;
        engine.extents = self.extents;
        let longest = engine.request_size.unwrap_or(USUAL_REQUEST);
        engine.sparse = sparse.filter(|size| *size <= longest);
        // Whoever wants it in a file wants it.
        let in_file = self.blkhash_file.as_ref().map(|_| DigestOptions::default());
        engine.digest = self.blkhash.or(in_file);
        if self.threads > 0 {
            // No thread would have a connection more.
            engine.connections = engine.connections.min(self.threads as usize);
        }
        if self.queue_size != QUEUE_SIZE {
            // Requests that grew with the queue could take more memory than theirs ever would.
            engine.request_size = Some(longest);
            engine.queue_size = Some(self.queue_size.max(longest.into()));
        }
        if self.synchronous {
            engine.connections = 1;
            engine.requests = Some(1);
            engine.order = Order::Ascending;
            engine.sparse = None;
        }
        engine
    }
}

fn unreadable(option: &str, value: &OsStr) -> Failure {
    let value = printable(value);
    Failure::usage(format!("--{option}: could not parse: {value}"))
}

fn number(option: &str, value: &OsStr) -> Result<u32, Failure> {
    let text = value.to_str().map(str::trim_start);
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| unreadable(option, value))
}

fn at_least_one(option: &str, value: &OsStr) -> Result<u32, Failure> {
    match number(option, value)? {
        0 => Err(unreadable(option, value)),
        number => Ok(number),
    }
}

fn size(option: &str, value: &OsStr) -> Result<u64, Failure> {
    let size = value.to_str().and_then(|text| parse_size(text).ok());
    size.ok_or_else(|| unreadable(option, value))
}

fn request_size(value: &OsStr) -> Result<u32, Failure> {
    let possible = SHORTEST_REQUEST..=LONGEST_REQUEST;
    u32::try_from(size("request-size", value)?)
        .ok()
        .filter(|size| possible.contains(size) && size.is_power_of_two())
        .ok_or_else(|| {
            Failure::usage(format!(
                "--request-size: must be a power of 2 within {SHORTEST_REQUEST}-{LONGEST_REQUEST}"
            ))
        })
}

fn sparse(value: &OsStr) -> Result<u64, Failure> {
    match size("sparse", value)? {
        size if size == 0 || (size >= 512 && size.is_power_of_two()) => Ok(size),
        _ => Err(Failure::usage("--sparse: must be a power of 2 and >= 512")),
    }
}

fn blkhash(value: &OsStr) -> Result<DigestOptions, Failure> {
    let options = printable(value).parse::<DigestOptions>();
    options.map_err(|error| Failure::usage(format!("--blkhash: {error}")))
}

/// The descriptor that the caller opened for us, before anything of ours can get its number. Where it
/// did not, there is nobody who waits for it.
fn progress_to(value: &OsStr) -> Result<Option<PercentTo>, Failure> {
    let number = number("progress", value)?;
    let number = i32::try_from(number).map_err(|_| unreadable("progress", value))?;
    Ok(match duplicate_inherited(number) {
        Ok(descriptor) => Some(PercentTo::Lines(Arc::new(File::from(descriptor)))),
        Err(_) => {
            let what = format!("warning: --progress: descriptor {number} is not open");
            Failure::failed(what).report();
            None
        }
    })
}

/// Says what is copied, as `nbdcopy -v` does.
fn describe(job: &CopyJob, source: &Source, destination: &Destination) {
    let source_size = match source {
        Source::Device(device) => Some(device.info().size),
        _ => None,
    };
    let of_source = match source {
        Source::Device(device) => Some((device.info().size, device.info().limits.preferred)),
        _ => None,
    };
    let of_destination = match destination {
        Destination::Device(device) => {
            let info = device.info();
            let grows = info.can(Capabilities::RESIZE);
            let size = match job.destination.kind() {
                EndpointKind::Null(_) => i64::MAX.unsigned_abs(),
                _ if grows => source_size.unwrap_or(info.size),
                _ => info.size,
            };
            Some((size, info.limits.preferred))
        }
        _ => None,
    };
    describe_side("src", &job.source, of_source);
    describe_side("dst", &job.destination, of_destination);
    let engine = &job.engine;
    tell(&format!(
        "nbdcopy: connections={} requests={} threads=1 synchronous={}",
        engine.connections,
        engine.requests.unwrap_or(REQUESTS as usize),
        engine.order == Order::Ascending,
    ));
}

/// Tells of one side, which has a size and a preferred block size unless it is a stream.
fn describe_side(side: &str, endpoint: &Endpoint, device: Option<(u64, u32)>) {
    let (kind, name) = match endpoint.kind() {
        EndpointKind::Command(command) => ("nbd_ops", printable(command.program())),
        EndpointKind::Nbd(_) => ("nbd_ops", endpoint.to_string()),
        EndpointKind::Null(_) => ("null_ops", endpoint.to_string()),
        _ if device.is_none() => ("pipe_ops", endpoint.to_string()),
        EndpointKind::Sample(_) => ("sample_ops", endpoint.to_string()),
        _ => ("file_ops", endpoint.to_string()),
    };
    let (size, human, preferred) = match device {
        Some((size, preferred)) => (size.to_string(), Size(size).to_string(), preferred),
        None => ("-1".to_owned(), "-1".to_owned(), 4096),
    };
    tell(&format!("nbdcopy: {side}: {kind} \"{name}\""));
    tell(&format!(
        "nbdcopy: {side}: size={size} ({human}), preferred block size={preferred}"
    ));
}

#[cfg(test)]
mod tests {
    use super::{super::refusal::exit_code, *};

    const NO_TERMINAL: Terminals = Terminals {
        input: false,
        output: false,
        error: false,
    };

    fn job(text: &str) -> CopyJob {
        let words = ["nbdcopy", "a", "b"]
            .into_iter()
            .chain(text.split_whitespace());
        match Request::parse(words.map(OsString::from).collect(), NO_TERMINAL) {
            Ok(Request::Copy(job)) => *job,
            other => panic!("not a copy: {other:?}"),
        }
    }

    fn engine(text: &str) -> CopyOptions {
        job(text).engine
    }

    #[test]
    fn its_defaults_leave_the_engine_adaptive_and_do_not_flush() {
        for defaults in ["", "--requests=64 --queue-size=16777216 -C 4 -S 4096 -T 0"] {
            let mut own = CopyOptions::default();
            own.flush = false;
            assert_eq!(format!("{:?}", engine(defaults)), format!("{own:?}"));
        }
        assert!(engine("--flush").flush);
        let job = job("");
        assert!(job.report == ReportStyle::Nothing && job.warnings && job.show == Show::Nothing);
    }

    #[test]
    fn what_is_given_is_pinned() {
        let pinned =
            engine("-C 3 -R 7 --request-size 64k --queue-size 1M -S 0 --no-extents --allocated");
        assert_eq!((pinned.connections, pinned.requests), (3, Some(7)));
        assert_eq!(
            (pinned.request_size, pinned.queue_size),
            (Some(64 << 10), Some(1 << 20))
        );
        assert!(pinned.sparse.is_none() && !pinned.extents && pinned.allocated);
        assert_eq!(engine("-C 4 -T 2").connections, 2);
        assert_eq!(engine("-C 2 -T 9").connections, 2);
    }

    #[test]
    fn a_queue_holds_a_request_and_no_more_than_theirs() {
        let short = engine("--queue-size=4k --request-size=1M");
        assert_eq!(short.queue_size, Some(1 << 20));
        let long = engine("--queue-size=4G");
        assert_eq!(
            (long.queue_size, long.request_size),
            (Some(4 << 30), Some(256 << 10))
        );
    }

    #[test]
    fn blocks_of_zeroes_are_as_long_as_asked_for_or_not_looked_for() {
        let sizes = |text| (engine(text).sparse, engine(text).request_size);
        assert_eq!(sizes("-S 64k"), (Some(64 << 10), None));
        assert_eq!(sizes("-S 1M"), (Some(1 << 20), Some(1 << 20)));
        assert_eq!(sizes("-S 1M --request-size 64k"), (None, Some(64 << 10)));
        assert_eq!(sizes("-S 64M"), (None, None));
        assert_eq!(sizes("-S 8G"), (None, None));
    }

    #[test]
    fn synchronous_is_one_request_after_the_other_and_nothing_looked_for() {
        let engine = engine("--synchronous -C 8 -R 9 -S 64k");
        assert_eq!((engine.connections, engine.requests), (1, Some(1)));
        assert_eq!((engine.order, engine.sparse), (Order::Ascending, None));
    }

    #[test]
    fn a_terminal_is_refused_with_the_exit_code_of_a_failure() {
        let terminal = Terminals {
            output: true,
            ..NO_TERMINAL
        };
        let words = ["nbdcopy", "a", "-"].map(OsString::from);
        let refusal = Request::parse(words.into(), terminal).expect_err("refused");
        assert!(refusal.failure.to_string().contains("terminal"));
        assert_eq!(exit_code(&refusal.failure), 1);
    }
}
