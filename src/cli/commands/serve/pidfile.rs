//! `--pidfile`: the process's number, in a file that is there once clients can connect.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::{cli::failure::Failure, endpoint::printable};

/// A file with this process's number; removed when this is dropped.
#[derive(Debug)]
pub(super) struct PidFile {
    path: PathBuf,
    contents: String,
}

impl PidFile {
    /// Writes it, all at once where the file system lets one.
    pub(super) fn write(path: &Path) -> Result<Self, Failure> {
        let contents = format!("{}\n", std::process::id());
        place(path, &contents).map_err(|error| {
            let path = printable(path.as_os_str());
            Failure::system(&format!("--pidfile {path}"), &error)
        })?;
        Ok(Self {
            path: std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
            contents,
        })
    }
}

fn place(path: &Path, contents: &str) -> io::Result<()> {
    let is_other = fs::metadata(path).is_ok_and(|there| !there.is_file());
    if is_other {
        return fs::write(path, contents);
    }
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(directory)?;
    file.write_all(contents.as_bytes())?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Another server may have written its own since.
        if fs::read_to_string(&self.path).is_ok_and(|there| there == self.contents) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_goes_with_the_server_unless_it_is_anothers_by_then() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("pid");
        fs::write(&path, "1\n").expect("an old one");
        let file = PidFile::write(&path).expect("written");
        let own = format!("{}\n", std::process::id());
        assert_eq!(fs::read_to_string(&path).expect("there"), own);
        drop(file);
        assert!(!path.exists());
        let file = PidFile::write(&path).expect("written");
        fs::write(&path, "2\n").expect("replaced");
        drop(file);
        assert_eq!(fs::read_to_string(&path).expect("there"), "2\n");
        let missing = directory.path().join("missing/pid");
        assert!(PidFile::write(&missing).is_err());
    }
}
