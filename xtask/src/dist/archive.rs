//! The tree as one file, and the sums of everything. Made from the same source by the same compiler, they are
//! the same: names in order, no owner, and the time of the last commit.

use std::{env, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use super::{NAME, Release, files};
use crate::program;

/// `blockferry-0.1.0-x86_64-linux.tar.gz`, with a directory of that name in it.
pub(super) fn pack(release: &Release) -> Result<()> {
    let name = format!("{NAME}-{}-{}-linux", release.version, env::consts::ARCH);
    // `S`: the targets of links stay what they are.
    let renamed = format!("--transform=s,^usr,{name},S");
    program::run(
        Command::new("tar")
            .current_dir(&release.directory)
            .args(["--create", "--format=ustar", "--sort=name", &renamed])
            .args(["--owner=0", "--group=0", "--numeric-owner"])
            .args(["--mode=u=rwX,go=rX", &format!("--mtime=@{}", release.time)])
            .arg("--use-compress-program=gzip -9n")
            .args([format!("--file={name}.tar.gz"), "usr".into()]),
    )
}

/// `SHA256SUMS`, of each file that stands beside the tree.
pub(super) fn sum(release: &Release) -> Result<()> {
    let names: Vec<PathBuf> = files::list(&release.directory)?
        .into_iter()
        .filter(|path| path.is_file())
        .filter_map(|path| Some(path.file_name()?.into()))
        .collect();
    let sums = program::output(
        Command::new("sha256sum")
            .current_dir(&release.directory)
            .args(names),
    )?;
    files::write(&release.directory.join("SHA256SUMS"), &sums)
}

/// What `SOURCE_DATE_EPOCH` says, or the time of the last commit: seconds since 1970.
pub(super) fn time_of_the_source() -> Result<u64> {
    let text = match env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_) => {
            let mut git = Command::new("git");
            git.args(["log", "-1", "--format=%ct"])
                .current_dir(program::workspace());
            let time = program::output(&mut git)
                .context("without git, SOURCE_DATE_EPOCH has to say how old the source is")?;
            String::from_utf8_lossy(&time).into_owned()
        }
    };
    let text = text.trim();
    text.parse()
        .with_context(|| format!("{text} is no number of seconds"))
}
