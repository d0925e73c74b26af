//! The file that a copy writes: a new one appears under its own name only when it is whole.
//!
//! Until then it has no name at all where the file system can do that, so nothing is left of it
//! whatever ends this process; otherwise it lies beside its place as `.NAME.XXXXXX.partial`. A copy that
//! is to be resumed works in `NAME.partial`, which survives. A file that was there before is written in
//! place.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    os::{
        fd::OwnedFd,
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::MetadataExt,
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use blockferry_sys as sys;

use crate::block::{Access, Error, ErrorKind, FileDevice, Result};

use super::{Space, printable};

/// What files are called that are not whole.
const SUFFIX: &str = ".partial";

/// The bytes of `NAME` that stand in the name of a partial file that is not to be resumed: file systems
/// allow 255 bytes in all.
const LONGEST_STEM: usize = 200;

/// How many symbolic links may follow each other: as many as the system itself follows.
const MOST_LINKS: usize = 40;

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
    /// Under their own name: the file was there before, or is whole.
    InPlace { existed: bool },
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

/// What a failure makes of a partial file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    No,
    /// It stays; `found`: it was there before.
    Yes {
        found: bool,
    },
}

/// Where a file is to appear.
#[derive(Debug)]
struct Place {
    directory: OwnedFd,
    path: PathBuf,
    name: OsString,
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
            return Ok((device, from_state(State::InPlace { existed: true })));
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

    /// Whether the file existed before, so that a failed copy leaves it behind, incomplete.
    #[must_use]
    pub fn existed(&self) -> bool {
        matches!(self.state, State::InPlace { existed: true })
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
            State::InPlace { .. } => Some(self.path.clone()),
            State::Nameless { .. } => None,
            State::Partial { place, name, .. } => Some(place.beside(name)),
        }
    }

    /// How much it can hold; `None` for a block device, and where the file system does not say.
    ///
    /// # Errors
    /// What asking the file system failed with.
    pub fn space(&self) -> Result<Option<Space>> {
        let (file, directory) = match &self.state {
            State::InPlace { .. } => (File::open(&self.path)?, self.path.clone()),
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
        let in_place = State::InPlace { existed: false };
        match std::mem::replace(&mut self.state, in_place) {
            State::InPlace { existed } => {
                self.state = State::InPlace { existed };
                Ok(None)
            }
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
                    let left = printable(place.beside(&name).as_os_str());
                    let message =
                        format!("the file cannot be given its name and is left as {left}");
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
        Error::with_message(kind, format!("{message}: {error}")).on(&self.name)
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

impl Place {
    /// Where a new file at `path` is to appear: where the last of its symbolic links points. `None` when
    /// there is something already.
    fn of_new(path: &Path) -> Result<Option<Self>> {
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
    fn beside(&self, name: &OsStr) -> PathBuf {
        match self.path.as_os_str().as_bytes() {
            b"." => PathBuf::from(name),
            _ => self.path.join(name),
        }
    }

    /// Begins a new file: without a name where that is possible.
    fn begin(self) -> Result<(File, State)> {
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

    fn begin_partial(self) -> Result<(File, State)> {
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
    fn open_partial(self, user_name: &Arc<str>) -> Result<(File, State)> {
        let mut name = self.name.clone();
        name.push(SUFFIX);
        let shown = printable(self.beside(&name).as_os_str());
        let refused = |message: String| Error::with_message(ErrorKind::InvalidInput, message);
        let found = fs::symlink_metadata(self.beside(&name)).is_ok();
        let file = sys::open_or_create(&self.directory, &name)
            .map_err(|error| Error::from(error).on(&Arc::from(&*shown)))?;
        if !file.metadata()?.is_file() {
            return Err(refused(format!("{shown} is in the way and is no file")));
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
    fn make_partial<T>(
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
        let message = "it is a directory: name a file in it";
        return Err(Error::with_message(ErrorKind::InvalidInput, message));
    }
    if !metadata.is_file() {
        return FileDevice::open(path, Access::ReadWrite);
    }
    let file = File::options().read(true).write(true).open(path)?;
    let name = Arc::clone(name);
    match keep_contents {
        true => FileDevice::from_file(file, name).map(FileDevice::growable),
        false => FileDevice::replacing(file, name),
    }
}

fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use tempfile::TempDir;

    use super::*;
    use crate::block::{BlockDevice, Buffer, Capabilities, WriteFlags};

    fn directory() -> TempDir {
        tempfile::tempdir().expect("a directory")
    }

    fn open(path: &Path, keep_partial: bool) -> Result<(FileDevice, DestinationFile)> {
        DestinationFile::open(path, &Arc::from("DEST"), keep_partial)
    }

    fn names(directory: &TempDir) -> Vec<String> {
        let entries = fs::read_dir(directory).expect("a directory");
        let mut names: Vec<_> = entries
            .map(|entry| entry.expect("an entry").file_name())
            .map(|name| name.into_string().expect("UTF-8"))
            .collect();
        names.sort();
        names
    }

    async fn write(device: &FileDevice, text: &[u8]) {
        let write = device.write(0, Buffer::from(text), WriteFlags::empty());
        write.await.expect("written");
    }

    type Begin = fn(&Path) -> (FileDevice, DestinationFile);

    /// The two ways to begin a new file.
    const WAYS: [Begin; 2] = [
        // Without a name, where the file system can.
        |path| open(path, false).expect("begun"),
        begin_beside,
    ];

    fn begin_beside(path: &Path) -> (FileDevice, DestinationFile) {
        let place = Place::of_new(path)
            .expect("a place")
            .expect("nothing there");
        let (file, state) = place.begin_partial().expect("begun");
        let device = FileDevice::replacing(file, "DEST").expect("a device");
        let beside = DestinationFile {
            name: Arc::from("DEST"),
            path: path.to_owned(),
            state,
        };
        (device, beside)
    }

    #[tokio::test]
    async fn a_new_file_appears_at_the_commit() {
        for (begin, durable) in WAYS.into_iter().flat_map(|way| [(way, false), (way, true)]) {
            let directory = directory();
            let path = directory.path().join("new");
            let (device, file) = begin(&path);
            write(&device, b"whole").await;
            assert!(!path.exists() && !file.existed());
            match durable {
                false => file.commit().expect("committed"),
                true => file.commit_durably().expect("committed"),
            }
            assert_eq!(fs::read(&path).expect("there"), b"whole");
            assert_eq!(names(&directory), ["new"]);
        }
    }

    #[tokio::test]
    async fn nothing_is_left_of_a_file_that_was_not_committed() {
        let directory = directory();
        let path = directory.path().join("new");
        for begin in WAYS {
            let (device, file) = begin(&path);
            write(&device, b"half").await;
            drop(file);
        }
        assert!(names(&directory).is_empty());
    }

    #[tokio::test]
    async fn a_file_that_appeared_meanwhile_is_not_replaced_and_ours_is_kept() {
        for begin in WAYS {
            let directory = directory();
            let path = directory.path().join("new");
            let (device, file) = begin(&path);
            write(&device, b"ours").await;
            fs::write(&path, "theirs").expect("written");
            let error = file.commit().expect_err("it is taken").to_string();
            assert!(
                error.contains("DEST: a file of that name appeared"),
                "{error}"
            );
            assert_eq!(fs::read(&path).expect("there"), b"theirs");
            let names = names(&directory);
            let kept = names.iter().find(|name| name.ends_with(".partial"));
            let kept = kept.expect("it is kept");
            assert!(error.ends_with(kept), "{error}");
            assert_eq!(names.len(), 2);
            let kept = fs::read(directory.path().join(kept));
            assert_eq!(kept.expect("there"), b"ours");
        }
    }

    #[test]
    fn the_mode_is_that_of_any_new_file() {
        let directory = directory();
        let path = directory.path().join("new");
        let plain = directory.path().join("plain");
        fs::write(&plain, "").expect("written");
        let mode = |path: &Path| path.metadata().expect("a file").permissions().mode();
        for begin in WAYS {
            let (_, file) = begin(&path);
            file.commit().expect("committed");
            assert_eq!(mode(&path), mode(&plain));
            fs::remove_file(&path).expect("removed");
        }
        let (_, file) = open(&path, true).expect("begun");
        file.commit().expect("committed");
        assert_eq!(mode(&path), mode(&plain));
    }

    #[tokio::test]
    async fn an_existing_file_is_emptied_when_it_is_written_and_not_before() {
        let directory = directory();
        let path = directory.path().join("old");
        fs::write(&path, "old contents").expect("written");
        let (device, file) = open(&path, false).expect("opened");
        assert!(file.existed());
        assert_eq!(device.info().size, 0);
        drop((device, file));
        assert_eq!(fs::read(&path).expect("there"), b"old contents");

        let (device, file) = open(&path, false).expect("opened");
        write(&device, b"new").await;
        file.commit().expect("committed");
        assert_eq!(fs::read(&path).expect("there"), b"new");
    }

    #[tokio::test]
    async fn a_partial_file_survives_and_is_gone_on_with() {
        let directory = directory();
        let path = directory.path().join("disk");
        let (device, file) = open(&path, true).expect("begun");
        assert!(file.keeps_partial() && !file.found_partial());
        assert!(device.info().can(Capabilities::BORN_ZERO));
        write(&device, b"first").await;
        let second = open(&path, true).expect_err("it is being written");
        assert!(second.to_string().contains("another copy"), "{second}");
        drop((device, file));
        assert_eq!(names(&directory), ["disk.partial"]);

        let (device, file) = open(&path, true).expect("found");
        assert!(file.found_partial());
        let partial = directory.path().join("disk.partial");
        assert_eq!(file.data_path(), Some(partial));
        assert_eq!(device.info().size, 5);
        assert!(device.info().can(Capabilities::RESIZE));
        assert!(!device.info().can(Capabilities::BORN_ZERO));
        file.commit_durably().expect("committed");
        assert_eq!(names(&directory), ["disk"]);
        assert_eq!(fs::read(&path).expect("there"), b"first");

        // What is there under its own name is gone on with, too.
        let (device, file) = open(&path, true).expect("opened");
        assert!(file.existed());
        write(&device, b"F").await;
        file.commit().expect("committed");
        assert_eq!(fs::read(&path).expect("there"), b"First");

        fs::write(directory.path().join("disk.partial"), "").expect("written");
        let both = open(&path, true).expect_err("which of them?").to_string();
        assert!(both.contains("disk.partial"), "{both}");
    }

    #[test]
    fn an_unwritten_partial_file_is_not_left_behind() {
        let directory = directory();
        drop(open(&directory.path().join("disk"), true).expect("begun"));
        assert!(names(&directory).is_empty());
    }

    #[test]
    fn another_file_at_the_partial_files_place_is_not_removed() {
        let directory = directory();
        let (_, file) = begin_beside(&directory.path().join("new"));
        let partial = file.data_path().expect("a name");
        let other = directory.path().join("other");
        fs::write(&other, "other").expect("written");
        fs::rename(&other, &partial).expect("renamed");
        drop(file);
        assert_eq!(fs::read(&partial).expect("still there"), b"other");
    }

    #[test]
    fn a_link_to_nothing_is_filled_where_it_points() {
        let directory = directory();
        let link = directory.path().join("link");
        fs::create_dir(directory.path().join("inner")).expect("a directory");
        symlink("inner/again", &link).expect("linked");
        symlink("target", directory.path().join("inner/again")).expect("linked");
        let (_, file) = open(&link, false).expect("begun");
        file.commit().expect("committed");
        let target = directory.path().join("inner/target");
        assert!(fs::symlink_metadata(target).expect("there").is_file());
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
    }

    #[test]
    fn what_can_be_no_file_is_refused() {
        let directory = directory();
        for name in ["missing/", "missing/.", "missing/disk", "."] {
            let error = open(&directory.path().join(name), false).err();
            let error = error
                .unwrap_or_else(|| panic!("{name} is no file"))
                .to_string();
            assert!(error.contains("directory"), "{error}");
        }
        let long = "x".repeat(300);
        open(&directory.path().join(long), false).expect_err("too long");
        let (_, file) = open(&directory.path().join("x".repeat(255)), false).expect("just so");
        file.commit().expect("committed");
    }
}
