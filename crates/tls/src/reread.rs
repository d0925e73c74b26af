//! What was made of files, as long as they are what they were.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use crate::{Error, Result};

/// Something that is made of files, and made again when they have changed.
pub(crate) struct Reread<T> {
    files: Vec<PathBuf>,
    known: Mutex<Option<Known<T>>>,
}

struct Known<T> {
    value: Arc<T>,
    /// What the files were like before they were read.
    stamps: Vec<Option<Stamp>>,
}

/// What changes with a file: device, inode, size, and the times of its data and of itself in nanoseconds.
type Stamp = (u64, u64, u64, [(i64, i64); 2]);

impl<T> Reread<T> {
    /// Nothing is read yet. Files that are not there may come.
    pub(crate) fn new(files: Vec<PathBuf>) -> Self {
        Self {
            files,
            known: Mutex::new(None),
        }
    }

    /// What was made of the files as they are now: by `load`, unless they are what they were.
    pub(crate) fn current(&self, load: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        // What a panic has left behind is whole: it is put there as one.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps: Vec<_> = self.files.iter().map(|file| stamp(file)).collect();
        if let Some(known) = &*known
            && known.stamps == stamps
        {
            return Ok(Arc::clone(&known.value));
        }
        match (load(), &*known) {
            (Ok(value), _) => {
                let value = Arc::new(value);
                *known = Some(Known {
                    value: Arc::clone(&value),
                    stamps,
                });
                Ok(value)
            }
            // Who has given up the right to read them goes on with what was read before.
            (Err(error), Some(known)) if is_denied(&error) => Ok(Arc::clone(&known.value)),
            (Err(error), _) => Err(error),
        }
    }
}

fn is_denied(error: &Error) -> bool {
    matches!(error, Error::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
}

fn stamp(path: &Path) -> Option<Stamp> {
    let facts = fs::metadata(path).ok()?;
    let times = [
        (facts.mtime(), facts.mtime_nsec()),
        (facts.ctime(), facts.ctime_nsec()),
    ];
    Some((facts.dev(), facts.ino(), facts.size(), times))
}
