//! Handles to places in the file system, which outlive the names that they were opened by.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags};

/// A handle to whatever lies at `path` (`O_PATH`): it cannot be read or written, but
/// `/proc/self/fd/N` leads to the place even after its name was removed. That is enough to connect to
/// a socket.
///
/// # Errors
/// What the open failed with. A symbolic link is not followed.
pub fn open_location(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Whether this process may read what lies at `path`, and whether it may write it. Nothing is opened.
///
/// # Errors
/// What looking it up failed with.
pub fn permissions(path: &Path) -> io::Result<(bool, bool)> {
    let may = |access| rustix::fs::accessat(CWD, path, access, AtFlags::EACCESS).is_ok();
    rustix::fs::accessat(CWD, path, Access::EXISTS, AtFlags::EACCESS)?;
    Ok((may(Access::READ_OK), may(Access::WRITE_OK)))
}

/// Something in the file system that was found and not opened yet (`O_PATH`), so that nothing happens to a pipe or a
/// device before it is known what it is. Whatever becomes of its name, it stays the same thing.
#[derive(Debug)]
pub struct Place(OwnedFd);

impl Place {
    /// What lies at `path`; symbolic links are followed.
    ///
    /// # Errors
    /// What looking it up failed with.
    pub fn find(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// Where it really lies now, without any symbolic link. A file that has lost its name has a path that leads
    /// nowhere.
    ///
    /// # Errors
    /// What asking `/proc` failed with.
    pub fn path(&self) -> io::Result<PathBuf> {
        fs::read_link(self.link())
    }

    /// Opens it for reading, with `write` also for writing.
    ///
    /// # Errors
    /// What the open failed with.
    pub fn open(&self, write: bool) -> io::Result<File> {
        OpenOptions::new().read(true).write(write).open(self.link())
    }

    fn link(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

impl AsFd for Place {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

// Miri knows nothing of O_PATH.
#[cfg(all(test, not(miri)))]
mod tests {
    use std::os::unix::{
        fs::symlink,
        net::{UnixListener, UnixStream},
    };

    use super::*;

    #[test]
    fn a_socket_is_reached_after_its_name_is_gone() {
        let path = std::env::temp_dir().join(format!("sys-location-{}", std::process::id()));
        let _listener = UnixListener::bind(&path).expect("a listener");
        let location = open_location(&path).expect("a handle");
        std::fs::remove_file(&path).expect("removed");
        let link = format!("/proc/self/fd/{}", location.as_raw_fd());
        for _ in 0..2 {
            UnixStream::connect(&link).expect("connected");
        }
    }

    #[test]
    fn permissions_are_told_of_what_is_there() {
        assert_eq!(
            permissions(Path::new("/dev/null")).expect("there"),
            (true, true)
        );
        let error = permissions(Path::new("/no/such/place")).expect_err("nothing is there");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        // Root may write what has no permission to be written, but no file system of the kernel's own.
        let (read, write) = permissions(Path::new("/proc/version")).expect("there");
        assert!(read && (crate::is_root() || !write));
    }

    #[test]
    fn a_place_stays_what_it_was_when_its_name_leads_elsewhere() {
        let directory = std::env::temp_dir().join(format!("sys-place-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("made");
        let directory = fs::canonicalize(directory).expect("there");
        let (one, link) = (directory.join("one"), directory.join("link"));
        fs::write(&one, "one").expect("written");
        fs::write(directory.join("other"), "other").expect("written");
        symlink("one", &link).expect("linked");
        let place = Place::find(&link).expect("found");
        fs::remove_file(&link).expect("removed");
        symlink("other", &link).expect("linked");
        assert_eq!(place.path().expect("asked"), one);
        let text = io::read_to_string(place.open(false).expect("opened")).expect("read");
        assert_eq!(text, "one");
        assert_eq!(
            crate::inspect(&place).expect("known").kind,
            crate::FileKind::Regular
        );
        assert!(Place::find(&directory.join("none")).is_err());
        fs::remove_dir_all(directory).expect("removed");
    }
}
