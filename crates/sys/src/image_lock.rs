//! The locks by which QEMU's programs keep each other away from an image: single bytes of its file, locked for
//! reading by the open file description (`F_OFD_SETLK`).
//!
//! Byte 100 and a permission's number is locked by who uses that permission, byte 200 and its number by who lets
//! nobody else use it. Whoever comes looks whether the bytes that contradict it are locked by others. The bytes
//! need not be in the file, and what they hold is not touched.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

/// Where the bytes of permissions begin that are used.
const USED: libc::off_t = 100;
/// Where those begin that others may not use.
const UNSHARED: libc::off_t = 200;

/// The numbers of the permissions.
const READ: libc::off_t = 0;
const WRITE: libc::off_t = 1;
const RESIZE: libc::off_t = 3;

/// What one who writes an image uses.
const OF_A_WRITER: [libc::off_t; 3] = [READ, WRITE, RESIZE];
/// What such a one lets nobody else use: others may read.
const NOT_OF_OTHERS: [libc::off_t; 2] = [WRITE, RESIZE];

/// Takes the image in `fd`, which is open for reading and writing, for one who writes it, until every duplicate of
/// the descriptor is closed; false when others write it, or will not have it written.
///
/// # Errors
/// What `fcntl` failed with: the file system may have no locks.
pub fn claim_image(fd: impl AsFd) -> io::Result<bool> {
    let mine = || {
        let used = OF_A_WRITER.iter().map(|number| USED + number);
        used.chain(NOT_OF_OTHERS.iter().map(|number| UNSHARED + number))
    };
    let release = || {
        for byte in mine() {
            // It is let go of with the descriptor at the latest.
            let _ = set(&fd, byte, libc::F_UNLCK);
        }
    };
    // First taken, then looked: of two who come at once neither can miss the other.
    for byte in mine() {
        if let Err(error) = set(&fd, byte, libc::F_RDLCK) {
            release();
            return match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EACCES) => Ok(false),
                _ => Err(error),
            };
        }
    }
    let unwelcome = OF_A_WRITER.iter().map(|number| UNSHARED + number);
    let unwanted = NOT_OF_OTHERS.iter().map(|number| USED + number);
    for byte in unwelcome.chain(unwanted) {
        match is_taken(&fd, byte) {
            Ok(false) => {}
            otherwise => {
                release();
                return otherwise.map(|_| false);
            }
        }
    }
    Ok(true)
}

/// Whether others have taken the image in `fd` to write it.
///
/// # Errors
/// What `fcntl` failed with: the file system may have no locks.
pub fn is_image_written(fd: impl AsFd) -> io::Result<bool> {
    is_taken(&fd, USED + WRITE)
}

fn set(fd: &impl AsFd, byte: libc::off_t, kind: libc::c_int) -> io::Result<()> {
    fcntl(fd, libc::F_OFD_SETLK, &mut lock(byte, kind))
}

/// Whether somebody else has this byte.
fn is_taken(fd: &impl AsFd, byte: libc::off_t) -> io::Result<bool> {
    let mut found = lock(byte, libc::F_WRLCK);
    fcntl(fd, libc::F_OFD_GETLK, &mut found)?;
    Ok(libc::c_int::from(found.l_type) != libc::F_UNLCK)
}

fn lock(byte: libc::off_t, kind: libc::c_int) -> libc::flock {
    libc::flock {
        // The constants are 0 to 2, of different types on different machines.
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

fn fcntl(fd: &impl AsFd, command: libc::c_int, lock: &mut libc::flock) -> io::Result<()> {
    loop {
        // SAFETY: the lock is valid for reading and writing, and the descriptor is open.
        let result = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), command, &raw mut *lock) };
        if result >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

// Miri knows nothing of locks of open file descriptions.
#[cfg(all(test, not(miri)))]
mod tests {
    use std::{fs::File, path::PathBuf};

    use super::*;

    /// A file of its own, gone with the value.
    struct Image(PathBuf);

    impl Image {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("sys-{name}-{}", std::process::id()));
            File::create_new(&path).expect("a file");
            Self(path)
        }

        fn open(&self) -> File {
            let mut options = File::options();
            let options = options.read(true).write(true);
            options.open(&self.0).expect("opened")
        }
    }

    impl Drop for Image {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn an_image_has_one_writer_until_its_last_descriptor_is_closed() {
        let image = Image::new("claimed");
        let (one, other) = (image.open(), image.open());
        assert!(!is_image_written(&other).expect("locks"));
        assert!(claim_image(&one).expect("locks"));
        let duplicate = one.try_clone().expect("duplicated");
        // It is no stranger to itself.
        assert!(claim_image(&duplicate).expect("locks"));
        assert!(!claim_image(&other).expect("locks"));
        assert!(is_image_written(&other).expect("locks"));
        assert!(!is_image_written(&one).expect("locks"));
        drop(one);
        assert!(!claim_image(&other).expect("locks"));
        drop(duplicate);
        assert!(claim_image(&other).expect("locks"));
        assert!(is_image_written(image.open()).expect("locks"));
    }

    #[test]
    fn who_will_not_have_it_written_is_heard_and_nothing_stays_taken() {
        let image = Image::new("unshared");
        let (reader, writer) = (image.open(), image.open());
        set(&reader, UNSHARED + WRITE, libc::F_RDLCK).expect("locks");
        assert!(!claim_image(&writer).expect("locks"));
        assert!(!is_image_written(&reader).expect("locks"));
    }
}
