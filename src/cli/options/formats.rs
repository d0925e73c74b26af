//! The formats of images that are read, and how far they are trusted.

use std::{env, path::PathBuf};

use crate::{
    cli::args::{FollowArgs, FormatArg},
    endpoint::{FormatKind, OpenOptions},
    format::{Format, packed::Packing},
};

/// The environment variable with the directories, separated by colons, in which other files may be opened that images
/// name, under the names of other tools.
const ALLOWED: &str = "BLOCKFERRY_ALLOW_BACKING";

/// How far images in a format are trusted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trust {
    /// The directories in which other files may be opened that images name.
    pub(crate) allow_backing: Vec<PathBuf>,
    /// The largest size that is opened, in bytes.
    pub(crate) max_size: Option<u64>,
}

impl Trust {
    pub(crate) fn resolve(args: &FollowArgs) -> Self {
        Self {
            allow_backing: args.allow_backing.clone(),
            max_size: args.max_size.map(|size| size.0),
        }
    }

    /// As [`ALLOWED`] says, for the command lines that have no option for it.
    pub(crate) fn of_environment() -> Self {
        let allowed = env::var_os(ALLOWED).unwrap_or_default();
        let directories = env::split_paths(&allowed);
        Self {
            allow_backing: directories
                .filter(|path| !path.as_os_str().is_empty())
                .collect(),
            max_size: None,
        }
    }

    /// The options with so much trust.
    pub(crate) fn in_options(&self, options: OpenOptions) -> OpenOptions {
        OpenOptions {
            allow_backing: self.allow_backing.clone(),
            max_size: self.max_size,
            ..options
        }
    }
}

/// What a format that was said, or none, makes of the bytes of an image.
pub(super) fn kind(format: Option<FormatArg>) -> FormatKind {
    match format {
        None => FormatKind::Probe,
        Some(FormatArg::Raw) => FormatKind::Raw,
        Some(FormatArg::Qcow2) => FormatKind::Image(Format::Qcow2),
        Some(FormatArg::Vmdk) => FormatKind::Image(Format::Vmdk),
        Some(FormatArg::Vpc) => FormatKind::Image(Format::Vpc),
        Some(FormatArg::Vhdx) => FormatKind::Image(Format::Vhdx),
        Some(FormatArg::Vdi) => FormatKind::Image(Format::Vdi),
        Some(FormatArg::Gzip) => FormatKind::Packed(Packing::Gzip),
        Some(FormatArg::Xz) => FormatKind::Packed(Packing::Xz),
        Some(FormatArg::Zstd) => FormatKind::Packed(Packing::Zstd),
        Some(FormatArg::Bzip2) => FormatKind::Packed(Packing::Bzip2),
        Some(FormatArg::Ova) => FormatKind::Ova,
    }
}
