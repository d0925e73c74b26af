//! nbdcopy's options, and the copy that they ask for.

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
};

use crate::{
    cli::{
        failure::Failure,
        options::{CopyJob, DigestJob, DigestTo, Show, Terminals, check_sides},
        percent::PercentTo,
    },
    copy::{CopyOptions, DigestOptions, Order},
    endpoint::{DestinationFormat, Endpoint, EndpointKind, collapse_groups, printable},
};

use super::{
    super::{
        ending::{EarlyEnd, misused},
        getopt::{self, Argument, Flag, flag, long_options, short_options},
        libnbd::version,
    },
    REQUESTS, describe,
    values::{
        LONGEST_REQUEST, at_least_one, blkhash, number, progress_to, request_size, size, sparse,
    },
};

/// How much is in flight, in its own defaults, in bytes. Who asks for that asks for nothing in particular.
const QUEUE_SIZE: u64 = 16 << 20;

/// How long a request is unless something else is asked for, in bytes.
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

/// What is said after a mistake.
pub(super) const USAGE: &str = "\
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

/// The copy that a command line asks for.
pub(super) fn parse(words: Vec<OsString>, terminals: Terminals) -> Result<CopyJob, EarlyEnd> {
    let words = collapse_groups(words).map_err(misused)?;
    let mut choices = Choices::default();
    let operands = getopt::read(FLAGS, words, |option, argument| {
        choices.choose(option, argument)
    })?;
    let [source, destination] = &operands[..] else {
        return Err(misused(match operands.len() {
            0 | 1 => "a SOURCE and a DESTINATION are needed".to_owned(),
            _ => format!("one operand too many: {}", printable(&operands[2])),
        }));
    };
    let source = Endpoint::parse(source).map_err(Failure::from)?;
    let destination = Endpoint::parse(destination).map_err(Failure::from)?;
    check_sides(&source, &destination, false, terminals)?;
    Ok(choices.job(source, destination))
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
    fn choose(&mut self, option: Opt, argument: Option<&OsStr>) -> Result<(), EarlyEnd> {
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
            Opt::Help => return Err(EarlyEnd::Answer(HELP.to_owned())),
            Opt::LongOptions => return Err(EarlyEnd::Answer(long_options(FLAGS))),
            Opt::ShortOptions => return Err(EarlyEnd::Answer(short_options(FLAGS))),
            Opt::Version => return Err(EarlyEnd::Answer(version("nbdcopy"))),
        }
        Ok(())
    }

    fn job(self, source: Endpoint, destination: Endpoint) -> CopyJob {
        let engine = self.engine();
        let digest_to = match (&self.blkhash_file, destination.kind()) {
            _ if engine.digest.is_none() => DigestTo::Nowhere,
            (Some(file), _) => DigestTo::File(file.clone()),
            (None, EndpointKind::Standard) => DigestTo::PlainError,
            (None, _) => DigestTo::Plain,
        };
        CopyJob {
            engine,
            digest: DigestJob {
                expect: None,
                to: digest_to,
            },
            shared: true,
            onto_itself: true,
            show: self.progress.map_or(Show::Nothing, Show::Percent),
            describe: self.verbose.then_some(describe),
            ..CopyJob::new(source, destination, DestinationFormat::Raw)
        }
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

#[cfg(test)]
mod tests {
    use super::{super::super::ending::exit_code, *};
    use crate::cli::options::ReportStyle;

    const NO_TERMINAL: Terminals = Terminals {
        input: false,
        output: false,
        error: false,
    };

    fn job(text: &str) -> CopyJob {
        let words = ["a", "b"].into_iter().chain(text.split_whitespace());
        parse(words.map(OsString::from).collect(), NO_TERMINAL).expect("a copy")
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
        let words = ["a", "-"].map(OsString::from);
        let Err(EarlyEnd::Refused(failure)) = parse(words.into(), terminal) else {
            panic!("not refused")
        };
        assert!(failure.to_string().contains("terminal"));
        assert_eq!(exit_code(&failure), 1);
    }
}
