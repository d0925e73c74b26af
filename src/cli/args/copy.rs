//! What `copy` takes.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, ValueEnum, ValueHint, builder::TypedValueParser, error::ErrorKind};

use crate::{
    copy::{CopyOptions, DigestOptions, ExpectedDigest},
    endpoint::image_options_help,
    proto::is_nbd_uri,
};

use super::{
    super::{endpoint_help::Reader, failure::Failure},
    FilterArgs, FormatArg, FormatArgs, Size, TimeoutArgs, brief, default_connections,
    sizes::{parse_queue_size, parse_request_size, parse_sparse},
    whole,
};

/// Copy an image, from one place or format to another.
///
/// Holes and zeroes stay thin where the destination allows it. A new destination file appears when it is
/// whole; one that is there is written in place.
#[derive(Args, Debug)]
#[command(after_help = brief("copy"),
          after_long_help = whole("copy", Some(Reader::Copies), &[]),
          override_usage = "blockferry copy [OPTIONS] <SOURCE>... <DESTINATION>")]
pub(crate) struct CopyArgs {
    /// What to copy, and at last where to: endpoints, see below. Several sources are joined, one behind the other.
    // One list, so that options may stand anywhere between them.
    #[arg(value_name = "IMAGE", required = true, value_hint = ValueHint::AnyPath)]
    images: Vec<OsString>,

    #[command(flatten, next_help_heading = "Formats")]
    pub(crate) formats: FormatArgs,
    /// The format of the destination: raw unless given. xz, bzip2 and ova are read, and not made.
    #[arg(
        help_heading = "Formats",
        short = 'O',
        long,
        value_name = "FMT",
        alias = "target-format"
    )]
    pub(crate) output_format: Option<FormatArg>,
    /// How the destination's format is made; 'help' lists what there is. Several are possible.
    #[arg(help_heading = "Formats", short = 'o', long, value_name = "KEY=VALUE,...", alias = "target-options",
          value_parser = OptionsParser)]
    pub(crate) option: Vec<OsString>,
    /// Compress the destination: qcow2.
    #[arg(help_heading = "Formats", short, long)]
    pub(crate) compress: bool,
    /// How the destination may be cached, in qemu-img's words. It makes no difference: what is reported is durable,
    /// unless --no-flush is given.
    #[arg(
        help_heading = "Destination",
        short = 't',
        long,
        value_name = "MODE",
        value_enum,
        alias = "target-cache",
        display_order = 820
    )]
    pub(crate) cache: Option<CacheArg>,
    /// How the source may be cached, likewise.
    #[arg(
        help_heading = "Source",
        short = 'T',
        long,
        value_name = "MODE",
        value_enum,
        alias = "source-cache",
        display_order = 821
    )]
    pub(crate) src_cache: Option<CacheArg>,
    /// It is known that another program may write the source meanwhile: do not warn of it.
    #[arg(help_heading = "Source", short = 'U', long, display_order = 822)]
    pub(crate) force_share: bool,
    /// Requests in flight, and threads that compress, from 1 to 1024. Without it as many as pay.
    #[arg(help_heading = "Speed", short = 'm', long, value_name = "N", conflicts_with = "requests",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) parallel: Option<u16>,
    /// Write into the destination as it is: it is there, large enough, and of the format that -O says.
    #[arg(help_heading = "Formats", short = 'n', long)]
    pub(crate) no_create: bool,
    /// Read an internal snapshot of the source: its ID or name, or snapshot.id=ID, or snapshot.name=NAME.
    #[arg(
        help_heading = "Formats",
        short = 'l',
        long,
        value_name = "SNAPSHOT",
        alias = "source-snapshot"
    )]
    pub(crate) snapshot: Option<String>,
    /// Make an overlay: the destination only has what differs from FILE, which it names as its backing file. A
    /// name that is no whole path is relative to the destination's directory.
    #[arg(help_heading = "Formats", short = 'b', short_alias = 'B', long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) backing: Option<OsString>,
    /// The format of that file. Without it a regular file is looked into.
    #[arg(
        help_heading = "Formats",
        short = 'F',
        long,
        value_name = "FMT",
        requires = "backing"
    )]
    pub(crate) backing_format: Option<FormatArg>,
    /// Copy the persistent bitmaps of the source, too; both are qcow2.
    #[arg(help_heading = "Formats", long)]
    pub(crate) bitmaps: bool,
    /// Leave out bitmaps that were in use when the source was last written, instead of failing.
    #[arg(help_heading = "Formats", long, requires = "bitmaps")]
    pub(crate) skip_broken_bitmaps: bool,
    /// Go on where the source cannot be read: zeroes stand for what is lost, and it is told where. As the
    /// filter 'salvage', nearest to the source.
    #[arg(help_heading = "Source", long)]
    pub(crate) salvage: bool,

    #[command(flatten, next_help_heading = "Source")]
    pub(crate) filters: FilterArgs,
    /// Connections to an NBD server, from 1 to 64: fewer where the server does not offer several, refuses
    /// them, or the image is small.
    #[arg(help_heading = "Speed", short = 'C', long, value_name = "N", default_value_t = default_connections(),
          value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) connections: u16,
    /// Requests in flight on each connection, from 1 to 1024. Without it few where requests are answered
    /// at once and many where each takes long.
    #[arg(help_heading = "Speed", short = 'R', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) requests: Option<u16>,
    /// Bytes per request: a power of two from 4K to 32M; less where a side wants less. Without it 256K, and
    /// up to 4M where requests take long.
    #[arg(help_heading = "Speed", long, value_name = "SIZE", value_parser = parse_request_size)]
    pub(crate) request_size: Option<Size>,
    /// Bytes in flight, from 4K to 4G and no less than the request size. Without it 2M, and up to 64M
    /// where requests take long.
    #[arg(help_heading = "Speed", long, value_name = "SIZE", value_parser = parse_queue_size)]
    pub(crate) queue_size: Option<Size>,
    /// Write the destination in any order, as answers come: the default, unless it is compressed: that is
    /// written in order without this, so that equal images make equal files. What cannot seek is always
    /// written in order.
    #[arg(
        help_heading = "Destination",
        short = 'W',
        long,
        overrides_with = "in_order",
        alias = "oob-writes"
    )]
    pub(crate) out_of_order: bool,
    /// Write the destination from front to back, one request at a time.
    #[arg(help_heading = "Destination", long, overrides_with = "out_of_order")]
    pub(crate) in_order: bool,
    /// Make holes of zeroes in the data where this many bytes or more are zero: a multiple of 512 up to
    /// 32M, or 0 to look for none.
    #[arg(help_heading = "Destination", short = 'S', long, value_name = "SIZE", value_parser = parse_sparse, alias = "sparse-size",
          default_value_t = Size(CopyOptions::default().sparse.unwrap_or(0).into()))]
    pub(crate) sparse: Size,
    /// Allocate the whole destination: zeroes are written, never made by holes.
    #[arg(help_heading = "Destination", long)]
    pub(crate) allocated: bool,
    /// Trust that the destination reads as zeroes already, and write none.
    #[arg(
        help_heading = "Destination",
        long,
        alias = "target-is-zero",
        conflicts_with = "allocated"
    )]
    pub(crate) destination_is_zero: bool,
    /// Make the destination durable before success is reported; the default.
    #[arg(help_heading = "Destination", long, overrides_with = "no_flush")]
    pub(crate) flush: bool,
    /// Do not wait until the destination is durable.
    #[arg(help_heading = "Destination", long, overrides_with = "flush")]
    pub(crate) no_flush: bool,
    /// Read the destination back in the end, and fail where it does not hold what was written.
    #[arg(help_heading = "Verification", long)]
    pub(crate) verify: bool,
    /// Print the digest of the image, computed while it is copied: md5, sha1, sha256 or sha512 over the
    /// digests of its blocks, as nbdcopy's --blkhash. sha256/64k unless given.
    #[arg(help_heading = "Verification", long, value_name = "ALG[/SIZE]", num_args = 0..=1, require_equals = true)]
    pub(crate) checksum: Option<Option<DigestOptions>>,
    /// Fail unless the image has this digest: HEX, or ALG/SIZE:HEX.
    #[arg(help_heading = "Verification", long, value_name = "DIGEST")]
    pub(crate) expect: Option<ExpectedDigest>,
    /// Do not ask the source where its holes are; read all of it.
    #[arg(help_heading = "Source", long)]
    pub(crate) no_extents: bool,
    /// Attempts in a row to open a lost connection again that may fail before the copy does; pauses between
    /// them grow from 0.1 to 10 seconds. What was in flight, and what the destination has not made
    /// durable, is done again then. 0: do not try.
    #[arg(help_heading = "Interruptions", long, value_name = "N", default_value_t = CopyOptions::default().retries,
          value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub(crate) retries: u32,
    /// Move at most so many bytes of data a second; 0 for no limit.
    #[arg(help_heading = "Speed", short, long, value_name = "BYTES")]
    pub(crate) rate: Option<Size>,
    /// Read the rate from FILE, in the beginning, whenever it changes, and at a SIGHUP.
    #[arg(help_heading = "Speed", long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "rate")]
    pub(crate) rate_file: Option<PathBuf>,
    /// Note in FILE what is done, about once a second and when the copy is interrupted, so that the same
    /// command goes on from there; FILE is removed when the copy is done. A new destination file is called
    /// NAME.partial until then. A checkpoint of another copy is refused.
    #[arg(help_heading = "Interruptions", long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) checkpoint: Option<PathBuf>,
    /// Show percent, rate and time left, also where standard error is no terminal. 'json' prints an object
    /// a line for programs, one a second, one for each phase and one at the end, even with --quiet.
    #[arg(help_heading = "Output", short, long, value_name = "STYLE", num_args = 0..=1, require_equals = true,
          default_missing_value = "auto")]
    pub(crate) progress: Option<ProgressStyle>,
    /// Write a page to FILE that shows the copy when it has ended, also when it has failed or was interrupted: rates,
    /// latencies and what was in flight over time, the picture of the disk, numbers, options, warnings. It is HTML,
    /// and needs no network. FILE is new, or an earlier report.
    #[arg(help_heading = "Output", long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) report: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Interruptions")]
    pub(crate) timeouts: TimeoutArgs,
    /// Print the report to standard output as JSON: of a failure an object "error" with its kind, the
    /// operation, offset, length and endpoint, and whether trying again may help.
    #[arg(help_heading = "Output", long)]
    pub(crate) json: bool,
}

/// How a file is cached, in qemu-img's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CacheArg {
    None,
    Writeback,
    Writethrough,
    Directsync,
    Unsafe,
}

impl CopyArgs {
    /// The sources, one at least, and the destination.
    pub(crate) fn sides(&self) -> Result<(&[OsString], &OsString), Failure> {
        match self.images.split_last() {
            Some((destination, sources)) if !sources.is_empty() => Ok((sources, destination)),
            Some((only, _)) if only.to_str().is_some_and(is_nbd_uri) => Err(Failure::usage(
                "a copy needs a source and a destination, and this is one endpoint only",
            )
            .hint("put URIs in quotes: at an '&' the shell ends the command, and takes what follows for another one")),
            _ => Err(Failure::usage("a copy needs a source and a destination")
                .hint("blockferry copy [OPTIONS] <SOURCE>... <DESTINATION>")),
        }
    }
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressStyle {
    /// A bar on a terminal, lines elsewhere.
    Auto,
    /// A bar that is drawn over itself; lines where there is no terminal.
    Bar,
    /// A line a second.
    Lines,
    /// A JSON object a second, for programs.
    Json,
}

/// Takes options of a format, or lists them.
#[derive(Clone, Copy, Debug)]
pub(super) struct OptionsParser;

impl TypedValueParser for OptionsParser {
    type Value = OsString;

    fn parse_ref(
        &self,
        _: &clap::Command,
        _: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<OsString, clap::Error> {
        match value.to_str() {
            Some("help" | "?") => Err(clap::Error::raw(
                ErrorKind::DisplayHelp,
                image_options_help(),
            )),
            _ => Ok(value.to_owned()),
        }
    }
}
