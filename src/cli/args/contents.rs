//! What the commands take that are about what images contain: `compare`, `checksum`.

use std::ffi::OsString;

use clap::{Args, ValueHint};

use crate::copy::{DigestOptions, ExpectedDigest};

use super::{
    super::endpoint_help::Reader, FilterArgs, FollowArgs, FormatArg, FormatArgs, ReadingArgs,
    brief, whole,
};

const COMPARE_EXIT_CODES: &str = "\
Exit codes:
  0    The images are identical
  1    They differ
  2    They could not be compared, or wrong usage
  75   They could not be compared, but trying again may help
  130  Interrupted (SIGINT); 143: asked to end (SIGTERM)";

/// Compare two images, and tell where they begin to differ.
///
/// What both sides know to be zero is not read. Images of different sizes are identical when the longer
/// one goes on with zeroes.
#[derive(Args, Debug)]
#[command(after_help = brief("compare"),
          after_long_help = whole("compare", Some(Reader::Reads), &[COMPARE_EXIT_CODES]))]
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
    /// The format of A. Without it a regular local file is looked into, and all else is raw.
    #[arg(short = 'f', long, value_name = "FMT", alias = "a-format")]
    pub(crate) format: Option<FormatArg>,
    /// The format of B, likewise.
    #[arg(short = 'F', long, value_name = "FMT", alias = "b-format")]
    pub(crate) other_format: Option<FormatArg>,
    #[command(flatten)]
    pub(crate) follow: FollowArgs,
    #[command(flatten)]
    pub(crate) reading: ReadingArgs,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Print the digest of an image.
///
/// It is the hash of its blocks' hashes and of its size, as nbdcopy's --blkhash. It depends on the contents alone, not on holes, formats or servers; what is known to be zero is not read.
#[derive(Args, Debug)]
#[command(after_help = brief("checksum"),
          after_long_help = whole("checksum", Some(Reader::Copies), &[]))]
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
    pub(crate) formats: FormatArgs,
    #[command(flatten)]
    pub(crate) filters: FilterArgs,
    #[command(flatten)]
    pub(crate) reading: ReadingArgs,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}
