//! The Debian package, by cargo-deb. What goes into it is in `Cargo.toml` (`package.metadata.deb`); its scripts and
//! documents are in `packaging/debian`.

use std::{env, ffi::OsStr, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};

use super::{NAME, Release, files};
use crate::{program, tools};

const CARGO_DEB: &str = "3.8.0";

/// How often this version of the program was packaged.
const REVISION: &str = "1";

/// Who answers for the package, unless `DEBFULLNAME` and `DEBEMAIL` say it, as Debian's own tools have it.
///
/// The project has no public address yet, and an invented one could be somebody's.
const MAINTAINER: &str = "The blockferry developers <blockferry@localhost.invalid>";

/// Makes the package; one that is only to be tried is compressed in less time.
pub(super) fn make(release: &Release, for_a_trial: bool) -> Result<PathBuf> {
    // Without it, cargo-deb makes a package that depends on nothing.
    ensure!(
        program::succeeds(Command::new("dpkg-shlibdeps").arg("--version")),
        "dpkg-shlibdeps is missing, which knows what the Debian package depends on: install dpkg-dev"
    );
    let tool = tools::cargo_tool("cargo-deb", CARGO_DEB)?;
    let maintainer = maintainer();
    let made_for_it = release.directory.join("debian");
    files::write(
        &made_for_it.join("changelog"),
        changelog(release, &maintainer)?.as_bytes(),
    )?;

    program::run(
        Command::new(tool)
            .current_dir(program::workspace())
            // What is packed was built, stripped and laid out before.
            .args(["--no-build", "--no-strip", "--no-dbgsym", "--locked"])
            .args(["--package", NAME, "--deb-revision", REVISION])
            .args(["--maintainer", &maintainer, "--output"])
            .arg(&release.directory)
            .args(for_a_trial.then_some("--fast"))
            .env("SOURCE_DATE_EPOCH", release.time.to_string()),
    )?;
    files::remove(&made_for_it)?;
    files::list(&release.directory)?
        .into_iter()
        .find(|path| path.extension() == Some(OsStr::new("deb")))
        .context("cargo-deb made no package")
}

fn maintainer() -> String {
    match (env::var("DEBFULLNAME"), env::var("DEBEMAIL")) {
        (Ok(name), Ok(address)) => format!("{name} <{address}>"),
        _ => MAINTAINER.into(),
    }
}

/// What Debian's tools want to read; what changed for users is in CHANGELOG.md, which is in the package, too.
fn changelog(release: &Release, maintainer: &str) -> Result<String> {
    let seconds = format!("--date=@{}", release.time);
    let mut command = Command::new("date");
    let date = program::output(
        command
            .args(["--utc", "--rfc-email", &seconds])
            .env("LC_ALL", "C"),
    )?;
    let date = String::from_utf8(date).context("a date is text")?;
    let version = &release.version;
    Ok(format!(
        "{NAME} ({version}-{REVISION}) unstable; urgency=medium\n\n  \
         * Version {version}. See /usr/share/doc/{NAME}/changelog.gz.\n\n \
         -- {maintainer}  {date}"
    ))
}
