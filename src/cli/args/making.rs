//! What the commands take that make images or change them: `create`, `dd`, `resize`.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, ValueEnum, ValueHint};

use super::{
    super::endpoint_help::Reader,
    FormatArg, FormatArgs, Size, TimeoutArgs, brief,
    copy::{OptionsParser, ProgressStyle},
    whole,
};

/// Make a new, empty image.
///
/// A file appears when it is whole; one that is there is written over. A raw image on a block device or a server is
/// what is there already, if that is large enough.
#[derive(Args, Debug)]
#[command(after_help = brief("create"), after_long_help = whole("create", None, &[]))]
pub(crate) struct CreateArgs {
    /// Where: a file, or another endpoint.
    #[arg(value_name = "FILE", value_hint = ValueHint::AnyPath)]
    pub(crate) file: OsString,
    /// The size of its disk; that of the backing file unless given.
    #[arg(value_name = "SIZE")]
    pub(crate) size: Option<Size>,

    /// The format: raw unless given; qcow2, vmdk, vpc, vhdx or vdi.
    #[arg(short = 'f', long, value_name = "FMT")]
    pub(crate) format: Option<FormatArg>,
    /// How the format is made; 'help' lists what there is. Several are possible.
    #[arg(short = 'o', long, value_name = "KEY=VALUE,...", alias = "options",
          value_parser = OptionsParser)]
    pub(crate) option: Vec<OsString>,
    /// Make an overlay: where the image has nothing, FILE shows through. A name that is no whole path is relative to
    /// the image's directory. What FILE itself names is not opened.
    #[arg(short = 'b', long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) backing: Option<OsString>,
    /// The format of that file. Without it a regular file is looked into.
    #[arg(short = 'F', long, value_name = "FMT", requires = "backing")]
    pub(crate) backing_format: Option<FormatArg>,
    /// Do not look at the backing file: it may not be there yet.
    #[arg(short = 'u', long, requires = "backing")]
    pub(crate) backing_unsafe: bool,
    #[command(flatten)]
    pub(crate) timeouts: TimeoutArgs,
}

/// Copy blocks of an image, in the words of dd.
///
/// if=SOURCE of=DESTINATION [bs=SIZE] [count=N] [skip=N]. The destination becomes an image of what was copied, as with 'copy'. Blocks have 512 bytes unless bs is given;
/// skip and count are numbers of them.
#[derive(Args, Debug)]
#[command(after_help = brief("dd"), after_long_help = whole("dd", Some(Reader::Reads), &[]))]
pub(crate) struct DdArgs {
    /// if=SOURCE, of=DESTINATION, bs=SIZE, count=N, skip=N.
    #[arg(value_name = "KEY=VALUE", required = true)]
    pub(crate) operands: Vec<OsString>,
    #[command(flatten)]
    pub(crate) formats: FormatArgs,
    /// The format of the destination: raw unless given. xz, bzip2 and ova are read, and not made.
    #[arg(short = 'O', long, value_name = "FMT")]
    pub(crate) output_format: Option<FormatArg>,
    /// It is known that another program may write the source meanwhile: do not warn of it.
    #[arg(short = 'U', long)]
    pub(crate) force_share: bool,
    /// Show percent, rate and time left, also where standard error is no terminal; see 'blockferry copy --help'.
    #[arg(short, long, value_name = "STYLE", num_args = 0..=1, require_equals = true,
          default_missing_value = "auto")]
    pub(crate) progress: Option<ProgressStyle>,
    #[command(flatten)]
    pub(crate) timeouts: TimeoutArgs,
}

/// Make a raw or qcow2 image longer or shorter.
///
/// What is new reads as zeroes.
#[derive(Args, Debug)]
#[command(after_help = brief("resize"), after_long_help = whole("resize", None, &[]))]
pub(crate) struct ResizeArgs {
    /// The image.
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: OsString,
    /// Its new size; how much larger it becomes with '+' in front, how much smaller with '-'.
    #[arg(value_name = "[+-]SIZE", allow_hyphen_values = true)]
    pub(crate) size: String,

    /// The format of the image. Without it a regular local file is looked into.
    #[arg(short = 'f', long, value_name = "FMT")]
    pub(crate) format: Option<FormatArg>,
    /// The image may become smaller: what lies behind its new end is lost.
    #[arg(long)]
    pub(crate) shrink: bool,
    /// What is allocated of what is new.
    #[arg(long, value_name = "MODE", default_value = "off")]
    pub(crate) preallocation: PreallocationArg,
    /// Open backing files and data files that the image names, where they lie in DIR or below; several are
    /// possible. Without it none is opened.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) allow_backing: Vec<PathBuf>,
}

/// What is allocated in advance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PreallocationArg {
    /// Nothing.
    Off,
    /// The tables of a qcow2 image.
    Metadata,
    /// The data as well, without writing it.
    Falloc,
    /// The data as well, written.
    Full,
}
