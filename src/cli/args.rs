//! Every command and flag, defined once: parsing, `--help`, man pages and completions come from here.

use std::{ffi::OsString, fmt, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum, ValueHint};

use crate::{
    block::{Context, parse_size},
    copy::{CopyOptions, DigestOptions, ExpectedDigest},
};

use super::endpoint_help::{Reader, endpoints};

/// The definition of the command line, for what is generated from it.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

const EXIT_CODES: &str = "\
Exit codes:
  0    Done, and durable where asked
  1    Failed
  2    Wrong usage
  75   Failed, but trying again may help: a lost connection, a time-out
  130  Interrupted (SIGINT); 143: asked to end (SIGTERM)";

const COMPARE_EXIT_CODES: &str = "\
Exit codes:
  0    The images are identical
  1    They differ
  2    They could not be compared, or wrong usage
  75   They could not be compared, but trying again may help
  130  Interrupted (SIGINT); 143: asked to end (SIGTERM)";

/// Moves disk images between NBD servers, files, devices and pipes.
#[derive(Debug, Parser)]
#[command(name = "blockferry", version, max_term_width = 100, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Common {
    /// Print errors only.
    #[arg(
        short,
        long,
        global = true,
        conflicts_with = "verbose",
        display_order = 900
    )]
    pub(crate) quiet: bool,
    /// Say on standard error what is done with what.
    #[arg(short, long, global = true, display_order = 901)]
    pub(crate) verbose: bool,
}

/// How long servers are waited for: of every command that opens endpoints.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct TimeoutArgs {
    /// Give up on an NBD server that owes an answer and has not moved a byte for so long, and on a script's
    /// call; 0: never. Without it 300 ('serve': never), and a flush or a script may take as long as it takes.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u32>,
}

/// What stands in front of an image.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct FilterArgs {
    /// Put a filter in front of the image, see 'blockferry filters'; several are possible, the first one nearest
    /// to the reader.
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
    /// How many attempts in a row to open a lost connection again may fail; pauses between them grow from
    /// 0.1 to 10 seconds. 0: do not try.
    #[arg(long, value_name = "N", default_value_t = CopyOptions::default().retries,
          value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub(crate) retries: u32,
    /// Do not ask where an image has holes; read all of it.
    #[arg(long)]
    pub(crate) no_extents: bool,
    /// Show percent, rate and time left, also where standard error is no terminal; see 'copy'.
    #[arg(short, long, value_name = "STYLE", num_args = 0..=1, require_equals = true,
          default_missing_value = "auto")]
    pub(crate) progress: Option<ProgressStyle>,
    #[command(flatten)]
    pub(crate) timeouts: TimeoutArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Copy(CopyArgs),
    Serve(ServeArgs),
    Info(InfoArgs),
    Map(MapArgs),
    Compare(CompareArgs),
    Checksum(ChecksumArgs),
    Sources(SourcesArgs),
    Filters(FiltersArgs),
    Completions(CompletionsArgs),
    #[command(hide = true)]
    Man(ManArgs),
}

/// Copy an image from one endpoint to another.
///
/// Holes and zeroes stay thin where the destination allows it. A new destination file appears when it is
/// whole; one that is there is written in place.
#[derive(Args, Debug)]
#[command(after_help = endpoints(Reader::Copies))]
pub(crate) struct CopyArgs {
    /// What to copy: an endpoint, see below.
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) source: OsString,
    /// Where to copy it: an endpoint, see below.
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) destination: OsString,

    #[command(flatten)]
    pub(crate) filters: FilterArgs,
    /// Connections to an NBD server, from 1 to 64: fewer where the server does not offer several, refuses
    /// them, or the image is small.
    #[arg(short = 'C', long, value_name = "N", default_value_t = default_connections(),
          value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) connections: u16,
    /// Requests in flight on each connection, from 1 to 1024. Without it, few where requests are answered
    /// at once and many where each takes long.
    #[arg(short = 'R', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) requests: Option<u16>,
    /// Bytes per request: a power of two from 4K to 32M; less where a side wants less. Without it 256K, and
    /// up to 4M where requests take long.
    #[arg(long, value_name = "SIZE", value_parser = parse_request_size)]
    pub(crate) request_size: Option<Size>,
    /// Bytes in flight, from 4K to 4G and no less than the request size. Without it 2M, and up to 64M
    /// where requests take long.
    #[arg(long, value_name = "SIZE", value_parser = parse_queue_size)]
    pub(crate) queue_size: Option<Size>,
    /// Write the destination in any order, as answers come: the default. What cannot seek is always
    /// written in order.
    #[arg(short = 'W', long, overrides_with = "in_order")]
    pub(crate) out_of_order: bool,
    /// Write the destination from front to back, one request at a time.
    #[arg(long, overrides_with = "out_of_order")]
    pub(crate) in_order: bool,
    /// Make holes of zeroes in the data where this many bytes or more are zero: a power of two from
    /// 512 to 32M, or 0 to look for none.
    #[arg(short = 'S', long, value_name = "SIZE", value_parser = parse_sparse,
          default_value_t = Size(CopyOptions::default().sparse.unwrap_or(0).into()))]
    pub(crate) sparse: Size,
    /// Allocate the whole destination: zeroes are written, never made by holes.
    #[arg(long)]
    pub(crate) allocated: bool,
    /// Trust that the destination reads as zeroes already, and write none.
    #[arg(long, alias = "target-is-zero", conflicts_with = "allocated")]
    pub(crate) destination_is_zero: bool,
    /// Make the destination durable before success is reported; the default.
    #[arg(long, overrides_with = "no_flush")]
    pub(crate) flush: bool,
    /// Do not wait until the destination is durable.
    #[arg(long, overrides_with = "flush")]
    pub(crate) no_flush: bool,
    /// Read the destination back in the end, and fail where it does not hold what was written.
    #[arg(long)]
    pub(crate) verify: bool,
    /// Print the digest of the image, computed while it is copied: md5, sha1, sha256 or sha512 over the
    /// digests of its blocks, as nbdcopy's --blkhash. sha256/64k unless given.
    #[arg(long, value_name = "ALG[/SIZE]", num_args = 0..=1, require_equals = true)]
    pub(crate) checksum: Option<Option<DigestOptions>>,
    /// Fail unless the image has this digest: HEX, or ALG/SIZE:HEX.
    #[arg(long, value_name = "DIGEST")]
    pub(crate) expect: Option<ExpectedDigest>,
    /// Do not ask the source where its holes are; read all of it.
    #[arg(long)]
    pub(crate) no_extents: bool,
    /// How many attempts in a row to open a lost connection again may fail before the copy does; pauses
    /// between them grow from 0.1 to 10 seconds. What was in flight, and what the destination has not made
    /// durable, is done again then. 0: do not try.
    #[arg(long, value_name = "N", default_value_t = CopyOptions::default().retries,
          value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub(crate) retries: u32,
    /// Move at most so many bytes of data a second; 0 for no limit.
    #[arg(long, value_name = "BYTES")]
    pub(crate) rate: Option<Size>,
    /// Read the rate from FILE, in the beginning, whenever it changes, and at a SIGHUP.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "rate")]
    pub(crate) rate_file: Option<PathBuf>,
    /// Note in FILE what is done, about once a second and when the copy is interrupted, so that the same
    /// command goes on from there; FILE is removed when the copy is done. A new destination file is called
    /// NAME.partial until then. A checkpoint of another copy is refused.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) checkpoint: Option<PathBuf>,
    /// Show percent, rate and time left, also where standard error is no terminal. 'json' prints an object
    /// a line for programs, one a second, one for each phase and one at the end, even with --quiet.
    #[arg(short, long, value_name = "STYLE", num_args = 0..=1, require_equals = true,
          default_missing_value = "auto")]
    pub(crate) progress: Option<ProgressStyle>,
    #[command(flatten)]
    pub(crate) timeouts: TimeoutArgs,
    /// Print the report to standard output as JSON: of a failure an object "error" with its kind, the
    /// operation, offset, length and endpoint, and whether trying again may help.
    #[arg(long)]
    pub(crate) json: bool,
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

/// Serve images over NBD until a SIGINT or SIGTERM comes.
///
/// Then requests in flight are finished, everything is flushed, and the exit code is 0; a second signal ends it
/// at once.
#[derive(Args, Debug)]
#[command(after_help = SERVED)]
pub(crate) struct ServeArgs {
    /// What to serve: an endpoint, see 'blockferry sources'. It is the default export.
    #[arg(value_hint = ValueHint::AnyPath, required_unless_present = "export")]
    pub(crate) source: Option<OsString>,
    /// Serve SOURCE as the export NAME; several are possible. Without a source that has no name, the first one
    /// is the default export, too.
    #[arg(short, long, value_name = "NAME=SOURCE")]
    pub(crate) export: Vec<OsString>,
    /// What lists say of the source that has no name.
    #[arg(long, value_name = "TEXT", requires = "source")]
    pub(crate) description: Option<String>,
    #[command(flatten)]
    pub(crate) filters: FilterArgs,

    /// Listen on a Unix socket at PATH, which is removed at the end; '-' takes a private one.
    #[arg(short = 'U', long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) unix: Vec<PathBuf>,
    /// Listen on a TCP address such as 127.0.0.1:10809 or [::1]:0; an address left out is every one, IPv6 and
    /// IPv4; port 0 takes a free one and prints the URI.
    #[arg(short, long, value_name = "ADDR:PORT")]
    pub(crate) listen: Vec<String>,
    /// Listen on a port of AF_VSOCK, for virtual machines of this host.
    #[arg(long, value_name = "PORT")]
    pub(crate) vsock: Vec<u32>,
    /// Print the URIs to standard output, one a line, once clients can connect.
    #[arg(long)]
    pub(crate) print_uri: bool,

    /// Encrypt: off; on, for clients that ask for it; require, refusing all others.
    #[arg(long, value_name = "MODE", default_value = "off")]
    pub(crate) tls: TlsArg,
    /// The directory with server-cert.pem, server-key.pem and ca-cert.pem.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) tls_certificates: Option<PathBuf>,
    /// Refuse clients without a certificate that ca-cert.pem has signed.
    #[arg(long)]
    pub(crate) tls_verify_peer: bool,

    /// Refuse writes.
    #[arg(short, long)]
    pub(crate) read_only: bool,
    /// Copy what is read instead of sending the pages of a file: for files that others change meanwhile.
    #[arg(long)]
    pub(crate) no_zero_copy: bool,
    /// Clients at a time; more of them wait to be accepted.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) max_connections: u16,
    /// Seconds that a client may take until it uses an export.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_seconds)]
    pub(crate) handshake_timeout: Duration,
    /// Disconnect clients that keep silent for so many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub(crate) idle_timeout: Option<Duration>,

    /// End when the last client has gone.
    #[arg(long, overrides_with = "persistent")]
    pub(crate) once: bool,
    /// Go on when the last client has gone; the default.
    #[arg(long, overrides_with = "once")]
    pub(crate) persistent: bool,
    /// Run CMD by the shell, with the variables uri, unixsocket, port, exportname and tls, and end with it and
    /// its exit code. Without a place to listen at, a private Unix socket is taken.
    #[arg(long, value_name = "CMD", conflicts_with = "daemon", value_hint = ValueHint::CommandString)]
    pub(crate) run: Option<OsString>,
    /// Go to the background once clients can connect.
    #[arg(long, conflicts_with = "exit_with_parent")]
    pub(crate) daemon: bool,
    /// Write the process's number to FILE once clients can connect; it is removed at the end.
    #[arg(short = 'P', long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) pidfile: Option<PathBuf>,
    /// End when the process that started this one ends.
    #[arg(long)]
    pub(crate) exit_with_parent: bool,

    /// Append a line of JSON to FILE for each connection and each failure.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) log: Option<PathBuf>,
    /// A line for each request, too.
    #[arg(long, requires = "log")]
    pub(crate) log_requests: bool,
    /// Tell connections, requests, bytes, latencies and errors to Prometheus at http://ADDR:PORT/metrics.
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) metrics: Option<String>,

    /// Connections to a source that is an NBD server, from 1 to 64.
    #[arg(short = 'C', long, value_name = "N", default_value_t = default_connections(),
          value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) connections: u16,
    /// How many attempts in a row to open a lost one again may fail before its clients hear of it.
    #[arg(long, value_name = "N", default_value_t = CopyOptions::default().retries,
          value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub(crate) retries: u32,
    #[command(flatten)]
    pub(crate) timeouts: TimeoutArgs,
}

/// Whether a server encrypts.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum TlsArg {
    Off,
    On,
    Require,
}

const SERVED: &str = "\
Without --unix, --listen, --vsock and --run, the sockets of systemd socket activation are served.

'dir:PATH' serves the files of a directory as exports of their names.";

/// Show what a server or a file offers: size, block sizes, abilities.
#[derive(Args, Debug)]
#[command(after_help = endpoints(Reader::Copies))]
pub(crate) struct InfoArgs {
    /// What to look at: an endpoint, see below.
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) endpoint: OsString,
    /// Show every export of the server.
    #[arg(short, long)]
    pub(crate) list: bool,
    #[command(flatten)]
    pub(crate) timeouts: TimeoutArgs,
    /// Print JSON, with nbdinfo's keys.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show where an image has data, holes and zeroes: offset, length, type and its meaning.
#[derive(Args, Debug)]
#[command(after_help = endpoints(Reader::Copies))]
pub(crate) struct MapArgs {
    /// What to map: an endpoint, see below.
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) endpoint: OsString,
    /// The metadata context to ask, by NBD's name.
    #[arg(long, value_name = "NAME", default_value_t = Context::Allocation.to_string())]
    pub(crate) context: String,
    /// Print the sum of each type instead of each extent.
    #[arg(long)]
    pub(crate) totals: bool,
    #[command(flatten)]
    pub(crate) filters: FilterArgs,
    #[command(flatten)]
    pub(crate) timeouts: TimeoutArgs,
    /// Print JSON, as nbdinfo does.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Compare two images byte by byte, and say where they begin to differ.
///
/// What both sides know to be zero is not read. Images of different sizes are identical when the longer
/// one goes on with zeroes.
#[derive(Args, Debug)]
#[command(after_help = endpoints(Reader::Reads) + "\n\n" + COMPARE_EXIT_CODES)]
pub(crate) struct CompareArgs {
    /// The one image: an endpoint, see below.
    #[arg(value_name = "A", value_hint = ValueHint::AnyPath)]
    pub(crate) a: OsString,
    /// The other image.
    #[arg(value_name = "B", value_hint = ValueHint::AnyPath)]
    pub(crate) b: OsString,

    /// Images of different sizes differ.
    #[arg(short, long)]
    pub(crate) strict: bool,
    #[command(flatten)]
    pub(crate) reading: ReadingArgs,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Print the digest of an image: the hash of its blocks' hashes and its size, as nbdcopy's --blkhash.
///
/// It depends on the contents alone, not on holes, formats or servers; what is known to be zero is not read.
#[derive(Args, Debug)]
#[command(after_help = endpoints(Reader::Copies))]
pub(crate) struct ChecksumArgs {
    /// What to read: an endpoint, see below.
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) image: OsString,

    /// The hash and the size of the blocks that are hashed: md5, sha1, sha256 or sha512, and a power of two
    /// from 512 to 32M. sha256/64k unless given.
    #[arg(short, long, value_name = "ALG[/SIZE]")]
    pub(crate) algorithm: Option<DigestOptions>,
    /// Fail unless the image has this digest: HEX, or ALG/SIZE:HEX.
    #[arg(long, value_name = "DIGEST")]
    pub(crate) expect: Option<ExpectedDigest>,
    #[command(flatten)]
    pub(crate) filters: FilterArgs,
    #[command(flatten)]
    pub(crate) reading: ReadingArgs,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Explain everything that can stand for an image, with its parameters.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct SourcesArgs {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Explain the filters that '--filter' puts in front of an image, with their parameters.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct FiltersArgs {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Print a completion script for a shell.
#[derive(Args, Debug)]
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

/// A number of bytes as people write it: `256K`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_size(text)
            .map(Size)
            .map_err(|error| error.to_string())
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [
            (60, "E"),
            (50, "P"),
            (40, "T"),
            (30, "G"),
            (20, "M"),
            (10, "K"),
        ] {
            let bytes = 1_u64 << shift;
            if self.0 >= bytes && self.0.is_multiple_of(bytes) {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn parse_request_size(text: &str) -> Result<Size, String> {
    let size = Size::from_str(text)?;
    if !size.0.is_power_of_two() || !(4 * KIB..=32 * MIB).contains(&size.0) {
        return Err("it must be a power of two from 4K to 32M".to_owned());
    }
    Ok(size)
}

/// More than 0 seconds, with a fraction or without.
fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok();
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "it must be a number of seconds above 0".to_owned())
}

fn parse_queue_size(text: &str) -> Result<Size, String> {
    let size = Size::from_str(text)?;
    if !(4 * KIB..=4 * GIB).contains(&size.0) {
        return Err("it must lie between 4K and 4G".to_owned());
    }
    Ok(size)
}

fn parse_sparse(text: &str) -> Result<Size, String> {
    let size = Size::from_str(text)?;
    let in_range = size.0.is_power_of_two() && (512..=32 * MIB).contains(&size.0);
    if size.0 != 0 && !in_range {
        return Err("it must be 0, or a power of two from 512 to 32M".to_owned());
    }
    Ok(size)
}

fn default_connections() -> u16 {
    u16::try_from(CopyOptions::default().connections).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["blockferry"], words].concat())
    }

    fn copy(words: &[&str]) -> CopyArgs {
        let all = [&["copy"], words, &["a", "b"]].concat();
        match parse(&all).expect("valid arguments").command {
            Command::Copy(copy) => copy,
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
            ("--sparse", "256", "512 to 32M"),
            ("-S", "4097", "power of two"),
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
