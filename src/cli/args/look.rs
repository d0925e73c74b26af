//! What the commands take that look at one image: `info`, `map`, `check`, `measure`, `snapshot`, `bitmap`.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, ValueEnum, ValueHint, builder::NonEmptyStringValueParser};

use crate::block::Context;

use super::{
    super::endpoint_help::Reader, FilterArgs, FormatArg, FormatArgs, Size, TimeoutArgs, brief,
    whole,
};

const CHECK_EXIT_CODES: &str = "\
Exit codes:
  0    The image is sound
  1    It could not be checked, or not all of it
  2    It is corrupt, or wrong usage
  3    Space is lost in it, and nothing else is wrong
  63   There is nothing to check in it
  75   It could not be checked, but trying again may help
  130  Interrupted (SIGINT); 143: asked to end (SIGTERM)";

/// Show what an image or a server is, and what it can do.
///
/// Sizes, block sizes, abilities; of an image in a format also what it says of itself.
#[derive(Args, Debug)]
#[command(after_help = brief("info"),
          after_long_help = whole("info", Some(Reader::Copies), &[]))]
pub(crate) struct InfoArgs {
    /// What to look at: an endpoint, see below.
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) endpoint: OsString,
    /// Show every export of the server.
    #[arg(short, long)]
    pub(crate) list: bool,
    /// Tell of the images behind an image in a format, too, as far as --allow-backing allows them to be opened.
    #[arg(short, long)]
    pub(crate) backing_chain: bool,
    #[command(flatten)]
    pub(crate) formats: FormatArgs,
    #[command(flatten)]
    pub(crate) timeouts: TimeoutArgs,
    /// Print JSON, with nbdinfo's keys.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show where an image has data, holes and zeroes.
///
/// A line for each extent: offset, length, type, and what the type means.
#[derive(Args, Debug)]
#[command(after_help = brief("map"),
          after_long_help = whole("map", Some(Reader::Copies), &[]))]
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
    /// Print in which image of a chain each part is, from 0 on, and at which offset of which file it lies.
    #[arg(long, conflicts_with_all = ["totals", "context", "filter"])]
    pub(crate) offsets: bool,
    /// Draw the image: rows of cells, in colours where standard output is a terminal, and the share of each type.
    #[arg(long, conflicts_with_all = ["context", "json", "totals", "offsets"])]
    pub(crate) picture: bool,
    /// Write a picture of the image to FILE, as SVG. The extents are printed as well where --totals, --offsets
    /// or --json is given.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "context")]
    pub(crate) svg: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) formats: FormatArgs,
    #[command(flatten)]
    pub(crate) filters: FilterArgs,
    #[command(flatten)]
    pub(crate) timeouts: TimeoutArgs,
    /// Print JSON, as nbdinfo does.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Check whether an image contradicts itself, and mend it.
///
/// Nothing is changed without --repair.
#[derive(Args, Debug)]
#[command(after_help = brief("check"),
          after_long_help = whole("check", Some(Reader::Reads), &[CHECK_EXIT_CODES]))]
pub(crate) struct CheckArgs {
    /// The image: an endpoint, see below.
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) image: OsString,
    /// Mend a qcow2 image that nobody else uses: 'leaks' gives lost space back, 'all' mends all that can be mended
    /// without losing data.
    #[arg(short, long, value_name = "WHAT")]
    pub(crate) repair: Option<RepairArg>,
    #[command(flatten)]
    pub(crate) formats: FormatArgs,
    #[command(flatten)]
    pub(crate) timeouts: TimeoutArgs,
    /// Print JSON, with qemu-img's keys.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What is mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RepairArg {
    /// Space that is lost comes back.
    Leaks,
    /// Refcounts become what they should be.
    All,
}

/// Tell how long the file of a copy would be.
///
/// That of a copy of IMAGE, or of an empty disk of a size.
#[derive(Args, Debug)]
#[command(after_help = brief("measure"),
          after_long_help = whole("measure", Some(Reader::Reads), &[]))]
pub(crate) struct MeasureArgs {
    /// The image that would be copied: an endpoint, see below.
    #[arg(value_hint = ValueHint::AnyPath, required_unless_present = "size", conflicts_with = "size")]
    pub(crate) image: Option<OsString>,
    /// The size of an empty disk, in the place of an image.
    #[arg(long, value_name = "SIZE")]
    pub(crate) size: Option<Size>,
    /// The format that it would be in: raw or qcow2.
    #[arg(
        short = 'O',
        long,
        value_name = "FMT",
        default_value = "raw",
        alias = "target-format"
    )]
    pub(crate) output_format: FormatArg,
    /// How it would be made: options of the format, see 'copy -o help'.
    #[arg(short = 'o', value_name = "KEY=VALUE,...")]
    pub(crate) option: Vec<OsString>,
    /// Measure this snapshot in a qcow2 image, by its ID or its name.
    #[arg(short = 'l', long, value_name = "SNAPSHOT", requires = "image")]
    pub(crate) snapshot: Option<String>,
    #[command(flatten)]
    pub(crate) formats: FormatArgs,
    #[command(flatten)]
    pub(crate) timeouts: TimeoutArgs,
    /// Print JSON, with qemu-img's keys.
    #[arg(long)]
    pub(crate) json: bool,
}

/// List, make, apply or delete snapshots in an image.
#[derive(Args, Debug)]
#[command(after_help = brief("snapshot"),
          after_long_help = whole("snapshot", Some(Reader::Reads), &[]))]
#[group(id = "change", multiple = false, conflicts_with_all = ["list", "json"])]
pub(crate) struct SnapshotArgs {
    #[command(flatten)]
    pub(crate) listing: ListingArgs,
    /// Make a snapshot of the disk as it is now. Nobody else may have the image open, here as below.
    #[arg(short, long, value_name = "NAME", group = "change",
          value_parser = NonEmptyStringValueParser::new())]
    pub(crate) create: Option<String>,
    /// Let the disk be what it was in a snapshot: its ID or name, or snapshot.id=ID, or snapshot.name=NAME. What it is now
    /// is lost.
    #[arg(short, long, value_name = "SNAPSHOT", group = "change")]
    pub(crate) apply: Option<String>,
    /// Delete a snapshot: its ID or name, or snapshot.id=ID, or snapshot.name=NAME.
    #[arg(short, long, value_name = "SNAPSHOT", group = "change")]
    pub(crate) delete: Option<String>,
}

/// List the bitmaps in an image.
#[derive(Args, Debug)]
#[command(after_help = brief("bitmap"),
          after_long_help = whole("bitmap", Some(Reader::Reads), &[]))]
pub(crate) struct BitmapArgs {
    #[command(flatten)]
    pub(crate) listing: ListingArgs,
}

/// What is listed, and how.
#[derive(Args, Debug)]
pub(crate) struct ListingArgs {
    /// The image: an endpoint, see below.
    #[arg(value_hint = ValueHint::AnyPath)]
    pub(crate) image: OsString,
    /// List them, which is what is done without this, too.
    #[arg(short, long)]
    pub(crate) list: bool,
    /// The format of the image. Without it a regular local file is looked into, and all else is raw.
    #[arg(short = 'f', long, value_name = "FMT")]
    pub(crate) format: Option<FormatArg>,
    #[command(flatten)]
    pub(crate) timeouts: TimeoutArgs,
    /// Print JSON, with qemu-img's keys.
    #[arg(long)]
    pub(crate) json: bool,
}
