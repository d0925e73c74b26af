//! Every command and flag, defined once: parsing, `--help`, man pages and completions come from here.
//!
//! | file | what it has |
//! |---|---|
//! | `contents` | the commands about what images contain |
//! | `copy` | `copy`, alias `convert` |
//! | `doctor` | `doctor` |
//! | `formats` | what several commands take about image formats |
//! | `examples`, `guidance` | what stands below the options in the help: examples, exit codes, and the commands by what they are for |
//! | `look` | the commands that look at one image |
//! | `making` | the commands that make images or change them |
//! | `relay` | `relay` |
//! | `serve` | `serve` |
//! | `sizes` | numbers of bytes and of seconds |

mod contents;
mod copy;
mod doctor;
mod examples;
mod formats;
mod guidance;
mod look;
mod making;
mod relay;
mod serve;
mod sizes;

use std::ffi::OsString;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::copy::CopyOptions;

use guidance::{brief, whole};

pub(crate) use contents::{ChecksumArgs, CompareArgs};
pub(crate) use copy::{CopyArgs, ProgressStyle};
pub(crate) use doctor::DoctorArgs;
pub(crate) use formats::{FollowArgs, FormatArg, FormatArgs};
pub(crate) use look::{
    BitmapArgs, CheckArgs, InfoArgs, ListingArgs, MapArgs, MeasureArgs, RepairArg, SnapshotArgs,
};
pub(crate) use making::{CreateArgs, DdArgs, PreallocationArg, ResizeArgs};
pub(crate) use relay::{ModeArg, ProxyProtocolArg, RelayArgs};
pub(crate) use serve::{ServeArgs, TlsArg};
pub(crate) use sizes::Size;

/// The definition of the command line, for what is generated from it.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// The help of the program: its commands by what they are for.
const TEMPLATE: &str = "\
{about-with-newline}
{usage-heading} {usage}

{before-help}Options:
{options}{after-help}";

/// Move disk images between NBD servers, files, devices and pipes.
#[derive(Debug, Parser)]
#[command(name = "blockferry", version, max_term_width = 100, help_template = TEMPLATE,
          before_help = guidance::tasks(&Command::augment_subcommands(clap::Command::new("blockferry"))),
          after_help = guidance::EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Common {
    /// Print errors only, no warnings and no report.
    #[arg(
        short,
        long,
        global = true,
        conflicts_with = "verbose",
        display_order = 900
    )]
    pub(crate) quiet: bool,
    /// Tell on standard error what is done, and how.
    #[arg(short, long, global = true, display_order = 901)]
    pub(crate) verbose: bool,
}

/// How long servers are waited for: of every command that opens endpoints.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct TimeoutArgs {
    /// Give up on an NBD server that owes an answer and moves no byte for so many seconds, and on a call of a script
    /// that takes longer; 0: never. 300 unless given ('serve': never), and no limit for a flush or a script.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u32>,
}

/// What stands in front of an image.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct FilterArgs {
    /// Put a filter in front of the image, see 'blockferry filters'. Several are possible, the first one nearest to
    /// the reader.
    #[arg(long, value_name = "NAME[:KEY=VALUE,...]", display_order = 800)]
    pub(crate) filter: Vec<OsString>,
}

/// How images are read by the commands that only read.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct ReadingArgs {
    /// Connections to an NBD server, from 1 to 64: fewer where it does not offer several or refuses them.
    #[arg(short = 'C', long, value_name = "N", default_value_t = default_connections(),
          value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) connections: u16,
    /// Attempts in a row to open a lost connection again that may fail; pauses between them grow from 0.1 to
    /// 10 seconds. 0: do not try.
    #[arg(long, value_name = "N", default_value_t = CopyOptions::default().retries,
          value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub(crate) retries: u32,
    /// Do not ask where an image has holes; read all of it.
    #[arg(long)]
    pub(crate) no_extents: bool,
    /// Show percent, rate and time left, also where standard error is no terminal; see 'blockferry copy --help'.
    #[arg(short, long, value_name = "STYLE", num_args = 0..=1, require_equals = true,
          default_missing_value = "auto")]
    pub(crate) progress: Option<ProgressStyle>,
    #[command(flatten)]
    pub(crate) timeouts: TimeoutArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(visible_alias = "convert")]
    Copy(Box<CopyArgs>),
    Serve(ServeArgs),
    Relay(Box<RelayArgs>),
    Info(InfoArgs),
    Map(MapArgs),
    Check(CheckArgs),
    Measure(MeasureArgs),
    Snapshot(SnapshotArgs),
    Bitmap(BitmapArgs),
    Compare(CompareArgs),
    Checksum(ChecksumArgs),
    Create(CreateArgs),
    Dd(DdArgs),
    Resize(ResizeArgs),
    Sources(SourcesArgs),
    Filters(FiltersArgs),
    Doctor(DoctorArgs),
    Completions(CompletionsArgs),
    #[command(hide = true)]
    Man(ManArgs),
}

/// List everything that can stand for an image, with its parameters.
#[derive(Args, Clone, Copy, Debug)]
#[command(after_help = brief("sources"), after_long_help = whole("sources", None, &[]))]
pub(crate) struct SourcesArgs {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// List the filters that --filter takes, with their parameters.
#[derive(Args, Clone, Copy, Debug)]
#[command(after_help = brief("filters"), after_long_help = whole("filters", None, &[]))]
pub(crate) struct FiltersArgs {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Print a completion script for a shell.
#[derive(Args, Debug)]
#[command(after_help = brief("completions"), after_long_help = whole("completions", None, &[]))]
pub(crate) struct CompletionsArgs {
    /// The shell that will read the script.
    pub(crate) shell: clap_complete::Shell,
}

/// Print a manual page in roff.
#[derive(Args, Debug)]
pub(crate) struct ManArgs {
    /// The command that the page is about; the program as a whole unless given.
    pub(crate) command: Option<String>,
}

fn default_connections() -> u16 {
    u16::try_from(CopyOptions::default().connections).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use super::*;

    fn parse(words: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["blockferry"], words].concat())
    }

    fn copy(words: &[&str]) -> CopyArgs {
        let all = [&["copy"], words, &["a", "b"]].concat();
        match parse(&all).expect("valid arguments").command {
            Command::Copy(copy) => *copy,
            other => panic!("not a copy: {other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn sizes_are_printed_as_they_are_read() {
        for text in ["0", "1", "513", "4K", "256K", "16M", "1025M", "4G"] {
            assert_eq!(Size::from_str(text).expect("a size").to_string(), text);
        }
    }

    #[test]
    fn values_out_of_range_are_usage_errors_that_name_the_range() {
        for (flag, value, range) in [
            ("-C", "0", "1..=64"),
            ("--connections", "65", "1..=64"),
            ("--requests", "0", "1..=1024"),
            ("--requests", "1025", "1..=1024"),
            ("--request-size", "2K", "4K to 32M"),
            ("--request-size", "5000", "power of two"),
            ("--request-size", "64M", "4K to 32M"),
            ("--queue-size", "1K", "4K and 4G"),
            ("--sparse", "256", "multiple of 512"),
            ("-S", "4097", "multiple of 512"),
            ("-S", "33M", "up to 32M"),
            ("-m", "0", "1..=1024"),
            ("-O", "qed", "raw, qcow2"),
        ] {
            let error = parse(&["copy", flag, value, "a", "b"]).expect_err("out of range");
            assert_eq!(error.exit_code(), 2);
            let text = error.to_string();
            assert!(text.contains(range), "{text}");
        }
    }

    #[test]
    fn the_last_of_flush_and_no_flush_wins() {
        assert!(!copy(&["--no-flush", "--flush"]).no_flush);
        assert!(copy(&["--flush", "--no-flush"]).no_flush);
        assert!(!copy(&[]).no_flush);
    }

    #[test]
    fn nbdcopy_spellings_are_understood() {
        let args = copy(&["-R", "8", "-S", "0", "-p", "--target-is-zero", "--flush"]);
        assert_eq!((args.requests, args.sparse), (Some(8), Size(0)));
        assert_eq!(args.progress, Some(ProgressStyle::Auto));
        assert!(args.destination_is_zero);
    }

    #[test]
    fn qemu_img_spellings_are_understood() {
        let words = "convert -f raw -O qcow2 -o cluster_size=4k -o lazy_refcounts=on -c -m 16 -W -S 1536 -p \
                     -r 10M -B base -F raw --bitmaps --skip-broken-bitmaps --salvage --allow-backing /x \
                     --max-size 1T one two three";
        let words: Vec<_> = words.split_whitespace().collect();
        let Command::Copy(args) = parse(&words).expect("valid arguments").command else {
            panic!("not a copy");
        };
        assert_eq!(args.formats.format, Some(FormatArg::Raw));
        assert_eq!(args.output_format, Some(FormatArg::Qcow2));
        assert_eq!(args.option.len(), 2);
        assert_eq!((args.parallel, args.sparse), (Some(16), Size(1536)));
        let sources = args.sides().expect("both sides").0;
        assert_eq!((sources.len(), args.rate), (2, Some(Size(10 << 20))));
        assert!(args.compress && args.out_of_order && args.bitmaps && args.salvage);
        let long = "--source-format raw --target-format qcow2 --compress --oob-writes --parallel 2 --backing b \
                    --backing-format raw";
        let long: Vec<_> = long.split_whitespace().collect();
        assert_eq!(copy(&long).output_format, Some(FormatArg::Qcow2));
        let snapshot = copy(&["-l", "snapshot.id=1", "-n", "--target-is-zero"]);
        assert_eq!(snapshot.snapshot.as_deref(), Some("snapshot.id=1"));
    }

    #[test]
    fn the_options_of_a_format_are_listed() {
        for words in [
            &["copy", "-O", "qcow2", "-o", "help"][..],
            &["convert", "-o", "?", "a"],
        ] {
            let listed = parse(words).expect_err("no copy");
            assert_eq!(listed.exit_code(), 0);
            let text = listed.to_string();
            assert!(text.contains("cluster_size=SIZE"), "{text}");
        }
    }

    #[test]
    fn the_style_of_progress_never_swallows_an_endpoint() {
        assert_eq!(copy(&[]).progress, None);
        assert_eq!(copy(&["--progress"]).progress, Some(ProgressStyle::Auto));
        assert_eq!(
            copy(&["--progress=json"]).progress,
            Some(ProgressStyle::Json)
        );
        assert_eq!(copy(&["-p=lines"]).progress, Some(ProgressStyle::Lines));
        let error = parse(&["copy", "--progress=loud", "a", "b"]).expect_err("no such style");
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn every_flag_is_explained() {
        for subcommand in command().get_subcommands() {
            for argument in subcommand.get_arguments() {
                let help = argument.get_help().map(ToString::to_string);
                assert!(help.is_some_and(|help| help.len() > 5), "{argument:?}");
            }
        }
    }
}
