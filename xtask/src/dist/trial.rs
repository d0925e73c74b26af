//! Using what was made: the Debian package is installed, the image is put together and started, and the machine
//! stays as it was.
//!
//! Both need root. The package goes into an overlay over this system, which is gone when the trial ends; so it meets
//! the packages that own the names it offers. There is no container engine here: the image is what its Containerfile
//! copies, with the libraries and the shell of this system in place of those of its base. That base itself, and building
//! with an engine, is not tried.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{Release, files, image::Description, tree};
use crate::{packages, program, tools};

/// Installs, uses, upgrades, removes and purges the package, and asks lintian about it.
pub(super) fn deb(release: &Release, deb: &Path) -> Result<()> {
    lintian(deb)?;
    let names = tree::NAMES.join(" ");
    script("overlay.sh", include_str!("trial/overlay.sh"), |command| {
        command.arg(include_str!("trial/deb.sh")).arg(deb);
        command.arg(&release.version).arg(names);
    })
}

fn lintian(deb: &Path) -> Result<()> {
    let mut lintian = Command::new("lintian");
    lintian.args(["--info", "--fail-on=error,warning"]).arg(deb);
    program::run(&mut lintian)
}

/// Starts the program in what the Containerfile describes.
pub(super) fn image(release: &Release) -> Result<()> {
    let root = tools::target_directory()?.join("dist-image");
    let described = Description::of(release)?;
    assemble(release, &described, &root)?;
    let outcome = script("image.sh", include_str!("trial/image.sh"), |command| {
        command
            .arg(&root)
            .arg(&described.user)
            .arg(&described.directory);
        let variables = described.environment.iter();
        command.args(variables.map(|(name, value)| format!("{name}={value}")));
        command.arg("--").args(&described.entrypoint);
    });
    outcome.and(files::remove(&root))
}

/// The image's files: what is copied, the libraries that it needs, and a shell.
fn assemble(release: &Release, described: &Description, root: &Path) -> Result<()> {
    files::empty(root)?;
    let inside = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    for (from, to) in &described.copies {
        files::copy_tree(&release.directory.join(from), &inside(to))?;
    }
    for directory in [
        "proc",
        "dev",
        "tmp",
        described.directory.trim_start_matches('/'),
    ] {
        files::empty(&root.join(directory))?;
    }
    let shell = Path::new("/bin/sh");
    files::copy(shell, &inside(shell))?;
    let program = described.entrypoint.first().context("nothing is started")?;
    for user in [inside(Path::new(program)), shell.into()] {
        for library in libraries(&user)? {
            files::copy(&library, &inside(&library))?;
        }
    }
    // The user whom the image runs as may write only here.
    for directory in ["tmp", described.directory.trim_start_matches('/')] {
        files::set_mode(&root.join(directory), 0o777)?;
    }
    Ok(())
}

/// The shared libraries that a program is loaded with, the loader among them.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = program::output(Command::new("ldd").arg(program))?;
    let listed = String::from_utf8(listed).context("what ldd says is text")?;
    Ok(paths_of(&listed))
}

/// The paths in what ldd says: `libc.so.6 => /lib/libc.so.6 (0x...)`, `/lib64/ld-linux-x86-64.so.2 (0x...)`.
fn paths_of(listed: &str) -> Vec<PathBuf> {
    listed
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

/// Runs a script of this directory as root, in mount and process namespaces of its own.
fn script(name: &str, text: &str, arguments: impl FnOnce(&mut Command)) -> Result<()> {
    let mut command = packages::as_root("unshare").context(
        "trying the packages takes root, or a sudo that asks for no password: \
         they are installed into a root directory of their own",
    )?;
    command
        .args(["--mount", "--pid", "--fork", "--kill-child", "--"])
        .args(["sh", "-euc", text, name]);
    arguments(&mut command);
    eprintln!("== {name}");
    let status = command.status().context("cannot start unshare")?;
    anyhow::ensure!(status.success(), "{name}: {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_the_paths_that_ldd_names() {
        let listed = "\tlinux-vdso.so.1 (0x00007f)\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = ["/lib/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(paths_of(listed), expected.map(PathBuf::from));
    }
}
