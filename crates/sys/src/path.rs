//! Handles to places in the file system, which outlive the names that they were opened by.

use std::{io, os::fd::OwnedFd, path::Path};

use rustix::fs::{Mode, OFlags};

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

#[cfg(test)]
mod tests {
    use std::os::{
        fd::AsRawFd,
        unix::net::{UnixListener, UnixStream},
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
}
