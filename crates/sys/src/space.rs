//! How much a file may hold: the room in its file system, and the limit of this process.

use std::{io, os::fd::AsFd, path::Path};

use rustix::process::{Resource, getrlimit};

/// The bytes that this process can still allocate in the file system of `path`: with the reserve for the
/// system's administrator where it is theirs. `None` where the file system does not say.
///
/// # Errors
/// What `statvfs` failed with.
pub fn free_space(path: &Path) -> io::Result<Option<u64>> {
    let facts = rustix::fs::statvfs(path)?;
    // Where there is no limit, and in some file systems of other programs, all numbers are 0.
    if facts.f_blocks == 0 {
        return Ok(None);
    }
    let blocks = match rustix::process::geteuid().is_root() {
        true => facts.f_bfree,
        false => facts.f_bavail,
    };
    Ok(Some(blocks.saturating_mul(facts.f_frsize)))
}

/// Whether files may take less space than their data has bytes: the file system of `fd` may compress
/// them (btrfs, ZFS, bcachefs).
#[must_use]
pub fn may_compress(fd: impl AsFd) -> bool {
    const BTRFS: u64 = 0x9123_683e;
    const ZFS: u64 = 0x2fc1_2fc1;
    const BCACHEFS: u64 = 0xca45_1a4e;
    rustix::fs::fstatfs(fd)
        .is_ok_and(|facts| [BTRFS, ZFS, BCACHEFS].contains(&(facts.f_type as u64 & 0xffff_ffff)))
}

/// The largest size in bytes that this process may give a file (`RLIMIT_FSIZE`); `None`: any.
#[must_use]
pub fn file_size_limit() -> Option<u64> {
    getrlimit(Resource::Fsize).current
}

// Miri knows nothing of statvfs.
#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_has_room_or_does_not_say() {
        let free = free_space(&std::env::temp_dir()).expect("an answer");
        assert_ne!(free, Some(u64::MAX));
        assert_eq!(free_space(Path::new("/proc")).expect("an answer"), None);
        free_space(Path::new("/no/such/place")).expect_err("nothing is there");
    }
}
