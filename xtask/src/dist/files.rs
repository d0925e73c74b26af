//! Files and directories, with their names in the errors.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// Makes the directory, or empties it.
pub(super) fn empty(directory: &Path) -> Result<()> {
    remove(directory)?;
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())
}

/// Removes the directory with all that is in it, if it is there.
pub(super) fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| directory.display().to_string())
        }
        _ => Ok(()),
    }
}

/// Copies a file; what is executable stays it.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    make_room(to)?;
    fs::copy(from, to).with_context(|| from.display().to_string())?;
    Ok(())
}

/// Copies a directory with all that is in it; links stay links.
pub(super) fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    for path in list(from)? {
        let name = path.file_name().context("an entry has a name")?;
        let place = to.join(name);
        if path.is_symlink() {
            let target = fs::read_link(&path).with_context(|| path.display().to_string())?;
            link(&target, &place)?;
        } else if path.is_dir() {
            copy_tree(&path, &place)?;
        } else {
            copy(&path, &place)?;
        }
    }
    Ok(())
}

pub(super) fn write(path: &Path, contents: &[u8]) -> Result<()> {
    make_room(path)?;
    fs::write(path, contents).with_context(|| path.display().to_string())
}

/// Makes a symbolic link at `place`, with the directories above it.
pub(super) fn link(target: &Path, place: &Path) -> Result<()> {
    make_room(place)?;
    symlink(target, place).with_context(|| place.display().to_string())
}

/// Gives the file its permissions, whatever the umask of whoever runs this.
pub(super) fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| path.display().to_string())
}

/// What is in a directory, in the order of the names.
pub(super) fn list(directory: &Path) -> Result<Vec<PathBuf>> {
    let named = || directory.display().to_string();
    let mut paths = fs::read_dir(directory)
        .with_context(named)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .with_context(named)?;
    paths.sort();
    Ok(paths)
}

fn make_room(path: &Path) -> Result<()> {
    let directory = path.parent().context("it lies in a directory")?;
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copied_tree_has_the_same_files_links_and_modes() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        write(&from.join("bin/program"), b"code").unwrap();
        set_mode(&from.join("bin/program"), 0o755).unwrap();
        link(Path::new("../bin/program"), &from.join("names/other")).unwrap();

        copy_tree(&from, &to).unwrap();
        let target = fs::read_link(to.join("names/other")).unwrap();
        assert_eq!(target, Path::new("../bin/program"));
        assert_eq!(fs::read(to.join("names/other")).unwrap(), b"code");
        let mode = fs::metadata(to.join("bin/program")).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o755);
    }

    #[test]
    fn a_directory_is_emptied_whether_or_not_it_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("dist");
        empty(&place).unwrap();
        write(&place.join("old"), b"").unwrap();
        empty(&place).unwrap();
        assert!(list(&place).unwrap().is_empty());
    }
}
