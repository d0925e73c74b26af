//! nbdinfo's options, and what they ask for.

use std::{
    ffi::{OsStr, OsString},
    io::{self, IsTerminal},
};

use crate::{
    block::Context,
    cli::{failure::Failure, style::Colour},
    endpoint::{Endpoint, collapse_groups, printable},
};

use super::{
    super::{
        ending::{EarlyEnd, misused},
        getopt::{self, Argument, Flag, flag, long_options, short_options},
        libnbd::{server, version},
    },
    feature::Feature,
};

const HELP: &str = "\
Shows what an NBD server offers: its exports, their sizes, abilities and maps.

Usage: nbdinfo [OPTIONS] NBD-URI | [ CMD ARGS... ]

What to show; everything about one export unless one of these is given:
  -L, --list         Every export of the server
      --size         The size of the export in bytes
      --uri          The URI in its usual form
      --map[=NAME]   Which parts are data, holes or zeroes, or what else the metadata context NAME tells
      --totals       With --map: the sum of each type
      --can=FEATURE, --is=FEATURE, --has=FEATURE
                     Nothing: exit with 0 if so, 2 if not
      --cannot=FEATURE, --isnt=FEATURE, --hasnt=FEATURE
                     Nothing: exit with 0 if not, 2 if so

Features: block-status-payload, cache, connect, df, extended-headers, fast-zero, flush, fua, multi-conn,
          read, read-only, rotational, structured-reply, tls, trim, write, zero

How to show it:
      --json         As JSON
      --color, --no-color
                     With colours or without; the default is with colours on a terminal
      --content, --no-content
                     Read the first bytes and let file(1) say what they are, or do not; the default is to do
                     so without --list
      --help         Show this text
  -V, --version      Show the version

This is blockferry under the name of nbdinfo; 'blockferry info --help' shows what else it can do.
";

/// What is said after a mistake.
pub(super) const USAGE: &str = "\
usage: nbdinfo [OPTIONS] NBD-URI | [ CMD ARGS... ]
'nbdinfo --help' explains the options";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opt {
    Can,
    Cannot,
    Colour,
    Content,
    Help,
    Json,
    List,
    LongOptions,
    Map,
    NoColour,
    NoContent,
    ShortOptions,
    Size,
    Totals,
    Uri,
    Version,
}

/// In the order in which `--long-options` lists them.
const FLAGS: &[Flag<Opt>] = {
    use Argument::{No, Optional, Required};
    &[
        flag("help", None, No, Opt::Help),
        flag("can", None, Required, Opt::Can),
        flag("cannot", None, Required, Opt::Cannot),
        flag("color", None, No, Opt::Colour),
        flag("colors", None, No, Opt::Colour),
        flag("colour", None, No, Opt::Colour),
        flag("colours", None, No, Opt::Colour),
        flag("no-color", None, No, Opt::NoColour),
        flag("no-colors", None, No, Opt::NoColour),
        flag("no-colour", None, No, Opt::NoColour),
        flag("no-colours", None, No, Opt::NoColour),
        flag("content", None, No, Opt::Content),
        flag("no-content", None, No, Opt::NoContent),
        flag("has", None, Required, Opt::Can),
        flag("hasnt", None, Required, Opt::Cannot),
        flag("is", None, Required, Opt::Can),
        flag("isnt", None, Required, Opt::Cannot),
        flag("json", None, No, Opt::Json),
        flag("list", Some(b'L'), No, Opt::List),
        flag("long-options", None, No, Opt::LongOptions),
        flag("map", None, Optional, Opt::Map),
        flag("short-options", None, No, Opt::ShortOptions),
        flag("size", None, No, Opt::Size),
        flag("total", None, No, Opt::Totals),
        flag("totals", None, No, Opt::Totals),
        flag("uri", None, No, Opt::Uri),
        flag("version", Some(b'V'), No, Opt::Version),
    ]
};

/// A question about a server.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) endpoint: Endpoint,
    pub(super) task: Task,
    pub(super) layout: Layout,
}

#[derive(Debug)]
pub(super) enum Task {
    Show { which: Which, content: Content },
    Size,
    Uri,
    Ask { feature: Feature, expected: bool },
    Map { context: Context, totals: bool },
}

/// Which exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    One,
    All,
}

/// Whether anything of the export is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Probed,
    Untouched,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    Json,
    Text(Colour),
}

impl Job {
    /// Reads the command line.
    pub(super) fn parse(words: Vec<OsString>) -> Result<Self, EarlyEnd> {
        let words = collapse_groups(words).map_err(misused)?;
        let mut choices = Choices::default();
        let operands = getopt::read(FLAGS, words, |option, argument| {
            choices.choose(option, argument)
        })?;
        Ok(choices.job(server(&operands)?)?)
    }

    pub(super) fn colour(&self) -> Colour {
        match self.layout {
            Layout::Text(colour) => colour,
            Layout::Json => Colour::Never,
        }
    }
}

/// What the options say. Of options that contradict each other the last one holds, as in the tool.
#[derive(Debug, Default)]
struct Choices {
    ask: Option<(Feature, bool)>,
    colour: Option<bool>,
    content: bool,
    no_content: bool,
    json: bool,
    list: bool,
    map: Option<Context>,
    size: bool,
    totals: bool,
    uri: bool,
}

impl Choices {
    fn choose(&mut self, option: Opt, argument: Option<&OsStr>) -> Result<(), EarlyEnd> {
        match option {
            Opt::Can | Opt::Cannot => {
                let name = argument.unwrap_or_default();
                let feature = name.to_str().and_then(Feature::named).ok_or_else(|| {
                    Failure::usage(format!("unknown feature: {}", printable(name)))
                })?;
                self.ask = Some((feature, option == Opt::Can));
            }
            Opt::Colour => self.colour = Some(true),
            Opt::NoColour => self.colour = Some(false),
            Opt::Content => self.content = true,
            Opt::NoContent => self.no_content = true,
            Opt::Json => self.json = true,
            Opt::List => self.list = true,
            Opt::Map => {
                let context = argument.map(OsStr::to_string_lossy);
                self.map = Some(context.map_or(Context::Allocation, |name| Context::from(&*name)));
            }
            Opt::Size => self.size = true,
            Opt::Totals => self.totals = true,
            Opt::Uri => self.uri = true,
            Opt::Help => return Err(EarlyEnd::Answer(HELP.to_owned())),
            Opt::LongOptions => return Err(EarlyEnd::Answer(long_options(FLAGS))),
            Opt::ShortOptions => return Err(EarlyEnd::Answer(short_options(FLAGS))),
            Opt::Version => return Err(EarlyEnd::Answer(version("nbdinfo"))),
        }
        Ok(())
    }

    fn job(self, endpoint: Endpoint) -> Result<Job, Failure> {
        let tasks = [
            self.list,
            self.ask.is_some(),
            self.map.is_some(),
            self.size,
            self.uri,
        ];
        if tasks.iter().filter(|given| **given).count() > 1 {
            return Err(Failure::usage(
                "--list, --can, --map, --size and --uri do not go together",
            ));
        }
        if self.content && self.no_content {
            return Err(Failure::usage(
                "--content and --no-content do not go together",
            ));
        }
        if self.totals && self.map.is_none() {
            return Err(Failure::usage("--totals goes with --map only"));
        }
        let layout = match self.json {
            true => Layout::Json,
            false => Layout::Text(Colour::chosen(self.colour, io::stdout().is_terminal())),
        };
        let task = match (self.ask, self.map) {
            (Some((feature, expected)), _) => Task::Ask { feature, expected },
            (None, Some(context)) => Task::Map {
                context,
                totals: self.totals,
            },
            _ if self.size => Task::Size,
            _ if self.uri => Task::Uri,
            _ => Task::Show {
                which: if self.list { Which::All } else { Which::One },
                content: match self.content || !(self.list || self.no_content) {
                    true => Content::Probed,
                    false => Content::Untouched,
                },
            },
        };
        Ok(Job {
            endpoint,
            task,
            layout,
        })
    }
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
    fn each_option_asks_for_its_task() {
        assert!(matches!(job(&["--size"]).task, Task::Size));
        assert!(matches!(job(&["--uri", "--json"]).task, Task::Uri));
        let map = |words| match job(words).task {
            Task::Map { context, totals } => (context, totals),
            other => panic!("{words:?}: {other:?}"),
        };
        assert_eq!(
            map(&["--map", "--totals", "--json"]),
            (Context::Allocation, true)
        );
        assert_eq!(
            map(&["--map=qemu:dirty-bitmap:b"]),
            (Context::DirtyBitmap("b".to_owned()), false)
        );
    }

    #[test]
    fn questions_can_be_turned_round() {
        for (option, expected) in [
            ("--can", true),
            ("--is", true),
            ("--has", true),
            ("--cannot", false),
            ("--isnt", false),
            ("--hasnt", false),
        ] {
            let job = job(&["--can", "trim", option, "extended-headers"]);
            let Task::Ask {
                feature,
                expected: found,
            } = job.task
            else {
                panic!("{option}")
            };
            assert_eq!(
                (feature, found),
                (Feature::ExtendedHeaders, expected),
                "{option}"
            );
        }
    }

    #[test]
    fn contents_are_probed_unless_there_may_be_many() {
        let probed = |words: &[&str]| match job(words).task {
            Task::Show { content, .. } => content == Content::Probed,
            other => panic!("{words:?}: {other:?}"),
        };
        assert!(probed(&[]) && probed(&["--json"]) && probed(&["-L", "--content"]));
        assert!(!probed(&["--no-content"]) && !probed(&["--list"]));
    }

    #[test]
    fn contradictions_are_refused() {
        for words in [
            &["--size", "--list", "nbd://host"][..],
            &["--uri", "--map", "nbd://host"],
            &["--can", "read", "-L", "nbd://host"],
            &["--content", "--no-content", "nbd://host"],
            &["--totals", "nbd://host"],
            &["--can", "fly", "nbd://host"],
            &["disk.raw"],
            &["-"],
            &[""],
        ] {
            let end = parse(words).expect_err("refused");
            assert!(matches!(end, EarlyEnd::Refused(_)), "{words:?}: {end:?}");
        }
        for words in [
            &[][..],
            &["nbd://a", "nbd://b"],
            &["--bogus", "nbd://host"],
            &["--co", "nbd://host"],
            &["--can"],
            &["[", "nbdkit"],
        ] {
            let end = parse(words).expect_err("refused");
            assert!(matches!(end, EarlyEnd::Misused(_)), "{words:?}: {end:?}");
        }
    }

    #[test]
    fn the_tools_own_options_are_listed_in_the_tools_order() {
        let text = long_options(FLAGS);
        let names: Vec<_> = text.lines().collect();
        let olds = "--help --can --color --colors --colour --colours --no-color --no-colors --no-colour \
                    --no-colours --content --no-content --is --json --list --map --size --total --totals \
                    --version";
        let news = ["--cannot", "--has", "--hasnt", "--isnt", "--uri"];
        let known: Vec<_> = names
            .iter()
            .copied()
            .filter(|name| !news.contains(name))
            .collect();
        assert_eq!(known, olds.split_whitespace().collect::<Vec<_>>());
        assert!(news.iter().all(|name| names.contains(name)));
        assert_eq!(short_options(FLAGS), "-L\n-V\n");
    }
}
