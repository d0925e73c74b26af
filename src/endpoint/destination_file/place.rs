//! Where a new file is to appear, and where its bytes are until then.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    os::{
        fd::OwnedFd,
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use blockferry_sys as sys;

use crate::{
    block::{Error, ErrorKind, Result},
    endpoint::printable,
};

use super::{Kept, SUFFIX, State};

/// The bytes of `NAME` that stand in the name of a partial file that is not to be resumed: file systems
/// allow 255 bytes in all.
const LONGEST_STEM: usize = 200;

/// How many symbolic links may follow each other: as many as the system itself follows.
const MOST_LINKS: usize = 40;

/// Where a file is to appear.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) directory: OwnedFd,
    /// Of the directory.
    pub(super) path: PathBuf,
    pub(super) name: OsString,
}

impl Place {
    /// Where a new file at `path` is to appear: where the last of its symbolic links points. `None` when
    /// there is something already.
    pub(super) fn of_new(path: &Path) -> Result<Option<Self>> {
        match fs::metadata(path) {
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        let mut path = path.to_owned();
        for _ in 0..MOST_LINKS {
            match fs::read_link(&path) {
                Ok(target) => {
                    path.pop();
                    path.push(target);
                }
                Err(_) => return Self::open(&path).map(Some),
            }
        }
        Err(Error::with_message(
            ErrorKind::InvalidInput,
            "it leads through too many symbolic links",
        ))
    }

    fn open(path: &Path) -> Result<Self> {
        let bytes = path.as_os_str().as_bytes();
        // `Path` knows no trailing slash.
        let slash = bytes.iter().rposition(|byte| *byte == b'/');
        let (directory, name) = match slash {
            Some(slash) => bytes.split_at(slash + 1),
            None => (&b"."[..], bytes),
        };
        if matches!(name, b"" | b"." | b"..") {
            let message = "it would be a directory, and there is none";
            return Err(Error::with_message(ErrorKind::NotFound, message));
        }
        let path = PathBuf::from(OsStr::from_bytes(directory));
        let directory = sys::open_directory(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                let message = format!(
                    "the directory {} does not exist",
                    printable(path.components().as_path().as_os_str())
                );
                Error::with_message(ErrorKind::NotFound, message)
            }
            _ => Error::from(error),
        })?;
        Ok(Self {
            directory,
            path,
            name: OsStr::from_bytes(name).to_owned(),
        })
    }

    /// The path of the file `name` beside this one.
    pub(super) fn beside(&self, name: &OsStr) -> PathBuf {
        match self.path.as_os_str().as_bytes() {
            b"." => PathBuf::from(name),
            _ => self.path.join(name),
        }
    }

    /// Begins a new file: without a name where that is possible.
    pub(super) fn begin(self) -> Result<(File, State)> {
        match sys::create_nameless(&self.directory) {
            Ok(file) => {
                let own = file.try_clone()?;
                let state = State::Nameless {
                    file: own,
                    place: self,
                };
                Ok((file, state))
            }
            Err(error) if error.kind() == io::ErrorKind::Unsupported => self.begin_partial(),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn begin_partial(self) -> Result<(File, State)> {
        let mut options = fs::OpenOptions::new();
        let options = options.read(true).write(true).create_new(true);
        let (file, name) = self.make_partial(|name| options.open(self.beside(name)))?;
        let own = file.try_clone()?;
        let state = State::Partial {
            file: own,
            place: self,
            name,
            kept: Kept::No,
        };
        Ok((file, state))
    }

    /// Opens `NAME.partial`, which survives a failure, or creates it.
    pub(super) fn open_partial(self, user_name: &Arc<str>) -> Result<(File, State)> {
        let mut name = self.name.clone();
        name.push(SUFFIX);
        let shown = printable(self.beside(&name).as_os_str());
        let refused = |message: String| Error::with_message(ErrorKind::InvalidInput, message);
        let found = fs::symlink_metadata(self.beside(&name)).is_ok();
        let file = sys::open_or_create(&self.directory, &name)
            .map_err(|error| Error::from(error).on(&Arc::from(&*shown)))?;
        if !file.metadata()?.is_file() {
            return Err(refused(format!("{shown} is in the way and is not a file")));
        }
        if !sys::try_lock(&file)? {
            return Err(refused(format!(
                "another copy to {user_name} is running: it writes {shown}"
            )));
        }
        let own = file.try_clone()?;
        let state = State::Partial {
            file: own,
            place: self,
            name,
            kept: Kept::Yes { found },
        };
        Ok((file, state))
    }

    /// Lets `make` make something under a name that is free: `.NAME.XXXXXX.partial`.
    pub(super) fn make_partial<T>(
        &self,
        mut make: impl FnMut(&OsStr) -> io::Result<T>,
    ) -> io::Result<(T, OsString)> {
        let stem = self.name.as_bytes();
        let stem = &stem[..stem.len().min(LONGEST_STEM)];
        let prefix = OsString::from_vec([b".", stem, b"."].concat());
        let made = tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(SUFFIX)
            .make_in(&self.path, |path| {
                make(path.file_name().unwrap_or_default())
            })?;
        let (made, path) = made.keep().map_err(|error| error.error)?;
        Ok((made, path.file_name().unwrap_or_default().to_owned()))
    }
}
