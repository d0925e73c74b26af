//! The file that a copy writes: a new one appears under its own name only when it is whole.
//!
//! Until then it has no name at all where the file system can do that, so nothing is left of it
//! whatever ends this process; otherwise it lies beside its place as `.NAME.XXXXXX.partial`. A copy that
//! is to be resumed works in `NAME.partial`, which survives. A file that was there before is written in
//! place.

mod place;
#[cfg(test)]
mod tests;

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use blockferry_sys as sys;

use crate::{
    block::{Access, Error, ErrorKind, FileDevice, Result},
    system,
};

use super::{
    Space,
    in_use::{claim, claim_below},
    printable,
};
use place::Place;

/// What files are called that are not whole.
const SUFFIX: &str = ".partial";

/// Watches over a destination file until the copy is whole. Dropped before [`commit`](Self::commit), it
/// leaves nothing of a file that it created, unless that was to be kept, and any other alone.
#[derive(Debug)]
pub struct DestinationFile {
    /// As the user wrote it.
    name: Arc<str>,
    path: PathBuf,
    state: State,
}

/// Where the bytes are.
#[derive(Debug)]
enum State {
    /// In the file or device that was there before.
    InPlace { before: Traces },
    /// Under their own name: the copy is whole.
    Whole,
    /// In a file without a name.
    Nameless { file: File, place: Place },
    /// Under another name beside their own.
    Partial {
        file: File,
        place: Place,
        name: OsString,
        kept: Kept,
    },
}

/// What shows whether a file was changed: its size in bytes, and when it was written last.
type Traces = Option<(u64, SystemTime)>;

/// What a failure makes of a partial file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    No,
    /// It stays; `found`: it was there before.
    Yes {
        found: bool,
    },
}

impl DestinationFile {
    /// Opens the regular file or block device at `path` to be written in place, or begins a new file
    /// that will be there.
    ///
    /// A regular file that is there counts as empty and is emptied by the first change. With
    /// `keep_partial` it is not: it, and the partial file that an earlier copy left, keep what they hold.
    ///
    /// # Errors
    /// What opening or creating failed with, and `InvalidInput` for what is no file, for a partial file
    /// that another copy writes, and where there are both the file and a partial one to be kept.
    pub(super) fn open(
        path: &Path,
        name: &Arc<str>,
        keep_partial: bool,
    ) -> Result<(FileDevice, Self)> {
        let from_state = |state| Self {
            name: Arc::clone(name),
            path: path.to_owned(),
            state,
        };
        let Some(place) = Place::of_new(path)? else {
            if keep_partial {
                refuse_partial_beside(path)?;
            }
            let device = open_existing(path, name, keep_partial)?;
            let before = traces(path);
            return Ok((device, from_state(State::InPlace { before })));
        };
        let (file, state) = match keep_partial {
            true => place.open_partial(name)?,
            false => place.begin()?,
        };
        let device = match state {
            State::Partial {
                kept: Kept::Yes { found: true },
                ..
            } => FileDevice::from_file(file, Arc::clone(name)).map(FileDevice::growable),
            _ => FileDevice::replacing(file, Arc::clone(name)),
        };
        // There before an error is returned, so that what was created is removed.
        let watched = from_state(state);
        Ok((device?, watched))
    }

    /// Opens the regular file or block device at `path` to be written as it is: what it holds stays where nothing is
    /// written.
    ///
    /// # Errors
    /// What opening failed with: `NotFound` where nothing is there.
    pub(super) fn open_in_place(path: &Path, name: &Arc<str>) -> Result<(FileDevice, Self)> {
        let device = FileDevice::open(path, Access::ReadWrite)?;
        claim_below(&device)?;
        let watched = Self {
            name: Arc::clone(name),
            path: path.to_owned(),
            state: State::InPlace {
                before: traces(path),
            },
        };
        Ok((device, watched))
    }

    /// Whether the file existed before, so that a failed copy leaves it behind, incomplete.
    #[must_use]
    pub fn existed(&self) -> bool {
        matches!(self.state, State::InPlace { .. })
    }

    /// Whether it existed before and still holds what it did then: nothing has been written.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        match self.state {
            State::InPlace { before } => before.is_some() && before == traces(&self.path),
            _ => false,
        }
    }

    /// Where it is, or will be once the copy is whole.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the bytes are now: under the file's own name, under that of a partial file, or, with `None`,
    /// in a file without a name.
    #[must_use]
    pub fn data_path(&self) -> Option<PathBuf> {
        match &self.state {
            State::InPlace { .. } | State::Whole => Some(self.path.clone()),
            State::Nameless { .. } => None,
            State::Partial { place, name, .. } => Some(place.beside(name)),
        }
    }

    /// Where a partial file of a destination at `path` would be.
    #[must_use]
    pub fn partial_beside(path: &Path) -> Option<PathBuf> {
        let mut name = path.file_name()?.to_owned();
        name.push(SUFFIX);
        Some(path.with_file_name(name))
    }

    /// How much it can hold; `None` for a block device, and where the file system does not say.
    ///
    /// # Errors
    /// What asking the file system failed with.
    pub fn space(&self) -> Result<Option<Space>> {
        let (file, directory) = match &self.state {
            State::InPlace { .. } | State::Whole => (File::open(&self.path)?, self.path.clone()),
            State::Nameless { file, place } | State::Partial { file, place, .. } => {
                (file.try_clone()?, place.path.clone())
            }
        };
        Space::of(&file, &directory)
    }

    /// Whether a partial file is left when the copy fails, to be gone on with.
    #[must_use]
    pub fn keeps_partial(&self) -> bool {
        matches!(
            self.state,
            State::Partial {
                kept: Kept::Yes { .. },
                ..
            }
        )
    }

    /// Whether it was opened with what an earlier copy had left in the partial file.
    #[must_use]
    pub fn found_partial(&self) -> bool {
        matches!(
            self.state,
            State::Partial {
                kept: Kept::Yes { found: true },
                ..
            }
        )
    }

    /// What was copied is not what it should be: nothing of it is kept to go on with.
    pub fn give_up_partial(&mut self) {
        if let State::Partial { kept, .. } = &mut self.state {
            *kept = Kept::No;
        }
    }

    /// The copy is whole: the file gets its own name.
    ///
    /// # Errors
    /// When another file has appeared under that name: it is not replaced, and what was copied is kept
    /// under the name that the error tells. Otherwise what linking or renaming failed with; then
    /// nothing is left of a file that had no name.
    pub fn commit(mut self) -> Result<()> {
        self.appear().map(drop)
    }

    /// The copy is whole and flushed: the file gets its own name, durably.
    ///
    /// # Errors
    /// As [`commit`](Self::commit), and what making the name durable failed with: then the file is in
    /// its place.
    pub fn commit_durably(mut self) -> Result<()> {
        let Some((file, directory)) = self.appear()? else {
            return Ok(());
        };
        // The file, too: it now has a name to be found by.
        sys::sync_all(&file)
            .and_then(|()| sys::sync_directory(&directory))
            .map_err(|error| {
                let message = "the file is whole, but its name may not be durable";
                self.failed(message, &error)
            })
    }

    /// Gives the file its name, and returns what has to be synced for that.
    fn appear(&mut self) -> Result<Option<(File, OwnedFd)>> {
        match std::mem::replace(&mut self.state, State::Whole) {
            State::InPlace { .. } | State::Whole => Ok(None),
            State::Nameless { file, place } => {
                match sys::give_name(&file, &place.directory, &place.name) {
                    Ok(()) => Ok(Some((file, place.directory))),
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                        let kept = place
                            .make_partial(|name| sys::give_name(&file, &place.directory, name));
                        match kept {
                            Ok(((), name)) => Err(self.taken(&place.beside(&name))),
                            Err(error) => Err(self.failed("what was copied is lost", &error)),
                        }
                    }
                    Err(error) => Err(self.failed("the file cannot be given its name", &error)),
                }
            }
            State::Partial {
                file, place, name, ..
            } => match sys::rename_unless_taken(&place.directory, &name, &place.name) {
                Ok(()) => Ok(Some((file, place.directory))),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    Err(self.taken(&place.beside(&name)))
                }
                Err(error) => {
                    let left = place.beside(&name);
                    let message = match left.try_exists() {
                        Ok(false) => "the file cannot be given its name: somebody removed",
                        _ => "the file cannot be given its name and is left as",
                    };
                    let message = format!("{message} {}", printable(left.as_os_str()));
                    Err(self.failed(&message, &error))
                }
            },
        }
    }

    fn taken(&self, kept: &Path) -> Error {
        let message = format!(
            "a file of that name appeared meanwhile and is not replaced; the copy is whole and is kept as {}",
            printable(kept.as_os_str())
        );
        Error::with_message(ErrorKind::Io, message).on(&self.name)
    }

    fn failed(&self, message: &str, error: &io::Error) -> Error {
        let kind = ErrorKind::from(error);
        Error::with_message(kind, format!("{message}: {}", system::words(error))).on(&self.name)
    }
}

impl Drop for DestinationFile {
    fn drop(&mut self) {
        let State::Partial {
            file,
            place,
            name,
            kept,
        } = &self.state
        else {
            return;
        };
        // One that was never written holds nothing to go on with.
        let is_empty = || file.metadata().is_ok_and(|own| own.len() == 0);
        match kept {
            Kept::No => {}
            Kept::Yes { found: false } if is_empty() => {}
            Kept::Yes { .. } => return,
        }
        let path = place.beside(name);
        // Someone may have put another file there meanwhile; that one is not ours to remove.
        let found = fs::symlink_metadata(&path)
            .ok()
            .map(|found| identity(&found));
        if found.is_some() && found == file.metadata().ok().map(|own| identity(&own)) {
            // Nothing is left to do about a failure: the copy's own error is being reported.
            let _ = fs::remove_file(&path);
        }
    }
}

/// Which of the two would be gone on with?
fn refuse_partial_beside(path: &Path) -> Result<()> {
    let mut partial = fs::canonicalize(path)?.into_os_string();
    partial.push(SUFFIX);
    if !Path::new(&partial).is_file() {
        return Ok(());
    }
    let message = format!(
        "it is there, and so is {}: remove the one that is not needed",
        printable(&partial)
    );
    Err(Error::with_message(ErrorKind::InvalidInput, message))
}

/// Opens what is at `path` to be written in place.
fn open_existing(path: &Path, name: &Arc<str>, keep_contents: bool) -> Result<FileDevice> {
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        let message = "it is a directory";
        return Err(Error::with_message(ErrorKind::InvalidInput, message));
    }
    if !metadata.is_file() {
        return FileDevice::open(path, Access::ReadWrite);
    }
    let file = File::options().read(true).write(true).open(path)?;
    claim(&file)?;
    let name = Arc::clone(name);
    match keep_contents {
        true => FileDevice::from_file(file, name).map(FileDevice::growable),
        false => FileDevice::replacing(file, name),
    }
}

/// `None` for what has none: a block device.
fn traces(path: &Path) -> Traces {
    let metadata = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    Some((metadata.len(), metadata.modified().ok()?))
}

fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}
