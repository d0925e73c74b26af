//! Files in a directory that somebody else names: nothing outside of it is ever reached.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
};

use rustix::{
    fs::{Dir, Mode, OFlags, ResolveFlags},
    io::{Errno, retry_on_intr},
};

use crate::{FileKind, inspect};

/// How often a name is looked up again that the kernel cannot be sure of, because something in the
/// directory is being renamed.
const ATTEMPTS: u32 = 16;

/// The names in `directory`, in no order, without `.` and `..`.
///
/// # Errors
/// What reading it failed with.
pub fn list_directory(directory: impl AsFd) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name.to_vec()));
        }
    }
    Ok(names)
}

/// What `name` in `directory` stands for. A symbolic link that leads out of the directory stands for nothing.
///
/// # Errors
/// `NotFound` when nothing is there, or the name is no name: it has a `/`, or is empty, `.` or `..`.
/// Otherwise what looking it up failed with.
pub fn kind_beneath(directory: impl AsFd, name: &OsStr) -> io::Result<FileKind> {
    Ok(inspect(open(directory, name, OFlags::PATH)?)?.kind)
}

/// Opens `name` in `directory` for reading, with `write` also for writing. It waits for nobody: a pipe is
/// opened without its other end. Look at what it is before: opening a device can have consequences.
///
/// # Errors
/// As [`kind_beneath`].
pub fn open_beneath(directory: impl AsFd, name: &OsStr, write: bool) -> io::Result<File> {
    let access = match write {
        true => OFlags::RDWR,
        false => OFlags::RDONLY,
    };
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY;
    Ok(File::from(open(directory, name, flags)?))
}

fn open(directory: impl AsFd, name: &OsStr, flags: OFlags) -> io::Result<OwnedFd> {
    let is_name = !matches!(name.as_bytes(), b"" | b"." | b"..");
    if !is_name || name.as_bytes().iter().any(|byte| matches!(byte, b'/' | 0)) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let flags = flags | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut attempts = 0;
    loop {
        let opened =
            retry_on_intr(|| rustix::fs::openat2(&directory, name, flags, Mode::empty(), resolve));
        attempts += 1;
        match opened {
            Err(Errno::AGAIN) if attempts < ATTEMPTS => {}
            // It leads out of the directory, or in circles.
            Err(Errno::XDEV | Errno::LOOP) => return Err(io::ErrorKind::NotFound.into()),
            // An old kernel, or a sandbox that lets only the old calls through: without links then.
            Err(Errno::NOSYS | Errno::PERM) => break,
            opened => return Ok(opened?),
        }
    }
    let flags = flags | OFlags::NOFOLLOW;
    let opened = retry_on_intr(|| rustix::fs::openat(&directory, name, flags, Mode::empty()));
    match opened {
        Err(Errno::LOOP) => Err(io::ErrorKind::NotFound.into()),
        opened => Ok(opened?),
    }
}

// Miri knows nothing of O_PATH.
#[cfg(all(test, not(miri)))]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn nothing_outside_of_a_directory_is_reached() {
        let place = std::env::temp_dir().join(format!("sys-beneath-{}", std::process::id()));
        let inside = place.join("inside");
        fs::create_dir_all(inside.join("sub")).expect("made");
        fs::write(place.join("secret"), "no").expect("written");
        fs::write(inside.join("disk"), "yes").expect("written");
        fs::write(inside.join("sub/disk"), "no").expect("written");
        for (name, target) in [
            ("out", "../secret"),
            ("absolute", "/etc/passwd"),
            ("self", "/proc/self/exe"),
            ("nowhere", "nothing"),
            ("circle", "circle"),
            ("within", "disk"),
        ] {
            symlink(target, inside.join(name)).expect("linked");
        }
        let directory = crate::open_directory(&inside).expect("opened");
        let open = |name: &str| open_beneath(&directory, OsStr::new(name), false);
        for name in [
            "../secret",
            "/etc/passwd",
            "sub/disk",
            "./disk",
            "disk/",
            "",
            ".",
            "..",
            "out",
            "absolute",
            "self",
            "nowhere",
            "circle",
            "disk\0",
            "nothing",
        ] {
            let error = open(name).expect_err("not in the directory");
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{name:?}");
            kind_beneath(&directory, OsStr::new(name)).expect_err("not there");
        }
        for name in ["disk", "within"] {
            let text = io::read_to_string(open(name).expect("opened")).expect("read");
            assert_eq!(text, "yes", "{name}");
        }
        let kind = |name| kind_beneath(&directory, OsStr::new(name)).expect("there");
        assert_eq!(kind("within"), FileKind::Regular);
        assert_eq!(kind("sub"), FileKind::Directory);
        let mut names = list_directory(&directory).expect("listed");
        names.sort();
        let expected = [
            "absolute", "circle", "disk", "nowhere", "out", "self", "sub", "within",
        ];
        assert_eq!(names, expected);
        fs::remove_dir_all(place).expect("removed");
    }
}
