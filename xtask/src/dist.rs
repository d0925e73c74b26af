//! `cargo xtask dist`: what users get. A stripped program with its debug information beside it, the tree of an
//! installation, an archive of that, a Debian package, the wheel of the Python package, what an image for containers is
//! built from, and sums of it all.
//!
//! ```text
//!  dist/usr                 tree      the installation: program, manual, completions, documents, names
//!  dist/blockferry.debug    binary    for debuggers; the program names it
//!  dist/*.tar.gz            archive   the tree
//!  dist/*.deb               deb       the tree as Debian wants it, by cargo-deb
//!  dist/*.whl               python    for pip, by maturin: `xtask/src/python.rs`
//!  dist/Containerfile       image     takes the tree
//!  dist/SHA256SUMS          archive
//! ```
//!
//! `trial` installs and uses what was made, on a machine that it leaves as it was.

mod archive;
mod binary;
mod deb;
mod files;
mod image;
mod third_party;
mod tree;
mod trial;

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::Value;

use self::binary::Selection;
use crate::{packages, program, python, tools};

/// The program's name, that of its package and of its directories.
const NAME: &str = "blockferry";

#[derive(Args)]
pub(crate) struct Options {
    /// Installs the Debian package where it can do no harm, uses it, upgrades, removes and purges it; runs
    /// lintian; starts the program in what the Containerfile describes. The program is not optimised then.
    #[arg(long = "try")]
    trial: bool,

    /// With --try, installs nothing: a missing program is an error that names its package.
    #[arg(long, requires = "trial")]
    no_install: bool,

    /// The profile that the program is built with.
    #[arg(long, value_name = "NAME", hide = true)]
    profile: Option<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if options.trial {
        packages::require(packages::PACKAGING, !options.no_install)?;
    }
    let (usual, selection) = match options.trial {
        true => ("dev", Selection::Workspace),
        false => ("release", Selection::Program),
    };
    let profile = options.profile.as_deref().unwrap_or(usual);

    let release = Release::of_this_workspace()?;
    let built = binary::build(profile, selection)?;
    files::empty(&release.directory)?;
    tree::lay_out(&release, &built)?;
    let deb = deb::make(&release, options.trial)?;
    let wheel = python::wheel(&release.directory, profile)?;
    image::describe(&release)?;
    archive::pack(&release)?;
    archive::sum(&release)?;
    eprintln!("wrote {}", release.directory.display());
    if options.trial {
        trial::deb(&release, &deb)?;
        trial::image(&release)?;
        python::try_wheel(&wheel)?;
    }
    Ok(())
}

/// What is being made.
struct Release {
    version: String,
    /// When: that of the last commit, so that the same source makes the same packages.
    time: u64,
    /// Where it is written.
    directory: PathBuf,
    /// What cargo knows of the workspace and of everything it depends on.
    metadata: Value,
}

impl Release {
    fn of_this_workspace() -> Result<Self> {
        let metadata = metadata_of_this_platform()?;
        Ok(Self {
            version: tree::version(&metadata)?,
            time: archive::time_of_the_source()?,
            directory: program::workspace().join("dist"),
            metadata,
        })
    }

    /// The tree of the installation, as it will be below `/usr`.
    fn tree(&self) -> PathBuf {
        self.directory.join("usr")
    }
}

/// What other platforms would need is not in it.
fn metadata_of_this_platform() -> Result<Value> {
    let host = program::output(Command::new("rustc").args(["--print", "host-tuple"]))?;
    let host = String::from_utf8(host).context("the host's name is text")?;
    tools::metadata(&["--filter-platform", host.trim()])
}
