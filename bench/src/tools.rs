//! Where the programs of a scenario lie: ours beside the runner, the rivals' on the `PATH`.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

/// Directories that an ordinary user's `PATH` may leave out.
const ADMINISTRATOR_DIRECTORIES: [&str; 2] = ["/usr/sbin", "/sbin"];

/// The directory that this runner was built into, with our own programs.
pub(crate) struct Tools {
    directory: PathBuf,
}

impl Tools {
    /// Ours are taken from the same build as the runner itself.
    pub(crate) fn beside_the_runner() -> Result<Self> {
        let runner = env::current_exe().context("where the runner itself lies")?;
        let directory = runner.parent().context("the runner lies nowhere")?;
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    /// One of the project's own programs: `blockferry`, `zero-scan`.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// One of the project's examples.
    pub(crate) fn example(&self, name: &str) -> PathBuf {
        self.directory.join("examples").join(name)
    }
}

/// A file that configures a rival.
pub(crate) fn configuration(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("configurations");
    directory.join(name)
}

/// The path of a program: itself if it has a directory, else the first of that name on the `PATH`.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Path::new(program).is_file().then(|| program.into());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(ADMINISTRATOR_DIRECTORIES.map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// The first line that `program --version` prints, if it knows that option.
pub(crate) fn version(program: &Path) -> Option<String> {
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next()?.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_by_name_and_by_path() {
        let shell = find("sh").unwrap();
        assert!(shell.is_absolute());
        assert_eq!(find(shell.to_str().unwrap()), Some(shell));
        assert_eq!(find("no-such-program-anywhere"), None);
        assert_eq!(find("/no/such/program"), None);
    }

    #[test]
    fn a_program_without_a_version_has_none() {
        assert_eq!(version(&find("false").unwrap()), None);
    }
}
