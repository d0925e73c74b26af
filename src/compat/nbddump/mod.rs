//! The command line of `nbddump`: the bytes of an export as people read them.

mod hexdump;

use std::{
    ffi::{OsStr, OsString},
    io::{self, BufWriter, IsTerminal, Write},
    ops::Range,
    process::ExitCode,
};

use crate::{
    block::{ByteRange, Context, Error, ErrorKind, Extent, Status},
    cli::{
        commands::info::{Asked, ask_server},
        failure::Failure,
        options::Timeouts,
        output::{print, unprinted},
        style::Colour,
    },
    client::blocking::Client,
    endpoint::{Endpoint, collapse_groups, printable},
};

use super::{
    getopt::{Argument, Arguments, Flag, flag, long_options},
    refusal::{Refusal, end, misused},
    server, version,
};
use hexdump::Hexdump;

/// Bytes that are read at once: more than the largest block of any server, and a multiple of it.
const PIECE: u64 = 1 << 20;

/// The longest range whose extents are asked for at once, in bytes.
const ASKED: u64 = 1 << 30;

const HELP: &str = "\
Prints the bytes of an export, in hexadecimal and as characters. A mark stands for rows that only repeat the
one before.

Usage: nbddump [OPTIONS] NBD-URI | [ CMD ARGS... ]

Options:
  -n, --length=N, --limit=N   Print N bytes at most
  -o, --offset=N, --skip=N    Begin at byte N
      --color, --no-color     With colours or without; the default is with colours on a terminal
      --help                  Show this text
  -V, --version               Show the version

This is blockferry under the name of nbddump.
";

const USAGE: &str = "\
usage: nbddump [-n LENGTH] [-o OFFSET] NBD-URI | [ CMD ARGS... ]
'nbddump --help' explains the options";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opt {
    Colour,
    Help,
    Length,
    LongOptions,
    NoColour,
    Offset,
    ShortOptions,
    Version,
}

/// In the order in which `--long-options` lists them.
const FLAGS: &[Flag<Opt>] = {
    use Argument::{No, Required};
    &[
        flag("help", None, No, Opt::Help),
        flag("long-options", None, No, Opt::LongOptions),
        flag("short-options", None, No, Opt::ShortOptions),
        flag("version", Some(b'V'), No, Opt::Version),
        flag("color", None, No, Opt::Colour),
        flag("colors", None, No, Opt::Colour),
        flag("colour", None, No, Opt::Colour),
        flag("colours", None, No, Opt::Colour),
        flag("no-color", None, No, Opt::NoColour),
        flag("no-colors", None, No, Opt::NoColour),
        flag("no-colour", None, No, Opt::NoColour),
        flag("no-colours", None, No, Opt::NoColour),
        flag("length", Some(b'n'), Required, Opt::Length),
        flag("limit", None, Required, Opt::Length),
        flag("offset", Some(b'o'), Required, Opt::Offset),
        flag("skip", None, Required, Opt::Offset),
    ]
};

/// What `--short-options` lists, in the tool's order.
const SHORT_OPTIONS: &str = "-n\n-o\n-V\n";

/// Runs `nbddump`.
pub(super) fn main(arguments: Vec<OsString>) -> ExitCode {
    let done = match Request::parse(arguments) {
        Ok(Request::Print(text)) => print(&text),
        Ok(Request::Dump(job)) => dump(&job),
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
    Dump(Box<Job>),
    Print(String),
}

/// What to dump, and how.
#[derive(Debug)]
struct Job {
    endpoint: Endpoint,
    offset: u64,
    length: Option<u64>,
    colour: Colour,
}

impl Request {
    /// Reads the command line; the first argument is the program's name.
    fn parse(arguments: Vec<OsString>) -> Result<Self, Refusal> {
        let mut words = collapse_groups(arguments).map_err(misused)?;
        words.drain(..1);
        let (mut offset, mut length, mut colour) = (0, None, None);
        let mut arguments = Arguments::new(FLAGS, words);
        while let Some((option, argument)) = arguments.next_option().map_err(misused)? {
            let value = argument.as_deref().unwrap_or_default();
            match option {
                Opt::Help => return Ok(Self::Print(HELP.to_owned())),
                Opt::Version => return Ok(Self::Print(version("nbddump"))),
                Opt::LongOptions => return Ok(Self::Print(long_options(FLAGS))),
                Opt::ShortOptions => return Ok(Self::Print(SHORT_OPTIONS.to_owned())),
                Opt::Colour => colour = Some(true),
                Opt::NoColour => colour = Some(false),
                Opt::Length => length = Some(number("length", value)?),
                Opt::Offset => offset = number("offset", value)?,
            }
        }
        let operands = arguments.into_operands();
        let [endpoint] = &operands[..] else {
            return Err(misused(match operands.len() {
                0 => "an NBD-URI or [ CMD ARGS... ] is needed".to_owned(),
                _ => format!("one operand too many: {}", printable(&operands[1])),
            }));
        };
        Ok(Self::Dump(Box::new(Job {
            endpoint: server(endpoint)?,
            offset,
            length,
            colour: Colour::chosen(colour, io::stdout().is_terminal()),
        })))
    }
}

/// A number of bytes. No unit is taken: the tool reads the digits and forgets the rest, so `1K` is 1 to it and
/// 1024 to everybody else.
fn number(option: &str, value: &OsStr) -> Result<u64, Failure> {
    let text = value.to_str().unwrap_or_default();
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or_else(|| {
        let value = printable(value);
        Failure::usage(format!("--{option}: {value:?} is no number of bytes"))
    })
}

fn dump(job: &Job) -> Result<(), Failure> {
    let output = BufWriter::new(io::stdout().lock());
    match ask_server(&job.endpoint, Timeouts::PATIENT, |server| {
        dump_from(server, job, output)
    })? {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::reader_gone()),
        Err(error) => Err(unprinted(&error)),
        Ok(()) => Ok(()),
    }
}

/// The outer failure is the server's, the inner one the output's.
fn dump_from(server: &Asked<'_>, job: &Job, output: impl Write) -> Result<io::Result<()>, Error> {
    let client = Client::connect_with(server.uri, &server.options)?;
    let size = client.size();
    if job.offset > size {
        let message = format!("offset {} lies behind the end, {size}", job.offset);
        return Err(Error::with_message(ErrorKind::OutOfBounds, message));
    }
    let end = job
        .length
        .map_or(size, |length| job.offset.saturating_add(length).min(size));
    let mut dump = Hexdump::new(output, job.colour, job.offset..end, size);
    let mut disk = Disk::new(client);
    let mut failure = None;
    let mut offset = job.offset;
    while offset < end && failure.is_none() {
        let extents = disk.extents(offset..end);
        for extent in extents {
            let part = extent.range.start().max(offset)..extent.range.end().min(end);
            if part.is_empty() {
                continue;
            }
            offset = part.end;
            let written = match extent.status.is_zero() {
                true => dump.zeroes(part.end - part.start),
                false => match disk.read(part, &mut dump) {
                    Ok(written) => written,
                    Err(error) => {
                        failure = Some(error);
                        break;
                    }
                },
            };
            if written.is_err() {
                return Ok(written);
            }
        }
    }
    // What was read before the failure is worth seeing.
    let flushed = dump.flush();
    match failure {
        Some(error) => Err(error),
        None => Ok(flushed),
    }
}

/// The export, which is asked in blocks of its own size.
struct Disk {
    client: Client,
    buffer: Vec<u8>,
    /// Whether it is of use to ask for extents.
    has_extents: bool,
}

impl Disk {
    fn new(client: Client) -> Self {
        Self {
            has_extents: client.info().knows_allocation(),
            client,
            buffer: Vec::new(),
        }
    }

    /// What is known of `range`, from its start on; at least one extent. A server that does not know, or
    /// fails to tell, is read.
    fn extents(&mut self, range: Range<u64>) -> Vec<Extent> {
        let asked = self.blocks(range.start..range.end.min(range.start.saturating_add(ASKED)));
        if self.has_extents {
            let extents = self.client.extents(asked, &Context::Allocation);
            match extents {
                Ok(extents) if extents.last().is_some_and(|e| e.range.end() > range.start) => {
                    return extents;
                }
                _ => self.has_extents = false,
            }
        }
        vec![Extent {
            range: asked,
            status: Status::DATA,
        }]
    }

    /// Reads `range` and dumps it.
    fn read(
        &mut self,
        range: Range<u64>,
        dump: &mut Hexdump<impl Write>,
    ) -> Result<io::Result<()>, Error> {
        let mut offset = range.start;
        while offset < range.end {
            let blocks = self.blocks(offset..range.end);
            let (blocks, _) = blocks.split_at(PIECE);
            self.buffer.resize(blocks.len() as usize, 0);
            self.client.read(blocks.start(), &mut self.buffer)?;
            let end = blocks.end().min(range.end);
            let wanted = (offset - blocks.start()) as usize..(end - blocks.start()) as usize;
            if let Err(error) = dump.bytes(&self.buffer[wanted]) {
                return Ok(Err(error));
            }
            offset = end;
        }
        Ok(Ok(()))
    }

    /// The blocks that `range` touches.
    fn blocks(&self, range: Range<u64>) -> ByteRange {
        let minimum = u64::from(self.client.info().limits.minimum);
        let start = range.start - range.start % minimum;
        let end = range.end.next_multiple_of(minimum);
        ByteRange::between(start, end.min(self.client.size()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Request, Refusal> {
        let arguments = ["nbddump"].iter().chain(words).map(OsString::from);
        Request::parse(arguments.collect())
    }

    fn job(words: &[&str]) -> Job {
        match parse(&[words, &["nbd://host"]].concat()) {
            Ok(Request::Dump(job)) => *job,
            other => panic!("{words:?}: {other:?}"),
        }
    }

    #[test]
    fn every_spelling_of_offset_and_length_is_understood() {
        for words in [
            &["-n", "20", "-o", "7"][..],
            &["-n20", "-o7"],
            &["--length=20", "--offset=7"],
            &["--limit", "20", "--skip", "7"],
        ] {
            let job = job(words);
            assert_eq!((job.length, job.offset), (Some(20), 7), "{words:?}");
        }
        let job = job(&[]);
        assert_eq!((job.length, job.offset), (None, 0));
    }

    #[test]
    fn what_is_no_number_is_no_length() {
        for value in [
            "",
            "1K",
            "-1",
            "+1",
            "0x10",
            "abc",
            "1.5",
            "18446744073709551616",
        ] {
            let refusal = parse(&["-n", value, "nbd://host"]).expect_err("refused");
            assert!(!refusal.usage, "{value}");
        }
        assert_eq!(job(&["-n", "010"]).length, Some(10));
    }

    #[test]
    fn the_tools_own_options_are_listed_in_the_tools_order() {
        assert_eq!(
            long_options(FLAGS),
            "--help\n--version\n--color\n--colors\n--colour\n--colours\n--no-color\n--no-colors\n\
             --no-colour\n--no-colours\n--length\n--limit\n--offset\n--skip\n"
        );
        let mut letters: Vec<_> = FLAGS.iter().filter_map(|flag| flag.short).collect();
        letters.sort_unstable_by_key(u8::to_ascii_lowercase);
        let letters = letters
            .iter()
            .map(|letter| format!("-{}\n", char::from(*letter)));
        assert_eq!(letters.collect::<String>(), SHORT_OPTIONS);
    }
}
