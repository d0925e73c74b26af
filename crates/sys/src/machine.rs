//! What machine this is, and which of its abilities only a try can tell.

use std::{io, os::fd::FromRawFd, os::fd::OwnedFd};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags},
    process::{PidfdFlags, Resource, getpid, getrlimit, pidfd_open},
};

/// The kernel that runs here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Its name: `Linux`.
    pub name: String,
    /// Its release, such as `6.12.1`.
    pub release: String,
    /// The processor that it runs on, such as `x86_64`.
    pub machine: String,
}

/// The kernel that runs here.
#[must_use]
pub fn kernel() -> Kernel {
    let facts = rustix::system::uname();
    let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    Kernel {
        name: text(facts.sysname()),
        release: text(facts.release()),
        machine: text(facts.machine()),
    }
}

/// How many descriptors this process may hold, and up to how many it may raise that itself; `None`: any number.
#[must_use]
pub fn descriptor_limits() -> (Option<u64>, Option<u64>) {
    let limit = getrlimit(Resource::Nofile);
    (limit.current, limit.maximum)
}

/// Makes a ring of `io_uring` and closes it.
///
/// # Errors
/// As `io_uring_setup(2)`: `ENOSYS` where the kernel has none, `EPERM` where a sandbox or the system's
/// administrator blocks it.
pub fn try_io_uring() -> io::Result<()> {
    // `struct io_uring_params` of linux/io_uring.h has 120 bytes; zeroes ask for nothing special.
    let mut parameters = [0u64; 15];
    let entries: libc::c_uint = 1;
    // SAFETY: the kernel reads and writes a structure of 120 bytes, which is there for the call.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, entries, parameters.as_mut_ptr()) };
    let Ok(ring @ 0..) = i32::try_from(ring) else {
        return Err(io::Error::last_os_error());
    };
    // SAFETY: the kernel has just given this descriptor to us, and nobody else knows it.
    drop(unsafe { OwnedFd::from_raw_fd(ring) });
    Ok(())
}

/// Opens a directory by the call that can be told not to leave it (`openat2`).
///
/// # Errors
/// As `openat2(2)`: `ENOSYS` before Linux 5.6, `EPERM` where a sandbox lets only the old calls through.
pub fn try_open_beneath() -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(CWD, c"/", flags, Mode::empty(), resolve)?;
    Ok(())
}

/// Opens a descriptor for this process, as is done for programs that are waited for.
///
/// # Errors
/// As `pidfd_open(2)`: `ENOSYS` before Linux 5.3.
pub fn try_process_descriptor() -> io::Result<()> {
    pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptors() -> usize {
        std::fs::read_dir("/proc/self/fd")
            .expect("a list of descriptors")
            .count()
    }

    #[test]
    fn the_kernel_says_what_it_is() {
        let kernel = kernel();
        assert_eq!(kernel.name, "Linux");
        let known = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
        assert_eq!(kernel.release, known.trim());
        assert!(!kernel.machine.is_empty());
    }

    #[test]
    fn the_limit_in_force_is_no_more_than_what_it_may_become() {
        let (current, maximum) = descriptor_limits();
        assert!(current.unwrap_or(u64::MAX) <= maximum.unwrap_or(u64::MAX));
    }

    #[test]
    fn a_ring_is_made_or_refused_by_the_system() {
        if let Err(error) = try_io_uring() {
            let refusals = [libc::ENOSYS, libc::EPERM, libc::EACCES, libc::ENOMEM];
            let number = error.raw_os_error().expect("an error of the system");
            assert!(refusals.contains(&number), "{error}");
        }
    }

    #[test]
    fn nothing_that_was_tried_stays_open() {
        // Other tests of this process open files, too: only growth without end counts.
        let before = descriptors();
        for _ in 0..200 {
            let _ = try_io_uring();
            let _ = try_open_beneath();
            let _ = try_process_descriptor();
        }
        assert!(descriptors() < before + 150);
    }
}
