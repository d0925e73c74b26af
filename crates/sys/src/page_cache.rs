//! What of a file is in memory.

use std::{
    io,
    num::NonZeroU64,
    os::fd::{AsRawFd, BorrowedFd},
};

use rustix::fs::{Advice, fadvise};

/// The number of `cachestat(2)`: new system calls have the same one everywhere but on Alpha.
const CACHESTAT: libc::c_long = 451;

/// Whether all of `length` bytes of `file` from `offset` on are in the page cache, so that reading them
/// waits for no disk.
///
/// # Errors
/// As `cachestat(2)`: `Unsupported` before Linux 6.5, `PermissionDenied` for a file that is neither
/// writable nor one's own.
pub fn is_cached(file: BorrowedFd<'_>, offset: u64, length: u64) -> io::Result<bool> {
    let Some(last) = length
        .checked_sub(1)
        .and_then(|more| offset.checked_add(more))
    else {
        return Ok(true);
    };
    // The structures of <linux/mman.h>: offset and length; pages that are cached, dirty, in writeback,
    // evicted, recently evicted.
    let range: [u64; 2] = [offset, length];
    let mut pages = [0u64; 5];
    // SAFETY: the kernel reads the first array and writes the second, whose sizes are those of its
    // structures; the descriptor is open.
    let result = unsafe {
        libc::syscall(
            CACHESTAT,
            file.as_raw_fd(),
            range.as_ptr(),
            pages.as_mut_ptr(),
            0u32,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let page = rustix::param::page_size() as u64;
    Ok(pages[0] > last / page - offset / page)
}

/// Asks the system to forget what it holds in memory of `length` bytes of `file` from `offset` on, as far as
/// it is on the disk, so that the next read comes from there. 0 is nothing.
///
/// # Errors
/// As `posix_fadvise(2)`.
pub fn drop_cached(file: BorrowedFd<'_>, offset: u64, length: u64) -> io::Result<()> {
    let Some(length) = NonZeroU64::new(length) else {
        return Ok(());
    };
    Ok(fadvise(file, offset, Some(length), Advice::DontNeed)?)
}

// Miri knows nothing of posix_fadvise and cachestat.
#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use std::{io::Write, os::fd::AsFd};

    #[test]
    fn what_is_dropped_from_memory_is_still_in_the_file() {
        let path = std::env::temp_dir().join(format!("sys-drop-cached-{}", std::process::id()));
        let mut file = std::fs::File::options();
        let file = file.read(true).write(true).create_new(true);
        let mut file = file.open(&path).expect("a file");
        std::fs::remove_file(&path).expect("a name to remove");
        file.write_all(&[7; 100_000]).expect("written");
        file.sync_all().expect("synced");
        drop_cached(file.as_fd(), 0, 100_000).expect("a regular file");
        drop_cached(file.as_fd(), 5, 0).expect("nothing to do");
        let mut bytes = vec![0; 100_000];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).expect("readable");
        assert!(bytes.iter().all(|byte| *byte == 7));
        let pipe = std::io::pipe().expect("a pipe");
        assert!(drop_cached(pipe.0.as_fd(), 0, 1).is_err());
    }

    #[test]
    fn what_was_just_written_is_cached_and_a_hole_is_not() {
        let path = std::env::temp_dir().join(format!("sys-page-cache-{}", std::process::id()));
        let mut file = std::fs::File::create_new(&path).expect("a file");
        std::fs::remove_file(&path).expect("a name to remove");
        file.write_all(&[1; 100_000]).expect("written");
        file.set_len(1 << 20).expect("a longer file");
        let cached = |offset, length| match is_cached(file.as_fd(), offset, length) {
            // An old kernel cannot say.
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ENOSYS));
                None
            }
            Ok(cached) => Some(cached),
        };
        for (offset, length) in [(0, 0), (0, 1), (4095, 2), (0, 100_000), (99_999, 1)] {
            assert_ne!(cached(offset, length), Some(false));
        }
        assert_ne!(cached(0, 1 << 20), Some(true));
        assert_ne!(cached(500_000, 1), Some(true));
    }
}
