//! nbddump's options, and what they ask for.

use std::{
    ffi::{OsStr, OsString},
    io::{self, IsTerminal},
};

use crate::{
    cli::{failure::Failure, style::Colour},
    endpoint::{Endpoint, collapse_groups, printable},
};

use super::super::{
    ending::{EarlyEnd, misused},
    getopt::{self, Argument, Flag, flag, long_options},
    libnbd::{server, version},
};

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

/// What is said after a mistake.
pub(super) const USAGE: &str = "\
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

/// What to dump, and how.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) endpoint: Endpoint,
    pub(super) offset: u64,
    pub(super) length: Option<u64>,
    pub(super) colour: Colour,
}

impl Job {
    /// Reads the command line.
    pub(super) fn parse(words: Vec<OsString>) -> Result<Self, EarlyEnd> {
        let words = collapse_groups(words).map_err(misused)?;
        let mut choices = Choices::default();
        let operands = getopt::read(FLAGS, words, |option, argument| {
            choices.choose(option, argument)
        })?;
        Ok(Self {
            endpoint: server(&operands)?,
            offset: choices.offset,
            length: choices.length,
            colour: Colour::chosen(choices.colour, io::stdout().is_terminal()),
        })
    }
}

/// What the options say.
#[derive(Debug, Default)]
struct Choices {
    colour: Option<bool>,
    length: Option<u64>,
    offset: u64,
}

impl Choices {
    fn choose(&mut self, option: Opt, argument: Option<&OsStr>) -> Result<(), EarlyEnd> {
        let value = argument.unwrap_or_default();
        match option {
            Opt::Colour => self.colour = Some(true),
            Opt::NoColour => self.colour = Some(false),
            Opt::Length => self.length = Some(number("length", value)?),
            Opt::Offset => self.offset = number("offset", value)?,
            Opt::Help => return Err(EarlyEnd::Answer(HELP.to_owned())),
            Opt::LongOptions => return Err(EarlyEnd::Answer(long_options(FLAGS))),
            Opt::ShortOptions => return Err(EarlyEnd::Answer(SHORT_OPTIONS.to_owned())),
            Opt::Version => return Err(EarlyEnd::Answer(version("nbddump"))),
        }
        Ok(())
    }
}

/// A number of bytes. No unit is taken: the tool reads the digits and forgets the rest, so `1K` is 1 to it and
/// 1024 to everybody else.
fn number(option: &str, value: &OsStr) -> Result<u64, Failure> {
    let text = value.to_str().unwrap_or_default();
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or_else(|| {
        let value = printable(value);
        Failure::usage(format!("--{option}: {value:?} is not a number of bytes"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Job, EarlyEnd> {
        Job::parse(words.iter().map(OsString::from).collect())
    }

    fn job(words: &[&str]) -> Job {
        parse(&[words, &["nbd://host"]].concat()).expect("a job")
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
            let end = parse(&["-n", value, "nbd://host"]).expect_err("refused");
            assert!(matches!(end, EarlyEnd::Refused(_)), "{value}: {end:?}");
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
