//! What several commands take about the formats of images.

use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};

use super::Size;

/// The format of an image that is read, and how far it is trusted.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct FormatArgs {
    /// The format of the image. Without it a regular local file is looked into, and all else is raw.
    #[arg(short = 'f', long, value_name = "FMT", alias = "source-format")]
    pub(crate) format: Option<FormatArg>,
    #[command(flatten)]
    pub(crate) follow: FollowArgs,
}

/// How far an image in a format is trusted.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct FollowArgs {
    /// Open backing files and data files that the image names, where they lie in DIR or below; several are
    /// possible. Without it none is opened.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, display_order = 810)]
    pub(crate) allow_backing: Vec<PathBuf>,
    /// Refuse images in a format that say they are larger.
    #[arg(long, value_name = "SIZE", display_order = 811)]
    pub(crate) max_size: Option<Size>,
}

/// A format of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FormatArg {
    /// The bytes are the image.
    Raw,
    /// QEMU's, versions 2 and 3.
    Qcow2,
    /// VMware's.
    Vmdk,
    /// VHD, of Virtual PC, Hyper-V and Azure.
    #[value(alias = "vhd")]
    Vpc,
    /// Hyper-V's newer one.
    Vhdx,
    /// VirtualBox's.
    Vdi,
    /// The bytes of the image, compressed by gzip.
    Gzip,
    /// The same, by xz.
    Xz,
    /// The same, by zstd.
    Zstd,
    /// The same, by bzip2.
    Bzip2,
    /// A virtual machine in one archive: its disk.
    Ova,
}
