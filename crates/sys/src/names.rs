//! Names in directories: files that have none yet, and how one gets its name without taking another's.
//!
//! Every function goes on after an interrupted call (`EINTR`).

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags},
    io::{Errno, retry_on_intr},
};

/// What a new file may be read and written by, before the umask takes its part.
const NEW_FILE: Mode = Mode::from_raw_mode(0o666);

/// A handle to the directory at `path`. One that may not be listed can still have files made in it.
///
/// # Errors
/// What the open failed with.
pub fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |flags| retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty()));
    match open(flags | OFlags::RDONLY) {
        Err(Errno::ACCESS) => Ok(open(flags | OFlags::PATH)?),
        opened => Ok(opened?),
    }
}

/// A new, empty file in the file system of `directory`, for reading and writing (`O_TMPFILE`). It has
/// no name, so nothing is left of it when it is closed, whatever ends this process, unless
/// [`give_name`] gave it one.
///
/// # Errors
/// `Unsupported` where the file system has no such files, or where they could not be named later.
/// Otherwise what the open failed with.
pub fn create_nameless(directory: impl AsFd) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let opened = retry_on_intr(|| rustix::fs::openat(&directory, c".", flags, NEW_FILE));
    let file = File::from(opened.map_err(|error| match error {
        // What kernels and file systems say that do not know the flag.
        Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT | Errno::NOSYS => {
            io::Error::from(io::ErrorKind::Unsupported)
        }
        error => error.into(),
    })?);
    match std::fs::metadata(link_to(&file)) {
        Ok(_) => Ok(file),
        Err(_) => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Gives a file that [`create_nameless`] made the name `name` in `directory`. It never replaces another.
///
/// # Errors
/// `AlreadyExists` when there is something of that name; otherwise what `linkat` failed with.
pub fn give_name(file: &File, directory: impl AsFd, name: &OsStr) -> io::Result<()> {
    let link = link_to(file);
    let flags = AtFlags::SYMLINK_FOLLOW;
    retry_on_intr(|| rustix::fs::linkat(CWD, &*link, &directory, name, flags))?;
    Ok(())
}

fn link_to(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Renames `from` to `to`, both in `directory`, unless there is something called `to` already.
///
/// # Errors
/// `AlreadyExists` when there is; otherwise what the rename failed with.
pub fn rename_unless_taken(directory: impl AsFd, from: &OsStr, to: &OsStr) -> io::Result<()> {
    let flags = RenameFlags::NOREPLACE;
    let renamed =
        retry_on_intr(|| rustix::fs::renameat_with(&directory, from, &directory, to, flags));
    match renamed {
        // Old kernels, and file systems on other machines.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            rename_in_steps(&directory, from, to)
        }
        renamed => Ok(renamed?),
    }
}

/// The same where there is no call for it: a second name that takes the place of the first; where a file
/// has one name only, an empty file that holds the place until it is replaced.
fn rename_in_steps(directory: impl AsFd, from: &OsStr, to: &OsStr) -> io::Result<()> {
    let linked =
        retry_on_intr(|| rustix::fs::linkat(&directory, from, &directory, to, AtFlags::empty()));
    match linked {
        Ok(()) => {
            retry_on_intr(|| rustix::fs::unlinkat(&directory, from, AtFlags::empty()))?;
            Ok(())
        }
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            retry_on_intr(|| rustix::fs::openat(&directory, to, flags, NEW_FILE))?;
            retry_on_intr(|| rustix::fs::renameat(&directory, from, &directory, to))?;
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// Opens the file `name` in `directory` for reading and writing, or creates it. A symbolic link is not
/// followed.
///
/// # Errors
/// What the open failed with.
pub fn open_or_create(directory: impl AsFd, name: &OsStr) -> io::Result<File> {
    // A pipe of that name is opened without waiting for its other end; it is no use, but no trap either.
    let flags =
        OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = retry_on_intr(|| rustix::fs::openat(&directory, name, flags, NEW_FILE))?;
    Ok(File::from(opened))
}

/// Takes the file for this process alone until it is closed, as far as others ask (`flock`); false when
/// another has it.
///
/// # Errors
/// What `flock` failed with.
pub fn try_lock(fd: impl AsFd) -> io::Result<bool> {
    match retry_on_intr(|| rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive)) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Makes the names in `directory` durable, where its file system can do that.
///
/// # Errors
/// What `fsync` failed with.
pub fn sync_directory(directory: impl AsFd) -> io::Result<()> {
    match retry_on_intr(|| rustix::fs::fsync(&directory)) {
        // Some file systems cannot, and need not; a directory that may not be listed cannot be synced.
        Ok(()) | Err(Errno::INVAL | Errno::BADF) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

// Miri knows nothing of O_TMPFILE and O_DIRECTORY.
#[cfg(all(test, not(miri)))]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;

    /// A directory of its own, gone with the value.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("sys-{name}-{}", std::process::id()));
            fs::create_dir(&path).expect("a directory");
            Self(path)
        }

        fn open(&self) -> OwnedFd {
            open_directory(&self.0).expect("opened")
        }

        fn names(&self) -> Vec<String> {
            let mut names: Vec<_> = fs::read_dir(&self.0)
                .expect("a directory")
                .map(|entry| entry.expect("an entry").file_name().into_string())
                .map(|name| name.expect("UTF-8"))
                .collect();
            names.sort();
            names
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_nameless_file_gets_a_name_once_and_replaces_nothing() {
        let place = Place::new("nameless");
        let directory = place.open();
        let file = match create_nameless(&directory) {
            Ok(file) => file,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::Unsupported);
                return;
            }
        };
        crate::write_all_at(&file, b"new", 0).expect("written");
        assert!(place.names().is_empty());
        fs::write(place.0.join("taken"), "old").expect("written");
        let error = give_name(&file, &directory, OsStr::new("taken")).expect_err("it is there");
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        give_name(&file, &directory, OsStr::new("free")).expect("named");
        sync_directory(&directory).expect("durable");
        assert_eq!(place.names(), ["free", "taken"]);
        assert_eq!(fs::read(place.0.join("free")).expect("read"), b"new");
        assert_eq!(fs::read(place.0.join("taken")).expect("read"), b"old");
    }

    #[test]
    fn a_rename_replaces_nothing_in_one_step_or_several() {
        let place = Place::new("rename");
        let directory = place.open();
        let (one, other) = (OsStr::new("one"), OsStr::new("other"));
        fs::write(place.0.join("one"), "1").expect("written");
        fs::write(place.0.join("other"), "2").expect("written");
        for renamed in [
            rename_unless_taken(&directory, one, other),
            rename_in_steps(&directory, one, other),
        ] {
            let error = renamed.expect_err("it is there");
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(place.names(), ["one", "other"]);
        }
        fs::remove_file(place.0.join("other")).expect("removed");
        rename_unless_taken(&directory, one, other).expect("renamed");
        assert_eq!(place.names(), ["other"]);
        rename_in_steps(&directory, other, one).expect("renamed");
        assert_eq!(place.names(), ["one"]);
        assert_eq!(fs::read(place.0.join("one")).expect("read"), b"1");
    }

    #[test]
    fn a_file_is_locked_for_one() {
        let place = Place::new("lock");
        let directory = place.open();
        let open = || open_or_create(&directory, OsStr::new("file")).expect("opened");
        let (one, other) = (open(), open());
        assert!(try_lock(&one).expect("an answer"));
        assert!(!try_lock(&other).expect("an answer"));
        drop(one);
        assert!(try_lock(&other).expect("an answer"));
    }

    #[test]
    fn a_link_is_not_followed_to_what_is_to_be_created() {
        let place = Place::new("link");
        std::os::unix::fs::symlink("elsewhere", place.0.join("link")).expect("linked");
        open_or_create(place.open(), OsStr::new("link")).expect_err("a link");
        assert_eq!(place.names(), ["link"]);
    }
}
