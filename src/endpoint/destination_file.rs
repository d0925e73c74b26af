//! The file that a copy writes: removed when the copy fails and it was not there before.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Watches over a destination file until the copy is whole. Dropped before
/// [`commit`](Self::commit), it removes the file if it created it, and leaves any other alone.
#[derive(Debug)]
pub struct DestinationFile {
    path: PathBuf,
    /// Device and inode of the file that was created here; `None` for one that existed before.
    created: Option<(u64, u64)>,
}

impl DestinationFile {
    /// Makes sure that there is something at `path`: creates an empty file where there was nothing.
    ///
    /// # Errors
    /// What creating it failed with. Existing files are not opened.
    pub(super) fn claim(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let created = match options.write(true).create_new(true).open(path) {
            Ok(file) => {
                let metadata = file.metadata()?;
                Some((metadata.dev(), metadata.ino()))
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
            Err(error) => return Err(error),
        };
        Ok(Self {
            path: path.to_owned(),
            created,
        })
    }

    /// Whether the file existed before, so that a failed copy leaves it behind, incomplete.
    #[must_use]
    pub fn existed(&self) -> bool {
        self.created.is_none()
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The copy is whole: the file stays.
    pub fn commit(mut self) {
        self.created = None;
    }
}

impl Drop for DestinationFile {
    fn drop(&mut self) {
        let Some(created) = self.created else { return };
        // Someone may have put another file there meanwhile; that one is not ours to remove.
        let found = fs::symlink_metadata(&self.path);
        if found.is_ok_and(|found| (found.dev(), found.ino()) == created) {
            // Nothing is left to do about a failure: the copy's own error is being reported.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_created_goes_unless_the_copy_is_whole() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("new");
        drop(DestinationFile::claim(&path).expect("created"));
        assert!(!path.exists());
        DestinationFile::claim(&path).expect("created").commit();
        assert!(path.exists());
    }

    #[test]
    fn a_file_that_existed_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("old");
        fs::write(&path, "old").expect("written");
        let file = DestinationFile::claim(&path).expect("there");
        assert!(file.existed());
        drop(file);
        assert_eq!(fs::read(&path).expect("still there"), b"old");
    }

    #[test]
    fn another_file_at_the_same_path_is_not_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("swapped");
        let file = DestinationFile::claim(&path).expect("created");
        let other = directory.path().join("other");
        fs::write(&other, "other").expect("written");
        fs::rename(&other, &path).expect("renamed");
        drop(file);
        assert_eq!(fs::read(&path).expect("still there"), b"other");
    }
}
